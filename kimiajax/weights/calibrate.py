"""`calibrate`: random weights scaled on some patches, so that what tells patches apart reaches the last block.

Each channel of each convolution and dense layer is centred and divided by its standard deviation over the patches,
layer after layer, each on what the scaled layers before it give: in its kernel and bias, or in the running statistics
of the batch normalisation behind it (Kraehenbuehl et al., ICLR 2016, arXiv:1511.06856; Mishkin and Matas, ICLR 2016,
arXiv:1511.06422). Then a bias of one standard deviation is added, with which a ReLU passes five values of six. At half
of them, each layer would keep three quarters of the likeness of two patches of one tissue, and thirty layers nothing.
The last layer before a head has a negative bias: the head gets sparse features, as trained networks give them.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kimiajax.errors import UserError
from kimiajax.models.backbone import Backbone, Variables
from kimiajax.models.batch_norm import BatchNorm
from kimiajax.models.conv import Conv
from kimiajax.models.inputs import network_input
from kimiajax.runtime.precision import products_in
from kimiajax.shapes import Float, UInt8

PATCHES = 64  # that weights are scaled on
BIAS, LAST_BIAS = 1.0, -1.0  # of what is scaled to a standard deviation of 1, and of the last layer before the head
Moments = dict[tuple[str, ...], tuple[jax.Array, jax.Array]]  # path of a layer -> mean and variance of its channels


def calibrate(
    backbone: Backbone, variables: Variables, patches: UInt8[np.ndarray, "n s s"], blocks: Sequence[str]
) -> Variables:
    """Returns the variables with every layer scaled on the patches.

    Args:
        backbone: the network.
        variables: of `blocks`, as `Backbone.init` draws them.
        patches: gray patches.
        blocks: a run of blocks that starts at the first.

    Raises:
        UserError: patches that are all alike, which tell nothing.
    """
    if np.ptp(patches) == 0 or np.ptp(patches, axis=0).max() == 0:
        raise UserError("calibrated weights: the patches that they are scaled on are all alike; give other patches")
    measure = jax.jit(_moments, static_argnames=("backbone", "blocks"))
    moments = jax.device_get(measure(backbone, variables, network_input(patches), tuple(blocks)))
    bias = _biases(backbone, variables)
    params, statistics = flatten_dict(variables["params"]), flatten_dict(variables.get("batch_stats", {}))
    for path, (mean, variance) in moments.items():
        if (*path, "var") in statistics:
            statistics |= {(*path, "mean"): mean, (*path, "var"): variance}
            params |= {(*path, "bias"): np.full_like(mean, bias.get(path, BIAS))}
        else:
            scale = 1 / np.sqrt(_not_zero(variance))
            params[*path, "kernel"] = params[*path, "kernel"] * scale
            params[*path, "bias"] = bias.get(path, BIAS) - mean * scale
    scaled = {"params": unflatten_dict(params), "batch_stats": unflatten_dict(statistics)}
    return {kind: scaled[kind] for kind in variables}


def _moments(backbone: Backbone, variables: Variables, images: Float[jax.Array, "n s s 3"], blocks: tuple) -> Moments:
    """Mean and variance of each channel of each layer, where those before it are scaled."""
    moments: Moments = {}
    bias = _biases(backbone, variables)

    def scale(call: Any, arguments: tuple, options: dict, context: Any) -> Any:
        layer = context.module
        biased = isinstance(layer, Conv | nn.Dense) and layer.use_bias
        if layer.is_initializing() or not (biased or isinstance(layer, BatchNorm)):  # it is, where shapes are asked for
            return call(*arguments, **options)
        y = call(*arguments, **options) if biased else arguments[0]
        within = tuple(range(y.ndim - 1))
        mean, variance = y.mean(within), y.var(within)
        moments[layer.path] = mean, variance
        deviation = jnp.sqrt(_not_zero(variance) if biased else variance + layer.epsilon)
        return (y - mean) / deviation + bias.get(layer.path, BIAS)

    with nn.intercept_methods(scale), products_in("float32"):
        backbone.apply(variables, images, blocks)
    return moments


def _not_zero(variance: Any) -> Any:
    """Returns the variance, and 1 where it is 0, so that a channel which is the same everywhere is only centred."""
    return variance + (variance == 0)


def _biases(backbone: Backbone, variables: Variables) -> dict[tuple[str, ...], float]:
    """The layers whose bias is another: the last one of the bottleneck, where that is no mean over space."""
    layers = sorted(
        path[:-1] for path in flatten_dict(variables["params"]) if (path[0], path[-1]) == (backbone.bottleneck, "bias")
    )
    return dict.fromkeys(layers[-1:], LAST_BIAS)
