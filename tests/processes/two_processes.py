"""One of several processes that train, predict and extract features together; the first writes what came out.

`test_distributed.py` runs this file in processes of their own: devices and processes are counted before jax starts.
"""

import contextlib
import dataclasses
import os
import sys
from pathlib import Path
from unittest import mock

PROCESSES, NUMBER, PORT, OUT = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])

if __name__ == "__main__":
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(8 // PROCESSES), "NPROC": "16"}
    os.environ["JAX_ENABLE_X64"] = "1"

import jax
import numpy as np
from eight_devices import BATCH, PART, setting

from kimiajax.errors import UserError
from kimiajax.features.extract import extract_taps
from kimiajax.models.registry import BACKBONES
from kimiajax.runtime import distributed
from kimiajax.runtime.signals import Interrupted, Interruption
from kimiajax.training import input_feeds, steps
from kimiajax.training.augment import KERAS_2017
from kimiajax.training.checkpoints import Checkpoints
from kimiajax.training.engines import JitEngine
from kimiajax.training.loop import fit, predict
from kimiajax.training.optimizer import Optimization
from kimiajax.training.steps import Plan, Training


def trained(feed="resident", epochs=2, rate=0.01, batch_size=BATCH, **options):
    """All variables at the end, in one vector, and the losses of the epochs."""
    classifier, variables, images, labels = setting(np.float64)
    optimizer = Optimization("sgd", rate).over(epochs, 2).optimizer
    blocks = dataclasses.replace(PART, frozen_bn="batch")
    training = Training(classifier, optimizer, blocks, augmentation=KERAS_2017)
    given = training, variables, images, labels
    end, history = fit(*given, epochs=epochs, batch_size=batch_size, seed=3, feed=feed, **options)
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(end)]
    return np.concatenate([*leaves, [epoch.loss for epoch in history]])


def predicted():
    classifier, variables, images, _ = setting(np.float64)
    return predict(classifier, variables, images, batch_size=BATCH)


def features(cache=None):
    _, variables, images, _ = setting(np.float64)
    backbone = BACKBONES["cnn"]
    variables = {kind: {b: leaves for b, leaves in part.items() if b != "head"} for kind, part in variables.items()}
    return extract_taps(backbone, variables, images, ("block2",), batch_size=4, cache=cache).arrays["block2"]


class AfterThree(Interruption):
    """As if every process had received SIGTERM in time for its third look."""

    def poll(self):
        self._polls += 1
        if self._polls == 3:
            self._asked = 15
        return self.asked


def stopped(folder):
    with contextlib.suppress(Interrupted):
        trained(checkpoints=Checkpoints(folder, {}, interruption=AfterThree()))


def diverged(folder):
    """What is said of a training whose second of five steps is not finite, where the first process looks after each.

    A process that ended there would leave the other waiting: the next thing both do would fail.
    """
    checkpoints = Checkpoints(folder, {}, every=0 if distributed.is_first() else 999)
    said = raised(lambda: trained(rate=1e300, batch_size=7, checkpoints=checkpoints))
    distributed.check_same("ends", said)
    return said


def feeds_chosen():
    """Which feed each process takes where the inputs fit into the memory of the first alone."""
    *_, images, labels = setting(np.float64)
    memory = mock.patch.object(input_feeds, "_memory", return_value=1e12 if distributed.is_first() else 0)
    names = [mock.patch.object(input_feeds, name, lambda *given, name=name: name) for name in ("Resident", "Stream")]
    with memory, names[0], names[1]:
        plan = Plan(len(labels), BATCH, BATCH)
        chosen = input_feeds.feed_of("auto", JitEngine(), None, plan, images, labels, jax.random.key(0))
    return ["Resident" if resident else "Stream" for resident in distributed.gathered(chosen == "Resident")]


FAULTS = {
    "each process streams the same part": mock.patch.object(
        JitEngine, "own", lambda self, rows: slice(0, rows // PROCESSES)
    ),
    "each process in an order of its own": mock.patch.object(
        input_feeds, "order_of", lambda key, *which: steps.order_of(jax.random.key(distributed.number()), *which)
    ),
}


def raised(work):
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def main():
    if PROCESSES > 1:
        distributed.start(f"127.0.0.1:{PORT}", PROCESSES, NUMBER, 30)
    found = {"devices": len(jax.devices()), "processes": distributed.count()}
    found |= {"resident": trained(), "stream": trained("stream"), "predicted": predicted(), "features": features()}
    found["features kept"] = features(OUT.parent / "cache")
    found["features found"] = features(OUT.parent / "cache")
    stopped(OUT.parent / f"stopped-{PROCESSES}")
    found["resumed"] = trained(checkpoints=Checkpoints(OUT.parent / "elsewhere", {}))
    if PROCESSES > 1:
        for name, fault in FAULTS.items():
            with fault:
                found[f"fault: {name}"] = trained("stream")
        with mock.patch.object(distributed, "number", return_value=0):
            found["fault: each process takes the first batches"] = features()
        found["diverged"] = diverged(OUT.parent / "diverged")
        found["feeds chosen"] = feeds_chosen()
        with mock.patch.object(distributed, "of_first", lambda work: work()):
            found["fault: each process chooses its feed"] = feeds_chosen()
        found["other data"] = raised(lambda: distributed.check_same("data", distributed.number()))
        found["same data"] = raised(lambda: distributed.check_same("data", 7))

        def fails():
            raise UserError("only here")

        found["an error of the first"] = raised(lambda: distributed.of_first(fails))
        if distributed.number():  # which the first must learn of
            assert found["an error of the first"] == "only here"
    if distributed.is_first():
        np.savez(OUT, **found)
    distributed.finish(0, together=True)


if __name__ == "__main__":
    main()
