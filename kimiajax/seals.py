"""Records that vouch for themselves: JSON objects that hold a digest of all that they say."""

import hashlib
import json
from typing import Any

SEAL = "seal"


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its seal, in place of any that it had."""
    return {**record, SEAL: _seal_of(record)}


def is_sealed(record: dict[str, Any]) -> bool:
    """Whether a record says what it said when it was sealed."""
    return record.get(SEAL) == _seal_of(record)


def _seal_of(record: dict[str, Any]) -> str:
    """SHA-256 of a record's JSON but for the seal, its names in order."""
    said = {name: value for name, value in record.items() if name != SEAL}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
