"""Heads on bottleneck features, those of several seeds at once, an epoch being one scan of `train_step`.

On an accelerator `vmap` runs them together. A CPU runs them one after the other: its products of a batch of matrices,
even of a batch of one, are three times as slow.
"""

import contextlib
import functools
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from kimiajax.checks import MOST_SEED, kind_of, on_host, whole
from kimiajax.errors import UserError
from kimiajax.io.pytrees import digest, digest_of_leaf
from kimiajax.models.inputs import inputs_of
from kimiajax.runtime.progress import Silent
from kimiajax.runtime.shell import DOUBLES, standard_settings
from kimiajax.shapes import Float, Int
from kimiajax.training import loop
from kimiajax.training.checkpoints import Checkpoints
from kimiajax.training.state import TrainState
from kimiajax.training.steps import Batch, Plan, StepMetrics, Training, order_of, train_step

AT_ONCE = 2 * 2**30  # bytes of features on the device; heads beyond that wait for their turn

Result = tuple[dict[str, Any], list[loop.Epoch]] | loop.NonFiniteError


@standard_settings(DOUBLES)
def fit_heads(
    training: Training | Any,
    starts: Sequence[dict[str, Any]] | Any,
    inputs: Sequence[Float[np.ndarray, "n ..."]] | Any,
    labels: Sequence[Int[np.ndarray, " n"]] | Any,
    *,
    epochs: int | Any,
    batch_size: int | Any,
    seeds: Sequence[int] | Any,
    checkpoints: Checkpoints | None = None,
    progress: Silent | None = None,
    description: str = "heads",
    records: Sequence[loop.Record] | None = None,
) -> list[Result]:
    """What `fit` gives for each seed, all at once on one device, features and all.

    Args:
        training: of a classifier without blocks.
        starts: for each seed the variables of its head, `{"params": {"head": ...}}`.
        inputs: for each seed its features, all of one shape.
        labels: for each seed the scans of its features.
        epochs, batch_size, checkpoints, progress, description: as of `fit`.
        seeds: of the order and of dropout.
        records: for each seed what is called with its epochs.

    Returns:
        For each seed the trained variables and the history, or the error that stopped it; the others go on.

    Raises:
        UserError: an unknown block, features of different shapes, or that are no floats, labels that are not one
            class for each, or a number out of its range.
        Interrupted: as `checkpoints` was asked to; the states are saved.
    """
    counts = len(starts), len(inputs), len(labels)
    if set(counts) != {len(seeds)}:
        raise UserError("{} starts, {} features, {} labels for {} seeds".format(*counts, len(seeds)))
    kind_of("training", training, Training, "make one as kimiajax.Training(classifier, optimizer, blocks)")
    if not counts[0]:
        raise UserError("seeds: there are none; give one at least")
    for seed in seeds:
        whole("seed", seed, most=MOST_SEED)
    for name, value, least in (("epochs", epochs, 0), ("a batch of", batch_size, 1), *(("seed", s, 0) for s in seeds)):
        whole(name, value, least)
    inputs = [on_host(inputs_of("features", each, False, finite=False)) for each in inputs]
    shapes = {each.shape for each in inputs}
    if len(shapes) != 1:
        raise UserError(f"features of {len(shapes)} shapes: heads train at once on features of one")
    labels = [loop.check_labels(each, len(inputs[0]), training.classifier.num_classes) for each in labels]
    progress, results, records = progress or Silent(), [], records or [lambda epoch: None] * len(seeds)
    together = max(1, AT_ONCE // max(1, inputs[0].nbytes))
    for first in range(0, len(seeds), together):
        part = slice(first, first + together)
        given = starts[part], inputs[part], labels[part], seeds[part], records[part]
        kept = checkpoints.part(f"seed-{seeds[first]}") if checkpoints else None
        with kept.training() if kept else contextlib.nullcontext():
            results += _fit_together(training, *given, epochs, batch_size, kept, progress, description)
    return results


def _fit_together(
    training: Training,
    starts: Sequence[dict[str, Any]],
    inputs: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    seeds: Sequence[int],
    records: Sequence[loop.Record],
    epochs: int,
    batch_size: int,
    checkpoints: Checkpoints | None,
    progress: Silent,
    description: str,
) -> list[Result]:
    count = len(labels[0])
    plan = Plan(count, min(batch_size, count), min(batch_size, count))
    states = _stacked([training.start(start, jax.random.key(seed)) for start, seed in zip(starts, seeds)])
    features, scans = tuple(map(jnp.asarray, inputs)), tuple(map(jnp.asarray, labels))
    apart = _run_apart(len(seeds))
    if not apart:
        features, scans = jnp.stack(features), jnp.stack(scans)
    histories: list[list[loop.Epoch]] = [[] for _ in seeds]
    stopped: dict[int, loop.NonFiniteError] = {}
    which = description if len(seeds) == 1 else f"{description}, seeds {', '.join(map(str, seeds))}"
    if checkpoints:
        facts = {"epochs": epochs, "batch_size": batch_size, "seeds": list(seeds), **training.facts()}
        facts |= {"inputs": list(inputs[0].shape), "variables": [digest(start) for start in starts]}
        facts["labels"] = [digest_of_leaf("labels", each) for each in labels]
        found = checkpoints.restore(states, facts)
        if found:
            states, about = found
            histories = [[loop.Epoch(**epoch) for epoch in epochs_of] for epochs_of in about["histories"]]
            checkpoints.say(f"{which}: resumed after {len(histories[0])} epochs")
    for history, record in zip(histories, records):
        for epoch in history:
            record(epoch)
    done = len(histories[0])
    for epoch in progress.track(range(done + 1, epochs + 1), which, epochs, "epochs", done=done):
        before, started = states, time.perf_counter()
        states, metrics = _epoch(training, plan, apart, states, features, scans, np.int32(epoch))
        losses, correct, counts = jax.device_get(metrics)
        finite = np.asarray(jax.vmap(loop.all_finite)(states.variables))
        seconds = time.perf_counter() - started
        for k in range(len(seeds)):
            if k in stopped:
                continue
            problem = loop.problem_of(losses[k], epoch, plan, states.key[k])
            problem = problem or (None if finite[k] else loop.problem_of_state(epoch))
            if problem:
                stopped[k] = loop.NonFiniteError(
                    f"{description}, seed {seeds[k]}: {problem}", _one(before, k).variables, histories[k]
                )
                continue
            sums = losses[k], correct[k], counts[k]
            histories[k].append(loop.epoch_of(training, epoch, plan.steps, *sums, seconds, heads=len(seeds)))
            records[k](histories[k][-1])
        if len(stopped) == len(seeds):
            break
        # A head that stopped is not in the states any more, so from then on an earlier checkpoint tells more.
        due = checkpoints and checkpoints.due()
        if checkpoints and not stopped and (due or epoch == epochs):
            about = {"histories": [[asdict(epoch) for epoch in history] for history in histories]}
            checkpoints.save(epoch * plan.steps, states, about)
        if checkpoints and due:
            checkpoints.stop_if_asked()
    return [stopped[k] if k in stopped else (_one(states, k).variables, histories[k]) for k in range(len(seeds))]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _epoch(
    training: Training,
    plan: Plan,
    apart: bool,
    states: TrainState,
    features: Float[jax.Array, "k n ..."] | tuple[Float[jax.Array, "n ..."], ...],
    scans: Int[jax.Array, "k n"] | tuple[Int[jax.Array, " n"], ...],
    epoch: Int[jax.Array, ""],
) -> tuple[TrainState, StepMetrics]:
    """An epoch of every head, together or apart: the states after it, and each step's sums, [k s]."""
    index = jnp.arange(plan.rows, dtype=jnp.int32)

    def one(state: TrainState, features: jax.Array, scans: jax.Array) -> tuple:
        order = order_of(state.key, epoch, plan.count)

        def step(state: TrainState, batch: tuple[jax.Array, jax.Array]) -> tuple[TrainState, StepMetrics]:
            rows, mask = batch
            return train_step(training, state, Batch(features[rows], scans[rows], mask, index))

        return jax.lax.scan(step, state, (order[plan.places], jnp.asarray(plan.mask)))

    if not apart:
        return jax.vmap(one)(states, cast(jax.Array, features), cast(jax.Array, scans))
    return _stacked([one(_one(states, k), *given) for k, given in enumerate(zip(features, scans))])


def _run_apart(count: int) -> bool:
    return count == 1 or jax.default_backend() == "cpu"


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _one(states: TrainState, k: int) -> TrainState:
    return jax.tree.map(lambda leaf: leaf[k], states)
