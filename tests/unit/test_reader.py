"""Stored runs, read again: what is checked, and which versions."""

import json

import numpy as np
import pytest
from support.stored_runs import manifest_of, predictions_of, write_run

from kimiajax.errors import UserError
from kimiajax.evaluation.stored import read_run
from kimiajax.experiments.config import PRESETS, as_dicts
from kimiajax.runs.layout import RunFolder
from kimiajax.runs.reader import rerun

TESTED = [4, 3, 5]


@pytest.fixture
def stored(tmp_path, rng):
    manifest = manifest_of(TESTED)
    guess = predictions_of(rng, manifest.labels("test"), 3, 0.6)
    write_run(tmp_path / "run", manifest, {"cnn": guess, "tl_vgg16": None, "floor_lbp": guess})
    return tmp_path / "run"


def rewrite(folder, **changes):
    results = {**json.loads((folder / "results.json").read_text()), **changes}
    RunFolder(folder).write_results({name: value for name, value in results.items() if value is not ...})


def test_what_was_written_is_read(stored):
    run = read_run(stored)
    assert {row: guess.shape for row, guess in run.predicted.items()} == {"cnn": (1, 12), "floor_lbp": (1, 12)}
    assert list(run.rows) == ["cnn", "tl_vgg16", "floor_lbp"]
    assert list(run.family("floor")) == ["floor_lbp"]
    assert run.family("table")["cnn"].mean() == pytest.approx(run.rows["cnn"]["eta_p"])


def test_a_run_of_several_seeds_has_the_predictions_of_each(tmp_path, rng):
    manifest = manifest_of(TESTED)
    guesses = np.stack([predictions_of(rng, manifest.labels("test"), 3, 0.6) for _ in range(3)])
    write_run(tmp_path / "run", manifest, {"cnn": guesses}, seeds=3)
    run = read_run(tmp_path / "run")
    np.testing.assert_array_equal(run.predicted["cnn"], guesses)
    assert [results["config"]["seed"] for results in run.seeds] == [0, 1, 2]
    assert run.rows["cnn"]["eta_p"] == pytest.approx((guesses == run.scans).mean())
    one = read_run(tmp_path / "run" / "seed-1")
    np.testing.assert_array_equal(one.predicted["cnn"], guesses[1:2])


def test_the_version_before_is_read_as_one_without_floors_and_pictures(stored):
    results = json.loads((stored / "results.json").read_text())
    rows = [row for row in results["rows"] if row["name"] == "cnn"]
    for name in ("family", "retrieval", "pictures"):
        del rows[0][name]
    rewrite(stored, schema_version=4, rows=rows, pictures=...)
    run = read_run(stored)
    assert run.rows["cnn"]["family"] == "table"
    assert run.results["pictures"] == run.rows["cnn"]["pictures"] == []


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_settings_of_version_7_are_read_under_the_names_that_they_have_now(stored, optimizer):
    config = json.loads((stored / "results.json").read_text())["config"]
    config |= {"optimizer": optimizer, "learning_rate": 1e-3}
    known = {name: value for name, value in config.items() if not name.endswith(("_bn", "head_optimizer"))}
    rewrite(stored, schema_version=7, config=known)
    read = read_run(stored).results
    assert read["config"]["trained_bn"] == "keras2017"
    assert read["config"]["head_optimizer"] == "rmsprop2017"
    assert read["config"]["optimizer"] == {"sgd": "sgd", "rmsprop": "rmsprop2017"}[optimizer]
    again = rerun({**read, "preset": "quick"}, {"quick": PRESETS["quick"][1].as_dict()})
    assert "--head-optimizer rmsprop2017" in again
    assert "--trained-bn keras2017" in again


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (3, "of schema version 3, and 4 to 10 are read here; compute the table again"),
        (11, "of schema version 11, and 4 to 10 are read here; use a newer kimiajax"),
        (None, "of schema version None"),
    ],
)
def test_other_versions_are_refused_and_never_guessed(stored, version, message):
    rewrite(stored, schema_version=version)
    with pytest.raises(UserError, match=message):
        read_run(stored)


def test_damage_is_named(stored, tmp_path):
    with pytest.raises(UserError, match=r"nowhere/results.json: no such file; give the folder of a run"):
        read_run(tmp_path / "nowhere")
    path = stored / "predictions" / "cnn.csv"
    before = path.read_text()
    path.write_text(before.replace(",0\n", ",1\n", 1))
    with pytest.raises(UserError, match=r"cnn.csv: was changed since results.json was written"):
        read_run(stored)
    path.write_text("\n".join(before.splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match=r"cnn.csv"):
        read_run(stored)
    path.write_text(before)
    rewrite(stored, data=...)
    with pytest.raises(UserError, match=r"results.json: no results of this program, or damaged"):
        read_run(stored)
    rewrite(stored, rows="x")
    with pytest.raises(UserError, match=r"results.json: no results of this program, or damaged"):
        read_run(stored)
    (stored / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results.json: no results of this program, or damaged"):
        read_run(stored)


def test_scores_that_are_not_those_of_the_predictions_are_refused(stored):
    results = json.loads((stored / "results.json").read_text())
    results["rows"][0]["eta_w"] += 0.01
    rewrite(stored, rows=results["rows"])
    with pytest.raises(UserError, match=r"eta_w of cnn is .*, and its predictions give"):
        read_run(stored)


def test_seeds_of_which_one_was_computed_again_are_refused(tmp_path, rng):
    manifest = manifest_of(TESTED)
    guesses = np.stack([predictions_of(rng, manifest.labels("test"), 3, 0.6) for _ in range(2)])
    write_run(tmp_path, manifest, {"cnn": guesses}, seeds=2)
    write_run(tmp_path / "seed-1", manifest, {"cnn": (guesses[0] + 1) % 3}, seed=1)
    with pytest.raises(UserError, match="eta_p of cnn is"):
        read_run(tmp_path)
    write_run(tmp_path / "seed-1", manifest, {"floor_lbp": guesses[0]}, seed=1)
    with pytest.raises(UserError, match=r"seed-1: lacks the row cnn, which the run has"):
        read_run(tmp_path)


def test_another_manifest_is_noticed(stored):
    manifest_of(TESTED, pixels="b").write(stored / "manifest.csv")
    with pytest.raises(UserError, match=r"manifest.csv is not the one"):
        read_run(stored)


def test_seeds_that_were_tested_on_other_patches_are_no_run(tmp_path, rng):
    manifest = manifest_of(TESTED)
    guesses = np.stack([predictions_of(rng, manifest.labels("test"), 3, 0.6) for _ in range(2)])
    write_run(tmp_path / "run", manifest, {"cnn": guesses}, seeds=2)
    other = manifest_of([4, 4, 4])
    write_run(tmp_path / "run" / "seed-1", other, {"cnn": predictions_of(rng, other.labels("test"), 3, 0.6)})
    with pytest.raises(UserError, match="tested on other patches"):
        read_run(tmp_path / "run")


def test_the_command_that_computes_a_run_again_names_what_departs_from_its_preset():
    presets = as_dicts(PRESETS)
    config = {**presets["quick"], "scans": "it's|my scans.h5", "epochs": 3, "cache_frozen": False, "fresh": True}
    config = json.loads(json.dumps({**config, "rows": ["cnn", "fe_vgg16"]}))
    assert rerun({"preset": "quick", "config": config}, presets) == (
        "kimiajax table quick --scans 'it'\"'\"'s|my scans.h5' --rows cnn fe_vgg16 --epochs 3 --no-cache-frozen"
    )
    assert (
        rerun({"preset": "demo", "config": json.loads(json.dumps(presets["demo"]))}, presets) == "kimiajax table demo"
    )


@pytest.mark.parametrize("change", [{"scans": 9}, {"patch_size": 7}, {"synthetic": True}, {"unverified": "MD5"}])
def test_a_manifests_header_of_other_data_is_noticed_without_a_seal_too(stored, change):
    path = stored / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change, "seal": None}))
    with pytest.raises(UserError, match=rf"manifest\.json: {next(iter(change))} is not what results\.json was"):
        read_run(stored)
