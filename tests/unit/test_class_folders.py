"""Folders of classes by any names: found, held apart from scans and splits, and written out again."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.scan_files import tissue

from kimiajax.data.config import ScansConfig
from kimiajax.data.export import export_patches
from kimiajax.data.inference_inputs import read_inputs
from kimiajax.data.manifest import read_manifest
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import read_patches
from kimiajax.data.patches import Rules, cut_patches
from kimiajax.data.sources.folder_layout import folded, portable
from kimiajax.data.sources.image_folder import holds_splits
from kimiajax.errors import UsageError, UserError

NAMES = ("Brüst: é", "con", "grade 2", "grade 10", "intestine", "肝臓.x")  # in their order


def write_images(root, rng, counts):
    """As many images in each folder as it says, of pixels of their own."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.fromarray(tissue(rng, 8, 8)).save(root / folder / f"p{k}.png")
    return root


def both(*names):
    return {f"{split}/{name}": 2 for split in ("train", "test") for name in names}


@pytest.mark.parametrize(
    "layout", ["{split}/{name}", "{name}/{split}", "Training {split}/{name}", "my_{split}set/{name}/deep"]
)
def test_classes_have_the_names_of_their_folders_in_natural_order(tmp_path, rng, layout):
    counts = {
        layout.format(split=s, name=n).replace("Training test", "Test"): 2 for s in ("train", "test") for n in NAMES
    }
    counts = {folder.replace("Training train", "Training"): count for folder, count in counts.items()}
    write_images(tmp_path, rng, counts)
    assert holds_splits(tmp_path)
    with open_scans(tmp_path) as folder:
        manifest = cut_patches(folder)
        assert (folder.names, folder.word, folder.test_share) == (NAMES, "class", None)
    deep = "deep/" if layout.endswith("deep") else ""
    assert [p.patch_id for p in manifest.split("test")] == [f"test/{n}/{deep}p{k}" for n in NAMES for k in range(2)]
    assert [p.scan for p in manifest.split("train")] == [k for k in range(6) for _ in range(2)]


def test_accents_that_a_file_system_takes_apart_make_no_other_class(tmp_path, rng):
    apart = unicodedata.normalize("NFD", "Brüst")
    write_images(tmp_path, rng, {f"train/{apart}": 1, "train/b": 1, "test/Br\u00fcst": 1, "test/b": 1})
    with open_scans(tmp_path) as folder:
        assert folder.names == ("b", "Br\u00fcst")
        assert folder.offered()[1].patches[0].patch_id == "train/Br\u00fcst/p0"


def test_numbers_among_names_are_names(tmp_path, rng):
    write_images(tmp_path, rng, both("s1", "s2", "rest"))
    with open_scans(tmp_path) as folder:
        assert (folder.names, folder.word) == (("rest", "s1", "s2"), "class")


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        ([*both("Breast"), "train/liver", "test/Liver"], "train has 'liver' and test 'Liver'; give the class one name"),
        ([*both("Breast"), "train/T 1", "test/T1"], "train has 'T 1' and test 'T1'; give the class one name in both"),
        ([*both("a", "b"), "train/c"], "test folder has no images of 'c'; add them"),
        ([*both("a", "b"), "test/c"], "train folder has no images of 'c'; add them"),
        (["train/a", "train/b", "test/0", "test/1"], "train/a: is no scan's folder"),
        (both("a"), "holds one class alone, 'a'; give the folder in which each class has a folder"),
        ([*both("a", "b"), "train/A", "test/A"], "a: is called as .*/A is, but for case or spacing"),
        ([*both("a", "b"), "val/a", "val/b"], "val: lies beside folders for training and test, and nothing is chosen"),
        ([*both("s0"), "Validation/s0"], "Validation: lies beside folders for training and test"),
        (["train/a", "train/b", "valid/a", "valid/b"], "and has none; in it, .*; to test on .*valid, rename it"),
        (["train/a", "train/b"], "must hold one folder with 'test' in its name, and has none"),
        (["a/train", "a/test", "b/train"], "b: must hold one folder with 'test' in its name"),
        (["train_test/a", "train_test/b"], "must hold one folder with 'train' in its name, and has none"),
        (["a", "b/train and test"], "a: must hold one folder with 'train' in its name"),
        (["alone"], "holds one class alone, 'alone'"),
        ([".", "a", "b"], "p0.png: lies beside the classes' folders; move it into one of them"),
        (["a", "A"], "a: is called as"),
        ([*both("a", "b"), "train"], "train/p0.png: is no class's folder; move it elsewhere"),
        (["0", "2"], "train folder has no images of s1"),
    ],
)
def test_folders_that_are_not_of_the_same_classes_or_leave_a_choice_are_refused_by_name(tmp_path, rng, folders, told):
    write_images(tmp_path, rng, dict.fromkeys(folders, 1))
    with pytest.raises(UserError, match=told) as caught:
        open_scans(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


def test_an_empty_class_is_refused_by_name(tmp_path, rng):
    write_images(tmp_path, rng, {"a": 1, "b": 0})
    with pytest.raises(UserError, match="b: holds no images; put the patches of the class there"):
        open_scans(tmp_path)


def test_a_name_of_two_lines_is_no_class(tmp_path, rng):
    write_images(tmp_path, rng, {"a": 1, "b\nc": 1})
    with pytest.raises(UserError, match="its name is no text; rename it"):
        open_scans(tmp_path)


UNEQUAL = {"breast": 3, "intestine": 30, "liver": 300}


def test_test_patches_are_held_out_of_one_folder_a_class_by_a_share_and_a_bound(tmp_path, rng):
    write_images(tmp_path, rng, UNEQUAL)
    assert not holds_splits(tmp_path)
    with open_scans(tmp_path) as folder:
        manifest = cut_patches(folder)
        assert (manifest.counts("train"), manifest.counts("test")) == ([2, 24, 250], [1, 6, 50])
        assert len({p.patch_id.partition("/")[2] for p in manifest.patches}) == 333
        assert all(p.patch_id.startswith(f"{p.split}/{folder.names[p.scan]}/p") for p in manifest.patches)
        assert cut_patches(folder).csv == manifest.csv
        assert cut_patches(folder, Rules(test_seed=1)).csv != manifest.csv
        assert cut_patches(folder, Rules(test_patches_per_scan=10)).counts("test") == [1, 6, 10]
        patch = manifest.split("test")[0]
        file = tmp_path / "breast" / f"{patch.patch_id.rpartition('/')[2]}.png"
        np.testing.assert_array_equal(folder.read_patch(patch), np.asarray(Image.open(file)))
        first = folder.identity
    with open_scans(tmp_path, test_share=0.5) as folder:
        assert cut_patches(folder, Rules(test_patches_per_scan=999)).counts("test") == [2, 15, 150]
        assert folder.identity != first
        assert folder.flags.endswith("--test-share 0.5")


def test_a_manifest_of_held_out_patches_serves_again_and_through_the_cache(tmp_path, rng):
    write_images(tmp_path / "set", rng, {"a": 6, "b": 4})
    with open_scans(tmp_path / "set") as folder:
        first = read_patches(folder, cut_patches(folder), 8, cache=tmp_path / "cache")
        first.manifest.write(tmp_path / "m.csv")
        again = read_patches(folder, read_manifest(tmp_path / "m.csv"), 8, cache=tmp_path / "cache")
    assert again.manifest.csv == first.manifest.csv
    np.testing.assert_array_equal(again.test, first.test)


def test_a_class_of_one_image_cannot_be_parted(tmp_path, rng):
    write_images(tmp_path, rng, {"a": 5, "b": 1})
    with (
        open_scans(tmp_path) as folder,
        pytest.raises(UserError, match="b has one image, and training and test need one each"),
    ):
        cut_patches(folder)


def test_numbers_serve_as_classes_of_one_folder_each(tmp_path, rng):
    write_images(tmp_path, rng, {"0": 5, "1": 5})
    with open_scans(tmp_path) as folder:
        assert [p.patch_id[:8] for p in cut_patches(folder).split("test")] == ["test/s0/", "test/s1/"]


def test_what_predicts_takes_folders_without_splits_for_plain_images_and_others_by_class(tmp_path, rng):
    write_images(tmp_path / "flat", rng, {"a": 2, "b": 1})
    (plain,) = read_inputs(tmp_path / "flat", Rules(), 8)
    assert (plain.ids, plain.scans) == (("a/p0.png", "a/p1.png", "b/p0.png"), None)
    write_images(tmp_path / "split", rng, both("a", "b"))
    train, test = read_inputs(tmp_path / "split", Rules(), 8)
    assert test.ids == ("test/a/p0", "test/a/p1", "test/b/p0", "test/b/p1")
    assert train.scans is not None
    with pytest.raises(UsageError, match="--test-share is for folders with images for training and test"):
        read_inputs(tmp_path / "flat", Rules(), 8, test_share=0.3)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("names", [("liver 2", "grade.10", "é"), NAMES])
def test_an_export_of_named_classes_reads_back_as_it_was(tmp_path, rng, names, flat):
    counts = dict.fromkeys(names, 4) if flat else both(*names)
    write_images(tmp_path / "set", rng, counts)
    strange = next((tmp_path / "set").rglob("p0.png"))
    strange.rename(strange.with_name("50%. a.1.png"))
    with open_scans(tmp_path / "set") as folder:
        manifest = export_patches(folder, cut_patches(folder), tmp_path / "out")
        before = read_patches(folder, manifest, 8).manifest
    with open_scans(tmp_path / "out") as folder:
        again = read_patches(folder, cut_patches(folder), 8)
        assert (folder.names, folder.word, folder.test_patches() is None) == (
            tuple(before.about["names"]),
            "class",
            False,
        )
    assert again.manifest.csv == before.csv
    for path in (tmp_path / "out").rglob("*"):
        assert all(portable(part).replace("%25", "%") == part for part in path.relative_to(tmp_path / "out").parts)


def test_an_export_takes_no_patch_into_another_class(tmp_path, rng):
    write_images(tmp_path / "set", rng, both("a", "b"))
    with open_scans(tmp_path / "set") as folder:
        manifest = cut_patches(folder)
        wrong = replace(manifest.patches[0], scan=1)
        with pytest.raises(UserError, match="'train/a/p0' cannot be exported: names have to begin with train/b/"):
            export_patches(folder, replace(manifest, patches=(wrong, *manifest.patches[1:])), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a:b", "a%3Ab"),
        ("CON", "%43ON"),
        ("nul.txt", "%6Eul.txt"),
        ("end.", "end%2E"),
        (".hid", "%2Ehid"),
        ("é 1", "é 1"),
    ],
)
def test_what_some_system_takes_in_no_name_is_written_as_its_code(name, written):
    assert portable(name) == written


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"test_share": 0.3}, "--test-share 0.3: is for a folder of images, given by --scans"),
        ({"groups": Path("g.csv")}, "--groups g.csv: is for a folder of images"),
        ({"scans": Path("x"), "group_column": "p"}, "--group-column p: is for --groups"),
        ({"scans": Path("x"), "test_share": 1.0}, "--test-share 1: must be above 0 and below 1"),
    ],
)
def test_settings_of_folders_are_refused_elsewhere(settings, told):
    with pytest.raises(UserError, match=told):
        ScansConfig(**settings).check_scans()


def test_a_share_is_refused_where_test_images_are_given(tmp_path, rng):
    write_images(tmp_path, rng, both("a", "b"))
    with pytest.raises(UsageError, match=r"--test-share 0\.3: .* has test images of its own"):
        open_scans(tmp_path, test_share=0.3)
    with pytest.raises(UserError, match="--test-share 0: must be above 0"):
        open_scans(tmp_path, test_share=0)


def test_names_that_differ_by_where_numbers_part_are_two():
    assert folded("P1_12") != folded("P11_2")
    assert folded("grade_1_2") != folded("grade_12")
    assert folded("Grade 1_2") == folded("grade1 2")
