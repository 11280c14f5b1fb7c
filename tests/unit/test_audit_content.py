"""What patches show is held against their labels and against one another: dark places, patches unlike the rest."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from kimiajax.cli.main import main
from kimiajax.data.audit.audit import NOT_TOLD, TRUSTED, record_of, run_audit
from kimiajax.data.audit.checks import FAILED, NOTE, PASSED, UNTOLD
from kimiajax.data.audit.labels import looks_of
from kimiajax.data.manifest import Manifest, Patch
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import Patches, read_patches
from kimiajax.data.patches import cut_patches

CLASSES = ("breast", "colon", "liver")
DARKER = {"breast": 0, "colon": 40, "liver": 80}  # gray levels


def classes_of_patches(path, rng, *, train=20, test=4, label=lambda name, k: name, draw=None):
    """A folder of patches whose classes are of different brightness; `label` names the class that each is put in."""
    for split, count in (("train", train), ("test", test)):
        for number, name in enumerate(CLASSES):
            for k in range(count):
                into = path / split / f"s{CLASSES.index(label(name, k) if split == 'test' else name)}"
                into.mkdir(parents=True, exist_ok=True)
                pixels = (draw or tissue_of)(rng, name, split, k)
                Image.fromarray(pixels).save(into / f"{number}_{k}.png")
    return path


def tissue_of(rng, name, *_):
    return (np.clip(20 * gaussian_filter(rng.normal(size=(64, 64)), 1) * 4, -60, 60) + 180 - DARKER[name]).astype(
        np.uint8
    )


def found(path, name, **options):
    audit = run_audit(path, **options)
    return audit.verdict, next(check for check in audit.checks if check.name == name)


def test_labels_of_patches_are_told_by_what_they_look_like(tmp_path, rng):
    verdict, check = found(classes_of_patches(tmp_path / "right", rng), "labels")
    assert (verdict, check.verdict) == (TRUSTED, PASSED)
    assert "12 of 12 test patches" in check.detail

    def next_class(name, _):
        return CLASSES[(CLASSES.index(name) + 1) % 3]

    verdict, check = found(classes_of_patches(tmp_path / "round", rng, label=next_class), "labels")
    assert (verdict, check.verdict) == (NOT_TOLD, UNTOLD)
    assert check.findings[0] == {"those of": "s0", "look like": "s2"}

    mixed = classes_of_patches(tmp_path / "mixed", rng, label=lambda _, k: CLASSES[k % 3])
    assert found(mixed, "labels")[0] == NOT_TOLD

    few = classes_of_patches(tmp_path / "few", rng, test=1)
    verdict, check = found(few, "labels")
    assert verdict == NOT_TOLD
    assert "3 of 3 test patches" in check.detail
    assert "may be chance" in check.detail


def test_a_class_whose_test_patches_are_anothers_leaves_labels_untold(tmp_path, rng):
    """Which no exchange of names would mend."""
    moved = classes_of_patches(tmp_path / "a", rng, test=8, label=lambda name, _: "breast" if name == "colon" else name)
    for k in range(2):
        (tmp_path / "a/test/s1").mkdir(exist_ok=True)
        Image.fromarray(tissue_of(rng, "breast")).save(tmp_path / "a/test/s1" / f"x{k}.png")
    verdict, check = found(moved, "labels")
    assert (verdict, check.verdict) == (NOT_TOLD, UNTOLD)
    half = classes_of_patches(tmp_path / "b", rng, test=12, label=lambda name, k: name if k % 2 else CLASSES[k % 3])
    verdict, check = found(half, "labels")
    assert (verdict, check.findings) == (NOT_TOLD, ["s0", "s1", "s2"])


def test_labels_are_told_among_all_patches_where_none_are_held_out(tmp_path, rng):
    pictures = np.concatenate([np.full((20, 64, 64), gray) + rng.integers(0, 9, (20, 64, 64)) for gray in (60, 150)])
    kinds = np.repeat([0, 1], 20)

    def looks(labels):
        patches = tuple(Patch(f"train/s{k}/{n}", int(k), "train") for n, k in enumerate(labels))
        test = Patch("test/s0/x", 0, "test")
        whole = Manifest((*patches, test), 64, 2)
        return looks_of(Patches(whole, pictures.astype(np.uint8), pictures[:1].astype(np.uint8)), apart=False)

    assert looks(kinds).agree == looks(kinds).asked == 41
    assert looks(kinds).chance < 1e-9
    assert looks(rng.permutation(kinds)).chance > 1e-3


def test_a_cut_is_dark_where_its_padding_is_and_the_audit_fails_for_it(tmp_path, rng):
    def padded(rng, name, split, k):
        pixels = tissue_of(rng, name)
        if (name, split, k) == ("colon", "test", 2):
            pixels[:, 50:] = rng.integers(0, 26, (64, 14))
        return pixels

    verdict, check = found(classes_of_patches(tmp_path / "a", rng, draw=padded), "dark and flat patches")
    assert (verdict, check.findings) == (FAILED, [{"patch": "test/s1/1_2", "dark": 0.125}])


@pytest.mark.parametrize(("blurred", "verdict"), [(0, PASSED), (1, NOTE), (8, UNTOLD)])
def test_patches_unlike_the_rest_are_named_and_many_of_them_leave_the_audit_untold(tmp_path, rng, blurred, verdict):
    def some(rng, name, split, k):
        pixels = tissue_of(rng, name)
        if (name, split) == ("liver", "train") and k < blurred:
            return gaussian_filter(pixels, 5)
        return pixels

    of_audit, check = found(classes_of_patches(tmp_path / "a", rng, draw=some), "patches unlike the rest")
    assert (check.verdict, len(check.findings)) == (verdict, blurred)
    assert of_audit == (NOT_TOLD if verdict == UNTOLD else TRUSTED)
    assert ("train/s2/2_0" in check.findings) == (blurred > 0)


@pytest.mark.parametrize("change", [lambda pixels: gaussian_filter(pixels, 4), lambda pixels: pixels // 8])
def test_test_patches_that_are_all_unlike_training_patches_leave_the_audit_untold(tmp_path, rng, change):
    def some(rng, name, split, k):
        pixels = tissue_of(rng, name)
        return change(pixels) if split == "test" else pixels

    _, check = found(classes_of_patches(tmp_path / "a", rng, test=8, draw=some), "patches unlike the rest")
    assert check.verdict == UNTOLD


def test_what_official_asks_is_not_held_against_the_data(tmp_path, rng):
    folder = classes_of_patches(tmp_path / "a", rng)
    assert run_audit(folder, official=True, cache=tmp_path / "cache").verdict == FAILED
    with open_scans(folder) as source:
        manifest = read_patches(source, cut_patches(source), 8).manifest
        assert record_of(source.identity, manifest, tmp_path / "cache") is None
        run_audit(folder, cache=tmp_path / "cache")
        assert record_of(source.identity, manifest, tmp_path / "cache")["verdict"] == TRUSTED


def test_an_audit_that_is_not_told_ends_well_and_keeps_the_caution(tmp_path, rng, capsys):
    cache = ["--cache", str(tmp_path / "cache")]
    folder = classes_of_patches(tmp_path / "few", rng, train=3, test=1)
    run = str(tmp_path / "run")
    assert main(["table", "quick", "--scans", str(folder), *cache, "--out", run, "--rows", "floor_histogram"]) == 0
    assert "Not audited:" in capsys.readouterr().out
    assert main(["data", "audit", "--scans", str(folder), *cache, "--out", str(tmp_path / "out")]) == 0
    assert "NOT TOLD: no check failed, and these could not tell: labels." in capsys.readouterr().out
    assert main(["report", run, "--format", "markdown", *cache]) == 0
    told = capsys.readouterr().out
    assert "The audit of these data is NOT TOLD (labels)" in told, "the audit came after the run"
    assert "Not audited" not in told
    assert main(["report", run, "--format", "markdown", "--cache", str(tmp_path / "other")]) == 0
    assert "Not audited" in capsys.readouterr().out
