"""A folder of whole slides, each a scan: the study on anybody's slides, through OpenSlide (extra `wsi`).

Slides are read at one stated resolution, 0.5 microns per pixel unless another is asked for, which is Kimia Path24's.
They hold no test patches out, so these are drawn from the tissue's places and never used for training.
"""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kimiajax.data.sources.hdf5_raster import Region
from kimiajax.data.sources.resolution import SAME, Resolution, resolution_of, stated_for
from kimiajax.data.sources.slide_folder import FOREIGN, Contents, Found, contents_of, files_of, is_tiled, lacks
from kimiajax.data.sources.source import Gridded, NotScannedError, UnreadableError, identity_of, walk
from kimiajax.errors import UsageError, UserError
from kimiajax.io.files import guess
from kimiajax.shapes import UInt8
from kimiajax.text import first_few, first_line, shown, text_of

MPP = 0.5  # microns per pixel of Kimia Path24
PATCH_SIZE = 1000  # pixels, of Kimia Path24
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how it begins, the larger kind too
NAMED = 5  # slides left out that are named in a line; records name all
SCANNED = 128  # alpha from which a pixel was scanned; where tiles overlap in part, it is a little below 255


class Level(NamedTuple):
    """The stored resolution that a slide is read from.

    Attributes:
        number: OpenSlide's.
        downsample: pixels of the finest level along one pixel of this.
        scale: pixels of this level along one pixel that is read, 1 or more.
        shape: height and width, in pixels that are read.
        start: column and row of this level at which the part that was scanned begins.
    """

    number: int
    downsample: float
    scale: float
    shape: tuple[int, int]
    start: tuple[int, int]


class Opened(NamedTuple):
    """A slide that can be read."""

    name: str
    file: Path
    handle: Any
    resolution: Resolution
    level: Level


class Slides(Gridded):
    """Open whole slides, in the order of their names. Any number of threads may read from them.

    Args:
        path: the folder, or one slide's file, of DICOM any of its series'.
        patch_size: side of a patch, in pixels of `mpp` microns.
        mpp: microns per pixel at which to read.
        slide_mpp: microns per pixel of the slides' finest level: a number, or a CSV file with columns slide and mpp.
        skip_unreadable: leave out slides that cannot be read so.

    Raises:
        UserError: OpenSlide is absent, or a slide cannot be opened, is of no known resolution, coarser than `mpp` or
            smaller than a patch, or none remains; or a file may be meant as a slide and is none.
    """

    kind = "folder of whole slides"

    def __init__(
        self,
        path: str | Path,
        patch_size: int = PATCH_SIZE,
        mpp: float = MPP,
        slide_mpp: float | Path | None = None,
        skip_unreadable: bool = False,
    ):
        openslide = _openslide()
        self.path, self.patch_size, self.mpp = Path(path), patch_size, mpp
        if not 0 < mpp < math.inf:
            raise UsageError(f"--mpp {mpp}: must be above 0 and finite")
        if self.path.is_dir():
            contents = contents_of(self.path)
            contents.refuse_strange()
        else:
            contents = Contents([Found(self.path.stem, self.path, lacks(self.path))], [], [])
        names = [found.name for found in contents.slides]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{self.path}: two slides have one name but for the suffix or folder, {twice}; rename one")
        stated = stated_for(slide_mpp, [(found.name, found.file) for found in contents.slides])
        self.beside, self._slide_mpp, self._skips = contents.counted(), slide_mpp, skip_unreadable
        self._slides: list[Opened] = []
        self.left_out: dict[str, str] = {}
        try:
            faults = {}
            for found in contents.slides:
                try:
                    self._slides.append(self._open(found, stated.get(found.name)))
                except UnreadableError as error:
                    faults[found] = str(error)
            self._leave_out(faults)
            held = {*walk(self.path)} - {*contents.beside} if self.path.is_dir() else files_of(self.path)
            files = [(file, file.stat()) for file in sorted(held)]
        except BaseException:
            self.close()
            raise
        self.names = tuple(slide.name for slide in self._slides)
        read = [(slide.name, slide.resolution.mpp, *slide.level) for slide in self._slides]
        self.identity = identity_of(files, mpp, openslide.__version__, openslide.__library_version__, read)

    def close(self) -> None:
        for slide in self._slides:
            slide.handle.close()

    def describe(self) -> dict[str, Any]:
        levels = {s.name: {"level": s.level.number, "scale": s.level.scale} for s in self._slides}
        resolutions = {
            s.name: {"mpp": s.resolution.mpp, "from": s.resolution.place}
            | ({"file_says": s.resolution.said} if s.resolution.contradicts else {})
            for s in self._slides
        }
        return {
            "path": text_of(self.path),
            "kind": self.kind,
            "mpp": self.mpp,
            "read_at": levels,
            "resolutions": resolutions,
            "left_out": self.left_out,
            "beside": self.beside,
        }

    @property
    def remarks(self) -> tuple[str, ...]:
        stated = [slide for slide in self._slides if slide.resolution.place == "--slide-mpp"]
        told = []
        if self.left_out:
            reasons = [f"{name} {why}" for name, why in self.left_out.items()]
            rest = f"; and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
            told.append(
                f"{len(reasons)} of {len(self) + len(reasons)} slides were left out (--skip-unreadable): "
                f"{'; '.join(reasons[:NAMED])}{rest}."
            )
        if unsaid := [slide.name for slide in stated if slide.resolution.said is None]:
            told.append(
                f"The resolution of {len(unsaid)} slides is stated (--slide-mpp), as their files say none that can be: "
                f"{first_few(unsaid)}."
            )
        if other := [slide for slide in stated if slide.resolution.contradicts]:
            pairs = (f"{s.name} {s.resolution.mpp:g} and not {s.resolution.said:g}" for s in other)
            told.append(
                f"The resolution of {len(other)} slides is stated (--slide-mpp) and not what their files say, in "
                f"microns per pixel: {first_few(pairs)}."
            )
        return tuple(told)

    @property
    def told(self) -> list[str]:
        """Lines for whoever opens it: what lies beside the slides, and the remarks."""
        beside = ", ".join(f"{count} {suffix}" for suffix, count in self.beside.items())
        passed = [f"{self.path}: passed over, as they are no slides: {beside}"] if beside else []
        return [*passed, *self.remarks]

    @property
    def flags(self) -> str:
        own = {"--patch-size": (self.patch_size, PATCH_SIZE), "--mpp": (self.mpp, MPP)}
        own["--slide-mpp"] = (self._slide_mpp, None)
        given = [word for flag, (value, usual) in own.items() if value != usual for word in (flag, text_of(value))]
        return " ".join([super().flags, shlex.join([*given, *["--skip-unreadable"] * self._skips])]).strip()

    def shape(self, scan: int) -> tuple[int, int]:
        return self._slides[scan].level.shape

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

        _, file, slide, _, level = self._slides[scan]
        where = f"{shown(file)}: rows {row}..{row + height}, columns {col}..{col + width}"
        if row < 0 or col < 0 or row + height > level.shape[0] or col + width > level.shape[1]:
            raise UserError(
                f"{where} leave the slide, which is {level.shape[0]} x {level.shape[1]} at {self.mpp:g} microns per "
                "pixel"
            )
        where = f"{where} at {self.mpp:g} microns per pixel"
        left, top, right, bottom = (n * level.scale for n in (col, row, col + width, row + height))
        x, y = math.floor(left), math.floor(top)
        wide, high = math.ceil(right) - x, math.ceil(bottom) - y
        origin = round((level.start[0] + x) * level.downsample), round((level.start[1] + y) * level.downsample)
        try:
            image = slide.read_region(origin, level.number, (wide, high))
        except _openslide().OpenSlideError as error:
            raise UserError(f"{where} cannot be read ({error}); the file is damaged, fetch it again") from error
        if image.getextrema()[3][0] < SCANNED:
            raise NotScannedError(f"{where} hold no pixels: the scanner left them out")
        gray = image.convert("RGB").convert("L")
        if level.scale != 1:
            box = left - x, top - y, right - x, bottom - y
            gray = gray.resize((width, height), Image.Resampling.BOX, box=box)
        return np.asarray(gray)

    def test_patches(self) -> None:
        return None

    def _open(self, found: Found, stated: float | None) -> Opened:
        """Opens a slide.

        Raises:
            UnreadableError: it cannot be read, or not so.
        """
        if found.fault:
            raise UnreadableError(found.fault)
        openslide = _openslide()
        try:
            handle = openslide.OpenSlide(found.file)
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise UnreadableError(_guess(found.file, openslide.__library_version__)) from error
        except openslide.OpenSlideError as error:
            raise UnreadableError(f"is damaged, or not whole ({first_line(error)}); fetch it again") from error
        try:
            resolution = resolution_of(handle.properties, handle.dimensions, stated)
            level = self._choose_level(handle, resolution.mpp)
        except BaseException:
            handle.close()
            raise
        return Opened(found.name, found.file, handle, resolution, level)

    def _choose_level(self, slide: Any, mpp: float) -> Level:
        """The coarsest level that is no coarser than what is wanted."""
        best, bounds = None, _bounds_of(slide.properties, slide.dimensions)
        for number, (downsample, (right, bottom)) in enumerate(zip(slide.level_downsamples, slide.level_dimensions)):
            scale, left, top = self.mpp / (mpp * downsample), 0, 0
            scale = 1.0 if abs(scale - 1) < SAME else scale
            if bounds is not None:  # whole pixels of the level alone
                left, top = (math.ceil(side / downsample) for side in bounds[:2])
                right, bottom = (math.floor(side / downsample) for side in bounds[2:])
            if scale >= 1:
                shape = int((bottom - top) / scale), int((right - left) / scale)
                best = Level(number, downsample, scale, shape, (left, top))
        if best is None:
            of_files = slide.properties.get("openslide.vendor") == "dicom"  # which may be there in part
            raise UnreadableError(
                f"was scanned at {mpp:g} microns per pixel, coarser than the {self.mpp:g} asked for; use --mpp {mpp:g} "
                f"or more{', unless a file with a finer level is missing' if of_files else ''}"
            )
        if min(best.shape) < self.patch_size:
            raise UnreadableError(
                f"is {best.shape[0]} x {best.shape[1]} at {self.mpp:g} microns per pixel, smaller than a patch of "
                f"{self.patch_size}; use --patch-size"
            )
        return best

    def _leave_out(self, faults: Mapping[Found, str]) -> None:
        """Leaves slides out that cannot be read, or raises UserError for the first of them."""
        if not faults:
            return
        if not self._skips or not self._slides:
            (first, why), total = next(iter(faults.items())), len(faults) + len(self._slides)
            others = first_few(shown(Path(found.name)) for found in faults)
            counted = f"; {len(faults)} of {total} slides cannot be read ({others})" if total > 1 else ""
            remedy = ", and --skip-unreadable leaves such slides out" if self._slides else ""
            raise UserError(f"{shown(first.file)}: {why}{counted}{remedy}")
        self.left_out = {found.name: why.partition("; ")[0] for found, why in faults.items()}


def _bounds_of(properties: Mapping[str, str], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of the part of a slide that was scanned, in pixels of its finest level, if its file
    says so."""
    try:
        x, y, width, height = (int(properties[f"openslide.bounds-{each}"]) for each in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return None
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, size[0]), min(y + height, size[1])
    return (left, top, right, bottom) if right > left and bottom > top else None


def _guess(file: Path, version: str) -> str:
    """What to say of a file of which OpenSlide knows no format."""
    with file.open("rb") as stream:
        head = stream.read(512)
    if file.suffix.lower() in FOREIGN and head:
        return f"is of a format that OpenSlide {version} does not read; convert it to DICOM or a TIFF in tiles"
    if is_tiled(file) is False:
        return "is a TIFF in strips, which OpenSlide does not read; save it in tiles"
    if head.startswith(TIFF):
        return f"is a TIFF that was cut, or is none that OpenSlide {version} reads; fetch it again, or save it in tiles"
    return f"is {guess(head, file.stat().st_size, 'a whole slide that OpenSlide reads, or a damaged one')}"


def _openslide() -> Any:
    try:
        import openslide
    except ModuleNotFoundError as error:
        raise UsageError(
            'whole slides are read through OpenSlide, which is not installed: pip install "kimiajax[wsi]"'
        ) from error
    return openslide
