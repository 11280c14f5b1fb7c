"""A folder of whole-slide files, each a scan: the study on anybody's slides, through OpenSlide (extra `wsi`).

Slides are read at one stated resolution, 0.5 microns per pixel unless another is asked for, which is Kimia Path24's.
They hold no test patches out, so these are drawn from the tissue's places and never used for training.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kimiajax.data.sources.hdf5_raster import Region
from kimiajax.data.sources.source import Gridded, NotScannedError, identity_of, is_ignored, walk
from kimiajax.errors import UsageError, UserError
from kimiajax.io.files import guess
from kimiajax.shapes import UInt8
from kimiajax.text import text_of

MPP = 0.5  # microns per pixel of Kimia Path24
PATCH_SIZE = 1000  # pixels, of Kimia Path24
SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide")
SAME = 0.01  # resolutions that differ by less than this fraction are taken for one, and nothing is resampled


class Level(NamedTuple):
    """The stored resolution that a slide is read from.

    Attributes:
        number: OpenSlide's.
        downsample: pixels of the finest level along one pixel of this.
        scale: pixels of this level along one pixel that is read, 1 or more.
        shape: height and width, in pixels that are read.
    """

    number: int
    downsample: float
    scale: float
    shape: tuple[int, int]


class Slides(Gridded):
    """Open whole-slide files, in the order of their names. Any number of threads may read from them.

    Args:
        path: the folder.
        patch_size: side of a patch, in pixels of `mpp` microns.
        mpp: microns per pixel at which to read.

    Raises:
        UserError: OpenSlide is absent, or a file is no slide, does not say its resolution, or is coarser than `mpp`.
    """

    kind = "folder of whole slides"

    def __init__(self, path: str | Path, patch_size: int = PATCH_SIZE, mpp: float = MPP):
        openslide = _openslide()
        self.path, self.patch_size, self.mpp = Path(path), patch_size, mpp
        if not 0 < mpp < math.inf:
            raise UsageError(f"--mpp {mpp}: must be above 0 and finite")
        self._files = slides_in(self.path)
        files = (entry for entry in self.path.iterdir() if entry.is_file() and not is_ignored(entry.name))
        strange = sorted(entry.name for entry in files if entry not in self._files)
        if strange:
            raise UserError(f"{self.path / strange[0]}: is no slide ({', '.join(SUFFIXES)}); move it elsewhere")
        self.names = tuple(file.stem for file in self._files)
        if len(set(self.names)) < len(self.names):
            raise UserError(f"{self.path}: two slides have one name but for the suffix; rename one")
        files = ((file, file.stat()) for file in sorted(walk(self.path)))  # some formats keep data in folders
        self.identity = identity_of(files, mpp, openslide.__version__, openslide.__library_version__)
        self._slides: list[Any] = []
        self._levels: list[Level] = []
        try:
            for file in self._files:
                try:
                    self._slides.append(openslide.OpenSlide(file))
                except openslide.OpenSlideError as error:
                    raise UserError(f"{file}: {_guess(file)} ({error})") from error
                self._levels.append(self._choose_level(file, self._slides[-1]))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for slide in self._slides:
            slide.close()

    def describe(self) -> dict[str, Any]:
        levels = {name: {"level": at.number, "scale": at.scale} for name, at in zip(self.names, self._levels)}
        return {"path": text_of(self.path), "kind": self.kind, "mpp": self.mpp, "read_at": levels}

    def shape(self, scan: int) -> tuple[int, int]:
        return self._levels[scan].shape

    def tiles(self, scan: int) -> list[Region]:
        """As patches lie, so that a place looks the same in the survey and as a patch, where pixels are resampled."""
        (height, width), size = self.shape(scan), self.patch_size
        return [
            Region(row, col, min(size, height - row), min(size, width - col))
            for row in range(0, height, size)
            for col in range(0, width, size)
        ]

    def read(self, scan: int, row: int, col: int, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
        from PIL import Image

        file, slide, level = self._files[scan], self._slides[scan], self._levels[scan]
        if row < 0 or col < 0 or row + height > level.shape[0] or col + width > level.shape[1]:
            raise UserError(
                f"{file}: rows {row}..{row + height}, columns {col}..{col + width} leave the slide, which is "
                f"{level.shape[0]} x {level.shape[1]} at {self.mpp:g} microns per pixel"
            )
        where = f"{file}: rows {row}..{row + height}, columns {col}..{col + width} at {self.mpp:g} microns per pixel"
        left, top, right, bottom = (n * level.scale for n in (col, row, col + width, row + height))
        x, y = math.floor(left), math.floor(top)
        wide, high = math.ceil(right) - x, math.ceil(bottom) - y
        origin = round(x * level.downsample), round(y * level.downsample)
        try:
            image = slide.read_region(origin, level.number, (wide, high))
        except _openslide().OpenSlideError as error:
            raise UserError(f"{where} cannot be read ({error}); the file is damaged, fetch it again") from error
        if image.getextrema()[3] != (255, 255):
            raise NotScannedError(f"{where} hold no pixels: the scanner left them out")
        gray = image.convert("RGB").convert("L")
        if level.scale != 1:
            box = left - x, top - y, right - x, bottom - y
            gray = gray.resize((width, height), Image.Resampling.BOX, box=box)
        return np.asarray(gray)

    def test_patches(self) -> None:
        return None

    def _choose_level(self, file: Path, slide: Any) -> Level:
        """The coarsest level that is no coarser than what is wanted."""
        try:
            across, along = (float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy")
        except (KeyError, ValueError):
            across = along = math.nan
        if not (0 < across < math.inf and 0 < along < math.inf):
            raise UserError(f"{file}: does not say how many microns a pixel is; a scan of unknown scale is of no use")
        if abs(across / along - 1) > SAME:
            raise UserError(f"{file}: pixels are {across:g} by {along:g} microns; they must be square")
        best = None
        for number, (downsample, (width, height)) in enumerate(zip(slide.level_downsamples, slide.level_dimensions)):
            scale = self.mpp / (across * downsample)
            scale = 1.0 if abs(scale - 1) < SAME else scale
            if scale >= 1:
                best = Level(number, downsample, scale, (int(height / scale), int(width / scale)))
        if best is None:
            raise UserError(
                f"{file}: was scanned at {across:g} microns per pixel, coarser than the {self.mpp:g} asked for; "
                f"use --mpp {across:g} or more"
            )
        if min(best.shape) < self.patch_size:
            raise UserError(
                f"{file}: is {best.shape[0]} x {best.shape[1]} at {self.mpp:g} microns per pixel, smaller than a patch "
                f"of {self.patch_size}; use --patch-size"
            )
        return best


def slides_in(path: Path) -> list[Path]:
    """The slides in a folder, in the order of their names."""
    entries = (entry for entry in path.iterdir() if not is_ignored(entry.name))
    return sorted(entry for entry in entries if entry.suffix.lower() in SUFFIXES and entry.is_file())


def _guess(file: Path) -> str:
    with file.open("rb") as stream:
        return guess(stream.read(512), file.stat().st_size, "a whole slide that OpenSlide reads, or a damaged one")


def _openslide() -> Any:
    try:
        import openslide
    except ModuleNotFoundError as error:
        raise UsageError(
            'whole slides are read through OpenSlide, which is not installed: pip install "kimiajax[wsi]"'
        ) from error
    return openslide
