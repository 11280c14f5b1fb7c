"""A patch as an example of a TFDS set, and shards of them: what runs in this process or in a worker of Apache Beam.

Workers import this module by its name. It knows no builder, since to import one is to register it.
"""

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kimiajax.data.manifest import Patch
from kimiajax.data.open_scans import open_scans
from kimiajax.data.sources.image_files import encode_gray, read_rgb
from kimiajax.data.sources.image_folder import Folder
from kimiajax.data.sources.source import PatchSource, Source
from kimiajax.errors import UserError

WRITER_OPTIONS = "group_size:1,uncompressed"  # of array_record: each record can be read alone
UNKNOWN = -1  # the row and column of a patch whose place is not known
ORDER = 24  # the seed of the records' order
SHARD_BYTES = 256 * 2**20  # of gray values; a shard's examples are in memory at once


class Ranked(NamedTuple):
    """A patch and its rank: among all places of its scan, or among the test patches."""

    patch: Patch
    place: int


def in_shards(patches: list[Ranked], patch_size: int) -> list[list[Ranked]]:
    """Patches in a random order, always the same, so that any part of a set has some of every scan; and in shards."""
    order = np.random.default_rng(ORDER).permutation(len(patches))
    count = -(-len(patches) * patch_size**2 // SHARD_BYTES)
    return [[patches[k] for k in part] for part in np.array_split(order, count)]


def example_of(source: Source, ranked: Ranked) -> tuple[str, dict[str, Any]]:
    """A patch's key and its features, the image encoded: colours of a folder's images are kept.

    Raises:
        UserError: it cannot be read, or has another size than the source's patches.
    """
    patch = ranked.patch
    if isinstance(source, Folder):
        image, shape = read_rgb(source.file_of(patch))
        if shape != (source.patch_size,) * 2:
            raise UserError(
                f"{source.file_of(patch)}: is {shape[0]} x {shape[1]} pixels and other patches "
                f"{source.patch_size} x {source.patch_size}; all of a set must be of one size"
            )
    else:
        image = encode_gray(PatchSource(source, [patch])[0].pixels)
    row, col = (UNKNOWN if value is None else value for value in (patch.row, patch.col))
    place = {"patch_id": patch.patch_id, "row": row, "col": col, "place": ranked.place}
    return patch.patch_id, {"image": image, "label": patch.scan, **place}


def examples_of(path: Path, state: str, patches: list[Ranked]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The examples of one shard, from a scan file or a folder that this process opens once.

    Args:
        path: where it is, for every worker.
        state: of the files when they were checked, see `state_of`.
        patches: the shard's.

    Raises:
        UserError: the files are others by now, or here; or a patch cannot be read.
    """
    source = opened_as(path, state)
    for ranked in patches:
        yield example_of(source, ranked)
    check_state(source, state)


def state_of(source: Source) -> str:
    """What files are, as every machine that shares them sees it: their sizes, and names or the time of writing."""
    if isinstance(source, Folder):
        return source.listing_sha256
    about = source.path.stat()
    return f"{about.st_size} bytes of {about.st_mtime_ns}"


def check_state(source: Source, state: str) -> None:
    """Raises UserError where the files are not those that were checked."""
    if state_of(source) != state:
        raise UserError(f"{source.path}: was changed meanwhile, or is another file on this machine; prepare it again")


@functools.lru_cache(maxsize=1)
def opened_as(path: Path, state: str) -> Source:
    """A scan file or a folder in the state that it was checked in."""
    source = open_scans(path)
    check_state(source, state)
    return source


class PlainWriter:
    """Writes the records of a shard as they are: images are compressed already, and array_record would do it again."""

    file_format = "array_record"

    def write(self, path: os.PathLike, examples: Iterable[tuple[str, bytes]]) -> None:
        """Writes serialised examples, which come with their keys."""
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(os.fspath(path), WRITER_OPTIONS)
        for _, content in examples:
            with _writing(path):
                writer.write(content)
        with _writing(path):
            writer.close()


@contextlib.contextmanager
def _writing(path: os.PathLike) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # which is all that array_record says of a full disk
        raise UserError(f"{path}: cannot be written ({error}); make room, or choose another --data-dir") from error
