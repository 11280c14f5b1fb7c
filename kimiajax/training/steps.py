"""The pure steps: `(state, batch) -> (state, metrics)`. `engines.py` is the one place that wraps them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kimiajax.checks import check_fields, share, whole
from kimiajax.errors import UserError
from kimiajax.models.backbone import Array
from kimiajax.models.batch_norm import Normalisation
from kimiajax.models.head import Classifier
from kimiajax.models.inputs import gray_to_unit_rgb, network_input, params_of
from kimiajax.runtime.precision import Precision, compute_dtype, products_in
from kimiajax.shapes import Bool, Float, Int, Shaped
from kimiajax.training.augment import Augmentation, augment
from kimiajax.training.freezing import Params, TrainableBlocks, merge
from kimiajax.training.optimizer import for_blocks
from kimiajax.training.state import TrainState

ORDER = 2**32 - 1  # folded into a state's key for the order of epochs; steps, which are folded in too, stay below


@dataclass(frozen=True)
class Training:
    """What a step computes. It holds no arrays: two of them with equal fields are one program.

    Attributes:
        classifier: blocks of a backbone and a head.
        optimizer: of what trains; frozen leaves never reach it.
        blocks: what trains, and the modes of batch normalisation.
        augmentation: of gray patches, drawn anew in each step.
        label_smoothing: the share of a label that is spread evenly over all classes, in [0, 1).
        batch_norm_momentum: of running statistics that move; by default the network's own.
        statistic_groups: into how many parts, each normalised by itself, mini-batch statistics see the batch. 1 is the
            whole batch, synchronised over devices; the number of devices makes statistics local to each.
        precision: of convolutions and matrix products.
        learning_rate: step -> learning rate, for the history only.

    Raises:
        UserError: a field of another type or out of its range.
    """

    classifier: Classifier
    optimizer: optax.GradientTransformation
    blocks: TrainableBlocks
    augmentation: Augmentation | None = None
    label_smoothing: float = 0.0
    batch_norm_momentum: float | None = None
    statistic_groups: int = 1
    precision: Precision = "float32"
    learning_rate: Callable[[int], Any] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        share("label_smoothing", self.label_smoothing)
        whole("statistic_groups", self.statistic_groups, 1)

    def facts(self) -> dict[str, Any]:
        """What JSON takes of it: all but the optimizer."""
        return {
            "blocks": list(self.blocks.names),
            "frozen_bn": self.blocks.frozen_bn,
            "trained_bn": self.blocks.trained_bn,
            "augmentation": repr(self.augmentation),
            "label_smoothing": self.label_smoothing,
            "batch_norm_momentum": self.batch_norm_momentum,
            "statistic_groups": self.statistic_groups,
            "precision": self.precision,
        }

    def normalisation(self, axis: str | None = None) -> Normalisation:
        """What batch normalisation does in a step whose batch is spread over a mapped axis, if it is."""
        modes = self.blocks.frozen_bn, self.blocks.trained_bn
        return Normalisation(self.blocks.names, *modes, self.batch_norm_momentum, self.statistic_groups, axis)

    def start(self, variables: dict[str, Any] | Any, key: jax.Array) -> TrainState:
        """The state before the first step; what steps donate, variables and key, is copied.

        Raises:
            UserError: variables without parameters, or a name in `blocks` that is not in them.
        """
        params_of(variables)
        variables = jax.tree.map(jnp.array, variables)
        params, stats = variables["params"], variables.get("batch_stats", {})
        optimizer = for_blocks(self.optimizer, self.blocks).init(self.blocks.split(params)[0])
        return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer, jnp.copy(key))


class Batch(NamedTuple):
    """A batch, or a device's part of one.

    Attributes:
        inputs: gray patches as uint8 [b h w], or stored activations as float32.
        labels: the scan of each.
        mask: false where one is padding.
        index: the place of each in the whole batch, whatever device it lies on: all that is random follows from it.
    """

    inputs: Shaped[Array, "b ..."]
    labels: Int[Array, " b"]
    mask: Bool[Array, " b"]
    index: Int[Array, " b"]  # pyright: ignore[reportIncompatibleMethodOverride]  # nobody asks for the tuple's


@dataclass(frozen=True)
class Plan:
    """How an epoch's entries fall into steps.

    Attributes:
        count: entries.
        batch_size: of them in a step; the last step holds the rest.
        rows: of a batch as it is computed, at least `batch_size`.
    """

    count: int
    batch_size: int
    rows: int

    @property
    def steps(self) -> int:
        return -(-self.count // self.batch_size)

    @functools.cached_property
    def places(self) -> Int[np.ndarray, "s b"]:
        """For each row of each step its place in the epoch's order; padding takes the step's entries once more."""
        starts = self.batch_size * np.arange(self.steps, dtype=np.int32)[:, None]
        return starts + np.arange(self.rows, dtype=np.int32) % np.minimum(self.batch_size, self.count - starts)

    @functools.cached_property
    def mask(self) -> Bool[np.ndarray, "s b"]:
        """False where a row is padding."""
        starts = self.batch_size * np.arange(self.steps)[:, None]
        return np.arange(self.rows) < np.minimum(self.batch_size, self.count - starts)


Data = tuple[Shaped[jax.Array, "n ..."], Int[jax.Array, " n"]]


class StepMetrics(NamedTuple):
    """Sums over the batch's real entries, so that steps add up to an epoch."""

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    count: Float[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]  # nobody asks for the tuple's


def train_step(
    training: Training, state: TrainState, batch: Batch, *, axis: str | None = None
) -> tuple[TrainState, StepMetrics]:
    """One step of mean cross-entropy over the batch's real entries.

    Args:
        training: what to compute.
        state: before the step.
        batch: all of it, or under pmap a device's part.
        axis: the mapped axis that the batch is spread over, if any; the result is the same on all its devices.
    """
    trainable, frozen = training.blocks.split(state.params)
    gradients, metrics, batch_stats = gradients_of(training, state, batch, axis=axis)
    optimizer = for_blocks(training.optimizer, training.blocks)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trainable)
    params = merge(cast(Params, optax.apply_updates(trainable, updates)), frozen)
    return TrainState(state.step + 1, params, {**state.batch_stats, **batch_stats}, opt_state, state.key), metrics


def gradients_of(
    training: Training, state: TrainState, batch: Batch, *, axis: str | None = None
) -> tuple[Params, StepMetrics, Params]:
    """The gradient of the mean cross-entropy, the step's metrics, and the running statistics after the step.

    The gradient is taken of what trains alone, so nothing of a frozen block before that is kept for a backward pass.
    """
    trainable, frozen = training.blocks.split(state.params)
    inputs, (_, for_dropout) = augmented(training, state, batch), _keys(state, batch.index)
    normalisation = training.normalisation(axis)
    count = _over(axis, batch.mask.sum(dtype=jnp.float32))

    def loss_of(trainable: Params) -> tuple[jax.Array, tuple[StepMetrics, Params]]:
        variables = {"params": merge(trainable, frozen), "batch_stats": state.batch_stats}
        logits, batch_stats = training.classifier.apply(
            variables,
            inputs,
            normalisation=normalisation,
            mask=batch.mask,
            dropout_keys=for_dropout,
            dtype=compute_dtype(training.precision),
        )
        metrics = _metrics(logits, batch, training.label_smoothing)
        return metrics.loss / count, (metrics, batch_stats)

    with products_in(training.precision):  # what is frozen is a constant of `loss_of`: here a block is frozen
        (_, (metrics, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
    # Each device has the gradient of its own share of the mean, so that the sum is the gradient of the mean.
    return _over(axis, gradients), _over(axis, metrics), batch_stats


def augmented(training: Training, state: TrainState, batch: Batch) -> Float[jax.Array, "b ..."]:
    """The batch's inputs as the classifier takes them, augmented as the state's key and step say.

    Raises:
        UserError: inputs that cannot be augmented.
    """
    if training.augmentation is None:
        return network_input(batch.inputs)
    if batch.inputs.dtype != jnp.uint8:
        raise UserError(f"only gray patches, uint8 [n h w], can be augmented; these inputs are {batch.inputs.dtype}")
    for_augmentation, _ = _keys(state, batch.index)
    return gray_to_unit_rgb(augment(training.augmentation, jnp.asarray(batch.inputs), for_augmentation))


def order_of(key: jax.Array, epoch: int | Int[jax.Array, ""], count: int) -> Int[jax.Array, " n"]:
    """The order in which an epoch goes through its entries, by the key of the state."""
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, ORDER), epoch), count)


def gather(plan: Plan, data: Data, key: jax.Array, epoch: Int[jax.Array, ""], step: Int[jax.Array, ""]) -> Batch:
    """A step's batch out of inputs and labels that all lie on the device.

    Args:
        plan: how an epoch's entries fall into steps.
        data: inputs and labels.
        key: of the state.
        epoch, step: from 1, and from 0.
    """
    return _batch_at(plan, data, order_of(key, epoch, plan.count), step, lambda rows: rows)


def train_steps(
    training: Training,
    plan: Plan,
    state: TrainState,
    data: Data,
    epoch: Int[jax.Array, ""],
    start: Int[jax.Array, ""] | int,
    stop: Int[jax.Array, ""] | int,
    *,
    share: Callable[[Any], Any] = lambda rows: rows,
    axis: str | None = None,
) -> tuple[TrainState, StepMetrics]:
    """Steps of an epoch as one loop on the device: shuffle, gather, augment, normalise, step.

    Which steps is an argument, so that one program serves a whole epoch and any part of it: after a stop, the rest.

    Args:
        training: what a step computes.
        plan, data, epoch: as of `gather`.
        state: before the first of them.
        start, stop: of the steps, from 0; `stop` is not taken.
        share: rows of a batch -> those of this device.
        axis: as of `train_step`.

    Returns:
        The state after the last of them, and each step's metrics, [s]; those of other steps are 0.
    """
    order = order_of(state.key, epoch, plan.count)

    def one(step: jax.Array, carry: tuple[TrainState, StepMetrics]) -> tuple[TrainState, StepMetrics]:
        state, every = carry
        state, metrics = train_step(training, state, _batch_at(plan, data, order, step, share), axis=axis)
        return state, jax.tree.map(lambda all, value: all.at[step].set(value.astype(all.dtype)), every, metrics)

    return jax.lax.fori_loop(start, stop, one, (state, StepMetrics(*jnp.zeros((3, plan.steps)))))


def _batch_at(
    plan: Plan, data: Data, order: Int[jax.Array, " n"], step: Int[jax.Array, ""], share: Callable[[Any], Any]
) -> Batch:
    inputs, labels = data
    places, mask = jnp.asarray(plan.places)[step], jnp.asarray(plan.mask)[step]
    rows, mask, index = share((order[places], mask, jnp.arange(plan.rows, dtype=jnp.int32)))
    return Batch(inputs[rows], labels[rows], mask, index)


def predict_step(
    classifier: Classifier, precision: Precision, variables: Params, inputs: Shaped[jax.Array, "b ..."]
) -> Int[jax.Array, " b"]:
    """Predicted scans, in inference mode; -1 where the logits are not finite, which no scan could be told by."""
    with products_in(precision):
        logits, _ = classifier.apply(variables, network_input(inputs), dtype=compute_dtype(precision))
    return jnp.where(jnp.isfinite(logits).all(axis=-1), logits.argmax(axis=-1), -1)


def _keys(state: TrainState, index: Int[Array, " b"]) -> tuple[jax.Array, jax.Array]:
    """A key for each entry's augmentation, and one for its dropout."""
    of_step = jax.random.fold_in(state.key, state.step)
    keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(of_step, index)))(index)
    return keys[:, 0], keys[:, 1]


def _over(axis: str | None, tree: Any) -> Any:
    """The sum over the devices of a mapped axis."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def _metrics(logits: Float[jax.Array, "b k"], batch: Batch, smoothing: float) -> StepMetrics:
    logits = jnp.where(batch.mask[:, None], logits, 0)
    if smoothing:
        targets = optax.smooth_labels(jax.nn.one_hot(batch.labels, logits.shape[-1]), smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    correct = (logits.argmax(axis=-1) == batch.labels) & batch.mask
    return StepMetrics(
        jnp.where(batch.mask, losses, 0).sum(), correct.sum(dtype=jnp.float32), batch.mask.sum(dtype=jnp.float32)
    )
