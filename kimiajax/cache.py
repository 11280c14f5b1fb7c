"""What is kept between runs: arrays and files in a cache folder, found again by a key that names their content."""

import contextlib
import errno
import os
import shutil
import warnings
from pathlib import Path

import numpy as np

from kimiajax.errors import UserError
from kimiajax.files import new_file, remove_leftovers

LIMIT = 40 * 2**30  # bytes of one kind; beyond it what was used longest ago is removed


def load_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray | None:
    """A stored array mapped into memory; None where there is none, or a damaged one, which is computed again."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == dtype else None


def new_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """A new file mapped into memory, its space taken at once: a disk that is full later on would kill the process.

    Raises:
        UserError: too little space.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    try:
        with path.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, array.nbytes + array.offset)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"{path.parent.parent}: too little space for {array.nbytes / 2**30:.1f} GiB of {path.stem}; make room, or "
            "choose another folder with --cache"
        ) from error
    return array


def kept_file(cache: Path | None, kind: str, name: str) -> Path | None:
    """A file that was kept before, if it is still there."""
    path = None if cache is None else cache / kind / name
    if path is None or not path.exists():
        return None
    mark_used(path)
    return path


def mark_used(path: Path) -> None:
    """Notes the time, by which `trim` judges. Another process may have removed it meanwhile."""
    with contextlib.suppress(OSError):  # nor need it be writable
        os.utime(path)


def keep_file(cache: Path | None, kind: str, name: str, content: bytes) -> None:
    """Keeps a file, where there is a cache; warns where it cannot be written, since what was computed is still good."""
    if cache is None:
        return
    try:
        with new_file(cache / kind / name) as aside:
            aside.write_bytes(content)
    except OSError as error:
        message = f"{cache}: cannot keep {kind}/{name} ({error.strerror}); later runs compute it anew"
        warnings.warn(message, stacklevel=2)


def trim(folder: Path, keep: Path) -> None:
    """Removes what was used longest ago from one kind's folder until the rest is under the limit."""
    remove_leftovers(folder)
    sizes, used = {}, {}
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue  # another process is at it
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            sizes[entry] = sum(file.stat().st_size for file in entry.glob("*"))
            used[entry] = entry.stat().st_mtime
    for entry in sorted(used, key=used.__getitem__):
        if sum(sizes.values()) <= LIMIT:
            break
        if entry != keep:
            shutil.rmtree(entry, ignore_errors=True)
            del sizes[entry]
