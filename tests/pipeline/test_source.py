"""Sets that TFDS prepared as array_record, read right without TensorFlow."""

import csv
import io
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from absl import logging
from PIL import Image
from support.foreign_sets import (
    COLOUR,
    GRAY,
    HELD_OUT,
    KEYS,
    TISSUES,
    Configured,
    assert_written,
    colours,
    encoded,
    gray_of,
    grays,
    noise,
    of_split,
    opened,
    prepare,
    read_all,
    refusal,
    table,
)
from tensorflow_datasets import features as kinds

from kimiajax.cli.main import main
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patches import cut_patches
from kimiajax.data.sources.image_files import read_gray
from kimiajax.data.sources.image_folder import Folder
from kimiajax.data.tfds.datasets import Dataset, prepared_in, quiet_tfds
from kimiajax.data.tfds.source import Prepared
from kimiajax.errors import UsageError, UserError

# A colour set with a training split alone, as colorectal_histology is


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


def test_the_report_says_what_the_data_are_and_shows_nothing_of_the_papers(run, capsys):
    assert main(["report", str(run), "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    assert "The data are a prepared data set of 3 classes: " in text
    assert "foreign" in text
    assert "paper" not in text


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


def test_an_audit_fails_nothing_of_a_sound_set_and_fails_one_image_under_two_classes(colour, tissues, tmp_path, capsys):
    assert audit(colour, tmp_path) == 0
    record = json.loads((tmp_path / "audit.json").read_text())
    assert (record["verdict"], record["failed"]) == ("NOT TOLD", [])
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
    assert results_of(tmp_path / "again")["data"]["audit"]["verdict"] == "NOT TOLD"


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
        return source.identity


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
