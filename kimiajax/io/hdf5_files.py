"""HDF5 files: opened, or refused with the cause, be it damage, another program or a filter that is not installed."""

import contextlib
import importlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from kimiajax.errors import UserError
from kimiajax.io.files import guess

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
PLACES = (0, *(2**k for k in range(9, 14)))  # of the signature: another program's block may lie before it
MARKS, SWMR = 11, 4  # where a file's first block, of version 3, says who writes it; and that others read it meanwhile
FILTERS = {  # HDF5's own, which a build of it may lack, and those that are registered with the HDF Group
    **{4: "szip", 5: "nbit", 6: "scaleoffset", 305: "LZO", 307: "bzip2", 32000: "LZF", 32001: "Blosc", 32002: "MAFISC"},
    **{32003: "Snappy", 32004: "LZ4", 32007: "JPEG-XR", 32008: "bitshuffle", 32012: "JPEG-LS", 32013: "ZFP"},
    **{32014: "FPZIP", 32015: "Zstandard", 32017: "SZ", 32018: "FCIDECOMP", 32019: "JPEG", 32020: "VBZ", 32024: "SZ3"},
    **{32026: "Blosc2", 32028: "SPERR", 32033: "HTJ2K"},
}
PLUGINS = "hdf5plugin"  # a package that makes its filters known to h5py when it is imported: these
OF_PLUGINS = (307, 32001, 32004, 32008, 32013, 32015, 32017, 32018, 32024, 32026, 32028, 32033)


def open_hdf5(path: Path, what: str) -> h5py.File:
    """Opens an HDF5 file for reading.

    Args:
        path: the file.
        what: what it should hold, for the message: "scans", "weights".

    Raises:
        UserError: no such file, or something else under its name: a folder, a web page, a Git-LFS pointer, a
            truncated file; or another program writes it, or died while it did.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; give the path of the HDF5 file that holds the {what}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the HDF5 file that holds the {what}")
    try:
        with path.open("rb") as stream:
            head = stream.read(2**14)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    start = next((at for at in PLACES if head.startswith(HDF5_SIGNATURE, at)), None)
    if start is None:
        raise UserError(f"{path}: {guess(head[:512], path.stat().st_size, 'an HDF5 file (.h5)')}")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "unable to lock file" in str(error):
            raise UserError(
                f"{path}: another program has it open for writing; close it there, or set HDF5_USE_FILE_LOCKING=FALSE "
                "where the file system knows no locks"
            ) from error
        if "already open for write" in str(error):
            how, copy = " in SWMR mode" if head[start + MARKS] & SWMR else "", shlex.quote(f"copy-of-{path.name}")
            raise UserError(
                f"{path}: is marked as open for writing{how}: a program has it open, or died while writing; close that "
                f"program, or if there is none, make a copy, run `h5clear -s {copy}`, and check what the copy holds"
            ) from error
        raise UserError(
            f"{path}: a damaged HDF5 file of {path.stat().st_size:,} bytes ({error}); fetch or copy it again"
        ) from error


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """What the HDF5 library raises over damaged structures, of many kinds, as the one error that names the file."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, SystemError) as error:  # the last over names
        raise UserError(f"{path}: a damaged HDF5 file ({type(error).__name__}: {error}); fetch it again") from error


def check_filters(dataset: h5py.Dataset, path: Path) -> None:
    """Makes known what a dataset is packed with, from `hdf5plugin` where that is installed.

    Raises:
        UserError: it is packed with a filter that is not installed.
    """
    missing = [number for number in _filters_of(dataset) if not h5py.h5z.filter_avail(number)]
    if missing:
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module(PLUGINS)
    for number in missing:
        if h5py.h5z.filter_avail(number):
            continue
        name = f"{FILTERS.get(number, 'an unknown filter')} (HDF5's filter {number})"
        here = f"run `pip install {PLUGINS}`" if number in OF_PLUGINS else "install its plugin and set HDF5_PLUGIN_PATH"
        files = f"{shlex.quote(path.name)} {shlex.quote(f'gzip-{path.name}')}"
        raise UserError(
            f"{path}: {dataset.name} is packed with {name}, which HDF5 lacks here; {here}, or run "
            f"`h5repack -f GZIP=4 {files}` where that filter is installed"
        )


def _filters_of(dataset: h5py.Dataset) -> list[int]:
    """The numbers of the filters that reading a dataset takes: an optional one may have been left out."""
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(k) for k in range(properties.get_nfilters())]
    if not filters or all(h5py.h5z.filter_avail(number) for number, *_ in filters):
        return []
    left_out = [True] * len(filters)

    def visit(chunk: Any) -> bool | None:
        for place in range(len(filters)):
            left_out[place] &= bool(chunk.filter_mask >> place & 1)
        return None if any(left_out) else True  # True ends the visits

    dataset.id.chunk_iter(visit)
    return [number for (number, *_), out in zip(filters, left_out) if not out]
