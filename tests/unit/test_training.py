import functools
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.networks import randomise

from kimiajax.errors import UserError
from kimiajax.models.batch_norm import Normalisation
from kimiajax.models.head import Classifier
from kimiajax.models.inputs import network_input
from kimiajax.models.registry import BACKBONES
from kimiajax.training.augment import KERAS_2017
from kimiajax.training.engines import JitEngine
from kimiajax.training.freezing import TrainableBlocks, blocks_of, merge
from kimiajax.training.loop import NonFiniteError, fit, predict
from kimiajax.training.optimizer import Optimization, for_blocks
from kimiajax.training.steps import Batch, Training, train_step


def classifier_of(name, rng, size, num_classes=3):
    """A whole network with a head, every array random."""
    backbone = BACKBONES[name]
    classifier = Classifier(backbone, backbone.trunk, num_classes)
    variables = randomise(backbone.init(rng, size, classifier.blocks), rng)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    bottleneck = jax.eval_shape(lambda v, x: backbone.apply(v, x, classifier.blocks)[0], variables, x)
    variables["params"]["head"] = classifier.init_head(jax.random.key(0), bottleneck.shape[1:])
    return classifier, variables


def batch_of(rng, size, count=4, num_classes=3):
    images = rng.integers(0, 255, (count, size, size), dtype=np.uint8)
    return Batch(jnp.asarray(images), jnp.arange(count) % num_classes, jnp.ones(count, bool), jnp.arange(count))


def take_steps(classifier, variables, blocks, batch, optimizer, steps=3, **options):
    training = Training(classifier, optimizer, blocks, **options)
    state = training.start(variables, jax.random.key(0))
    step = JitEngine().step(training)
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
    [
        ("vgg16", 32, ("block5", "head")),
        ("cnn", 32, ("block3", "block4", "head")),
        pytest.param("inception_v3", 75, ("mixed9", "mixed10", "head"), marks=pytest.mark.parity),
    ],
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
    assert any("batch_stats" in path for path in moved) == (name != "vgg16")


def test_momentum_exists_for_what_trains_only(rng):
    classifier, variables = classifier_of("vgg16", rng, 32)
    blocks = TrainableBlocks(("block5", "head"))
    state, _ = take_steps(classifier, variables, blocks, batch_of(rng, 32), optax.sgd(1e-3, momentum=0.9), 1)
    trained = sum(leaf.size for block in blocks.names for leaf in jax.tree.leaves(variables["params"][block]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == trained


def test_an_unknown_block_is_refused_with_the_valid_names(rng, cnn):
    classifier, variables = classifier_of("cnn", rng, 32)
    with pytest.raises(UserError, match=r"unknown block 'blok4'; choose from .*block1, block2, block3, block4"):
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
    short = Batch(*(entry[:4] for entry in whole))
    left, metrics = take_steps(classifier, variables, blocks, padded, optax.sgd(1e-2), 1)
    right, _ = take_steps(classifier, variables, blocks, short, optax.sgd(1e-2), 1)
    assert float(metrics.count) == 4
    for a, b in zip(jax.tree.leaves(left.variables), jax.tree.leaves(right.variables)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def separable(rng, count=60, classes=3):
    labels = np.arange(count, dtype=np.int32) % classes
    centres = 3 * rng.standard_normal((classes, 16)).astype(np.float32)
    return centres[labels] + rng.standard_normal((count, 16)).astype(np.float32), labels


def head_training(optimizer, classes=3):
    """The training of a head on 16 features, and the variables that it starts from."""
    head = Classifier(BACKBONES["inception_v3"], (), classes)
    start = {"params": {"head": head.init_head(jax.random.key(0), (16,))}}
    return Training(head, optimizer, TrainableBlocks(("head",))), start


def test_a_head_learns_separable_features_and_the_history_says_so(rng):
    inputs, labels = separable(rng)
    optimizer, rate = Optimization("rmsprop", 1e-3).over(8, 2)
    training, start = head_training(optimizer)
    training = replace(training, learning_rate=rate)
    told = []
    trained, history = fit(training, start, inputs, labels, epochs=8, batch_size=32, seed=0, record=told.append)
    assert [epoch.epoch for epoch in history] == list(range(1, 9))
    assert told == history
    assert history[-1].loss < 0.1 < history[0].loss
    assert [epoch.learning_rate for epoch in history] == pytest.approx([1e-3] * 8)
    assert all(epoch.images_per_second == pytest.approx(60 / epoch.seconds) for epoch in history)
    np.testing.assert_array_equal(predict(training.classifier, trained, inputs, batch_size=32), labels)


def test_the_seed_makes_the_run(rng):
    inputs, labels = separable(rng)
    training, start = head_training(optax.sgd(1e-2))
    kernels = [
        fit(training, start, inputs, labels, epochs=2, batch_size=8, seed=seed)[0]["params"]["head"]["logits"]["kernel"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(rng):
    """The largest rate at which the first epoch goes well; the second's gradients are then without bound."""
    inputs, labels = separable(rng)
    training, start = head_training(optax.sgd(lambda step: jnp.where(step < 8, 1e-2, 1e38)))
    first, _ = fit(training, start, inputs, labels, epochs=1, batch_size=8, seed=0)
    with pytest.raises(NonFiniteError, match=r"the loss is nan in epoch 2, step \d \(training patches \d+") as stopped:
        fit(training, start, inputs, labels, epochs=3, batch_size=8, seed=0)
    assert [epoch.epoch for epoch in stopped.value.history] == [1]
    for left, right in zip(jax.tree.leaves(stopped.value.variables), jax.tree.leaves(first)):
        np.testing.assert_array_equal(left, right)


def test_the_message_names_the_patches_of_the_bad_step(rng):
    inputs, labels = separable(rng)
    inputs[5] = np.nan
    training, start = head_training(optax.sgd(1e-2))
    with pytest.raises(NonFiniteError, match=r"in epoch 1, step \d+ \(training patches (\d+, )*5[,)]"):
        fit(training, start, inputs, labels, epochs=2, batch_size=4, seed=0)


def test_parameters_that_overflow_in_the_very_last_step_stop_the_run(rng):
    inputs, labels = separable(rng)
    training, start = head_training(optax.sgd(1e38))
    with pytest.raises(NonFiniteError, match="not finite after the last step"):
        fit(training, start, inputs * 100, labels, epochs=1, batch_size=60, seed=0)


@pytest.mark.parametrize(
    ("name", "root"), [("rmsprop", lambda a: np.sqrt(a + 1e-7)), ("rmsprop2017", lambda a: np.sqrt(a) + 1e-8)]
)
def test_rmsprop_is_kerass_of_today_or_of_2017(name, root):
    """accumulator = 0.9 a + 0.1 g^2; step = lr g / root(accumulator). The second gradient is next to nothing."""
    optimizer, params = Optimization(name, 1e-3).over(1, 2).optimizer, jnp.array([1.0, 1.0])
    state, accumulator, by_hand = optimizer.init(params), np.zeros(2), np.ones(2)
    for gradient in (np.array([0.5, 1e-9]), np.array([-0.2, 1e-9])):
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        accumulator = 0.9 * accumulator + 0.1 * gradient**2
        by_hand = by_hand - 1e-3 * gradient / root(accumulator)
    np.testing.assert_allclose(params, by_hand, rtol=1e-6)
    assert (abs(params[1] - 1) > 1e-5) == (name == "rmsprop2017")


def vgg16_step(rng, names):
    """A training, its state and a batch."""
    classifier, variables = classifier_of("vgg16", rng, 32)
    training = Training(classifier, optax.sgd(1e-3), TrainableBlocks(names))
    return training, training.start(variables, jax.random.key(0)), batch_of(rng, 32)


def flops_of(function, *arguments):
    """XLA's own count."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


WHOLE = ("block1", "block2", "block3", "block4", "block5", "head")


def test_a_step_of_the_last_block_costs_under_half_of_a_whole_one_also_where_its_metrics_are_read(rng):
    training, state, batch = vgg16_step(rng, ("block5", "head"))
    part = flops_of(functools.partial(train_step, training), state, batch)
    unread = flops_of(lambda state, batch: train_step(training, state, batch)[0], state, batch)
    assert part < 1.001 * unread
    training, state, batch = vgg16_step(rng, WHOLE)
    assert part < 0.5 * flops_of(functools.partial(train_step, training), state, batch)


def residuals(training, state, batch):
    """The shapes of what the forward pass keeps for the backward one."""
    trainable, frozen = training.blocks.split(state.params)

    def loss(trainable):
        variables = {"params": merge(trainable, frozen), "batch_stats": state.batch_stats}
        return training.classifier.apply(variables, network_input(batch.inputs))[0].sum()

    _, backward = jax.vjp(loss, trainable)
    return {leaf.shape for leaf in jax.tree.leaves(backward)}


def test_frozen_blocks_before_what_trains_keep_nothing_for_a_backward_pass(rng):
    """At 32 pixels block 1 works on [b 32 32 64] and block 5 on [b 2 2 512]."""
    kept = residuals(*vgg16_step(rng, ("block5", "head")))
    assert (4, 2, 2, 512) in kept
    assert not any(len(shape) == 4 and shape[0] == 4 and shape[1] > 2 for shape in kept)
    assert (4, 32, 32, 64) in residuals(*vgg16_step(rng, WHOLE))


def test_a_part_of_a_block_trains_and_its_rest_does_not(rng):
    classifier, variables = classifier_of("inception_v3", rng, 75)
    names = ("mixed10/branch1_conv1/bn", "mixed10/branch2_conv1", "head")
    state, _ = take_steps(classifier, variables, TrainableBlocks(names), batch_of(rng, 75), optax.sgd(1e-2), 1)
    _, moved = unequal_leaves(
        {kind: variables[kind]["mixed10"] for kind in variables},
        {kind: state.variables[kind]["mixed10"] for kind in variables},
    )
    assert moved == {
        "['params']['branch1_conv1']['bn']['bias']",
        "['params']['branch2_conv1']['conv']['kernel']",
        "['params']['branch2_conv1']['bn']['bias']",
        *(
            f"['batch_stats']['{unit}']['bn']['{name}']"
            for unit in ("branch1_conv1", "branch2_conv1")
            for name in ("mean", "var")
        ),
    }


def test_an_unknown_part_is_refused_with_the_valid_names():
    tree = {"mixed10": {"branch1_conv1": {"bn": jnp.ones(1)}}}
    with pytest.raises(UserError, match="unknown part 'branch7' of mixed10; choose from branch1_conv1"):
        TrainableBlocks(("mixed10/branch7",)).split(tree)


@pytest.mark.parametrize(
    ("network", "names", "trained"),
    [
        ("vgg16", ("paper",), 7_079_424),
        ("inception_v3", ("paper",), 11_114_880),
        ("inception_v3", ("inception_172",), 16_215_936),
        ("vgg16", ("nothing",), 0),
        ("vgg16", ("head_only",), 0),
        ("inception_v3", ("adabn_only",), 0),
        ("vgg16", ("all",), 14_714_688),
        ("inception_v3", ("all",), 21_802_784 - 2 * 17_216),
        ("vgg16", ("all_but_last",), 14_714_688 - 7_079_424),
        ("vgg16", ("block4", "block5", "head"), 7_079_424 + 5_899_776),
        ("vgg16", ("last0",), 0),
        ("vgg16", ("last2",), 7_079_424 + 5_899_776),
        ("inception_v3", ("last2",), 11_114_880),
        ("inception_v3", ("last12",), 21_802_784 - 2 * 17_216),
    ],
)
def test_presets_train_what_they_say(network, names, trained):
    backbone = BACKBONES[network]
    params = backbone.shapes(75, backbone.trunk)["params"]
    params["head"] = {"logits": jax.ShapeDtypeStruct((5,), jnp.float32)}
    blocks = blocks_of(backbone, names)
    trainable, _ = blocks.split(params)
    assert ("head" in trainable) == (names[0] not in ("nothing", "adabn_only"))
    assert blocks.frozen_bn == ("keras2017" if names == ("adabn_only",) else "inference")
    trainable.pop("head", None)
    assert sum(leaf.size for leaf in jax.tree.leaves(trainable)) == trained


def test_a_preset_of_another_network_is_refused():
    with pytest.raises(
        UserError, match=r"unknown block 'inception_172' of vgg16; choose from block1, .*, head, or one preset"
    ):
        blocks_of(BACKBONES["vgg16"], ("inception_172",))


def test_more_last_blocks_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"last6: vgg16 has 5 blocks \(block1, block2, block3, block4, block5\)"):
        blocks_of(BACKBONES["vgg16"], ("last6",))


def test_where_nothing_trains_statistics_alone_can_adapt(rng):
    classifier, variables = classifier_of("cnn", rng, 32)
    for mode, moves in (("inference", False), ("keras2017", True)):
        state, metrics = take_steps(classifier, variables, TrainableBlocks((), mode), batch_of(rng, 32), optax.sgd(1.0))
        assert np.isfinite(metrics.loss)
        _, moved = unequal_leaves(variables, state.variables)
        assert all("batch_stats" in path for path in moved)
        assert bool(moved) == moves


def test_stored_statistics_stay_where_trained_blocks_use_them_while_scale_and_bias_move(rng):
    classifier, variables = classifier_of("cnn", rng, 32)
    blocks = TrainableBlocks(("block4", "head"), trained_bn="inference")
    state, _ = take_steps(classifier, variables, blocks, batch_of(rng, 32), optax.sgd(1e-2), 1)
    _, moved = unequal_leaves(variables, state.variables)
    assert not [path for path in moved if "batch_stats" in path]
    assert {f"['params']['block4']['bn']['{name}']" for name in ("scale", "bias")} < moved


def test_stored_statistics_that_moved_would_be_noticed(rng, monkeypatch):
    monkeypatch.setattr(Training, "normalisation", lambda self, axis=None: Normalisation(self.blocks.names))
    with pytest.raises(AssertionError):
        test_stored_statistics_stay_where_trained_blocks_use_them_while_scale_and_bias_move(rng)


def test_label_smoothing_spreads_a_share_of_the_label(rng):
    classifier, variables = classifier_of("cnn", rng, 32)
    classifier = replace(classifier, backbone=replace(classifier.backbone, dropout=0.0))
    batch, blocks = batch_of(rng, 32), TrainableBlocks(("head",))
    _, plain = take_steps(classifier, variables, blocks, batch, optax.sgd(0.0), 1)
    _, smooth = take_steps(classifier, variables, blocks, batch, optax.sgd(0.0), 1, label_smoothing=0.3)
    logits, _ = classifier.apply(variables, network_input(batch.inputs))
    spread = -jax.nn.log_softmax(logits).mean(axis=1).sum()
    assert float(smooth.loss) == pytest.approx(0.7 * float(plain.loss) + 0.3 * float(spread), rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", 0.0, [1, 0.854, 0.5, 0.146, 0]),
        ("linear", 1.0, [0, 0.5, 1, 0.5, 0]),
    ],
)
def test_schedules_fall_to_zero_with_the_last_step_and_rise_before(schedule, warmup, expected):
    _, rate = Optimization("sgd", 1.0, schedule=schedule, warmup_epochs=warmup).over(2, 2)
    assert [float(rate(step)) for step in range(5)] == pytest.approx(expected, abs=1e-3)


def test_a_schedule_is_what_the_optimizer_follows():
    optimizer, rate = Optimization("sgd", 1.0, momentum=0.0, schedule="linear").over(1, 4)
    state = optimizer.init(jnp.zeros(1))
    for step in range(4):
        updates, state = optimizer.update(jnp.ones(1), state)
        assert -float(updates[0]) == pytest.approx(float(rate(step)))


@pytest.mark.parametrize(("optimizer", "moved"), [("sgd", -0.1 * 0.5 * 2), ("adamw", -0.1 * 0.5 * 2)])
def test_weight_decay_pulls_at_the_weights(optimizer, moved):
    """Of a weight of 2 with no gradient; Adam's own step is then 0."""
    transform, _ = Optimization(optimizer, 0.1, weight_decay=0.5).over(1, 1)
    weight = jnp.full(1, 2.0)
    updates, _ = transform.update(jnp.zeros(1), transform.init(weight), weight)
    assert float(updates[0]) == pytest.approx(moved)


def test_wrong_values_are_refused_where_they_are_given(rng):
    training, start = head_training(optax.sgd(1e-2))
    with pytest.raises(UserError, match="a batch of 0"):
        fit(training, start, *separable(rng), epochs=1, batch_size=0, seed=0)
    with pytest.raises(UserError, match="only gray patches, uint8"):
        fit(replace(training, augmentation=KERAS_2017), start, *separable(rng), epochs=1, batch_size=8, seed=0)


@pytest.mark.parametrize(
    ("network", "names", "frozen"),
    [("vgg16", ("paper",), False), ("inception_v3", ("paper",), True), ("inception_v3", ("all",), False)],
)
def test_whether_any_frozen_batch_normalisation_is_there(network, names, frozen):
    backbone = BACKBONES[network]
    assert blocks_of(backbone, names).frozen_normalises(backbone) == frozen


def test_wrong_names_in_python_are_refused_with_the_valid_ones():
    """In a process of its own: here the type checker would be first."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            """
import kimiajax as kj
from kimiajax.runtime.precision import compute_dtype
makers = (
    lambda: kj.TrainableBlocks("head"),
    lambda: kj.TrainableBlocks((), "typo"),
    lambda: kj.TrainableBlocks((), trained_bn="batch"),
    lambda: compute_dtype("half"),
)
for make in makers:
    try:
        make()
    except kj.UserError as error:
        print(error)
""",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == [
        "names of blocks are a sequence: write ('head',)",
        "frozen batch normalisation: no mode 'typo'; choose from inference, batch, keras2017",
        "trained batch normalisation: no mode 'batch' (predictions would need the statistics that training used, and "
        "none are stored); choose from inference, keras2017",
        "no precision 'half'; choose from float32, tf32, bfloat16",
    ], done.stderr
