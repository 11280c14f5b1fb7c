"""The same table whatever was said to JAX and Flax before: from Python, and in what a resumed run records."""

import json

import flax
import jax
import pytest
from support.runs import RANDOM, SMALL, rows_of

import kimiajax
from kimiajax.cli.main import main
from kimiajax.runs.layout import RunFolder

KINDS = {
    "keys": {"jax_default_prng_impl": "rbg", "jax_random_seed_offset": 3},
    "types": {"jax_enable_x64": True, "jax_numpy_rank_promotion": "raise"},
    "checks": {"jax_debug_nans": True, "jax_transfer_guard": "disallow", "jax_numpy_dtype_promotion": "strict"},
    "parts": {"jax_threefry_partitionable": False, "jax_legacy_prng_key": "error"},
}


def learnt(out):
    return {name: (row["learnt_sha256"], row["predictions_sha256"]) for name, row in rows_of(out)[1].items()}


@pytest.fixture(scope="module")
def config(scans, tmp_path_factory):
    """Settings of a table of a row that trains and a row that does not."""
    given = kimiajax.PRESETS["quick"][1].replace(
        scans=scans, rows=("cnn", "fe_two"), weights=("random",), image_size=32, patches_per_scan=4, conv="plain"
    )
    return given.replace(epochs=1, batch_size=8, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory):
    """What the table learns where nothing was said."""
    out = tmp_path_factory.mktemp("plain") / "run"
    kimiajax.run_table("quick", config.replace(out=out))
    return learnt(out)


@pytest.fixture
def say():
    """Sets options of JAX and of Flax, until the test ends."""
    before = {}

    def said(options):
        for name, value in options.items():
            before[name] = jax.config.values[name]
            jax.config.update(name, value)
        flax.config.update("flax_fix_rng_separator", True)

    yield said
    flax.config.update("flax_fix_rng_separator", False)
    for name, value in before.items():
        jax.config.update(name, value.name.lower() if hasattr(value, "name") else value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_caller_said_to_jax_changes_no_figure(kind, config, plain, say, tmp_path):
    say(KINDS[kind])
    kimiajax.run_table("quick", config.replace(out=tmp_path / "run", cache=tmp_path / "cache"))
    assert learnt(tmp_path / "run") == plain
    for name, value in KINDS[kind].items():
        now = jax.config.values[name]
        assert getattr(now, "name", now) == (value.upper() if hasattr(now, "name") else value)


def test_without_the_settings_of_the_program_a_table_would_differ(config, plain, say, tmp_path):
    say(KINDS["keys"])
    kimiajax.run_table.__wrapped__("quick", config.replace(out=tmp_path / "run", cache=tmp_path / "cache"))
    assert learnt(tmp_path / "run")["cnn"] != plain["cnn"]
    assert rows_of(tmp_path / "run")[0]["environment"]["shell"]["jax_default_prng_impl"] == "rbg"


def test_a_run_that_is_resumed_under_another_variable_says_so(scans, tmp_path, monkeypatch):
    command = ["table", "quick", "--scans", str(scans), *SMALL, *RANDOM, "--rows", "floor_histogram", "fe_two"]
    command += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run")]
    assert main(command) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    results["rows"] = results["rows"][:1]
    RunFolder(tmp_path / "run").write_results(results)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert main(command) == 0
    (note,) = [note for note in rows_of(tmp_path / "run")[0]["notes"] if "not the same any more" in note]
    assert 'NVIDIA_TF32_OVERRIDE was null and is "1"' in note
