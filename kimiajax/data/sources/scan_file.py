"""The scan file: the layout of Kimia_Path24.h5, read by regions.

    /scan{0..n-1}/data        uint8 [height width]   one gray scan each, gigapixels
    /test_data/patches        uint8 [t size size]    held-out patches, whose places are whitened in the scans
    /test_data/targets        int   [t]              the scan that each was taken from

The file is 29 GB and a scan does not fit in memory beside its neighbours, so nothing here reads more than the region
asked for. The number of scans is what the file holds.
"""

import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kimiajax.data.manifest import Patch
from kimiajax.data.sources.hdf5_raster import Descriptor, Raster, Region
from kimiajax.data.sources.source import Gridded, first_missing, identity_of
from kimiajax.errors import UserError
from kimiajax.io.hdf5_files import check_filters, damage_named, open_hdf5
from kimiajax.shapes import Int, UInt8
from kimiajax.text import text_of

SCAN = re.compile(r"scan(0|[1-9][0-9]{0,8})")


class Scans(Gridded):
    """An open scan file. Close it, or use it in a `with` block. Any number of threads may read from it.

    Attributes:
        path: where the file is.
        names: of the scans.
        targets: the scan of each test patch, [t], in the file's order.
        patch_size: side of the test patches, in pixels.
        synthetic: whether the file says that a program drew it.

    Raises:
        UserError: the file is not a scan file; the message names the part that is wrong.
    """

    kind = "scan file"
    whitens = True

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = open_hdf5(self.path, "scans")
        self._descriptor = Descriptor(self.path)
        self.identity = identity_of([(self.path, os.fstat(self._descriptor.fileno()))])
        try:
            with damage_named(self.path):
                self._scans = self._find_scans()
                self._patches, self.targets = self._find_test_data()
                self.synthetic = self._says_synthetic()
        except BaseException:
            self.close()
            raise
        self.names = tuple(f"scan{number}" for number in range(len(self._scans)))
        self.patch_size = self._patches.shape[1]

    def __len__(self) -> int:
        return len(self._scans)

    def close(self) -> None:
        self._file.close()
        self._descriptor.close()

    def describe(self) -> dict[str, object]:
        return {"path": text_of(self.path), "kind": self.kind, "bytes": self.path.stat().st_size}

    def shape(self, scan: int) -> tuple[int, int]:
        height, width = self._scans[scan].shape
        return height, width

    def tiles(self, scan: int) -> list[Region]:
        return self._scans[scan].tiles()

    def read(self, scan: int, row: int, col: int, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
        full_height, full_width = self.shape(scan)
        if row < 0 or col < 0 or row + height > full_height or col + width > full_width:
            raise UserError(
                f"{self.path}: rows {row}..{row + height}, columns {col}..{col + width} leave scan{scan}, "
                f"which is {full_height} x {full_width}"
            )
        return self._scans[scan].read((row, col), (height, width))

    def read_patch(self, patch: Patch) -> UInt8[np.ndarray, "s s"]:
        if patch.split == "train":
            return super().read_patch(patch)
        index = patch.patch_id.rpartition("/")[2]
        if not index.isdecimal() or int(index) >= len(self.targets) or self.targets[int(index)] != patch.scan:
            raise UserError(
                f"{self.path}: holds no test patch {patch.patch_id}; is the manifest of other scans? "
                f"/test_data has {len(self.targets)}"
            )
        return self.read_test_patch(int(index))

    def read_test_patch(self, index: int) -> UInt8[np.ndarray, "s s"]:
        """Test patch `index` of `/test_data/patches`."""
        return self._patches.read((index, 0, 0), (1, *self._patches.shape[1:]))[0]

    def test_patches(self) -> list[Patch]:
        """The held-out patches, in the file's order. Their pixels are stored apart; where they lay is not."""
        return [Patch(f"test/s{scan}/{k}", int(scan), "test") for k, scan in enumerate(self.targets)]

    def unwritten(self) -> dict[str, int]:
        """Datasets with chunks that were never written, and how many these are."""
        missing = {raster.name: raster.missing_chunks() for raster in (*self._scans, self._patches)}
        return {name: count for name, count in missing.items() if count}

    def _find_scans(self) -> list[Raster]:
        names = [match for name in self._file if isinstance(name, str) and (match := SCAN.fullmatch(name))]
        numbers = sorted(int(match[1]) for match in names)
        if not numbers:
            raise UserError(f"{self.path}: holds no /scan0, /scan1, ...; give a file in the layout of Kimia_Path24.h5")
        if numbers != list(range(len(numbers))):
            absent = first_missing(set(numbers), numbers[-1])
            raise UserError(f"{self.path}: scans {absent} are missing of 0..{numbers[-1]}; number them without gaps")
        return [self._raster(f"/scan{number}/data", rank=2) for number in numbers]

    def _find_test_data(self) -> tuple[Raster, Int[np.ndarray, " t"]]:
        patches = self._raster("/test_data/patches", rank=3)
        targets = self._dataset("/test_data/targets", np.integer)
        patches.check_size()
        count = patches.shape[0]
        if patches.shape[1] != patches.shape[2]:
            raise UserError(f"{self.path}: /test_data/patches has shape {patches.shape}; it must be [t size size]")
        if targets.shape not in ((count,), (count, 1), (1, count)):
            raise UserError(
                f"{self.path}: /test_data/targets has shape {targets.shape} for {count} test patches; "
                "it must hold one scan number for each"
            )
        numbers = targets[...].reshape(-1).astype(np.int64)
        if numbers.min() < 0 or numbers.max() >= len(self):
            raise UserError(
                f"{self.path}: /test_data/targets goes from {numbers.min()} to {numbers.max()}, "
                f"but the file holds scans 0..{len(self) - 1}; renumber the targets from 0"
            )
        return patches, numbers

    def _says_synthetic(self) -> bool:
        """What the file says; a text is not read, which HDF5 does for ever where it is damaged, and taken for yes."""
        if "synthetic" not in self._file.attrs:
            return False
        is_number = self._file.attrs.get_id("synthetic").dtype.kind in "biu"
        said: Any = self._file.attrs["synthetic"]
        return not is_number or bool(np.all(said))

    def _raster(self, name: str, rank: int) -> Raster:
        return Raster(self._dataset(name, np.uint8, rank), self.path, self._descriptor)

    def _dataset(self, name: str, kind: type, rank: int | None = None) -> h5py.Dataset:
        dataset = self._file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise UserError(f"{self.path}: holds no {name}; give a file in the layout of Kimia_Path24.h5")
        if dataset.is_virtual or dataset.external or _file_of(dataset) != _file_of(self._file):
            raise UserError(f"{self.path}: {name} lies in another file; copy it into this one")
        if not np.issubdtype(dataset.dtype, kind):
            raise UserError(f"{self.path}: {name} holds {dataset.dtype}; it must hold {kind.__name__} values")
        check_filters(dataset, self.path)
        if rank is not None and (dataset.ndim != rank or 0 in dataset.shape):
            raise UserError(f"{self.path}: {name} has shape {dataset.shape}; it must have {rank} dimensions, none of 0")
        return dataset


def _file_of(item: h5py.Dataset | h5py.File) -> int:
    """Which of the open files an object lies in, whatever links led there."""
    return h5py.h5o.get_info(item.id).fileno  # pyright: ignore[reportAttributeAccessIssue]  # it has no stubs
