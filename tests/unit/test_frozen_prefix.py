"""A step whose frozen prefix is computed apart, against the same step as one program."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from support.networks import randomise

from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.training.augment import KERAS_2017, KERAS_TODAY
from kimiajax.training.engines import JitEngine, PmapEngine
from kimiajax.training.freezing import TrainableBlocks
from kimiajax.training.frozen_prefix import PrefixedStep
from kimiajax.training.loop import fit, predict
from kimiajax.training.steps import Batch, Training

NAMES = ("block3", "block4", "head")


def alone():
    return JitEngine(tuple(jax.devices()[:1]))


@pytest.fixture(scope="module")
def setting():
    """A training of this project's own small network, and variables for it, which all tests share."""
    rng = np.random.default_rng(7)
    backbone = replace(BACKBONES["cnn"], conv="fast")
    classifier = Classifier(backbone, backbone.trunk, 3)
    variables = randomise(backbone.init(rng, 32, backbone.trunk), rng)
    variables["params"]["head"] = classifier.init_head(jax.random.key(0), (256,))
    options = {"augmentation": KERAS_2017, "label_smoothing": 0.1}
    return Training(classifier, optax.sgd(0.05, 0.9), TrainableBlocks(NAMES), **options), variables


@pytest.fixture
def batch(rng):
    images = rng.integers(0, 255, (5, 32, 32), dtype=np.uint8)
    return Batch(images, np.arange(5) % 3, np.arange(5) < 4, np.arange(5))


def steps(step, training, variables, batch, count=2):
    engine = alone()
    state, every = engine.place(training.start(variables, jax.random.key(0))), []
    for _ in range(count):
        state, metrics = step(state, engine.spread(batch))
        every.append(metrics)
    return state, every


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("augmentation", [KERAS_2017, KERAS_TODAY, None])
def test_two_steps_with_the_prefix_apart_are_those_of_one_program(setting, batch, augmentation):
    """With momentum, dropout, label smoothing, padding, and rows that do not divide among two cores."""
    training, variables = setting
    training = replace(training, augmentation=augmentation)
    step = alone().placed_step(training)
    assert isinstance(step, PrefixedStep)
    assert_same(steps(step, training, variables, batch), steps(alone().wrap_step(training), training, variables, batch))


def test_the_draws_of_another_step_would_show(setting, batch):
    training, variables = setting
    first, second = steps(alone().placed_step(training), training, variables, batch)[1]
    assert abs(float(first.loss - second.loss)) > 1e-3
    without = replace(training, augmentation=None)
    other, _ = steps(alone().placed_step(without), without, variables, batch)[1]
    assert abs(float(first.loss - other.loss)) > 1e-3


def test_other_frozen_weights_are_folded_anew(setting, batch, rng):
    """A prefix that kept the first ones would go on with them."""
    training, variables = setting
    step = alone().placed_step(training)
    before = steps(step, training, variables, batch)
    other = {**variables, "params": {**variables["params"], "block1": randomise(variables["params"]["block1"], rng)}}
    after = steps(step, training, other, batch)
    assert abs(float(before[1][0].loss - after[1][0].loss)) > 1e-3
    assert_same(after, steps(alone().wrap_step(training), training, other, batch))


@pytest.mark.parametrize(
    ("change", "apart"),
    [
        ({}, ("block1", "block2")),
        ({"blocks": TrainableBlocks(("block2/bn", "head"))}, ("block1",)),
        ({"blocks": TrainableBlocks(("head",))}, ("block1", "block2", "block3", "block4", "pooled")),
        ({"blocks": TrainableBlocks(("block1", "head"))}, None),
        ({"blocks": TrainableBlocks(NAMES, frozen_bn="batch")}, None),
        ({"blocks": TrainableBlocks(NAMES, frozen_bn="keras2017")}, None),
        ({"conv": "plain"}, None),
        ({"first": "block2"}, None),
    ],
)
def test_what_goes_apart_is_what_nothing_moves_from_the_first_block_on(setting, change, apart):
    training, _ = setting
    classifier = training.classifier
    if "conv" in change:
        classifier = replace(classifier, backbone=replace(classifier.backbone, conv="plain"))
    if "first" in change:
        classifier = replace(classifier, blocks=classifier.blocks[1:])
    training = replace(training, classifier=classifier, blocks=change.get("blocks", training.blocks))
    step = alone().placed_step(training)
    assert (step.prefix.blocks if isinstance(step, PrefixedStep) else None) == apart


def test_several_devices_and_pmap_keep_one_program():
    for engine in (JitEngine(tuple(jax.devices()[:1] * 2)), PmapEngine(tuple(jax.devices()[:1]))):
        assert not engine.alone_on_cpu


def test_only_the_head_may_train_behind_a_prefix(setting, batch):
    training, variables = setting
    training = replace(training, blocks=TrainableBlocks(("head",)))
    step = alone().placed_step(training)
    assert_same(steps(step, training, variables, batch), steps(alone().wrap_step(training), training, variables, batch))


def test_a_whole_training_and_its_predictions_are_those_of_plain_convolutions(setting, rng):
    training, variables = setting
    inputs, labels = rng.integers(0, 255, (9, 32, 32), dtype=np.uint8), np.arange(9) % 3
    results = {}
    for way in ("plain", "fast"):
        classifier = replace(training.classifier, backbone=replace(training.classifier.backbone, conv=way))
        own = replace(training, classifier=classifier)
        options = {"epochs": 2, "batch_size": 4, "seed": 0, "engine": alone()}
        trained, history = fit(own, variables, inputs, labels, **options)
        predicted = predict(classifier, trained, inputs, batch_size=4, engine=alone())
        results[way] = trained, [epoch.loss for epoch in history], predicted
    assert_same(results["fast"][0], results["plain"][0])
    np.testing.assert_allclose(results["fast"][1], results["plain"][1], rtol=1e-5)
    np.testing.assert_array_equal(results["fast"][2], results["plain"][2])
