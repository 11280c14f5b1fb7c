"""What a path holds: a scan file, a folder of images, or a folder of whole slides."""

from pathlib import Path

from kimiajax.data.folders import Folder, holds_splits
from kimiajax.data.scans import Scans
from kimiajax.data.slides import MPP, PATCH_SIZE, Slides, slides_in
from kimiajax.data.source import Source
from kimiajax.errors import UsageError


def open_scans(path: str | Path, patch_size: int | None = None, mpp: float = MPP) -> Source:
    """Opens whatever patches can be read from.

    Args:
        path: a scan file in the layout of Kimia_Path24.h5; a folder of images, `train/s0/*.png` and `test/s0/*.png` and
            their like; or a folder of whole-slide files, each of which is a scan.
        patch_size: side of a patch in pixels. A scan file and a folder of images know it, and it is checked; from
            slides, patches of 1000 pixels are cut unless another size is given.
        mpp: microns per pixel at which slides are read; a scan file and images are as they are.

    Raises:
        UserError: nothing of these; UsageError: patches of another size.
    """
    path = Path(path)
    if not path.is_dir():
        source: Source = Scans(path)
    elif not holds_splits(path) and slides_in(path):
        source = Slides(path, PATCH_SIZE if patch_size is None else patch_size, mpp)
    else:
        source = Folder(path)
    if patch_size not in (None, source.patch_size):
        size = source.patch_size
        source.close()
        raise UsageError(
            f"{path}: test patches are {size} x {size}, but training patches of {patch_size} x {patch_size} were asked "
            f"for; use --patch-size {size}"
        )
    return source
