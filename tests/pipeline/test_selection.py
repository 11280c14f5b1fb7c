"""Heads alone, rows of any block, and what runs where weights hold no top."""

from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint

import flax.linen as nn
import numpy as np
import pytest
from support.networks import TWO
from support.runs import RANDOM, SMALL, predictions, rows_of

from kimiajax.cli.main import main
from kimiajax.data.manifest import read_manifest
from kimiajax.data.patches import Rules
from kimiajax.errors import UserError
from kimiajax.experiments.config import OutputSettings, TableConfig
from kimiajax.experiments.inference import apply_row
from kimiajax.experiments.selection import rows_of as asked_for
from kimiajax.experiments.selection import select
from kimiajax.experiments.table1 import named
from kimiajax.features.export import export_features
from kimiajax.features.svm import fit_linear_svm
from kimiajax.features.taps import source_of, tap_of
from kimiajax.models.batch_norm import INFERENCE
from kimiajax.models.checkpoint import Weights
from kimiajax.models.cnn import ConvBlock
from kimiajax.models.registry import BACKBONES
from kimiajax.runtime.progress import Silent
from kimiajax.weights.load import load_weights

ROWS = ("hd_two", "tl_two", "fe_two@all", "fe_two@one.flat", "nn_two@one_cosine", "fe_two@pooled", "fe_two")
BLOCKS = ["fe_two@one", "fe_two@one.flat", "fe_two@two", "fe_two@pooled", "nn_two@one_cosine"]


@pytest.fixture(scope="module")
def run(scans, cache, tmp_path_factory):
    """The folder of a run of all kinds of rows, whose fine-tuning moves nothing."""
    out = tmp_path_factory.mktemp("blocks") / "run"
    command = ["table", "quick", "--scans", str(scans), *SMALL, *RANDOM, "--epochs", "0", "--rows", *ROWS]
    assert main([*command, "--out", str(out), "--cache", str(cache)]) == 0
    return out


def test_the_head_alone_is_what_fine_tuning_begins_with(run):
    results, rows = rows_of(run)
    assert list(rows) == ["fe_two", "hd_two", "tl_two", *BLOCKS]
    assert predictions(run, "hd_two") == predictions(run, "tl_two"), "of no epochs"
    assert rows["hd_two"]["history"]["head"] == rows["tl_two"]["history"]["head"] != []
    lines = [(run / "history" / f"{row}.jsonl").read_text() for row in ("hd_two", "tl_two")]
    assert lines[0] == lines[1] != ""
    assert (rows["hd_two"]["family"], rows["tl_two"]["against"]) == ("table", "hd_two")
    assert not any("found in the cache" in note for note in results["notes"]), "one training serves both rows"


def test_rows_of_blocks_are_a_family_of_their_own_that_is_held_against_the_features(run):
    results, rows = rows_of(run)
    assert [name for name, row in rows.items() if row["family"] == "blocks"] == BLOCKS
    assert {rows[name]["against"] for name in BLOCKS} == {"fe_two"}
    assert [rows[name]["block"] for name in BLOCKS[:3]] == ["one.mean", "one.flat", "two.mean"]
    assert results["config"]["rows"] == list(rows), "fe_two@all is told block by block"
    assert results["blocks"] == {"two": ["one", "two", "pooled"]}


@pytest.mark.parametrize("source", ["two@one", "two@one.flat", "two@two"])
def test_a_block_predicts_as_an_svm_on_exported_features_does(run, scans, tmp_path, source):
    manifest = read_manifest(run / "manifest.csv")
    options = {"weights": "random", "image_size": 32, "conv": "plain", "manifest": manifest, "rules": Rules()}
    record = export_features(source, scans, tmp_path / "out", **options)
    features = np.load(tmp_path / "out" / "features.npy")
    assert record["shape"] == [27, {"two@one": 8, "two@one.flat": 8 * 8 * 8, "two@two": 8}[source]]
    svm = fit_linear_svm(features[:16], manifest.labels("train"))
    assert svm.predict(features[16:]).tolist() == [int(line["predicted"]) for line in predictions(run, f"fe_{source}")]


@pytest.mark.parametrize("row", ["fe_two@one", "hd_two"])
def test_a_row_predicts_afterwards_as_in_its_run(run, scans, row, cache):
    """The run's random weights were drawn up to its deepest block, and the row reads the first."""
    applied = apply_row(run / row, scans, split="test", cache=cache)
    assert applied.predicted.tolist() == [int(line["predicted"]) for line in predictions(run, row)]


def test_the_mean_over_space_of_the_last_block_is_the_pool(run):
    assert predictions(run, "fe_two@two") == predictions(run, "fe_two@pooled") == predictions(run, "fe_two")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("fe_two@three", r"where BLOCK is all or one of one, two, pooled"),
        ("nn_two@one", r"or nn_two@BLOCK_euclidean\|cosine\|barcode"),
        ("tl_two@one", r"write fe_two@BLOCK"),
        ("fe_three", r"choose from cnn, fe_vgg16, hd_vgg16, .*; of blocks, fe_NETWORK@BLOCK"),
    ],
)
def test_a_row_that_there_is_not_is_refused_with_those_that_there_are(row, message):
    with pytest.raises(UserError, match=f"--rows {row}: no such row; .*{message}"):
        named([row])


def test_a_package_that_cannot_be_loaded_stands_in_no_other_rows_way(monkeypatch):
    broken = EntryPoint("broken", "nowhere:NETWORK", "kimiajax.backbones")
    monkeypatch.setattr(BACKBONES, "_known", {**BACKBONES._known, "broken": broken})
    assert [row.name for row in named(["fe_two@all"])] == ["fe_two@one", "fe_two@two"]
    with pytest.raises(UserError, match="--rows typo: no such row"):
        named(["typo"])


def test_a_blocks_name_may_hold_a_dot(rng):
    dotted = replace(TWO, blocks=("layer1.0", "two", "pooled"))
    assert tap_of(dotted, "layer1.0") == ("layer1.0", "")
    assert tap_of(dotted, "layer1.0.mean") == ("layer1.0", "mean")
    assert [source_of(name) for name in ("x@layer1.0", "x@layer1.0.flat", "x")] == [
        ("x", "layer1.0.mean"),
        ("x", "layer1.0.flat"),
        ("x", None),
    ]


def test_two_ways_of_naming_a_block_are_one_too_many(tmp_path):
    with pytest.raises(UserError, match="two@one: names a block already"):
        export_features("two@one", tmp_path, tmp_path / "out", tap="two")
    with pytest.raises(UserError, match=r"unknown block 'one\.max.mean' of two"):
        export_features("two@one.max", tmp_path, tmp_path / "out")


class Topped(nn.Module):
    """The two blocks and a dense one after them, as VGG16 has two."""

    @nn.compact
    def __call__(self, x, blocks=("one", "two", "dense"), how=INFERENCE, mask=None):
        taps = {}
        for name in blocks:
            if name == "dense":
                x = nn.Dense(8, name=name)(x.reshape(len(x), -1))
            else:
                kernel, stride = (4, 4) if name == "one" else (3, 1)
                x = ConvBlock(8, kernel, stride, momentum=0.9, name=name)(x, how, mask)
            taps[name] = x
        return x, taps


OWN_ROWS = OutputSettings(rows=("fe_topped", "hd_topped", "tl_topped", "nn_topped_cosine"))


@dataclass(frozen=True)
class OfTopped(TableConfig):
    """Settings whose default rows are of that network."""

    output: OutputSettings = OWN_ROWS


@pytest.fixture
def topless(tmp_path, monkeypatch):
    """The path of its weights without the dense block."""
    topped = replace(TWO, name="topped", title="Topped", module=Topped, blocks=("one", "two", "dense"))
    monkeypatch.setitem(BACKBONES, "topped", replace(topped, features="dense", bottleneck="two"))
    random = load_weights("topped", "random", image_size=32, blocks=("one", "two"))
    Weights(random.variables, {**random.lineage, "framework": "keras"}).save(tmp_path / "topless")
    return str(tmp_path / "topless")


def selected(config, weights, cache):
    config = config.replace(weights=(weights,), image_size=32)
    chosen = select(asked_for(config), config, cache, Silent())
    return [row.name for row in chosen.rows], chosen.notes


def test_default_rows_that_weights_without_top_cannot_give_make_way_for_the_bottlenecks(topless, cache):
    names, notes = selected(OfTopped(), topless, cache)
    assert names == ["hd_topped", "tl_topped", "fe_topped@two", "nn_topped@two_cosine"]
    assert notes == [
        "FE-Topped, NN-Topped: left out, since topless holds no top; FE-Topped two, NN-Topped two stand in their place."
    ]
    assert selected(OfTopped(), "random", cache)[0] == [*OfTopped().output.rows]


def test_every_block_is_every_block_that_the_weights_hold(topless, cache):
    names, notes = selected(TableConfig().replace(rows=("fe_topped@all",)), topless, cache)
    assert names == ["fe_topped@one", "fe_topped@two"]
    assert notes == ["FE-Topped dense: left out, since topless holds no top."]


@pytest.mark.parametrize(
    ("rows", "wrong", "able"),
    [
        (("hd_topped", "fe_topped"), "fe_topped", "hd_topped fe_topped@two"),
        (("nn_topped_cosine", "fe_topped@one", "fe_topped@dense"), "nn_topped_cosine fe_topped@dense", None),
    ],
)
def test_named_rows_that_weights_without_top_cannot_give_are_refused_before_the_scans_are_opened(
    topless, tmp_path, capsys, rows, wrong, able
):
    command = ["table", "quick", "--scans", str(tmp_path / "nowhere.h5"), *SMALL, "--weights", topless]
    assert main([*command, "--rows", *rows, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"--rows {wrong}: cannot run, since {topless}: holds no dense of topped (weights without top" in error
    assert f"these would: --rows {able or 'nn_topped@two_cosine fe_topped@one'}" in error


def test_a_row_of_a_block_that_is_not_there_is_refused_with_the_blocks_that_are(topless, scans, tmp_path, capsys):
    command = ["table", "quick", "--scans", str(scans), *SMALL, "--weights", topless, "--out", str(tmp_path / "out")]
    assert main([*command, "--rows", "fe_topped@dense"]) == 2
    assert "; fe_NETWORK@all takes the blocks that there are" in capsys.readouterr().err


def test_the_tops_that_two_networks_lack_are_told_at_once(topless, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(BACKBONES, "other", replace(BACKBONES["topped"], name="other"))
    random = load_weights("other", "random", image_size=32, blocks=("one", "two"))
    Weights(random.variables, {**random.lineage, "framework": "keras"}).save(tmp_path / "other")
    command = ["table", "quick", "--scans", "nowhere.h5", *SMALL, "--out", str(tmp_path / "out")]
    command += ["--weights", f"topped={topless}", f"other={tmp_path / 'other'}"]
    assert main([*command, "--rows", "fe_topped", "fe_other@dense", "hd_other"]) == 2
    error = capsys.readouterr().err
    assert "--rows fe_topped fe_other@dense: cannot run" in error
    assert error.rstrip().endswith("these would: --rows fe_topped@two hd_other")


def test_the_rows_that_a_refusal_names_run_and_say_nothing_of_what_was_not_asked_for(topless, scans, tmp_path, capsys):
    command = ["table", "quick", "--scans", str(scans), *SMALL, "--weights", topless, "--out", str(tmp_path / "out")]
    assert main([*command, "--rows", "hd_topped", "fe_topped@two"]) == 0
    assert "left out" not in capsys.readouterr().out
    assert list(rows_of(tmp_path / "out")[1]) == ["hd_topped", "fe_topped@two"]
