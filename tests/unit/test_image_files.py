"""A sample of `support.image_cases`; `make test-faults` reads them all."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.image_cases import CASES, SMOOTH, encoded, turned, wrong

from kimiajax.data.sources.image_files import decode_gray, read_rgb
from kimiajax.errors import UserError

SAMPLE = (
    *("TIFF LZW tiles, 2 planes", "TIFF Deflate strips, white is 0", "TIFF JPEG tiles, 4:2:0, tables apart True"),
    *(
        "TIFF, signed integers, colours 1",
        "TIFF stack, ImageJ's",
        "TIFF pages, a thumbnail first",
        "TIFF LZW, turned 6",
    ),
    *("TIFF Deflate, a strip is missing", "TIFF pages, a mask", "JPEG, progressive, cut at 0.7 and closed"),
    *("JPEG, another behind", "PNG, a wrong checksum", "BMP, a short line", "GIF"),
)


@pytest.mark.parametrize("name", SAMPLE)
def test_an_image_is_read_as_it_was_drawn_or_refused_with_the_cause(tmp_path, name):
    assert not wrong(CASES[name], tmp_path / "p.png")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("PNG, gray", "read, though"),
        ("TIFF stack, two", "refused: "),
        ("TIFF, signed integers, colours 1", "lacks"),
        ("PNG, cut", "lacks"),
    ],
)
def test_a_wrong_reading_of_a_case_is_found(tmp_path, name, found):
    case = CASES[name]
    other = case._replace(pixels=None) if found == "read, though" else case._replace(words=("elsewhere",))
    other = case._replace(pixels=SMOOTH) if found == "refused: " else other
    assert found in wrong(other, tmp_path / "p.png")


def test_pixels_that_are_off_or_turned_are_found(tmp_path):
    case = CASES["PNG, gray"]
    assert wrong(case._replace(pixels=case.pixels.astype(int) + 1), tmp_path / "p.png") == "off by 1"
    assert wrong(case._replace(pixels=case.pixels.T), tmp_path / "p.png").startswith("read as (40, 48) in place of")


def test_a_colour_jpeg_that_is_upright_and_alone_is_kept_as_it_is(tmp_path):
    colours = np.dstack([SMOOTH, SMOOTH, SMOOTH])
    for name, content, kept in (
        ("upright", encoded(colours, "JPEG"), True),
        ("turned", encoded(colours, "JPEG", exif=turned(6)), False),
        ("gray", encoded(SMOOTH, "JPEG"), False),
        ("tiff", encoded(colours, "TIFF"), False),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        found, size = read_rgb(path)
        assert (found == content) == kept
        assert found.startswith(b"\xff\xd8" if kept else b"\x89PNG")
        assert size == (SMOOTH.T if name == "turned" else SMOOTH).shape


def test_a_colour_image_that_cannot_be_read_right_is_not_kept_either(tmp_path):
    path = tmp_path / "p.jpg"
    path.write_bytes(encoded(np.dstack([SMOOTH] * 3), "JPEG")[:-40] + b"\xff\xd9")
    with pytest.raises(UserError, match="its data end before the picture does"):
        read_rgb(path)


def damaged(kind, gray):
    """A file whose data do not hold what they should, although nothing of it is missing."""
    stream = io.BytesIO()
    if kind == "PNG":
        rows = b"".join(b"\0" + row.tobytes() for row in gray[:-8])
        Image.fromarray(gray).save(stream, "PNG")
        content = stream.getvalue()
        start = content.index(b"IDAT") - 4
        packed = zlib.compress(rows)
        chunk = b"IDAT" + packed
        return (
            content[:start]
            + struct.pack(">I", len(packed))
            + chunk
            + struct.pack(">I", zlib.crc32(chunk))
            + content[content.index(b"IEND") - 4 :]
        )
    Image.fromarray(gray).save(stream, "TIFF", compression=kind)
    content = bytearray(stream.getvalue())
    content[200:240] = bytes(40)
    return bytes(content)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("tiff_adobe_deflate", "strip 1 of 1 is cut"),
        ("packbits", "is cut or damaged"),
        ("PNG", "not hold all"),
    ],
)
def test_data_that_do_not_unpack_to_all_pixels_are_refused(rng, kind, told):
    gray = np.repeat(rng.integers(40, 180, (64, 32), dtype=np.uint8), 2, axis=1)
    with pytest.raises(UserError, match=told):
        decode_gray(damaged(kind, gray), "a")
