"""Epochs: batches in, trained variables and a history out."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kimiajax.errors import UserError
from kimiajax.finetune.engines import Engine, JitEngine
from kimiajax.finetune.steps import Batch, StepMetrics, Training
from kimiajax.models.backbone import Classifier
from kimiajax.precision import Precision
from kimiajax.progress import Silent
from kimiajax.shapes import Int, Shaped


@dataclass(frozen=True)
class Epoch:
    """One epoch of a history.

    Attributes:
        epoch: from 1.
        loss: mean over the training patches, each as it was trained on; nats.
        accuracy: likewise, in [0, 1].
        learning_rate: of the epoch's last step; None where `Training` does not tell.
        images_per_second: patches trained on, over `seconds`.
        seconds: of the epoch, the first holding the compilation; of all heads together, where several are trained.
    """

    epoch: int
    loss: float
    accuracy: float
    learning_rate: float | None
    images_per_second: float
    seconds: float


AHEAD = 4  # steps that may wait for the device, each with its batch

Record = Callable[[Epoch], None]


class NonFiniteError(UserError):
    """A loss or a parameter that is not finite: training stopped, and what it had learnt says nothing.

    Attributes:
        variables: as they were after the last epoch whose loss and parameters are finite.
        history: the epochs up to then.
    """

    def __init__(self, message: str, variables: dict[str, Any], history: list[Epoch]):
        super().__init__(message)
        self.variables, self.history = variables, history


def fit(
    training: Training,
    variables: dict[str, Any],
    inputs: Shaped[np.ndarray, "n ..."],
    labels: Int[np.ndarray, " n"],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    engine: Engine | None = None,
    progress: Silent | None = None,
    description: str = "training",
    record: Record | None = None,
) -> tuple[dict[str, Any], list[Epoch]]:
    """Trains what `training` says of a classifier.

    Args:
        training: classifier, optimizer, blocks, and how a step computes.
        variables: parameters and running statistics of the classifier's blocks and its head.
        inputs: what its first block takes: gray patches as uint8 [n h w], or stored activations as float32. May be a
            memory-mapped file: one batch at a time is read.
        labels: the scan of each input.
        epochs: passes over the inputs, each in a new order; 0 leaves the variables as they are.
        batch_size: the last batch of an epoch is padded to it, and any batch to a multiple of the devices; the padding
            counts nowhere.
        seed: of the order, of augmentation and of dropout. On any number of devices the result is the same, but for
            rounding, and where mini-batch statistics are local to each.
        engine: by default jit over all devices of this process.
        progress: shows epochs.
        description: what to call it there.
        record: called with each epoch as it ends.

    Returns:
        The trained variables, and a record of each epoch.

    Raises:
        UserError: an unknown block, or labels that are not one class for each input.
        NonFiniteError: a loss or parameters that are not finite any more.
    """
    progress, engine = progress or Silent(), engine or JitEngine()
    check_labels(labels, len(inputs), training.classifier.num_classes)
    if batch_size < 1:
        raise UserError(f"a batch of {batch_size}: must hold 1 or more")
    state = engine.place(training.start(variables, jax.random.key(seed)))
    step, batch_size = engine.step(training), min(batch_size, len(labels))
    rows = engine.rows(batch_size, training.statistic_groups)
    history: list[Epoch] = []
    for epoch in progress.track(range(1, epochs + 1), description, epochs, "epochs"):
        good = _copy(state.variables)  # steps donate the state
        started = time.perf_counter()
        order = order_of(seed, epoch, len(labels))
        every: list[StepMetrics] = []
        for batch in batches(inputs, labels, order, batch_size, rows):
            state, metrics = step(state, batch)
            every.append(metrics)
            jax.block_until_ready(every[-AHEAD:][0])
        losses, correct, counts = (np.array(values) for values in zip(*jax.device_get(every)))
        seconds = time.perf_counter() - started
        problem = problem_of(losses, epoch, batch_size, order) or problem_of_state(
            bool(all_finite(state.variables)), epoch
        )
        if problem:
            raise NonFiniteError(f"{description}: {problem}", good, history)
        history.append(epoch_of(training, epoch, len(every), losses, correct, counts, seconds))
        if record:
            record(history[-1])
    return state.variables, history


def predict(
    classifier: Classifier,
    variables: dict[str, Any],
    inputs: Shaped[np.ndarray, "n ..."],
    *,
    batch_size: int,
    precision: Precision = "float32",
    engine: Engine | None = None,
    progress: Silent | None = None,
    description: str = "predicting",
) -> Int[np.ndarray, " n"]:
    """The scan predicted for each input, in inference mode; arguments as of `fit`."""
    progress, engine = progress or Silent(), engine or JitEngine()
    batch_size = min(batch_size, len(inputs))
    step, variables = engine.predict(classifier, precision), engine.place(variables)
    empty = np.zeros(len(inputs), np.int32)
    tracked = progress.track(
        batches(inputs, empty, np.arange(len(inputs)), batch_size, engine.rows(batch_size)),
        description,
        len(inputs),
        "patches",
        step=batch_size,
    )
    predicted = [step(variables, batch.inputs)[batch.mask] for batch in tracked]
    return np.concatenate(predicted).astype(np.int32)


def check_labels(labels: np.ndarray, count: int, num_classes: int) -> None:
    """Raises UserError for labels that are not one class for each input."""
    if len(labels) != count:
        raise UserError(f"{len(labels)} labels for {count} inputs")
    if count and not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(
            f"labels go from {labels.min()} to {labels.max()}; with {num_classes} classes, 0 to {num_classes - 1}"
        )


def order_of(seed: int, epoch: int, count: int) -> Int[np.ndarray, " n"]:
    """The order in which an epoch goes through its inputs."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def problem_of(losses: np.ndarray, epoch: int, batch_size: int, order: np.ndarray) -> str | None:
    """Where a loss is not finite: in which step, and on which patches."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if not len(bad):
        return None
    rows = order[bad[0] * batch_size : (bad[0] + 1) * batch_size]
    return (
        f"the loss is {losses[bad[0]]} in epoch {epoch}, step {bad[0] + 1} (training patches "
        f"{', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''}); no accuracy is reported; lower the "
        "learning rate, and check the weights"
    )


def problem_of_state(finite: bool, epoch: int) -> str | None:
    """Whether an epoch's last step broke the parameters, which no loss shows any more."""
    if finite:
        return None
    return (
        f"the parameters are not finite after the last step of epoch {epoch}; no accuracy is reported; lower the "
        "learning rate"
    )


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether every number in a tree is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def epoch_of(
    training: Training,
    epoch: int,
    steps: int,
    losses: np.ndarray,
    correct: np.ndarray,
    counts: np.ndarray,
    seconds: float,
    heads: int = 1,
) -> Epoch:
    """The record of an epoch of so many steps, from each step's sums."""
    rate = None if training.learning_rate is None else float(training.learning_rate(epoch * steps - 1))
    count = float(counts.sum(dtype=np.float64))
    mean_loss, accuracy = (float(sums.sum(dtype=np.float64)) / count for sums in (losses, correct))
    return Epoch(epoch, mean_loss, accuracy, rate, heads * count / seconds, seconds)


def steps_of(order: np.ndarray, batch_size: int, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each step `rows` entries of the order, and which of them are real: `batch_size`, the last time fewer."""
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield np.resize(chosen, rows), np.arange(rows) < len(chosen)


def batches(inputs: np.ndarray, labels: np.ndarray, order: np.ndarray, batch_size: int, rows: int) -> Iterator[Batch]:
    """The entries in this order, `batch_size` a batch, each filled up to `rows` by entries that are masked."""
    for filled, mask in steps_of(order, batch_size, rows):
        in_file_order, back = np.unique(filled, return_inverse=True)  # a mapped file is read front to back
        yield Batch(
            inputs[in_file_order][back],
            labels[filled],
            mask,
            np.arange(rows, dtype=np.int32),
        )
