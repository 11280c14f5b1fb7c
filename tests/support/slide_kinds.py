"""Slides as people have them: by a name, how they are written, and what is asked of a folder that holds them."""

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pydicom
import tifffile
from PIL import Image
from support.dicom_slides import write_dicom
from support.slides import SIZE, aperio, cut, draw, ome, write_slide, write_tiff

from kimiajax.data.open_scans import open_scans

MEAN = 1.5  # gray values by which JPEG at 95 departs on the average; a shift by a pixel departs by more
PER_CM, PER_INCH = 20000, 50800  # pixels of 0.5 microns
CT = "1.2.840.10008.5.1.4.1.1.2"
drawn = functools.cache(draw)


class Kind(NamedTuple):
    """Slides of a kind.

    Attributes:
        write: writes one into a folder, by its number and its gray values.
        flags: what a command is given besides.
        place: where their resolution is said, as records name it.
        loss: whether their pixels are compressed with loss.
    """

    write: Callable[[Path, int, np.ndarray], Any]
    flags: Mapping[str, Any] = MappingProxyType({})
    place: str = "tiff"
    loss: bool = False


def tiff(name="slide{}.tif", *given, **options):
    return lambda folder, number, gray: write_tiff(folder / name.format(number), gray, *given, **options)


def svs(said="", *given, name="slide{}.svs"):
    return tiff(name, *(given or (None,)), description=aperio(said))


def imagej(unit, per_unit, of_tags="NONE"):
    return tiff("slide{}.tif", per_unit, of_tags, f"ImageJ=1.54f\nunit={unit}\n")


def in_folders(folder, number, gray, **options):
    return write_dicom(folder / f"slide{number}", gray, **options)


def flat(folder, number, gray):
    return write_dicom(folder, gray, levels=2, stem=f"slide{number}-")


def without_suffix(folder, number, gray):
    for k, file in enumerate(in_folders(folder, number, gray, levels=2)):
        file.rename(file.with_name(f"IM{k:06}"))


def listed(folder, number, gray):
    """As on a CD: a directory, and the files some folders below."""
    directory = pydicom.Dataset()
    meta = directory.file_meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    pydicom.dcmwrite(folder / "DICOMDIR", directory, enforce_file_format=True)
    (folder / "DICOM").mkdir(exist_ok=True)
    write_dicom(folder / "DICOM" / f"slide{number}", gray)


def rewritten(folder, number, gray, change):
    """DICOM files that pydicom writes again, after a change."""
    for file in in_folders(folder, number, gray, sub_images=False):
        content = pydicom.dcmread(file)
        change(content)
        content.save_as(file)


def uncompressed(content):
    content.decompress()
    content.PhotometricInterpretation = "RGB"


def in_own_folder(folder, number, gray):
    """As a download tool leaves them, with its logs beside."""
    (folder / f"4f-{number}" / "logs").mkdir(parents=True)
    (folder / f"4f-{number}" / "logs" / "slide.svs.parcel").write_text("log")
    svs("|MPP = 0.5", name=f"4f-{number}/slide.svs")(folder, number, gray)


def with_annotations(folder, number, gray):
    svs("|MPP = 0.5")(folder, number, gray)
    for name in (
        "slide{}.xml",
        "slide{}.geojson",
        "slide{}.qpdata",
        "notes.txt",
        "clinical.csv",
        "Thumbs.db",
        "README",
    ):
        (folder / name.format(number)).write_text("{}")


def table(text):
    """Flags that name a CSV file beside the folder, by what it holds."""
    return {"slide_mpp": f"slide,mpp\n{text}"}


READ = {
    "tiles, per cm": Kind(tiff("slide{}.tif", PER_CM, "CENTIMETER")),
    "tiles, per inch": Kind(tiff("slide{}.tif", PER_INCH, "INCH")),
    "tiles, gray": Kind(tiff("slide{}.tiff", PER_CM, "CENTIMETER", channels=1)),
    "tiles, BigTIFF": Kind(tiff("slide{}.btf", PER_CM, "CENTIMETER", bigtiff=True)),
    "a pyramid": Kind(lambda folder, n, gray: write_slide(folder / f"slide{n}.tif", gray, levels=3), loss=True),
    "72 dpi, stated": Kind(tiff("slide{}.tif", 72, "INCH"), {"slide_mpp": 0.5}, "--slide-mpp"),
    "no resolution, stated": Kind(tiff(), {"slide_mpp": 0.5}, "--slide-mpp"),
    "no resolution, in a CSV file": Kind(tiff(), table("slide0.tif,0.5\nslide1,0.5\n"), "--slide-mpp"),
    "another resolution, stated": Kind(
        tiff("slide{}.tif", 4 * PER_CM, "CENTIMETER"), {"slide_mpp": 0.5}, "--slide-mpp"
    ),
    "Aperio": Kind(svs("|AppMag = 20|MPP = 0.5"), place="file"),
    "Aperio, a comma": Kind(svs("|AppMag = 20|MPP = 0,5"), place="file"),
    "Aperio, named .tif": Kind(svs("|AppMag = 20|MPP = 0.5", name="slide{}.tif"), place="file"),
    "Aperio, in the tags alone": Kind(svs("|AppMag = 20", PER_CM, "CENTIMETER")),
    "Aperio, MPP 0 and the tags": Kind(svs("|AppMag = 20|MPP = 0", PER_CM, "CENTIMETER")),
    "Aperio, the objective stated": Kind(svs("|AppMag = 20"), {"slide_mpp": 0.5}, "--slide-mpp"),
    "OME": Kind(tiff("slide{}.ome.tif", description=ome('PhysicalSizeX="0.5" PhysicalSizeY="0.5"')), place="ome"),
    "OME, nm, 72 dpi": Kind(
        tiff(
            *("slide{}.ome.tif", 72, "INCH"),
            ome('PhysicalSizeX="500" PhysicalSizeXUnit="nm" PhysicalSizeY="500" PhysicalSizeYUnit="nm"'),
        ),
        place="ome",
    ),
    "ImageJ, microns": Kind(imagej("micron", 2), place="imagej"),
    "ImageJ, microns and inches": Kind(imagej("um", 2, "INCH"), place="imagej"),
    "ImageJ, an escape": Kind(imagej("\\u00B5m", 2), place="imagej"),
    "ImageJ, mm": Kind(imagej("mm", 2000), place="imagej"),
    "Aperio, a folder a slide": Kind(in_own_folder, place="file"),
    "annotations beside": Kind(with_annotations, place="file"),
    "DICOM, a folder a slide": Kind(in_folders, place="file", loss=True),
    "DICOM, flat": Kind(flat, place="file", loss=True),
    "DICOM, no suffix": Kind(without_suffix, place="file", loss=True),
    "DICOM, a directory": Kind(listed, place="file", loss=True),
    "DICOM, uncompressed": Kind(functools.partial(rewritten, change=uncompressed), place="file", loss=True),
    "DICOM, 0.25 stated as 0.5": Kind(
        functools.partial(in_folders, mpp=0.25), {"slide_mpp": 0.5}, "--slide-mpp", loss=True
    ),
}


def of_tags(per_unit, unit="INCH"):
    return lambda folder: tiff("slide0.tif", per_unit, unit)(folder, 0, drawn(0))


def said(kind, *given, **options):
    return lambda folder: kind(*given, **options)(folder, 0, drawn(0))


def held(name, content=b"x"):
    return lambda folder: (folder / name).write_bytes(content)


def good(folder):
    return write_tiff(folder / "slide0.tif", drawn(0), PER_CM, "CENTIMETER")


def beside(name, content=b"x"):
    return lambda folder: (good(folder), (folder / name).write_bytes(content))


def cut_pyramid(share):
    return lambda folder: cut(write_slide(folder / "slide0.tif", drawn(0)), share)


def dicom(change, **options):
    return lambda folder: change(write_dicom(folder / "slide0", drawn(0), levels=2, **options))


def with_class(folder):
    def change(content):
        content.SOPClassUID = content.file_meta.MediaStorageSOPClassUID = CT

    rewritten(folder, 0, drawn(0), change)


def pixels_missing(folder):
    """An .mrxs without the folder that has its pixels."""
    Image.fromarray(drawn(0)).save(folder / "slide0.mrxs", "JPEG")


def in_strips(folder):
    tifffile.imwrite(folder / "slide0.tif", drawn(0), photometric="minisblack")


def without_slides(folder):
    listed(folder, 0, drawn(0))
    shutil.rmtree(folder / "DICOM")


def two_sayings(folder):
    write_tiff(
        *(folder / "slide0.ome.tif", drawn(0), PER_CM, "CENTIMETER"),
        ome('PhysicalSizeX="0.25" PhysicalSizeY="0.25"'),
    )


STATE = "--slide-mpp"
VMS = b"[Virtual Microscope Specimen]\nImageFile=a.jpg\nMapFile=map.jpg\n"
# name -> what writes the slide, what the refusal says, and what a command is given besides
REFUSED = {
    "72 dpi": (of_tags(72), ("slide0.tif: says 72 pixels per inch (352.8 microns", STATE), {}),
    "96 dpi": (of_tags(96), ("says 96 pixels per inch", STATE), {}),
    "150 dpi": (of_tags(150), ("says 150 pixels per inch", STATE), {}),
    "300 dpi, per cm": (of_tags(118.11, "CENTIMETER"), ("says 300 pixels per inch", STATE), {}),
    "25 microns": (of_tags(400, "CENTIMETER"), ("a pixel is 25 microns, which no slide", STATE), {}),
    "2 nm": (of_tags(5_000_000, "CENTIMETER"), ("a pixel is 0.002 microns, which no slide", STATE), {}),
    "other across than down": (of_tags((20000, 10000), "CENTIMETER"), ("0.5 by 1 microns; they must", STATE), {}),
    "no unit": (of_tags(20000, "NONE"), ("does not say how many microns a pixel is", STATE), {}),
    "pixels as ImageJ's unit": (said(imagej, "pixel", 2), ("does not say how many microns", STATE), {}),
    "the objective alone": (
        said(svs, "|AppMag = 20"),
        ("objective power 20, which is about 0.5 microns; if that is so: --slide-mpp 0.5",),
        {},
    ),
    "MPP 0": (said(svs, "|AppMag = 40|MPP = 0"), ("0 microns, which no pixel is", "--slide-mpp 0.25"), {}),
    "MPP below 0": (said(svs, "|MPP = -0.5"), ("-0.5 microns, which no pixel is", STATE), {}),
    "MPP NaN": (said(svs, "|MPP = nan"), ("which no pixel is", STATE), {}),
    "MPP in words": (said(svs, "|MPP = half"), ("aperio.MPP = 'half', which no pixel is", STATE), {}),
    "two resolutions": (two_sayings, ("0.25 microns (ome) and 0.5 (tiff)", STATE), {}),
    "too coarse": (of_tags(10000, "CENTIMETER"), ("coarser than the 0.5 asked for; use --mpp 1 or more",), {}),
    "too small": (good, ("448 x 512 at 0.5 microns per pixel, smaller than a patch of 500",), {"patch_size": 500}),
    "a tenth of a TIFF": (cut_pyramid(0.1), ("slide0.tif: is a TIFF that was cut",), {}),
    "nine tenths of a TIFF": (cut_pyramid(0.9), ("is damaged, or not whole", "fetch it again"), {}),
    "empty": (held("slide0.svs", b""), ("slide0.svs: is an empty file; fetch it again",), {}),
    "a PNG of that name": (held("slide0.svs", b"\x89PNG\r\n\x1a\n"), ("not a whole slide that OpenSlide reads",), {}),
    "a Git-LFS pointer": (held("slide0.ndpi", b"version https://git-lfs"), ("is a Git-LFS pointer",), {}),
    "a TIFF in strips": (in_strips, ("is a TIFF in strips", "save it in tiles"), {}),
    "another format": (held("slide0.isyntax"), ("a format that OpenSlide", "convert it"), {}),
    "an .mrxs alone": (pixels_missing, ("the folder slide0 beside it", "copy that folder"), {}),
    "a .vms alone": (held("slide0.vms", VMS), ("not here (a.jpg, map.jpg)", "copy these"), {}),
    "an archive beside": (beside("slide1.zip"), ("slide1.zip: is an archive; unpack it",), {}),
    "an image beside": (beside("label.png"), ("label.png: is no slide", "move it elsewhere"), {}),
    "a download beside": (beside("slide1.svs.part"), ("slide1.svs.part: is a download that did not end",), {}),
    "DICOM, a header alone": (held("slide0.dcm", bytes(128) + b"DICM" + bytes(4000)), ("breaks off in its head",), {}),
    "DICOM, no DICOM": (held("slide0.dcm"), ("slide0.dcm: is not a DICOM file",), {}),
    "DICOM, a level empty": (
        dicom(lambda files: files[1].write_bytes(b"")),
        ("instance1.dcm beside it is an empty",),
        {},
    ),
    "DICOM, a level cut": (dicom(lambda files: cut(files[0], 0.6)), ("instance0.dcm of its files lacks pixels",), {}),
    "DICOM, the finest missing": (dicom(lambda files: files[0].unlink()), ("unless a file with a finer level is",), {}),
    "DICOM, the label alone": (
        dicom(lambda files: [file.unlink() for file in files[:-2]]),
        ("a label or an overview, whose slide's own files are missing",),
        {},
    ),
    "DICOM, a CT": (with_class, ("instance0.dcm: is a CT image, and no whole slide",), {}),
    "DICOM, a directory alone": (without_slides, ("DICOMDIR: lists DICOM files that are not here",), {}),
    "stated of another slide": (good, (".csv, line 2: there is no slide 'slide7'",), table("slide7,0.5\n")),
    "stated twice": (good, ("line 3: names the slide 'slide0.tif' again",), table("slide0,0.5\nslide0.tif,0.25\n")),
    "stated of none": (good, ("line 2: names no slide",), table(",0.5\n")),
    "stated as nothing": (good, ("line 2: mpp '' of slide0 is no number",), table("slide0,\n")),
    "stated as 0": (good, ("line 2: mpp '0' of slide0 is no number",), table("slide0,0\n")),
    "stated as a negative": (good, ("mpp '-0.5' of slide0 is no number",), table("slide0,-0.5\n")),
    "stated, all as 0": (good, ("--slide-mpp 0.0: must be above 0",), {"slide_mpp": 0.0}),
}


def given(folder: Path, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags as `open_scans` takes them; the text of a CSV file is written beside the folder."""
    text = flags.get("slide_mpp")
    if not isinstance(text, str):
        return {"patch_size": SIZE, **flags}
    stated = folder.with_suffix(".csv")
    stated.write_text(text)
    return {"patch_size": SIZE, **flags, "slide_mpp": stated}


def assert_read(kind: Kind, folder: Path) -> None:
    """Asserts that two slides of a kind are read as they were drawn, and that it is recorded where that is said."""
    folder.mkdir()
    for number in range(2):
        kind.write(folder, number, drawn(number))
    with open_scans(folder, **given(folder, kind.flags)) as slides:
        assert len(slides) == 2
        for number in range(2):
            assert slides.shape(number) == drawn(number).shape
            difference = np.abs(slides.read(number, 0, 0, *drawn(number).shape).astype(int) - drawn(number))
            assert difference.mean() < MEAN if kind.loss else not difference.any()
        recorded = slides.describe()["resolutions"].values()
        assert {(each["mpp"], each["from"]) for each in recorded} == {(0.5, kind.place)}
