"""The same records through Apache Beam: `make test-beam`, in an environment that has it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kimiajax.data.tfds.builders import FILE
from kimiajax.data.tfds.datasets import prepared_in

pytestmark = pytest.mark.beam
NAME = "kimia_path24/patch80_full_h0.99_bg220_scans4"

# Beam's own warnings are no concern of this suite, which makes errors of warnings: so it runs in a process of its own.
PREPARE = """
import sys
from pathlib import Path
import tensorflow_datasets as tfds
from kimiajax.data.tfds import builders as kimia_path24
from kimiajax.data.tfds import examples, patch_set
from kimiajax.data.tfds.prepare import prepare

name, manual_dir, data_dir, shard_bytes, fault, *options = sys.argv[1:]
options = options or None
examples.SHARD_BYTES = int(shard_bytes)
if fault == "lengths":
    kimia_path24.PatchSet._download_and_prepare = lambda self, dl_manager, download_config: (
        setattr(self, "_in_workers", download_config.beam_runner is not None),
        tfds.core.ShardBasedBuilder._download_and_prepare(self, dl_manager, download_config),
    )
done = prepare(name, Path(manual_dir), Path(data_dir), allow_unverified=True, beam=options)
"""
READ = """
import json, sys
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
decoders = {"image": tfds.decode.SkipDecoding()}
found = {}
for split, info in builder.info.splits.items():
    records = [dict(record) for record in builder.as_data_source(split, decoders=decoders)]
    for record in records:
        record["image"], record["patch_id"] = record["image"].hex(), record["patch_id"].decode()
    found[split] = {"lengths": info.shard_lengths, "records": records}
print(json.dumps(found, default=int))
"""


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def prepared(folder, manual_dir, *options, name="kimia_path24", shard_bytes=2**28, fault="none"):
    done = run(PREPARE, name, manual_dir, folder, shard_bytes, fault, *options)
    assert done.returncode == 0, done.stderr
    (name,) = prepared_in(folder)
    return run(READ, folder / name.replace(":", "/"))


def records(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def manual_dir(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("manual")
    shutil.copy(scans, folder / FILE)
    return folder


DIRECT = "runner=DirectRunner"


@pytest.mark.parametrize("shard_bytes", [2**28, 4 * 80 * 80], ids=["one shard", "twelve shards"])
def test_records_through_beam_are_those_without_it(manual_dir, tmp_path, shard_bytes):
    without = records(prepared(tmp_path / "without", manual_dir, shard_bytes=shard_bytes))
    through = records(prepared(tmp_path / "through", manual_dir, DIRECT, shard_bytes=shard_bytes))
    assert through == without
    assert len(through["train"]["lengths"]) == (1 if shard_bytes == 2**28 else 12)
    assert (len(through["train"]["records"]), len(through["test"]["records"])) == (47, 11)
    metadata = [(tmp_path / way / NAME / "1.0.0" / "metadata.json").read_text() for way in ("without", "through")]
    assert metadata[0] == metadata[1]
    assert not list(tmp_path.rglob("*.shard_infos.json"))


def test_the_lengths_that_tfds_takes_from_beam_are_of_other_shards(manual_dir, tmp_path):
    """The planted fault: why the builders set them anew."""
    done = prepared(tmp_path, manual_dir, DIRECT, shard_bytes=4 * 80 * 80, fault="lengths")
    assert done.returncode != 0
    assert "out of bound" in done.stderr


def test_workers_may_be_other_processes(manual_dir, tmp_path, monkeypatch):
    options = (DIRECT, "direct_num_workers=2", "direct_running_mode=multi_processing")
    monkeypatch.chdir(manual_dir.parent)
    without = records(prepared(tmp_path / "without", manual_dir, shard_bytes=4 * 80 * 80))
    through = records(prepared(tmp_path / "through", manual_dir.name, *options, shard_bytes=4 * 80 * 80))
    assert through == without


def test_colours_go_through_beam_too(tmp_path, rng):
    for split in ("Training", "Test-patches"):
        for scan in range(11):
            folder = tmp_path / "manual" / split / f"s{scan}"
            folder.mkdir(parents=True)
            for k in range(2):
                pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.jpg")
    ways = {"without": (), "through": (DIRECT,)}
    name = "kimia_path24c"
    found = [records(prepared(tmp_path / way, tmp_path / "manual", *ways[way], name=name)) for way in ways]
    assert found[0] == found[1]
    original = (tmp_path / "manual" / "Training" / "s10" / "1.jpg").read_bytes().hex()
    assert original in [record["image"] for record in found[1]["train"]["records"] if record["label"] == 10]


def test_an_error_of_a_worker_leaves_nothing(manual_dir, tmp_path):
    broken = PREPARE.replace(
        "done = prepare",
        """
from kimiajax.errors import UserError
def fail(*arguments):
    raise UserError("a patch cannot be read")
patch_set.examples_of = fail
done = prepare""",
    )
    done = run(broken, "kimia_path24", manual_dir, tmp_path, 2**28, "none", DIRECT)
    assert done.returncode != 0
    assert "a patch cannot be read" in done.stderr
    assert prepared_in(tmp_path) == []
    assert not list(tmp_path.rglob("incomplete.*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["flink_master=here"], "--beam: name the runner"),
        (["runner=NoSuchRunner"], "--beam runner=NoSuchRunner: no such runner"),
        (["runner=DirectRunner", "paralelism=64"], "--beam paralelism: Apache Beam knows no such option"),
    ],
)
def test_options_that_there_are_not_are_refused_before_the_work(manual_dir, tmp_path, options, message):
    done = run(PREPARE, "kimia_path24", manual_dir, tmp_path, 2**28, "none", *options)
    assert message in done.stderr
    assert prepared_in(tmp_path) == []


def test_a_worker_that_outlives_a_preparation_does_not_give_the_old_file_again(manual_dir, tmp_path):
    shutil.copytree(manual_dir, tmp_path / "manual")
    twice = f"""{PREPARE}
import h5py, shutil
file = Path(manual_dir) / kimia_path24.FILE
shutil.copy(file, file.with_name("other"))
with h5py.File(file.with_name("other"), "r+") as other:
    other["test_data/patches"][...] = 255 - other["test_data/patches"][...]
file.with_name("other").replace(file)
prepare(name, Path(manual_dir), Path(data_dir) / "second", allow_unverified=True, beam=options)
"""
    done = run(twice, "kimia_path24", tmp_path / "manual", tmp_path / "data", 2**28, "none", DIRECT)
    assert done.returncode == 0, done.stderr
    first, second = (records(run(READ, tmp_path / at / NAME / "1.0.0")) for at in ("data", "data/second"))
    assert first["train"] == second["train"]
    assert not {each["image"] for each in first["test"]["records"]} & {
        each["image"] for each in second["test"]["records"]
    }
