"""Training patches that lie on the device against those that come batch by batch."""

import inspect
from unittest import mock

import jax
import numpy as np
import optax
import pytest

from kimiajax.errors import UserError
from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.training import input_feeds
from kimiajax.training.augment import KERAS_2017
from kimiajax.training.engines import JitEngine
from kimiajax.training.freezing import TrainableBlocks
from kimiajax.training.input_feeds import Resident, Stream, feed_of
from kimiajax.training.loop import fit
from kimiajax.training.steps import Plan, Training, order_of

COUNT, BATCH, SIZE, CLASSES = 21, 8, 32, 3  # steps of 8, 8 and 5


@pytest.fixture(scope="module")
def setting():
    """Arguments of `fit`: a training with momentum, dropout and augmentation, variables, patches, labels.

    One for all tests, so that its programs are traced once.
    """
    cnn, rng = BACKBONES["cnn"], np.random.default_rng(7)
    classifier = Classifier(cnn, ("block1", "block2", "pooled"), CLASSES)
    variables = cnn.init(rng, SIZE, classifier.blocks)
    variables["params"]["head"] = classifier.init_head(jax.random.key(0), (64,))
    blocks = TrainableBlocks(("block1", "block2", "head"))
    training = Training(classifier, optax.sgd(0.01, momentum=0.9), blocks, augmentation=KERAS_2017)
    images = rng.integers(0, 255, (COUNT, SIZE, SIZE), dtype=np.uint8)
    return training, variables, images, np.arange(COUNT, dtype=np.int32) % CLASSES


def end(setting, feed, **options):
    trained, history = fit(*setting, epochs=2, batch_size=BATCH, seed=3, feed=feed, **options)
    return jax.tree.leaves(trained), [epoch.loss for epoch in history]


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left[0], right[0], strict=True)) and left[1] == right[1]


def test_both_feeds_give_the_same_parameters_bit_for_bit(setting):
    assert same(end(setting, "resident"), end(setting, "stream"))


def test_an_epoch_as_one_loop_gives_them_too_to_rounding(setting, monkeypatch):
    expected = end(setting, "resident")
    monkeypatch.setattr(input_feeds, "loops", lambda engine: True)
    monkeypatch.setattr(input_feeds, "LOOP", 2)  # two calls an epoch, the second of one step
    leaves, losses = end(setting, "resident")
    for leaf, other in zip(leaves, expected[0], strict=True):
        np.testing.assert_allclose(leaf, other, atol=1e-6)
    assert losses == pytest.approx(expected[1], rel=1e-5)


FAULTS = {
    "the order of the first epoch in all": mock.patch.object(
        input_feeds, "order_of", lambda key, epoch, count: order_of(key, 1, count)
    ),
    "a batch twice": mock.patch.object(Stream, "_batch", lambda self, order, step: BATCH_OF(self, order, max(step, 1))),
    "labels of other patches": mock.patch.object(
        Stream, "_batch", lambda self, order, step: _with_labels_reversed(BATCH_OF(self, order, step))
    ),
}
BATCH_OF = Stream._batch


def _with_labels_reversed(batch):
    return batch._replace(labels=batch.labels[::-1].copy())


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_shows(setting, fault):
    expected = end(setting, "resident")
    with FAULTS[fault]:
        assert not same(end(setting, "stream"), expected)


@pytest.mark.parametrize("feed", [Resident, Stream])
def test_a_feed_can_begin_at_any_step_and_jump(setting, feed):
    """As after a stop: the metrics of a step are those of the same step in an epoch run whole."""
    training, variables, images, labels = setting
    training = Training(training.classifier, optax.sgd(0.0), training.blocks)  # nothing moves: steps do not depend
    plan, engine, key = Plan(COUNT, BATCH, BATCH), JitEngine(), jax.random.key(3)

    def losses(source, *calls):
        state, found = engine.place(training.start(variables, key)), []
        for call in calls:
            state, read = source.run(state, *call)
            found += read().loss.tolist()
        return found

    def new():
        return feed(engine, training, plan, images, labels, key)

    whole = {epoch: losses(new(), (epoch, 0, 3)) for epoch in (1, 2)}
    assert [len(found) for found in whole.values()] == [3, 3]
    assert whole[1] != whole[2]
    # dropout is of the state's step, which differs: compare in the same place
    first, again = losses(new(), (2, 1, 3)), losses(new(), (2, 1, 2), (2, 2, 3))
    assert first == again
    source = new()
    losses(source, (1, 0, 1))
    assert losses(source, (2, 1, 3)) == first, "what was read ahead of epoch 1 is not taken for epoch 2"


def test_the_choice_is_by_size_and_an_unknown_feed_is_refused(setting, monkeypatch):
    training, _, images, labels = setting
    given = JitEngine(), training, Plan(COUNT, BATCH, BATCH), images, labels, jax.random.key(0)
    assert isinstance(feed_of("auto", *given), Resident)
    monkeypatch.setattr(input_feeds, "_memory", lambda engine: images.nbytes)
    assert isinstance(feed_of("auto", *given), Stream)
    assert isinstance(feed_of("resident", *given), Resident)
    with pytest.raises(UserError, match="no feed 'ram'; choose from auto, resident, stream"):
        inspect.unwrap(feed_of)("ram", *given)  # past the checker of types
