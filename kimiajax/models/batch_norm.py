"""Batch normalisation that can be told, block by block and call by call, whose statistics to use and whether to move
the stored ones (Ioffe and Szegedy, arXiv:1502.03167)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from kimiajax.shapes import Float, Shaped

Mode = Literal["inference", "batch", "keras2017"]
TrainedMode = Literal["inference", "keras2017"]


def covers(names: Iterable[str], path: Sequence[str]) -> bool:
    """Whether what is at a path lies in any of these blocks ("mixed9") or parts ("mixed6/branch2_conv1/bn")."""
    return any(tuple(path[: name.count("/") + 1]) == tuple(name.split("/")) for name in names)


@dataclass(frozen=True)
class Normalisation:
    """How batch normalisation behaves in one call.

    Attributes:
        names: names of what trains: blocks ("mixed9") or parts of one ("mixed6/branch2_conv1/bn").
        frozen: mode of the layers that are frozen. "inference": the running statistics normalise and stay (tf.keras 2,
            Keras 3). "batch": the mini-batch's normalise, the running ones stay (Keras 2.1.3 to 2.3.1). "keras2017":
            the mini-batch's normalise, the running ones move (Keras up to 2.1.2, the paper's time).
        trained: mode of the layers that train. "keras2017": as above, and as every framework trains a layer unless it
            is told otherwise. "inference": as above, while scale and bias train (Keras' `training=False`).
        momentum: of the running statistics, new = momentum * old + (1 - momentum) * batch; by default the network's.
        groups: into how many equal runs the batch is cut, each normalised by itself; 1 for the batch as a whole. The
            number of devices gives what is known as local, unsynchronised statistics.
        axis: the mapped axis (of pmap) that the batch is spread over, if it is.
    """

    names: tuple[str, ...] = ()
    frozen: Mode = "inference"
    trained: TrainedMode = "keras2017"
    momentum: float | None = None
    groups: int = 1
    axis: str | None = None

    def mode(self, path: tuple[str, ...]) -> Mode:
        """The mode of the batch normalisation at this path."""
        return self.trained if covers(self.names, path) else self.frozen


INFERENCE = Normalisation()


class BatchNorm(nn.Module):
    """Per channel: (x - mean) / sqrt(variance + epsilon), scaled if asked to, plus a bias: [b ... c] -> [b ... c].

    Statistics are taken and applied in float32 or better, and the result has the input's type. A mini-batch's variance
    moves the running one as it is, without Bessel's correction: as in Keras until January 2018 (keras-team/keras#9028)
    and in Keras 3.
    """

    epsilon: float
    momentum: float
    scale: bool = True

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b *hw c"], how: Normalisation, mask: Shaped[jax.Array, " b"] | None
    ) -> Float[jax.Array, "b *hw c"]:
        channels = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        gain = self.param("scale", nn.initializers.ones, channels) if self.scale else None
        bias = self.param("bias", nn.initializers.zeros, channels)

        mode = how.mode(self.path)
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if mode == "inference":
            mean, var = running_mean.value, running_var.value
        else:
            groups, axis = _parts(how, len(x))
            y = y.reshape(groups, -1, *x.shape[1:])
            mean, var, weight = _statistics(y, None if mask is None else mask.reshape(groups, -1), axis)
            if mode == "keras2017" and not self.is_initializing():
                momentum = self.momentum if how.momentum is None else how.momentum
                for running, batch in ((running_mean, mean), (running_var, var)):
                    batch = _weighted(batch, weight, how.axis)
                    running.value = momentum * running.value + (1 - momentum) * batch
            # Padding by itself is normalised like anything unseen, lest it grow from layer to layer to infinity.
            empty = weight == 0
            mean, var = jnp.where(empty, running_mean.value, mean), jnp.where(empty, running_var.value, var)
            mean, var = (jnp.expand_dims(each, tuple(range(1, x.ndim))) for each in (mean, var))
        factor = jax.lax.rsqrt(var + self.epsilon)
        y = (y - mean) * (factor if gain is None else factor * gain) + bias
        return y.reshape(x.shape).astype(x.dtype)


def _parts(how: Normalisation, rows: int) -> tuple[int, str | None]:
    """The groups of these rows, and the axis that their statistics are summed over, if any."""
    if how.axis is None or how.groups == 1:
        groups, axis = how.groups, how.axis
    else:
        groups, axis = how.groups // jax.lax.axis_size(how.axis), None
        assert how.groups == groups * jax.lax.axis_size(how.axis), "each device holds whole groups"
    assert rows % groups == 0, f"{rows} rows do not divide into {groups} groups"
    return groups, axis


def _statistics(
    y: Float[jax.Array, "g r *hw c"], mask: Shaped[jax.Array, "g r"] | None, axis: str | None
) -> tuple[Float[jax.Array, "g c"], Float[jax.Array, "g c"], Float[jax.Array, "g 1"]]:
    """Mean and variance of each group's real rows, both 0 where there are none, and how many there are."""
    within = tuple(range(1, y.ndim - 1))
    rows = jnp.ones(y.shape[:2], bool) if mask is None else mask
    counted = rows.reshape(*rows.shape, *(1,) * (y.ndim - 2))
    weight = rows.sum(axis=1, keepdims=True, dtype=y.dtype)
    sums = weight, jnp.sum(y, within, where=counted)
    weight, total = sums if axis is None else jax.lax.psum(sums, axis)
    entries = jnp.maximum(weight, 1) * math.prod(y.shape[2:-1])
    mean = total / entries
    # In a second pass: of channels whose mean is large, squares of y less the mean's would leave rounding alone.
    apart = y - jnp.expand_dims(mean, within)
    squares = jnp.sum(jnp.square(apart), within, where=counted)
    return mean, (squares if axis is None else jax.lax.psum(squares, axis)) / entries, weight


def _weighted(
    batch: Float[jax.Array, "g c"], weight: Float[jax.Array, "g 1"], axis: str | None
) -> Float[jax.Array, " c"]:
    """The mean of the groups' statistics, each counted by its rows, over all devices."""
    sums = (batch * weight).sum(axis=0), weight.sum(axis=0)
    total, count = sums if axis is None else jax.lax.psum(sums, axis)
    return total / jnp.maximum(count, 1)
