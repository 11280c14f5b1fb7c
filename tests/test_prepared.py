"""Sets that TFDS prepared as array_record: read right without TensorFlow, or refused in one line."""

import contextlib
import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tensorflow_datasets import features as kinds
from test_imports import run as run_python

from kimiajax.cli import main
from kimiajax.data.folders import Folder
from kimiajax.data.images import read_gray
from kimiajax.data.opening import open_scans
from kimiajax.data.patches import Rules, cut_patches
from kimiajax.data.prepared import Prepared
from kimiajax.data.reading import read_patches
from kimiajax.data.sets import Dataset, prepared_in, quiet_tfds
from kimiajax.errors import UsageError, UserError

TISSUES = ["01_TUMOR", "02_STROMA", "03_COMPLEX"]
COLOUR = {
    "image": kinds.Image(shape=(None, None, 3)),
    "label": kinds.ClassLabel(names=TISSUES),
    "filename": kinds.Text(),
}
GRAY = {"picture": kinds.Image(shape=(None, None, 1)), "grade": np.int64, "patient": kinds.Text()}
KEYS = {"image": "picture", "label": "grade"}
HELD_OUT = Rules(test_patches_per_scan=1)


class Foreign(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set of whoever, with the features and the examples that a test gives."""

    name = "foreign"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, kinds_of: dict[str, Any], splits: dict[str, list[dict[str, Any]]], **options: Any):
        self._kinds, self._splits = kinds_of, splits
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=kinds.FeaturesDict(self._kinds))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(examples) for split, examples in self._splits.items()}

    def _generate_examples(self, examples: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        return iter(enumerate(examples))


class Configured(Foreign, skip_registration=True):
    """The same in two configs."""

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("small", "large")]  # noqa: RUF012


def prepare(root, splits, features=COLOUR, shards=1, kind=Foreign, **options):
    """Prepares a set anew, and returns its folder."""
    tfds.disable_progress_bar()
    with quiet_tfds():
        builder = kind(features, splits, data_dir=str(root), **options)
        shutil.rmtree(builder.data_dir, ignore_errors=True)
        builder = kind(features, splits, data_dir=str(root), **options)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    return Path(builder.data_dir)


def encoded(pixels, kind="PNG", **options):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def noise(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def gray_of(content):
    """What `read_gray` should give of a gray or an RGB image, to one gray value."""
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    return pixels if pixels.ndim == 2 else (pixels @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)


def colours(rng, count=6, **changes):
    """So many examples of each tissue; a change is a value, or a function of the example's number."""
    examples = []
    for k in range(3 * count):
        example = {"image": encoded(noise(rng, 8, 8, 3)), "label": k % 3, "filename": f"tile_{k}.tif"}
        changed = {name: value(k) if callable(value) else value for name, value in changes.items()}
        examples.append(example | changed)
    return examples


def grays(rng, count, classes=2):
    return [{"picture": encoded(noise(rng, 8, 8)), "grade": k % classes, "patient": f"p{k // 3}"} for k in range(count)]


@contextlib.contextmanager
def opened(root, *, cache=None, name="foreign", **which):
    with open_scans(Dataset(name, root, **which), cache=cache) as source:
        yield source


def read_all(root, **which):
    """Every record that is used, read as the table reads it."""
    with opened(root, **which) as source:
        return read_patches(source, cut_patches(source, HELD_OUT), 8)


def refusal(root, **which):
    """What is said, in one line, when a set is opened and read."""
    with pytest.raises(UserError) as caught:
        read_all(root, **which)
    message = str(caught.value)
    assert "\n" not in message
    return message


def of_split(source, split):
    """Each patch's scan and its pixels, by name."""
    patches = cut_patches(source, HELD_OUT).split(split)
    return {patch.patch_id: (patch.scan, source.read_patch(patch)) for patch in patches}


def assert_written(found, examples, image="image", label="label"):
    """That patches are the examples: as many, each with the label that its pixels had, whatever their order."""
    wanted = [(example[label], gray_of(example[image]).astype(int)) for example in examples]
    assert len(found) == len(wanted)
    for scan, pixels in found.values():
        close = [k for k, (_, other) in enumerate(wanted) if np.abs(pixels.astype(int) - other).max() <= 1]
        assert len(close) == 1
        assert wanted.pop(close[0])[0] == scan


# A colour set with a training split alone, as colorectal_histology is


@pytest.fixture(scope="module")
def tissues():
    return colours(np.random.default_rng(3))


@pytest.fixture(scope="module")
def colour(tissues, tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    prepare(root, {"train": tissues}, shards=2)
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def table(root, out, *more):
    command = ["table", "demo", "--dataset", "foreign", "--data-dir", str(root), "--out", str(out)]
    command += ["--rows", "floor_histogram", "floor_mean_sd", "--patches-per-scan", "2"]
    return [*command, "--test-patches-per-scan", "2", *map(str, more)]


@pytest.fixture(scope="module")
def run(colour, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(table(colour, out, "--cache", cache)) == 0
    return out


def results_of(out):
    return json.loads((out / "results.json").read_text())


def lines_of(out, split):
    with (out / "manifest.csv").open(newline="") as stream:
        return [line for line in csv.DictReader(stream) if line["split"] == split]


def test_a_foreign_set_goes_through_the_table_under_its_classes_names(run, colour):
    results = results_of(run)
    data = results["data"]
    assert (data["kind"], data["names"], data["source"]) == (
        "prepared data set",
        TISSUES,
        str(colour / "foreign" / "1.0.0"),
    )
    assert (data["scans"], data["patch_size"], data["synthetic"], data["unverified"]) == (3, 8, False, None)
    assert (data["train_per_scan"], data["test_per_scan"]) == ([2, 2, 2], [2, 2, 2])
    assert [row["name"] for row in results["rows"]] == ["floor_mean_sd", "floor_histogram"]
    assert all(row["tested"] == 6 for row in results["rows"])
    assert [json.loads((run / "manifest.json").read_text())["source"][key] for key in ("dataset", "records")] == [
        "foreign:1.0.0",
        {"train": 18},
    ]


def test_held_out_patches_train_nothing_and_are_the_test_seeds_alone(run, colour, cache, tmp_path):
    for name, flags in (("seed", ["--seed", "1"]), ("test", ["--test-seed", "1"])):
        assert main(table(colour, tmp_path / name, "--cache", cache, *flags)) == 0
    held_out = {}
    for out in (run, tmp_path / "seed", tmp_path / "test"):
        train, test = ({line["sha256"] for line in lines_of(out, split)} for split in ("train", "test"))
        assert (len(train), len(test), train & test) == (6, 6, set())
        assert all(line["patch_id"].startswith(f"test/s{line['scan']}/") for line in lines_of(out, "test"))
        held_out[out] = test
    assert held_out[tmp_path / "seed"] == held_out[run] != held_out[tmp_path / "test"]
    assert lines_of(tmp_path / "seed", "train") != lines_of(run, "train")


def test_the_report_says_that_it_is_not_kimia_path24(run, capsys):
    assert main(["report", str(run), "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    assert "Not Kimia Path24, which has 24 scans" in text
    assert "foreign" in text


def test_the_same_command_resumes_and_a_set_prepared_anew_is_another_run(tmp_path, rng, capsys):
    root, out = tmp_path / "sets", tmp_path / "out"
    prepare(root, {"train": colours(rng)})
    assert main(table(root, out)) == 0
    capsys.readouterr()
    assert main(table(root, out)) == 0
    assert "all rows were finished before" in capsys.readouterr().err
    prepare(root, {"train": colours(rng)})
    assert main(table(root, out)) == 2
    assert "holds another run: " in capsys.readouterr().err


def test_a_manifest_of_the_set_gives_the_same_patches_held_out_ones_too(run, colour, cache, tmp_path, rng, capsys):
    manifest = ["--manifest", run / "manifest.csv"]
    assert main(table(colour, tmp_path / "again", "--cache", cache, *manifest)) == 0
    assert results_of(tmp_path / "again")["data"]["pixels_sha256"] == results_of(run)["data"]["pixels_sha256"]
    prepare(tmp_path / "few", {"train": colours(rng, 1)})
    prepare(tmp_path / "other", {"train": colours(rng)})
    for root, message in (("few", "holds no record of train/s"), ("other", "has other pixels than the manifest says")):
        assert main(table(tmp_path / root, tmp_path / "out", *manifest)) == 2
        assert message in capsys.readouterr().err


def audit(root, out, *more):
    return main(["data", "audit", "--dataset", "foreign", "--data-dir", str(root), "--out", str(out), *more])


def test_an_audit_passes_a_sound_set_and_fails_one_image_under_two_classes(colour, tissues, tmp_path, capsys):
    assert audit(colour, tmp_path) == 0
    record = json.loads((tmp_path / "audit.json").read_text())
    assert (record["verdict"], record["failed"]) == ("passed", [])
    prepare(tmp_path / "sets", {"train": [*tissues, {**tissues[0], "label": 1}]})
    assert audit(tmp_path / "sets", tmp_path) == 3
    assert "under two scans: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--test-split", "train[80%:]"], "--train-split train and --test-split train[80%:] share"),
        (["--train-split", "train[:60%]", "--test-split", "train[50%:]"], "share"),
        (["--train-split", "train+train"], "no such split; it has train (it names records twice)"),
    ],
)
def test_splits_that_share_records_are_refused(colour, tmp_path, flags, message):
    assert audit(colour, tmp_path, *flags) == 3
    (check,) = json.loads((tmp_path / "audit.json").read_text())["checks"]
    assert (check["name"], check["verdict"]) == ("layout", "FAILED")
    assert message in check["detail"]


def test_an_export_holds_the_records_images(colour, tissues, tmp_path, capsys):
    command = ["data", "export", "--dataset", "foreign", "--data-dir", str(colour), "--test-patches-per-scan", "2"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "12 training and 6 test patches" in capsys.readouterr().out
    with Folder(tmp_path / "out") as folder:
        patches = cut_patches(folder).patches
        found = {patch.patch_id: (patch.scan, folder.read_patch(patch)) for patch in patches}
    assert_written(found, tissues)
    name = next(iter(found))
    with pytest.raises(AssertionError):  # were one label another
        assert_written({**found, name: ((found[name][0] + 1) % 3, found[name][1])}, tissues)


def test_features_of_a_set_are_those_of_its_patches(run, colour, tmp_path):
    command = ["features", "cnn", "--dataset", "foreign", "--data-dir", str(colour), "--weights", "random"]
    command += ["--image-size", "32", "--conv", "plain", "--manifest", str(run / "manifest.csv")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "ids.csv").open(newline="") as stream:
        ids = [(line["patch_id"], line["scan"]) for line in csv.DictReader(stream)]
    listed = [(line["patch_id"], line["scan"]) for split in ("train", "test") for line in lines_of(run, split)]
    assert ids == listed
    features = np.load(tmp_path / "out" / "features.npy")
    assert len(np.unique(features, axis=0)) == len(ids)


# A gray set with splits of its own, whose labels are numbers under other keys


@pytest.fixture(scope="module")
def graded():
    rng = np.random.default_rng(4)
    return {"train": grays(rng, 12), "test": grays(rng, 4), "validation": grays(rng, 6)}


@pytest.fixture(scope="module")
def gray(graded, tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    prepare(root, graded, GRAY, shards=3)
    return root


@pytest.mark.parametrize("test", [None, "validation"])
def test_records_have_their_labels_and_pixels_through_all_shards(gray, graded, test):
    with opened(gray, **KEYS, test=test) as source:
        assert (source.names, source.patch_size) == (("0", "1"), 8)
        assert_written(of_split(source, "train"), graded["train"], **KEYS)
        assert_written(of_split(source, "test"), graded[test or "test"], **KEYS)


def test_a_slice_of_a_split_is_its_first_records(gray):
    with opened(gray, **KEYS) as source:
        whole = of_split(source, "train")
    parts = []
    for train in ("train[:50%]", "train[50%:]"):
        with opened(gray, **KEYS, train=train) as source:
            parts.append(of_split(source, "train"))
    assert [len(part) for part in (whole, *parts)] == [12, 6, 6]
    for name, (scan, pixels) in parts[0].items():
        assert scan == whole[name][0]
        np.testing.assert_array_equal(pixels, whole[name][1])
    first, last = ({pixels.tobytes() for _, pixels in part.values()} for part in parts)
    assert not first & last


def test_the_command_line_takes_keys_and_splits(gray, tmp_path):
    flags = ["--image-key", "picture", "--label-key", "grade", "--test-split", "validation"]
    assert main(table(gray, tmp_path, *flags, "--train-split", "train[:50%]", "--patches-per-scan", "all")) == 0
    data = results_of(tmp_path)["data"]
    assert (data["names"], data["train"], data["test_per_scan"]) == (["0", "1"], 6, [3, 3])


def test_the_audit_that_a_run_names_is_one_of_its_data(gray, tmp_path, capsys):
    """By the keys and the splits that the run was given."""
    cache = tmp_path / "cache"
    flags = ["--image-key", "picture", "--label-key", "grade", "--test-split", "validation", "--cache", cache]
    assert main(table(gray, tmp_path / "out", *flags)) == 0
    (note,) = (note for note in results_of(tmp_path / "out")["notes"] if note.startswith("Not audited"))
    command = note.split("`")[1].removeprefix("kimiajax ").split()
    assert main([*command, "--cache", str(cache), "--out", str(tmp_path / "audit")]) == 0, capsys.readouterr().out
    assert main(table(gray, tmp_path / "again", *flags)) == 0
    assert results_of(tmp_path / "again")["data"]["audit"]["verdict"] == "passed"


def test_configs_and_versions_are_named_as_tfds_names_them(tmp_path, rng):
    for config, count in (("small", 1), ("large", 2)):
        prepare(tmp_path, {"train": colours(rng, count)}, kind=Configured, config=config)
    prepare(tmp_path, {"train": colours(rng, 3)})
    for name, count in (
        ("configured/small", 3),
        ("configured/large:1.0.0", 6),
        ("foreign:1.0.0", 9),
        ("foreign:1.*.*", 9),
        ("foreign", 9),
    ):
        with opened(tmp_path, name=name) as source:
            assert sum(len(scan.patches) for scan in source.offered()) == count
    assert "holds no prepared 'configured/huge'" in refusal(tmp_path, name="configured/huge")


def test_every_name_that_a_refusal_lists_is_one_that_opens(tmp_path, rng):
    prepare(tmp_path, {"train": colours(rng, 1)}, kind=Configured, config="small")
    prepare(tmp_path, {"train": colours(rng, 1)})
    listed = prepared_in(tmp_path)
    assert len(listed) == 2
    message = refusal(tmp_path, name="absent")
    for name in listed:
        assert name in message
        with opened(tmp_path, name=name) as source:
            assert source.names == tuple(TISSUES)


def test_a_set_that_is_half_prepared_is_not_listed(tmp_path, rng):
    folder = prepare(tmp_path, {"train": colours(rng, 1)})
    shutil.copytree(folder, folder.parent / "incomplete.ABC123_1.0.0")
    assert len(prepared_in(tmp_path)) == 1


def test_without_a_folder_sets_are_those_of_tfds(colour, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(colour))
    with opened(None) as source:
        assert source.path == colour / "foreign" / "1.0.0"


def test_a_relative_folder_serves(colour, monkeypatch):
    monkeypatch.chdir(colour.parent)
    assert len(read_all(Path(colour.name)).train) == 15


def test_patches_of_another_size_than_asked_for_are_refused(colour):
    with pytest.raises(UsageError, match="use --patch-size 8"):
        open_scans(Dataset("foreign", colour), 9)


def test_what_tfds_says_by_the_way_is_kept_back_and_then_no_more(capsys):
    def speak():
        with quiet_tfds():
            print("by the way")
            raise KeyError(logging.get_verbosity())

    before, stdout = logging.get_verbosity(), sys.stdout
    logging.set_verbosity(logging.INFO)
    try:
        with pytest.raises(KeyError, match=str(logging.ERROR)):
            speak()
        assert (logging.get_verbosity(), sys.stdout) == (logging.INFO, stdout)
    finally:
        logging.set_verbosity(before)
    assert capsys.readouterr().out == ""


# Pixels

TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be turned by 270 degrees
SHADES = noise(np.random.default_rng(5), 16, 16, 3)
PALETTE = io.BytesIO()
Image.fromarray(SHADES).quantize(16).save(PALETTE, "PNG")
ENCODINGS = {
    "gray JPEG": encoded(SHADES[..., 0], "JPEG"),
    "RGB JPEG": encoded(SHADES, "JPEG", quality=90),
    "turned JPEG": encoded(SHADES, "JPEG", exif=TURNED),
    "gray PNG": encoded(SHADES[..., 1]),
    "RGB PNG": encoded(SHADES),
    "palette PNG": PALETTE.getvalue(),
    "opaque PNG": encoded(np.dstack([SHADES, np.full((16, 16), 255, np.uint8)])),
    "BMP": encoded(SHADES[::-1], "BMP"),
}


def test_pixels_are_those_that_the_same_file_has_in_a_folder(tmp_path):
    features = {**COLOUR, "label": kinds.ClassLabel(names=list(ENCODINGS))}
    examples = [{"image": content, "label": k, "filename": name} for k, (name, content) in enumerate(ENCODINGS.items())]
    prepare(tmp_path, {"train": examples, "test": examples}, features)
    with opened(tmp_path) as source:
        found = {source.names[scan]: pixels for scan, pixels in of_split(source, "test").values()}
    for name, content in ENCODINGS.items():
        file = tmp_path / "image"
        file.write_bytes(content)
        np.testing.assert_array_equal(found[name], read_gray(file), err_msg=name)
        if "turned" not in name and "palette" not in name and "opaque" not in name:
            np.testing.assert_allclose(found[name].astype(int), gray_of(content), atol=1, err_msg=name)
    assert len({pixels.tobytes() for pixels in found.values()}) >= 6, "none is taken for another"


def test_images_that_pillow_gives_are_read_too(tmp_path, rng):
    pixels = [noise(rng, 8, 8, 3) for _ in range(6)]
    prepare(tmp_path, {"train": colours(rng, 2, image=lambda k: Image.fromarray(pixels[k]))})
    with opened(tmp_path) as source:
        found = {**of_split(source, "train"), **of_split(source, "test")}
    assert_written(found, [{"image": encoded(pixels[k]), "label": k % 3} for k in range(6)])


def test_what_else_a_set_holds_is_passed_over(tmp_path, rng):
    others = {
        "thumbnail": kinds.Image(shape=(None, None, 3)),
        "boxes": kinds.Sequence({"area": np.float32, "name": kinds.Text()}),
        "scanner": {"vendor": kinds.Text(), "mpp": np.float32},
        "histogram": kinds.Tensor(shape=(4,), dtype=np.int64),
    }
    values = {
        "thumbnail": lambda k: encoded(noise(rng, 4, 6, 3)),
        "boxes": lambda k: [{"area": 0.5, "name": "nucleus"}] * (k % 3),
        "scanner": {"vendor": "X", "mpp": 0.5},
        "histogram": np.arange(4),
    }
    examples = colours(rng, 2, **values)
    prepare(tmp_path, {"train": examples, "test": examples}, {**COLOUR, **others})
    with opened(tmp_path) as source:
        assert_written(of_split(source, "train"), examples)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (kinds.Image(shape=(None, None, 1), dtype=np.uint16), encoded(np.zeros((8, 8), np.uint16))),
        (kinds.Image(shape=(None, None, 3)), b"no image at all"),
    ],
    ids=["16 bits", "no image"],
)
def test_another_image_that_nobody_asked_for_need_not_be_readable(tmp_path, rng, kind, value):
    prepare(tmp_path, {"train": colours(rng, 2, depth=value)}, {**COLOUR, "depth": kind})
    assert len(read_all(tmp_path).train) == 3


# What is refused


@pytest.mark.parametrize(
    ("which", "messages"),
    [
        ({"name": "absent"}, ["holds no prepared 'absent', but foreign", "--data-dir"]),
        ({"name": ""}, ["holds no prepared '', but foreign"]),
        ({"name": "../sets/foreign"}, ["holds no prepared '../sets/foreign'"]),
        ({"name": "foreign:2.0.0"}, ["holds no prepared 'foreign:2.0.0', but foreign"]),
        ({"label": "class"}, ["--label-key class: no such feature; it has ", "label (ClassLabel)", "filename (Text)"]),
        ({"image": "picture"}, ["--image-key picture: no such feature; it has ", "image (Image)"]),
        ({"label": "filename"}, ["--label-key filename: holds no classes; it has ", "label (ClassLabel)"]),
        ({"label": "image"}, ["--label-key image: holds no classes"]),
        ({"label": "score"}, ["--label-key score: holds no classes"]),
        ({"label": "genes"}, ["--label-key genes: holds no classes"]),
        ({"label": "nested"}, ["--label-key nested: holds no classes"]),
        ({"image": "filename"}, ["--image-key filename: holds no 8-bit images; it has ", "image (Image)"]),
        ({"train": "training"}, ["--train-split training: no such split; it has train"]),
        ({"test": "test"}, ["--test-split test: no such split; it has train"]),
        ({"train": "train["}, ["--train-split train[: no such split; it has train"]),
        ({"train": ""}, ["--train-split : no such split; it has train"]),
        ({"train": "train[:0]"}, ["--train-split train[:0]: is empty"]),
        ({"test": "train[:0]"}, ["--test-split train[:0]: is empty"]),
        ({"train": "train[:1]"}, ["in train[:1]; every class needs a training image"]),
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_is_refused_with_what_there_is(tmp_path, rng, which, messages):
    features = {**COLOUR, "score": np.float32, "genes": kinds.Sequence(np.int64), "nested": {"label": np.int64}}
    values = {"score": 0.5, "genes": [1, 2], "nested": {"label": 0}}
    prepare(tmp_path / "sets", {"train": colours(rng, 2, **values)}, features)
    message = refusal(tmp_path / "sets", **which)
    assert str(tmp_path / "sets") in message
    for expected in messages:
        assert expected in message


def test_a_folder_that_holds_no_set_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder")
    for name in ("empty", "file", "absent"):
        message = refusal(tmp_path / name)
        assert message.startswith(f"{tmp_path / name}: holds no prepared 'foreign'")
        assert "--data-dir" in message


DEEP = encoded(np.zeros((8, 8), np.uint16))


def square(k):
    return encoded(np.full((8 + (k == 4), 8 + (k == 4), 3), 100 + k, np.uint8))


@pytest.mark.parametrize(
    ("changes", "features", "message"),
    [
        ({"label": 0}, {"label": kinds.ClassLabel(names=["only"])}, "--label-key label: has a single class"),
        ({"label": lambda k: k % 2}, {}, "no record of 03_COMPLEX in train; every class needs a training image"),
        ({"label": -1}, {}, "of train has the label -1, which is no class; choose a split that is labelled"),
        ({"image": encoded(np.zeros((8, 9, 3), np.uint8))}, {}, "images of 8 x 9 pixels; patches are squares"),
        ({}, {"image": kinds.Image(shape=(8, 9, 3))}, "images of 8 x 9 pixels; patches are squares"),
        ({"image": square}, {}, "has 9 x 9 pixels and other patches 8 x 8"),
        ({}, {"image": kinds.Image(shape=(9, 9, 3))}, "has 8 x 8 pixels and other patches 9 x 9"),
        ({"image": DEEP}, {"image": kinds.Image(dtype=np.uint16)}, "--image-key image: holds no 8-bit images"),
        ({"image": DEEP}, {}, "more than 8 bits a channel; save it as 8-bit gray"),
        ({"image": encoded(np.zeros((8, 8, 4), np.uint8))}, {}, "is transparent in places"),
        ({"image": b"<!DOCTYPE html>"}, {}, "a web page"),
        ({"image": b""}, {}, "an empty file"),
        ({"image": encoded(noise(np.random.default_rng(6), 8, 8, 3))[:120]}, {}, "a damaged image"),
    ],
    ids=["one", "class", "label", "oblong", "oblong2", "sizes", "sizes2", "16", "16 2", "rgba", "html", "none", "cut"],
)
def test_a_set_that_would_have_to_be_guessed_at_is_refused(tmp_path, rng, changes, features, message):
    folder = prepare(tmp_path, {"train": colours(rng, 2, **changes)}, {**COLOUR, **features})
    said = refusal(tmp_path)
    assert said.startswith(f"{folder}: ")
    assert message in said


def test_unlabelled_test_images_are_refused_and_another_split_serves(tmp_path, rng):
    splits = {"train": colours(rng, 2), "test": colours(rng, 1, label=-1), "validation": colours(rng, 1)}
    folder = prepare(tmp_path, splits)
    assert refusal(tmp_path) == (
        f"{folder}: record 0 of test has the label -1, which is no class; choose a split that is labelled, or prepare "
        "the set again"
    )
    assert len(read_all(tmp_path, test="validation").test) == 3


def test_a_test_image_of_a_class_without_training_images_is_refused_also_where_labels_are_numbers(tmp_path, rng):
    folder = prepare(tmp_path, {"train": grays(rng, 4), "test": grays(rng, 4, classes=3)}, GRAY)
    said = refusal(tmp_path, **KEYS)
    assert said.startswith(f"{folder}: ")
    assert re.search(r"\b2\b", said.removeprefix(str(folder)))


def test_numbers_that_are_no_classes_are_refused_before_they_fill_the_memory(tmp_path, rng):
    examples = grays(rng, 4)
    prepare(tmp_path, {"train": [*examples, {**examples[0], "grade": 10**12}]}, GRAY)
    done = run_python(f"""
import resource
from pathlib import Path
from kimiajax.data.opening import open_scans
from kimiajax.data.sets import Dataset
from kimiajax.errors import UserError
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
try:
    open_scans(Dataset("foreign", Path({str(tmp_path)!r}), "picture", "grade")).offered()
except UserError as error:
    print(error)
""")
    assert done.stdout.startswith(f"{tmp_path / 'foreign' / '1.0.0'}: "), done.stderr


@pytest.mark.parametrize("kind", ["tfrecord", "riegeli"])
def test_a_set_in_a_format_of_tensorflows_is_refused_with_the_command_that_prepares_another(tmp_path, rng, kind):
    folder = prepare(tmp_path, {"train": colours(rng, 1)})
    info = json.loads((folder / "dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": kind}))
    said = refusal(tmp_path)
    assert said.startswith(f"{folder}: is prepared as {kind}, which cannot be read without TensorFlow")
    assert 'file_format="array_record"' in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scans", "x.h5", "--dataset", "foreign"], "--scans x.h5 and --dataset foreign: give one of them"),
        (["--scans", "x.h5", "--label-key", "grade"], "--label-key grade: is for --dataset"),
        (["--scans", "x.h5", "--data-dir", "x"], "--data-dir x: is for --dataset"),
        (["--test-split", "test"], "--test-split test: is for --dataset"),
        ([], "--dataset NAME of a prepared data set"),
    ],
    ids=str,
)
def test_flags_that_go_ill_together_are_refused_by_every_command(tmp_path, capsys, arguments, message):
    quick = ["table", "quick", "--rows", "floor_histogram"]
    for command in (quick, ["data", "audit"], ["data", "export"], ["features", "cnn"]):
        assert main([*command, *arguments, "--out", str(tmp_path / "out")]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("kimiajax: ")
        assert message in line


def test_places_are_not_explained_of_a_set_whose_patches_were_cut(colour, capsys):
    assert main(["data", "explain", "--dataset", "foreign", "--data-dir", str(colour)]) == 2
    assert "a prepared data set holds patches that were cut already" in capsys.readouterr().err


# Damage

SHARDS = 2
SHARD = "foreign-train.array_record-0000{}-of-00002"
BLOCK = 2**16  # bytes, by which array_record pads its files


@pytest.fixture
def damaged(colour, tmp_path):
    """The folder of a copy that a test may damage."""
    shutil.copytree(colour, tmp_path / "sets")
    return tmp_path / "sets" / "foreign" / "1.0.0"


def rewritten(name, change):
    def damage(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def inverted(content, start, count):
    return content[:start] + bytes(byte ^ 255 for byte in content[start : start + count]) + content[start + count :]


def in_image(content):
    """With bytes inverted amid the compressed pixels of the first image that lies there as it is."""
    return inverted(content, content.index(b"IDAT") + 20, 8)


SHARD_DAMAGE = {
    "missing": lambda folder: (folder / SHARD.format(1)).unlink(),
    "a folder": lambda folder: ((folder / SHARD.format(1)).unlink(), (folder / SHARD.format(1)).mkdir()),
    "empty": rewritten(SHARD.format(1), lambda content: b""),
    "a few bytes": rewritten(SHARD.format(1), lambda content: content[:100]),
    "under a block": rewritten(SHARD.format(1), lambda content: content[: BLOCK - 1]),
    "a block": rewritten(SHARD.format(1), lambda content: content[:BLOCK]),
    "over a block": rewritten(SHARD.format(1), lambda content: content[: BLOCK + 1000]),
    "one byte short": rewritten(SHARD.format(1), lambda content: content[:-1]),
    "an image": rewritten(SHARD.format(1), in_image),
    "zeros": rewritten(SHARD.format(1), lambda content: bytes(len(content))),
    "noise": rewritten(SHARD.format(1), lambda content: np.random.default_rng(0).bytes(len(content))),
    "text": rewritten(SHARD.format(1), lambda content: b"x" * len(content)),
}


@pytest.mark.parametrize("damage", SHARD_DAMAGE.values(), ids=SHARD_DAMAGE.keys())
def test_a_damaged_shard_is_refused_by_the_sets_name(damaged, damage):
    damage(damaged)
    said = refusal(damaged.parents[1])
    assert said.startswith(f"{damaged}: record ")
    assert said.endswith("prepare the set again")


@pytest.mark.parametrize("damage", ["a block", "an image", "missing"])
def test_damage_is_one_line_and_a_status(damaged, tmp_path, capsys, damage):
    SHARD_DAMAGE[damage](damaged)
    assert main(table(damaged.parents[1], tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert f"kimiajax: {damaged}: record " in error
    assert "Traceback" not in error


def test_no_inverted_byte_gives_other_pixels(damaged, tissues):
    shard, root = damaged / SHARD.format(0), damaged.parents[1]
    content = shard.read_bytes()
    with opened(root) as source:
        sound = of_split(source, "train") | of_split(source, "test")
    refused = 0
    used = len(content[:BLOCK].rstrip(b"\0"))
    for start in range(0, used, used // 40):
        shard.write_bytes(inverted(content, start, 1))
        try:
            with opened(root) as source:
                found = of_split(source, "train") | of_split(source, "test")
        except UserError:
            refused += 1
            continue
        assert found.keys() == sound.keys()
        for name, (scan, pixels) in found.items():
            assert scan == sound[name][0]
            np.testing.assert_array_equal(pixels, sound[name][1])
    assert refused > 30


def test_a_shard_that_is_damaged_while_it_is_open_gives_no_other_pixels(damaged, tissues):
    with opened(damaged.parents[1]) as source:
        patches = cut_patches(source, HELD_OUT).patches
        for number in range(SHARDS):
            rewritten(SHARD.format(number), in_image)(damaged)
        found, said = {}, []
        for patch in patches:
            try:
                found[patch.patch_id] = patch.scan, source.read_patch(patch)
            except UserError as error:
                said.append(str(error))
    assert said
    assert all(message.endswith("prepare the set again") for message in said)
    wanted = {(example["label"], gray_of(example["image"]).tobytes()) for example in tissues}
    assert {(scan, pixels.tobytes()) for scan, pixels in found.values()} <= wanted


DAMAGES = (b"", b"garbage", b"{}", b"[]", b"null", b"\xff\xfe\x00")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", DAMAGES, ids=repr)
def test_a_description_that_cannot_be_read_is_refused_with_what_mends_it(damaged, name, content):
    (damaged / name).write_bytes(content)
    said = refusal(damaged.parents[1])
    assert str(damaged.parents[1]) in said
    assert re.search("prepare (it|the set) again", said)


def test_metadata_that_is_no_json_or_of_another_program_is_passed_over(damaged):
    for content in ("{", "[]", '{"kimia": 1, "synthetic": true}'):
        (damaged / "metadata.json").write_text(content)
        with opened(damaged.parents[1]) as source:
            assert (source.synthetic, source.unverified, source.origin) == (False, None, None)


# Identity, and what the cache keeps


@pytest.fixture
def reads(monkeypatch):
    """Records that were read, by their places."""
    from tensorflow_datasets.core.data_sources.base import BaseDataSource

    found, read = [], BaseDataSource.__getitem__

    def counted(self, key):
        found.append(key)
        return read(self, key)

    monkeypatch.setattr(BaseDataSource, "__getitem__", counted)
    return found


SIZED = {**COLOUR, "image": kinds.Image(shape=(8, 8, 3))}


def listing(root, cache, **which):
    with opened(root, cache=cache, **which) as source:
        return [[list(scan.patches.values()) for scan in source.offered()], source.test_patches()]


def test_labels_are_read_once_and_kept(tmp_path, rng, reads):
    prepare(tmp_path / "sets", {"train": colours(rng, 25), "test": colours(rng, 1)}, SIZED)
    first = listing(tmp_path / "sets", tmp_path / "cache")
    assert sorted(reads) == sorted([*range(75), *range(3)])
    reads.clear()
    assert listing(tmp_path / "sets", tmp_path / "cache") == first
    assert reads == []
    assert listing(tmp_path / "sets", None) == first
    assert len(reads) == 78, "without a cache they are read again"


def test_numbers_for_labels_are_read_once_too(tmp_path, rng, reads):
    prepare(tmp_path / "sets", {"train": grays(rng, 4)}, {**GRAY, "picture": kinds.Image(shape=(8, 8, 1))})
    first = listing(tmp_path / "sets", tmp_path / "cache", **KEYS)
    reads.clear()
    assert listing(tmp_path / "sets", tmp_path / "cache", **KEYS) == first
    assert reads == []


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff", b"[1]", b"[]", b"[[0]]", b'[["0"]]', b"[[7]]", b"{}"])
def test_a_damaged_kept_listing_is_made_again(colour, tmp_path, reads, content):
    first = listing(colour, tmp_path)
    (kept,) = (tmp_path / "records").iterdir()
    before = kept.read_bytes()
    kept.write_bytes(content)
    reads.clear()
    assert listing(colour, tmp_path) == first
    assert len(reads) >= 18
    assert kept.read_bytes() == before


def identity(root, **which):
    with opened(root, **which) as source:
        return source.identity()


def test_the_identity_is_the_files_and_the_choices(gray, graded, tmp_path, rng):
    chosen = [{}, {"train": "train[:50%]"}, {"test": "validation"}]
    known = [identity(gray, **KEYS, **choice) for choice in chosen]
    assert [identity(gray, **KEYS, **choice) for choice in chosen] == known
    assert len(set(known)) == 3
    prepare(tmp_path, graded, GRAY)
    before = identity(tmp_path, **KEYS)
    prepare(tmp_path, {**graded, "train": grays(rng, 12)}, GRAY)
    assert identity(tmp_path, **KEYS) != before


def test_one_set_by_two_names_has_one_identity(colour):
    assert identity(colour) == identity(colour, name="foreign:1.0.0")


def test_a_set_prepared_anew_is_listed_anew(tmp_path, rng):
    root, cache = tmp_path / "sets", tmp_path / "cache"
    for classes in (2, 3):
        examples = grays(rng, 6, classes)
        prepare(root, {"train": examples, "test": examples}, GRAY)
        with opened(root, cache=cache, **KEYS) as source:
            assert_written(of_split(source, "train"), examples, **KEYS)


# Threads


def test_any_number_of_threads_may_read_a_fresh_source(gray):
    with opened(gray, **KEYS) as source:
        manifest = cut_patches(source)
        expected = [source.read_patch(patch) for patch in manifest.patches]
    for _ in range(5):
        with opened(gray, **KEYS) as source, ThreadPoolExecutor(8) as pool:
            barrier = Barrier(8)

            def read(number, source=source, barrier=barrier):
                order = np.random.default_rng(number).permutation(len(manifest.patches)).tolist()
                barrier.wait()
                return {k: source.read_patch(manifest.patches[k]) for k in order}

            for found in pool.map(read, range(8)):
                for k, pixels in found.items():
                    np.testing.assert_array_equal(pixels, expected[k])


def test_a_patch_that_is_not_there_is_refused_by_name(colour):
    with opened(colour) as source:
        assert isinstance(source, Prepared)
        patch = cut_patches(source, HELD_OUT).patches[0]
        for name in ("train/s0/999", "test/s0/999", "elsewhere"):
            with pytest.raises(UserError, match=f"holds no record of {name}; is the manifest of another source"):
                source.read_patch(type(patch)(name, 0, "train"))
