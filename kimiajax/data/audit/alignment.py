"""Where each test patch was cut from: its rim against what borders on the whitened places of the scans.

Test patches come without their places. But tissue goes on across the rim of a patch, so along each side the last pixels
of the patch and the first ones beyond it rise and fall together, and nothing else rises and falls with them. That tells
whether a patch belongs to the scan that its target names, and whether both are the same way up.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from kimiajax.data.sources.source import Gridded
from kimiajax.data.survey import WHITE, Survey, in_threads
from kimiajax.shapes import Float, Int, Shaped, UInt8

ORIENTATIONS = (
    "upright",
    "turned by 90 degrees",
    "turned by 180 degrees",
    "turned by 270 degrees",
    "transposed",
    "mirrored top to bottom",
    "transposed along the other diagonal",
    "mirrored left to right",
)


@dataclass(frozen=True)
class Fits:
    """How well each test patch fits the whitened places of each scan.

    Attributes:
        upright: the correlation at the best place of each scan, [t scans], in [-1, 1]; NaN where a scan has no place.
        turned: at the best place of its own scan, by orientation, [t 8].
    """

    upright: Float[np.ndarray, "t k"]
    turned: Float[np.ndarray, "t o"]


def oriented(patch: Shaped[np.ndarray, "s s"]) -> Iterator[Shaped[np.ndarray, "s s"]]:
    """A patch in each of `ORIENTATIONS`."""
    for start in (patch, patch.T):
        for turns in range(4):
            yield np.rot90(start, turns)


def rim(patch: UInt8[np.ndarray, "s s"]) -> Int[np.ndarray, "4 n"]:
    """How a patch rises and falls along its outermost pixels: top, bottom, left, right."""
    return rises(np.stack([patch[0], patch[-1], patch[:, 0], patch[:, -1]]).astype(np.int16))


def rises(strips: Shaped[np.ndarray, "*n m"]) -> Shaped[np.ndarray, "*n k"]:
    """From each pixel to the next but one: what alternates from pixel to pixel, as a camera's colour filters do, ends.

    Neighbours would follow such a pattern, which is the same everywhere and tells nothing of places.
    """
    return strips[..., 2:] - strips[..., :-2]


def fit_places(
    source: Gridded,
    surveys: Sequence[Survey],
    read: Callable[[int], UInt8[np.ndarray, "s s"]],
    targets: Int[np.ndarray, " t"],
) -> Fits:
    """Correlates the rim of every test patch with what borders on every whitened place.

    Args:
        source: the scans.
        surveys: of each.
        read: gives test patch k.
        targets: the scan of each test patch.
    """
    turns = np.stack(list(in_threads(lambda k: [rim(turned) for turned in oriented(read(k))], range(len(targets)))))
    upright = np.full((len(targets), len(source)), np.nan, np.float32)
    turned = np.full((len(targets), len(ORIENTATIONS)), np.nan, np.float32)
    for scan, survey in enumerate(surveys):
        own = np.flatnonzero(targets == scan)
        for outside, valid in in_threads(partial(_outside, source, scan), _groups(survey)):
            for sides in np.unique(valid[valid.any(axis=1)], axis=0):
                strips = _unit(outside[(valid == sides).all(axis=1)][:, sides]).T
                upright[:, scan] = np.fmax(upright[:, scan], (_unit(turns[:, 0, sides]) @ strips).max(axis=1))
                if not len(own):
                    continue
                of_own = _unit(turns[own][:, :, sides].reshape(-1, sides.sum(), turns.shape[3])) @ strips
                best = of_own.max(axis=1, initial=-1).reshape(len(own), len(ORIENTATIONS))
                turned[own] = np.fmax(turned[own], best)
    return Fits(upright, turned)


def _unit(strips: Shaped[np.ndarray, "n k m"]) -> Float[np.ndarray, "n km"]:
    """The sides of each rim as one row, of mean 0 and length 1; a constant one is all 0."""
    rows = strips.reshape(len(strips), -1)
    centred = rows - rows.mean(axis=1, keepdims=True, dtype=np.float32)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(length > 0, length, 1)


def _groups(survey: Survey) -> list[np.ndarray]:
    """Whitened places by neighbourhood, so that what surrounds them is read once."""
    if not len(survey.whitened):
        return []
    cells = survey.whitened // max(survey.size // 8, 1)
    _, group = np.unique(cells, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    return np.split(survey.whitened[order], np.flatnonzero(np.diff(group.ravel()[order])) + 1)


def _outside(source: Gridded, scan: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What borders on each of some neighbouring places, [n 4 s-2], and at which sides that is tissue, [n 4]."""
    size, (height, width) = source.patch_size, source.shape(scan)
    top, left = np.maximum(places.min(axis=0) - 1, 0)
    bottom, right = np.minimum(places.max(axis=0) + size + 1, (height, width))
    around = source.read(scan, int(top), int(left), int(bottom - top), int(right - left))
    outside = np.full((len(places), 4, size), WHITE, np.uint8)
    for k, (row, col) in enumerate((places - (top, left)).tolist()):
        across, down = slice(col, col + size), slice(row, row + size)
        if row > 0:
            outside[k, 0] = around[row - 1, across]
        if row + size < around.shape[0]:
            outside[k, 1] = around[row + size, across]
        if col > 0:
            outside[k, 2] = around[down, col - 1]
        if col + size < around.shape[1]:
            outside[k, 3] = around[down, col + size]
    return rises(outside.astype(np.float32)), (outside == WHITE).mean(axis=2) < 0.5
