"""Scan files in the official layout, of arrays that a test makes."""

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
