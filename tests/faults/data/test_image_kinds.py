"""Images in some hundred ways of writing and damaging them: each is read as it was drawn, or refused with the cause."""

import pytest
from support.image_cases import CASES, wrong

from kimiajax.data.sources import tiff_pages
from kimiajax.data.sources.tiff_pages import picture_in


@pytest.mark.fault("image kinds")
@pytest.mark.parametrize("name", CASES)
def test_an_image_is_read_as_it_was_drawn_or_refused_with_the_cause(tmp_path, name):
    assert not wrong(CASES[name], tmp_path / "p.png")


# The checker


GUARDS = {  # what sees to it that nothing is read wrong, what takes its place, and what of the cases is then read
    "tags": ("tiff_picture.check_page", lambda page: None, "TIFF, signed"),
    "strips": ("tiff_picture._check_stretch", lambda *arguments: None, "TIFF raw, a strip is cut"),
    "pages": ("tiff_pages.picture_in", lambda content: (next(tiff_pages.pages_of(content)), None), "TIFF stack"),
    "masks": ("tiff_pages.picture_in", lambda content: (picture_in(content)[0], None), "TIFF pages, a mask"),
    "descriptions": ("tiff_pages._planes_of", lambda page: 1, "TIFF stack, ImageJ"),
    "one list of tags": ("tiff_picture.alone", lambda page: page.content, "TIFF raw, a plane of which white is 0"),
    "JPEG": ("image_files.check_pixels", lambda *arguments: None, "JPEG, sequential, cut"),
    "JPEG in TIFF": ("tiff_picture.check_pixels", lambda *arguments: None, "TIFF JPEG, a tile is cut"),
    "scans": ("jpeg_data.PROGRESSIVE", None, "JPEG, scans of"),
    "pictures behind": ("image_files._others_in", lambda *arguments: 0, "JPEG, another behind"),
    "PNG": ("image_files.colours_of_png", lambda content: None, "PNG, a wrong checksum"),
    "BMP": ("image_files.colours_of_bmp", lambda content: None, "BMP, a short line"),
}


@pytest.mark.fault("image kinds")
@pytest.mark.parametrize("name", GUARDS)
def test_a_reader_that_lacks_a_guard_is_caught(tmp_path, monkeypatch, name):
    guard, other, caught = GUARDS[name]
    monkeypatch.setattr(f"kimiajax.data.sources.{guard}", other)
    told = [wrong(case, tmp_path / "p.png") for each, case in CASES.items() if each.startswith(caught)]
    assert any(text.startswith(("read", "off")) for text in told), told
