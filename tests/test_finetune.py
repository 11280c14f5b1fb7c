import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import randomise

from kimiajax.errors import UserError
from kimiajax.finetune.blocks import TrainableBlocks
from kimiajax.finetune.loop import fit, predict
from kimiajax.finetune.optimizer import for_blocks, head_rmsprop
from kimiajax.finetune.state import new_state
from kimiajax.finetune.steps import Batch, train_step
from kimiajax.models.backbone import BACKBONES, Classifier


def classifier_of(name, rng, size, num_classes=3, momentum=0.9):
    """A whole network with a head, every array random."""
    backbone = BACKBONES[name]
    classifier = Classifier(backbone, backbone.up_to(backbone.bottleneck), num_classes, momentum)
    variables = randomise(backbone.init(rng, size, classifier.blocks), rng)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    bottleneck = jax.eval_shape(lambda v, x: backbone.apply(v, x, classifier.blocks)[0], variables, x)
    variables["params"]["head"] = classifier.init_head(jax.random.key(0), bottleneck.shape[1:])
    return classifier, variables


def batch_of(rng, size, count=4, num_classes=3):
    images = rng.integers(0, 255, (count, size, size), dtype=np.uint8)
    return Batch(jnp.asarray(images), jnp.arange(count) % num_classes, jnp.ones(count, bool))


def take_steps(classifier, variables, blocks, batch, optimizer, steps=3):
    optimizer = for_blocks(optimizer, blocks)
    state = new_state(variables, optimizer, blocks, jax.random.key(0))
    step = jax.jit(functools.partial(train_step, classifier, optimizer, blocks))
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


def unequal_leaves(before, after):
    """(bit-equal leaves, moved leaves) by path."""
    equal, moved = set(), set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(before):
        other = after
        for key in path:
            other = other[key.key]
        (equal if np.array_equal(leaf, other) else moved).add(jax.tree_util.keystr(path))
    return equal, moved


@pytest.mark.parametrize(
    ("name", "size", "trained"),
    [("vgg16", 32, ("block5", "head")), ("inception_v3", 75, ("mixed9", "mixed10", "head"))],
)
def test_frozen_blocks_stay_bit_equal_and_trainable_ones_move_whole(rng, name, size, trained):
    """Momentum and weight decay are on: both would move a frozen leaf that a mask let through."""
    classifier, variables = classifier_of(name, rng, size)
    optimizer = optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(1e-3, momentum=0.9))
    state, _ = take_steps(classifier, variables, TrainableBlocks(trained), batch_of(rng, size), optimizer)
    before = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    equal, moved = unequal_leaves(before, state.variables)
    in_trained = {path for path in equal | moved if any(f"['{block}']" in path for block in trained)}
    assert moved == in_trained
    assert equal
    assert any("batch_stats" in path for path in moved) == (name == "inception_v3")


def test_momentum_exists_for_what_trains_only(rng):
    classifier, variables = classifier_of("vgg16", rng, 32)
    blocks = TrainableBlocks(("block5", "head"))
    state, _ = take_steps(classifier, variables, blocks, batch_of(rng, 32), optax.sgd(1e-3, momentum=0.9), 1)
    trained = sum(leaf.size for block in blocks.names for leaf in jax.tree.leaves(variables["params"][block]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == trained


def test_an_unknown_block_is_refused_with_the_valid_names(rng, cnn):
    classifier, variables = classifier_of("cnn", rng, 32)
    with pytest.raises(UserError, match=r"unknown block 'blok4'; choose from block1, block2, block3, block4, head"):
        take_steps(classifier, variables, TrainableBlocks(("blok4", "head")), batch_of(rng, 32), optax.sgd(1e-3))


def test_labels_cover_every_leaf_with_one_of_two_names(rng):
    _, variables = classifier_of("cnn", rng, 32)
    labels = TrainableBlocks(("block4", "head")).labels(variables["params"])
    assert jax.tree.structure(labels) == jax.tree.structure(variables["params"])
    assert set(jax.tree.leaves(labels["block4"]) + jax.tree.leaves(labels["head"])) == {"train"}
    assert set(jax.tree.leaves(labels["block1"])) == {"freeze"}


def test_the_optimizer_moves_no_frozen_leaf_of_a_whole_tree_either():
    """What `optax.masked` alone gets wrong: it passes the raw gradient through."""
    params = {"block1": jnp.ones(2), "head": jnp.ones(2)}
    optimizer = for_blocks(optax.sgd(0.1), TrainableBlocks(("head",)))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["block1"], [0, 0])
    np.testing.assert_allclose(updates["head"], [-0.1, -0.1])


def test_a_padded_batch_steps_as_the_batch_without_padding_does(rng):
    classifier, variables = classifier_of("cnn", rng, 32)
    classifier = replace(classifier, backbone=replace(classifier.backbone, dropout=0.0))
    blocks = TrainableBlocks(tuple(variables["params"]))
    whole = batch_of(rng, 32, count=6)
    padded = whole._replace(mask=jnp.arange(6) < 4)
    short = Batch(whole.inputs[:4], whole.labels[:4], whole.mask[:4])
    left, metrics = take_steps(classifier, variables, blocks, padded, optax.sgd(1e-2), 1)
    right, _ = take_steps(classifier, variables, blocks, short, optax.sgd(1e-2), 1)
    assert float(metrics.count) == 4
    for a, b in zip(jax.tree.leaves(left.variables), jax.tree.leaves(right.variables)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def separable(rng, count=60, classes=3):
    labels = np.arange(count, dtype=np.int32) % classes
    centres = 3 * rng.standard_normal((classes, 16)).astype(np.float32)
    return centres[labels] + rng.standard_normal((count, 16)).astype(np.float32), labels


def head_and_start(classes=3):
    head = Classifier(BACKBONES["inception_v3"], (), classes)
    return head, {"params": {"head": head.init_head(jax.random.key(0), (16,))}}


def test_a_head_learns_separable_features_and_the_history_says_so(rng):
    inputs, labels = separable(rng)
    head, start = head_and_start()
    options = {"optimizer": head_rmsprop(1e-3), "blocks": TrainableBlocks(("head",)), "epochs": 8, "batch_size": 32}
    trained, history = fit(head, start, inputs, labels, seed=0, **options)
    assert [epoch.epoch for epoch in history] == list(range(1, 9))
    assert history[-1].loss < 0.1 < history[0].loss
    np.testing.assert_array_equal(predict(head, trained, inputs, batch_size=32), labels)


def test_the_seed_makes_the_run(rng):
    inputs, labels = separable(rng)
    head, start = head_and_start()
    options = {"optimizer": optax.sgd(1e-2), "blocks": TrainableBlocks(("head",)), "epochs": 2, "batch_size": 8}
    kernels = [
        fit(head, start, inputs, labels, seed=seed, **options)[0]["params"]["head"]["logits"]["kernel"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_a_loss_that_is_not_finite_stops_the_run_with_the_epoch(rng):
    inputs, labels = separable(rng)
    inputs[5] = np.nan
    head, start = head_and_start()
    options = {"optimizer": optax.sgd(1e-2), "blocks": TrainableBlocks(("head",)), "epochs": 2, "batch_size": 8}
    with pytest.raises(UserError, match="the loss is nan in epoch 1"):
        fit(head, start, inputs, labels, seed=0, **options)


def test_parameters_that_overflow_in_the_very_last_step_stop_the_run(rng):
    inputs, labels = separable(rng)
    head, start = head_and_start()
    options = {"optimizer": optax.sgd(1e38), "blocks": TrainableBlocks(("head",)), "epochs": 1, "batch_size": 60}
    with pytest.raises(UserError, match="not finite after the last step"):
        fit(head, start, inputs * 100, labels, seed=0, **options)


def test_rmsprop_is_kerass_of_2017():
    """accumulator = 0.9 a + 0.1 g^2; step = lr g / (sqrt(accumulator) + 1e-8)."""
    optimizer, params = head_rmsprop(1e-3), jnp.array([1.0, 1.0])
    state, accumulator, by_hand = optimizer.init(params), np.zeros(2), np.ones(2)
    for gradient in (np.array([0.5, 1e-9]), np.array([-0.2, 1e-9])):
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        accumulator = 0.9 * accumulator + 0.1 * gradient**2
        by_hand = by_hand - 1e-3 * gradient / (np.sqrt(accumulator) + 1e-8)
    np.testing.assert_allclose(params, by_hand, rtol=1e-6)


def test_no_gradient_of_a_frozen_block_is_computed(rng):
    """XLA's own count: training the last of VGG16's blocks costs under half of training all."""
    classifier, variables = classifier_of("vgg16", rng, 32)

    def flops(names):
        blocks = TrainableBlocks(names)
        optimizer = for_blocks(optax.sgd(1e-3), blocks)
        state = new_state(variables, optimizer, blocks, jax.random.key(0))
        step = jax.jit(functools.partial(train_step, classifier, optimizer, blocks))
        return step.lower(state, batch_of(rng, 32)).compile().cost_analysis()["flops"]

    assert flops(("block5", "head")) < 0.5 * flops(tuple(variables["params"]))
