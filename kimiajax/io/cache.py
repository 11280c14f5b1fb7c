"""What is kept between runs: arrays and files in a cache folder, found again by a key that names their content."""

import contextlib
import errno
import json
import math
import mmap
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kimiajax.errors import UserError
from kimiajax.io.files import new_file, put_folder, remove_leftovers, scratch_folder, sha256_file

Shapes = Mapping[str, tuple[int, ...]]  # of arrays, by name

DIGESTS = "digests.json"
LIMIT = 40 * 2**30  # bytes of one kind; beyond it what was used longest ago is removed


@dataclass
class Entry:
    """An entry of the cache that is being made.

    Attributes:
        folder: where it is made; other files may lie there too.
        arrays: to fill in; mapped from the disk once the entry is kept.
        key: under which it will be found.
    """

    folder: Path
    arrays: dict[str, np.ndarray]
    key: str


class ArrayCache:
    """Arrays of one kind, each entry found again by a key that names its content.

    An entry is whole or absent; its files are known by their SHA-256; what was used longest ago goes when all entries
    of a kind take more than `LIMIT` bytes.
    """

    def __init__(self, cache: Path, kind: str, dtype: type):
        self.folder, self._dtype = cache / kind, dtype

    def get(self, key: str, shapes: Shapes) -> dict[str, np.ndarray] | None:
        """Returns the arrays of an entry, mapped into memory; None where it is lacking or damaged."""
        found = load_arrays(self.folder / key, shapes, self._dtype)
        if found is not None:
            mark_used(self.folder / key)
        return found

    @contextlib.contextmanager
    def making(self, shapes: Shapes, key: str = "new") -> Iterator[Entry]:
        """Gives an entry whose arrays the caller fills in, and keeps it. A key that is known then only is set in it.

        Raises:
            UserError: too little space.
        """
        with scratch_folder(self.folder / key) as aside:
            new = {name: new_array(aside / f"{name}.npy", shape, self._dtype) for name, shape in shapes.items()}
            entry = Entry(aside, dict(new), key)
            yield entry
            for array in new.values():
                array.flush()
            vouch_for(aside)
            # Opened before they take their place, where another process may put its own.
            entry.arrays = {name: np.load(aside / f"{name}.npy", mmap_mode="r") for name in shapes}
            put_folder(aside, self.folder / entry.key)
        trim(self.folder, keep=self.folder / entry.key)


def load_arrays(folder: Path, shapes: Shapes, dtype: type) -> dict[str, np.ndarray] | None:
    """Arrays that were kept, mapped into memory; None where one is lacking or damaged, and all are computed again."""
    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        damaged = [name for name in shapes if sha256_file(folder / f"{name}.npy") != digests[name]]
        mapped = np.lib.format.open_memmap  # which reads plain arrays and nothing else
        sound = () if damaged else shapes
        arrays: dict[str, np.ndarray] = {name: mapped(folder / f"{name}.npy", "r") for name in sound}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if damaged:
        what = f"{folder}: {', '.join(damaged)} is not what was kept there and is computed again; is the disk sound?"
        warnings.warn(what, stacklevel=2)
        return None
    fit = all((array.shape, array.dtype) == (shapes[name], dtype) for name, array in arrays.items())
    return arrays if fit else None


def load_text(path: Path) -> str | None:
    """A text that was kept beside arrays; None where it is lacking or damaged."""
    try:
        digests = json.loads((path.parent / DIGESTS).read_text(encoding="utf-8"))
        return path.read_text(encoding="utf-8") if sha256_file(path) == digests[path.stem] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def vouch_for(folder: Path) -> None:
    """Notes the digests of a folder's files, by which `load_arrays` and `load_text` know them."""
    digests = {path.stem: sha256_file(path) for path in sorted(folder.iterdir()) if path.name != DIGESTS}
    (folder / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")


def let_go(arrays: Iterable[np.ndarray]) -> None:
    """Gives back the memory of arrays that are mapped from files, which keep what was read and written.

    Linux maps their pages again where they are looked at; without this all that a pass has touched counts as this
    process's memory.
    """
    for array in arrays:
        mapped = getattr(array, "_mmap", None)
        if isinstance(mapped, mmap.mmap) and getattr(array, "mode", "c") != "c" and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def new_array(path: Path, shape: tuple[int, ...], dtype: type, flag: str = "--cache") -> np.memmap:
    """A new file mapped into memory, its space taken at once: a disk that is full later on would kill the process.

    Raises:
        UserError: too little space.
    """
    try:
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        with path.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, array.nbytes + array.offset)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        size = math.prod(shape) * np.dtype(dtype).itemsize
        raise UserError(
            f"{path.parent.parent}: too little space for {size / 2**30:.1f} GiB of {path.stem}; make room, or "
            f"choose another folder with {flag}"
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


def default_cache() -> Path:
    """Returns the user's cache folder for this program, which is made; where that fails, one in the temporary folder.

    Raises:
        UserError: there is none that is the user's alone.
    """
    import pooch  # here only: what needs no download needs no pooch

    try:
        folder = Path(pooch.os_cache("kimiajax"))
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        why = f"{folder} cannot be written"
    except OSError as error:
        why = f"{error.filename} cannot be made ({error.strerror})"
    except RuntimeError:  # no HOME, and no entry among the users
        why = "this user has no home folder"
    folder = _temporary_cache(why)
    warnings.warn(f"{why}: what is kept between runs goes to {folder}; --cache names another folder", stacklevel=2)
    return folder


def _temporary_cache(why: str) -> Path:
    """The cache of a user in the temporary folder, which nobody else can write: programs are kept there."""
    remedy = "name a folder with --cache"
    try:
        folder = Path(tempfile.gettempdir()) / f"kimiajax-{os.getuid()}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except (OSError, AttributeError) as error:  # no folder that can be written, or no numbers of users
        raise UserError(f"{why}, and no temporary folder serves as a cache ({error}); {remedy}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(f"{why}, and {folder} is not this user's alone; {remedy}")
    return folder
