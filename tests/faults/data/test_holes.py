"""Scan files that are cut, have holes, or are not the official one, which they are given as."""

import io
import json

import h5py
import numpy as np
import pytest
from PIL import Image
from support.foreign_sets import prepare as prepare_foreign

from faults.data.planting import (
    COMMANDS,
    FLOORS,
    READERS,
    SIZE,
    audited,
    marked,
    nothing_prepared,
    preparation,
    trained,
)
from faults.harness import ask, nothing_changes, refused
from kimiajax import paper
from kimiajax.io.files import md5_file


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
    assert (record["verdict"], record["failed"]) == ("PASSED", [])
    told = {check["name"]: check for check in record["checks"]}["official digest"]
    assert (told["verdict"], "not the official file" in told["detail"]) == ("note", True)
    assert ask("table", "quick", "--scans", file, "--out", tmp_path / "run", *FLOORS).status == 0
    assert "other than Kimia Path24's as they were published" in " ".join(
        json.loads((tmp_path / "run" / "results.json").read_text())["notes"]
    )
