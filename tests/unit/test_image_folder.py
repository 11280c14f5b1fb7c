"""Folders of images: read right, or refused by name."""

import io
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.scan_files import tissue, write_scans

from kimiajax.data.export import export_patches
from kimiajax.data.manifest import read_manifest
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import read_patches
from kimiajax.data.patches import Rules, cut_patches
from kimiajax.data.sources.image_files import read_gray
from kimiajax.data.sources.image_folder import Folder, holds_splits
from kimiajax.errors import UserError


def write_folder(root, rng, scans=2, train="train", test="test", name="s{}", size=8, count=2):
    for top in (train, test):
        for scan in range(scans):
            folder = root / top / name.format(scan)
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(tissue(rng, size, size)).save(folder / f"p{k}.png")
    return root


@pytest.fixture
def root(tmp_path, rng):
    return write_folder(tmp_path / "set", rng)


@pytest.mark.parametrize(
    ("train", "test", "name"),
    [("train", "test", "s{}"), ("Training", "RGBPatches-test", "S{}"), ("Training", "Test patches", "{}")],
)
def test_scans_come_by_number_under_whatever_names_copies_have(tmp_path, rng, train, test, name):
    root = write_folder(tmp_path, rng, scans=11, train=train, test=test, name=name, count=1)
    with open_scans(root) as folder:
        assert isinstance(folder, Folder)
        assert (folder.names[2], folder.names[10]) == ("s2", "s10")
        manifest = cut_patches(folder)
        assert [patch.patch_id for patch in manifest.split("train")] == [f"train/s{k}/p0" for k in range(11)]
        pixels = folder.read_patch(manifest.split("test")[10])
    file = root / test / name.format(10) / "p0.png"
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(file)))


def test_files_come_by_the_numbers_in_their_names_at_any_depth(root):
    source = root / "train" / "s0" / "p0.png"
    for name in ("deep/200_0.png", "deep/1000_0.png", "deep/200_80.png"):
        (root / "train/s0" / name).parent.mkdir(exist_ok=True)
        (root / "train/s0" / name).write_bytes(source.read_bytes())
    ids = [patch.patch_id for patch in Folder(root).offered()[0].patches.values()]
    assert ids == [f"train/s0/{name}" for name in ("deep/200_0", "deep/200_80", "deep/1000_0", "p0", "p1")]


def add(name, content=b"x"):
    def change(root):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return change


def remove(name):
    def change(root):
        for file in (root / name).iterdir():
            file.unlink()
        (root / name).rmdir()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("train/s0"), "train folder has no images of s0"),
        (remove("test/s1"), "test folder has no images of s1"),
        (lambda root: [file.unlink() for file in (root / "train/s1").iterdir()], "s1: holds no images"),
        (lambda root: (root / "test").rename(root / "other"), "one folder with 'test' in its name, and has none"),
        (add("training/s0/a.png"), "and has train, training"),
        (add("train/extra/a.png"), "extra: is no scan's folder"),
        (add("train/readme.txt"), "readme.txt: is no scan's folder"),
        (add("train/s0/notes.txt"), "notes.txt: is no image"),
        (add("train/s01/a.png"), "a second folder of scan 1"),
        (add("train/s0/p0.jpg"), "p0.png: has the name of p0.jpg"),
        (lambda root: (root / "train/s0/again").symlink_to(root / "train"), "links back to"),
        (lambda root: (root / "train/s0/gone.png").symlink_to(root / "nowhere"), "which does not exist"),
    ],
)
def test_a_folder_laid_out_otherwise_is_refused_by_name(root, change, message):
    change(root)
    with pytest.raises(UserError, match=message):
        Folder(root)


def test_what_systems_leave_in_folders_is_passed_over(root):
    for name in ("train/.DS_Store", "train/s0/Thumbs.db", "test/s1/.hidden.png"):
        add(name)(root)
    assert len(cut_patches(Folder(root)).patches) == 8


def encoded(image, format="PNG", **options):
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def gray(size=8):
    return Image.fromarray(np.arange(size * size, dtype=np.uint8).reshape(size, size))


EXIF = Image.Exif()
EXIF[0x0112] = 6  # to be turned by 270 degrees
COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
LUMA = (COLOURS @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
OPAQUE = np.dstack([COLOURS, np.full((8, 8), 255, np.uint8)])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(gray()), np.asarray(gray())),
        (encoded(gray(), "BMP"), np.asarray(gray())),
        (encoded(gray(), "TIFF", compression="tiff_lzw"), np.asarray(gray())),
        (encoded(Image.fromarray(COLOURS)), LUMA),
        (encoded(Image.fromarray(OPAQUE)), LUMA),
        (encoded(gray(), exif=EXIF), np.rot90(np.asarray(gray()), -1)),
        (encoded(Image.fromarray(np.eye(8, dtype=bool))), np.eye(8, dtype=np.uint8) * 255),
        (encoded(gray().convert("P")), np.asarray(gray())),
    ],
    ids=["gray", "bmp", "tiff", "rgb", "opaque rgba", "exif", "bilevel", "palette"],
)
def test_images_are_read_right(tmp_path, content, expected):
    (tmp_path / "a.png").write_bytes(content)
    np.testing.assert_allclose(read_gray(tmp_path / "a.png").astype(int), expected, atol=1)


def jpeg():
    return encoded(Image.fromarray(COLOURS).resize((64, 64)), "JPEG")


def sixteen_bit_rgb():
    """A PNG that Pillow reads, cutting each value to 8 bits."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(8 * 6) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb():
    content = bytearray(encoded(gray(), "BMP"))
    content[18:26] = (60_000).to_bytes(4, "little") * 2  # width and height
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git-LFS pointer"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"", "an empty file"),
        (jpeg()[:-200], "a damaged image"),
        (encoded(gray())[:50], "a damaged image"),
        (encoded(Image.fromarray(COLOURS).convert("CMYK"), "JPEG"), "is of mode CMYK; save it as 8-bit gray or RGB"),
        (encoded(Image.fromarray(np.zeros((8, 8), np.uint16))), "more than 8 bits"),
        (encoded(Image.fromarray(np.zeros((8, 8), np.uint16)), "TIFF"), "more than 8 bits"),
        (encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "more than 8 bits"),
        (sixteen_bit_rgb(), "more than 8 bits"),
        (encoded(Image.fromarray(OPAQUE - np.uint8([0, 0, 0, 9]))), "is transparent in places"),
        (encoded(gray().convert("P"), transparency=5), "is transparent in places"),
        (bomb(), "far larger than a patch"),
    ],
    ids=["lfs", "html", "empty", "jpeg", "png", "cmyk", "16", "16 tiff", "float", "16 rgb", "rgba", "palette", "bomb"],
)
def test_images_that_would_have_to_be_guessed_at_are_refused_by_name(tmp_path, content, message):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_gray(tmp_path / "a.png")
    assert "a.png" in str(caught.value)


def test_images_of_another_size_are_refused_wherever_they_lie(root, rng):
    Image.fromarray(tissue(rng, 9, 9)).save(root / "train/s1/p1.png")
    with Folder(root) as folder, pytest.raises(UserError, match="train/s1/p1 has 9 x 9 pixels and other patches 8 x 8"):
        read_patches(folder, cut_patches(folder), 8)
    Image.fromarray(tissue(rng, 8, 9)).save(root / "test/s0/p0.png")
    with pytest.raises(UserError, match="is 8 x 9 pixels; patches are squares"):
        Folder(root)


def test_a_draw_from_a_folder_is_the_seeds(root):
    with Folder(root) as folder:
        draws = {cut_patches(folder, Rules(1, seed)).csv for seed in range(8)}
        assert cut_patches(folder, Rules(1, 3)).csv in draws
    assert 1 < len(draws) <= 4


def test_a_file_that_changes_changes_the_folders_identity(root):
    before = Folder(root).identity
    assert Folder(root).identity == before
    os.utime(root / "train/s0/p0.png", ns=(1, 1))
    assert Folder(root).identity != before


def test_exported_patches_are_the_scans_under_the_same_names(tmp_path, rng):
    scans = [tissue(rng, 16, 16) for _ in range(3)]
    test = rng.integers(0, 255, (5, 8, 8), dtype=np.uint8)
    path = write_scans(tmp_path / "scans.h5", scans, patches=test, targets=np.array([2, 0, 1, 2, 2]))
    with open_scans(path) as source:
        exported = export_patches(source, cut_patches(source, Rules(3)), tmp_path / "out")
        read = read_patches(source, exported, 8)
        with open_scans(tmp_path / "out") as folder:
            again = read_patches(folder, cut_patches(folder), 8)
            given = read_patches(folder, exported, 8)
        with pytest.raises(UserError, match="exists already"):
            export_patches(source, exported, tmp_path / "out")
    unplaced = [replace(patch, row=None, col=None) for patch in exported.split("train")]
    assert again.manifest.split("train") == unplaced
    np.testing.assert_array_equal(again.train, read.train)
    by_id = {patch.patch_id: pixels for patch, pixels in zip(again.manifest.split("test"), again.test)}
    for patch, pixels in zip(exported.split("test"), read.test):
        np.testing.assert_array_equal(by_id[patch.patch_id], pixels)
    np.testing.assert_array_equal(given.test, read.test)


def test_an_export_that_fails_leaves_no_folder(tmp_path, rng):
    with open_scans(write_scans(tmp_path / "scans.h5", [tissue(rng, 16, 16)])) as source:
        manifest = cut_patches(source)
        for name, message in (
            ("../../outside", "names have to begin with train/s0/"),
            ("train/s0/0_99", "leave scan0"),
        ):
            patch = replace(manifest.patches[0], patch_id=name, col=99 if name.endswith("99") else 0)
            with pytest.raises(UserError, match=message):
                export_patches(source, replace(manifest, patches=(patch, *manifest.patches[1:])), tmp_path / "out")
            assert not (tmp_path / "out").exists()
            assert not (tmp_path / "outside.png").exists()


def test_files_that_are_named_like_places_make_a_manifest_that_can_be_read_back(tmp_path, rng):
    root = write_folder(tmp_path / "set", rng)
    for split in ("train", "test"):
        (root / split / "s0" / "p0.png").rename(root / split / "s0" / "1_1.png")
    with Folder(root) as folder:
        read_patches(folder, cut_patches(folder), 8).manifest.write(tmp_path / "m.csv")
    assert len(read_manifest(tmp_path / "m.csv").patches) == 8


def test_what_lies_beside_the_splits_makes_no_slides_of_a_folder(root):
    for name in ("._x.tif", "overview.tif"):
        add(name)(root)
    (root / ".test_cache").mkdir()
    with open_scans(root) as folder:
        assert isinstance(folder, Folder)


def test_a_folder_named_by_a_large_number_is_refused_in_one_short_line(root):
    (root / "train" / "s1").rename(root / "train" / "20170101")
    with pytest.raises(UserError, match=r"train folder has no images of s1, 2, 3, \.\.\.") as caught:
        Folder(root)
    assert len(str(caught.value)) < 400


def write_images(root, rng, *folders):
    """An image in each folder, of pixels of its own."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(tissue(rng, 8, 8)).save(root / folder / "p0.png")
    return root


@pytest.mark.parametrize(
    ("train", "test", "below"),
    [
        ("s{}", "RGBPatches-test/s{}", ""),
        ("{}/of one/scan", "Test patches/S{}", "of one/scan/"),
        ("RGBPatches/s{}", "RGBPatches-test/s{}", ""),
        ("s{}/train", "s{}/test", ""),
        ("Scan{}/Training/deep", "Scan{}/Test patches", "deep/"),
    ],
)
def test_training_images_are_found_though_no_folder_at_the_top_is_named_so(tmp_path, rng, train, test, below):
    write_images(tmp_path, rng, *(folder.format(scan) for folder in (train, test) for scan in range(11)))
    assert holds_splits(tmp_path)
    with open_scans(tmp_path) as folder:
        assert isinstance(folder, Folder)
        assert folder.names == tuple(f"s{scan}" for scan in range(11))
        manifest = cut_patches(folder)
        expected = [f"train/s{scan}/{below}p0" for scan in range(11)] + [f"test/s{scan}/p0" for scan in range(11)]
        assert [patch.patch_id for patch in manifest.patches] == expected
        for split, where in (("train", train), ("test", test)):
            for scan in (2, 10):
                pixels = folder.read_patch(manifest.split(split)[scan])
                file = tmp_path / where.format(scan) / "p0.png"
                np.testing.assert_array_equal(pixels, np.asarray(Image.open(file)))


def test_a_folder_of_no_scans_is_not_taken_for_training(tmp_path, rng):
    write_images(tmp_path, rng, "RGBPatches/s0", "RGBPatches-test/s0", "thumbnails")
    with open_scans(tmp_path) as folder:
        assert [patch.patch_id for patch in cut_patches(folder).patches] == ["train/s0/p0", "test/s0/p0"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["a", "b", "test"], "must hold one folder with 'train' in its name, and has none"),
        (["a/train", "b/train"], "a: must hold one folder with 'test' in its name, as nothing else says"),
        (["train/s0"], "must hold one folder with 'test' in its name, and has none"),
        (["s0", "s1/train test"], "s0: must hold one folder with 'train' in its name, as nothing else says"),
        (["s0/train", "s1/train"], "s0: must hold one folder with 'test' in its name, as nothing else says"),
    ],
)
def test_plain_images_in_folders_are_not_taken_for_patches_of_scans(tmp_path, rng, folders, message):
    write_images(tmp_path, rng, *folders)
    assert not holds_splits(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        open_scans(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["s0/train", "s0/test", "s1/train"], "s1: must hold one folder with 'test' in its name, as nothing else says"),
        (["s0/train", "s0/test", "s1/test"], "s1: must hold one folder with 'train' in its name, as nothing else says"),
        (["s0/train", "s0/test", "s0/test2"], "s0: must hold one folder with 'test' in its name"),
        (["s0/train", "s0/test", "s2/train", "s2/test"], "train folder has no images of s1"),
        (["RGB/s0", "more/s0", "test/s0"], "must hold one folder with 'train' in its name, and has RGB, more; in it"),
        (["s0", "test/s0", "test2/s0"], "must hold one folder with 'test' in its name, and has test, test2; in it"),
        (["s0", "more/s0", "test/s0"], "more: is no scan's folder .*; move it elsewhere"),
        (["s0", "scan0", "test/s0"], "scan0: a second folder of scan 0; put their images together"),
        (["s0", "s1", "test/s0"], "test folder has no images of s1"),
        (["s0", "test/s0", "test/s1"], "train folder has no images of s1"),
        (["RGB/s0", "RGB/s1", "test/s0"], "test folder has no images of s1"),
    ],
)
def test_folders_that_leave_a_choice_or_lack_a_scan_are_refused_by_name(tmp_path, rng, folders, message):
    write_images(tmp_path, rng, *folders)
    assert holds_splits(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        open_scans(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


def test_no_other_program_is_run_for_an_image_whatever_it_is_called(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments: pytest.fail("it was run"))
    path = tmp_path / "patch.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 80\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(UserError, match=r"patch\.png: not a PNG, JPEG, TIFF or BMP image"):
        read_gray(path)
