"""Files and folders that are either whole or absent, and files that are what they are said to be."""

import codecs
import contextlib
import csv
import errno
import hashlib
import io
import itertools
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kimiajax.io.locks import host, is_alive

ASIDE = re.compile(r"\..*\.(?P<host>[A-Za-z0-9-]*)\.(?P<pid>\d+)\.[0-9a-f]{8}\.kimiajax-partial")
ATTEMPTS = 100  # to put a folder where other processes put theirs at the same time


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read as a stream."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def md5_file(path: Path, track: Callable[..., Iterable] | None = None) -> str:
    """Hexadecimal MD5 of a file, which is what some are published with; `track` shows progress."""
    digest, block = hashlib.md5(usedforsecurity=False), 2**24
    with path.open("rb") as stream:
        parts = iter(lambda: stream.read(block), b"")
        for part in parts if track is None else track(parts, "MD5", -(-path.stat().st_size // block), "x 16 MiB"):
            digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` that takes its place when the block ends well, and vanishes otherwise."""
    with _beside(path) as aside:
        yield aside
        with aside.open("r+b") as file:
            os.fsync(file.fileno())  # or the name could reach the disk before what it names
        aside.replace(path)


def write_text(path: Path, text: str) -> None:
    """Writes `text` aside and renames it into place: a reader sees the old file or the new one, never a part."""
    with new_file(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="")


def csv_text(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Returns rows below a head as the text of a CSV file, lines ending in a newline alone; None is empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` that takes its place when the block ends well, and vanishes otherwise."""
    with scratch_folder(path) as aside:
        yield aside
        put_folder(aside, path)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, of a similar name, that vanishes when the block ends."""
    with _beside(path) as aside:
        aside.mkdir()
        yield aside


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` that is nobody else's; errors speak of `path`, which a user knows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    aside = path.with_name(f".{path.name}.{host()}.{os.getpid()}.{secrets.token_hex(4)}.kimiajax-partial")
    try:
        yield aside
    except OSError as error:
        name = path if error.filename is None else str(error.filename).replace(str(aside), str(path))
        error.filename, error.filename2 = str(name), None
        raise
    finally:
        _remove(aside)


def put_folder(aside: Path, path: Path) -> None:
    """Puts a folder in the place of another, which goes, or where there is none; others may do the same meanwhile."""
    with scratch_folder(path) as old:
        for attempt in itertools.count():
            try:
                aside.replace(path)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == ATTEMPTS:
                    raise
            with contextlib.suppress(FileNotFoundError):
                path.replace(old / str(attempt))


def remove_leftovers(folder: Path) -> None:
    """Removes what processes of this machine that are gone have left half-written in a folder."""
    for entry in folder.iterdir():
        match = ASIDE.fullmatch(entry.name)
        if match and match["host"] == host() and not is_alive(int(match["pid"])):
            _remove(entry)


def _remove(entry: Path) -> None:
    shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def guess(head: bytes, size: int, wanted: str) -> str:
    """Names what a file that is not what was wanted seems to be, by its first bytes, with the remedy."""
    start = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<!--")):
        return "a web page saved under that name; download the file itself"
    if not size:
        return "an empty file; fetch it again"
    if start.startswith((b"\x80", b"pk\x03\x04")):
        return f"a pickle or zip archive, which is never loaded; give {wanted}"
    return f"not {wanted} (it starts with {head[:8]!r})"
