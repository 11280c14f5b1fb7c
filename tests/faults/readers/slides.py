"""Folders of DICOM files."""

from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from support.dicom_slides import write_head

from faults.readers.fuzzing import BLOWS, asked, damaged, fuzz
from kimiajax.data.sources.slide_folder import contents_of

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


def see_slides(path):
    """Looks through a folder of one DICOM file, which is a slide, has a fault in a line, or is about slides."""
    contents = contents_of(path)
    assert len(contents.slides) + len(contents.beside) == 1
    for slide in contents.slides:
        assert len(slide.fault.splitlines()) <= 1
        assert slide.fault == "" or len(slide.fault) < 300
    return contents


def heads_of_dicom(folder):
    """The number of inputs."""
    file = folder / "slides" / "a.dcm"
    file.parent.mkdir(exist_ok=True)
    whole = [write_head(file, syntax).read_bytes() for syntax in SYNTAXES]

    def see(blows):
        file.write_bytes(damaged(blows, whole))
        asked(lambda: see_slides(file.parent), file)

    return fuzz(see, BLOWS)
