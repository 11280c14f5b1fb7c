"""Folders of images that leave a choice or lack something."""

import json
import os
import shutil
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from faults.data.planting import COMMANDS, FLOORS, GRAY, JPEG, SIZE, audited
from faults.harness import ask
from kimiajax.data.manifest import read_manifest


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


@pytest.mark.fault("folders")
def test_a_path_that_is_no_text_leads_to_data_like_any_other(scans, tmp_path):
    above = tmp_path / os.fsdecode(b"f\xe4")
    above.mkdir()
    shutil.copy(scans, above / "scans.h5")
    for _ in range(2):  # the second goes on with what the first wrote
        ended = ask(*COMMANDS["table"](above / "scans.h5", tmp_path / "run", None)[:-1])
        assert ended.status == 0, ended
    assert ask("report", tmp_path / "run").status == 0
    assert json.loads((tmp_path / "run/results.json").read_text())["data"]["source"].endswith("/f\\xe4/scans.h5")
