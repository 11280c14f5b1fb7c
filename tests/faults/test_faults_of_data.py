"""Damaged data: refused by name before anything is computed of them, or found by the audit, which marks what is."""

import io
import json
import shutil
import struct
import warnings
import zlib
from hashlib import sha256

import h5py
import numpy as np
import pytest
from foreign_sets import prepare as prepare_foreign
from PIL import Image

from faults.harness import ask, files_of, nothing_changes, refused
from kimiajax import paper
from kimiajax.data.manifest import read_manifest
from kimiajax.data.raster import Raster
from kimiajax.data.sets import prepared_in
from kimiajax.files import md5_file

SIZE = 80
FLOORS = ("--rows", "floor_histogram", "floor_mean_sd", "--image-size", 32, "--patches-per-scan", 3)
NETWORK = ("--weights", "random", "--image-size", 32, "--conv", "plain")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 29409000000\n"
PAGE = b"\n<!DOCTYPE html><html><body>Sign in to go on</body></html>"
AUDIT_FAILED = 3

# What each command is asked of a path, by the folder of an earlier run and by one that is not there yet.
COMMANDS = {
    "table": lambda given, run, new: ("table", "quick", "--scans", given, "--out", run, *FLOORS, "--fresh"),
    "data explain": lambda given, run, new: ("data", "explain", "--scans", given),
    "data export": lambda given, run, new: ("data", "export", "--scans", given, "--out", new),
    "features": lambda given, run, new: ("features", "cnn", "--scans", given, "--out", new, *NETWORK),
    "predict": lambda given, run, new: ("predict", run / "floor_histogram", given, "--out", f"{new}.csv"),
}
READERS = ("table", "data export", "features", "predict")  # of patches, one by one


@pytest.fixture(scope="module")
def run(scans, tmp_path_factory):
    """The folder of a good run, which whatever is refused must leave as it is."""
    folder = tmp_path_factory.mktemp("runs")
    ended = ask(*COMMANDS["table"](scans, folder / "run", None), "--cache", folder / "cache")
    assert ended.status == 0, ended
    return folder / "run"


@pytest.fixture(scope="module")
def exported(scans, tmp_path_factory):
    """All patches of those scans as images."""
    folder = tmp_path_factory.mktemp("exported") / "folder"
    assert ask("data", "export", "--scans", scans, "--out", folder, "--cache", folder.parent / "cache").status == 0
    return folder


@pytest.fixture
def images(exported, tmp_path):
    """A folder of two images a scan and split, p0.png and p1.png."""
    for split in ("train", "test"):
        for scan in ("s0", "s1"):
            (tmp_path / "images" / split / scan).mkdir(parents=True)
            for number, file in enumerate(sorted((exported / split / scan).iterdir())[:2]):
                shutil.copy(file, tmp_path / "images" / split / scan / f"p{number}.png")
    return tmp_path / "images"


@pytest.fixture
def file(scans, tmp_path):
    """A copy of the scan file, to be damaged."""
    return shutil.copy(scans, tmp_path / "scans.h5")


@pytest.fixture
def refuses(run, tmp_path):
    """Asserts that a command refuses a path, in a line of these words, and that it changes no file."""

    def ask_for(command, given, *words):
        with nothing_changes(run, tmp_path):
            ended = ask(*COMMANDS[command](given, run, tmp_path / "new"))
        return refused(ended, *words)

    return ask_for


def audited(given, out, *failed, flags=()):
    """Asserts that an audit fails these checks, on the screen, in its record and by its status; the record."""
    ended = ask("data", "audit", "--scans", given, "--out", out, *flags)
    record = json.loads((out / "audit.json").read_text())
    assert ended.status == AUDIT_FAILED, ended
    assert record["verdict"] == "FAILED"
    assert set(failed) <= set(record["failed"])
    assert f"FAILED: {', '.join(record['failed'])}." in ended.shown
    return {check["name"]: check for check in record["checks"]}


def marked(given, out, *failed, flags=()):
    """Asserts that a table of audited data says in its record, on the screen and in its report what failed."""
    ended = ask("table", "quick", "--scans", given, "--out", out, *FLOORS, *flags)
    assert ended.status == 0, ended
    data = json.loads((out / "results.json").read_text())["data"]
    assert data["audit"]["verdict"] == "FAILED"
    assert set(failed) <= set(data["audit"]["failed"])
    assert "AUDIT FAILED" in ended.shown
    assert f"AUDIT FAILED ({', '.join(data['audit']['failed'])})" in ask("report", out, "--format", "markdown").shown


def rewrite(file, name, **options):
    """Stores a dataset in another way; without options in one piece."""
    with h5py.File(file, "r+") as opened:
        content = opened[name][...]
        del opened[name]
        opened.create_dataset(name, data=content, **options)


def punch(file, name, at, size):
    """Zeros in place of bytes of a dataset that lies in one piece: what a download leaves out that was interrupted."""
    rewrite(file, name)
    with h5py.File(file) as opened:
        at += opened[name].id.get_offset()
    with file.open("r+b") as stream:
        stream.seek(at)
        stream.write(bytes(size))


def leave_out(file, name, chunks, left_out):
    """Stores a dataset by chunks, one of which is never written."""
    with h5py.File(file, "r+") as opened:
        content = opened[name][...]
        del opened[name]
        dataset = opened.create_dataset(name, content.shape, content.dtype, chunks=chunks)
        for corner in np.ndindex(*(-(-n // c) for n, c in zip(content.shape, chunks))):
            if corner != left_out:
                box = tuple(slice(k * c, (k + 1) * c) for k, c in zip(corner, chunks))
                dataset[box] = content[box]


def trained(run, scan):
    """A training patch of the run."""
    return next(patch for patch in read_manifest(run / "manifest.csv").split("train") if patch.scan == scan)


# holes


@pytest.mark.fault("holes")
@pytest.mark.parametrize("left", ["half", "all but a byte"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_truncated_file_is_named_with_both_sizes(file, refuses, command, left):
    content = file.read_bytes()
    size = {"half": len(content) // 2, "all but a byte": len(content) - 1}[left]
    file.write_bytes(content[:size])
    told = f"{file}: a damaged HDF5 file of {size:,} bytes"
    refuses(command, file, told, f"eof = {len(content)})", "fetch or copy it again")


@pytest.mark.fault("holes")
def test_a_truncated_file_fails_its_audit_and_the_whole_one_serves_again(file, scans, run, tmp_path):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    detail = audited(file, tmp_path / "audit", "layout")["layout"]["detail"]
    assert f"{file}: a damaged HDF5 file of {len(content) // 2:,} bytes" in detail
    assert f"eof = {len(content)})" in detail
    assert refused(ask(*COMMANDS["table"](file, run, None)), file)
    ended = ask("table", "quick", "--scans", scans, "--out", run, *FLOORS)
    assert ended.status == 0
    assert "all rows were finished before" in ended.said


HOLES = {  # each smaller than a patch, so that only an audit tells
    "zeros in a scan": (lambda file: punch(file, "scan0/data", 100 * 346, 20 * 346), "scan scan0 gray 0"),
    "zeros in the test patches": (lambda file: punch(file, "test_data/patches", 0, 20 * SIZE), "test patch 0 cells"),
    "a chunk that was never written": (
        lambda file: leave_out(file, "scan0/data", (40, 40), (3, 3)),
        "dataset /scan0/data chunks never written 1",
    ),
}


@pytest.mark.fault("holes")
@pytest.mark.parametrize(("plant", "told"), HOLES.values(), ids=HOLES)
def test_an_audit_finds_a_hole_in_a_file_of_the_right_size_and_marks_the_table(file, tmp_path, plant, told):
    size = file.stat().st_size
    plant(file)
    assert file.stat().st_size >= size
    checks = audited(file, tmp_path / "audit", "constant regions")
    assert told in checks["constant regions"]["detail"]
    assert checks["official digest"]["verdict"] == "note"
    marked(file, tmp_path / "out", "constant regions")


def blank(name, where, value=0):
    def plant(file, patch):
        with h5py.File(file, "r+") as opened:
            opened[name][where(patch)] = value

    return plant


def at_its_place(patch):
    return slice(patch.row, patch.row + SIZE), slice(patch.col, patch.col + SIZE)


def never_written(file, patch):
    leave_out(file, "scan1/data", (SIZE, SIZE), (patch.row // SIZE, patch.col // SIZE))


WHOLE_HOLES = {  # as large as a patch
    "zeros in place of a training patch": (blank("scan1/data", at_its_place), "train", 0),
    "another gray value": (blank("scan1/data", at_its_place, 97), "train", 97),
    "a chunk that was never written": (never_written, "train", 0),
    "zeros in place of a test patch": (blank("test_data/patches", lambda patch: 0), "test", 0),
}


@pytest.mark.fault("holes")
@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize(("plant", "split", "gray"), WHOLE_HOLES.values(), ids=WHOLE_HOLES)
def test_a_patch_that_is_a_hole_becomes_no_number(file, run, refuses, command, plant, split, gray):
    plant(file, trained(run, 1))
    with h5py.File(file) as opened:
        name = trained(run, 1).patch_id if split == "train" else f"test/s{opened['test_data/targets'][0]}/0"
    told = f"{file}: {name} has the gray value {gray} throughout: a hole in the data, not tissue; fetch them again"
    refuses(command, file, told, f"`kimiajax data audit --scans {file}`")


@pytest.mark.fault("holes")
@pytest.mark.parametrize("name", ["train/s1/p1", "test/s0/p0"])
def test_a_black_image_among_patches_becomes_no_number(images, refuses, name):
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(images / f"{name}.png")
    refuses("table", images, f"{images}: {name} has the gray value 0 throughout: a hole in the data, not tissue")


@pytest.mark.fault("holes")
def test_an_audit_goes_on_over_holes_and_names_them_all(images, tmp_path):
    for name in ("train/s1/p1", "test/s0/p0"):
        Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(images / f"{name}.png")
    checks = audited(images, tmp_path / "audit", "blank patches", "exact duplicates")
    assert checks["blank patches"]["findings"] == ["train/s1/p1", "test/s0/p0"]


@pytest.mark.fault("holes")
@pytest.mark.parametrize("command", ["features", "predict"])
def test_nor_does_one_that_is_given_alone(tmp_path, refuses, command):
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(tmp_path / "p.png")
    told = f"{tmp_path / 'p.png'}: has the gray value 0 throughout: a hole in the data, not tissue; fetch it again"
    refuses(command, tmp_path / "p.png", told)


@pytest.mark.fault("holes")
@pytest.mark.parametrize("command", ["table", "data explain"])
def test_a_hole_in_compressed_data_is_named_with_its_place(file, refuses, command):
    rewrite(file, "scan1/data", chunks=(100, 100), compression="gzip")
    with h5py.File(file) as opened:
        at = opened["scan1/data"].id.get_chunk_info(5).byte_offset
    with file.open("r+b") as stream:
        stream.seek(at + 100)
        stream.write(bytes(512))
    refuses(command, file, f"{file}: cannot read /scan1/data at ", "; the file is damaged, fetch it again")


@pytest.mark.fault("holes")
def test_a_black_image_of_a_prepared_set_becomes_no_number(tmp_path, run, rng):
    def example(number, pixels):
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        return {"image": content.getvalue(), "label": number % 3, "filename": f"{number}.tif"}

    tissues = [example(k, rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for k in range(6)]
    black = example(6, np.zeros((64, 64, 3), np.uint8))
    folder = prepare_foreign(tmp_path, {"train": [*tissues, black], "test": tissues})
    given = ("--dataset", "foreign", "--data-dir", tmp_path)
    with nothing_changes(run):
        ended = ask("table", "quick", *given, "--out", run, *FLOORS, "--fresh")
    again = f"`kimiajax data audit --dataset foreign:1.0.0 --data-dir {tmp_path}`"
    refused(ended, f"{folder}: train/s0/", " has the gray value 0 throughout", again)


@pytest.mark.fault("holes")
def test_white_glass_and_patches_of_a_few_equal_pixels_are_no_holes(file, tmp_path, rng):
    blank("test_data/patches", lambda patch: 0, 255)(file, None)
    small = tmp_path / "small.h5"
    with h5py.File(small, "w") as opened:
        for scan in range(2):
            opened[f"scan{scan}/data"] = rng.integers(40, 180, (24, 24), dtype=np.uint8)
        opened["test_data/patches"], opened["test_data/targets"] = np.full((2, 8, 8), 100, np.uint8), np.arange(2)
    for given in (file, small):
        assert ask("table", "quick", "--scans", given, "--out", tmp_path / given.stem, *FLOORS).status == 0


@pytest.fixture
def manual(scans, tmp_path):
    (tmp_path / "manual").mkdir()
    shutil.copy(scans, tmp_path / "manual" / "Kimia_Path24.h5")
    return tmp_path / "manual"


def preparation(manual, data, *flags, name="kimia_path24"):
    return ask("data", "prepare", name, "--manual-dir", manual, "--data-dir", data, *flags)


def nothing_prepared(data):
    """Whether a folder holds no set, whole or in part; TFDS notes beforehand what it is about to prepare."""
    return prepared_in(data) == [] and {name.rpartition("/")[2] for name in files_of(data)} <= {"metadata.json"}


@pytest.mark.fault("holes")
def test_a_bit_that_flipped_in_the_official_file_is_told_by_its_digest(manual, tmp_path, monkeypatch):
    file = manual / "Kimia_Path24.h5"
    monkeypatch.setattr(paper, "OFFICIAL_MD5", md5_file(file))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    ended = preparation(manual, tmp_path / "data")
    told = f"{file}: is not the official file: MD5 {md5_file(file)}"
    line = refused(ended, told, paper.OFFICIAL_MD5, "fetch it again")
    assert line.endswith("or go on with --allow-unverified, which marks every result")
    assert nothing_prepared(tmp_path / "data")


@pytest.mark.fault("holes")
def test_a_file_that_is_not_verified_is_prepared_only_if_asked_and_marks_every_result(manual, tmp_path):
    prepared = preparation(manual, tmp_path / "data", "--allow-unverified")
    assert prepared.status == 0, prepared
    assert "NOT VERIFIED, and every result will say so: is not the official file: MD5" in prepared.shown
    given = ("--dataset", prepared.shown.split("--dataset ")[1].split()[0], "--data-dir", tmp_path / "data")
    ended = ask("table", "quick", *given, "--out", tmp_path / "run", *FLOORS)
    assert (ended.status, "NOT VERIFIED: " in ended.shown) == (0, True)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data"]["unverified"].startswith("is not the official file: MD5")
    assert any(note.startswith("Not verified: what these data were prepared from") for note in results["notes"])
    assert "NOT VERIFIED: the files" in ask("report", tmp_path / "run", "--format", "markdown").shown
    assert ask("data", "export", *given, "--out", tmp_path / "images").status == 0
    header = json.loads((tmp_path / "images" / "manifest.json").read_text())
    assert header["unverified"] == results["data"]["unverified"]
    with nothing_changes(tmp_path / "data"):
        refused(preparation(manual, tmp_path / "data"), "is not the official file: MD5", "--allow-unverified")


@pytest.mark.fault("holes")
def test_another_file_given_as_the_official_one_fails_its_audit_and_is_a_note_where_it_is_not(file, tmp_path):
    with h5py.File(file, "r+") as opened:
        opened.attrs["synthetic"] = False
    checks = audited(file, tmp_path / "official", "official digest", flags=["--official"])
    assert f"MD5 {md5_file(file)}" in checks["official digest"]["detail"]
    assert paper.OFFICIAL_MD5 in checks["official digest"]["detail"]
    assert ask("data", "audit", "--scans", file, "--out", tmp_path / "any", "--cache", tmp_path / "cache").status == 0
    record = json.loads((tmp_path / "any" / "audit.json").read_text())
    assert (record["verdict"], record["failed"]) == ("passed", [])
    told = {check["name"]: check for check in record["checks"]}["official digest"]
    assert (told["verdict"], "not the official file" in told["detail"]) == ("note", True)
    assert ask("table", "quick", "--scans", file, "--out", tmp_path / "run", *FLOORS).status == 0
    assert "Not Kimia Path24" in " ".join(json.loads((tmp_path / "run" / "results.json").read_text())["notes"])


# labels

LABELS = {
    "above": (lambda targets: targets + 24, "goes from 24 to 27, but the file holds scans 0..3; renumber the targets"),
    "below": (lambda targets: targets - 1, "goes from -1 to 2, but the file holds scans 0..3; renumber the targets"),
    "huge": (lambda targets: targets.astype(np.uint64) + 2**63, "but the file holds scans 0..3; renumber the targets"),
    "one too few": (lambda targets: targets[:-1], "test patches; it must hold one scan number for each"),
    "one too many": (lambda targets: np.append(targets, 0), "test patches; it must hold one scan number for each"),
    "none": (lambda targets: targets[:0], "test patches; it must hold one scan number for each"),
    "floats": (lambda targets: targets.astype(float), "holds float64; it must hold integer values"),
    "NaN": (lambda targets: np.full(len(targets), np.nan), "holds float64; it must hold integer values"),
    "truth values": (lambda targets: targets > 1, "holds bool; it must hold integer values"),
    "text": (lambda targets: [f"s{target}" for target in targets], "holds object; it must hold integer values"),
    "one-hot": (lambda targets: np.eye(4, dtype=int)[targets], "test patches; it must hold one scan number for each"),
    "pairs": (lambda targets: np.stack([targets] * 2), "test patches; it must hold one scan number for each"),
}


def relabel(file, change):
    with h5py.File(file, "r+") as opened:
        targets = opened["test_data/targets"][...]
        del opened["test_data/targets"]
        opened["test_data/targets"] = change(targets)


@pytest.mark.fault("labels")
@pytest.mark.parametrize(("change", "told"), LABELS.values(), ids=LABELS)
def test_labels_that_are_no_scans_are_refused_before_a_pixel_is_read(file, tmp_path, monkeypatch, change, told):
    reads, read = [], Raster.read
    monkeypatch.setattr(Raster, "read", lambda raster, *box: reads.append(box) or read(raster, *box))
    relabel(file, change)
    ended = ask(*COMMANDS["table"](file, tmp_path / "out", None))
    refused(ended, f"{file}: /test_data/targets", told)
    assert reads == []
    assert files_of(tmp_path / "out") == {}
    assert told in audited(file, tmp_path / "audit", "layout")["layout"]["detail"]


@pytest.mark.fault("labels")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_labels_outside_the_scans(file, refuses, command):
    relabel(file, LABELS["above"][0])
    refuses(command, file, f"{file}: /test_data/targets", LABELS["above"][1])


@pytest.mark.fault("labels")
def test_labels_that_are_exchanged_fail_the_audit_and_mark_the_table(file, tmp_path):
    relabel(file, lambda targets: (targets + 1) % 4)
    assert "continue another scan's tissue" in audited(file, tmp_path / "audit", "targets")["targets"]["detail"]
    marked(file, tmp_path / "out", "targets")


@pytest.mark.fault("labels")
def test_transposed_scans_fail_the_audit_and_mark_the_table(file, tmp_path):
    with h5py.File(file, "r+") as opened:
        for scan in range(4):
            opened[f"scan{scan}/data"][...] = opened[f"scan{scan}/data"][...].T
    told = audited(file, tmp_path / "audit", "orientation")["orientation"]
    assert {"scan": "scan2", "its patches are": "transposed"} in told["findings"]
    marked(file, tmp_path / "out", "orientation")


# images


def encoded(pixels, kind="PNG", **options):
    content = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(content, kind, **options)
    return content.getvalue()


def png(width, height, bits, colour, data):
    """A PNG by its header and its data, whether they fit or not."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def flipped(content):
    """With one bit in its middle turned over."""
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 16]) + content[len(content) // 2 + 1 :]


GRAY = np.random.default_rng(1).integers(40, 180, (SIZE, SIZE), dtype=np.uint8)
RGB = np.random.default_rng(2).integers(40, 180, (SIZE, SIZE, 3), dtype=np.uint8)
JPEG = encoded(GRAY, "JPEG")
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


TURNS = {  # by the value that EXIF has for it: what turns the stored pixels upright
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
}


def turned(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


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


# folders


def copied(name, to):
    return lambda root: shutil.copytree(root / name, root / to, symlinks=True)


def renamed(name, to):
    return lambda root: (root / name).rename(root / to)


def removed(name):
    return lambda root: shutil.rmtree(root / name)


def emptied(name):
    return lambda root: [file.unlink() for file in (root / name).iterdir()]


def linked(name, target):
    return lambda root: (root / name).symlink_to(root / target)


def added(name, content=b"x"):
    return lambda root: (root / name).write_bytes(content)


FOLDERS = {
    "the first class is missing in training": (removed("train/s0"), "", "train folder has no images of s0"),
    "the last class is missing in training": (removed("train/s1"), "", "train folder has no images of s1"),
    "the first class is missing in test": (removed("test/s0"), "", "test folder has no images of s0"),
    "the last class is missing in test": (removed("test/s1"), "", "test folder has no images of s1"),
    "a gap": (copied("train/s1", "train/s3"), "", "train folder has no images of s2"),
    "an empty class in training": (emptied("train/s1"), "train/s1", "holds no images; put the patches of scan 1"),
    "an empty class in test": (emptied("test/s1"), "test/s1", "holds no images; put the patches of scan 1"),
    "an extra folder": (copied("train/s1", "train/rest"), "train/rest", "is no scan's folder (s0, s1, ...); move it"),
    "an extra class": (copied("train/s1", "train/s2"), "", "test folder has no images of s2"),
    "an extra file": (added("train/notes.txt"), "train/notes.txt", "is no scan's folder (s0, s1, ...); move it"),
    "an extra file in a class": (added("test/s1/notes.txt"), "test/s1/notes.txt", "is no image (.png"),
    "two folders of one scan": (copied("train/s1", "train/s01"), "train/s1", "a second folder of scan 1; put their"),
    "two names of one scan": (copied("train/s1", "train/scan1"), "train/scan1", "a second folder of scan 1; put"),
    "two training folders": (copied("train", "training"), "", "in its name, and has train, training"),
    "two images of one name": (added("train/s1/p1.jpg"), "train/s1/p1.png", "has the name of p1.jpg; keep one"),
    "no test folder": (renamed("test", "held out"), "", "must hold one folder with 'test' in its name, and has none"),
    "a link back": (linked("train/s1/again", "train"), "train/s1/again/s1", "links back to"),
    "a link to itself": (linked("train/s1/p.png", "train/s1/p.png"), "train/s1/p.png", "; remove the link"),
    "a link in a circle": (linked("train/s1/deep", "train/s1"), "train/s1/deep", "links back to"),
    "a link to nowhere": (linked("test/s1/p.png", "nowhere.png"), "test/s1/p.png", "nowhere.png, which does not exist"),
    "a class that links to nowhere": (linked("train/s2", "nowhere"), "train/s2", "is no scan's folder"),
}


@pytest.mark.fault("folders")
@pytest.mark.parametrize("command", ["table", "data export"])
@pytest.mark.parametrize(("change", "named", "told"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_leaves_a_choice_or_lacks_something_is_refused(images, refuses, command, change, named, told):
    change(images)
    refuses(command, images, f"{images / named}: ", told)


@pytest.mark.fault("folders")
@pytest.mark.parametrize("name", ["train/s1/\udcff.png", "test/s1/\udcff/p.png"], ids=["image", "folder"])
def test_a_name_that_is_no_text_is_refused(images, refuses, name):
    (images / name).parent.mkdir(exist_ok=True)
    shutil.copy(images / "train/s0/p0.png", images / name)
    refuses("table", images, repr(str(images / name)), "its name is no text; rename it")


@pytest.mark.fault("folders")
@pytest.mark.parametrize("name", ["s\udcff", "s\n1"], ids=["bytes", "two lines"])
def test_a_class_whose_name_is_no_text_is_refused_in_a_line_that_can_be_printed(images, refuses, name):
    copied("train/s1", f"train/{name}")(images)
    refuses("table", images, f"{str(images / 'train' / name)!r}: is no scan's folder (s0, s1, ...); move it elsewhere")


@pytest.mark.fault("folders")
@pytest.mark.parametrize("command", ["features", "predict"])
def test_a_name_of_two_lines_is_shown_in_one(tmp_path, refuses, command):
    (tmp_path / "plain").mkdir()
    bad = tmp_path / "plain" / "a\nkimiajax: b.png"
    bad.write_bytes(JPEG[:999])
    refuses(command, tmp_path / "plain", f"{str(bad)!r}: a damaged image")
    bad.unlink()
    bad.symlink_to("no\nwhere")
    refuses(command, tmp_path / "plain", f"{str(bad)!r}: links to 'no\\nwhere', which does not exist; remove the link")
    bad.unlink()
    Image.fromarray(GRAY[:, 1:]).save(bad)
    refuses(command, tmp_path / "plain", f"{str(bad)!r}: is 80 x 79 pixels, and patches are squares; crop it")


@pytest.mark.fault("folders")
def test_an_audit_says_what_a_folder_lacks(images, tmp_path):
    removed("test/s1")(images)
    told = audited(images, tmp_path / "audit", "layout")["layout"]["detail"]
    assert told.startswith(f"{images}: test folder has no images of s1")


@pytest.mark.fault("folders")
def test_scans_come_by_their_numbers_s10_after_s2(images, tmp_path):
    for split in ("train", "test"):
        for scan in range(2, 11):
            (images / split / f"s{scan}").mkdir()
            pixels = np.random.default_rng(scan).integers(40, 180, (SIZE, SIZE), dtype=np.uint8)
            Image.fromarray(pixels if split == "train" else 255 - pixels).save(images / split / f"s{scan}" / "p0.png")
    assert ask("table", "quick", "--scans", images, "--out", tmp_path / "run", *FLOORS).status == 0
    data = json.loads((tmp_path / "run" / "results.json").read_text())["data"]
    assert data["names"] == [f"s{scan}" for scan in range(11)]
    patches = read_manifest(tmp_path / "run" / "manifest.csv").patches
    assert [patch.scan for patch in patches if patch.split == "test"] == [0, 0, 1, 1, *range(2, 11)]
    assert all(f"/s{patch.scan}/" in patch.patch_id for patch in patches)
    (last,) = [patch for patch in patches if patch.patch_id == "train/s10/p0"]
    assert last.sha256 == sha256(np.asarray(Image.open(images / "train/s10/p0.png")).tobytes()).hexdigest()


# leaks


@pytest.mark.fault("leaks")
@pytest.mark.parametrize("scan", ["s1", "s0"], ids=["of its scan", "of another scan"])
def test_an_image_in_training_and_test_fails_the_audit_and_marks_the_table(images, tmp_path, scan):
    shutil.copy(images / "train/s1/p0.png", images / "test" / scan / "leaked.png")
    told = audited(images, tmp_path / "audit", "exact duplicates")["exact duplicates"]["detail"]
    assert f"in training and test: train/s1/p0 = test/{scan}/leaked" in told
    marked(images, tmp_path / "out", "exact duplicates")


ALIKE = {
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "brighter": lambda image: image.point(lambda gray: gray * 0.9 + 9),
}


@pytest.mark.fault("leaks")
@pytest.mark.parametrize("change", ALIKE.values(), ids=ALIKE)
def test_an_image_that_looks_like_one_to_be_tested_fails_the_audit_and_marks_the_table(images, tmp_path, change):
    change(Image.open(images / "test/s1/p0.png")).save(images / "train/s1/leaked.png")
    checks = audited(images, tmp_path / "audit", "near duplicates")
    assert "in training and test: train/s1/leaked = test/s1/p0" in checks["near duplicates"]["detail"]
    assert checks["exact duplicates"]["verdict"] == "passed"
    marked(images, tmp_path / "out", "near duplicates")


@pytest.mark.fault("leaks")
@pytest.mark.parametrize("shift", [0, 7], ids=["on the grid", "off the grid"])
def test_a_test_patch_that_stands_in_a_scan_fails_the_audit_and_marks_the_table(file, run, tmp_path, shift):
    patch = trained(run, 2)
    row, col = (at - shift if at >= SIZE else at + shift for at in (patch.row, patch.col))
    with h5py.File(file, "r+") as opened:
        opened["scan2/data"][row : row + SIZE, col : col + SIZE] = opened["test_data/patches"][1]
    name = "copies of test patches in the scans"
    told = audited(file, tmp_path / "audit", name)[name]
    assert [(copy["patch"], copy["row"], copy["col"]) for copy in told["findings"]] == [(1, row, col)]
    assert "patch 1 scan scan2" in told["detail"]
    marked(file, tmp_path / "out", name)


@pytest.mark.fault("leaks")
def test_a_training_patch_over_a_whitened_place_fails_the_audit_of_its_manifest_and_marks_its_table(
    file, run, tmp_path
):
    with h5py.File(file) as opened:
        white = opened["scan1/data"][...] == 255
    whole = np.lib.stride_tricks.sliding_window_view(white, (SIZE, SIZE)).all(axis=(2, 3))
    row, col = np.argwhere(whole)[0].tolist()
    row += -20 if row >= 20 else 20
    lines = (run / "manifest.csv").read_text().splitlines()
    line = next(number for number, text in enumerate(lines) if text.startswith("train/s1/"))
    lines[line] = f"train/s1/{row}_{col},1,{row},{col},train,,"
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    header = json.loads((run / "manifest.json").read_text())
    (tmp_path / "m.json").write_text(json.dumps({**header, "csv_sha256": None}))
    given = ("--manifest", tmp_path / "m.csv")
    name = "training patches over whitened places"
    told = audited(file, tmp_path / "audit", name, flags=given)[name]
    assert [finding["patch"] for finding in told["findings"]] == [f"train/s1/{row}_{col}"]
    assert f"patch train/s1/{row}_{col} share 0.75" in told["detail"]
    marked(file, tmp_path / "out", name, flags=given)
    ended = ask("table", "quick", "--scans", file, "--out", tmp_path / "sound", *FLOORS)
    assert (ended.status, "AUDIT FAILED" in ended.shown) == (0, False)


@pytest.mark.fault("leaks")
def test_a_manifest_that_was_edited_by_hand_is_not_taken_for_the_one_that_was_written(file, run, tmp_path):
    for name in ("manifest.csv", "manifest.json"):
        shutil.copy(run / name, tmp_path)
    edited = tmp_path / "manifest.csv"
    edited.write_text(edited.read_text().replace("train/s1/", "train/s1/x"))
    with nothing_changes(run):
        ended = ask(*COMMANDS["table"](file, run, None), "--manifest", edited)
    refused(ended, f"{edited}: was edited since manifest.json was written", "set csv_sha256 to null there")
