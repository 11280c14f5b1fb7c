"""Inputs that are damaged at random, and what is asked of whoever reads them.

Each is read, or refused in one short line that names the file, within seconds and a bounded memory. Where a library in
C does not come back, or dies, the process does, and that fails the test as well.
"""

import contextlib
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kimiajax.errors import UserError

INPUTS = 10_000  # of each reader
SECONDS = 10  # that a reader may take
MEMORY = 2**30  # bytes that it may ask for
LONGEST = 3_000  # characters of a refusal

T = TypeVar("T")


class TooSlowError(BaseException):
    """A reader that does not end; of a kind that no reader catches."""


def fuzz(read: Callable[[T], object], inputs: st.SearchStrategy[T], count: int = INPUTS) -> int:
    """Has as many inputs read, the same in every run. Returns how many were."""
    ran = 0

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(inputs)
    def each(value: T) -> None:
        nonlocal ran
        ran += 1
        read(value)

    with _little_memory():
        each()
    return ran


def asked(read: Callable[[], T], *named: object) -> T | None:
    """What a reader gives, or None where it refuses as it must.

    Args:
        read: the reader, with its input.
        named: of which its line must name one.
    """
    try:
        with _in_time():
            return read()
    except UserError as error:
        line = str(error)
    except OSError as error:  # which the command line says in the same way
        if not error.errno or error.filename is None:
            raise
        line = f"{error.filename}: {error.strerror}"
    assert any(str(name) in line for name in named), line
    assert len(line) <= LONGEST, line
    assert len(line.splitlines()) == 1, line
    return None


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TooSlowError(f"takes more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    signal.setitimer(signal.ITIMER_VIRTUAL, 3 * SECONDS)  # ends the process, in the midst of C too
    try:
        yield
    finally:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL):
            signal.setitimer(timer, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """Lets the process have so much more memory than it has; what asks for more raises MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Damage(NamedTuple):
    """One thing that befalls a file: what, where, of what length, and bytes for it."""

    kind: str
    place: int
    length: int
    junk: bytes


KINDS = ("flip", "flip", "write", "write", "number", "number", "zero", "insert", "remove", "splice", "cut")
RECIPE = 13  # bytes that a damage is made from


def damaged(whole: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of some files, damaged in up to five places; parts of the others may get into it."""
    recipes = st.binary(min_size=2 + RECIPE, max_size=2 + 5 * RECIPE)  # drawn at once, which is far the quickest
    return recipes.map(lambda recipe: _follow(recipe, whole))


def _follow(recipe: bytes, whole: Sequence[bytes]) -> bytes:
    content, other = (whole[byte % len(whole)] for byte in recipe[:2])
    for start in range(2, len(recipe) - RECIPE + 1, RECIPE):
        kind, low, middle, high, length, *junk = recipe[start : start + RECIPE]
        place = low + 256 * middle + 256**2 * high
        content = _strike(content, other, Damage(KINDS[kind % len(KINDS)], place, length, bytes(junk)))
    return content


def _strike(content: bytes, other: bytes, damage: Damage) -> bytes:
    kind, length = damage.kind, damage.length
    at, there = (damage.place % (len(each) + 1) for each in (content, other))
    if kind == "flip":
        new, gone = bytes(byte ^ 1 << length % 8 for byte in content[at : at + 1]), 1
    elif kind == "cut":
        new, gone = b"", len(content)
    else:
        new = {
            "write": damage.junk[: 1 + length % 8],
            "insert": damage.junk[: 1 + length % 8],
            "zero": bytes(length),
            "remove": b"",
            "number": _number(damage),
            "splice": other[there : there + length],
        }[kind]
        gone = {"insert": 0, "remove": length}.get(kind, len(new))
    return content[:at] + new + content[at + gone :]


def _number(damage: Damage) -> bytes:
    """What a size or an offset may have become: a power of two, the largest, another place, or none."""
    value = (2 ** (damage.junk[0] % 64), 2**64 - 1, int.from_bytes(damage.junk[:2], "little"), 0)[damage.length % 4]
    return value.to_bytes(8, "little")[: 4 if damage.length & 4 else 8]


NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**53, -(2**70), 10**400, 0.5, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), "", "a", "nan", "0", "-1", "9" * 30, "1_0", "٣", " 1 ", "../../x", "/", "\0"),
    *("a\nb", "\x1b[2J", "\ud800", "\u202e", "é", '"', "<script>", "{{ 7 }}", "x" * 400, "y" * 10**5, "\n" * 5000),
    *([], [1], ["a"], [None], [[[]]], [{}], {}, {"a": 1}, {"": None}, {"name": "cnn"}, {"background": "x"}),
)


def deep(levels: int) -> Any:
    """Lists within lists."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def anywhere(value: Any, place: int, new: Any) -> Any:
    """A JSON value with another one in one of its places; each level down is as likely as to stop."""
    place, stop = divmod(place, 4)
    if stop == 0 or not isinstance(value, dict | list) or not value:
        return new
    place, which = divmod(place, len(value))
    if isinstance(value, list):
        return [anywhere(each, place, new) if k == which else each for k, each in enumerate(value)]
    return {key: anywhere(each, place, new) if k == which else each for k, (key, each) in enumerate(value.items())}
