"""Images that would have to be guessed at, and what lies in the place of data."""

import io
import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from support.image_cases import TURNS, turned

from faults.data.planting import (
    COMMANDS,
    FLOORS,
    GRAY,
    JPEG,
    READERS,
    SIZE,
    audited,
    encoded,
    nothing_prepared,
    preparation,
)
from faults.harness import ask, refused
from kimiajax.data.manifest import read_manifest
from kimiajax.data.sources.image_files import read_gray

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 29409000000\n"
PAGE = b"\n<!DOCTYPE html><html><body>Sign in to go on</body></html>"


def png(width, height, bits, colour, data):
    """A PNG by its header and its data, whether they fit or not."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def flipped(content):
    """With one bit in its middle turned over."""
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 16]) + content[len(content) // 2 + 1 :]


RGB = np.random.default_rng(2).integers(40, 180, (SIZE, SIZE, 3), dtype=np.uint8)
RGB_JPEG = encoded(RGB, "JPEG")
CORNER = np.dstack([RGB, np.where(np.arange(SIZE * SIZE) < 9, 0, 255).astype(np.uint8).reshape(SIZE, SIZE)])
DAMAGED, REMEDY = ("a damaged image (", "fetch it again"), "save it as 8-bit gray or RGB"
IMAGES = {
    "corrupt": (flipped(encoded(GRAY)), DAMAGED),
    "truncated PNG": (encoded(GRAY)[:3000], DAMAGED),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], DAMAGED),
    "truncated JPEG with its end mark": (JPEG[: len(JPEG) // 2] + b"\xff\xd9", DAMAGED),
    "truncated colour JPEG with its end mark": (RGB_JPEG[: len(RGB_JPEG) // 2] + b"\xff\xd9", DAMAGED),
    "empty": (b"", ("an empty file; fetch it again",)),
    "16 bits": (encoded(GRAY.astype(np.uint16) * 257), ("has more than 8 bits a channel", REMEDY)),
    "16 bits of colour": (png(SIZE, SIZE, 16, 2, bytes(SIZE * (1 + 6 * SIZE))), ("more than 8 bits a channel", REMEDY)),
    "transparent": (encoded(CORNER), ("is transparent in places, and nothing says over what", REMEDY)),
    "CMYK": (encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), ("is of mode CMYK", REMEDY)),
    "1 x 1": (encoded(GRAY[:1, :1]), ("is 1 x 1 pixels, too small for a patch; fetch it again",)),
    "bomb": (png(50_000, 50_000, 8, 0, bytes(9)), ("claims to be far larger than a patch (Image size (2500000000",)),
    "smaller bomb": (png(10_000, 10_000, 8, 0, bytes(9)), ("claims to be far larger than a patch", "fetch it again")),
}


@pytest.mark.fault("images")
@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize(("content", "words"), IMAGES.values(), ids=IMAGES)
def test_an_image_that_would_have_to_be_guessed_at_is_refused_by_name(images, refuses, command, content, words):
    bad = images / "train" / "s1" / "p1.png"
    bad.write_bytes(content)
    refuses(command, images, f"{bad}: ", *words)


@pytest.mark.fault("images")
@pytest.mark.parametrize("name", ["test/s0/p0.png", "test/s1/p1.png"])  # the first tells the size of all
@pytest.mark.parametrize(("content", "words"), IMAGES.values(), ids=IMAGES)
def test_so_is_one_among_the_test_patches(images, refuses, name, content, words):
    (images / name).write_bytes(content)
    refuses("table", images, f"{images / name}: ", *words)


@pytest.mark.fault("images")
@pytest.mark.parametrize("command", ["features", "predict"])
@pytest.mark.parametrize(("content", "words"), IMAGES.values(), ids=IMAGES)
def test_so_is_one_that_is_given_alone(tmp_path, refuses, command, content, words):
    (tmp_path / "p.png").write_bytes(content)
    refuses(command, tmp_path / "p.png", f"{tmp_path / 'p.png'}: ", *words)


@pytest.mark.fault("images")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_whatever_other_threads_do_with_warnings(tmp_path, refuses, monkeypatch):
    monkeypatch.setattr(warnings, "simplefilter", lambda *_: None)
    (tmp_path / "p.png").write_bytes(IMAGES["smaller bomb"][0])
    refuses("features", tmp_path / "p.png", f"{tmp_path / 'p.png'}: ", "(10000 x 10000 pixels); fetch it again")


@pytest.mark.fault("images")
def test_nor_does_it_help_that_a_program_took_pillows_own_limit_away(tmp_path, refuses, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "p.png").write_bytes(IMAGES["smaller bomb"][0])
    refuses("features", tmp_path / "p.png", f"{tmp_path / 'p.png'}: ", "(10000 x 10000 pixels); fetch it again")


def with_exif_up_to(end_of_it):
    """A JPEG with what its camera wrote, of which it is turned, up to a place."""
    exif = turned(6)
    exif[0x010E] = "a description of some length"
    content = encoded(GRAY, "JPEG", exif=exif)
    start = content.index(b"\xff\xe1") + 2
    end = start + int.from_bytes(content[start : start + 2], "big")
    cut = content[start + 2 : end][:end_of_it]
    return content[:start] + (len(cut) + 2).to_bytes(2, "big") + cut + content[end:]


@pytest.mark.fault("images")
@pytest.mark.filterwarnings("default:.*:UserWarning:PIL")
def test_a_picture_of_which_nobody_knows_which_way_is_up_is_refused(tmp_path, refuses):
    path = tmp_path / "p.jpg"
    path.write_bytes(with_exif_up_to(20))
    refuses("features", path, f"{path}: a damaged image (its camera's data break off", "which way is up); fetch it")


def with_malformed_second_picture():
    """A JPEG after which a camera put a second picture, and says wrongly where."""
    stream = io.BytesIO()
    Image.fromarray(GRAY).save(stream, "MPO", save_all=True, append_images=[Image.fromarray(GRAY)])
    content = stream.getvalue()
    place = content.index(b"MPF\0") + 8
    return content[:place] + b"\0\0\0\7" + content[place + 4 :]


@pytest.mark.fault("images")
@pytest.mark.filterwarnings("default:.*:UserWarning:PIL")
@pytest.mark.parametrize(
    ("content", "pixels"),
    [(lambda: with_exif_up_to(-20), np.rot90(GRAY, -1)), (with_malformed_second_picture, GRAY)],
    ids=["Exif", "a second picture"],
)
def test_what_a_camera_wrote_beside_the_picture_may_be_damaged(tmp_path, content, pixels):
    (tmp_path / "p.jpg").write_bytes(content())
    assert np.abs(read_gray(tmp_path / "p.jpg").astype(int) - pixels).mean() < 9  # JPEG's own loss, of noise


@pytest.mark.fault("images")
@pytest.mark.parametrize(("content", "words"), IMAGES.values(), ids=IMAGES)
def test_no_set_is_prepared_of_such_an_image(images, tmp_path, content, words):
    bad = images / "train" / "s1" / "p1.png"
    bad.write_bytes(content)
    ended = preparation(images, tmp_path / "data", "--allow-unverified", name="kimia_path24c")
    refused(ended, f"{bad}: ", *words)
    assert nothing_prepared(tmp_path / "data")


@pytest.mark.fault("images")
def test_an_audit_names_an_image_that_cannot_be_read(images, tmp_path):
    bad = images / "train" / "s1" / "p1.png"
    bad.write_bytes(IMAGES["truncated JPEG"][0])
    assert f"{bad}: a damaged image" in audited(images, tmp_path / "audit", "reading")["reading"]["detail"]


@pytest.mark.fault("images")
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_that_a_camera_turned_are_turned_upright(images, tmp_path, kind, split):
    upright = {}
    for value, turn in TURNS.items():
        content = encoded(GRAY, kind, exif=turned(value))
        (images / split / "s1" / f"t{value}.png").write_bytes(content)
        upright[value] = turn(np.asarray(Image.open(io.BytesIO(content))))
    assert ask("data", "export", "--scans", images, "--out", tmp_path / "out").status == 0
    for value, pixels in upright.items():
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / split / "s1" / f"t{value}.png")), pixels)
    pixels = set()
    for given in (images, tmp_path / "out"):
        ended = ask("table", "quick", "--scans", given, "--out", given.with_suffix(".run"), *FLOORS[:-1], "all")
        assert ended.status == 0, ended
        pixels.add(read_manifest(given.with_suffix(".run") / "manifest.csv").pixels_sha256)
    assert len(pixels) == 1


# pointers

STRANGERS = {
    "a Git-LFS pointer": (POINTER, "a Git-LFS pointer, not the file itself; fetch it with `git lfs pull`"),
    "a web page": (PAGE, "a web page saved under that name; download the file itself"),
}


@pytest.mark.fault("pointers")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("content", "told"), STRANGERS.values(), ids=STRANGERS)
def test_what_lies_in_place_of_the_scan_file_is_recognised(file, refuses, command, content, told):
    file.write_bytes(content)
    refuses(command, file, f"{file}: {told}")


@pytest.mark.fault("pointers")
@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("name", ["train/s1/p1.png", "test/s0/p0.png"])
@pytest.mark.parametrize(("content", "told"), STRANGERS.values(), ids=STRANGERS)
def test_what_lies_in_place_of_an_image_is_recognised(images, refuses, command, name, content, told):
    (images / name).write_bytes(content)
    refuses(command, images, f"{images / name}: {told}")


@pytest.mark.fault("pointers")
@pytest.mark.parametrize(("content", "told"), STRANGERS.values(), ids=STRANGERS)
def test_an_audit_says_what_lies_in_place_of_the_data(file, images, tmp_path, content, told):
    file.write_bytes(content)
    assert audited(file, tmp_path / "audit", "layout")["layout"]["detail"] == f"{file}: {told}"
    bad = images / "train" / "s1" / "p1.png"
    bad.write_bytes(content)
    assert audited(images, tmp_path / "audit", "reading")["reading"]["detail"] == f"{bad}: {told}"


@pytest.mark.fault("pointers")
@pytest.mark.parametrize(("content", "told"), STRANGERS.values(), ids=STRANGERS)
def test_what_lies_in_place_of_the_official_file_is_recognised(manual, tmp_path, content, told):
    (manual / "Kimia_Path24.h5").write_bytes(content)
    refused(preparation(manual, tmp_path / "data", "--allow-unverified"), f"{manual / 'Kimia_Path24.h5'}: {told}")
    assert nothing_prepared(tmp_path / "data")


@pytest.mark.fault("pointers")
@pytest.mark.parametrize("instead", ["of everything", "of one split", "of an image"])
@pytest.mark.parametrize(("content", "told"), STRANGERS.values(), ids=STRANGERS)
def test_what_lies_in_place_of_the_colour_releases_archive_is_recognised(images, tmp_path, instead, content, told):
    bad = images / {"of an image": "train/s1/p1.png"}.get(instead, "KIMIAPath24RGB.zip")
    if instead != "of an image":
        for split in ("train", "test") if instead == "of everything" else ("train",):
            shutil.rmtree(images / split)
    bad.write_bytes(content)
    ended = preparation(images, tmp_path / "data", "--allow-unverified", name="kimia_path24c")
    refused(ended, f"{bad}: {told}")
    assert nothing_prepared(tmp_path / "data")
