"""The protocol step by step beside Keras', on a network of two blocks; and mistakes, each of which must show."""

import dataclasses
import pickle
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest
from support.networks import TWO, Two

from kimiajax.cli.main import main
from kimiajax.errors import UserError
from kimiajax.models import cnn
from kimiajax.models.batch_norm import INFERENCE
from kimiajax.models.registry import BACKBONES
from kimiajax.parity import protocol
from kimiajax.parity.certificate import FAILED, VERIFIED
from kimiajax.parity.certificate_text import render
from kimiajax.parity.config import ParityConfig
from kimiajax.parity.run import add_head, certify, prepare, run_reference
from kimiajax.runtime.progress import Silent
from kimiajax.training.freezing import TrainableBlocks
from kimiajax.training.steps import Plan

MAPPED = dataclasses.replace(TWO, mapping="support.keras_two")
CONFIG = ParityConfig("keras", "random", image_size=32, protocol=True)


@pytest.fixture(autouse=True)
def mapped(monkeypatch):
    """Has the network of two blocks known, with Keras' own, here and in the reference's process."""
    monkeypatch.setitem(BACKBONES, "two", MAPPED)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


@pytest.fixture
def setting(shared):
    """The job, the weights and the head, and what Keras computed with them, once a test run."""

    def make(folder):
        job, weights = prepare("two", CONFIG, folder, Silent())
        job, head = add_head(job, weights, folder)
        job = dataclasses.replace(job, learning_rate=1e-2)  # at the study's a head of 8 units hardly moves
        reference = run_reference(job, "keras", folder, Silent())
        (folder / "setting.pickle").write_bytes(pickle.dumps((job, weights, head, reference)))

    return pickle.loads((shared("protocol", make) / "setting.pickle").read_bytes())


def certified(setting, **changed):
    job, weights, head, reference = setting
    return certify(dataclasses.replace(job, **changed), "keras", weights, head, *reference)


def test_every_step_and_every_epoch_has_keras_loss(setting):
    done = certified(setting)
    assert done.verdict == VERIFIED, render(done)
    assert "VERIFIED: two trains as in keras, at each of 24 losses" in render(done)
    assert [(stage.name, stage.shape) for stage in done.stages] == [
        ("inference/loss", (9,)),
        ("inference/evaluation", (3,)),
        ("keras2017/loss", (9,)),
        ("keras2017/evaluation", (3,)),
    ]
    assert [len(batch) for batch in setting[0].batches[0]] == [36, 36, 24], "the last is padded"


class OtherEpsilon(Two):
    @nn.compact
    def __call__(self, x, blocks=TWO.blocks, how=INFERENCE, mask=None):
        before, cnn.EPSILON = cnn.EPSILON, 1e-3
        try:
            return super().__call__(x, blocks, how, mask)
        finally:
            cnn.EPSILON = before


class Counted(Plan):
    """Padding counts like any image."""

    @property
    def mask(self):
        return np.ones((self.steps, self.rows), bool)


def other_epsilon(monkeypatch):
    monkeypatch.setitem(BACKBONES, "two", dataclasses.replace(MAPPED, module=OtherEpsilon))


def statistics_that_move(monkeypatch):
    moving = lambda names, trained_bn: TrainableBlocks(names, trained_bn="keras2017")  # noqa: E731
    monkeypatch.setattr(protocol, "TrainableBlocks", moving)


@pytest.mark.parametrize(
    ("mistake", "changed", "diverges"),
    [
        (other_epsilon, {}, "inference/loss"),
        (None, {"momentum": 0.8}, "inference/loss"),
        (None, {"batch_norm_momentum": 0.9}, "keras2017/evaluation"),
        (None, {"seed": 1}, "inference/loss"),
        (None, {"learning_rate": 1.1e-2}, "inference/loss"),
        (statistics_that_move, {}, "inference/loss"),
        (lambda monkeypatch: monkeypatch.setattr(protocol, "Plan", Counted), {}, "inference/loss"),
    ],
    ids=["epsilon", "momentum", "momentum of statistics", "order", "rate", "statistics that move", "padding counted"],
)
def test_a_mistake_fails_at_the_first_losses_that_it_changes(setting, monkeypatch, mistake, changed, diverges):
    if mistake is not None:
        mistake(monkeypatch)
    done = certified(setting, **changed)
    assert (done.verdict, done.first_divergence) == (FAILED, diverges), render(done)


def test_a_difference_of_a_thousandth_in_one_step_fails_and_is_named(setting):
    job, _, _, (single, judge, _) = setting
    for name, side in (("float32", 0), ("float64", 1)):
        given = [dict(single), dict(judge), dict(single), dict(judge)]
        changed = given[side]["inference/loss"].astype(np.float64)
        changed[4] *= 1.002 if side == 0 else 1 + 1e-8
        given[side]["inference/loss"] = changed
        stages = protocol.compare(job, protocol.Sides(*given))
        assert stages[0].fault is not None
        assert f"step 5 differs by {'2.0e-03' if side == 0 else '1.0e-08'} in {name}" in stages[0].fault
        assert all(stage.passed for stage in stages[1:])


def test_what_the_protocol_cannot_be_compared_on_is_refused(scans, capsys):
    for flags, word in (
        (["--reference", "torch"], "--protocol: is compared with Keras, not with torch"),
        (["--reference", "keras", "--input", "native"], "leave --input out"),
        (["--reference", "keras", "--image-size", "0"], "too small"),
    ):
        assert main(["parity", "vgg16", "--weights", "random", "--protocol", *flags]) == 2
        assert word in capsys.readouterr().err
    with pytest.raises(UserError, match="has 11 test patches of 4 scans, and --protocol needs 96"):
        protocol.choose_patches(scans)
