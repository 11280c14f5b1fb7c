"""One reading of a whole scan, and what it tells: how bright each place is, and where patches were whitened.

A scan is divided as its patches are, and each patch into 8 x 8 cells; what remains beyond the last whole patch has
cells as well. Of each cell the survey holds how many pixels are as bright as some levels, and the least and greatest
gray value. Everything that is decided about places afterwards is decided on these few numbers.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from kimiajax.data.sources.hdf5_raster import Region
from kimiajax.data.sources.source import Gridded, NotScannedError
from kimiajax.shapes import Bool, Float, Int, UInt8

VERSION = 1  # rises with every change to what a survey holds or decides
WHITE = 255  # the value that the places of the test patches are filled with
CELLS = 8  # along the side of a patch
SMALLEST_PATCH = CELLS  # so that a cell is a pixel at least

Inspect = Callable[[int, Region, UInt8[np.ndarray, "h w"]], None]


@dataclass(frozen=True)
class Survey:
    """What one reading of a scan tells, by cell, [rows cols].

    Attributes:
        size: side of a patch in pixels.
        shape: height and width of the scan in pixels.
        counts: by gray value, the number of pixels in each cell that are at least as bright. White is always there.
        least: the least gray value in each cell; 255 where the source has no pixels.
        greatest: the greatest; 0 where it has none.
        whitened: top left pixels of whitened places, [n 2], a sliding one where several touch.
    """

    size: int
    shape: tuple[int, int]
    counts: dict[int, Int[np.ndarray, "rows cols"]]
    least: UInt8[np.ndarray, "rows cols"]
    greatest: UInt8[np.ndarray, "rows cols"]
    whitened: Int[np.ndarray, "n 2"]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of whole patches."""
        return self.shape[0] // self.size, self.shape[1] // self.size

    def homogeneity(self, background: int) -> Float[np.ndarray, "rows cols"]:
        """The share of each whole patch, in [0, 1], that is as bright as background: `background` and above.

        The paper drops patches "of less than 99 % homogeneity", which we read as 99 % and more; it gives no formula.
        A patch that the source does not hold whole counts as background.
        """
        rows, cols = self.grid
        cells = np.where(~self._seen, self.size**2, self.counts[background])[: rows * CELLS, : cols * CELLS]
        return np.minimum(cells.reshape(rows, CELLS, cols, CELLS).sum(axis=(1, 3)) / self.size**2, 1)

    def dark(self, level: int) -> Float[np.ndarray, "rows cols"]:
        """The share of each whole patch's cells, in [0, 1], that hold no pixel above a gray value."""
        return self._share(self._seen & (self.greatest <= level))

    def flat(self, spread: int, background: int) -> Float[np.ndarray, "rows cols"]:
        """The share of each whole patch's cells, in [0, 1], whose gray values are below background and span no more
        than `spread`."""
        span = self.greatest.astype(np.int16) - self.least
        return self._share(self._seen & (self.greatest < background) & (span <= spread))

    def constant(self) -> Bool[np.ndarray, "rows cols"]:
        """Whether each whole patch has one gray value."""
        rows, cols = self.grid
        parts = (rows, CELLS, cols, CELLS)
        least, greatest = (each[: rows * CELLS, : cols * CELLS].reshape(parts) for each in (self.least, self.greatest))
        return least.min(axis=(1, 3)) == greatest.max(axis=(1, 3))

    @property
    def _seen(self) -> Bool[np.ndarray, "rows cols"]:
        """The cells that the source has pixels of."""
        return self.least <= self.greatest

    def _share(self, cells: Bool[np.ndarray, "r c"]) -> Float[np.ndarray, "rows cols"]:
        """The share of each whole patch's cells."""
        rows, cols = self.grid
        return cells[: rows * CELLS, : cols * CELLS].reshape(rows, CELLS, cols, CELLS).mean(axis=(1, 3))

    def overlap(self) -> Float[np.ndarray, "rows cols"]:
        """The share of each whole patch, in [0, 1], that the whitened place which covers most of it covers."""
        rows, cols = self.grid
        most = np.zeros((rows + 1, cols + 1))
        place, offset = np.divmod(self.whitened, self.size)
        for down in (0, 1):
            for right in (0, 1):
                high = offset[:, 0] if down else self.size - offset[:, 0]
                wide = offset[:, 1] if right else self.size - offset[:, 1]
                at = np.minimum(place[:, 0] + down, rows), np.minimum(place[:, 1] + right, cols)
                np.maximum.at(most, at, high * wide)
        return most[:rows, :cols] / self.size**2

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for `np.savez`."""
        counts = {f"count_{level}": count for level, count in self.counts.items()}
        named = {"least": self.least, "greatest": self.greatest, "whitened": self.whitened}
        return {"size": np.array(self.size), "shape": np.array(self.shape), **named, **counts}

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray]) -> "Survey":
        counts = {int(k.removeprefix("count_")): v for k, v in arrays.items() if k.startswith("count_")}
        height, width = arrays["shape"].tolist()
        rest = (arrays[name] for name in ("least", "greatest", "whitened"))
        return cls(int(arrays["size"]), (height, width), counts, *rest)


def cell_edges(length: int, size: int) -> Int[np.ndarray, " n"]:
    """Where cells begin along one side of a scan, and, last, where it ends."""
    edges = (np.arange(-(-length // size))[:, None] * size + np.arange(CELLS) * size // CELLS).ravel()
    return np.append(edges[edges < length], length)


def survey_scan(source: Gridded, scan: int, levels: Iterable[int], inspect: Inspect | None = None) -> Iterator[Any]:
    """Reads a scan once, on every core, and tells what it holds: yields None after each tile, and last the `Survey`.

    Args:
        source: the scans.
        scan: which of them.
        levels: gray values; pixels at least as bright are counted.
        inspect: called with scan, region and pixels of every tile, by the thread that read it.
    """
    size, (height, width) = source.patch_size, source.shape(scan)
    rows, cols = cell_edges(height, size), cell_edges(width, size)
    shape = len(rows) - 1, len(cols) - 1
    counts = {level: np.zeros(shape, np.int32) for level in sorted({*levels, WHITE})}
    least, greatest = np.full(shape, 255, np.uint8), np.zeros(shape, np.uint8)

    def look(tile: Region) -> list[tuple]:
        try:
            pixels = source.read(scan, *tile)
        except NotScannedError:
            return []
        if inspect is not None:
            inspect(scan, tile, pixels)
        return list(_measure(tile, pixels, rows, cols, tuple(counts)))

    for pieces in in_threads(look, source.tiles(scan)):
        for cells, dark, bright, numbers in pieces:
            np.minimum(least[cells], dark, out=least[cells])
            np.maximum(greatest[cells], bright, out=greatest[cells])
            for count, number in zip(counts.values(), numbers):
                count[cells] += number
        yield None
    whitened = np.empty((0, 2), np.int64)
    if source.whitens:
        whitened = find_whitened(source, scan, counts[WHITE], rows, cols)
    yield Survey(size, (height, width), counts, least, greatest, whitened)


def in_threads(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`work(item)` for every item, in their order, on every core, few items ahead of the one that is wanted next."""
    workers = os.cpu_count() or 1
    pending: deque[Future] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for task in pending:
                task.cancel()


def _measure(
    tile: Region, pixels: np.ndarray, rows: np.ndarray, cols: np.ndarray, levels: tuple[int, ...]
) -> Iterator[tuple]:
    """By rows of cells within a tile: which cells they are, their least and greatest value, their counts by level.

    Columns of pixels are reduced first, 255 rows at a time so that bytes suffice, and then, far fewer, by cell.
    """
    first_col, last_col = np.searchsorted(cols, (tile.col, tile.col + tile.width - 1), "right") - 1
    starts = np.maximum(cols[first_col : last_col + 1] - tile.col, 0)
    cuts = rows[(rows > tile.row) & (rows < tile.row + tile.height)] - tile.row
    for start, stop in zip([0, *cuts], [*cuts, tile.height]):
        cell_row = int(np.searchsorted(rows, tile.row + start, "right") - 1)
        for top in range(start, stop, 255):
            part = pixels[top : min(top + 255, stop)]
            dark = np.minimum.reduceat(part.min(axis=0), starts)
            bright = np.maximum.reduceat(part.max(axis=0), starts)
            numbers = []
            for level in levels:
                columns = np.add.reduce((part >= level).view(np.uint8), axis=0, dtype=np.uint8)
                numbers.append(np.add.reduceat(columns, starts, dtype=np.int32))
            yield (slice(cell_row, cell_row + 1), slice(first_col, last_col + 1)), dark, bright, numbers


def find_whitened(
    source: Gridded, scan: int, white: Int[np.ndarray, "r c"], rows: Int[np.ndarray, " a"], cols: Int[np.ndarray, " b"]
) -> Int[np.ndarray, "n 2"]:
    """Top left pixels of the squares of the patches' size that are all white and border on something else.

    That is, on two sides at least: along such a side less than half of the pixels beyond it are white. Glass that is as
    white goes on beyond three sides or four. Such a square holds 7 x 7 white cells wherever it lies, so only where
    these are, and where the cells around them do not rule two such sides out, is the scan read once more.

    Args:
        source: the scans.
        scan: which of them.
        white: the number of white pixels in each cell.
        rows: where cells begin along the scan's height, and where it ends.
        cols: the same along its width.
    """
    whole = white == np.diff(rows)[:, None] * np.diff(cols)[None]
    boxes = np.argwhere(_possible(whole))
    found = list(in_threads(lambda box: _white_squares(source, scan, rows, cols, *box.tolist()), boxes))
    return np.concatenate([np.empty((0, 2), np.int64), *found])


def _possible(whole: Bool[np.ndarray, "r c"]) -> Bool[np.ndarray, "r2 c2"]:
    """At the first of 7 x 7 white cells: whether a white square over these can border on something at two sides."""
    n = CELLS - 1
    if min(whole.shape) < n:
        return np.zeros((0, 0), bool)
    # As many white cells follow each cell in its row, or its column, and, with a frame of cells that are not white,
    # beyond each side: the strip along a side lies in these.
    across = _runs(whole, n, axis=1)
    down = _runs(whole, n, axis=0)
    inside = _runs(across, n, axis=0)
    high, wide = inside.shape

    def at(runs: np.ndarray, row: int, col: int) -> np.ndarray:
        framed = np.pad(runs, ((1, 2), (1, 2)))
        return framed[1 + row :, 1 + col :][:high, :wide]

    closed = [
        at(across, -1, 0),
        at(across, n, 0) & at(across, n + 1, 0),
        at(down, 0, -1),
        at(down, 0, n) & at(down, 0, n + 1),
    ]
    return inside & (sum(side.astype(np.uint8) for side in closed) <= 2)


def _runs(mask: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Whether `length` values in a row along an axis are all true, by the first of them."""
    return np.all(np.lib.stride_tricks.sliding_window_view(mask, length, axis=axis), axis=-1)


def _white_squares(source: Gridded, scan: int, rows: np.ndarray, cols: np.ndarray, i: int, j: int) -> np.ndarray:
    """The white squares whose first whole cell is i, j."""
    size, (height, width) = source.patch_size, source.shape(scan)
    top, left = (int(edges[k - 1]) + 1 if k else 0 for edges, k in ((rows, i), (cols, j)))  # first and last
    bottom, right = min(int(rows[i]), height - size), min(int(cols[j]), width - size)  # top left pixel of a square
    if bottom < top or right < left:
        return np.empty((0, 2), np.int64)
    high, wide = bottom - top + 1, right - left + 1
    above, before = max(top - 1, 0), max(left - 1, 0)
    below, behind = min(bottom + size + 1, height), min(right + size + 1, width)
    around = source.read(scan, above, before, below - above, behind - before) == WHITE
    # what lies outside the scan is not white
    frame = (1 - (top - above), bottom + size + 1 - below), (1 - (left - before), right + size + 1 - behind)
    # counts[y, x]: white pixels above and left of y, x, the square at top, left beginning at 1, 1
    counts = (
        np.pad(np.pad(around, frame), ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    )

    def count(y: int, x: int, down: int, across: int) -> np.ndarray:
        corners = (counts[a : a + high, b : b + wide] for a in (y, y + down) for b in (x, x + across))
        top_left, top_right, bottom_left, bottom_right = corners
        return bottom_right - bottom_left - top_right + top_left

    sides = count(0, 1, 1, size), count(size + 1, 1, 1, size), count(1, 0, size, 1), count(1, size + 1, size, 1)
    borders = sum((side < size / 2).astype(np.uint8) for side in sides)
    found = np.argwhere((count(1, 1, size, size) == size**2) & (borders >= 2))
    return found + np.array([top, left])
