"""Patches of one patient: read from a file, held out together, and found where they stand on both sides."""

from dataclasses import replace

import pytest
from support.scan_files import write_scans
from test_class_folders import both, write_images

from kimiajax.data.audit.groups import check_groups
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patches import Rules, cut_patches
from kimiajax.errors import UsageError, UserError


def write_groups(path, rows, head="patch,patient"):
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def flat(tmp_path, rng, patients):
    """One folder a class, and its groups: class -> images of each patient."""
    counts = {name: sum(own.values()) for name, own in patients.items()}
    write_images(tmp_path / "set", rng, counts)
    rows = []
    for name, own in patients.items():
        each = [patient for patient, count in own.items() for _ in range(count)]
        rows += [f"{name}/p{k}.png,{patient}" for k, patient in enumerate(each)]
    return tmp_path / "set", write_groups(tmp_path / "groups.csv", rows)


MANY = {
    "a": {f"A{k}": 4 for k in range(10)} | {"shared": 3},
    "b": {f"B{k}": k + 1 for k in range(8)} | {"shared": 3},
    "c": {"C0": 30, "C1": 2, "C2": 2},
}


def test_whole_groups_are_held_out_near_the_share_that_is_asked_for(tmp_path, rng):
    path, groups = flat(tmp_path, rng, MANY)
    chosen = set()
    for seed in range(6):
        with open_scans(path, groups=groups) as folder:
            manifest = cut_patches(folder, Rules(test_seed=seed))
            record = folder.groups_in(manifest.patches)
            held_out = {folder.group_of(patch) for patch in manifest.split("test")}
            assert cut_patches(folder, Rules(test_seed=seed)).csv == manifest.csv
            assert check_groups(folder, manifest).verdict == "passed"
        assert record["shared"] == []
        assert (record["groups"], record["train"] + record["test"]) == (22, 22)
        chosen.add(frozenset(held_out))
        for count, whole, most in zip(manifest.counts("test"), (43, 39, 34), (0.1, 0.1, 0.15)):
            assert abs(count / whole - 0.2) <= most
        assert min(manifest.counts("train")) >= 1
        assert manifest.about["groups"]["groups"] == 22
    assert len(chosen) > 1


def test_a_class_that_has_large_groups_alone_keeps_one_on_each_side(tmp_path, rng):
    path, groups = flat(tmp_path, rng, {"a": {"A": 20, "B": 20}, "b": {"C": 9, "D": 1}})
    with open_scans(path, groups=groups) as folder:
        assert cut_patches(folder).counts("test") == [20, 1]


@pytest.mark.parametrize(
    ("patients", "told"),
    [
        ({"a": {"A": 5}, "b": {"B": 2, "C": 2}}, "a has 5 patches of 1 groups ('A': 5), b has 4 patches of 2 groups"),
        ({"a": {"A": 2, "S": 2}, "b": {"B": 2, "A": 1}, "c": {"S": 1, "B": 1}}, "a has 4 patches of 2 groups"),
    ],
    ids=["one group", "a circle of three"],
)
def test_groups_that_leave_a_class_without_a_side_are_refused_with_their_counts(tmp_path, rng, patients, told):
    path, groups = flat(tmp_path, rng, patients)
    with open_scans(path, groups=groups) as folder, pytest.raises(UserError) as caught:
        cut_patches(folder)
    assert str(caught.value).startswith(f"{path}: no choice of whole groups leaves each class patches")
    assert told in str(caught.value)


NAMES = ("a/p0.png", "a/p1.png", "b/p0.png", "b/p1.png")
PATHS = (*NAMES[:3], "b/other.png")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([f"{n},P{k}" for k, n in enumerate([*PATHS, "a/p9.png", "x"])], "2 of 6 lines are of no image"),
        (
            [f"{n},P{k}" for k, n in enumerate([*PATHS, "p0.png"])],
            "1 of 5 lines are names of several images .give their paths.: line 6: 'p0.png'",
        ),
        ([f"{n},P" for n in PATHS[:2]], "2 of 4 images have no line .b/other.png, b/p0.png.; give each its patient"),
        (
            [*(f"{n},P" for n in PATHS), "a/p0,Q"],
            "1 of 5 lines give an image another patient than before: line 6: 'Q', and 'P' on line 2",
        ),
        (
            [*(f"{n},P" for n in PATHS[:3]), "other, "],
            "1 of 4 lines have no patient of at most 300 characters: line 5: ''",
        ),
        ([*(f"{n},P" for n in PATHS[:3]), "other,NaN"], "1 of 4 lines have no patient .*: line 5: 'NaN'"),
        (
            [*(f"{n},P 1" for n in PATHS[:3]), "other,p1"],
            "the patient 'P 1' on line 2 and 'p1' on line 5 differ by case or spacing",
        ),
    ],
)
def test_groups_that_are_not_those_of_the_images_are_refused_by_line(tmp_path, rng, rows, told):
    write_images(tmp_path / "set", rng, {"a": 2, "b": 2})
    (tmp_path / "set/b/p1.png").rename(tmp_path / "set/b/other.png")
    with pytest.raises(UserError, match=told) as caught:
        open_scans(tmp_path / "set", groups=write_groups(tmp_path / "groups.csv", rows))
    assert str(caught.value).startswith(str(tmp_path / "groups.csv"))


@pytest.mark.parametrize(
    ("head", "options", "told"),
    [
        ("image,patient", {}, "has no column patch"),
        (
            "patch,patient",
            {"group_column": "slide"},
            "has no column slide .*; choose one of its columns by --group-column",
        ),
        ("patch,patient", {"group_column": "patch"}, "--group-column patch: names the images"),
        ("site,patient,patch", {}, "say by --group-column which of them is the group"),
        ("patch", {}, "say by --group-column which of them is the group"),
    ],
)
def test_a_column_that_is_missing_is_named(tmp_path, rng, head, options, told):
    write_images(tmp_path / "set", rng, {"a": 2, "b": 2})
    values = ",".join(["a/p0.png"] * len(head.split(",")))
    with pytest.raises(UserError, match=told):
        open_scans(tmp_path / "set", groups=write_groups(tmp_path / "groups.csv", [values], head), **options)
    with pytest.raises(UserError, match=r"--groups .*none\.csv: No such file"):
        open_scans(tmp_path / "set", groups=tmp_path / "none.csv")


def test_the_column_is_the_second_or_that_which_is_named_as_spreadsheets_write_it(tmp_path, rng):
    write_images(tmp_path / "set", rng, {"a": 2, "b": 2})
    rows = [f".\\{name.replace('/', chr(92))};{k % 2};S{k}" for k, name in enumerate(NAMES)]
    path = write_groups(tmp_path / "g.csv", rows, "Patch;Patient;Slide")
    with (
        open_scans(tmp_path / "set", groups=path) as by_patient,
        open_scans(tmp_path / "set", groups=path, group_column="SLIDE") as by_slide,
    ):
        patch = by_slide.offered()[1].patches[1]
        assert (by_patient.group_of(patch), by_slide.group_of(patch)) == ("1", "S3")
        assert (by_patient.groups.column, by_slide.groups.column) == ("patient", "slide")
        assert by_patient.identity != by_slide.identity
        assert by_slide.flags.endswith(f"--groups {path} --group-column slide")


def test_a_group_on_both_sides_fails_the_audits_check_and_is_named(tmp_path, rng):
    write_images(tmp_path / "set", rng, both("a", "b"))
    rows = [
        f"{split}/{name}/p{k}.png,{split if k else 'P1'}{name if k else ''}"
        for split in ("train", "test")
        for name in "ab"
        for k in range(2)
    ]
    with open_scans(tmp_path / "set", groups=write_groups(tmp_path / "groups.csv", rows)) as folder:
        manifest = cut_patches(folder)
        found = check_groups(folder, manifest)
        assert (found.verdict, found.findings, found.of) == ("FAILED", ["P1"], "patches")
        assert "patient: 1 are both in training and in test: 'P1' (3 in training and 3 in test)" in found.detail
        kept = tuple(p for p in manifest.patches if not (p.split == "test" and p.patch_id.endswith("p0")))
        assert check_groups(folder, replace(manifest, patches=kept)).verdict == "passed"
        assert folder.marks["groups"]["column"] == "patient"
    with open_scans(tmp_path / "set") as folder:
        assert check_groups(folder, manifest).verdict == "not applicable"
        assert "groups" not in folder.marks


def test_groups_are_refused_of_what_is_no_folder_of_images(tmp_path, rng):
    path = write_scans(tmp_path / "scans.h5", [rng.integers(0, 200, (16, 16), dtype="uint8")])
    with pytest.raises(UsageError, match="--groups is for a folder of images, and this is a scan file"):
        open_scans(path, groups=tmp_path / "g.csv")
