"""Numbers and texts as a reader takes them, and what keeps a reader from taking them for more."""

import io
import itertools
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

FEW = 15  # test patches of a scan, under which a bootstrap within scans may give intervals that are too short
PLURALS = {"scan": "scans", "class": "classes"}  # of what patches are told apart by
NO_WIDTH = (
    "An interval without width: of each scan all patches fare alike, so that a bootstrap draws the same again. It says "
    "nothing of how sure the figure is."
)

LONGEST_NAME = 300  # characters
# What a terminal or a browser obeys and does not show, but for tabs and ends of lines; and halves of characters.
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """A text with what would steer a terminal, or turn the reading around, as its escape: `\\x1b[31m`."""
    return UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def show(text: str) -> None:
    """Prints what may hold names from anywhere, on a terminal that may know ASCII only."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    print(visible(text))


def percent(share: float | None) -> str:
    """A share in per cent, two decimals; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.2f}"


def points(difference: float) -> str:
    """A difference of shares in points, two decimals and its sign."""
    return f"{round(100 * difference, 2) + 0.0:+.2f}"


def p_value(p: float) -> str:
    """A p-value; the smallest of a permutation is 1 / 10,001."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def over_seeds(seeds: int) -> str:
    """What to add to a count of patches that counts each once a seed."""
    return f" over {seeds} seeds" if seeds > 1 else ""


def first_few(items: Iterable[str]) -> str:
    """The first few, as text."""
    few = list(itertools.islice(items, 4))
    return ", ".join(few[:3]) + (", ..." if len(few) > 3 else "")


def first_of(items: Iterable[object], most: int) -> str:
    """The first items, as text, and how many are left out."""
    listed = list(map(str, items))
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")


def with_few_patches(tested: Sequence[int]) -> list[int]:
    """The scans that have few test patches, from how many each has."""
    return [scan for scan, count in enumerate(tested) if 0 < count < FEW]


def cautions(
    tested: Sequence[int],
    intervals: Iterable[tuple[float, float]],
    word: str = "scan",
    labels: Sequence[str] | None = None,
) -> list[str]:
    """What must be said of some intervals, from how many test patches each scan has.

    Args:
        tested: test patches of each scan.
        intervals: lower and upper bounds.
        word: what a scan is.
        labels: what each is called; by default its number.
    """
    found, few = [], with_few_patches(tested)
    if few:
        called = ", ".join(str(k) if labels is None else labels[k] for k in few)
        listed = f"each {word}" if len(few) == len(tested) else f"{word} {called}"
        found.append(
            f"Fewer than {FEW} test patches are of {listed}: intervals of eta_w and eta_total may be too short."
        )
    if any(low == high for low, high in intervals):
        found.append(NO_WIDTH)
    return found


def is_name(text: str) -> bool:
    """Whether a text serves as a name: it can be shown, in one line, and is not out of all proportion."""
    return 0 < len(text) <= LONGEST_NAME and _is_line(text)


def text_of(path: object) -> str:
    """A path, or the name of a set, as text that every file can hold: bytes that are no UTF-8 as their escapes."""
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


def first_line(error: BaseException | str, otherwise: str = "") -> str:
    """The first line of an error's text, of 500 characters at most; --debug shows it all."""
    return next(iter(str(error).strip().splitlines()), otherwise)[:500]


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
