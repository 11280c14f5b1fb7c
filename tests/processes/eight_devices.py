"""How far each engine on eight devices ends from one device, with and without planted faults, printed as JSON.

`test_engines.py` runs this file in a process of its own, since devices are counted before jax starts.
"""

import dataclasses
import json
import os
from unittest import mock

if __name__ == "__main__":
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "NPROC": "16", "JAX_ENABLE_X64": "1"}

import jax
import numpy as np
import optax

from kimiajax.models import batch_norm
from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.training import engines, input_feeds, steps
from kimiajax.training.augment import KERAS_2017
from kimiajax.training.engines import ENGINES, JitEngine, PmapEngine
from kimiajax.training.freezing import TrainableBlocks
from kimiajax.training.loop import fit, predict
from kimiajax.training.steps import Training

CNN = BACKBONES["cnn"]
COUNT, BATCH, SIZE = 33, 20, 32  # batches of 20 and 13 on eight devices: 24 rows, of which 4 and 11 are padding


def setting(dtype):
    rng = np.random.default_rng(0)
    classifier = Classifier(CNN, ("block1", "block2", "pooled"), 3)
    variables = CNN.init(rng, SIZE, classifier.blocks)
    variables["params"]["head"] = classifier.init_head(jax.random.key(0), (64,))
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), variables)
    waves = np.sin(np.outer(np.arange(COUNT), np.linspace(0, 6, SIZE)))  # each image its own texture
    images = (127 + 60 * waves[:, :, None] + rng.uniform(-60, 60, (COUNT, SIZE, SIZE))).astype(np.uint8)
    return classifier, variables, images, np.arange(COUNT, dtype=np.int32) % 3


def end(engine, dtype=np.float64, feed="resident", looped=False, **options):
    """All variables after an epoch of two steps, in one vector, and the loss."""
    engines._compiled.cache_clear()  # of a program with a fault
    classifier, variables, images, labels = setting(dtype)
    options = {"blocks": TrainableBlocks(("block1", "block2", "head")), "augmentation": KERAS_2017} | options
    training = Training(classifier, optax.sgd(0.01, momentum=0.9), **options)
    how = {"epochs": 1, "batch_size": BATCH, "seed": 3, "engine": engine, "feed": feed}
    with mock.patch.object(input_feeds, "loops", return_value=looped):
        trained, history = fit(training, variables, images, labels, **how)
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(trained)]
    return np.concatenate(leaves), history[0].loss


def apart(left, right):
    """The largest difference of any variable, and of the loss."""
    return max(float(np.abs(left[0] - right[0]).max()), abs(left[1] - right[1]))


PART = TrainableBlocks(("block2", "head"))
CASES = {
    "all blocks": {},
    "stored statistics": {"blocks": TrainableBlocks(("block1", "block2", "head"), trained_bn="inference")},
    "batch": {"blocks": dataclasses.replace(PART, frozen_bn="batch"), "augmentation": None},
    "keras2017": {"blocks": dataclasses.replace(PART, frozen_bn="keras2017")},
    "local statistics": {"statistic_groups": 8, "augmentation": None},
    "streamed": {"feed": "stream"},
    "looped": {"looped": True},
}


def wrong_divisor(axis, tree):
    """The mean of the devices' own means, as if each had as many real entries as the others."""
    is_count = isinstance(tree, jax.Array)
    return 8 * jax.numpy.maximum(tree, 1) if is_count else jax.lax.psum(tree, axis)


def first_part_for_all(self, batch):
    return jax.tree.map(lambda array: jax.numpy.broadcast_to(array[:3], (8, 3, *array.shape[1:])), batch)


def mode_ignored(self, axis=None):
    """The default mode of what trains, where a batch is spread over a mapped axis."""
    return REAL_NORMALISATION(dataclasses.replace(self, blocks=TrainableBlocks(self.blocks.names)), axis)


REAL_STATISTICS, REAL_KEYS, REAL_NORMALISATION = batch_norm._statistics, steps._keys, Training.normalisation
MODE_IGNORED = mock.patch.object(Training, "normalisation", mode_ignored)
FAULTS = {
    "mode of what trains ignored": MODE_IGNORED,
    "identical shards": mock.patch.object(PmapEngine, "arranged", first_part_for_all),
    "wrong divisor": mock.patch.object(steps, "_over", wrong_divisor),
    "no sum": mock.patch.object(steps, "_over", lambda axis, tree: tree),
    "padding counted in statistics": mock.patch.object(
        batch_norm, "_statistics", lambda y, mask, axis: REAL_STATISTICS(y, None, axis)
    ),
    "statistics of each device": mock.patch.object(
        batch_norm, "_statistics", lambda y, mask, axis: REAL_STATISTICS(y, mask, None)
    ),
    "draws by place on the device": mock.patch.object(steps, "_keys", lambda state, index: REAL_KEYS(state, index % 3)),
}


def main():
    (one, *_) = jax.devices()
    single, found, alone = JitEngine((one,)), {"devices": len(jax.devices())}, {}
    for name, options in CASES.items():
        for dtype in (np.float32, np.float64) if name == "keras2017" else (np.float64,):
            expected = alone[name] = end(single, dtype, **options)
            for engine in ENGINES:
                found[f"{name}, {engine}, {dtype.__name__}"] = apart(end(ENGINES[engine](), dtype, **options), expected)
    for name, fault in FAULTS.items():
        case = "stored statistics" if fault is MODE_IGNORED else "all blocks"
        with fault:
            found[f"fault: {name}"] = apart(end(PmapEngine(), **CASES[case]), alone[case])
    classifier, variables, images, _ = setting(np.float64)
    expected = predict(classifier, variables, images, batch_size=BATCH, engine=single)
    for engine in ENGINES:
        predicted = predict(classifier, variables, images, batch_size=BATCH, engine=ENGINES[engine]())
        found[f"predictions, {engine}"] = float(np.abs(predicted - expected).max())
    found["classes predicted"] = len(set(expected.tolist()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
