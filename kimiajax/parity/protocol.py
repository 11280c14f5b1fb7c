"""The study's fine-tuning, here and in Keras, step by step: from one head, in one order of batches, to the same losses.

Both sides compute the frozen blocks' outputs once, and train the blocks after them and the head for three epochs,
without dropout and augmentation. The last batch of an epoch is a short one, which this project pads.
"""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kimiajax.data.sources.scan_file import Scans
from kimiajax.errors import UserError
from kimiajax.features.extract import extract_taps
from kimiajax.models.backbone import Array, Backbone, Variables, of_blocks
from kimiajax.models.checkpoint import Weights
from kimiajax.models.head import Classifier
from kimiajax.parity.certificate import DOUBLE, Comparison, Sides, Stage, finite
from kimiajax.parity.job import Job
from kimiajax.parity.ours import images_of, in_double
from kimiajax.parity.reference import Outputs
from kimiajax.training.engines import JitEngine
from kimiajax.training.freezing import TrainableBlocks, TrainedMode
from kimiajax.training.input_feeds import feed_of
from kimiajax.training.optimizer import Optimization
from kimiajax.training.steps import Plan, Training, order_of

PATCHES, EPOCHS, BATCH = 96, 3, 36
SYNTHETIC = {"num_scans": 24, "grid": (5, 5), "test_patches": (4, 4)}  # which together are as many patches
MODES: tuple[TrainedMode, ...] = ("inference", "keras2017")
SINGLE = 1e-3  # the most by which a loss may differ from the judge's in float32, relative to it; in float64 DOUBLE


def choose_patches(scans: Path) -> tuple[tuple[tuple[int, int, int], ...], tuple[int, ...]]:
    """Returns 96 test patches, scans taking turns, each as three channels; and their scans, counted from 0.

    Raises:
        UserError: a file with fewer, or of one scan.
    """
    with Scans(scans) as file:
        targets = file.targets.tolist()
    if len(targets) < PATCHES or len(set(targets)) < 2:
        raise UserError(
            f"{scans}: has {len(targets)} test patches of {len(set(targets))} scans, and --protocol needs {PATCHES} of "
            "two or more; give another file, or leave --scans out"
        )
    turn, seen = [], Counter()
    for target in targets:
        turn.append(seen[target])
        seen[target] += 1
    indices = sorted(range(len(targets)), key=lambda index: (turn[index], targets[index]))[:PATCHES]
    scans_of = {scan: number for number, scan in enumerate(sorted({targets[index] for index in indices}))}
    return tuple((index, index, index) for index in indices), tuple(scans_of[targets[index]] for index in indices)


def plan(count: int, backbone: Backbone, seed: int) -> dict[str, Any]:
    """Returns the fields of a job that are a protocol's: batches in the order in which this project takes them, and
    the modes of trained batch normalisation, which a network without it has one of.
    """
    steps = Plan(count, BATCH, BATCH)
    orders = [np.asarray(order_of(jax.random.key(seed), epoch, count)) for epoch in range(1, EPOCHS + 1)]
    batches = tuple(
        tuple(tuple(order[places[mask]].tolist()) for places, mask in zip(steps.places, steps.mask)) for order in orders
    )
    return {"batches": batches, "modes": MODES if backbone.statistics else MODES[:1]}


def run_single(job: Job, weights: Weights, head: Variables) -> Outputs:
    """Returns `MODE/loss` [steps] and `MODE/evaluation` [epochs] in single precision, through the study's functions.

    The evaluation is the mean loss over all patches after an epoch, by stored statistics.
    """
    gray = images_of(job, weights)["resized"][:, 0]
    with jax.default_matmul_precision("float32"):
        stored = extract_taps(weights.backbone, weights.variables, gray, (job.boundary,)).arrays[job.boundary]
        return _train_all(job, weights, head, stored, JitEngine())


def run_double(job: Job, weights: Weights, head: Variables, images: np.ndarray) -> Outputs:
    """Returns the same in double precision, on the CPU.

    Args:
        images: the judge's own input, float64 [n s s 3].
    """
    backbone = weights.backbone
    blocks = backbone.up_to(job.boundary)
    with in_double(weights.variables, head) as (cpu, variables, head):
        before = jax.jit(lambda variables, x: backbone.apply(variables, x, blocks)[0])
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        stored = np.concatenate([np.asarray(before(of_blocks(variables, blocks), part)) for part in parts])
        return _train_all(job, dataclasses.replace(weights, variables=variables), head, stored, JitEngine((cpu,)))


def _train_all(job: Job, weights: Weights, head: Variables, stored: np.ndarray, engine: JitEngine) -> Outputs:
    outputs = {}
    for mode in filter(job.modes.__contains__, MODES):
        of_steps, of_epochs = _train(job, weights, head, stored, engine, mode)
        outputs |= {f"{mode}/loss": np.concatenate(of_steps), f"{mode}/evaluation": np.array(of_epochs)}
    return outputs


def _train(
    job: Job, weights: Weights, head: Variables, stored: np.ndarray, engine: JitEngine, mode: TrainedMode
) -> tuple[list[np.ndarray], list[float]]:
    """Returns the losses of each epoch's steps, and after each epoch the mean loss over all patches."""
    backbone = dataclasses.replace(weights.backbone, dropout=0.0)  # two frameworks cannot draw the same units
    classifier = Classifier(backbone, backbone.span(job.boundary, backbone.bottleneck)[1:], job.num_scans)
    blocks = TrainableBlocks((*backbone.fine_tuned, "head"), trained_bn=mode)
    optimizer, _ = Optimization("sgd", job.learning_rate, job.momentum).over(EPOCHS, len(job.batches[0]))
    training = Training(classifier, optimizer, blocks, batch_norm_momentum=job.batch_norm_momentum)
    variables = of_blocks(weights.variables, classifier.blocks)
    variables["params"]["head"] = head
    labels, key = np.array(job.labels, np.int32), jax.random.key(job.seed)
    steps = Plan(len(labels), BATCH, engine.rows(BATCH))
    feed = feed_of("resident", engine, training, steps, stored, labels, key)

    @jax.jit
    def evaluation(variables: Variables, stored: Array) -> jax.Array:
        logits, _ = classifier.apply(variables, stored)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(labels)[:, None], axis=1)
        return -chosen.mean()

    state, of_steps, of_epochs = engine.place(training.start(variables, key)), [], []
    for epoch in range(1, EPOCHS + 1):
        state, read = feed.run(state, epoch, 0, steps.steps)
        metrics = read()
        of_steps.append(metrics.loss / metrics.count)
        of_epochs.append(float(evaluation(state.variables, stored)))
    return of_steps, of_epochs


def losses(job: Job, sides: Sides) -> dict[str, dict[str, list[float | None]]]:
    """Returns every loss by mode and side, for the record; of a job without batches, none."""
    every = {"float32": sides.ours, "float64": sides.ours_double}
    every |= {"reference float32": sides.reference, "reference float64": sides.judge}
    return {
        name: {side: [finite(loss) for loss in found[name].tolist()] for side, found in every.items()}
        for name in _names(job)
    }


def _names(job: Job) -> list[str]:
    return [f"{mode}/{what}" for mode in job.modes for what in ("loss", "evaluation")]


def compare(job: Job, sides: Sides) -> list[Stage]:
    """Returns a stage for the steps and one for the epochs of each mode: the largest difference, and what is beyond."""
    return [Stage(name, sides.judge[name].shape, {name: _compare(name, sides)}) for name in _names(job)]


def _compare(name: str, sides: Sides) -> Comparison:
    every = (sides.ours, sides.ours_double, sides.reference, sides.judge)
    ours, double, reference, judge = (side[name].astype(np.float64) for side in every)
    if not (np.isfinite(judge).all() and np.isfinite(reference).all() and judge.all()):
        return Comparison(fault="the reference itself is not finite, or 0")
    single, own, exact = (np.abs(side / judge - 1) for side in (ours, reference, double))
    what = "step" if name.endswith("/loss") else "epoch"
    return Comparison(
        max_abs=finite(np.abs(ours - judge).max()),
        relative_l2=finite(single.max()),
        reference_relative_l2=finite(own.max()),
        bound=SINGLE,
        double_relative_l2=finite(exact.max()),
        fault=_beyond(single, SINGLE, what, "float32") or _beyond(exact, DOUBLE, what, "float64"),
    )


def _beyond(relative: np.ndarray, bound: float, what: str, precision: str) -> str | None:
    """The first step or epoch that is beyond its bound; NaN is beyond any."""
    beyond = np.flatnonzero(~(relative <= bound))
    if not len(beyond):
        return None
    return f"{what} {beyond[0] + 1} differs by {relative[beyond[0]]:.1e} in {precision}, over {bound:.0e}"
