"""Arrays in an HDF5 file, read by regions from many threads at once.

HDF5 lets one thread in at a time, and decoding gzip is most of the time that reading a compressed scan takes. So HDF5
is asked once where the chunks lie, and the thread that wants one reads it from the file itself and decodes it; arrays
that are stored in one piece are read in the same way. What is stored in any other way goes through HDF5.
"""

import math
import os
import threading
import weakref
import zlib
from pathlib import Path
from typing import NamedTuple, cast

import h5py
import numpy as np

from kimiajax.errors import UserError
from kimiajax.io.hdf5_files import damage_named
from kimiajax.shapes import UInt8

TILE = 2**22  # pixels of a tile at most, unless one chunk is larger: what a thread holds while it reads a whole scan
THREADED = hasattr(os, "preadv")  # not on Windows, where everything goes through HDF5
HARMLESS = {h5py.h5z.FILTER_SHUFFLE}  # shuffles the bytes of an element, and ours have one
DENSEST = 1032  # pixels that a byte of a file stands for at most: what gzip makes of one
FEW_CHUNKS = 2**20  # which take no memory to speak of, however many of them were written


class Region(NamedTuple):
    """A rectangle of a scan: its top left pixel, height and width."""

    row: int
    col: int
    height: int
    width: int


class Descriptor:
    """A file opened for reading at any place by many threads; closed at the latest when nobody holds it any more."""

    def __init__(self, path: Path):
        self._path = path
        self._number = os.open(path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._number)

    def fileno(self) -> int:
        """Its number, which belongs to some other file as soon as this one is closed."""
        if not self._close.alive:
            raise UserError(f"{self._path}: was closed; read from it before that, within its `with` block")
        return self._number

    def size(self) -> int:
        """How many bytes the file has."""
        return os.fstat(self.fileno()).st_size

    def close(self) -> None:
        self._close()


class Raster:
    """A uint8 dataset of an open HDF5 file.

    Args:
        dataset: the dataset.
        path: the file's name, for messages.
        descriptor: of the same file.
    """

    def __init__(self, dataset: h5py.Dataset, path: Path, descriptor: Descriptor):
        self.shape: tuple[int, ...] = dataset.shape
        self.chunks: tuple[int, ...] | None = dataset.chunks
        self._sides = self.chunks or ()
        self.name = cast(str, dataset.name)  # only what is in no file has none
        self._dataset, self._path, self._descriptor = dataset, path, descriptor
        self._lock, self._chunk_index = threading.Lock(), None
        properties = dataset.id.get_create_plist()
        filters = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
        self._gzip = [number for number in filters if number not in HARMLESS] == [h5py.h5z.FILTER_DEFLATE]
        self._direct = THREADED and self.chunks is not None and (self._gzip or not filters)
        in_one = properties.get_layout() == h5py.h5d.CONTIGUOUS and not properties.get_external_count()
        self._written = not in_one or dataset.id.get_storage_size() > 0 or not dataset.size
        self._offset: int | None = dataset.id.get_offset() if THREADED and in_one and self._written else None
        self.check_size(self._sides, "in one chunk")

    def read(self, start: tuple[int, ...], shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
        """The values of a box.

        Raises:
            UserError: the file cannot be read there.
        """
        self._descriptor.fileno()
        try:
            if self._direct:
                return self._from_chunks(start, shape)
            if self._offset is not None and shape[1:] == self.shape[1:]:
                return self._from_file(self._offset, start, shape)
            return self._dataset[tuple(slice(a, a + n) for a, n in zip(start, shape))]
        except (OSError, RuntimeError, ValueError, zlib.error) as error:
            where = ", ".join(f"{a}..{a + n}" for a, n in zip(start, shape))
            raise UserError(
                f"{self._path}: cannot read {self.name} at {where} ({error}); the file is damaged, fetch it again"
            ) from error

    def tiles(self) -> list[Region]:
        """Regions that cover a 2-D dataset once and part no chunk; of `TILE` pixels at most, as long as chunks are.

        Raises:
            UserError: the file is far too small to hold it.
        """
        self.check_size()
        rows, cols = self.shape
        if self.chunks is None:
            high, wide = max(1, TILE // max(cols, 1)), cols
        else:
            high, wide = self.chunks
            wide *= max(1, min(math.ceil(cols / wide), TILE // (high * wide)))
            high *= max(1, min(math.ceil(rows / high), TILE // (high * wide)))
        return [
            Region(row, col, min(high, rows - row), min(wide, cols - col))
            for row in range(0, rows, high)
            for col in range(0, cols, wide)
        ]

    def check_size(self, shape: tuple[int, ...] | None = None, where: str = "") -> None:
        """Raises UserError where the file is far too small to hold this, or all: whoever reads it takes such memory."""
        pixels, held = math.prod(self.shape if shape is None else shape), self._descriptor.size()
        if pixels > DENSEST * held:
            raise UserError(
                f"{self._path}: {self.name} claims {pixels:,} pixels {where}".rstrip()
                + f", and the file has {held:,} bytes; it is damaged, fetch it again"
            )

    def missing_chunks(self) -> int:
        """Chunks that were never written, in whose place HDF5 gives its fill value; 1 for a whole array."""
        if self.chunks is None:
            return int(not self._written)
        with damage_named(self._path):
            return math.prod(self._chunk_counts()) - self._dataset.id.get_num_chunks()

    def _chunk_counts(self) -> tuple[int, ...]:
        return tuple(-(-n // c) for n, c in zip(self.shape, self._sides))

    def _from_file(self, offset: int, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        box = np.empty(shape, np.uint8)
        view, at = box.data.cast("B"), offset + start[0] * math.prod(shape[1:])
        while view:
            read = os.preadv(self._descriptor.fileno(), [view], at)
            if not read:
                raise OSError("the file ends there")
            view, at = view[read:], at + read
        return box

    def _from_chunks(self, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        first = tuple(a // c for a, c in zip(start, self._sides))
        after = tuple(-(-(a + n) // c) for a, n, c in zip(start, shape, self._sides))
        entries = self._index()[tuple(map(slice, first, after))]
        written = np.argwhere(entries["size"])  # alone are looked for: a file may claim any number of others
        box = np.empty(shape, np.uint8)
        if len(written) < entries.size:
            box[...] = self._dataset.fillvalue
        for place in map(tuple, written.tolist()):
            chunk = self._chunk(*entries[place].tolist())
            corner = tuple((k + low) * c for k, low, c in zip(place, first, self._sides))
            inside = [
                (max(a, c), min(a + n, c + m)) for a, n, c, m in zip(start, shape, corner, self._sides)
            ]  # what box and chunk share, in the dataset's coordinates
            into = tuple(slice(low - a, high - a) for (low, high), a in zip(inside, start))
            out_of = tuple(slice(low - c, high - c) for (low, high), c in zip(inside, corner))
            box[into] = chunk[out_of]
        return box

    def _chunk(self, offset: int, size: int, left_out: int) -> np.ndarray:
        stored = os.pread(self._descriptor.fileno(), size, offset)
        if len(stored) < size:
            raise OSError("the file ends there")
        if self._gzip and not left_out:
            unpacking = zlib.decompressobj()
            stored = unpacking.decompress(stored, math.prod(self._sides) + 1)  # and no more, of a bomb
            if not unpacking.eof:
                raise OSError("a chunk is cut short, or holds too much")
        return np.frombuffer(stored, np.uint8).reshape(self._sides)

    def _index(self) -> np.ndarray:
        """Of each chunk: where it lies in the file, its size there, 0 if it was never written, and filters left out."""
        with self._lock:
            if self._chunk_index is None:
                self._chunk_index = self._ask_where_chunks_lie()
        return self._chunk_index

    def _ask_where_chunks_lie(self) -> np.ndarray:
        count, held = self._chunk_counts(), self._descriptor.size()
        if math.prod(count) > max(held, FEW_CHUNKS):
            raise OSError(f"{math.prod(count):,} chunks, and {held:,} bytes")
        index = np.zeros(count, [("offset", np.int64), ("size", np.int64), ("left_out", np.uint32)])

        def enter(chunk: h5py.h5d.StoreInfo) -> None:
            if chunk.byte_offset is None or chunk.byte_offset + chunk.size > held:
                raise OSError("a chunk lies outside the file")
            at = tuple(a // c for a, c in zip(chunk.chunk_offset, self._sides))
            if any(k >= n or a % c for k, n, a, c in zip(at, count, chunk.chunk_offset, self._sides)):
                raise OSError("a chunk lies outside the array, or across others")
            if index[at]["size"]:
                raise OSError("a chunk is there twice")
            index[at] = chunk.byte_offset, chunk.size, chunk.filter_mask

        self._dataset.id.chunk_iter(enter)
        self._check(index)
        return index

    def _check(self, index: np.ndarray) -> None:
        """That chunks lie where HDF5 says: versions of it differ on whether a block before the file counts."""
        written = np.argwhere(index["size"])
        if not len(written):
            return
        at = tuple(written[0].tolist())
        _, expected = self._dataset.id.read_direct_chunk(tuple(a * c for a, c in zip(at, self._sides)))
        for shift in (0, self._dataset.file.userblock_size):
            found = os.pread(self._descriptor.fileno(), len(expected), int(index[at]["offset"]) + shift)
            if found == bytes(expected):
                index["offset"] += shift * (index["size"] > 0)
                return
        raise OSError("its chunks are not where the file says")
