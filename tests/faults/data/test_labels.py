"""Labels that are no scans, scans that lie the other way round, and patches in training and test at once."""

import json
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from faults.data.planting import COMMANDS, FLOORS, SIZE, audited, marked, trained
from faults.harness import ask, files_of, nothing_changes, refused
from kimiajax.data.sources.hdf5_raster import Raster

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
