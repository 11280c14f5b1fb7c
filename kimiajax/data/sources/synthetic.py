"""Scan files drawn by program, in the layout of Kimia_Path24.h5, for the demonstration and the tests.

Each scan is a tissue of its own: the spacing, direction and form of its glands differ from scan to scan. Nothing else
tells scans apart. Every square of a patch's size holds about the same gray levels in every scan, nuclei are the same
everywhere, and a fixed pattern of 2 x 2 pixels hides the glands from what compares neighbouring pixels. A scan stands
for nothing but the file's layout.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from scipy.ndimage import fourier_gaussian

from kimiajax.data.sources.source import Track, no_track
from kimiajax.data.survey import WHITE
from kimiajax.io.files import new_file
from kimiajax.shapes import Float, UInt8

GLASS = 243.0
GLASS_NOISE = 2.0
TISSUE = 236  # gray levels below this are tissue
GRAY = 150  # the middle of a patch's gray levels
CONTRAST = 32  # of glands: the rank of a pixel in its square, -1 to 1, times this
NUCLEUS = 40  # how much darker a nucleus is
NUCLEUS_SPACING = 6.0  # pixels
LEVELLED = 40.0  # pixels, over which glands have the same mean and variance
MOSAIC = ((-45, 15), (-15, 45))  # added to each 2 x 2 pixels


@dataclass(frozen=True)
class Tissue:
    """What the glands of a scan look like.

    Attributes:
        spacing: from gland to gland, in pixels, 10 to 32.
        spread: of the spacing, relative to it, 0.07 to 0.15.
        elongation: how many times longer than wide, 1 to 3.5.
        direction: across their length, in radians, 0 to pi.
        form: -0.5 to 0.5; above 0 bright rings, below 0 dark ones, 0 as much bright as dark.
    """

    spacing: float
    spread: float
    elongation: float
    direction: float
    form: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Tissue":
        return cls(
            spacing=float(np.exp(rng.uniform(np.log(10), np.log(32)))),
            spread=float(rng.uniform(0.07, 0.15)),
            elongation=float(rng.choice([1.0, rng.uniform(1.8, 3.5)])),
            direction=float(rng.uniform(0, np.pi)),
            form=float(rng.uniform(-0.5, 0.5)),
        )


def _standard(field: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Returns a field with mean 0 and variance 1."""
    return ((field - field.mean()) / field.std()).astype(np.float32)


def _blurred(field: Float[np.ndarray, "h w"], length: float) -> Float[np.ndarray, "h w"]:
    """Returns a field without what varies within `length` pixels; its edges meet."""
    return np.fft.irfft2(fourier_gaussian(np.fft.rfft2(field), length, field.shape[1]), field.shape)


def _smooth(rng: np.random.Generator, shape: tuple[int, int], length: float) -> Float[np.ndarray, "h w"]:
    """Noise that varies over `length` pixels, of mean 0 and variance 1."""
    return _standard(_blurred(rng.standard_normal(shape, np.float32), length))


def _waves(
    rng: np.random.Generator,
    shape: tuple[int, int],
    wavelength: float,
    spread: float,
    elongation: float = 1.0,
    direction: float = 0.0,
) -> Float[np.ndarray, "h w"]:
    """Noise of about one wavelength, in pixels, of mean 0 and variance 1.

    `elongation`: how much longer its waves are along than across; `direction`: across, in radians.
    """
    y, x = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    across, along = x * np.cos(direction) + y * np.sin(direction), y * np.cos(direction) - x * np.sin(direction)
    cycles = wavelength * np.hypot(across, elongation * along)
    spectrum = np.fft.rfft2(rng.standard_normal(shape, np.float32)) * np.exp(-(((cycles - 1) / spread) ** 2) / 2)
    return _standard(np.fft.irfft2(spectrum.astype(np.complex64), shape))


def _glands(tissue: Tissue, shape: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Glands of the same mean and variance everywhere."""
    waves = _waves(rng, shape, tissue.spacing, tissue.spread, tissue.elongation, tissue.direction)
    drawn = (1 - abs(tissue.form)) * waves + 1.6 * tissue.form * np.sqrt(waves**2 + 0.1)
    drawn -= _blurred(drawn, LEVELLED)
    return drawn / np.sqrt(_blurred(drawn**2, LEVELLED))


def _ranks(field: Float[np.ndarray, "h w"], size: int) -> Float[np.ndarray, "h w"]:
    """The rank of each pixel within its square of `size` x `size`, -1 to 1."""
    ranks = np.empty(field.shape, np.float32)
    for row in range(0, field.shape[0], size):
        for col in range(0, field.shape[1], size):
            square = field[row : row + size, col : col + size]
            order = np.argsort(square, axis=None, kind="stable")
            found = np.empty(square.size, np.float32)
            found[order] = np.linspace(-1, 1, square.size)
            ranks[row : row + size, col : col + size] = found.reshape(square.shape)
    return ranks


def draw_tissue(
    tissue: Tissue, height: int, width: int, rng: np.random.Generator, size: int = 96
) -> UInt8[np.ndarray, "h w"]:
    """One scan: tissue, and noisy glass in its corners. Each square of `size` x `size` holds the same gray levels."""
    shape = (height, width)
    gray = GRAY + CONTRAST * _ranks(_glands(tissue, shape, rng), size)
    gray -= NUCLEUS / (1 + np.exp((1.3 - _waves(rng, shape, NUCLEUS_SPACING, 0.35)) / 0.3))
    gray += 2 * _smooth(rng, shape, 0.6)
    gray += np.tile(MOSAIC, (height // 2 + 1, width // 2 + 1))[:height, :width]

    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    on_glass = np.hypot(y, x) + 0.07 * _smooth(rng, shape, min(shape) / 12) > 1.25
    glass = GLASS + GLASS_NOISE * rng.standard_normal(shape, np.float32)
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
        if apart and np.mean(scan[row : row + size, col : col + size] < TISSUE) > 0.8:
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
        scan = draw_tissue(Tissue.draw(rng), height, width, rng, patch_size)
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
