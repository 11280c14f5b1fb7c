"""The scan file: the layout of Kimia_Path24.h5, read by regions.

    /scan{0..n-1}/data        uint8 [height width]   one gray scan each, gigapixels
    /test_data/patches        uint8 [t size size]    held-out patches, whose places are whitened in the scans
    /test_data/targets        int   [t]              the scan that each was taken from

The file is 29 GB and a scan does not fit in memory beside its neighbours, so nothing here reads more than the region
asked for. The number of scans is what the file holds.
"""

import re
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from kimiajax.errors import UserError
from kimiajax.files import open_hdf5
from kimiajax.shapes import Int, UInt8


class Scans:
    """An open scan file. Close it, or use it in a `with` block.

    Attributes:
        path: where the file is.
        targets: the scan of each test patch, [t], in the file's order.
        patch_size: side of the test patches, in pixels.
        synthetic: whether the file says that a program drew it.

    Raises:
        UserError: the file is not a scan file; the message names the part that is wrong.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = open_hdf5(self.path, "scans")
        try:
            self._scans = self._find_scans()
            self._patches, self.targets = self._find_test_data()
        except BaseException:
            self._file.close()
            raise
        self.patch_size = int(self._patches.shape[1])
        self.synthetic = bool(np.all(self._file.attrs.get("synthetic", False)))

    def __len__(self) -> int:
        return len(self._scans)

    def __enter__(self) -> "Scans":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def shape(self, scan: int) -> tuple[int, int]:
        """Height and width of a scan, in pixels."""
        return self._scans[scan].shape

    def read(self, scan: int, row: int, col: int, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
        """The gray values of a region, 0 (black) to 255 (white). `row` and `col` are its top left pixel.

        Raises:
            UserError: the region leaves the scan, or the file cannot be read there.
        """
        full_height, full_width = self.shape(scan)
        if row < 0 or col < 0 or row + height > full_height or col + width > full_width:
            raise UserError(
                f"{self.path}: rows {row}..{row + height}, columns {col}..{col + width} leave scan{scan}, "
                f"which is {full_height} x {full_width}"
            )
        return self._region(self._scans[scan], (slice(row, row + height), slice(col, col + width)))

    def read_test_patch(self, index: int) -> UInt8[np.ndarray, "s s"]:
        """Test patch `index` of `/test_data/patches`."""
        return self._region(self._patches, index)

    def _region(self, dataset: h5py.Dataset, region: object) -> np.ndarray:
        try:
            return dataset[region]
        except OSError as error:
            raise UserError(f"{self.path}: cannot read {dataset.name} at {region} ({error}); fetch it again") from error

    def _find_scans(self) -> list[h5py.Dataset]:
        numbers = sorted(int(match[1]) for name in self._file if (match := re.fullmatch(r"scan(0|[1-9]\d*)", name)))
        if not numbers:
            raise UserError(f"{self.path}: holds no /scan0, /scan1, ...; give a file in the layout of Kimia_Path24.h5")
        if numbers != list(range(len(numbers))):
            absent = sorted(set(range(numbers[-1] + 1)) - set(numbers))
            raise UserError(f"{self.path}: scans {absent} are missing of 0..{numbers[-1]}; number them without gaps")
        return [self._dataset(f"/scan{number}/data", np.uint8, rank=2) for number in numbers]

    def _find_test_data(self) -> tuple[h5py.Dataset, Int[np.ndarray, " t"]]:
        patches = self._dataset("/test_data/patches", np.uint8, rank=3)
        targets = self._dataset("/test_data/targets", np.integer)
        if patches.shape[1] != patches.shape[2] or not patches.size:
            raise UserError(f"{self.path}: /test_data/patches has shape {patches.shape}; it must be [t size size]")
        if targets.shape not in ((len(patches),), (len(patches), 1), (1, len(patches))):
            raise UserError(
                f"{self.path}: /test_data/targets has shape {targets.shape} for {len(patches)} test patches; "
                "it must hold one scan number for each"
            )
        numbers = targets[...].reshape(-1).astype(np.int64)
        if numbers.min() < 0 or numbers.max() >= len(self):
            raise UserError(
                f"{self.path}: /test_data/targets goes from {numbers.min()} to {numbers.max()}, "
                f"but the file holds scans 0..{len(self) - 1}; renumber the targets from 0"
            )
        return patches, numbers

    def _dataset(self, name: str, kind: type, rank: int | None = None) -> h5py.Dataset:
        dataset = self._file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise UserError(f"{self.path}: holds no {name}; give a file in the layout of Kimia_Path24.h5")
        if not np.issubdtype(dataset.dtype, kind):
            raise UserError(f"{self.path}: {name} holds {dataset.dtype}; it must hold {kind.__name__} values")
        if rank is not None and dataset.ndim != rank:
            raise UserError(f"{self.path}: {name} has shape {dataset.shape}; it must have {rank} dimensions")
        return dataset


def open_scans(path: str | Path) -> Scans:
    """Opens a scan file in the layout of Kimia_Path24.h5; see `Scans`."""
    return Scans(path)
