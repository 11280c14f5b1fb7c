"""Kimia Path24 as a TFDS set: what is prepared is what the scan file holds, without TensorFlow."""

import contextlib
import functools
import grp
import json
import pickle
import pwd
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from support.python import run
from tensorflow_datasets.core import constants

from kimiajax import paper
from kimiajax.cli.main import main
from kimiajax.data.manifest import read_manifest
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import read_patches
from kimiajax.data.patches import Rules, cut_patches
from kimiajax.data.tfds import builders, datasets, examples
from kimiajax.data.tfds.builders import FILE, KimiaPath24, KimiaPath24C
from kimiajax.data.tfds.datasets import Dataset, prepared_in, quiet_tfds
from kimiajax.data.tfds.patch_set import GrayConfig
from kimiajax.data.tfds.prepare import prepare
from kimiajax.data.tfds.source import RECORDS, Prepared
from kimiajax.errors import UserError
from kimiajax.evaluation.stored import read_run
from kimiajax.io.files import md5_file
from kimiajax.io.locks import only_writer

NAME = "kimia_path24/patch80_full_h0.99_bg220_scans4"


@pytest.fixture(scope="module")
def manual_dir(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("manual")
    shutil.copy(scans, folder / FILE)
    return folder


@pytest.fixture(scope="module")
def data_dir(manual_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    done = prepare("kimia_path24", manual_dir, folder, allow_unverified=True)
    assert (done.full_name, done.counts, done.reused) == (f"{NAME}:1.0.0", {"train": 48, "test": 11}, False)
    return folder


@pytest.fixture
def official(manual_dir, monkeypatch):
    monkeypatch.setattr(paper, "OFFICIAL_MD5", md5_file(manual_dir / FILE))
    return manual_dir


def records(folder, split="train"):
    with quiet_tfds():
        return list(tfds.builder(NAME, data_dir=str(folder)).as_data_source(split))


def test_the_command_needs_no_tensorflow_and_says_what_to_do_next(manual_dir, tmp_path):
    done = run(f"""
from importlib.util import find_spec
from kimiajax.cli.main import main
print(main(["data", "prepare", "kimia_path24", "--manual-dir", {str(manual_dir)!r}, "--data-dir", {str(tmp_path)!r},
            "--allow-unverified"]))
import tensorflow_datasets as tfds
first = tfds.data_source("{NAME}", split="test", data_dir={str(tmp_path)!r})[0]
print(first["image"].shape, first["image"].dtype, first["label"] in range(4), find_spec("tensorflow"))
""")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{NAME}:1.0.0: 48 train and 11 test patches prepared, in {tmp_path}"), done.stderr
    assert lines[1].startswith("NOT VERIFIED, and every result will say so: is not the official file: MD5 ")
    assert lines[2:4] == [f"kimiajax table quick --dataset {NAME} --data-dir {tmp_path}", "0"]
    assert lines[4:] == ["(80, 80, 1) uint8 True None"]
    assert "writing train patches: 48 patches" in done.stderr


def test_records_are_the_files_patches(data_dir, manual_dir):
    with open_scans(manual_dir / FILE) as source:
        by_id = {patch.patch_id: patch for patch in cut_patches(source).patches}
        for split, count in (("train", 48), ("test", 11)):
            found = records(data_dir, split)
            assert len({record["patch_id"] for record in found}) == count
            for record in found:
                patch = by_id[record["patch_id"].decode()]
                np.testing.assert_array_equal(record["image"][..., 0], source.read_patch(patch))
                place = tuple(-1 if at is None else at for at in (patch.row, patch.col))
                assert (record["label"], record["row"], record["col"]) == (patch.scan, *place)


def test_rules_that_a_set_was_not_cut_by_are_refused(data_dir):
    with open_scans(Dataset(NAME, data_dir)) as source:
        with pytest.raises(UserError, match=r"--homogeneity 0\.5: .* were cut before, by homogeneity 0\.99"):
            cut_patches(source, Rules(homogeneity=0.5))
        with pytest.raises(UserError, match="--background 200: the patches"):
            cut_patches(source, Rules(background=200))
        with pytest.raises(UserError, match="--grid readme: the patches of a prepared data set were cut before"):
            cut_patches(source, Rules(grid="readme"))


def test_parts_of_one_split_serve_for_training_and_for_test(data_dir, manual_dir):
    for train, test in (("train[:60%]", "train[60%:]"), ("test", "train")):
        with (
            open_scans(Dataset(NAME, data_dir, train=train, test=test)) as source,
            open_scans(manual_dir / FILE) as file,
        ):
            patches = read_patches(source, cut_patches(source), 80)
            by_name = {patch.patch_id.partition("/")[2]: patch for patch in cut_patches(file).patches}
            for split, pixels in (("train", patches.train), ("test", patches.test)):
                for patch, found in zip(patches.manifest.split(split), pixels):
                    own = by_name[patch.patch_id.partition("/")[2]]
                    assert (patch.patch_id.partition("/")[0], patch.scan) == (split, own.scan)
                    np.testing.assert_array_equal(found, file.read_patch(own))
            assert len(patches.manifest.patches) == (59 if train == "test" else 48)


def test_labels_are_listed_beside_the_set_and_held_against_each_record(data_dir, tmp_path, monkeypatch):
    shutil.copytree(data_dir, tmp_path / "copy")
    file = tmp_path / "copy" / NAME / "1.0.0" / RECORDS
    reads = []
    read = Prepared._read
    monkeypatch.setattr(Prepared, "_read", lambda self, *at: reads.append(at) or read(self, *at))

    def drawn():
        reads.clear()
        with open_scans(Dataset(NAME, tmp_path / "copy")) as source:
            return cut_patches(source, Rules(2)), len(reads)

    expected, count = drawn()
    assert count == 0
    content = json.loads(file.read_text())
    first, second = content["train"][:2]
    assert first[0] != second[0]
    for damage in ("", "[]", json.dumps({**content, "train": content["train"][1:]})):
        file.write_text(damage)
        manifest, count = drawn()
        assert (manifest.csv, count > 40) == (expected.csv, True)
    content["train"][:2] = [[second[0], *first[1:]], [first[0], *second[1:]]]
    file.write_text(json.dumps(content))
    with open_scans(Dataset(NAME, tmp_path / "copy")) as source:
        manifest = cut_patches(source)
        with pytest.raises(UserError, match=r"is not the one that was listed as train/s\d.*; prepare the set again"):
            read_patches(source, manifest, 8)


@pytest.mark.parametrize("content", [None, "{", "{}", '{"kimiajax": "0.1.0", "places": [16, 16, 16, 16]}'])
def test_a_set_that_lost_its_marks_is_refused(data_dir, tmp_path, content):
    shutil.copytree(data_dir, tmp_path / "copy")
    file = tmp_path / "copy" / NAME / "1.0.0" / "metadata.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=r"metadata.json is missing or damaged, .*; prepare it again"):
        open_scans(Dataset(NAME, tmp_path / "copy"))


def test_a_source_lets_go_of_its_files(data_dir):
    before = len(list(Path("/proc/self/fd").iterdir()))
    with open_scans(Dataset(NAME, data_dir)) as source:
        source.read_patch(source.test_patches()[0])
        assert len(list(Path("/proc/self/fd").iterdir())) > before
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_any_part_of_the_records_has_patches_of_several_scans(data_dir):
    labels = [record["label"] for record in records(data_dir, "train[:25%]")]
    assert set(labels) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "rules",
    [Rules(), Rules(3, seed=1), Rules(1, seed=2), Rules(9, grid="readme"), Rules(2, homogeneity=0.3, background=200)],
    ids=str,
)
def test_a_draw_from_the_prepared_set_is_the_files_own(manual_dir, tmp_path, rules):
    done = prepare("kimia_path24", manual_dir, tmp_path, rules=rules, allow_unverified=True)
    dataset = Dataset(done.full_name, tmp_path)
    with open_scans(manual_dir / FILE) as file, open_scans(dataset) as prepared:
        one, other = (read_patches(source, cut_patches(source, rules), 16) for source in (file, prepared))
        assert (file.names, file.patch_size, len(file)) == (prepared.names, prepared.patch_size, len(prepared))
    assert one.manifest.csv == other.manifest.csv
    np.testing.assert_array_equal(one.train, other.train)
    np.testing.assert_array_equal(one.test, other.test)
    same = {name: getattr(rules, name) for name in ("patches_per_scan", "seed", "grid", "homogeneity", "background")}
    assert other.manifest.about["rules"] == same


def test_the_table_of_the_prepared_set_is_that_of_the_file_row_by_row(data_dir, manual_dir, tmp_path, capsys):
    rows = ["cnn", "floor_histogram", "floor_mean_sd"]
    command = ["table", "demo", "--rows", *rows, "--epochs", "1", "--patches-per-scan", "3", "--out"]
    given = {"file": ["--scans", str(manual_dir / FILE)], "set": ["--dataset", NAME, "--data-dir", str(data_dir)]}
    runs = {}
    for name, flags in given.items():
        assert main([*command, str(tmp_path / name), *flags]) == 0, capsys.readouterr().err
        runs[name] = read_run(tmp_path / name)
    scored = ("eta_p", "eta_w", "eta_total", "eta_w_precision", "correct", "predictions_sha256", "learnt_sha256")
    of_file, of_set = ([[row[score] for score in scored] for row in run.rows.values()] for run in runs.values())
    assert of_file == of_set
    assert runs["file"].manifest.sha256 == runs["set"].manifest.sha256
    # the same run, so what one began the other goes on with, and what was not verified is so for good
    assert main([*command, str(tmp_path / "set"), *given["file"]]) == 0
    assert "all rows were finished before" in capsys.readouterr().err
    assert read_run(tmp_path / "set").results["data"]["unverified"].startswith("is not the official file")


def test_a_file_that_is_not_the_official_one_fails_closed(manual_dir, tmp_path, capsys):
    status = main(["data", "prepare", "kimia_path24", "--manual-dir", str(manual_dir), "--data-dir", str(tmp_path)])
    said = capsys.readouterr().err.splitlines()[-1]
    assert status == 2
    assert f"{FILE}: is not the official file: MD5 " in said
    assert said.endswith("fetch it again, or go on with --allow-unverified, which marks every result")
    assert prepared_in(tmp_path) == []
    assert not list(tmp_path.rglob("incomplete.*"))


def test_what_is_not_verified_marks_every_result(data_dir, manual_dir, tmp_path, capsys):
    flags = ["--dataset", NAME, "--data-dir", str(data_dir)]
    command = ["table", "demo", *flags, "--rows", "floor_histogram", "--patches-per-scan", "2"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    assert "demo: NOT VERIFIED: " in capsys.readouterr().out
    run = read_run(tmp_path / "run")
    assert run.results["data"]["unverified"].startswith("is not the official file: MD5")
    assert run.results["data"]["synthetic"] is True
    said = "Not verified: what these data were prepared from is not the"
    assert any(note.startswith(said) for note in run.results["notes"])
    assert main(["report", str(tmp_path / "run"), "--format", "markdown"]) == 0
    assert "**NOT VERIFIED: the files that the data were prepared from" in capsys.readouterr().out
    for official, verdict in ((["--official"], "FAILED"), ([], "note")):
        main(["data", "audit", *flags, *official, "--out", str(tmp_path)])
        checks = json.loads((tmp_path / "audit.json").read_text())["checks"]
        assert [check["verdict"] for check in checks if check["name"] == "official digest"] == [verdict]
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "run"), str(tmp_path / "run"), "--out", str(tmp_path / "c.json")]) == 0
    assert capsys.readouterr().out.count("NOT VERIFIED") == 2
    assert "NOT VERIFIED" in json.loads((tmp_path / "c.json").read_text())["warnings"][1][1]
    predictions = str(tmp_path / "run" / "predictions" / "floor_histogram.csv")
    assert main(["score", predictions, "--truth", str(tmp_path / "run"), "--out", str(tmp_path / "s.json")]) == 0
    assert "NOT VERIFIED" in capsys.readouterr().out
    assert "NOT VERIFIED" in json.loads((tmp_path / "s.json").read_text())["warnings"][1]
    # nor do exports, features and fine-tuned weights lose it, nor a set that is there already
    assert main(["data", "export", *flags, "--out", str(tmp_path / "out")]) == 0
    with open_scans(tmp_path / "out") as folder:
        assert folder.unverified.startswith("is not the official file: MD5")
    listed = ["--manifest", str(tmp_path / "out" / "manifest.csv")]
    unmarked = read_manifest(tmp_path / "out" / "manifest.csv")
    replace(unmarked, about={**unmarked.about, "unverified": None}).write(tmp_path / "out" / "manifest.csv")
    assert main(["data", "export", *flags, *listed, "--out", str(tmp_path / "again")]) == 0
    with open_scans(tmp_path / "again") as folder:
        assert folder.unverified.startswith("is not the official file: MD5")
    command = ["features", "cnn", *flags, *listed, "--weights", "random", "--image-size", "32", "--conv", "plain"]
    assert main([*command, "--out", str(tmp_path / "features")]) == 0
    record = json.loads((tmp_path / "features" / "features.json").read_text())
    assert record["unverified"].startswith("is not the official file: MD5")
    assert main(["data", "prepare", "kimia_path24", "--manual-dir", str(manual_dir), "--data-dir", str(data_dir)]) == 2


def test_the_official_file_needs_no_leave_and_carries_no_mark(official, tmp_path, capsys):
    done = prepare("kimia_path24", official, tmp_path)
    assert done.unverified is None
    with open_scans(Dataset(NAME, tmp_path)) as source:
        assert source.unverified is None
        assert source.origin["md5"] == paper.OFFICIAL_MD5
    assert main(["data", "audit", "--dataset", NAME, "--data-dir", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert "prepared from Kimia_Path24.h5 as published" in capsys.readouterr().out


def test_a_set_that_is_there_already_is_not_written_again(official, tmp_path):
    before = prepare("kimia_path24", official, tmp_path)
    stamps = {file: file.stat().st_mtime_ns for file in before.path.iterdir()}
    again = prepare("kimia_path24", official, tmp_path)
    assert again == before._replace(reused=True)
    assert stamps == {file: file.stat().st_mtime_ns for file in before.path.iterdir()}


def test_another_file_does_not_pass_for_the_one_that_was_prepared(official, tmp_path):
    prepare("kimia_path24", official, tmp_path / "data")
    (tmp_path / "other").mkdir()
    content = bytearray((official / FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / "other" / FILE).write_bytes(content)
    with pytest.raises(UserError, match="was prepared from other files"):
        prepare("kimia_path24", tmp_path / "other", tmp_path / "data", allow_unverified=True)


def test_a_set_of_many_shards_is_whole(manual_dir, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "SHARD_BYTES", 4 * 80 * 80)
    done = prepare("kimia_path24", manual_dir, tmp_path, allow_unverified=True)
    assert len(list(done.path.glob("*train.array_record*"))) == 12
    one, other = ([record["patch_id"] for record in records(folder)] for folder in (data_dir, tmp_path))
    assert one == other


def test_what_an_interrupted_preparation_left_goes(official, tmp_path):
    left = tmp_path / NAME / "incomplete.ABCDEF_1.0.0"
    left.mkdir(parents=True)
    (left / "kimia_path24-train.array_record-00000-of-00001").write_bytes(b"x")
    prepare("kimia_path24", official, tmp_path)
    assert not left.exists()


def test_two_preparations_do_not_write_at_the_same_time(official, tmp_path):
    with only_writer(tmp_path / NAME), pytest.raises(UserError, match=r"another run writes there.* another --data-dir"):
        prepare("kimia_path24", official, tmp_path)


def test_a_preparation_that_fails_leaves_nothing_and_the_next_one_works(official, tmp_path, monkeypatch):
    made = examples.encode_gray

    def fail(pixels, seen=[]):  # noqa: B006 (counts its calls)
        seen.append(pixels)
        if len(seen) > 30:
            raise UserError("a scan cannot be read")
        return made(pixels)

    monkeypatch.setattr(examples, "encode_gray", fail)
    with pytest.raises(UserError, match="a scan cannot be read"):
        prepare("kimia_path24", official, tmp_path)
    assert prepared_in(tmp_path) == []
    assert not list(tmp_path.rglob("incomplete.*"))
    monkeypatch.setattr(examples, "encode_gray", made)
    assert prepare("kimia_path24", official, tmp_path).counts["train"] == 48


def test_a_disk_that_fills_is_told_in_a_line_and_nothing_is_left(manual_dir, tmp_path):
    command = ["data", "prepare", "kimia_path24", "--manual-dir", str(manual_dir), "--data-dir", str(tmp_path)]
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", sys.executable, "-m", "kimiajax", *command]
    done = subprocess.run([*limited, "--allow-unverified"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert "make room, or choose another --data-dir" in done.stderr.splitlines()[-1]
    assert prepared_in(tmp_path) == []


def test_a_file_that_is_replaced_meanwhile_is_not_taken_for_the_one_that_was_checked(manual_dir, tmp_path, monkeypatch):
    shutil.copytree(manual_dir, tmp_path / "manual")
    file = tmp_path / "manual" / FILE

    def replaced(*arguments):
        shutil.copy(file, tmp_path / "other")
        (tmp_path / "other").replace(file)
        return "0" * 32

    monkeypatch.setattr(builders, "md5_file", replaced)
    with pytest.raises(UserError, match="was changed meanwhile"):
        prepare("kimia_path24", tmp_path / "manual", tmp_path / "data", allow_unverified=True)
    assert prepared_in(tmp_path / "data") == []


def test_a_set_that_another_process_prepares_meanwhile_is_taken(official, tmp_path, monkeypatch):
    asked = KimiaPath24.is_prepared
    prepared = []

    def late(self):
        if not prepared:
            prepared.append(True)
            prepare("kimia_path24", official, tmp_path)
            return False
        return asked(self)

    monkeypatch.setattr(KimiaPath24, "is_prepared", late)
    done = prepare("kimia_path24", official, tmp_path)
    assert (done.reused, done.counts) == (True, {"train": 48, "test": 11})


def test_homogeneities_that_are_almost_one_make_sets_of_two_names():
    names = {GrayConfig(homogeneity=homogeneity).name for homogeneity in (1.0, 0.9999999, 0.999999)}
    assert len(names) == 3


def test_a_full_disk_is_told_before_the_work(official, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=2**16)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match=r"59 patches take about 0.0 GiB, and 0.0 are free; make room"):
        prepare("kimia_path24", official, tmp_path)
    assert prepared_in(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (lambda file: file.unlink(), [], f"holds no {FILE}; Ask the authors of the data set"),
        (lambda file: file.write_bytes(b"<!DOCTYPE html>"), [], f"{FILE}: a web page saved under that name"),
        (lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), [], "a Git-LFS pointer"),
        (lambda file: file.write_bytes(file.read_bytes()[:9999]), [], "a damaged HDF5 file"),
        (lambda file: None, ["--patch-size", "100"], "use --patch-size 80"),
        (lambda file: None, ["--homogeneity", "2"], "is a fraction, above 0 and at most 1"),
        (lambda file: None, ["--beam"], "needs Apache Beam"),
        (lambda file: None, ["--beam", "runner=DirectRunner"], 'needs Apache Beam: `pip install "kimiajax[beam]"`'),
    ],
    ids=["missing", "html", "lfs", "truncated", "size", "homogeneity", "bare", "beam"],
)
def test_what_cannot_be_prepared_is_refused_by_name(manual_dir, tmp_path, capsys, change, flags, message):
    shutil.copytree(manual_dir, tmp_path / "manual")
    change(tmp_path / "manual" / FILE)
    command = ["data", "prepare", "kimia_path24", "--manual-dir", str(tmp_path / "manual"), "--data-dir", str(tmp_path)]
    assert main([*command, *flags, "--allow-unverified"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert prepared_in(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kimia_path25", "--manual-dir", "."], "no such set; choose from kimia_path24, kimia_path24c"),
        (["kimia_path24"], "needs --manual-dir DIR"),
        (["kimia_path24c", "--manual-dir", ".", "--grid", "readme"], "--grid readme: is for scans"),
        (["kimia_path24", "--manual-dir", "nowhere"], "--manual-dir nowhere: no such folder"),
        ([], "data prepare: needs NAME before any flag"),
    ],
)
def test_a_command_that_lacks_something_says_what(arguments, message, capsys):
    assert main(["data", "prepare", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GrayConfig(patch_size=80), "has 4 scans, and kimia_path24/patch80_full_h0.99_bg220/1.0.0 is of 24"),
        (GrayConfig(scans=4), "has 80 pixels along a patch, and kimia_path24/patch1000_full_h0.99_bg220_scans4/1.0.0"),
    ],
)
def test_a_config_of_other_scans_is_refused(official, tmp_path, config, message):
    options = tfds.download.DownloadConfig(manual_dir=str(official))
    with quiet_tfds():
        builder = KimiaPath24(data_dir=str(tmp_path), config=config)
        with pytest.raises(UserError, match=message):
            builder.download_and_prepare(download_config=options)


@pytest.mark.parametrize("kind", [KimiaPath24, KimiaPath24C])
def test_builders_are_what_tfds_asks_of_one(kind, tmp_path):
    """What TFDS's own case for builders asks, but for reading through TensorFlow."""
    assert kind.name in tfds.list_builders(with_community_datasets=False)
    assert len(kind.builder_configs) == len(kind.BUILDER_CONFIGS)
    for config in kind.builder_configs:
        builder = tfds.builder(f"{kind.name}/{config}", data_dir=str(tmp_path))
        info = builder.info
        assert (type(builder), info.full_name) == (kind, f"{kind.name}/{config}/1.0.0")
        assert info.file_format.value == "array_record"
        assert info.features["label"].num_classes == paper.NUM_SCANS
        assert info.features["image"].shape[:2] == (1000, 1000)
        assert "1705.07522" in info.citation
        assert "65, 65, 65, 75, 15" in info.description
        assert "may not be passed on" in info.description
        assert type(pickle.loads(pickle.dumps(builder))) is kind
    assert tfds.builder(kind.name, data_dir=str(tmp_path)).builder_config.name == kind.BUILDER_CONFIGS[0].name
    assert (builder.url_infos, builder.get_metadata().tags) == (None, [])


def test_examples_are_of_the_features_and_in_one_split_only(data_dir):
    with quiet_tfds():
        builder = tfds.builder(NAME, data_dir=str(data_dir))
        splits = {split: list(builder.as_data_source(split)) for split in ("train", "test")}
    features = builder.info.features
    for example in (example for examples_ in splits.values() for example in examples_):
        assert example.keys() == features.keys()
        for key in ("image", "label", "row", "col", "place"):
            value = np.asarray(example[key])
            assert (value.shape, value.dtype) == (features[key].shape, features[key].np_dtype)
    images = {split: {example["image"].tobytes() for example in found} for split, found in splits.items()}
    assert not images["train"] & images["test"]
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {"train": 48, "test": 11}


def test_nothing_but_the_module_itself_registers_the_builders():
    done = run("""
import sys
import kimiajax.data.open_scans, kimiajax.data.tfds.source, kimiajax.data.tfds.prepare, kimiajax.data.tfds.examples
import kimiajax.cli.commands, kimiajax.cli.config, kimiajax.data.audit.audit, kimiajax.data.inference_inputs
print([name for name in ("tensorflow_datasets", "kimiajax.data.tfds.builders", "array_record") if name in sys.modules])
""")
    assert done.stdout.strip() == "[]", done.stderr


def test_a_worker_that_unpickles_a_shards_work_loads_no_builder(manual_dir):
    with open_scans(manual_dir / FILE) as source:
        shard = [examples.Ranked(patch, 0) for patch in source.test_patches()[:2]]
        state = examples.state_of(source)
    work = pickle.dumps(functools.partial(examples.examples_of, manual_dir / FILE, state, shard))
    done = run(f"""
import pickle, sys
found = list(pickle.loads({work!r})())
print(len(found), found[0][0], "tensorflow_datasets" in sys.modules)
""")
    assert done.stdout.split() == ["2", shard[0].patch.patch_id, "False"], done.stderr


@pytest.mark.parametrize("place", ["kimia_path24.h5", "inner/Kimia_Path24.h5", "inner/KIMIA_PATH24.H5", "mine.h5"])
def test_a_file_is_taken_where_people_keep_it(place, manual_dir, data_dir, tmp_path):
    file = tmp_path / "manual" / place
    file.parent.mkdir(parents=True)
    file.symlink_to(manual_dir / FILE)
    given = file if place == "mine.h5" else tmp_path / "manual"  # a name of one's own serves where it is said
    done = prepare("kimia_path24", given, tmp_path / "data", allow_unverified=True)
    assert done.counts == {"train": 48, "test": 11}
    assert prepare("kimia_path24", given, tmp_path / "data", allow_unverified=True).reused
    for before, now in zip(records(data_dir), records(tmp_path / "data")):
        np.testing.assert_array_equal(before["image"], now["image"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["mine.h5"], "holds no Kimia_Path24.h5, but .*mine.h5; name the file itself, as --manual-dir .*mine.h5 does"),
        (["my 1.h5", "b/my 2.hdf5"], "but .*my 1.h5, .*my 2.hdf5; name the file itself, as --manual-dir '.*' does"),
        (["a/kimia_path24.h5", "b/Kimia_path24.h5"], "but .*/a/kimia_path24.h5, .*/b/Kimia_path24.h5; name"),
        (["notes.txt"], "holds no Kimia_Path24.h5; Ask the authors"),
        ([], "holds no Kimia_Path24.h5; Ask the authors"),
    ],
)
def test_files_that_could_be_meant_are_named(files, message, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        prepare("kimia_path24", tmp_path, tmp_path / "data", allow_unverified=True)


def test_a_file_in_place_of_the_colour_release_is_named(manual_dir):
    with pytest.raises(
        UserError, match=r"a scan file and no folder of images.*; --manual-dir is the folder that holds"
    ):
        prepare("kimia_path24c", manual_dir / FILE, allow_unverified=True)


def test_a_set_of_one_config_needs_no_config_in_its_name(data_dir, tmp_path):
    with open_scans(Dataset("kimia_path24", data_dir)) as source:
        assert source.full_name == f"{NAME}:1.0.0"
    shutil.copytree(data_dir, tmp_path / "two")
    shutil.copytree(tmp_path / "two" / NAME, tmp_path / "two" / f"{NAME}x")
    with pytest.raises(UserError, match=f"but {NAME}:1.0.0, {NAME}x:1.0.0; give NAME/CONFIG"):
        open_scans(Dataset("kimia_path24", tmp_path / "two"))


def test_a_user_whom_the_system_has_no_name_for_prepares_a_set(manual_dir, tmp_path, monkeypatch):
    def unknown(number):
        raise KeyError(f"uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(grp, "getgrgid", unknown)
    prepare("kimia_path24", manual_dir, tmp_path / "data", allow_unverified=True)
    assert pwd.getpwuid is unknown
    monkeypatch.setattr(datasets, "owners_by_number", contextlib.nullcontext)
    monkeypatch.setattr(sys.modules[prepare.__module__], "owners_by_number", contextlib.nullcontext)
    with pytest.raises(KeyError, match="uid not found"):
        prepare("kimia_path24", manual_dir, tmp_path / "again", allow_unverified=True)


def test_a_user_without_a_home_must_say_where_sets_go(manual_dir, monkeypatch):
    monkeypatch.setattr(constants, "DATA_DIR", "~/tensorflow_datasets")
    with pytest.raises(UserError, match=r"no home folder .*; name a folder with --data-dir"):
        prepare("kimia_path24", manual_dir, allow_unverified=True)
