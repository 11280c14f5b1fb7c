"""Epochs: batches in, trained variables and a history out."""

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kimiajax.errors import UserError
from kimiajax.finetune.blocks import TrainableBlocks
from kimiajax.finetune.optimizer import for_blocks
from kimiajax.finetune.state import new_state
from kimiajax.finetune.steps import Batch, StepMetrics, predict_step, train_step
from kimiajax.models.backbone import Classifier
from kimiajax.progress import Silent
from kimiajax.shapes import Int, Shaped


@dataclass(frozen=True)
class Epoch:
    """Mean loss (nats) and accuracy in [0, 1] over an epoch's training patches as they were trained on, and seconds."""

    epoch: int
    loss: float
    accuracy: float
    seconds: float


def fit(
    classifier: Classifier,
    variables: dict[str, Any],
    inputs: Shaped[np.ndarray, "n ..."],
    labels: Int[np.ndarray, " n"],
    *,
    optimizer: optax.GradientTransformation,
    blocks: TrainableBlocks,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: Silent | None = None,
    description: str = "training",
) -> tuple[dict[str, Any], list[Epoch]]:
    """Trains some blocks of a classifier.

    Args:
        classifier: blocks of a backbone and a head.
        variables: parameters and running statistics of its blocks and its head.
        inputs: what its first block takes: gray patches as uint8 [n h w], or stored activations as float32. May be a
            memory-mapped file: one batch at a time is read.
        labels: the scan of each input.
        optimizer: for the trainable blocks; `for_blocks` is applied here.
        blocks: the blocks that train; "head" is one of the names.
        epochs: passes over the inputs, each in a new order; 0 leaves the variables as they are.
        batch_size: the last batch of an epoch is padded to it, and the padding counts nowhere.
        seed: of the order and of dropout.
        progress: shows epochs.
        description: what to call it there.

    Returns:
        The trained variables, and a record of each epoch.

    Raises:
        UserError: an unknown block, or a loss that is not finite any more.
    """
    progress, batch_size = progress or Silent(), min(batch_size, len(labels))
    optimizer = for_blocks(optimizer, blocks)
    state = new_state(variables, optimizer, blocks, jax.random.key(seed))
    step = jax.jit(functools.partial(train_step, classifier, optimizer, blocks), donate_argnums=0)
    history: list[Epoch] = []
    for epoch in progress.track(range(1, epochs + 1), description, epochs, "epochs"):
        started = time.perf_counter()
        total = StepMetrics(*jnp.zeros(3))
        order = np.random.default_rng([seed, epoch]).permutation(len(labels))
        for batch in _batches(inputs, labels, order, batch_size):
            state, metrics = step(state, batch)
            total = jax.tree.map(jnp.add, total, metrics)
        loss, correct = float(total.loss / total.count), float(total.correct / total.count)
        if not np.isfinite(loss):
            raise UserError(
                f"{description}: the loss is {loss} in epoch {epoch}; no accuracy is reported; lower the learning "
                "rate, and check the weights"
            )
        history.append(Epoch(epoch, loss, correct, time.perf_counter() - started))
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables)):
        raise UserError(f"{description}: the parameters are not finite after the last step; lower the learning rate")
    return state.variables, history


def predict(
    classifier: Classifier,
    variables: dict[str, Any],
    inputs: Shaped[np.ndarray, "n ..."],
    *,
    batch_size: int,
    progress: Silent | None = None,
    description: str = "predicting",
) -> Int[np.ndarray, " n"]:
    """The scan predicted for each input, in inference mode; arguments as of `fit`."""
    progress, batch_size = progress or Silent(), min(batch_size, len(inputs))
    step = jax.jit(functools.partial(predict_step, classifier))
    batches = _batches(inputs, np.zeros(len(inputs), np.int32), np.arange(len(inputs)), batch_size)
    tracked = progress.track(batches, description, len(inputs), "patches", step=batch_size)
    predicted = [np.asarray(step(variables, batch.inputs)) for batch in tracked]
    return np.concatenate(predicted)[: len(inputs)].astype(np.int32)


def _batches(inputs: np.ndarray, labels: np.ndarray, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """The entries in this order, the last batch filled up by entries that are masked."""
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        filled = np.resize(chosen, batch_size)
        in_file_order, back = np.unique(filled, return_inverse=True)  # a mapped file is read front to back
        yield Batch(
            jnp.asarray(inputs[in_file_order][back]), jnp.asarray(labels[filled]), jnp.arange(batch_size) < len(chosen)
        )
