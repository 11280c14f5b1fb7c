"""How many microns a pixel of a slide is: what its file says, whether that can be, and what a person states.

A file may say it as its scanner does, in the tags of a TIFF, in OME's XML or in ImageJ's description. Image editors
write 72 pixels per inch and the like where they know nothing. The power of the objective is a hint, and never taken.
"""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kimiajax.checks import positive
from kimiajax.data.sources.source import UnreadableError
from kimiajax.errors import UserError
from kimiajax.io.tables import read_table
from kimiajax.text import first_few, quoted

SAME = 0.01  # resolutions that differ by less than this fraction are taken for one, and nothing is resampled
FINEST, COARSEST = 0.05, 10.0  # microns per pixel that the finest level of a slide may have
EDITORS = (72, 96, 100, 150, 200, 300, 600)  # pixels per inch that programs write where they know none
OF_TAGS = {"inch": 25400.0, "centimeter": 10000.0}  # units of TIFF, in microns
UNITS = {
    **dict.fromkeys(("µm", "μm", "um", "µ", "micron", "microns", "micrometer", "micrometre", "micrometers"), 1.0),
    **{"pm": 1e-6, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25400.0, "inch": 25400.0, "inches": 25400.0},
}
OBJECTIVE = ("openslide.objective-power", "aperio.AppMag", "hamamatsu.SourceLens")
AT_POWER_ONE = 10.0  # microns per pixel through an objective of power 1, about
LARGEST = 2**24  # characters of XML
STATE = "state it: --slide-mpp MICRONS, or --slide-mpp FILE.csv with columns slide and mpp"
COLUMNS = {"slide": "name the slides there, by file name", "mpp": "say there how many microns a pixel is"}


class Said(NamedTuple):
    """What a file says in one of its places.

    Attributes:
        across, down: microns per pixel; NaN where it is no number.
        place: "file", "tiff", "ome" or "imagej".
        words: the file's own, where they are no number.
    """

    across: float
    down: float
    place: str
    words: str = ""

    @property
    def can_be(self) -> bool:
        """Whether a slide's pixels can have these sides, though not whether they are square."""
        return all(FINEST <= side <= COARSEST for side in (self.across, self.down))

    @property
    def fault(self) -> str:
        """What is wrong with it, in words; none where nothing is."""
        across, down = self.across, self.down
        words = self.words or f"that a pixel is {across:g} microns"
        if not all(0 < side < math.inf for side in (across, down)):
            return f"says {words}, which no pixel is"
        if abs(across / down - 1) > SAME:
            return f"says that pixels are {across:g} by {down:g} microns; they must be square"
        per_inch = round(25400 / across)
        if per_inch in EDITORS and abs(25400 / across / per_inch - 1) < SAME:
            return f"says {per_inch} pixels per inch ({across:.1f} microns), as image editors write for any picture"
        return "" if self.can_be else f"says that a pixel is {across:.4g} microns, which no slide's finest level has"


class Resolution(NamedTuple):
    """Microns per pixel of a slide's finest level.

    Attributes:
        mpp: those that hold.
        place: where they come from: "file", "tiff", "ome", "imagej" or "--slide-mpp".
        said: those that the file says where others are stated; None where it says none that can be.
    """

    mpp: float
    place: str
    said: float | None = None

    @property
    def contradicts(self) -> bool:
        return self.said is not None and abs(self.mpp / self.said - 1) > SAME


def resolution_of(properties: Mapping[str, str], size: tuple[int, int], stated: float | None) -> Resolution:
    """Returns the resolution that holds for a slide.

    Args:
        properties: as OpenSlide gives them.
        size: width and height of the finest level, in pixels.
        stated: microns per pixel that a person states; they hold, whatever the file says.

    Raises:
        UnreadableError: none is stated, and the file says none, none that can be, or two.
    """
    said = list(_said(properties, size))
    first, *others = [each for each in said if each.can_be] or [None]
    if stated is not None:
        return Resolution(stated, "--slide-mpp", None if first is None else first.across)
    fault = said[0].fault if said else "does not say how many microns a pixel is"
    if first is None or (fault := first.fault):
        raise UnreadableError(f"{fault}; {_remedy(properties)}")
    other = next((each for each in others if each is not None and abs(each.across / first.across - 1) > SAME), None)
    if other is not None:
        raise UnreadableError(
            f"says in two places what a pixel is, {first.across:g} microns ({first.place}) and {other.across:g} "
            f"({other.place}); {STATE}"
        )
    return Resolution(first.across, first.place)


def _said(properties: Mapping[str, str], size: tuple[int, int]) -> Iterator[Said]:
    """What a file says, in the order in which it counts."""
    text = properties.get("tiff.ImageDescription", "")
    if properties.get("openslide.vendor") != "generic-tiff":
        scanner = next(_pair(properties, "openslide.mpp-x", "openslide.mpp-y", "file"), None)
        if scanner is not None:
            yield scanner
            if scanner.can_be:
                return  # tags may be left over from other programs
        elif told := next(((name, text) for name, text in properties.items() if name.lower().endswith(".mpp")), None):
            yield Said(math.nan, math.nan, "file", f"{told[0]} = {quoted(told[1])}")
    yield from _of_ome(text, size)
    imagej = _unit_of_imagej(text)
    unit = OF_TAGS.get(properties.get("tiff.ResolutionUnit", "")) if imagej is None else imagej
    for density in _pair(properties, "tiff.XResolution", "tiff.YResolution", "tiff" if imagej is None else "imagej"):
        if unit is not None:
            sides = (unit / each if each else math.inf for each in (density.across, density.down))
            yield Said(next(sides), next(sides), density.place)


def _pair(values: Mapping[str, str], x: str, y: str, place: str) -> Iterator[Said]:
    """Two numbers under two names, where both are there; NaN for what is none."""
    if x in values and y in values:
        yield Said(_number(values[x]), _number(values[y]), place)


def _number(text: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return math.nan


def _unit_of_imagej(text: str) -> float | None:
    """The unit in which ImageJ counts, in microns; None for pixels, and for what ImageJ did not write."""
    match = re.search(r"^unit=(.*)$", text, re.MULTILINE) if text.startswith("ImageJ=") else None
    name = "" if match is None else re.sub(r"\\u00b5|\ufffd", "µ", match[1].strip(), flags=re.IGNORECASE)
    return UNITS.get(name, UNITS.get(name.lower()))


def _of_ome(text: str, size: tuple[int, int]) -> Iterator[Said]:
    """What OME's XML says of the image of this size, or of its first."""
    if "<OME" not in text[:2000] or len(text) > LARGEST or "<!DOCTYPE" in text:
        return
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return
    pixels = [each.attrib for each in root.iter() if each.tag.rpartition("}")[2] == "Pixels"]
    own = [each for each in pixels if (each.get("SizeX"), each.get("SizeY")) == tuple(map(str, size))]
    for each in (own or pixels)[:1]:
        across, down = (UNITS.get(each.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY")
        for sides in _pair(each, "PhysicalSizeX", "PhysicalSizeY", "ome"):
            if across is not None and down is not None:
                yield Said(sides.across * across, sides.down * down, "ome")


def _remedy(properties: Mapping[str, str]) -> str:
    """What to do, with what the objective's power hints at."""
    power = next((power for name in OBJECTIVE if 0 < (power := _number(properties.get(name, ""))) < math.inf), None)
    if power is None:
        return STATE
    guess = f"{AT_POWER_ONE / power:.3g}"
    return f"it says objective power {power:g}, which is about {guess} microns; if that is so: --slide-mpp {guess}"


def _plausible(mpp: float, what: str) -> float:
    """The microns of a pixel that are stated.

    Raises:
        UserError: no slide's finest level has such pixels.
    """
    if not FINEST <= mpp <= COARSEST:
        raise UserError(f"{what} {mpp:g}: no slide has such pixels; give microns per pixel, {FINEST:g} to {COARSEST:g}")
    return mpp


def stated_for(slide_mpp: float | Path | None, slides: Sequence[tuple[str, Path]]) -> dict[str, float]:
    """The resolutions that are stated, by the slide's name.

    Args:
        slide_mpp: one for all slides; or a CSV file with columns slide and mpp, for those that it names.
        slides: each one's name, and its file's.

    Raises:
        UserError: a number that is none of a pixel's size, or a CSV file that cannot be read, or names a slide that is
            not there, or one twice; the message names the line.
    """
    if slide_mpp is None:
        return {}
    if not isinstance(slide_mpp, Path):
        number = _plausible(positive("--slide-mpp", slide_mpp), "--slide-mpp")
        return dict.fromkeys((name for name, _ in slides), number)
    table = read_table(slide_mpp, "resolutions", COLUMNS)
    called = defaultdict[str, set[str]](set)
    for name, file in slides:
        for each in (name, file.name, file.stem, f"{name}{file.suffix}"):
            called[each].add(name)
    stated: dict[str, float] = {}
    lines: dict[str, int] = {}
    for line, slide, text in zip(table.lines, table.columns["slide"], table.columns["mpp"]):
        where, names = f"{slide_mpp}, line {line}", sorted(called.get(slide.strip(), ()))
        if not slide.strip():
            raise UserError(f"{where}: names no slide; name one in the column slide")
        if not names:
            raise UserError(f"{where}: there is no slide {quoted(slide)} (there are {first_few(n for n, _ in slides)})")
        if len(names) > 1:
            raise UserError(f"{where}: {quoted(slide)} may be any of {first_few(names)}; name one of these")
        (name,) = names
        if name in stated:
            raise UserError(f"{where}: names the slide {quoted(slide)} again, after line {lines[name]}; keep one")
        number = float(table.number(text) or 0)
        if not 0 < number < math.inf:
            raise UserError(f"{where}: mpp {quoted(text)} of {name} is no number of microns above 0; correct it")
        stated[name], lines[name] = _plausible(number, f"{where}: mpp"), line
    return stated
