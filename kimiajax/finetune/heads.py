"""Heads on bottleneck features, those of several seeds at once: vmap over an epoch that is one scan of `train_step`."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kimiajax.errors import UserError
from kimiajax.finetune.loop import (
    Epoch,
    NonFiniteError,
    Record,
    all_finite,
    check_labels,
    epoch_of,
    order_of,
    problem_of,
    problem_of_state,
    steps_of,
)
from kimiajax.finetune.state import TrainState
from kimiajax.finetune.steps import Batch, StepMetrics, Training, train_step
from kimiajax.progress import Silent
from kimiajax.shapes import Float, Int

AT_ONCE = 2 * 2**30  # bytes of features on the device; heads beyond that wait for their turn

Result = tuple[dict[str, Any], list[Epoch]] | NonFiniteError


def fit_heads(
    training: Training,
    starts: Sequence[dict[str, Any]],
    inputs: Sequence[Float[np.ndarray, "n ..."]],
    labels: Sequence[Int[np.ndarray, " n"]],
    *,
    epochs: int,
    batch_size: int,
    seeds: Sequence[int],
    progress: Silent | None = None,
    description: str = "heads",
    records: Sequence[Record] | None = None,
) -> list[Result]:
    """What `fit` gives for each seed, all at once on one device, features and all.

    Args:
        training: of a classifier without blocks.
        starts: for each seed the variables of its head, `{"params": {"head": ...}}`.
        inputs: for each seed its features, all of one shape.
        labels: for each seed the scans of its features.
        epochs, batch_size, progress, description: as of `fit`.
        seeds: of the order and of dropout.
        records: for each seed what is called with its epochs.

    Returns:
        For each seed the trained variables and the history, or the error that stopped it; the others go on.

    Raises:
        UserError: an unknown block, features of different shapes, or labels that are not one class for each.
    """
    counts = len(starts), len(inputs), len(labels)
    if set(counts) != {len(seeds)}:
        raise UserError("{} starts, {} features, {} labels for {} seeds".format(*counts, len(seeds)))
    shapes = {each.shape for each in inputs}
    if len(shapes) != 1:
        raise UserError(f"features of {len(shapes)} shapes: heads train at once on features of one")
    for each in labels:
        check_labels(each, len(inputs[0]), training.classifier.num_classes)
    progress, results, records = progress or Silent(), [], records or [lambda epoch: None] * len(seeds)
    together = max(1, AT_ONCE // max(1, inputs[0].nbytes))
    for first in range(0, len(seeds), together):
        part = slice(first, first + together)
        given = starts[part], inputs[part], labels[part], seeds[part], records[part]
        results += _fit_together(training, *given, epochs, batch_size, progress, description)
    return results


def _fit_together(
    training: Training,
    starts: Sequence[dict[str, Any]],
    inputs: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    seeds: Sequence[int],
    records: Sequence[Record],
    epochs: int,
    batch_size: int,
    progress: Silent,
    description: str,
) -> list[Result]:
    count = len(labels[0])
    batch_size = min(batch_size, count)
    states = _stacked([training.start(start, jax.random.key(seed)) for start, seed in zip(starts, seeds)])
    features = jnp.asarray(inputs[0][None] if len(inputs) == 1 else np.stack(inputs))
    scans = jnp.asarray(np.stack(labels))
    histories: list[list[Epoch]] = [[] for _ in seeds]
    stopped: dict[int, NonFiniteError] = {}
    which = description if len(seeds) == 1 else f"{description}, seeds {', '.join(map(str, seeds))}"
    for epoch in progress.track(range(1, epochs + 1), which, epochs, "epochs"):
        if len(stopped) == len(seeds):
            break
        before, started = states, time.perf_counter()
        orders = [order_of(seed, epoch, count) for seed in seeds]
        rows = np.stack([_rows(order, batch_size) for order in orders])
        states, metrics = _epoch(training, states, features, scans, rows, np.int32(count))
        losses, correct, counts = jax.device_get(metrics)
        finite = np.asarray(jax.vmap(all_finite)(states.variables))
        seconds = time.perf_counter() - started
        for k in range(len(seeds)):
            if k in stopped:
                continue
            problem = problem_of(losses[k], epoch, batch_size, orders[k]) or problem_of_state(bool(finite[k]), epoch)
            if problem:
                stopped[k] = NonFiniteError(
                    f"{description}, seed {seeds[k]}: {problem}", _one(before, k).variables, histories[k]
                )
                continue
            sums = losses[k], correct[k], counts[k]
            histories[k].append(epoch_of(training, epoch, len(losses[k]), *sums, seconds, heads=len(seeds)))
            records[k](histories[k][-1])
    return [stopped[k] if k in stopped else (_one(states, k).variables, histories[k]) for k in range(len(seeds))]


@functools.partial(jax.jit, static_argnums=0)
def _epoch(
    training: Training,
    states: TrainState,
    features: Float[jax.Array, "k n ..."],
    scans: Int[jax.Array, "k n"],
    rows: Int[jax.Array, "k s b"],
    count: Int[jax.Array, ""],
) -> tuple[TrainState, StepMetrics]:
    """An epoch of every head: the states after it, and each step's sums, [k s]."""
    steps, batch_size = rows.shape[1:]
    index = jnp.arange(batch_size, dtype=jnp.int32)
    masks = jnp.arange(steps)[:, None] * batch_size + index < count

    def one(state: TrainState, features: jax.Array, scans: jax.Array, rows: jax.Array) -> tuple:
        def step(state: TrainState, batch: tuple[jax.Array, jax.Array]) -> tuple[TrainState, StepMetrics]:
            rows, mask = batch
            return train_step(training, state, Batch(features[rows], scans[rows], mask, index))

        return jax.lax.scan(step, state, (rows, masks))

    return jax.vmap(one)(states, features, scans, rows)


def _rows(order: np.ndarray, batch_size: int) -> Int[np.ndarray, "s b"]:
    """The rows of each step, the last filled up, as `batches` does it."""
    return np.stack([filled for filled, _ in steps_of(order, batch_size, batch_size)]).astype(np.int32)


def _stacked(states: Sequence[TrainState]) -> TrainState:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _one(states: TrainState, k: int) -> TrainState:
    return jax.tree.map(lambda leaf: leaf[k], states)
