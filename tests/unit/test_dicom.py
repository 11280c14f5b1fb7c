"""The heads of DICOM files, as pydicom writes them in every way."""

import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from support.dicom_slides import SMALL, write_head

from kimiajax.data.sources.dicom import WHOLE_SLIDE, is_dicom, read_instance
from kimiajax.errors import UserError


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_head_is_read_in_every_syntax_past_sequences_of_untold_length(tmp_path, syntax):
    file = write_head(tmp_path / "a.dcm", syntax)
    assert read_instance(file) == (WHOLE_SLIDE, "VOLUME", "1.2.4", "1.2.5", True)


def test_pixels_that_are_not_all_there_are_noticed(tmp_path):
    file = write_head(tmp_path / "a.dcm")
    file.write_bytes(file.read_bytes()[: -3 * SMALL * SMALL])
    assert not read_instance(file).whole


@pytest.mark.parametrize(
    ("kind", "told", "beside"),
    [
        ("1.2.840.10008.5.1.4.1.1.2.1", "a CT image", False),
        ("1.2.840.10008.5.1.4.1.1.20", "a DICOM file of another kind ('1.2.840.10008.5.1.4.1.1.20')", False),
        ("1.2.840.10008.5.1.4.1.1.77.1.2", "a photograph, or one field of a microscope", False),
        ("1.2.840.10008.5.1.4.1.1.91.1", None, True),
        ("1.2.840.10008.1.3.10", None, True),
    ],
)
def test_files_of_other_kinds_are_told_apart(tmp_path, kind, told, beside):
    instance = read_instance(write_head(tmp_path / "a.dcm", kind=kind))
    assert (instance.is_slide, instance.is_level, instance.is_beside) == (False, False, beside)
    assert told in (None, instance.told)


@pytest.mark.parametrize("role", ["LABEL", "OVERVIEW", "THUMBNAIL"])
def test_small_images_are_no_levels(tmp_path, role):
    instance = read_instance(write_head(tmp_path / "a.dcm", ImageType=["ORIGINAL", "PRIMARY", role]))
    assert (instance.is_slide, instance.is_level) == (True, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "an empty file"),
        (lambda content: b"hello", "not a DICOM file"),
        (lambda content: content[:140], "breaks off in its head"),
        (lambda content: content[:400], "breaks off in its head"),
        (lambda content: content[:132] + bytes(4000), "breaks off in its head"),
    ],
)
def test_a_file_that_does_not_say_what_it_is_is_refused(tmp_path, change, message):
    file = write_head(tmp_path / "a.dcm")
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=message):
        read_instance(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"syntax": DeflatedExplicitVRLittleEndian}, "deflated as a whole"),
        ({"SeriesInstanceUID": ""}, "does not say which series"),
        ({"depth": 40}, "breaks off in its head"),
    ],
)
def test_a_file_that_opens_in_no_way_known_here_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        read_instance(write_head(tmp_path / "a.dcm", **options))


def test_a_file_is_known_by_its_mark_or_its_suffix(tmp_path):
    assert is_dicom(write_head(tmp_path / "1.2.3"))
    (tmp_path / "empty.DCM").touch()
    (tmp_path / "text").write_text("text")
    assert [is_dicom(tmp_path / name) for name in ("empty.DCM", "text", "absent")] == [True, False, False]
