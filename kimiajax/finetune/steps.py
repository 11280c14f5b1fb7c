"""The pure steps: `(state, batch) -> (state, metrics)`, wrapped by jit in one place, `loop.py`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kimiajax.data.pixels import gray_to_unit_rgb
from kimiajax.finetune.blocks import Params, TrainableBlocks
from kimiajax.finetune.state import TrainState
from kimiajax.models.backbone import Classifier
from kimiajax.shapes import Bool, Float, Int, Shaped


class Batch(NamedTuple):
    """Inputs (gray patches as uint8, or activations as float32), the scan of each, and false where one is padding."""

    inputs: Shaped[jax.Array, "b ..."]
    labels: Int[jax.Array, " b"]
    mask: Bool[jax.Array, " b"]


class StepMetrics(NamedTuple):
    """Sums over the batch's real entries, so that steps add up to an epoch."""

    loss: Float[jax.Array, ""]
    correct: Float[jax.Array, ""]
    count: Float[jax.Array, ""]


def network_input(inputs: Shaped[jax.Array, "b ..."]) -> Float[jax.Array, "b ..."]:
    """Gray uint8 patches become three channels in [0, 1]; activations are what they are."""
    return gray_to_unit_rgb(inputs) if inputs.dtype == jnp.uint8 else inputs


def train_step(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    blocks: TrainableBlocks,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, StepMetrics]:
    """One step of mean cross-entropy over the batch's real entries."""
    trainable, frozen = blocks.split(state.params)
    gradients, metrics, batch_stats = gradients_of(classifier, blocks, state, batch)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trainable)
    params = {**optax.apply_updates(trainable, updates), **frozen}
    return TrainState(state.step + 1, params, {**state.batch_stats, **batch_stats}, opt_state, state.key), metrics


def gradients_of(
    classifier: Classifier, blocks: TrainableBlocks, state: TrainState, batch: Batch
) -> tuple[Params, StepMetrics, Params]:
    """The gradient of the mean cross-entropy, the step's metrics, and the running statistics after the step.

    The gradient is taken of the trainable blocks alone, so nothing of a frozen block is kept for a backward pass.
    """
    trainable, frozen = blocks.split(state.params)
    training = tuple(block for block in classifier.blocks if block in blocks.names)

    def loss_of(trainable: Params) -> tuple[jax.Array, tuple[StepMetrics, Params]]:
        variables = {"params": {**trainable, **frozen}, "batch_stats": state.batch_stats}
        logits, batch_stats = classifier.apply(
            variables,
            network_input(batch.inputs),
            train=training,
            mask=batch.mask,
            dropout_key=jax.random.fold_in(state.key, state.step),
        )
        metrics = _metrics(logits, batch)
        return metrics.loss / metrics.count, (metrics, batch_stats)

    (_, (metrics, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
    return gradients, metrics, batch_stats


def predict_step(classifier: Classifier, variables: Params, inputs: Shaped[jax.Array, "b ..."]) -> Int[jax.Array, " b"]:
    """Predicted scans, in inference mode."""
    logits, _ = classifier.apply(variables, network_input(inputs))
    return logits.argmax(axis=-1)


def _metrics(logits: Float[jax.Array, "b k"], batch: Batch) -> StepMetrics:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    correct = (logits.argmax(axis=-1) == batch.labels) & batch.mask
    return StepMetrics(
        jnp.where(batch.mask, losses, 0).sum(), correct.sum(dtype=jnp.float32), batch.mask.sum(dtype=jnp.float32)
    )
