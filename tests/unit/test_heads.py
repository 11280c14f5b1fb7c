"""Heads of several seeds at once against one at a time."""

from dataclasses import asdict

import jax
import numpy as np
import optax
import pytest

from kimiajax.errors import UserError
from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.runtime.progress import Silent
from kimiajax.training import head_cache as kept_heads
from kimiajax.training import heads
from kimiajax.training.freezing import TrainableBlocks
from kimiajax.training.head_cache import fit_heads_once
from kimiajax.training.heads import fit_heads
from kimiajax.training.loop import Epoch, NonFiniteError, check_labels, fit
from kimiajax.training.optimizer import Optimization
from kimiajax.training.steps import Plan, Training

SEEDS, COUNT, SIZE, CLASSES = (3, 4, 9), 21, 16, 3
HEAD = Classifier(BACKBONES["vgg16"], (), CLASSES)  # which drops half of its hidden units


def setting(rng):
    """For each seed a start, its own features, and labels."""
    labels = [np.arange(COUNT, dtype=np.int32) % CLASSES] * len(SEEDS)
    inputs = [rng.standard_normal((COUNT, SIZE)).astype(np.float32) for _ in SEEDS]
    starts = [{"params": {"head": HEAD.init_head(jax.random.key(seed), (SIZE,))}} for seed in SEEDS]
    return starts, inputs, labels


def training_by(optimizer):
    return Training(HEAD, optimizer, TrainableBlocks(("head",)))


OPTIONS = {"epochs": 3, "batch_size": 8}  # 8, 8 and 5 rows


def apart(results, alone):
    return max(
        float(np.abs(left - right).max())
        for (trained, _), (expected, _) in zip(results, alone)
        for left, right in zip(jax.tree.leaves(trained), jax.tree.leaves(expected))
    )


@pytest.fixture
def both(rng):
    """A function that trains all at once, and what each alone gives."""
    starts, inputs, labels = setting(rng)
    training = training_by(Optimization("rmsprop", 1e-3).over(3, 3).optimizer)
    alone = [fit(training, *given, seed=seed, **OPTIONS) for *given, seed in zip(starts, inputs, labels, SEEDS)]
    return lambda: fit_heads(training, starts, inputs, labels, seeds=SEEDS, **OPTIONS), alone


def test_heads_trained_at_once_are_those_trained_alone(both):
    """With dropout, each in its own order; two programs, so to float32's rounding."""
    together, alone = both
    results = together()
    assert apart(results, alone) < 1e-5
    assert apart(results[1:], alone[:-1]) > 1e-2, "each seed has its own"
    for (_, history), (_, expected) in zip(results, alone):
        assert [e.epoch for e in history] == [1, 2, 3]
        assert [e.loss for e in history] == pytest.approx([e.loss for e in expected], rel=1e-4)
        assert [e.accuracy for e in history] == pytest.approx([e.accuracy for e in expected])


STACKED, ORDER = heads._stacked, heads.order_of
FAULTS = {
    "one order for all": (heads, "order_of", lambda key, epoch, count: ORDER(jax.random.key(SEEDS[0]), epoch, count)),
    "the same order each epoch": (heads, "order_of", lambda key, epoch, count: ORDER(key, 1, count)),
    "padding trained on": (Plan, "mask", property(lambda plan: np.ones((plan.steps, plan.rows), bool))),
    "one key for all": (heads, "_stacked", lambda states: STACKED([states[0]] * len(states))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_shows(both, monkeypatch, fault):
    together, alone = both
    monkeypatch.setattr(*FAULTS[fault])
    heads._epoch.clear_cache()  # of the program without the fault, and after it of that with it
    try:
        assert apart(together(), alone) > 1e-4
    finally:
        heads._epoch.clear_cache()


def test_heads_that_run_together_as_on_an_accelerator_end_where_each_alone_does(both, monkeypatch):
    together, alone = both
    monkeypatch.setattr(heads, "_run_apart", lambda count: False)
    assert apart(together(), alone) < 1e-5
    monkeypatch.setattr(heads, "order_of", FAULTS["one order for all"][2])
    heads._epoch.clear_cache()
    try:
        assert apart(together(), alone) > 1e-4
    finally:
        heads._epoch.clear_cache()


def test_heads_that_do_not_fit_on_the_device_together_take_turns(both, monkeypatch):
    together, alone = both
    monkeypatch.setattr(heads, "AT_ONCE", 2 * COUNT * SIZE * 4)
    assert apart(together(), alone) < 1e-5


def test_one_that_is_not_finite_stops_and_the_others_go_on(rng):
    starts, inputs, labels = setting(rng)
    inputs[1][5] = np.nan
    told = [[] for _ in SEEDS]
    training = training_by(optax.sgd(1e-2))
    records = [epochs.append for epochs in told]
    results = fit_heads(training, starts, inputs, labels, seeds=SEEDS, records=records, **OPTIONS)
    assert isinstance(results[1], NonFiniteError)
    assert f"seed {SEEDS[1]}: the loss is nan in epoch 1" in str(results[1])
    for left, right in zip(jax.tree.leaves(results[1].variables), jax.tree.leaves(starts[1])):
        np.testing.assert_array_equal(left, right)
    assert [len(epochs) for epochs in told] == [3, 0, 3]
    assert all(np.isfinite(leaf).all() for k in (0, 2) for leaf in jax.tree.leaves(results[k][0]))


def test_features_of_two_shapes_and_labels_of_no_class_are_refused(rng):
    starts, inputs, labels = setting(rng)
    training = training_by(optax.sgd(1e-2))
    with pytest.raises(UserError, match="features of 2 shapes"):
        fit_heads(training, starts, [inputs[0][:, :5], *inputs[1:]], labels, seeds=SEEDS, **OPTIONS)
    with pytest.raises(UserError, match="3 starts, 3 features, 3 labels for 2 seeds"):
        fit_heads(training, starts, inputs, labels, seeds=SEEDS[:2], **OPTIONS)
    with pytest.raises(UserError, match="labels go from 1 to 3; with 3 classes"):
        fit_heads(training, starts, inputs, [each + 1 for each in labels], seeds=SEEDS, **OPTIONS)
    with pytest.raises(UserError, match="21 labels for 20 inputs"):
        check_labels(labels[0], 20, CLASSES)


def kept(rng, tmp_path, *, optimizer="rmsprop", rate=1e-3, dropped=0.0, **options):
    starts, inputs, labels = setting(np.random.default_rng(0))
    optimization = Optimization(optimizer, rate)
    training = training_by(optimization.over(3, 3).optimizer)
    inputs[0][0, 0] += dropped
    epochs = [[] for _ in SEEDS]
    given = {**OPTIONS, "seeds": SEEDS, "progress": Silent(), "description": "head", **options}
    records = [each.append for each in epochs]
    results, cached = fit_heads_once(
        training, optimization, starts, inputs, labels, cache=tmp_path, records=records, **given
    )
    return results, cached, epochs


def test_heads_are_trained_once_and_found_with_their_history(rng, tmp_path):
    (trained, before, told), (found, after, again) = (kept(rng, tmp_path) for _ in range(2))
    assert (before, after) == (False, True)
    for (variables, history), (same, read) in zip(trained, found):
        assert variables.keys() == same.keys()
        assert history == read
        for one, other in zip(jax.tree.leaves(variables), jax.tree.leaves(same), strict=True):
            np.testing.assert_array_equal(one, other)
    assert told == again == [history for _, history in trained]


@pytest.mark.parametrize(
    "change", [{"optimizer": "rmsprop2017"}, {"rate": 2e-3}, {"dropped": 1e-6}, {"epochs": 2}, {"batch_size": 7}]
)
def test_heads_of_another_training_are_not_found(rng, tmp_path, change):
    kept(rng, tmp_path)
    assert not kept(rng, tmp_path, **change)[1]


def test_a_head_of_the_other_epsilon_that_is_found_would_be_noticed(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_heads, "asdict", lambda each: asdict(each) if isinstance(each, Epoch) else {})
    with pytest.raises(AssertionError):
        test_heads_of_another_training_are_not_found(rng, tmp_path, {"optimizer": "rmsprop2017"})


def test_a_damaged_head_is_trained_again(rng, tmp_path):
    kept(rng, tmp_path)
    (path, *_) = sorted(tmp_path.glob("heads/*/0.*kernel.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="is computed again"):
        assert not kept(rng, tmp_path)[1]
    (path,) = tmp_path.glob("heads/*/histories.json")
    path.write_text(path.read_text().replace('"epoch": 1', '"epoch": 2'))
    assert not kept(rng, tmp_path)[1]


def test_heads_that_cannot_be_kept_are_good_all_the_same(rng, tmp_path):
    (tmp_path / "heads").write_text("no folder")
    with pytest.warns(UserWarning, match="cannot keep heads"):
        results, cached, _ = kept(rng, tmp_path)
    assert len(results) == len(SEEDS)
    assert not cached


def test_heads_that_stopped_are_not_kept(rng, tmp_path):
    results, _, _ = kept(rng, tmp_path, dropped=np.inf)
    assert isinstance(results[0], NonFiniteError)
    assert not list(tmp_path.rglob("*.npy"))
