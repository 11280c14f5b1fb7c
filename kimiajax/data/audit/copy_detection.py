"""Whether the content of a test patch stands anywhere in the scans, on the grid or off it, whole or in part.

Every position of the scans would be too much to compare, so a few pairs of neighbouring gray values are chosen that
each test patch holds many times. Where such a pair occurs, in patches and scans alike, the 16 pixels that begin there,
8 in its row and 8 in the next, make a key. A key of a scan that is a test patch's lays that patch over the scan, and
there both are compared. A copy needs to share one such place only, and wherever it lies these come along.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kimiajax.data.sources.hdf5_raster import Region
from kimiajax.data.sources.source import Gridded
from kimiajax.data.survey import in_threads
from kimiajax.shapes import UInt8

WIDE = 8  # pixels of each of the two rows of a key
CONTRAST = 16  # a key's first row has gray values at least so far apart: glass and blank tissue repeat themselves
KEYS = 1000  # of a patch, as far as pairs allow, so that a hundredth of it holds some; one in 100 pixels at most
FREQUENT = 64  # pairs of each patch that may be chosen
GO = 2**16  # pixels looked at in one go: they stay in the processor's cache
REPEATED = 16  # keys that test patches hold more often than this tell nothing
BLOCK = 8  # side, in pixels, of the blocks that have to be the same altogether: single pixels are so by chance
COMPARED = 1000  # places compared at most; data with more of them is full of copies
SHARE = 0.01  # of a test patch's area that has to be found again to be called a copy


@dataclass(frozen=True)
class Copy:
    """Where a test patch's content stands: the place of its top left pixel, which may lie outside the scan."""

    patch: int
    scan: int
    row: int
    col: int
    share: float


def _keys(pixels: np.ndarray, begins: np.ndarray, thin: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions at which a chosen pair begins a key of enough contrast, and the keys there.

    Args:
        pixels: a patch or a tile.
        begins: whether each pair is a chosen one, [65536].
        thin: only every so manieth key is kept, by its value, so that the same ones are wherever they occur.
    """
    rows, cols = pixels.shape
    if rows < 2 or cols < WIDE:
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    flat = np.ascontiguousarray(pixels).ravel()
    pairs = np.ndarray(flat.size - 1, "<u2", flat.data, strides=(1,))
    goes = range(0, len(pairs), GO)
    hits = [start + np.flatnonzero(begins.take(pairs[start : start + GO].astype(np.intp))) for start in goes]
    at = np.concatenate(hits)
    at = at[(at < (rows - 1) * cols) & (at % cols <= cols - WIDE)]
    words = np.ndarray(flat.size - WIDE + 1, "<u8", flat.data, strides=(1,))  # 8 pixels as one number
    upper, lower = words[at], words[at + cols]
    octets = upper.view(np.uint8).reshape(-1, WIDE)
    rich = octets.max(axis=1, initial=0) - octets.min(axis=1, initial=255).astype(np.int16) >= CONTRAST
    keys = upper * np.uint64(0x9E3779B97F4A7C15) ^ lower * np.uint64(0xC2B2AE3D27D4EB4F)
    kept = rich & ((keys >> np.uint64(32)) % np.uint64(thin) == 0)
    return at[kept], keys[kept]


def _pair_counts(patch: np.ndarray) -> np.ndarray:
    """How often each pair begins a key of a patch, [65536]."""
    cols = patch.shape[1] - WIDE + 1
    if cols < 1:
        return np.zeros(2**16, np.uint16)
    windows = [patch[:-1, k : k + cols] for k in range(WIDE)]
    least, greatest = windows[0].copy(), windows[0].copy()
    for window in windows[1:]:
        np.minimum(least, window, out=least)
        np.maximum(greatest, window, out=greatest)
    pairs = windows[1].astype(np.uint16) << 8 | windows[0]
    counts = np.bincount(pairs[greatest - least >= CONTRAST], minlength=2**16)
    return np.minimum(counts, 2**16 - 1).astype(np.uint16)


def _choose_pairs(counts: np.ndarray, wanted: int) -> tuple[np.ndarray, int]:
    """Few pairs that together begin enough keys in every patch that has so many, and how far keys can be thinned out.

    The first as whether each pair is one, [65536]; the second so that nine patches in ten still have enough keys.
    Only pairs that are among the most frequent of some patch come into question.
    """
    frequent = np.unique([np.argpartition(row, -FREQUENT)[-FREQUENT:] for row in counts])
    counts = counts[:, frequent]
    lacking, chosen = np.full(len(counts), wanted, np.uint16), np.zeros(2**16, bool)
    while lacking.any():
        gain = np.minimum(counts, lacking[:, None]).sum(axis=0, dtype=np.int64)
        gain[chosen[frequent]] = 0
        best = int(gain.argmax())
        if not gain[best]:
            break
        chosen[frequent[best]] = True
        lacking -= np.minimum(lacking, counts[:, best])
    have = counts[:, chosen[frequent]].sum(axis=1, dtype=np.int64)
    return chosen, max(1, int(np.quantile(have[have > 0], 0.1) // wanted)) if have.any() else 1


class CopyFinder:
    """Looks for copies of test patches while scans are read; `inspect` serves many threads at once.

    Args:
        read: gives test patch k.
        count: how many there are.
    """

    def __init__(self, read: Callable[[int], UInt8[np.ndarray, "s s"]], count: int):
        self._read = read
        counts = np.empty((count, 2**16), np.uint16)
        for k, found in enumerate(in_threads(lambda k: _pair_counts(read(k)), range(count))):
            counts[k] = found
        self._size = read(0).shape[0]
        wanted = max(1, min(KEYS, self._size**2 // 100))
        self._chosen = _choose_pairs(counts, wanted)
        self._keys, self._owners, self._places = self._collect(count)
        found = np.bincount(self._owners, minlength=count)
        self.blind = np.flatnonzero(found == 0).tolist()  # patches too uniform to be looked for
        self._matches: list[tuple[int, np.ndarray, np.ndarray]] = []

    def _collect(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All keys of all patches, sorted: key, patch, flat position in it."""

        def of(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            at, keys = _keys(self._read(k), *self._chosen)
            return keys, np.full(len(at), k, np.int32), at

        keys, owners, places = map(np.concatenate, zip(*in_threads(of, range(count))))
        order = np.argsort(keys, kind="stable")
        _, times = np.unique(keys[order], return_counts=True)
        order = order[np.repeat(times <= REPEATED, times)]
        return keys[order], owners[order], places[order]

    def inspect(self, scan: int, tile: Region, pixels: UInt8[np.ndarray, "h w"]) -> None:
        """Notes where keys of test patches occur in a tile."""
        at, keys = _keys(pixels, *self._chosen)
        first = np.searchsorted(self._keys, keys)
        known = first < len(self._keys)
        known[known] = self._keys[first[known]] == keys[known]
        if known.any():
            row, col = np.divmod(at[known], tile.width)
            self._matches.append((scan, np.stack([row + tile.row, col + tile.col], axis=1), keys[known]))

    def copies(self, source: Gridded) -> list[Copy]:
        """The copies, after every tile was inspected: by patch, the largest first."""
        votes: dict[tuple[int, int, int, int], int] = {}
        for scan, places, keys in self._matches:
            low, high = (np.searchsorted(self._keys, keys, side) for side in ("left", "right"))
            for (row, col), start, stop in zip(places.tolist(), low.tolist(), high.tolist()):
                for owner, at in zip(self._owners[start:stop].tolist(), self._places[start:stop].tolist()):
                    place = owner, scan, row - at // self._size, col - at % self._size
                    votes[place] = votes.get(place, 0) + 1
        likely = sorted(votes, key=lambda place: -votes[place])[:COMPARED]
        compared = in_threads(lambda place: self._compare(source, *place), likely)
        found = [copy for copy in compared if copy.share >= SHARE]
        return sorted(found, key=lambda copy: (copy.patch, -copy.share))

    def _compare(self, source: Gridded, patch: int, scan: int, row: int, col: int) -> Copy:
        size, (height, width) = self._size, source.shape(scan)
        top, left = max(row, 0), max(col, 0)
        bottom, right = min(row + size, height), min(col + size, width)
        there = source.read(scan, top, left, bottom - top, right - left)
        here = self._read(patch)[top - row : bottom - row, left - col : right - col]
        same = _blocks(there == here).all(axis=(1, 3)) & (np.ptp(_blocks(here), axis=(1, 3)) > 0)  # glass is no copy
        return Copy(patch, scan, row, col, float(np.count_nonzero(same) * BLOCK**2 / size**2))


def _blocks(pixels: np.ndarray) -> np.ndarray:
    """Whole blocks, [rows BLOCK cols BLOCK]; what remains at the right and the bottom is left out."""
    rows, cols = (n // BLOCK for n in pixels.shape)
    return pixels[: rows * BLOCK, : cols * BLOCK].reshape(rows, BLOCK, cols, BLOCK)
