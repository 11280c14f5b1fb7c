"""JSON from anywhere: parsed strictly, vouched for by a digest of all that it says, and compared."""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

from kimiajax.text import quoted

SEAL = "seal"
DEEPEST = 100  # of objects and lists within one another; weights are fine-tuned one from another, and each is one more


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is none, or says what neither files nor arithmetic take: NaN, infinity, whole numbers beyond 64
            bits, half a character, nesting without end.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("nested without end") from error
    level = [value]
    for _ in range(DEEPEST):
        if not level:
            break
        level = [each for item in level if isinstance(item, dict | list) for each in _within(item)]
    else:
        raise ValueError("nested without end")
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _within(item: dict[str, Any] | list[Any]) -> list[Any]:
    return list(item.values()) if isinstance(item, dict) else item


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(quoted(text))


def _whole(text: str) -> int:
    return int(text) if len(text) < 20 and abs(int(text)) < 2**63 else _refuse(quoted(text))


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


def changes(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two values differ, "config/epochs", and both there, as text."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from changes(before.get(key), now.get(key), f"{name}/{key}" if name else str(key))
    elif before != now:
        yield name, _shown(before), _shown(now)


def differences(before: Any, now: Any) -> list[str]:
    """The same in words: "config/epochs was 10 and is 12"."""
    return [f"{name} was {one} and is {other}" for name, one, other in changes(before, now)]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
