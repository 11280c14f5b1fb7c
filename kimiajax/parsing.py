"""What files say that anyone may have written: taken as it is meant, or refused."""

import json
import math
from pathlib import Path
from typing import Any

from kimiajax.shown import UNSEEN

DEEPEST = 100  # of objects and lists within one another; weights are fine-tuned one from another, and each is one more
LONGEST_NAME = 300  # characters


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


def is_name(text: str) -> bool:
    """Whether a text serves as a name: it can be shown, in one line, and is not out of all proportion."""
    return 0 < len(text) <= LONGEST_NAME and _is_line(text)


def text_of(path: object) -> str:
    """A path, or the name of a set, as text that every file can hold: bytes that are no UTF-8 as their escapes."""
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


def quoted(value: object, most: int = 80) -> str:
    """A value for a message: as Python writes it, in one line, and of so many characters at most."""
    written = repr(value)
    return written if len(written) <= most else f"{written[: most - 3]}..."


def shown(path: Path) -> str:
    """A path for a message, in one line whatever it is called."""
    return str(path) if _is_line(str(path)) else repr(str(path))


def _is_line(text: str) -> bool:
    """Whether a terminal shows all of a text, in one line."""
    return not UNSEEN.search(text) and not set(text) & {"\t", "\n"}


def _within(item: dict[str, Any] | list[Any]) -> list[Any]:
    return list(item.values()) if isinstance(item, dict) else item


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(quoted(text))


def _whole(text: str) -> int:
    return int(text) if len(text) < 20 and abs(int(text)) < 2**63 else _refuse(quoted(text))
