"""Features and predictions for a user's own patches: the same as the table's, or refused by name."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.scan_files import tissue
from support.slides import draw, write_slide

from kimiajax.cli.main import main
from kimiajax.data.export import export_patches
from kimiajax.data.inference_inputs import read_inputs
from kimiajax.data.manifest import read_manifest
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import prepare_patches
from kimiajax.data.patches import Rules, cut_patches
from kimiajax.data.resize import resize
from kimiajax.data.sources.image_files import read_gray
from kimiajax.errors import UserError
from kimiajax.evaluation.scoring import score
from kimiajax.experiments import inference
from kimiajax.experiments.inference import apply_row, file_names
from kimiajax.features import export
from kimiajax.features.export import export_features
from kimiajax.features.extract import extract_taps
from kimiajax.features.gradcam import grad_cam, overlay
from kimiajax.models.checkpoint import load_converted
from kimiajax.models.head import Classifier
from kimiajax.models.inputs import gray_to_unit_rgb
from kimiajax.report.predictions import render_applied
from kimiajax.runs.layout import RunFolder
from kimiajax.runs.predictions import Applied, write_predictions_csv
from kimiajax.runtime.progress import Silent
from kimiajax.weights.load import load_weights

SIZE = 32
SMALL = ["--image-size", str(SIZE), "--patches-per-scan", "6", "--batch-size", "4", "--conv", "plain"]
# Few steps, small enough that no class swallows the others.
GENTLE = ["--epochs", "3", "--head-epochs", "2", "--cnn-learning-rate", "3e-3", "--head-learning-rate", "1e-5"]
GENTLE += ["--learning-rate", "1e-5"]
ROWS = ["cnn", "fe_two", "tl_two", "floor_histogram", "nn_two_euclidean"]
RANDOM = {"weights": "random", "image_size": SIZE, "conv": "plain"}


@pytest.fixture(scope="module")
def run(scans, cache, tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("run") / "quick"
    command = ["table", "quick", "--scans", str(scans), *SMALL, *GENTLE, "--weights", "random", "--rows", *ROWS]
    assert main([*command, "--out", str(out), "--cache", str(cache)]) == 0
    return out


@pytest.fixture(scope="module")
def exported(scans, tmp_path_factory):
    """All patches that the rules leave, as a folder of images."""
    out = tmp_path_factory.mktemp("exported") / "folder"
    with open_scans(scans) as source:
        export_patches(source, cut_patches(source), out)
    return out


@pytest.fixture(scope="module")
def patches(scans):
    """The same, as they are read elsewhere."""
    with open_scans(scans) as source:
        return prepare_patches(source, Rules(), SIZE)


def lines_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_images(folder, rng, *names, size=40):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tissue(rng, size, size)).save(path)
    return folder


def changed(run, folder, **changes):
    """A copy of a run, whose results were changed."""
    shutil.copytree(run, folder)
    results = json.loads((folder / "results.json").read_text())
    for name, change in changes.items():
        change(results if name == "results" else next(row for row in results["rows"] if row["name"] == name))
    RunFolder(folder).write_results(results)
    return folder


@pytest.mark.parametrize("through", ["scan file", "folder"])
def test_scans_give_their_training_patches_and_then_their_test_patches(scans, exported, patches, through):
    train, test = read_inputs({"scan file": scans, "folder": exported}[through], Rules(), SIZE)
    for part, split, pixels in ((train, "train", patches.train), (test, "test", patches.test)):
        assert part.split == split
        assert sorted(part.ids) == sorted(patch.patch_id for patch in patches.manifest.split(split))
        by_id = dict(zip(part.ids, zip(part.scans.tolist(), part.pixels)))
        for patch, expected in zip(patches.manifest.split(split), pixels):
            scan, found = by_id[patch.patch_id]
            assert scan == patch.scan
            np.testing.assert_array_equal(found, expected)
        assert part.manifest.pixels_sha256 == test.manifest.pixels_sha256


def test_rules_and_a_manifest_choose_among_the_patches_of_scans(scans):
    train, test = read_inputs(scans, Rules(patches_per_scan=2), SIZE)
    assert np.bincount(train.scans).tolist() == [2, 2, 2, 2]
    again = read_inputs(scans, Rules(), SIZE, manifest=train.manifest)
    assert [part.ids for part in again] == [train.ids, test.ids]


def test_whole_slides_are_cut(tmp_path):
    for number in range(2):
        write_slide(tmp_path / f"slide{number}.tif", draw(number))
    train, test = read_inputs(tmp_path, Rules(test_patches_per_scan=3), SIZE, patch_size=64)
    assert (test.ids[0][:8], len(test.ids), set(test.scans)) == ("test/s0/", 6, {0, 1})
    assert len(train.ids) > 6


def test_images_of_a_folder_come_by_the_numbers_in_their_names(tmp_path, rng):
    write_images(tmp_path, rng, "b/p10.png", "b/p9.PNG", "a.tif", "b/deep/x.bmp", ".hidden.png")
    (part,) = read_inputs(tmp_path, Rules(), SIZE)
    assert part.ids == ("a.tif", "b/deep/x.bmp", "b/p9.PNG", "b/p10.png")
    assert (part.scans, part.split, part.manifest) == (None, None, None)
    for name, pixels in zip(part.ids, part.pixels):
        np.testing.assert_array_equal(pixels, resize(read_gray(tmp_path / name), SIZE, "box"))


def test_one_image_goes_by_the_name_of_its_file(tmp_path, rng):
    (part,) = read_inputs(write_images(tmp_path, rng, "a/p1.png") / "a/p1.png", Rules(), SIZE, patch_size=40)
    assert part.ids == ("p1.png",)
    assert part.pixels.shape == (1, SIZE, SIZE)


def add(name, content=b"hello"):
    def change(folder, rng):
        (folder / name).write_bytes(content)

    return change


def add_image(name, height, width):
    return lambda folder, rng: Image.fromarray(tissue(rng, height, width)).save(folder / name)


@pytest.mark.parametrize(
    ("change", "name", "options", "message"),
    [
        (None, "absent", {}, "absent: no such file or folder; give a scan file"),
        (add("notes.txt"), "", {}, r"notes.txt: is no image \(.png, .*\); move it elsewhere"),
        (add("notes.txt"), "notes.txt", {}, "notes.txt: is no image .* and no scan file; give"),
        (add("x.png"), "", {}, r"x.png: not a PNG, JPEG, TIFF or BMP image \(it starts with b'hello'\)"),
        (add("x.tif", b"version https://git-lfs"), "", {}, "x.tif: a Git-LFS pointer"),
        (add("x.h5"), "x.h5", {}, "x.h5: not an HDF5 file"),
        (add("x.svs"), "x.svs", {}, "x.svs: is not a whole slide that OpenSlide reads"),
        (add_image("x.png", 40, 30), "", {}, "x.png: is 40 x 30 pixels, and patches are squares; crop it to 30 x 30"),
        (add_image("x.png", 30, 30), "", {}, "x.png: is 30 x 30 pixels and .*a.png 40 x 40.*give images of one size"),
        (None, "", {"patch_size": 80}, "a.png: is 40 x 40 pixels, and patches of 80 x 80 .* --patch-size 40"),
        (None, "", {"rules": Rules(3)}, "--patches-per-scan chooses patches of scans"),
        (None, "", {"filter": "cubic"}, "no filter 'cubic'"),
    ],
)
def test_what_is_no_patch_is_refused_by_name(tmp_path, rng, change, name, options, message):
    write_images(tmp_path, rng, "a.png")
    if change:
        change(tmp_path, rng)
    with pytest.raises(UserError, match=message):
        read_inputs(tmp_path / name, **{"rules": Rules(), "image_size": SIZE, **options})


def test_a_folder_without_images_and_a_manifest_of_images_are_refused(scans, tmp_path, rng):
    with pytest.raises(UserError, match="holds no images; give a scan file"):
        read_inputs(tmp_path, Rules())
    manifest = read_inputs(scans, Rules(2), SIZE)[0].manifest
    with pytest.raises(UserError, match="--manifest chooses patches of scans"):
        read_inputs(write_images(tmp_path, rng, "a.png"), Rules(), manifest=manifest)


@pytest.mark.parametrize("kind", ["scan file", "exported folder", "plain folder", "one image"])
def test_features_are_those_of_one_pass_in_the_order_of_the_ids(scans, exported, patches, tmp_path, kind):
    path = {
        "scan file": scans,
        "exported folder": exported,
        "plain folder": exported / "test",
        "one image": exported / "test/s1/0.png",
    }[kind]
    record = export_features("cnn", path, tmp_path / "out", cache=tmp_path / "cache", **RANDOM)
    weights = load_weights("cnn", "random", image_size=SIZE)
    both = zip(("train", "test"), (patches.train, patches.test))
    known = {
        patch.patch_id: (feature, str(patch.scan), split)
        for split, images in both
        for patch, feature in zip(
            patches.manifest.split(split),
            extract_taps(weights.backbone, weights.variables, images, ["pooled"])[0]["pooled"],
        )
    }
    lines, features = lines_of(tmp_path / "out" / "ids.csv"), np.load(tmp_path / "out" / "features.npy")
    assert (features.dtype, list(features.shape)) == (np.float32, record["shape"])
    assert len(lines) == len(features) == {"plain folder": 11, "one image": 1}.get(kind, len(known))
    plain = kind in ("plain folder", "one image")
    for line, feature in zip(lines, features):
        name = line["patch_id"]
        own = {"plain folder": f"test/{name}", "one image": f"test/s1/{name}"}.get(kind, name).removesuffix(".png")
        expected, scan, split = known[own]
        np.testing.assert_allclose(feature, expected, rtol=1e-5, atol=1e-6)  # batches of another size
        assert (line["scan"], line["split"]) == (("", "") if plain else (scan, split))
    assert (tmp_path / "out" / "manifest.csv").exists() is not plain
    assert record == json.loads((tmp_path / "out" / "features.json").read_text())
    assert (record["tap"], record["weights"]) == ("pooled", weights.lineage)
    assert (record["source"], record["resize"], record["precision"]) == (str(path), "box", "float32")
    assert "packages" in record["environment"]


def test_features_of_many_patches_are_never_held_at_once(scans, tmp_path, monkeypatch):
    options = {"tap": "block2", **RANDOM}
    export_features("cnn", scans, tmp_path / "whole", **options)
    held = []

    def noted(backbone, variables, images, **options):
        held.append(len(images))
        return extract_taps(backbone, variables, images, batch_size=2, **options)

    monkeypatch.setattr(export, "extract_taps", noted)
    monkeypatch.setattr(export, "batch_size_for", lambda *_: 2)
    monkeypatch.setattr(export, "AT_ONCE", 4 * 4 * (4 * 4 * 64))  # bytes of four patches' outputs
    export_features("cnn", scans, tmp_path / "parts", **options)
    whole, parts = (np.load(tmp_path / name / "features.npy", mmap_mode="r") for name in ("whole", "parts"))
    assert max(held) == 4 < sum(held) == len(whole)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    for name in ("ids.csv", "manifest.csv"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()


def test_the_manifest_beside_features_gives_the_same_again(scans, tmp_path):
    first = export_features("cnn", scans, tmp_path / "a", rules=Rules(2, seed=3), **RANDOM)
    manifest = read_manifest(tmp_path / "a" / "manifest.csv")
    again = export_features("cnn", scans, tmp_path / "b", manifest=manifest, **RANDOM)
    assert first["manifest_sha256"] == again["manifest_sha256"] == manifest.sha256
    np.testing.assert_array_equal(*(np.load(tmp_path / name / "features.npy") for name in "ab"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "resnet"}, "no network 'resnet'; choose from vgg16, inception_v3, cnn"),
        ({"tap": "fc2"}, "unknown block 'fc2' of cnn; choose from block1, block2, block3, block4, pooled"),
        ({"image_size": 20}, "20 is too small"),
        ({"weights": "imagenet"}, "no ImageNet weights are published for cnn"),
        ({"network": "vgg16", "weights": "nowhere.h5"}, "nowhere.h5: no such file"),
        ({"path": "nowhere"}, "nowhere: no such file or folder"),
        ({"patch_size": 40}, "use --patch-size 80"),
        ({"conv": "fast", "precision": "bfloat16"}, "--conv fast: it computes in float32"),
    ],
)
def test_features_that_cannot_be_had_leave_no_folder(scans, tmp_path, options, message):
    given = {"network": "cnn", "path": scans, "out": tmp_path / "out", **RANDOM, **options}
    with pytest.raises(UserError, match=message):
        export_features(**given)
    assert list(tmp_path.iterdir()) == []


def test_features_go_to_a_new_folder_which_is_whole_or_not_there(scans, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine: exists already; choose another --out"):
        export_features("cnn", scans, tmp_path / "mine", **RANDOM)

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_ids", broken)
    with pytest.raises(KeyboardInterrupt):
        export_features("cnn", scans, tmp_path / "out", **RANDOM)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("row", ROWS[:4])
def test_a_row_predicts_for_its_runs_test_patches_what_it_did_in_the_run(run, scans, cache, row):
    applied = apply_row(run / row, [scans], split="test", cache=cache)
    lines = lines_of(run / "predictions" / f"{row}.csv")
    assert applied.ids == tuple(line["patch_id"] for line in lines)
    assert applied.scans.tolist() == [int(line["scan"]) for line in lines]
    assert applied.predicted.tolist() == [int(line["predicted"]) for line in lines]
    assert applied.names == ("scan0", "scan1", "scan2", "scan3")
    assert applied.scores.shape == (len(lines), 4)
    assert applied.scores.min() >= 0
    np.testing.assert_allclose(applied.scores.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(applied.scores.argmax(axis=1), applied.predicted)
    assert applied.kind == ("softmax" if row in ("cnn", "tl_two") else "share of votes")


def test_the_check_of_predictions_sees_more_than_one_scan(run):
    for row in ("cnn", "fe_two", "floor_histogram"):
        assert len({line["predicted"] for line in lines_of(run / "predictions" / f"{row}.csv")}) > 2


@pytest.mark.parametrize("row", ["cnn", "tl_two"])
def test_a_networks_scores_are_the_softmax_of_the_whole_network(run, exported, patches, row):
    weights = load_converted(run / "checkpoints" / row)
    whole = Classifier(weights.backbone, weights.backbone.trunk, 4)
    logits = np.asarray(whole.apply(weights.variables, gray_to_unit_rgb(patches.test))[0])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    by_id = {patch.patch_id: share for patch, share in zip(patches.manifest.split("test"), expected)}
    applied = apply_row(run / row, [exported / "test" / "s1", exported / "test" / "s3" / "4.png"])
    assert applied.ids[-1] == "4.png"
    for name, scores in zip(applied.ids, applied.scores):
        own = f"test/s3/{name}" if name == "4.png" else f"test/s1/{name}"
        np.testing.assert_allclose(scores, by_id[own.removesuffix(".png")], rtol=1e-4)
    assert applied.scans is None


@pytest.mark.parametrize(("precision", "way"), [("float32", "fast"), ("bfloat16", "plain")])
def test_a_row_goes_on_convolving_as_its_run_did_where_it_can(run, exported, tmp_path, monkeypatch, precision, way):
    def fast(results):
        results["conv"]["two"]["way"] = "fast"
        results["config"]["precision"] = precision

    class Listener(Silent):
        def say(self, text):
            heard.append(text)

    def noted(backbone, *given, **options):
        ways.append(backbone.conv)
        return extract_taps(replace(backbone, conv="plain"), *given, **options)  # compiled already

    heard, ways = [], []
    monkeypatch.setattr(export, "extract_taps", noted)
    folder = changed(run, tmp_path / "run", results=fast)
    apply_row(folder / "tl_two", [exported / "test" / "s1" / "0.png"], progress=Listener())
    assert ways == [way]
    assert any("plain convolutions, where the run had fast ones (it computes in float32" in h for h in heard) == (
        way == "plain"
    )


def test_several_paths_are_one_list_and_no_patch_is_there_twice(run, scans, exported):
    row, one = run / "floor_histogram", exported / "test" / "s1" / "0.png"
    test = apply_row(row, scans, split="test")
    applied = apply_row(row, [one, scans, exported / "test" / "s3"])
    assert applied.ids[:2] == ("0.png", "train/s0/0_0")
    assert applied.ids[-3 - len(test.ids) : -3] == test.ids
    assert applied.ids[-3:] == ("4.png", "5.png", "8.png")
    assert len(applied.ids) == len(applied.predicted) == len(applied.scores)
    np.testing.assert_array_equal(applied.scores[0], test.scores[test.ids.index("test/s1/0")])
    assert applied.scans is None, "of some it is not known"
    with pytest.raises(UserError, match=r"s1/0.png: holds 0.png, as .*s1/0.png does; give a folder above both"):
        apply_row(row, [one, one])
    with pytest.raises(UserError, match="other slides are neither for training nor for test; leave --split out"):
        apply_row(row, [scans, one], split="test")
    with pytest.raises(UserError, match="no images are given"):
        apply_row(row, [])


@pytest.mark.parametrize("row", ["cnn", "floor_histogram"])
def test_predictions_are_written_as_score_reads_them(run, scans, exported, tmp_path, row):
    applied = apply_row(run / row, [scans], split="test")
    write_predictions_csv(tmp_path / "p.csv", applied)
    entry = next(each for each in json.loads((run / "results.json").read_text())["rows"] if each["name"] == row)
    assert score(tmp_path / "p.csv", scans).eta_total == pytest.approx(entry["eta_total"], rel=1e-12)
    line = lines_of(tmp_path / "p.csv")[0]
    assert list(line) == ["patch_id", "scan", "predicted", "name", *(f"score_{k}" for k in range(4))]
    assert line["name"] == f"scan{line['predicted']}"
    assert sum(float(line[f"score_{k}"]) for k in range(4)) == pytest.approx(1, abs=1e-5)
    write_predictions_csv(tmp_path / "q.csv", apply_row(run / row, [exported / "test" / "s0"]))
    assert "scan" not in lines_of(tmp_path / "q.csv")[0]


def test_grad_cam_gives_a_picture_of_each_patch_as_the_network_sees_it(run, scans, tmp_path):
    applied = apply_row(run / "cnn", [scans], patches_per_scan=1, pictures=tmp_path / "maps", layer="block2")
    files = {path.name: path for path in (tmp_path / "maps").iterdir()}
    assert set(files) == {f"{patch_id.replace('/', '_')}-gradcam.png" for patch_id in applied.ids}
    weights = load_converted(run / "checkpoints" / "cnn")
    parts = read_inputs(scans, Rules(1), SIZE)
    images = np.concatenate([part.pixels for part in parts])
    classifier = Classifier(weights.backbone, weights.backbone.trunk, 4)
    maps = grad_cam(classifier, weights.variables, images, classes=applied.predicted, layer="block2")
    for patch_id, image, heat in zip(applied.ids, images, maps.heat):
        picture = np.asarray(Image.open(files[f"{patch_id.replace('/', '_')}-gradcam.png"]))
        assert (picture.shape, picture.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert np.abs(picture.astype(int) - overlay(image, heat)).max() <= 1  # batches of another size


def test_no_two_pictures_have_one_name():
    ids = ["a/b.png", "a_b.png", "A_B.jpg", "a_b-2", "../ä ö.png", "..", "v1.5", "x" * 300 + "1", "x" * 300 + "2"]
    names = file_names(ids)
    assert names[:8] == ["a_b", "a_b-2", "A_B-3", "a_b-2-2", "patch", "patch-2", "v1.5", "x" * 179 + "1"]
    assert len({name.lower() for name in names}) == len(ids)


def test_a_failure_at_the_pictures_leaves_no_folder(run, exported, tmp_path, monkeypatch):
    image = [exported / "test" / "s1" / "0.png"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine: exists already; choose another --grad-cam"):
        apply_row(run / "cnn", image, pictures=tmp_path / "mine")
    with pytest.raises(UserError, match=r"no layer 'pooled' of cnn .*; choose from block1"):
        apply_row(run / "cnn", image, pictures=tmp_path / "maps", layer="pooled")
    with pytest.raises(UserError, match=r"fe_two: an SVM, into which Grad-CAM cannot look; .*\(cnn, tl_two\)"):
        apply_row(run / "fe_two", image, pictures=tmp_path / "maps")
    monkeypatch.setattr(inference, "overlay", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        apply_row(run / "cnn", image, pictures=tmp_path / "maps")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ("tl_three", {}, "has no finished row 'tl_three'; it has cnn, fe_two, tl_two, floor_histogram, nn_"),
        ("", {}, "quick: is a run; give one of its rows, as .*quick/cnn"),
        ("absent/cnn", {}, "absent/results.json: no such file"),
        ("nn_two_euclidean", {}, "NN-Two learns nothing, .*; use fe_two, or `kimiajax features two`"),
        ("cnn", {"weights": "random"}, "--weights is for rows of features"),
        (
            "fe_two",
            {"weights": "nowhere.h5"},
            "nowhere.h5: no such file.*; .*fe_two needs the two weights .*random",
        ),
        ("cnn", {"patch_size": 40}, "use --patch-size 80"),
    ],
)
def test_a_row_that_cannot_be_applied_is_refused_with_the_remedy(run, scans, row, options, message):
    with pytest.raises(UserError, match=message):
        apply_row(run / row, [scans], **options)


def test_images_of_another_size_than_the_runs_patches_must_be_meant(run, tmp_path, rng):
    images = [write_images(tmp_path, rng, "a.png", "b.png")]
    with pytest.raises(UserError, match=r"a.png: is 40 x 40 pixels, and patches of 80 x 80 are expected"):
        apply_row(run / "floor_histogram", images)
    assert apply_row(run / "floor_histogram", images, patch_size=40).ids == ("a.png", "b.png")


def setting(**values):
    return lambda entry: entry.update(values)


def in_config(**values):
    return lambda results: results["config"].update(values)


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ("cnn", {"cnn": setting(failure="the loss is nan")}, "cnn: cannot be relied on, .* the loss is nan"),
        ("cnn", {"cnn": setting(learnt_sha256="0" * 64)}, "checkpoints/cnn: was changed since .*results.json was"),
        ("fe_two", {"fe_two": setting(learnt_sha256="0" * 64)}, "checkpoints/fe_two: was changed"),
        ("fe_two", {"results": in_config(seed=1)}, "random: holds other weights, .* needs the two weights"),
        ("cnn", {"results": setting(schema_version=99)}, "use a newer kimiajax"),
        ("cnn", {"results": setting(runs=["seed-0", "seed-1"])}, "2 seeds; give a row of one, as .*run/seed-0/cnn"),
        ("cnn", {"results": setting(rows=[])}, "it has none yet"),
    ],
)
def test_a_run_that_was_changed_is_refused(run, scans, tmp_path, row, changes, message):
    with pytest.raises(UserError, match=message):
        apply_row(changed(run, tmp_path / "run", **changes) / row, [scans])


def test_a_checkpoint_that_is_missing_or_damaged_is_refused(run, scans, tmp_path):
    folder = changed(run, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "cnn")
    with pytest.raises(UserError, match="checkpoints/cnn: is missing; the same `kimiajax table`"):
        apply_row(folder / "cnn", [scans])
    for file in (folder / "checkpoints" / "floor_histogram").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoints/floor_histogram: cannot be read .*; the same `kimiajax table`"):
        apply_row(folder / "floor_histogram", [scans])


def test_the_first_patches_are_shown_and_the_others_counted():
    scores = np.array([[0.2, 0.5, 0.3], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    applied = Applied(("s0", "s1", "s2"), ("a", "b", "c"), None, np.array([1, 0, 0]), scores, "softmax")
    lines = render_applied(applied, most=2).splitlines()
    shown = [line.split() for line in lines if line.strip().startswith(("a ", "b ", "c "))]
    assert shown == [["a", "1", "s1", "0.500", "2", "s2", "0.300"], ["b", "0", "s0", "0.500", "1", "s1", "0.500"]]
    assert any("and 1 more patches" in line for line in lines)
    assert "more patches" not in render_applied(applied)
    marked = replace(applied, warnings=("SYNTHETIC SCANS",))
    assert render_applied(marked).startswith("The run: SYNTHETIC SCANS")
    alone = Applied(("s0",), ("a",), None, np.array([0]), np.ones((1, 1)), "share of votes")
    assert "0 s0" in render_applied(alone)


def test_calibrated_weights_are_saved_in_the_run_and_predict_as_it_did(scans, cache, tmp_path, two):
    flags = [*SMALL, *GENTLE, "--weights", "calibrated", "--rows", "fe_two", "hd_two", "--out", str(tmp_path / "run")]
    assert main(["table", "quick", "--scans", str(scans), *flags, "--cache", str(cache)]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert load_converted(tmp_path / "run" / "weights" / "two").lineage == results["weights"]["two"]
    for row in ("fe_two", "hd_two"):
        applied = apply_row(tmp_path / "run" / row, scans, split="test", cache=cache)
        lines = lines_of(tmp_path / "run" / "predictions" / f"{row}.csv")
        assert applied.predicted.tolist() == [int(line["predicted"]) for line in lines]
    shutil.rmtree(tmp_path / "run" / "weights")
    with pytest.raises(UserError, match=r"weights/two: no such file.*needs the two weights"):
        apply_row(tmp_path / "run" / "fe_two", scans, cache=cache)
