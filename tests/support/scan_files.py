"""Scan files in the official layout, of arrays that a test makes."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np


def write_scans(
    path: Path,
    scans: list[np.ndarray],
    patches: np.ndarray | None = None,
    targets: np.ndarray | None = None,
) -> Path:
    """A scan file in the official layout, with one gray test patch of 8 x 8 per scan unless others are given."""
    patches = np.full((len(scans), 8, 8), 100, np.uint8) if patches is None else patches
    targets = np.arange(len(patches)) if targets is None else targets
    with h5py.File(path, "w") as file:
        for number, scan in enumerate(scans):
            file[f"scan{number}/data"] = scan
            file[f"scan{number}/thumbnail"] = scan[::4, ::4]
        file["test_data/patches"] = patches
        file["test_data/targets"] = targets
    return path


def tissue(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(40, 180, (height, width), dtype=np.uint8)


def packed(file: h5py.File, name: str, values: np.ndarray, number: int, *, left_out: bool = False) -> None:
    """Writes values as a program does that has an HDF5 filter which is not here: as they are, and said to be packed.

    Args:
        number: of the filter.
        left_out: whether the file says that it was left out of each chunk, as HDF5 may do with an optional one.
    """
    properties, links = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5p.create(h5py.h5p.LINK_CREATE)
    properties.set_chunk(values.shape)
    properties.set_filter(number, h5py.h5z.FLAG_OPTIONAL)
    links.set_create_intermediate_group(True)
    kind, space = h5py.h5t.py_create(values.dtype), h5py.h5s.create_simple(values.shape)
    dataset = h5py.h5d.create(file.id, None, kind, space, properties)
    h5py.h5o.link(dataset, file.id, name.encode(), links)
    dataset.write_direct_chunk((0,) * values.ndim, values.tobytes(), int(left_out))


def write_packed_scans(path: Path, number: int, *, left_out: bool = False) -> Path:
    """A file of one scan whose pixels are all 100, packed with a filter that is not here."""
    with h5py.File(path, "w") as file:
        packed(file, "scan0/data", np.full((16, 16), 100, np.uint8), number, left_out=left_out)
        packed(file, "test_data/patches", np.full((1, 8, 8), 100, np.uint8), number, left_out=left_out)
        file["test_data/targets"] = [0]
    return path


def abandon(path: Path, *, in_swmr_mode: bool, block: int = 0) -> Path:
    """A file as a program leaves it that dies while it writes, or holds it while it goes on."""
    code = (
        "import h5py, numpy, os, sys\n"
        "file = h5py.File(sys.argv[1], 'w', libver='latest', userblock_size=int(sys.argv[3]))\n"
        "file.create_dataset('scan0/data', (16, 16), 'u1', chunks=(8, 8), maxshape=(None, 16))[:] = 100\n"
        "file['test_data/patches'], file['test_data/targets'] = numpy.full((1, 8, 8), 100, 'u1'), [0]\n"
        "file.flush()\n"
        "if sys.argv[2] == 'True': file.swmr_mode = True\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, path, str(in_swmr_mode), str(block)], check=True)
    return path
