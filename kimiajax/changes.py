"""What differs between two values as JSON has them."""

import json
from collections.abc import Iterator
from typing import Any


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
