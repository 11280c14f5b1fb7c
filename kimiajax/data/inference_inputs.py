"""Patches from wherever a user has them: what `open_scans` opens, one image, or any other folder of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from kimiajax.checks import path_of, whole
from kimiajax.data.config import OF_FOLDERS
from kimiajax.data.manifest import SPLITS, Manifest, Split
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import prepare_patches
from kimiajax.data.patches import Rules, draw, offered_by
from kimiajax.data.resize import FILTERS, resize
from kimiajax.data.sources.image_files import IMAGES, read_gray
from kimiajax.data.sources.image_folder import holds_splits, natural
from kimiajax.data.sources.slide_folder import is_slide, is_tiled, slides_in
from kimiajax.data.sources.slides import Slides
from kimiajax.data.sources.source import PatchSource, Say, Track, hole_of, is_hole, no_say, no_track, walk
from kimiajax.data.survey import in_threads
from kimiajax.data.tfds.datasets import Dataset
from kimiajax.errors import UsageError, UserError, check_known
from kimiajax.shapes import Int, UInt8
from kimiajax.text import shown

SCAN_FILES = (".h5", ".hdf5")
KINDS = "a scan file (.h5), a folder of whole slides, an image, or a folder of images"


class Inputs(NamedTuple):
    """Patches as the networks see them, all of one split or of none.

    Attributes:
        ids: the patches' names, each once.
        scans: the scan of each, as its source numbers them; None where it is not known.
        split: what they serve for; None likewise.
        pixels: gray values at the networks' size, 0 (black) to 255 (white), in the order of `ids`.
        manifest: of both splits of the source; None for plain images.
    """

    ids: tuple[str, ...]
    scans: Int[np.ndarray, " n"] | None
    split: Split | None
    pixels: UInt8[np.ndarray, "n s s"]
    manifest: Manifest | None


def read_inputs(
    path: str | Path | Dataset | Any,
    rules: Rules,
    image_size: int | Any = 224,
    filter: str = "box",
    *,
    manifest: Manifest | None = None,
    patch_size: int | None = None,
    cache: Path | None = None,
    track: Track = no_track,
    say: Say = no_say,
    names: Sequence[str] | None = None,
    **reading: Any,
) -> list[Inputs]:
    """Reads all patches that a path holds.

    Args:
        path: what `open_scans` opens and says which patches are for test, whose training patches come before its test
            patches, by the names that a manifest has for them; one image, by its file's name; or any other folder,
            one folder a class too, every image at whatever depth being a patch, by its path from there
            ("a/p10.png" after "a/p9.png").
        rules: which patches of scans; plain images are all taken.
        image_size: side of the networks' input in pixels.
        filter: of resizing, see `resize`.
        manifest: use exactly its patches of the scans, and not what the rules leave.
        patch_size: side of a patch in pixels, cut from slides and checked elsewhere; see `open_scans`. Without it,
            plain images must be of one size.
        cache: as in `prepare_patches`; plain images are read each time.
        say: is told what of a folder was passed over or left out.
        names: of the scans that are known. Of other slides all patches are taken, by the slide's name ("a/200_0"), as
            none of them serves for training or test.
        reading: how anything but plain images is read, as of `open_scans`.

    Returns:
        Two parts of scans, and one of plain images or of slides that are not known.

    Raises:
        UserError: nothing there, no image where one should be, an image that is not square, since nothing is stretched,
            or whatever `open_scans` and `prepare_patches` refuse; UsageError: patches of another size, or a choice
            among images of no known scan.
    """
    path = path if isinstance(path, Dataset) else path_of("path", path)
    whole("image_size", image_size, 1)
    check_known("filter", filter, FILTERS)
    if isinstance(path, Path) and (images := _images_at(path)) is not None:
        if manifest is not None or rules.patches_per_scan != "all":
            flag = "--patches-per-scan" if manifest is None else "--manifest"
            raise UsageError(
                f"{path}: {flag} chooses patches of scans, and of what scans these images are is not known"
            )
        if reading.get("slide_mpp") is not None:
            raise UsageError(f"{path}: --slide-mpp is for whole slides, and these are plain images")
        if given := [name for name in OF_FOLDERS if reading.get(name) is not None]:
            flag = f"--{given[0].replace('_', '-')}"
            raise UsageError(
                f"{path}: {flag} is for folders with images for training and test, and these are plain images"
            )
        return [_read_images(images, image_size, filter, patch_size, track if path.is_dir() else no_track)]
    options = {"cache": cache, "track": track}
    with open_scans(path, patch_size, **reading, **options, say=say) as source:
        if names is not None and manifest is None and isinstance(source, Slides) and source.names != tuple(names):
            return [_of_slides(source, rules, image_size, filter, **options)]
        patches = prepare_patches(source, rules, image_size, filter, manifest=manifest, **options)
    manifest = patches.manifest
    return [
        Inputs(tuple(p.patch_id for p in manifest.split(split)), manifest.labels(split), split, pixels, manifest)
        for split, pixels in zip(SPLITS, (patches.train, patches.test))
    ]


def _images_at(path: Path) -> dict[str, Path] | None:
    """Plain images by name, in their order; None where a path holds scans, whole or cut by scan."""
    suffix = path.suffix.lower()
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give {KINDS}")
    if not path.is_dir():
        if is_slide(path):
            return None
        if suffix in IMAGES:
            return {path.name: path}
        if suffix in SCAN_FILES or h5py.is_hdf5(path):
            return None
        raise UserError(f"{path}: is no image ({', '.join(IMAGES)}) and no scan file; give {KINDS}")
    if holds_splits(path) or any(s.file.suffix.lower() not in IMAGES or is_tiled(s.file) for s in slides_in(path)):
        return None
    files = sorted(walk(path), key=lambda file: natural(file.relative_to(path)))
    strange = [file for file in files if file.suffix.lower() not in IMAGES]
    if strange:
        raise UserError(f"{shown(strange[0])}: is no image ({', '.join(IMAGES)}); move it elsewhere")
    if not files:
        raise UserError(f"{path}: holds no images; give {KINDS}")
    return {file.relative_to(path).as_posix(): file for file in files}


def _of_slides(source: Slides, rules: Rules, size: int, filter: str, *, cache: Path | None, track: Track) -> Inputs:
    """The patches of slides that serve for nothing but a prediction."""
    chosen = draw(offered_by(source, rules, cache=cache, track=track), rules)
    patches = PatchSource(source, chosen)
    resized = in_threads(lambda k: resize(patches[k].pixels, size, filter), range(len(patches)))
    pixels = np.stack(list(track(resized, "reading patches", len(patches), "patches")))
    ids = tuple(f"{source.names[patch.scan]}/{patch.row}_{patch.col}" for patch in chosen)
    return Inputs(ids, None, None, pixels, None)


def _read_images(images: dict[str, Path], size: int, filter: str, patch_size: int | None, track: Track) -> Inputs:
    files = list(images.values())
    side = len(_read_square(files[0])) if patch_size is None else patch_size
    pixels = np.empty((len(files), size, size), np.uint8)

    def read(index: int) -> None:
        patch = _read_square(files[index])
        if len(patch) != side:
            raise UsageError(_other_size(files[index], len(patch), side, None if patch_size else files[0]))
        if is_hole(patch):
            raise UserError(f"{shown(files[index])}: {hole_of(patch)}; fetch it again, or remove it")
        pixels[index] = resize(patch, size, filter)

    for _ in track(in_threads(read, range(len(files))), "reading images", len(files), "images"):
        pass
    return Inputs(tuple(images), None, None, pixels, None)


def _read_square(file: Path) -> UInt8[np.ndarray, "s s"]:
    gray = read_gray(file)
    height, width = gray.shape
    if height != width:
        side = min(height, width)
        raise UserError(
            f"{shown(file)}: is {height} x {width} pixels, and patches are squares; crop it to {side} x {side} or "
            "less, since nothing is stretched here"
        )
    return gray


def _other_size(file: Path, found: int, wanted: int, first: Path | None) -> str:
    """What to say of an image of another size than was asked for, or than the first image has."""
    if first is None:
        return (
            f"{shown(file)}: is {found} x {found} pixels, and patches of {wanted} x {wanted} are expected; if it shows "
            f"as much of a slide as such a patch does, say so with --patch-size {found}"
        )
    return (
        f"{shown(file)}: is {found} x {found} pixels and {shown(first)} {wanted} x {wanted}: of one scale they would "
        "show more of a slide or less; give images of one size"
    )
