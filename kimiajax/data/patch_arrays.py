"""From a manifest to what the networks take: its patches read once, hashed, resized, and kept as one mapped array."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL

from kimiajax.checks import kind_of, path_of, whole
from kimiajax.data.manifest import SPLITS, Manifest, Patch, Split, read_manifest
from kimiajax.data.patches import Rules, cut_patches, key_of
from kimiajax.data.resize import FILTERS, resize
from kimiajax.data.sources.source import PatchSource, Source, Track, no_track, sha256_of
from kimiajax.data.survey import in_threads
from kimiajax.errors import UserError, check_known
from kimiajax.io.cache import ArrayCache
from kimiajax.shapes import UInt8

Look = Callable[[Split, int, np.ndarray], None]
PROOF = "[0-9a-f]" * 64  # names of empty files beside the arrays: sources that gave these pixels for a manifest


class Patches(NamedTuple):
    """Which patches, and their gray values at the networks' size, in the manifest's order."""

    manifest: Manifest
    train: UInt8[np.ndarray, "n s s"]
    test: UInt8[np.ndarray, "t s s"]


def prepare_patches(
    source: Source | Any,
    rules: Rules | Any,
    image_size: int | Any = 224,
    filter: str | Any = "box",
    *,
    manifest: Manifest | Any = None,
    cache: str | Path | None = None,
    track: Track = no_track,
) -> Patches:
    """`cut_patches`, unless a manifest says which, and `read_patches`; a cache gives both back unread, as long as the
    files stay as they are.

    Raises:
        UserError: as these two.
    """
    kind_of("source", source, Source, "give what `open_scans` opens")
    kind_of("rules", rules, Rules, "make them as kimiajax.Rules(...)")
    cache = None if cache is None else path_of("cache", cache)
    whole("image_size", image_size, 1)
    check_known("filter", filter, FILTERS)
    if manifest is not None:
        return read_patches(source, manifest, image_size, filter, cache=cache, track=track)
    if cache is None:
        return read_patches(source, cut_patches(source, rules, track=track), image_size, filter, track=track)
    kept = cache / "manifests" / f"{key_of('manifest', source.identity, source.patch_size, rules)}.csv"
    try:
        manifest = read_manifest(kept)
        manifest = replace(manifest, about={**manifest.about, "source": source.describe()})
    except UserError:  # none there, or a damaged one
        manifest = cut_patches(source, rules, cache=cache, track=track)
    patches = read_patches(source, manifest, image_size, filter, cache=cache, track=track)
    if patches.manifest.csv != manifest.csv:
        patches.manifest.write(kept)
    return patches


def read_patches(
    source: Source | Any,
    manifest: Manifest | Any,
    image_size: int | Any = 224,
    filter: str | Any = "box",
    *,
    cache: str | Path | None = None,
    track: Track = no_track,
    with_holes: bool = False,
    look: Look | None = None,
) -> Patches:
    """Reads a manifest's patches, each once, on every core, and resizes them.

    Args:
        source: where they are.
        manifest: which they are. Pixels whose digest it holds must have that digest; digests and homogeneity that it
            lacks are in the manifest that comes back.
        image_size: side of the networks' input in pixels.
        filter: of resizing, see `resize`.
        cache: a folder in which the resized patches are kept as arrays that are mapped into memory, under the digest of
            (pixels, size, filter). From files that gave these pixels before, and are as they were, nothing is read.
        with_holes: let patches be that are holes in the data, to look into these.
        look: called with split, place in it and pixels of each patch, at its own size, by the thread that read it.

    Raises:
        UserError: the manifest is of another source, a patch cannot be read, has other pixels or is a hole, a size that
            is no whole number of 1 or more, or an unknown filter.
    """
    kind_of("source", source, Source, "give what `open_scans` opens")
    kind_of("manifest", manifest, Manifest, "give what `cut_patches` or `read_manifest` returns")
    whole("image_size", image_size, 1)
    cache = None if cache is None else path_of("cache", cache)
    check_of(source, manifest)
    check_known("filter", filter, FILTERS)
    manifest = marked(manifest, source)
    shapes = {split: (len(manifest.split(split)), image_size, image_size) for split in SPLITS}
    kept = None if cache is None else ArrayCache(cache, "pixels", np.uint8)
    if kept is not None and manifest.pixels_sha256 is not None:
        key = _key(manifest, image_size, filter)
        proven = (kept.folder / key / _proof(source, manifest)).exists()
        if proven and (found := kept.get(key, shapes)) is not None:
            return Patches(manifest, **found)
    with nullcontext() if kept is None else kept.making(shapes) as entry:
        arrays = (
            {split: np.empty(shape, np.uint8) for split, shape in shapes.items()} if entry is None else entry.arrays
        )
        read = []
        for split in SPLITS:
            patches = PatchSource(source, manifest.split(split), with_holes)
            read += track(
                _read(patches, manifest, arrays[split], filter, split, look),
                f"reading {split} patches",
                len(patches),
                "patches",
            )
        manifest = replace(manifest, patches=tuple(read))
        if entry is not None and kept is not None:
            entry.key = _key(manifest, image_size, filter)
            for known in (kept.folder / entry.key).glob(PROOF):
                (entry.folder / known.name).touch()
            (entry.folder / _proof(source, manifest)).touch()
    return Patches(manifest, **(arrays if entry is None else entry.arrays))


def marked(manifest: Manifest, source: Source) -> Manifest:
    """A manifest that says of the data what the source does that its patches are read from."""
    return replace(manifest, about={**manifest.about, **source.marks})


def check_of(source: Source, manifest: Manifest) -> None:
    """Raises UserError where a manifest cannot be of a source."""
    for name, ours, theirs in (
        ("patches of side", manifest.patch_size, source.patch_size),
        ("scans", manifest.num_scans, len(source)),
    ):
        if ours != theirs:
            raise UserError(f"{source.path}: has {name} {theirs}, and the manifest {ours}; is it of another source?")


def _read(
    patches: PatchSource, manifest: Manifest, resized: np.ndarray, filter: str, split: Split, look: Look | None
) -> Iterator[Patch]:
    """Fills `resized` while it gives the patches, with digest and homogeneity, in their order."""
    background = (manifest.about.get("rules") or {}).get("background", Rules.background)

    def read(index: int) -> Patch:
        patch, pixels = patches.patches[index], patches[index].pixels
        if look is not None:
            look(split, index, pixels)
        resized[index] = resize(pixels, resized.shape[1], filter)
        homogeneity = patch.homogeneity
        if homogeneity is None:
            homogeneity = float(np.count_nonzero(pixels >= background) / pixels.size)
        return replace(patch, homogeneity=homogeneity, sha256=patch.sha256 or sha256_of(pixels))

    return in_threads(read, range(len(patches)))


def _proof(source: Source, manifest: Manifest) -> str:
    """Names that a source, as it is, gave a manifest's pixels at the places where the manifest says."""
    return hashlib.sha256(json.dumps([source.identity, manifest.sha256]).encode()).hexdigest()


def _key(manifest: Manifest, image_size: int, filter: str) -> str:
    content = [manifest.pixels_sha256, image_size, filter, PIL.__version__]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
