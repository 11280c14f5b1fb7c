"""Sentences about fine-tuning that starts far above its head, or loses it."""

import pytest

from kimiajax.experiments.config import PAPER, QUICK
from kimiajax.experiments.fine_tuning import causes_of_wrong_start
from kimiajax.models.registry import BACKBONES
from kimiajax.training.diagnosis import learnt_nothing, lost_head, wrong_start
from kimiajax.training.loop import Epoch


def epochs(*losses, accuracy=0.9):
    return [Epoch(number, loss, accuracy, 1e-3, 1.0, 1.0) for number, loss in enumerate(losses, start=1)]


@pytest.mark.parametrize(
    ("head", "first", "wrong"),
    [(0.4, 54.0, True), (0.4, 0.81, True), (0.4, 0.79, False), (0.01, 0.21, True), (0.01, 0.19, False)],
)
def test_a_first_epoch_above_twice_the_head_or_twice_a_tenth_is_a_wrong_start(head, first, wrong):
    said = wrong_start(epochs(3.0, head), epochs(first, 0.001), ["a cause (--flag)"])
    assert (said is not None) == wrong
    if said:
        assert f"the loss of its first epoch is {first:.3g}" in said
        assert f"its head ended at {head:.3g}. Likely cause: a cause (--flag)." in said


def test_where_either_phase_has_no_epochs_nothing_is_said():
    assert wrong_start([], epochs(9.0), ["a cause"]) is None
    assert wrong_start(epochs(0.1), [], ["a cause"]) is None
    assert lost_head({"training": epochs(9.0)}, 0.1) is None


@pytest.mark.parametrize(
    ("network", "config", "flags"),
    [
        ("vgg16", QUICK, ["--learning-rate"]),
        ("inception_v3", QUICK, ["--learning-rate"]),
        ("vgg16", PAPER, ["--augmentation none", "--learning-rate"]),
        ("inception_v3", PAPER, ["--trained-bn inference", "--augmentation none", "--learning-rate"]),
        ("vgg16", QUICK.replace(label_smoothing=0.1), ["--label-smoothing 0", "--learning-rate"]),
    ],
)
def test_causes_are_those_that_the_settings_allow_batch_statistics_first(network, config, flags):
    causes = causes_of_wrong_start(BACKBONES[network], config)
    assert len(causes) == len(flags)
    assert all(flag in cause for flag, cause in zip(flags, causes))


@pytest.mark.parametrize(
    ("before", "after", "lost"), [(0.95, 0.04, True), (0.95, 0.5, False), (0.06, 0.02, False), (0.07, 0.02, True)]
)
def test_a_head_is_lost_where_it_had_learnt_more_than_to_guess_and_half_of_that_is_gone(before, after, lost):
    history = {"head": epochs(0.1, accuracy=before), "fine_tuning": epochs(9.0, accuracy=after)}
    said = lost_head(history, 1 / 24)
    assert (said is not None) == lost
    if said:
        assert f"{before:.0%} of the training patches right" in said
        assert f"it ended at {after:.0%}" in said


@pytest.mark.parametrize(
    ("history", "nothing"),
    [
        ({"head": epochs(3.2, accuracy=0.05), "fine_tuning": epochs(3.1, accuracy=0.06)}, True),
        ({"head": epochs(0.1, accuracy=0.95), "fine_tuning": epochs(9.0, accuracy=0.06)}, False),
        ({"training": epochs(0.5, accuracy=0.07)}, False),
        ({"head": []}, False),
        ({}, False),  # an SVM
    ],
)
def test_nothing_was_learnt_where_no_phase_ended_above_guessing(history, nothing):
    assert learnt_nothing(history, 1 / 24) == nothing
