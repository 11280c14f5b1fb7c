"""Which patches the study uses: the grid over each scan, what counts as tissue, and the draw."""

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from kimiajax.data.pixels import resize_all
from kimiajax.data.scans import Scans
from kimiajax.errors import UserError
from kimiajax.shapes import Bool, Int, UInt8

WHITE = 255  # the value that the places of the test patches are filled with
WHITENED_TOLERANCE = 0.01  # a training patch may share this fraction of its area with a whitened place
FIELDS = ("patch_id", "scan", "row", "col", "split")

Track = Callable[[Iterable, str, int | None], Iterable]


@dataclass(frozen=True)
class Patch:
    """One patch. `row` and `col` are its top left pixel; None for a test patch, whose place is unknown."""

    patch_id: str
    scan: int
    row: int | None
    col: int | None
    split: Literal["train", "test"]


@dataclass(frozen=True)
class Manifest:
    """The patches of a study, training patches first, each split in a fixed order."""

    patches: tuple[Patch, ...]
    patch_size: int
    num_scans: int

    def split(self, name: Literal["train", "test"]) -> list[Patch]:
        return [patch for patch in self.patches if patch.split == name]

    def labels(self, name: Literal["train", "test"]) -> Int[np.ndarray, " n"]:
        """The scan of each patch of a split."""
        return np.array([patch.scan for patch in self.split(name)], np.int32)

    def counts(self, name: Literal["train", "test"]) -> list[int]:
        """Patches per scan of a split, [num_scans]."""
        return np.bincount(self.labels(name), minlength=self.num_scans).tolist()

    @cached_property
    def csv(self) -> str:
        """The text of `manifest.csv`; row and col are empty for test patches."""
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows([getattr(patch, field) for field in FIELDS] for patch in self.patches)
        return lines.getvalue()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of `manifest.csv`."""
        return hashlib.sha256(self.csv.encode()).hexdigest()


def full_grid(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """Top left pixels of every whole patch."""
    return [(row * size, col * size) for row in range(height // size) for col in range(width // size)]


def readme_grid(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """The loop in the data set's README, `range(int(dim / size) - 1)`: without the last whole row and column."""
    return full_grid(height - size, width - size, size)


GRIDS = {"full": full_grid, "readme": readme_grid}


def homogeneity_of(patch: UInt8[np.ndarray, "h w"], background: int) -> float:
    """Fraction of a patch, in [0, 1], that is as bright as background: gray values of `background` and above.

    The paper drops patches "of less than 99 % homogeneity", which we read as 99 % and more; it gives no formula.
    """
    return float(np.count_nonzero(patch >= background) / patch.size)


def largest_corner_rectangle(white: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    """Height and width of the largest all-true rectangle that holds the top left corner; (0, 0) if that is false."""
    leading = np.where(white.all(axis=1), white.shape[1], white.argmin(axis=1))
    widths = np.minimum.accumulate(leading)
    areas = widths * np.arange(1, len(widths) + 1)
    best = int(areas.argmax())
    return (best + 1, int(widths[best])) if areas[best] else (0, 0)


def overlaps_whitened_place(scans: Scans, scan: int, row: int, col: int, patch: UInt8[np.ndarray, "s s"]) -> bool:
    """Whether more than 1 % of a training patch lies over the whitened place of a test patch, on the grid or off it.

    Two squares of one size that overlap share a corner of each, and places may touch: a white rectangle is looked for
    at the patch's four corners, and only where one is found are the patch's surroundings read. There, a whitened place
    is a white square of the test patches' size of which at least two sides border on something else. Glass that is as
    white goes on beyond three sides or four.
    """
    white = patch == WHITE
    corners = (white[::down, ::right] for down in (1, -1) for right in (1, -1))
    if max(np.prod(largest_corner_rectangle(corner)) for corner in corners) <= WHITENED_TOLERANCE * patch.size:
        return False
    size = scans.patch_size
    height, width = scans.shape(scan)
    top, left = max(row - size, 0), max(col - size, 0)
    bottom, right = min(row + 2 * size, height), min(col + 2 * size, width)
    around = scans.read(scan, top, left, bottom - top, right - left) == WHITE
    # counts[y, x]: white pixels above and left of y, x, with a frame of one pixel that is not white around it all
    counts = np.pad(around, ((2, 1), (2, 1))).cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    n = size
    whole = counts[n:, n:] - counts[:-n, n:] - counts[n:, :-n] + counts[:-n, :-n] == n * n
    shared_rows = n - np.abs(np.arange(whole.shape[0]) - 1 + top - row)
    shared_cols = n - np.abs(np.arange(whole.shape[1]) - 1 + left - col)
    shared = np.clip(shared_rows, 0, None)[:, None] * np.clip(shared_cols, 0, None)
    y, x = np.nonzero(whole & (shared > WHITENED_TOLERANCE * patch.size))

    def count(y: np.ndarray, x: np.ndarray, high: int, wide: int) -> np.ndarray:
        return counts[y + high, x + wide] - counts[y, x + wide] - counts[y + high, x] + counts[y, x]

    sides = count(y - 1, x, 1, n), count(y + n, x, 1, n), count(y, x - 1, n, 1), count(y, x + n, n, 1)
    return bool((sum(side < n / 2 for side in sides) >= 2).any())


def cut_patches(
    scans: Scans,
    size: int | None = None,
    patches_per_scan: int | Literal["all"] = "all",
    seed: int = 0,
    *,
    grid: Literal["full", "readme"] = "full",
    homogeneity: float = 0.99,
    background: int = 220,
    track: Track = lambda items, description, total: items,
) -> Manifest:
    """Lays the grid, leaves out background and whitened places, and draws training patches from what is left.

    Places are visited in a random order and the visit ends with the last patch needed, which is a uniform draw without
    replacement, a draw of 10 being part of the draw of 25 from the same seed. No more of a scan is read than that.

    Args:
        scans: the scan file.
        size: side of a training patch in pixels; by default, and otherwise checked to be, that of the test patches.
        patches_per_scan: how many to draw from each scan, or "all"; a scan with fewer gives what it has.
        seed: of the draw.
        grid: one of `GRIDS`.
        homogeneity: patches with at least this fraction of background are left out.
        background: the gray value from which a pixel counts as background, 0 to 255.
        track: called as `track(items, description, total)` around the scans, to show progress.

    Raises:
        UserError: a size other than the test patches', or a scan without a training patch.
    """
    size = scans.patch_size if size is None else size
    if patches_per_scan != "all" and patches_per_scan < 1:
        raise UserError(f"{patches_per_scan} patches per scan: must be 1 or more, or 'all'")
    if size != scans.patch_size:
        raise UserError(
            f"{scans.path}: test patches are {scans.patch_size} x {scans.patch_size}, but training patches of "
            f"{size} x {size} were asked for; use --patch-size {scans.patch_size}"
        )
    patches = []
    for scan in track(range(len(scans)), "cutting patches", len(scans)):
        rng = np.random.default_rng([seed, scan])
        places = rng.permutation(np.array(GRIDS[grid](*scans.shape(scan), size), np.int64).reshape(-1, 2))
        drawn: list[tuple[int, int]] = []
        whitened = 0
        for row, col in places.tolist():
            if len(drawn) == patches_per_scan:
                break
            patch = scans.read(scan, row, col, size, size)
            if homogeneity_of(patch, background) >= homogeneity:
                continue
            if overlaps_whitened_place(scans, scan, row, col, patch):
                whitened += 1
            else:
                drawn.append((row, col))
        if not drawn:
            raise UserError(
                f"{scans.path}: scan{scan} has no training patch: of its {len(places)} places of {size} x {size}, "
                f"{whitened} lie over whitened places and the rest are {homogeneity:g} or more background (gray "
                f"{background} and above); see --homogeneity and --background"
            )
        patches += [Patch(f"train/{scan}/{row}/{col}", scan, row, col, "train") for row, col in sorted(drawn)]
    patches += [Patch(f"test/{k}", int(scan), None, None, "test") for k, scan in enumerate(scans.targets)]
    return Manifest(tuple(patches), size, len(scans))


def read_pixels(
    scans: Scans,
    manifest: Manifest,
    split: Literal["train", "test"],
    size: int,
    filter: str,
    track: Track = lambda items, description, total: items,
) -> UInt8[np.ndarray, "n s s"]:
    """The gray values of a split's patches at the network's size, in the manifest's order."""

    def patches() -> Iterator[np.ndarray]:
        for patch in track(chosen, f"reading {split} patches", len(chosen)):
            if patch.row is None:
                yield scans.read_test_patch(int(patch.patch_id.removeprefix("test/")))
            else:
                yield scans.read(patch.scan, patch.row, patch.col, manifest.patch_size, manifest.patch_size)

    chosen = manifest.split(split)
    return resize_all(patches(), len(chosen), size, filter)
