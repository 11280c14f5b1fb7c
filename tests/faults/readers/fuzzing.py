"""Inputs that are damaged or made up at random, and what is asked of whoever reads them.

Each is read, or refused in one short line that names the file, within seconds and a bounded memory. Where a library in
C does not come back, or dies, the process does, and that fails the test as well.
"""

import contextlib
import csv
import io
import json
import math
import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kimiajax.errors import UserError

INPUTS = 10_000  # of each reader
SECONDS = 40  # that a reader may take; what it calls may have to be compiled first, on a busy machine
MEMORY = 2**30  # bytes that it may ask for
LONGEST = 3_000  # characters of a refusal

T = TypeVar("T")
Choose = Callable[[int], int]  # of so many things, the number of one


class TooSlowError(BaseException):
    """A reader that does not end; of a kind that no reader catches."""


def fuzz(read: Callable[[T], object], inputs: st.SearchStrategy[T], share: int = 1) -> int:
    """Has a share of `INPUTS` read, the same ones in every run, up to the first that fails. Returns how many were.

    Args:
        read: reads one and raises where that is not as it must be.
        inputs: what to draw from.
        share: which part of all, 2 for a half.
    """
    ran = 0

    @settings(
        max_examples=-(-INPUTS // share),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        phases=(Phase.generate,),  # a simpler one takes minutes to find, and most are simple
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


def read_anew(path: Path, content: bytes, see: Callable[[], T]) -> T | None:
    """A file under an inode of its own: HDF5 takes files of one inode for one."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return asked(see, path)


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TooSlowError(f"takes more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)  # again, should it ring where errors are lost
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


# Bytes

KINDS = ("flip", "flip", "write", "write", "number", "number", "zero", "insert", "remove", "splice", "cut")
BLOW = 13  # bytes that one is made from
BLOWS = st.binary(min_size=2 + BLOW, max_size=2 + 5 * BLOW)  # drawn at once, which is far the quickest


def damaged(blows: bytes, whole: Sequence[bytes]) -> bytes:
    """One of some files, damaged in up to five places; parts of another may get into it."""
    content, other = (whole[byte % len(whole)] for byte in blows[:2])
    for start in range(2, len(blows) - BLOW + 1, BLOW):
        kind, low, middle, high, length, *junk = blows[start : start + BLOW]
        place = low + 256 * middle + 256**2 * high
        content = _strike(KINDS[kind % len(KINDS)], content, other, place, length, bytes(junk))
    return content


def _strike(kind: str, content: bytes, other: bytes, place: int, length: int, junk: bytes) -> bytes:
    at, there = (place % (len(each) + 1) for each in (content, other))
    new, gone = {
        "flip": (bytes(byte ^ 1 << length % 8 for byte in content[at : at + 1]), 1),
        "write": (junk[: 1 + length % 8], None),
        "insert": (junk[: 1 + length % 8], 0),
        "zero": (bytes(length), None),
        "remove": (b"", length),
        "number": (_number(length, junk), None),
        "splice": (other[there : there + length], None),
        "cut": (b"", len(content)),
    }[kind]
    return content[:at] + new + content[at + (len(new) if gone is None else gone) :]


def _number(length: int, junk: bytes) -> bytes:
    """What a size or an offset may have become: a power of two, the largest, another place, or none."""
    value = (2 ** (junk[0] % 64), 2**64 - 1, int.from_bytes(junk[:2], "little"), 0)[length % 4]
    return value.to_bytes(8, "little")[: 4 if length & 4 else 8]


# What is made up, by choices that a number stands for

NUMBERS = st.binary(min_size=16, max_size=16).map(lambda drawn: int.from_bytes(drawn, "little"))  # all as likely


def chooser(number: int) -> Choose:
    """Choices that a number stands for, less and less of which is left."""

    def choose(count: int) -> int:
        nonlocal number
        number, chosen = divmod(number, count)
        return chosen

    return choose


# JSON

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**40, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), "", "a", "nan", "0", "-1", "9" * 30, "1_0", "\u0663", " 1 ", "../../x", "/", "\0"),
    *("a\nb", "\x1b[2J", "\ud800", "\u202e", "\u00e9", '"', "<script>", "{{ 7 }}", "x" * 400, "y" * 10**5, "\n" * 5000),
    *([], [1], ["a"], [None], [[[]]], [{}], {}, {"a": 1}, {"": None}, {"name": "cnn"}, {"background": "x"}),
)
ENDLESS = ("9" * 10**5, "[" * 10**5, "[" * 200 + "]" * 200, "1e999", "-", '"')


def anywhere(value: Any, choose: Choose, new: Any) -> Any:
    """A JSON value with another one in one of its places; each level down is one chance in four to stop."""
    if choose(4) == 0 or not isinstance(value, dict | list) or not value:
        return new
    which = choose(len(value))
    if isinstance(value, list):
        return [anywhere(each, choose, new) if k == which else each for k, each in enumerate(value)]
    return {key: anywhere(each, choose, new) if k == which else each for k, (key, each) in enumerate(value.items())}


def as_text(value: Any, choose: Choose) -> bytes:
    """A value as JSON; now and then with what no JSON is, or has, in place of a 1."""
    text = json.dumps(value)
    return (text.replace("1", ENDLESS[choose(len(ENDLESS))], 1) if choose(50) == 0 else text).encode()


# CSV

FIELDS = (
    *("", "0", "1", "2", "-1", "1e5", "1e999", "nan", "0x1", "1_0", "\u0663", " 1", "9" * 11, "9" * 20, "9" * 5000),
    *("train", "test", "a" * 64, "A" * 64, "a\nb", "\x1b[2J", "\0", '"', '""', ",", "\ud800", "\u202e", "x" * 301),
    *("\u00e9", "a b", "x" * 300, "9" * 10**5),
)


def remake(text: str, choose: Choose) -> bytes:
    """A CSV file with some other fields, rows and columns, quoted as need be."""
    columns, *rows = csv.reader(io.StringIO(text))
    for _ in range(choose(4)):
        row = columns if choose(8) == 0 or not rows else rows[choose(len(rows))]
        what, place = choose(9), choose(len(row) + 1)
        if what < 5 and row:
            row[place - 1] = FIELDS[choose(len(FIELDS))]
        elif what == 5:
            row.insert(place, FIELDS[choose(len(FIELDS))])
        elif what == 6 and row:
            del row[place - 1]
        elif what == 7 and rows:
            rows.insert(choose(len(rows) + 1), list(row))
        elif rows:
            del rows[choose(len(rows))]
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([columns, *rows])
    return lines.getvalue().encode("utf-8", "surrogatepass")


# HDF5

TYPES = (
    *map(np.dtype, ("u1", "u1", "u1", "i8", "i8", "u2", "i1", "f4", "S5", "?", "c8", "V3", "(2,)u1", "u1,f4")),
    *(h5py.string_dtype(), h5py.vlen_dtype(np.uint8), h5py.ref_dtype, h5py.enum_dtype({"a": 1})),
)
SHAPES = ((3,), (1, 3), (3, 1), (40, 40), (3, 8, 8), (0, 8, 8), (3, 8, 9))
SIDES = (0, 1, 2, 3, 7, 8, 40, 2**10, 2**20, 2**32, 2**40, 2**63)
FILTERS = (
    *({}, {"compression": "gzip"}, {"compression": "lzf"}, {"fletcher32": True}, {"shuffle": True}),
    {"compression": 32015, "allow_unknown_filter": True},
)
FILES = ("whole.h5", "x.h5", "/dev/null", ".", "nowhere.h5", "text.h5")
TAGS = (True, 0, "no", b"", [1, 0], h5py.Empty("f"), np.zeros((0, 3)), "{}", "[" * 5000, "a\nb", "y" * 10**4)


def rebuild(path: Path, choose: Choose, names: Sequence[str], attributes: Sequence[str]) -> None:
    """Puts other things into an HDF5 file, under some of these names, and gives some of these attributes to things."""
    with h5py.File(path, "r+") as file:
        for _ in range(choose(4)):
            name = _without(file, names[choose(len(names))])
            with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError):
                (_claim, _claim, _put, _put_elsewhere)[choose(4)](file, name, choose)
            if choose(4) == 0:
                _tag(file, attributes[choose(len(attributes))], choose)
        if choose(4) == 0:  # last, as what is put beyond a link goes elsewhere
            with contextlib.suppress(OSError, RuntimeError):
                _link(file, _without(file, names[choose(len(names))]), choose)


def _tag(file: h5py.File, attribute: str, choose: Choose) -> None:
    """Gives the file, or something in it, an attribute of any kind."""
    items: list[Any] = [file]
    file.visititems(lambda name, item: items.append(item))
    items[choose(len(items))].attrs[attribute] = TAGS[choose(len(TAGS))]


def _without(file: h5py.File, name: str) -> str:
    with contextlib.suppress(KeyError, RuntimeError):
        del file[name]
    return name


def _claim(file: h5py.File, name: str, choose: Choose) -> None:
    """An array of any size that was never written, or written in part."""
    shape = tuple(SIDES[choose(len(SIDES))] for _ in range(choose(5)))
    options, kind = {}, TYPES[choose(len(TYPES))]
    if choose(2):
        options = {"chunks": tuple(1 + choose(2 ** choose(21)) for _ in shape), **FILTERS[choose(len(FILTERS))]}
        options["maxshape"] = (None, (None,) * len(shape))[choose(2)]
    plain = kind in (np.uint8, np.int64)  # HDF5 itself takes others amiss
    if plain and choose(2):
        options["fillvalue"] = 7
    made = file.create_dataset(name, shape, kind, **options)
    if plain and choose(2) and made.size < 10**5 and math.prod(made.chunks or (1,)) < 10**5:
        made[(slice(0, 9),) * len(shape)] = 3


def _put(file: h5py.File, name: str, choose: Choose) -> None:
    """Something else: a group, a type, the same again, nothing, an array of another kind or shape."""
    what, kind = choose(5), TYPES[choose(len(TYPES))]
    if what == 0:
        file.create_group(name)
    else:
        file[name] = (kind, file, h5py.Empty(kind), np.zeros(SHAPES[choose(len(SHAPES))], kind))[what - 1]


def _put_elsewhere(file: h5py.File, name: str, choose: Choose) -> None:
    """An array whose values lie in other files."""
    shape, source = SHAPES[choose(len(SHAPES))], FILES[choose(len(FILES))]
    if choose(2):
        layout = h5py.VirtualLayout(shape, np.uint8)
        layout[...] = h5py.VirtualSource(source, "scan0/data", shape)
        file.create_virtual_dataset(name, layout)
    else:
        file.create_dataset(name, shape, np.uint8, external=[(source, 0, h5py.h5f.UNLIMITED)])


def _link(file: h5py.File, name: str, choose: Choose) -> None:
    """A link to anything, here or elsewhere."""
    there = ("/", "/scan1/data", "/scan0", "scan0/data", name, "/nowhere", "/test_data/patches", ".")[choose(8)]
    file[name] = (h5py.SoftLink(there), h5py.ExternalLink(FILES[choose(len(FILES))], there))[choose(2)]


# Folders

ABOVE = ("train", "test", "Training", "testing set", "train_test", "s0", "S1", "0", "scan1", "\u0661", "more", "")
WITHIN = ("s0", "s1", "S0", "scan1", "1", "s2", "s" + "9" * 200, "x", "train", ".hidden", "a\nb", "\udcff", "", "")
ENTRIES = (
    *("0.png", "1.png", "1.PNG", "1.jpg", "0.tif", "a.b.bmp", "\u00e9.png", "\u202e.png", "a\nb.png", "\udcff.png"),
    *(".png", "x" * 251 + ".png", "0", "0.txt", "Thumbs.db", "manifest.json", "a.svs", "s0", "train"),
)


def put_entry(path: Path, choose: Choose, contents: Sequence[bytes]) -> None:
    """A file, a folder or a link somewhere in a folder, or one thing less."""
    above = path / ABOVE[choose(len(ABOVE))] / WITHIN[choose(len(WITHIN))]
    what, entry = choose(6), above / ENTRIES[choose(len(ENTRIES))]
    with contextlib.suppress(OSError):
        if what == 0 and above != path:
            shutil.rmtree(above)
            return
        above.mkdir(parents=True, exist_ok=True)
        if what == 2:
            entry.symlink_to(("..", ".", "nowhere", entry, path, "/dev/null", "../s0")[choose(7)])
        elif what > 2:
            entry.write_bytes(contents[choose(len(contents))])
