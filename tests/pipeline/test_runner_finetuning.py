"""Fine-tuning through `kimiajax table`: what trains, on what devices, and what happens where it goes wrong."""

import struct
from functools import partial

import jax
import numpy as np
import pytest
from support.python import kimiajax_with_two
from support.runs import RANDOM, SMALL, predictions, rows_of

from kimiajax.cli.main import main
from kimiajax.experiments import network_rows
from kimiajax.experiments.config import QUICK, DistributedSettings, ModelSettings, OptimSettings
from kimiajax.experiments.fine_tuning import stored_tap
from kimiajax.models.checkpoint import load_converted
from kimiajax.models.registry import BACKBONES
from kimiajax.runtime.precision import Precision
from kimiajax.training import diagnosis
from kimiajax.training.augment import AUGMENTATIONS
from kimiajax.training.engines import ENGINES
from kimiajax.weights.load import load_weights


def test_the_paper_preset_runs_cut_short_and_augments(scans, tmp_path):
    command = ["table", "paper", "--scans", str(scans), *SMALL, *RANDOM, "--rows", "tl_two"]
    assert main([*command, "--out", str(tmp_path / "paper")]) == 0
    results, rows = rows_of(tmp_path / "paper")
    assert list(rows) == ["tl_two"]
    training = rows["tl_two"]["training"]
    assert (training["augmentation"], training["inputs"]) == ("keras2017", "patches")
    optimization = training["optimization"]
    assert (optimization["optimizer"], optimization["learning_rate"], optimization["momentum"]) == ("sgd", 1e-4, 0.9)
    assert results["config"]["batch_norm_momentum"] == 0.99
    assert any("augmentation as of keras2017" in note for note in results["notes"])


def events_of(path):
    """(tag, step) of every scalar in an event file: records of a length, a checksum, the event, a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        found += [(value.tag, event.step) for value in event.summary.value]
        content = content[16 + length :]
    return found


def test_every_epoch_goes_to_tensorboard_where_that_is_asked_for(scans, tmp_path):
    command = ["table", "quick", "--scans", str(scans), *SMALL, "--rows", "cnn", "--tensorboard", "--epochs", "3"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    (events,) = (tmp_path / "tensorboard" / "cnn").iterdir()
    assert [step for tag, step in events_of(events) if tag == "training/loss"] == [1, 2, 3]
    assert {tag for tag, _ in events_of(events)} == {
        f"training/{name}" for name in ("loss", "accuracy", "learning_rate", "images_per_second")
    }


def test_tensorboard_without_its_package_is_refused_with_the_remedy(scans, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = ["table", "quick", "--scans", str(scans), *SMALL, "--rows", "cnn", "--tensorboard"]
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert 'pip install "kimiajax[track]"' in capsys.readouterr().err


def test_a_row_whose_loss_is_not_finite_stops_and_has_no_accuracy_while_the_others_go_on(scans, tmp_path, capsys):
    rows = ["--rows", "cnn", "fe_two", *RANDOM]
    command = ["table", "quick", "--scans", str(scans), *SMALL, *rows, "--cnn-learning-rate", "1e38"]
    assert main([*command, "--out", str(tmp_path)]) == 3
    results, rows = rows_of(tmp_path)
    assert results["complete"] is True
    assert [rows["cnn"][score] for score in ("eta_p", "eta_w", "eta_total", "correct")] == [None] * 4
    assert "not finite" in rows["cnn"]["failure"] or "the loss is" in rows["cnn"]["failure"]
    assert rows["fe_two"]["eta_p"] > 0
    assert any("CNN (ours) has no accuracy" in note for note in results["notes"])
    assert not (tmp_path / "predictions" / "cnn.csv").exists()
    kept = load_converted(tmp_path / "checkpoints" / "cnn").variables
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))
    assert " -   " in capsys.readouterr().out


def test_the_lineage_of_a_row_that_stopped_says_so_and_names_only_what_did_train(scans, tmp_path, capsys):
    command = ["table", "quick", "--scans", str(scans), *SMALL, *RANDOM, "--rows", "tl_two"]
    assert main([*command, "--head-learning-rate", "1e38", "--seeds", "2", "--out", str(tmp_path)]) == 3
    for seed in (0, 1):
        lineage = load_converted(tmp_path / f"seed-{seed}" / "checkpoints" / "tl_two").lineage
        assert lineage["trained_blocks"] == []
        assert f"tl_two: head, seed {seed}: " in lineage["run"]["failure"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "Seed 1: TL-Two has no accuracy: tl_two: head, seed 1: the loss is" in shown


def test_two_devices_under_pmap_predict_what_one_does(scans, tmp_path):
    """Through the command, with augmentation, dropout and mini-batch statistics."""
    command = ["table", "paper", "--scans", str(scans), *SMALL, *RANDOM, "--rows", "cnn", "tl_two"]
    assert main([*command, "--out", str(tmp_path / "one"), "--cache", str(tmp_path / "cache")]) == 0
    two = [*command, "--out", str(tmp_path / "two"), "--cache", str(tmp_path / "cache"), "--engine", "pmap"]
    done = kimiajax_with_two(*two, JAX_NUM_CPU_DEVICES="2", NPROC="4")
    assert done.returncode == 0, done.stderr
    results, rows = rows_of(tmp_path / "two")
    assert len(results["environment"]["devices"]) == 2
    for row, expected in rows_of(tmp_path / "one")[1].items():
        assert predictions(tmp_path / "two", row) == predictions(tmp_path / "one", row)
        for phase, epochs in expected["history"].items():
            losses = [epoch["loss"] for epoch in rows[row]["history"][phase]]
            # Adam divides by the size of a gradient, be it rounding
            assert losses == pytest.approx([epoch["loss"] for epoch in epochs], rel=1e-3)


def test_what_trains_is_chosen_in_one_line(scans, tmp_path):
    """Here no weight, while all statistics adapt: the frozen blocks must see every mini-batch."""
    command = ["table", "quick", "--scans", str(scans), *SMALL, *RANDOM, "--rows", "tl_two"]
    assert main([*command, "--blocks", "adabn_only", "--out", str(tmp_path)]) == 0
    backbone = BACKBONES["two"]
    start = load_weights(backbone, "random", image_size=32, blocks=backbone.trunk).variables
    after = load_converted(tmp_path / "checkpoints" / "tl_two").variables
    moved = {
        kind: [b for b in part if not jax.tree.all(jax.tree.map(np.array_equal, part[b], after[kind][b]))]
        for kind, part in start.items()
    }
    assert moved == {"params": [], "batch_stats": list(start["batch_stats"])}
    notes = " ".join(rows_of(tmp_path)[0]["notes"])
    assert "TL-Two trains no weight" in notes
    assert "in mode keras2017" in notes


@pytest.mark.parametrize(
    ("network", "choice", "stored"),
    [
        ("vgg16", {}, "block4"),
        ("inception_v3", {}, "mixed8"),
        ("inception_v3", {"blocks": ("inception_v3=mixed10,head",)}, "mixed9"),
        ("inception_v3", {"blocks": ("inception_v3=inception_172",)}, "mixed5"),
        ("inception_v3", {"blocks": ("head_only",)}, "pooled"),
        ("vgg16", {"blocks": ("nothing",)}, "block5"),
        ("vgg16", {"blocks": ("vgg16=all",)}, None),
        ("inception_v3", {"blocks": ("adabn_only",)}, None),
        ("inception_v3", {"frozen_bn": "batch"}, None),
        ("vgg16", {"frozen_bn": "batch"}, "block4"),
        ("vgg16", {"augmentation": "keras2017"}, None),
        ("vgg16", {"cache_frozen": False}, None),
    ],
)
def test_frozen_blocks_run_once_a_patch_wherever_neither_draws_nor_the_mini_batch_decide_what_they_give(
    network, choice, stored
):
    assert stored_tap(BACKBONES[network], QUICK.replace(**choice)) == stored


def test_the_settings_offer_every_augmentation_engine_and_precision_that_there_is():
    groups = {"augmentation": OptimSettings, "engine": DistributedSettings, "precision": ModelSettings}
    offered = {name: set(group.__annotations__[name].__args__) for name, group in groups.items()}
    assert offered == {"augmentation": set(AUGMENTATIONS), "engine": set(ENGINES), "precision": set(Precision.__args__)}


def test_bfloat16_is_run_and_said(scans, tmp_path):
    command = ["table", "quick", "--scans", str(scans), *SMALL, "--rows", "cnn", "--precision", "bfloat16"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    results, _ = rows_of(tmp_path)
    assert any("in bfloat16" in note for note in results["notes"])
    kept = load_converted(tmp_path / "checkpoints" / "cnn").variables
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype("float32")}


def statistics_moved(out, row, network, size=32):
    """Tells whether any running statistic of a row differs from the random weights that it began with."""
    backbone = BACKBONES[network]
    before = load_weights(backbone, "random", image_size=size, blocks=backbone.trunk).variables["batch_stats"]
    after = load_converted(out / "checkpoints" / row).variables["batch_stats"]
    return not jax.tree.all(jax.tree.map(np.array_equal, before, after))


def assert_modes_are_kept(out, **rows):
    """From scratch by the mini-batch whatever the setting; statistics move where the mode says so."""
    found = rows_of(out)[1]
    for row, mode in rows.items():
        assert found[row]["training"]["trained_bn"] == mode
        assert statistics_moved(out, row, row.removeprefix("tl_")) == (mode == "keras2017")


def test_quick_fine_tunes_on_stored_statistics_and_trains_from_scratch_on_those_of_the_mini_batch(small_run):
    assert_modes_are_kept(small_run, cnn="keras2017", tl_two="inference")
    notes = rows_of(small_run)[0]["notes"]
    assert any("TL-Two: trained batch normalisation in mode inference: stored" in note for note in notes)


def test_a_row_from_scratch_that_took_stored_statistics_would_be_noticed(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(network_rows, "blocks_of", partial(network_rows.blocks_of, trained_bn="inference"))
    command = ["table", "quick", "--scans", str(scans), *SMALL, "--rows", "cnn", "--out", str(tmp_path)]
    assert main(command) == 0
    with pytest.raises(AssertionError):
        assert_modes_are_kept(tmp_path, cnn="keras2017")


def test_a_wrong_start_and_a_lost_head_are_told_of_their_row(scans, tmp_path, monkeypatch):
    """Thresholds are such that any run passes them."""
    for name, value in {"SHOCK": 0, "LEARNT": 0, "LOST": 100}.items():
        monkeypatch.setattr(diagnosis, name, value)
    command = ["table", "paper", "--scans", str(scans), *SMALL, *RANDOM, "--rows", "tl_two", "--out", str(tmp_path)]
    assert main(command) == 0
    notes = rows_of(tmp_path)[0]["notes"]
    (start,) = [note for note in notes if note.startswith("TL-Two: fine-tuning starts wrong: the loss of its first")]
    assert "batch statistics in trained blocks" in start
    assert "--trained-bn inference" in start
    (lost,) = [note for note in notes if "fine-tuning lost it" in note]
    assert lost.startswith("TL-Two")
