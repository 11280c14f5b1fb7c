"""Weight files opened as named arrays, nothing read yet and nothing ever deserialised or run.

What a file is shows in its first bytes, not in its name: HDF5 and `.keras` archives are Keras', safetensors torch's.
"""

import contextlib
import errno
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kimiajax.errors import UserError
from kimiajax.io.files import guess
from kimiajax.io.hdf5_files import HDF5_SIGNATURE, open_hdf5
from kimiajax.text import is_name, quoted

PICKLE = (
    "a pickle, which can run any program and is never loaded; turn it into safetensors where torch 2.6 or later is: "
    "`safetensors.torch.save_file(torch.load('x.pth', weights_only=True), 'x.safetensors')`"
)
KERAS_MEMBER = "model.weights.h5"  # of a `.keras` archive
DESCRIPTIONS = ("config.json", "metadata.json")  # the others
LARGEST_RATIO = 20  # to which an archive's arrays may unfold; those of a trained network shrink little
LARGEST_DESCRIPTION = 2**24  # bytes; that of Inception-v3 takes 300 thousand
ZIP_SIGNATURE = b"PK\x03\x04"
# What zipfile raises over a damaged archive, besides an OSError for a place before its first byte.
DAMAGED = (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, zlib.error)
LARGEST_LIST = 2**20  # bytes of an archive's list of members, of which Keras writes four
LARGEST_HEADER = 2**20  # bytes; that of torch's Inception-v3 takes 64 thousand, and reading one takes memory
SAFETENSORS_TYPES = {"F32": "float32", "F16": "float16", "F64": "float64", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Stored:
    """An array in a file, not yet read: the file may be another one, and large.

    Attributes:
        name: what it is called in the file.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    name: str = ""

    def changed(self, change: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...] | None = None) -> "Stored":
        """Returns this array as `change` makes it, of another shape perhaps, when it is read."""
        return replace(self, shape=self.shape if shape is None else shape, read=lambda: change(self.read()))


@dataclass(frozen=True)
class Opened:
    """A weight file that is open.

    Attributes:
        framework: whose it is, "keras" or "torch".
        networks: the arrays of each network that may lie in it, by the names of tables; keys are places in the file.
            One network's arrays may be another's as well, under other names.
        layout: the file's kind.
        lineage: what an exported file says of its weights.
        said: what a file of Keras' says of itself.
    """

    framework: str
    networks: dict[str, dict[str, Stored]]
    layout: str
    lineage: Any = None
    said: Any = None


def framework_of(path: Path) -> str:
    """The framework whose layout a file has: "keras" or "torch".

    Raises:
        UserError: no such file, or one of neither; the message says what it seems to be.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give the path of a weight file")
    with path.open("rb") as stream:
        head = stream.read(512)
    if head.startswith(HDF5_SIGNATURE):
        return "keras"
    if head.startswith(ZIP_SIGNATURE):
        with _archive(path) as archive:
            members = archive.namelist()
        if KERAS_MEMBER in members:
            return "keras"
        pickled = any(name.endswith(".pkl") for name in members)
        raise UserError(
            f"{path}: {PICKLE if pickled else 'a zip archive that Keras did not save; give its weight file'}"
        )
    if head[8:9] == b"{":
        return "torch"
    if head.startswith(b"\x80"):
        raise UserError(f"{path}: {PICKLE}")
    raise UserError(f"{path}: {guess(head, path.stat().st_size, 'a .h5, .keras or .safetensors file')}")


@contextlib.contextmanager
def open_keras(path: Path) -> Iterator[tuple[h5py.File, dict[str, bytes]]]:
    """The HDF5 file itself, or the one inside a `.keras` archive, copied out for as long as it is read, with the
    archive's descriptions of the model."""
    with path.open("rb") as stream:
        archived = stream.read(len(ZIP_SIGNATURE)) == ZIP_SIGNATURE
    if not archived:
        with open_hdf5(path, "weights") as file:
            yield file, {}
        return
    with tempfile.TemporaryDirectory(prefix="kimiajax-") as folder:
        inner = Path(folder) / KERAS_MEMBER
        with _archive(path) as archive:
            described = {name: _described(archive, name, path) for name in DESCRIPTIONS if name in archive.NameToInfo}
            member = archive.getinfo(KERAS_MEMBER)
            if member.flag_bits & 1:
                raise UserError(f"{path}: is encrypted, which Keras does not do; save it from Keras again")
            if member.file_size > LARGEST_RATIO * member.compress_size:
                ratio = f"{member.file_size / max(1, member.compress_size):,.0f} times its size"
                raise UserError(f"{path}: {KERAS_MEMBER} would unfold to {ratio}; save it from Keras again")
            with archive.open(KERAS_MEMBER) as source, inner.open("wb") as target:
                try:
                    shutil.copyfileobj(source, target, 2**22)
                except OSError as error:  # of a full disk, which does not say where
                    raise OSError(error.errno, error.strerror, str(inner)) from error
        with _opened(inner, path) as file:
            yield file, described


def _described(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    with archive.open(name) as member:
        text = member.read(LARGEST_DESCRIPTION + 1)
    if len(text) > LARGEST_DESCRIPTION:
        raise UserError(f"{path}: {name} is out of all proportion; save it from Keras again")
    return text


def _opened(inner: Path, path: Path) -> h5py.File:
    try:
        return open_hdf5(inner, "weights")
    except UserError as error:  # of a file that the user never sees
        raise UserError(str(error).replace(str(inner), f"{path}: {KERAS_MEMBER}")) from error


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    _check_list(path)
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise UserError(f"{path}: a damaged archive ({error}); fetch or save it again") from error


def _check_list(path: Path) -> None:
    """Raises UserError for a list of members that is out of all proportion, since zipfile reads it whole."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 2**16 - 22))  # what ends an archive, and the longest comment after it
        tail = stream.read()
    end = tail.rfind(b"PK\x05\x06")
    claimed = int.from_bytes(tail[end + 12 : end + 16], "little")
    elsewhere = tail[max(0, end - 20) : max(0, end)].startswith(b"PK\x06\x07")  # in an archive of more than 4 GiB
    if end >= 0 and (claimed > LARGEST_LIST or elsewhere):
        raise UserError(f"{path}: an archive of too many members for Keras to have saved it; give its weight file")


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[dict[str, Stored]]:
    """The arrays of a safetensors file of torch's by name, readable for as long as it is open.

    Raises:
        UserError: a damaged file, one with a header out of all proportion, or one that says that it is another
            framework's.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as stream:
        claimed = int.from_bytes(stream.read(8), "little")
    if claimed > LARGEST_HEADER:
        raise UserError(f"{path}: not a whole safetensors file (a header of {claimed:,} bytes); fetch or save it again")
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            odd = [name for name in names if not is_name(name)]
            if odd:
                raise UserError(
                    f"{path}: {quoted(odd[0])} is a name that no line can show; fetch or save the file again"
                )
            framework = (file.metadata() or {}).get("format", "pt")
            if framework not in ("pt", "np"):
                raise UserError(
                    f"{path}: says that its arrays lie as {quoted(framework)} has them; save them from torch"
                )
            yield {name: _stored(file, name) for name in names}
    except SafetensorError as error:
        reason = quoted(str(error), 300)[1:-1]  # it quotes the file
        raise UserError(f"{path}: not a whole safetensors file ({reason}); fetch or save it again") from error


def _stored(file: Any, name: str) -> Stored:
    described = file.get_slice(name)
    dtype: str = described.get_dtype()
    shape = tuple(described.get_shape())
    return Stored(shape, SAFETENSORS_TYPES.get(dtype, dtype), lambda: file.get_tensor(name), name)
