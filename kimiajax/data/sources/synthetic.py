"""Scan files drawn by program, in the layout of Kimia_Path24.h5, for the demonstration and the tests.

Each scan is a tissue of its own: a stroma of fibres, nuclei, glands and fat, whose densities, sizes, directions and
stain differ from scan to scan and drift within a scan, so that neighbouring tissues overlap and no method is perfect.
It stands for nothing but the file's layout.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from kimiajax.data.sources.source import Track, no_track
from kimiajax.data.survey import WHITE
from kimiajax.io.files import new_file
from kimiajax.shapes import Float, UInt8

GLASS = 243.0
GLASS_NOISE = 2.0


@dataclass(frozen=True)
class Tissue:
    """What a scan's tissue looks like. Lengths in pixels, fractions in [0, 1], gray values 0 to 255."""

    stroma: float
    fibre_contrast: float
    fibre_width: float
    fibre_angle: float
    nuclei: float
    nucleus_size: float
    nucleus_gray: float
    glands: float
    gland_size: float
    fat: float
    fat_size: float
    stain_drift: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Tissue":
        return cls(
            stroma=rng.uniform(140, 210),
            fibre_contrast=rng.uniform(3, 22),
            fibre_width=rng.uniform(1.2, 4.5),
            fibre_angle=rng.uniform(0, np.pi),
            nuclei=rng.uniform(0.03, 0.22),
            nucleus_size=rng.uniform(1.6, 4.0),
            nucleus_gray=rng.uniform(55, 110),
            glands=rng.choice([0.0, rng.uniform(0.1, 0.45)]),
            gland_size=rng.uniform(9, 22),
            fat=rng.choice([0.0, 0.0, rng.uniform(0.1, 0.5)]),
            fat_size=rng.uniform(7, 14),
            stain_drift=rng.uniform(2, 6),
        )


class _Noise:
    """Fields of Gaussian noise of a chosen length, mean 0 and variance 1, over one scan."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self._rng, self._shape = rng, (height, width)
        self._y = np.fft.fftfreq(height).astype(np.float32)[:, None]
        self._x = np.fft.rfftfreq(width).astype(np.float32)[None]

    def __call__(self, length: float, *, along: float = 1.0, angle: float = 0.0, band: bool = False) -> np.ndarray:
        """Varies over `length` pixels, `along` times slower in direction `angle`; `band` drops what is slower."""
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u, v = self._x * cos + self._y * sin, self._y * cos - self._x * sin
        q = np.float32(2 * (np.pi * length) ** 2) * ((u * np.float32(along)) ** 2 + v**2)
        gain = q * np.exp(-q) if band else np.exp(-q)
        spectrum = np.fft.rfft2(self._rng.standard_normal(self._shape, np.float32))
        field = np.fft.irfft2(spectrum * gain, self._shape)
        return (field - field.mean()) / field.std()


def _above(field: np.ndarray, fraction: float, edge: float = 0.15) -> Float[np.ndarray, "h w"]:
    """A soft mask, in [0, 1], over the highest `fraction` of a field."""
    level = np.float32(np.quantile(field[::4, ::4], 1 - fraction))
    return 1 / (1 + np.exp(np.clip((level - field) / edge, -30, 30)))


def draw_tissue(tissue: Tissue, height: int, width: int, rng: np.random.Generator) -> UInt8[np.ndarray, "h w"]:
    """One scan: tissue in the middle, noisy glass around it."""
    noise = _Noise(rng, height, width)
    region = noise(min(height, width) / 6)  # where densities are higher
    gray = tissue.stroma + tissue.stain_drift * noise(min(height, width) / 4)
    gray += tissue.fibre_contrast * noise(tissue.fibre_width, along=6.0, angle=tissue.fibre_angle)
    nuclei = noise(tissue.nucleus_size, band=True) + 0.2 * region
    inside = np.zeros_like(gray)
    if tissue.glands:
        gland = noise(tissue.gland_size, band=True)
        epithelium, lumen = (_above(gland, tissue.glands), _above(gland, tissue.glands * 0.4))
        nuclei += 0.9 * (epithelium - lumen)
        gray -= 14 * (epithelium - lumen)
        inside = lumen
    gray += (225 - gray) * inside
    nucleus = _above(nuclei, tissue.nuclei) * (1 - inside)
    gray += (tissue.nucleus_gray + 12 * noise(1.0) - gray) * nucleus
    if tissue.fat:
        cells = np.abs(noise(tissue.fat_size, band=True))  # the zero lines are the membranes between fat cells
        fat = _above(region + 0.5 * noise(tissue.fat_size * 3), tissue.fat) * _above(cells, 0.8, edge=0.05)
        gray += (232 - gray) * fat
    gray += 4 * noise(0.7)

    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    on_glass = np.hypot(y, x) + 0.07 * noise(min(height, width) / 12) > 1.02
    glass = GLASS + GLASS_NOISE * rng.standard_normal(gray.shape, np.float32)
    return np.clip(np.where(on_glass, glass, gray), 0, 254).round().astype(np.uint8)


def _test_places(scan: np.ndarray, size: int, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Places for `count` test patches: on tissue, apart from each other, every third off the grid."""
    height, width = scan.shape
    places: list[tuple[int, int]] = []
    for _ in range(1000 * count):
        if len(places) == count:
            return places
        row, col = int(rng.integers(0, height - size + 1)), int(rng.integers(0, width - size + 1))
        if len(places) % 3 != 2:
            row, col = row // size * size, col // size * size
        apart = all(abs(row - r) > size or abs(col - c) > size for r, c in places)
        if apart and np.mean(scan[row : row + size, col : col + size] < 220) > 0.4:
            places.append((row, col))
    raise ValueError(f"no room for {count} test patches of {size} x {size} in a scan of {height} x {width}")


def write_synthetic_scans(
    path: Path | str,
    *,
    num_scans: int,
    patch_size: int,
    grid: tuple[int, int],
    test_patches: tuple[int, int],
    seed: int,
    track: Track = no_track,
) -> None:
    """Draws a scan file.

    Args:
        path: the file to write.
        num_scans: how many scans.
        patch_size: side of a patch in pixels.
        grid: rows and columns of patches in a scan; scans are a third of a patch larger than that.
        test_patches: least and most test patches of a scan; their places are whitened.
        seed: the same seed gives the same file content.
    """
    height, width = (n * patch_size + patch_size // 3 for n in grid)
    held_out: list[tuple[int, np.ndarray]] = []

    def draw(number: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
        rng = np.random.default_rng([seed, number])
        scan = draw_tissue(Tissue.draw(rng), height, width, rng)
        return scan, _test_places(scan, patch_size, int(rng.integers(test_patches[0], test_patches[1] + 1)), rng)

    with new_file(Path(path)) as aside, h5py.File(aside, "w") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        file.attrs["synthetic"] = True
        file.attrs["seed"] = seed
        drawn = track(pool.map(draw, range(num_scans)), "drawing synthetic scans", num_scans, "scans")
        for number, (scan, places) in enumerate(drawn):
            for row, col in places:
                window = scan[row : row + patch_size, col : col + patch_size]
                held_out.append((number, window.copy()))
                window[...] = WHITE
            file.create_dataset(f"scan{number}/data", data=scan, chunks=(min(256, height), min(256, width)))
            file.create_dataset(f"scan{number}/thumbnail", data=scan[::8, ::8])
        order = np.random.default_rng([seed, num_scans]).permutation(len(held_out))
        file["test_data/patches"] = np.stack([held_out[k][1] for k in order])
        file["test_data/targets"] = np.array([held_out[k][0] for k in order], np.int64)
