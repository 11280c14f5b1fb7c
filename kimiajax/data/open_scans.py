"""What is given: a scan file, a folder of images, a folder of whole slides, or the name of a prepared data set."""

import re
from pathlib import Path
from typing import Any

from kimiajax.checks import path_of, positive, share, whole
from kimiajax.data.sources.image_folder import Folder, holds_splits
from kimiajax.data.sources.scan_file import Scans
from kimiajax.data.sources.slide_folder import is_slide, slides_in
from kimiajax.data.sources.slides import MPP, PATCH_SIZE, Slides
from kimiajax.data.sources.source import Say, Source, Track, no_say, no_track
from kimiajax.data.tfds.datasets import Dataset
from kimiajax.data.tfds.source import Prepared
from kimiajax.errors import UsageError, UserError

DECIMAL_COMMA = re.compile(r"\d*,\d+")


def open_scans(
    path: str | Path | Dataset | Any,
    patch_size: int | Any = None,
    mpp: float | Any = MPP,
    *,
    slide_mpp: float | str | Path | Any = None,
    skip_unreadable: bool = False,
    groups: str | Path | Any = None,
    group_column: str | None = None,
    test_share: float | Any = None,
    cache: str | Path | None = None,
    track: Track = no_track,
    say: Say = no_say,
) -> Source:
    """Opens whatever patches can be read from.

    Args:
        path: a scan file in the layout of Kimia_Path24.h5; a folder of images, `train/CLASS/*.png` and
            `test/CLASS/*.png` and their like, or `CLASS/*.png`, of which test patches are held out; a folder of
            whole slides, each of which is a scan, or one slide; or a data set that TFDS has prepared.
        patch_size: side of a patch in pixels. All but slides know it, and it is checked; from these, patches of 1000
            pixels are cut unless another size is given.
        mpp: microns per pixel at which slides are read; everything else is as it is.
        slide_mpp: microns per pixel of the finest level of slides, where their files do not say it or say it wrongly: a
            number for all of them, or a CSV file with columns slide (a file's name) and mpp.
        skip_unreadable: leave out slides that cannot be opened, are of no known resolution, coarser than `mpp` or
            smaller than a patch; `remarks` and `describe()` name them.
        groups: a CSV file with the patient, or the slide, of each image of a folder; none is in training and test.
        group_column: its column that says so; by default the second.
        test_share: the most of a class that is held out of a folder without test images, in (0, 1); by default 0.2.
        cache: a folder for the labels of a prepared data set, which are read once.
        say: is told what of a folder was passed over or left out.

    Raises:
        UserError: nothing of these, or a number out of its range; UsageError: patches of another size.
    """
    if patch_size is not None:
        whole("--patch-size", patch_size, 1)
    positive("--mpp", mpp)
    if isinstance(slide_mpp, str | Path) and DECIMAL_COMMA.fullmatch(str(slide_mpp)):
        slide_mpp = float(str(slide_mpp).replace(",", "."))
    elif isinstance(slide_mpp, str | Path):
        slide_mpp = path_of("--slide-mpp", slide_mpp)
    elif slide_mpp is not None:
        slide_mpp = positive("--slide-mpp", slide_mpp)
    if test_share is not None and share("--test-share", test_share) == 0:
        raise UserError("--test-share 0: must be above 0")
    of_folders = {"groups": None if groups is None else path_of("groups", groups), "group_column": group_column}
    of_folders["test_share"] = test_share
    cache = None if cache is None else path_of("cache", cache)
    if isinstance(path, Dataset):
        source: Source = Prepared(path, cache, track)
    elif not (path := path_of("scans", path)).is_dir() and not (path.is_file() and is_slide(path)):
        source = Scans(path)
    elif path.is_file() or (not holds_splits(path) and slides_in(path)):
        source = Slides(path, PATCH_SIZE if patch_size is None else patch_size, mpp, slide_mpp, skip_unreadable)
        for line in source.told:
            say(line)
    else:
        source = Folder(path, **of_folders)
    given = next((name for name, value in of_folders.items() if value is not None), None)
    if given is not None and not isinstance(source, Folder):
        source.close()
        raise UsageError(f"{path}: --{given.replace('_', '-')} is for a folder of images, and this is a {source.kind}")
    if slide_mpp is not None and not isinstance(source, Slides):
        source.close()
        raise UsageError(f"--slide-mpp {slide_mpp}: is for whole slides, and {source.path} is a {source.kind}")
    if patch_size not in (None, source.patch_size):
        size = source.patch_size
        source.close()
        raise UsageError(
            f"{path}: test patches are {size} x {size}, but training patches of {patch_size} x {patch_size} were asked "
            f"for; use --patch-size {size}"
        )
    return source
