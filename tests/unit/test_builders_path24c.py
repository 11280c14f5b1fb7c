"""Kimia Path24C, the colour release: prepared from whatever layout its copies have, or refused by name."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from support.slides import write_slide
from test_image_folder import encoded, sixteen_bit_rgb

from kimiajax import paper
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import read_patches
from kimiajax.data.patches import Rules, cut_patches
from kimiajax.data.sources.image_files import read_gray
from kimiajax.data.tfds import examples
from kimiajax.data.tfds.builders import KimiaPath24C
from kimiajax.data.tfds.datasets import Dataset, prepared_in, quiet_tfds
from kimiajax.data.tfds.prepare import prepare
from kimiajax.errors import UserError

NAME, SIZE, SCANS = "kimia_path24c", 16, 11
NAMES = ("90_0", "1000_0", "1000_90")  # in the order of their numbers
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
SCAN_FILE = b"\x89HDF\r\n\x1a\n" + bytes(99)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"

LAYOUTS = {  # folders above all, those of a scan's images for training and for test, and folders in these
    "RGBPatches-test": ("", "Training/s{}", "RGBPatches-test/s{}", ""),
    "Test patches": ("", "Training/s{}", "Test patches/s{}", ""),
    "bare numbers": ("", "Training/s{}", "Test-patches/{}", ""),
    "scans at the top": ("", "s{}", "Test patches/s{}", "of one/scan/"),
    "training by another name": ("", "RGBPatches/s{}", "RGBPatches-test/s{}", ""),
    "splits in scans": ("", "s{}/train", "s{}/test", ""),
    "one folder above": ("KIMIAPath24 RGB", "Training/s{}", "RGBPatches-test/s{}", ""),
    "two folders above": ("KIMIAPath24RGB_zip/KIMIAPath24 RGB", "Training/s{}", "RGBPatches-test/s{}", ""),
    "two above scans": ("KIMIAPath24RGB_zip/KIMIAPath24 RGB", "s{}", "RGBPatches-test/{}", "deep/"),
}


def colours(seed=0, height=SIZE, width=SIZE):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_release(root, layout="RGBPatches-test", train=(2, 2, 2), test=(2, 2, 2)):
    """A release of so many images of each scan: their files by patch id, in the order of the manifest."""
    above, *folders, below = LAYOUTS[layout]
    files = {}
    for split, folder, counts in zip(("train", "test"), folders, (train, test)):
        for scan, count in enumerate(counts):
            for name in NAMES[:count]:
                file = root / above / folder.format(scan) / f"{below}{name}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                colours(len(files)).save(file)
                files[f"{split}/s{scan}/{below}{name}"] = file
    return files


def prepare_any(manual_dir, data_dir):
    return prepare(NAME, manual_dir, data_dir, allow_unverified=True)


def opened(done):
    return open_scans(Dataset(done.full_name, done.path.parents[2]))


def records(done, **options):
    """The records of both splits as TFDS gives them, by patch id."""
    with quiet_tfds():
        builder = tfds.builder_from_directory(done.path)
        found = [each for split in ("train", "test") for each in builder.as_data_source(split, **options)]
    return {record["patch_id"].decode(): record for record in found}


def stored(done):
    """The images' bytes."""
    return {name: each["image"] for name, each in records(done, decoders={"image": tfds.decode.SkipDecoding()}).items()}


def is_left(data_dir):
    return prepared_in(data_dir) != [] or any(data_dir.rglob("incomplete.*"))


@pytest.fixture(scope="module", params=LAYOUTS)
def release(request, tmp_path_factory):
    """A release in each layout: the folder, its files by patch id, and what was prepared."""
    root = tmp_path_factory.mktemp("release")
    train, test = [2] * SCANS, [1 + scan % 2 for scan in range(SCANS)]
    files = write_release(root / "manual", request.param, train, test)
    return root / "manual", files, prepare_any(root / "manual", root / "data")


def test_every_layout_is_found_and_its_scans_come_by_number(release):
    manual_dir, files, done = release
    assert done.full_name == f"{NAME}/patch16_scans11:1.0.0"
    assert done.counts == {"train": 22, "test": 16}
    with open_scans(KimiaPath24C.find(manual_dir)) as folder, opened(done) as prepared:
        for source in (folder, prepared):
            assert source.names == tuple(f"s{scan}" for scan in range(SCANS))
            assert [patch.patch_id for patch in cut_patches(source).patches] == list(files)


def test_records_are_the_files_as_they_are_under_their_scans_labels(release):
    _, files, done = release
    found, images = records(done), stored(done)
    assert found.keys() == files.keys()
    for patch_id, file in files.items():
        record = found[patch_id]
        assert record["label"] == int(patch_id.split("/")[1].removeprefix("s"))
        assert record["image"].shape == (SIZE, SIZE, 3)
        np.testing.assert_array_equal(record["image"], np.asarray(Image.open(file)))
        assert images[patch_id] == file.read_bytes()
        assert images[patch_id].startswith(JPEG)
    with quiet_tfds():
        label = tfds.builder_from_directory(done.path).info.features["label"]
    assert (label.int2str(2), label.int2str(10)) == ("s2", "s10")


def test_every_draw_from_the_prepared_set_is_the_folders_own(release):
    manual_dir, _, done = release
    drawn = set()
    for seed in range(4):
        with open_scans(KimiaPath24C.find(manual_dir)) as folder, opened(done) as prepared:
            one, other = (read_patches(each, cut_patches(each, Rules(1, seed)), 16) for each in (folder, prepared))
        assert one.manifest.csv == other.manifest.csv
        np.testing.assert_array_equal(one.train, other.train)
        np.testing.assert_array_equal(one.test, other.test)
        drawn.add(one.manifest.csv)
    assert len(drawn) == 4


def alone(name, content):
    """The release's folder with nothing in it but a file."""

    def change(root):
        shutil.rmtree(root)
        root.mkdir()
        (root / name).write_bytes(content)

    return change


def spoil(name, content):
    return lambda root: (root / name).write_bytes(content)


def drop(*names):
    return lambda root: [shutil.rmtree(root / name) for name in names]


def a_zip():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("Training/s0/90_0.jpg", b"x")
    return content.getvalue()


FIRST, SAMPLED = "RGBPatches-test/s0/90_0.jpg", "Training/s1/90_0.jpg"  # read in opening, and to tell the space needed
UNSEEN, LAST = "Training/s1/1000_0.jpg", "RGBPatches-test/s2/1000_0.jpg"  # not read before records are written


@pytest.mark.parametrize(
    ("change", "named", "message"),
    [
        (alone("KIMIAPath24C.zip", POINTER), "KIMIAPath24C.zip", "a Git-LFS pointer.*`git lfs pull`"),
        (alone("KIMIAPath24C.zip", a_zip()), "KIMIAPath24C.zip", "an archive; unpack it there"),
        (
            alone("Kimia_Path24.h5", SCAN_FILE),
            "Kimia_Path24.h5",
            "a scan file and no folder of images",
        ),
        (alone(".DS_Store", b"x"), "", "must hold one folder with 'train' in its name, and has none"),
        (shutil.rmtree, "", "no such folder; give the one that holds the data set's files"),
        (spoil(FIRST, POINTER), FIRST, "a Git-LFS pointer, not the file itself; fetch it with `git lfs pull`"),
        (spoil(SAMPLED, POINTER), SAMPLED, "a Git-LFS pointer, not the file itself; fetch it with `git lfs pull`"),
        (spoil(UNSEEN, POINTER), UNSEEN, "a Git-LFS pointer, not the file itself; fetch it with `git lfs pull`"),
        (spoil(LAST, POINTER), LAST, "a Git-LFS pointer, not the file itself; fetch it with `git lfs pull`"),
        (spoil(UNSEEN, b"\n<!DOCTYPE html>"), UNSEEN, "a web page saved under that name; download the file itself"),
        (spoil(UNSEEN, b""), UNSEEN, "an empty file; fetch it again"),
        (spoil(UNSEEN, encoded(colours(), "JPEG")[:-60]), UNSEEN, "a damaged image .*; fetch it again"),
        (spoil(UNSEEN, bytes(800)), UNSEEN, "not a PNG, JPEG, TIFF or BMP image"),
        (spoil(UNSEEN, encoded(colours(0, 24, 24), "JPEG")), UNSEEN, "is 24 x 24 pixels and other patches 16 x 16"),
        (spoil(UNSEEN, encoded(colours(0, 16, 17), "JPEG")), UNSEEN, "is 16 x 17 pixels and other patches 16 x 16"),
        (spoil(FIRST, encoded(colours(0, 16, 17), "JPEG")), FIRST, "is 16 x 17 pixels; patches are squares"),
        (spoil("Training/s1/notes.txt", b"x"), "Training/s1/notes.txt", "is no image .*; move it elsewhere"),
        (drop("Training/s1"), "", "train folder has no images of s1 .*; add them"),
        (drop("RGBPatches-test/s1"), "", "test folder has no images of s1 .*; add them"),
        (drop("Training/s2"), "", "train folder has no images of s2 .*; add them"),
        (drop("RGBPatches-test/s2"), "", "test folder has no images of s2 .*; add them"),
        (lambda root: [file.unlink() for file in (root / "Training/s1").iterdir()], "Training/s1", "holds no images; "),
    ],
)
def test_a_release_that_is_not_whole_is_refused_by_name_and_leaves_no_set(tmp_path, change, named, message):
    write_release(tmp_path / "manual")
    change(tmp_path / "manual")
    with pytest.raises(UserError, match=message) as caught:
        prepare_any(tmp_path / "manual", tmp_path / "data")
    said = str(caught.value)
    assert f"{tmp_path / 'manual' / named}: " in said
    assert "\n" not in said
    assert not is_left(tmp_path / "data")


def test_a_folder_of_whole_slides_is_no_release(tmp_path):
    (tmp_path / "manual").mkdir()
    write_slide(tmp_path / "manual/a.tif", np.full((1100, 1100), 90, np.uint8))
    with pytest.raises(UserError, match=r"manual: a folder of whole slides, and no kimia_path24c"):
        prepare_any(tmp_path / "manual", tmp_path / "data")
    assert not is_left(tmp_path / "data")


@pytest.mark.parametrize("splits", [("Training",), ("RGBPatches-test",), ("Training", "RGBPatches-test")])
def test_a_release_that_lacks_a_split_is_refused(tmp_path, splits):
    write_release(tmp_path / "manual")
    drop(*splits)(tmp_path / "manual")
    with pytest.raises(UserError, match=r"must hold one folder with '(train|test)' in its name"):
        prepare_any(tmp_path / "manual", tmp_path / "data")
    assert not is_left(tmp_path / "data")


def test_a_refusal_among_many_shards_leaves_none_and_the_next_preparation_works(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "SHARD_BYTES", SIZE**2)
    files = write_release(tmp_path / "manual")
    spoilt = files["test/s2/1000_0"]
    content = spoilt.read_bytes()
    spoilt.write_bytes(content[:-60])
    with pytest.raises(UserError, match="a damaged image"):
        prepare_any(tmp_path / "manual", tmp_path / "data")
    assert not is_left(tmp_path / "data")
    spoilt.write_bytes(content)
    done = prepare_any(tmp_path / "manual", tmp_path / "data")
    assert done.counts == {"train": 6, "test": 6}
    assert is_left(tmp_path / "data")
    assert len(list(done.path.glob("*.array_record*"))) == 12
    assert stored(done) == {patch_id: file.read_bytes() for patch_id, file in files.items()}


def test_what_differs_from_the_published_counts_is_refused_unless_allowed_and_is_marked_then(tmp_path):
    write_release(tmp_path / "manual")
    counts = "has 6 training and 6 test patches of 3 scans, where 22,591 and 1,325 of 24 were published"
    with pytest.raises(UserError, match=f"{counts}.*go on with --allow-unverified, which marks every result"):
        prepare(NAME, tmp_path / "manual", tmp_path / "data")
    assert not is_left(tmp_path / "data")
    done = prepare_any(tmp_path / "manual", tmp_path / "data")
    assert done.unverified == f"{counts}; other numbers of test patches in s0, s1, s2, ..."
    with quiet_tfds():
        assert tfds.builder_from_directory(done.path).info.metadata["unverified"] == done.unverified
    with opened(done) as prepared:
        assert prepared.unverified == done.unverified
    with pytest.raises(UserError, match=counts):  # nor does the mark go when it is prepared again
        prepare(NAME, tmp_path / "manual", tmp_path / "data")


@pytest.fixture
def published(monkeypatch):
    """As if a release of 4 training and 4 test patches of 3 scans had been published."""
    monkeypatch.setitem(paper.TRAINING_PATCHES_PUBLISHED, "Kimia Path24C", 4)
    monkeypatch.setattr(paper, "TEST_PATCHES_PER_SCAN", (1, 2, 1))
    monkeypatch.setattr(paper, "TEST_PATCHES", 4)
    monkeypatch.setattr(paper, "NUM_SCANS", 3)


@pytest.mark.usefixtures("published")
def test_a_release_of_the_published_counts_needs_no_leave_and_carries_no_mark(tmp_path):
    write_release(tmp_path / "manual", train=(1, 2, 1), test=(1, 2, 1))
    done = prepare(NAME, tmp_path / "manual", tmp_path / "data")
    assert (done.full_name, done.unverified) == (f"{NAME}/patch16:1.0.0", None)
    with quiet_tfds():
        assert tfds.builder_from_directory(done.path).info.metadata["unverified"] is None
    with opened(done) as prepared:
        assert prepared.unverified is None
    assert prepare(NAME, tmp_path / "manual", tmp_path / "data") == done._replace(reused=True)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("train", "test", "problem"),
    [
        ((1, 1, 1), (1, 2, 1), "has 3 training and 4 test patches of 3 scans, where 4 and 4 of 3 were published;"),
        ((1, 2, 1), (1, 2, 2), "has 4 training and 5 test .*; other numbers of test patches in s2;"),
        ((1, 2, 1), (2, 1, 1), "has 4 training and 4 test .*; other numbers of test patches in s0, s1;"),
        ((2, 2), (1, 2), "has 4 training and 3 test patches of 2 scans.*; other numbers of test patches in s2;"),
        ((1, 1, 1, 1), (1, 2, 1, 1), "has 4 training and 5 test patches of 4 scans.*; other .* test patches in s3;"),
    ],
    ids=["training", "test", "of another scan", "last scan missing", "scan too many"],
)
def test_a_release_of_other_counts_is_refused_with_the_scans_that_differ(tmp_path, train, test, problem):
    write_release(tmp_path / "manual", train=train, test=test)
    with pytest.raises(UserError, match=f"{problem} fetch it again, or go on with --allow-unverified") as caught:
        prepare(NAME, tmp_path / "manual", tmp_path / "data")
    assert str(caught.value).startswith(f"{tmp_path / 'manual'}: ")
    assert not is_left(tmp_path / "data")
    assert prepare_any(tmp_path / "manual", tmp_path / "data").unverified is not None


def turned(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def with_alpha(alpha):
    return Image.fromarray(np.dstack([np.asarray(colours()), np.full((SIZE, SIZE), alpha, np.uint8)]))


@pytest.mark.parametrize(
    ("name", "content", "kept"),
    [
        ("a.jpg", encoded(colours(), "JPEG"), True),
        ("a.jpg", encoded(colours(), "JPEG", exif=turned(1)), True),
        ("a.jpeg", encoded(colours(), "PNG"), True),
        ("a.jpg", encoded(colours(), "JPEG", exif=turned(6)), False),
        ("a.png", encoded(colours(), "PNG", exif=turned(3)), False),
        ("a.jpg", encoded(colours().convert("L"), "JPEG"), False),
        ("a.bmp", encoded(colours(), "BMP"), False),
        ("a.tif", encoded(colours(), "TIFF"), False),
        ("a.png", encoded(colours().quantize(16), "PNG"), False),
        ("a.png", encoded(with_alpha(255), "PNG"), False),
        ("a.png", encoded(colours().convert("1"), "PNG"), False),
    ],
    ids=[
        *("jpeg", "upright exif", "png", "turned jpeg", "turned png", "gray jpeg", "bmp", "tiff"),
        *("palette", "opaque", "bilevel"),
    ],
)
def test_what_readers_may_take_otherwise_is_stored_as_an_upright_rgb_png(tmp_path, name, content, kept):
    files = write_release(tmp_path / "manual", train=(1, 1, 1), test=(1, 1, 1))
    file = tmp_path / "manual/Training/s1" / name
    file.write_bytes(content)
    done = prepare_any(tmp_path / "manual", tmp_path / "data")
    found = stored(done)
    assert found.keys() == {*files, "train/s1/a"}
    image = Image.open(io.BytesIO(found["train/s1/a"]))
    assert (found["train/s1/a"] == content) is kept
    assert kept or found["train/s1/a"].startswith(PNG)
    assert (image.mode, image.size, image.getexif().get(0x0112, 1)) == ("RGB", (SIZE, SIZE), 1)
    gray = read_gray(file)
    assert len(np.unique(gray)) > 1
    np.testing.assert_array_equal(np.asarray(image.convert("L")), gray)
    np.testing.assert_array_equal(records(done)["train/s1/a"]["image"], np.asarray(image))
    with opened(done) as prepared:
        (patch,) = [patch for patch in cut_patches(prepared).patches if patch.patch_id == "train/s1/a"]
        np.testing.assert_array_equal(prepared.read_patch(patch), gray)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(Image.fromarray(np.zeros((SIZE, SIZE), np.uint16))), "has more than 8 bits a channel"),
        (sixteen_bit_rgb(), "has more than 8 bits a channel"),
        (encoded(with_alpha(254)), "is transparent in places, and nothing says over what"),
        (encoded(colours().convert("CMYK"), "JPEG"), "is of mode CMYK"),
    ],
    ids=["16 gray", "16 rgb", "rgba", "cmyk"],
)
@pytest.mark.parametrize("name", [FIRST, UNSEEN])
def test_an_image_that_would_have_to_be_guessed_at_is_refused_by_name(tmp_path, name, content, message):
    write_release(tmp_path / "manual")
    (tmp_path / "manual" / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{message}; save it as 8-bit gray or RGB") as caught:
        prepare_any(tmp_path / "manual", tmp_path / "data")
    assert str(caught.value).startswith(f"{tmp_path / 'manual' / name}: ")
    assert not is_left(tmp_path / "data")


def stamps(folder):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_the_same_files_are_not_prepared_twice(tmp_path):
    write_release(tmp_path / "manual/KIMIAPath24 RGB")
    done = prepare_any(tmp_path / "manual", tmp_path / "data")
    before = stamps(tmp_path / "data")
    for given in (tmp_path / "manual", tmp_path / "manual/KIMIAPath24 RGB"):
        assert prepare_any(given, tmp_path / "data") == done._replace(reused=True)
    assert stamps(tmp_path / "data") == before
    assert not done.reused


def rename(root):
    (root / UNSEEN).rename((root / UNSEEN).with_name("1001_0.jpg"))


@pytest.mark.parametrize(
    "change",
    [
        spoil(UNSEEN, encoded(colours(), "JPEG", quality=50)),
        rename,
        spoil("Training/s1/1000_90.jpg", encoded(colours(), "JPEG")),
    ],
    ids=["of another size", "of another name", "one more"],
)
@pytest.mark.parametrize("folder", ["manual", "other"])
def test_other_files_do_not_pass_for_those_that_were_prepared(tmp_path, change, folder):
    write_release(tmp_path / "manual")
    done = prepare_any(tmp_path / "manual", tmp_path / "data")
    before = stamps(tmp_path / "data")
    write_release(tmp_path / folder)
    change(tmp_path / folder)
    with pytest.raises(UserError, match=r"was prepared from other files .* remove it, or choose") as caught:
        prepare_any(tmp_path / folder, tmp_path / "data")
    said = str(caught.value)
    assert said.startswith(f"{done.path}: ")
    assert "({'images': [6, 6], 'listing_sha256': " in said
    assert stamps(tmp_path / "data") == before


@pytest.mark.parametrize("folder", ["train_test/s{}", "s{}/train_test"])
def test_one_folder_does_not_serve_for_training_and_test(tmp_path, folder):
    files = write_release(tmp_path / "manual")
    for patch_id, file in files.items():
        if patch_id.startswith("train/"):
            target = tmp_path / "leak" / folder.format(patch_id.split("/")[1][1:]) / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    with pytest.raises(UserError, match=r"leak(/s0)?: must hold one folder"):
        open_scans(tmp_path / "leak")


@pytest.mark.parametrize("way", ["link", "dot", "copy"])
def test_the_same_files_by_another_path_are_not_other_files(tmp_path, monkeypatch, way):
    write_release(tmp_path / "manual")
    (tmp_path / "link").symlink_to(tmp_path / "manual")
    shutil.copytree(tmp_path / "manual", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "manual")
    given = {"dot": Path(), "link": tmp_path / "link", "copy": tmp_path / "copy"}[way]
    prepare_any(tmp_path / "manual" if way == "copy" else given, tmp_path / "data")
    assert prepare_any(given, tmp_path / "data").reused


@pytest.mark.parametrize("content", [POINTER, a_zip()], ids=["lfs", "zip"])
@pytest.mark.parametrize("missing", ["Training", "RGBPatches-test"])
def test_an_archive_in_place_of_one_split_is_named(tmp_path, missing, content):
    write_release(tmp_path / "manual")
    shutil.rmtree(tmp_path / "manual" / missing)
    (tmp_path / "manual" / f"{missing}.zip").write_bytes(content)
    with pytest.raises(UserError, match=f"{missing}.zip: "):
        prepare_any(tmp_path / "manual", tmp_path / "data")


@pytest.mark.parametrize(("content", "message"), [(b"<!DOCTYPE html>", "a web page"), (b"", "an empty file")])
def test_what_only_has_the_name_of_an_archive_is_told_for_what_it_is(tmp_path, content, message):
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual/KIMIAPath24C.zip").write_bytes(content)
    with pytest.raises(UserError, match=f"KIMIAPath24C.zip: {message}"):
        prepare_any(tmp_path / "manual", tmp_path / "data")


def test_an_archive_may_lie_beside_the_scans_that_were_unpacked_from_it(tmp_path):
    write_release(tmp_path / "manual", "scans at the top")
    (tmp_path / "manual/KIMIAPath24C.zip").write_bytes(a_zip())
    assert prepare_any(tmp_path / "manual", tmp_path / "data").counts == {"train": 6, "test": 6}


@pytest.mark.parametrize("name", ["s0/2000_0.jpg", "extra/90_0.jpg", "s0/more/90_0.jpg"])
def test_images_beside_the_splits_of_a_scan_are_refused_and_not_passed_over(tmp_path, name):
    files = write_release(tmp_path / "manual", "splits in scans")
    target = tmp_path / "manual" / name
    target.parent.mkdir(exist_ok=True)
    shutil.copy(files["train/s0/90_0"], target)
    with pytest.raises(UserError, match=name.rpartition("/")[0]):
        prepare_any(tmp_path / "manual", tmp_path / "data")


def test_what_macs_put_into_archives_is_passed_over(tmp_path):
    write_release(tmp_path / "manual", "one folder above")
    (tmp_path / "manual/__MACOSX").mkdir()
    assert prepare_any(tmp_path / "manual", tmp_path / "data").counts == {"train": 6, "test": 6}


def test_a_file_name_that_is_no_text_is_refused_by_name(tmp_path):
    file = write_release(tmp_path / "manual")["train/s1/90_0"]
    file.rename(file.with_name("\udcff.jpg"))  # the byte 0xff
    with pytest.raises(UserError, match=r"s1/.*: its name is no text; rename it"):
        prepare_any(tmp_path / "manual", tmp_path / "data")


@pytest.mark.parametrize("above", ["kimia_train_test", "Kimia-train-and-test"])
def test_a_folder_above_may_be_named_by_both_splits(tmp_path, above):
    write_release(tmp_path / "manual" / above)
    assert prepare_any(tmp_path / "manual", tmp_path / "data").counts == {"train": 6, "test": 6}
