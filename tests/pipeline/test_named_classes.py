"""From a folder a class to a table and predictions that speak of classes by name."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from kimiajax.cli.main import main

NAMES = ["Breast (core)", "grade 2", "grade 10"]
LEVELS = {"Breast (core)": 60, "grade 2": 120, "grade 10": 180, "other": 90}


def write_images(root, counts):
    """Images of a class's own gray level, so that a histogram tells classes apart."""
    rng = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        level = LEVELS[folder.rpartition("/")[2]]
        for k in range(count):
            pixels = rng.integers(level - 20, level + 20, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"p{k}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on classes without test images, and the command that made it but for its groups."""
    root = tmp_path_factory.mktemp("classes")
    write_images(root / "set", {"Breast (core)": 10, "grade 2": 5, "grade 10": 20})
    groups = [f"{name}/p{k},{name[-1]}{k // 2}" for name, count in zip(NAMES, (10, 5, 20)) for k in range(count)]
    (root / "groups.csv").write_text("\n".join(["patch,patient", *groups, ""]))
    command = ["table", "quick", "--scans", str(root / "set"), "--rows", "floor_histogram", "--image-size", "16"]
    command += ["--cache", str(root / "cache"), "--out", str(root / "run")]
    assert main([*command, "--groups", str(root / "groups.csv")]) == 0
    return root, command


def test_a_table_speaks_of_classes_by_name_and_not_of_the_paper(run, capsys):
    root, command = run
    assert main([*command, "--groups", str(root / "groups.csv")]) == 0
    shown = capsys.readouterr().out
    results = json.loads((root / "run" / "results.json").read_text())
    assert (results["data"]["names"], results["rows"][0]["paper"]) == (NAMES, None)
    groups = results["data"]["groups"]
    assert (groups["column"], groups["groups"], groups["shared"]) == ("patient", 18, [])
    for note in (
        "The data are a folder of images of 3 classes: Breast (core), grade 2, grade 10.",
        f"Test patches were drawn from these by --test-seed 0, whole groups by patient: {groups['test']} of 18.",
        "Classes Breast (core), grade 2, grade 10 have fewer than the 20 training patches asked for, and give all.",
    ):
        assert note in results["notes"], note
    flags = f"--scans {root / 'set'} --groups {root / 'groups.csv'} --group-column patient"
    assert any(note.startswith(f"Not audited: `kimiajax data audit {flags}`") for note in results["notes"])
    assert "3 classes, " in shown
    assert "paper" not in shown


def test_other_groups_make_another_run(run, tmp_path, capsys):
    root, command = run
    assert main([*command, "--groups", str(root / "groups.csv")]) == 0, "the same, by another path as well"
    changed = tmp_path / "groups.csv"
    changed.write_text((root / "groups.csv").read_text().replace("grade 10/p1,00", "grade 10/p1,X"))
    capsys.readouterr()
    assert main([*command, "--groups", str(changed)]) == 2
    assert "holds another run" in capsys.readouterr().err


def predicted(root, images, out):
    assert main(["predict", str(root / "run/floor_histogram"), str(images), "--out", str(out)]) == 0
    with out.open() as file:
        return list(csv.DictReader(file))


def test_predictions_name_the_class_and_number_it_as_the_run_does(run, tmp_path, capsys):
    root, _ = run
    some = write_images(tmp_path / "some", {f"{s}/{name}": 2 for s in ("train", "test") for name in NAMES[1:]})
    lines = predicted(root, some, tmp_path / "some.csv")
    assert [(line["scan"], line["name"]) for line in lines[:4]] == [("1", "grade 2")] * 2 + [("2", "grade 10")] * 2
    assert "2 grade 10" in capsys.readouterr().out
    other = write_images(
        tmp_path / "other", {f"{s}/{name}": 1 for s in ("train", "test") for name in ("grade 2", "other")}
    )
    assert "scan" not in predicted(root, other, tmp_path / "other.csv")[0]
    plain = predicted(root, root / "set", tmp_path / "plain.csv")
    assert (plain[0]["patch_id"], "scan" in plain[0]) == ("Breast (core)/p0.png", False)


def test_a_score_names_classes_and_refuses_those_that_are_numbered_otherwise(run, tmp_path, capsys):
    root, _ = run
    whole = write_images(tmp_path / "whole", {f"{s}/{name}": 2 for s in ("train", "test") for name in NAMES})
    lines = predicted(root, whole, tmp_path / "p.csv")
    kept = [line for line in lines if line["patch_id"].startswith("test/")]
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, kept[0])
        writer.writeheader()
        writer.writerows(kept)
    assert main(["score", str(tmp_path / "p.csv"), "--truth", str(whole)]) == 0
    assert "2 grade 10" in capsys.readouterr().out
    (tmp_path / "p.csv").write_text((tmp_path / "p.csv").read_text().replace(",grade 10,", ",grade X,"))
    assert main(["score", str(tmp_path / "p.csv"), "--truth", str(whole)]) == 2
    assert "predicted classes have another name there ('grade X' and not 'grade 10')" in capsys.readouterr().err


def test_a_group_in_training_and_test_is_told_by_the_table(run, tmp_path, capsys):
    whole = write_images(tmp_path / "set", {f"{s}/{name}": 2 for s in ("train", "test") for name in NAMES})
    lines = [f"{s}/{name}/p{k},{name}" for s in ("train", "test") for name in NAMES for k in range(2)]
    (tmp_path / "groups.csv").write_text("\n".join(["patch,slide", *lines, ""]))
    command = ["table", "quick", "--scans", str(whole), "--rows", "floor_histogram", "--image-size", "16"]
    command += [
        "--groups",
        str(tmp_path / "groups.csv"),
        "--out",
        str(tmp_path / "run"),
        "--cache",
        str(tmp_path / "c"),
    ]
    assert main(command) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Slide Breast (core), grade 10, grade 2 have patches in training and in test: figures are too high" in told
