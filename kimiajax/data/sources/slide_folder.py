"""What a folder of whole slides holds: the slides, what may lie beside them, and what must not.

A slide is a file, with its data in it or in a folder or files beside it; or it is the files of a DICOM series, which
lie among others or in a folder of their own.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kimiajax.data.sources.dicom import SUFFIXES as DICOM
from kimiajax.data.sources.dicom import Instance, is_dicom, read_instance
from kimiajax.data.sources.image_files import IMAGES
from kimiajax.data.sources.source import UnreadableError, is_ignored, walk
from kimiajax.errors import UserError
from kimiajax.text import first_few, shown

SUFFIXES = (
    *(".svs", ".tif", ".tiff", ".btf", ".tf8", ".ndpi", ".scn", ".bif"),  # kinds of TIFF
    *(".mrxs", ".svslide", ".vms", ".vmu", ".czi"),
)
FOREIGN = (".vsi", ".isyntax", ".kfb", ".tmap", ".sdpc", ".zvi", ".lif")  # slides that OpenSlide may not read
OF_FILES = (".vms", ".vmu")  # texts that name the files with the pixels
LARGEST = 2**20  # bytes of these
DATA = "Slidedat.ini"  # in the folder of an .mrxs
PICTURES = (*IMAGES, ".gif", ".webp", ".jp2", ".heic")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".aria2")
STRANGE = (*PICTURES, *ARCHIVES, *UNFINISHED, ".h5", ".hdf5")  # but for those of SUFFIXES
DICOMDIR = "DICOMDIR"
TILE_WIDTH = 322  # the TIFF tag that a picture stored in tiles has


class Found(NamedTuple):
    """A slide in a folder.

    Attributes:
        name: its file's or its folder's, without the suffix.
        file: what OpenSlide is to open.
        fault: what already shows that it cannot be read, and what to do; none where nothing does.
    """

    name: str
    file: Path
    fault: str = ""


class Contents(NamedTuple):
    """What a folder holds.

    Attributes:
        slides: in the order of their names.
        beside: files that are passed over: annotations, reports, whatever is neither a slide nor an image.
        strange: files that must not be passed over, since they may be meant as slides.
    """

    slides: list[Found]
    beside: list[Path]
    strange: list[Path]

    def counted(self) -> dict[str, int]:
        """How many files lie beside the slides, by suffix."""
        return dict(sorted(Counter(file.suffix.lower() or file.name for file in self.beside).items()))

    def refuse_strange(self) -> None:
        """Raises UserError for the first file that must not lie there."""
        for file in self.strange:
            suffix = file.suffix.lower()
            if suffix in ARCHIVES:
                raise UserError(f"{shown(file)}: is an archive; unpack it, or move it elsewhere")
            if is_slide(file):
                raise UserError(
                    f"{shown(file)}: is a slide in a folder, and others lie at the top; put all in one place"
                )
            if suffix in UNFINISHED:
                raise UserError(f"{shown(file)}: is a download that did not end; fetch it again, or remove it")
            raise UserError(f"{shown(file)}: is no slide ({', '.join((*SUFFIXES, *DICOM))}); move it elsewhere")


def contents_of(folder: Path) -> Contents:
    """Looks through a folder, and for DICOM files through those in it; where it holds no slide itself, for any slides
    there that are not called like images."""
    found, beside, strange, dicom = list[Found](), list[Path](), list[Path](), list[Path]()
    entries = sorted(entry for entry in folder.iterdir() if not is_ignored(entry.name))
    files = [entry for entry in entries if entry.is_file()]
    parts = {part for file in files if file.suffix.lower() in OF_FILES for part in _parts_of(file).values()}
    for file in files:
        suffix = file.suffix.lower()
        if file.name in parts:
            continue
        if suffix in (*SUFFIXES, *FOREIGN):
            found.append(Found(file.stem, file, lacks(file)))
        elif suffix in STRANGE:
            strange.append(file)
        elif is_dicom(file):
            dicom.append(file)
        else:
            beside.append(file)
    series = _of_dicom(folder, dicom, beside, top=True)
    if len(series) == 1 < len(dicom) and not found:
        series = [series[0]._replace(name=folder.name)]
    own = {file.stem for file in files if file.suffix.lower() in (".mrxs", *OF_FILES)}  # folders with their data
    inner = [each for entry in entries if entry.is_dir() and entry.name not in own for each in _folders(entry)]
    within = [file for each in inner for file in _within(each)]
    if found or series:
        strange += within
    else:
        found = [Found(file.stem, file, lacks(file)) for file in within]
    for each in inner:
        series += _of_dicom(each, [file for file in sorted(each.iterdir()) if _may_be_dicom(file)], beside)
    if not series:
        directories = [file for file in beside if file.name.upper() == DICOMDIR]
        series = [Found(file.name, file, "lists DICOM files that are not here; copy these too") for file in directories]
    found = sorted([*found, *series], key=lambda slide: slide.file.relative_to(folder).as_posix())
    return Contents(_told_apart(folder, found), beside, strange)


def _within(folder: Path) -> list[Path]:
    """The slides in a folder within the folder, but for DICOM's. Of files that are called like images, which may be
    thousands of patches, the first tells what all are."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not is_ignored(file.name)]
    doubtful = [file for file in files if file.suffix.lower() in {*SUFFIXES} & {*IMAGES}]
    slides = doubtful if doubtful and is_tiled(doubtful[0]) else []
    return sorted([*slides, *(file for file in files if names_slide(file) and not is_dicom(file))])


def is_slide(file: Path) -> bool:
    """Whether a file is called like a slide, or is one that is called like an image too."""
    return names_slide(file) or (file.suffix.lower() in SUFFIXES and bool(is_tiled(file)))


def _told_apart(folder: Path, slides: list[Found]) -> list[Found]:
    """Slides of folders within the folder by their path where they share a name: "a/slide" and "b/slide"."""
    names = Counter(slide.name for slide in slides)

    def named(slide: Found) -> str:
        path = slide.file.parent.relative_to(folder)
        if names[slide.name] == 1 or not path.parts:
            return slide.name
        return (path if path.name == slide.name else path / slide.name).as_posix()

    return [slide._replace(name=named(slide)) for slide in slides]


def slides_in(folder: Path) -> list[Found]:
    """The slides in a folder, or what is called like some, in the order of their names."""
    return contents_of(folder).slides


def files_of(file: Path) -> set[Path]:
    """The files that a slide given by itself may be read from: of DICOM all beside it."""
    if is_dicom(file):
        return {other for other in file.parent.iterdir() if other.is_file() and _may_be_dicom(other)}
    parts = (file.parent / name for name in (_parts_of(file).values() if file.suffix.lower() in OF_FILES else ()))
    data = file.with_suffix("")
    return {file, *(part for part in parts if part.is_file()), *(walk(data) if data.is_dir() else ())}


def is_tiled(file: Path) -> bool | None:
    """Whether a TIFF stores its picture in tiles, or is far larger than a patch; None where Pillow cannot tell."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=("TIFF",)) as image:
                return TILE_WIDTH in getattr(image, "tag_v2", ())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True
    except Exception:  # whatever a damaged file makes Pillow raise
        return None


def names_slide(file: Path) -> bool:
    """Whether a file that is given by itself is called like a slide, and not like an image too."""
    return file.suffix.lower() in {*SUFFIXES, *FOREIGN, *DICOM} - {*IMAGES}


def _folders(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """A folder and all below it, but for links that lead back."""
    real = folder.resolve()
    if real in above:
        return
    yield folder
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not is_ignored(entry.name):
            yield from _folders(entry, (*above, real))


def _may_be_dicom(file: Path) -> bool:
    known = (*SUFFIXES, *FOREIGN, *STRANGE)
    return not is_ignored(file.name) and file.suffix.lower() not in known and file.is_file() and is_dicom(file)


def _shown(name: str) -> str:
    """A file's name for a message."""
    return shown(Path(name))


def _parts_of(file: Path) -> dict[str, str]:
    """The files that a .vms or a .vmu names, by what they are."""
    with file.open("rb") as stream:
        lines = (line.partition("=") for line in stream.read(LARGEST).decode("latin-1").splitlines())
    return {key: value.strip() for key, _, value in lines if ("File" in key or "Image" in key) and value.strip()}


def lacks(file: Path) -> str:
    """What a slide lacks of what it consists of besides its file."""
    suffix, folder = file.suffix.lower(), file.with_suffix("")
    if suffix == ".mrxs" and not (folder / DATA).is_file():
        where = f"the folder {_shown(folder.name)} beside it"
        return f"has its pixels in {where}, and {DATA} is not there; copy that folder too"
    if suffix in OF_FILES:
        needed = [part for key, part in _parts_of(file).items() if key.startswith(("ImageFile", "MapFile"))]
        missing = [part for part in needed if not (file.parent / part).is_file()]
        return (
            f"consists of files that are not here ({first_few(map(_shown, missing))}); copy these too"
            if missing
            else ""
        )
    return ""


def _of_dicom(folder: Path, files: Sequence[Path], beside: list[Path], top: bool = False) -> list[Found]:
    """The slides that DICOM files of one folder make; files that make none are put beside."""
    series, broken = defaultdict[str, dict[Path, Instance]](dict), dict[Path, str]()
    for file in files:
        try:
            instance = read_instance(file)
        except UnreadableError as error:
            broken[file] = str(error)
            continue
        if instance.is_beside:
            beside.append(file)
        else:
            series[instance.series][file] = instance
    studies = {each.study for files in series.values() for each in files.values() if each.is_level}
    found = [slide for files in series.values() if (slide := _of_series(files, studies, beside)) is not None]
    if top or len(found) > 1:
        return [*found, *(Found(file.stem, file, f"is {why}") for file, why in broken.items())]
    for file, why in broken.items():  # in a slide's own folder they belong to it
        fault = f"is not whole: {_shown(file.name)} beside it is {why}" if found else f"is {why}"
        return [Found(folder.name, found[0].file if found else file, fault)]
    return [slide._replace(name=folder.name) for slide in found]


def _of_series(files: dict[Path, Instance], studies: set[str], beside: list[Path]) -> Found | None:
    """The slide that the files of a series make; none where they are sub-images of another slide, and so beside it."""
    levels = [file for file, instance in files.items() if instance.is_level]
    first, instance = next(iter(files.items()))
    if levels:
        cut = next((file for file, each in files.items() if not each.whole), None)
        fault = f"is not whole: {_shown(cut.name)} of its files lacks pixels at its end; fetch it again" if cut else ""
        return Found(levels[0].stem, levels[0], fault)
    if not instance.is_slide:
        return Found(first.stem, first, f"is {instance.told}, and no whole slide; move it elsewhere")
    if instance.study in studies:
        beside += files
        return None
    return Found(first.stem, first, "is a label or an overview, whose slide's own files are missing; copy these too")
