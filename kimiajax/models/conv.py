"""Convolutions and pools, two ways: `plain`, XLA's own, and `fast`, which is faster on a CPU. Models know neither."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax

from kimiajax.models.winograd import TILES, Sides, inferred, margins_of, padded, shifted, transformed
from kimiajax.shapes import Float

Way = Literal["plain", "fast"]
KEPT = "transformed"  # the collection of variables in which transformed kernels are kept
LAYOUT = ("NHWC", "HWIO", "NHWC")

_WAY: ContextVar[Way] = ContextVar("way", default="plain")


@contextlib.contextmanager
def convolving(way: Way) -> Iterator[None]:
    """Within, networks are traced this way."""
    token = _WAY.set(way)
    try:
        yield
    finally:
        _WAY.reset(token)


class Conv(nn.Module):
    """A convolution: [b h w c] -> [b h' w' features], of parameters "kernel" [k l c features] and "bias" [features].

    In the fast way a kernel is transformed once a call, or taken from the variables under `KEPT`, where there are.
    """

    features: int
    size: Sides
    stride: int = 1
    padding: str = "SAME"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b _ _ d"]:
        shape = (*self.size, x.shape[-1], self.features)
        x, kernel = promote_dtype(x, self.param("kernel", nn.initializers.lecun_normal(), shape))
        tile = tile_of(self, x.shape[-1]) if _WAY.get() == "fast" else None
        if tile is not None:
            kept = self.variable(KEPT, "kernel", transformed, kernel, tile)
            y = cast(jax.Array, inferred(x, kernel, kept.value, self.padding))
        else:
            y = convolve(x, kernel, self.stride, self.padding)
        if self.use_bias:
            y += promote_dtype(self.param("bias", nn.initializers.zeros, (self.features,)), dtype=y.dtype)[0]
        return y


def tile_of(layer: Conv, channels: int) -> Sides | None:
    """The tiles in which the fast way computes a layer's output, if it does: an image's channels are too few to pay."""
    return TILES.get(layer.size) if layer.stride == 1 and channels > 3 else None


def convolve(
    x: Float[jax.Array, "b h w c"], kernel: Float[jax.Array, "k l c d"], stride: int = 1, padding: str = "SAME"
) -> Float[jax.Array, "b _ _ d"]:
    """XLA's convolution; in the fast way a matrix product where it is one, and a gradient that is fast on a CPU."""
    if _WAY.get() == "plain" or stride > 1:
        return _xla(x, kernel, stride, padding)
    if kernel.shape[:2] == (1, 1):
        return x @ kernel[0, 0]
    return _direct(x, kernel, padding)


def zero_padded(x: Float[jax.Array, "b h w c"], margin: int) -> Float[jax.Array, "b _ _ c"]:
    """Zeros on every side, where a framework pads before a convolution or a pool and not within it."""
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def max_pool(x: Float[jax.Array, "b h w c"], window: int, stride: int) -> Float[jax.Array, "b _ _ c"]:
    """The largest of each window that lies within, per channel.

    In bfloat16 it is always made of slices: of XLA's own pool of a ReLU jaxlib 0.12.0 makes numbers of 1e38 on a CPU.
    """
    if _WAY.get() == "plain" and x.dtype != jnp.bfloat16:
        return nn.max_pool(x, (window, window), (stride, stride))
    for axis in (1, 2):
        x = functools.reduce(jnp.maximum, shifted(x, axis, window, stride))
    return x


def avg_pool(x: Float[jax.Array, "b h w c"], window: int, *, count_padding: bool) -> Float[jax.Array, "b h w c"]:
    """The mean of the odd window about each pixel, per channel; zeros beyond the edges count, or nothing does."""
    if _WAY.get() == "plain":
        return nn.avg_pool(x, (window, window), padding="SAME", count_include_pad=count_padding)
    margin, counts = window // 2, []
    for axis in (1, 2):
        at = np.arange(x.shape[axis])
        inside = np.minimum(at + margin, at[-1]) - np.maximum(at - margin, 0) + 1
        counts.append(np.full(len(at), window) if count_padding else inside)
        x = functools.reduce(jnp.add, shifted(padded(x, axis, margin, margin), axis, window, 1))
    return x * (1 / np.outer(*counts))[..., None].astype(x.dtype)


def _xla(x: jax.Array, kernel: jax.Array, stride: int, padding: str | Sequence[tuple[int, int]]) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _direct(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    return _xla(x, kernel, 1, padding)


def _direct_gradients(padding: str, given: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the input a convolution again, of the kernel a matrix product for each of its places."""
    x, kernel = given
    margins = margins_of(kernel.shape, padding)
    around = [(side - 1 - margin,) * 2 for side, margin in zip(kernel.shape[:2], margins)]
    of_input = _xla(gradient, kernel[::-1, ::-1].swapaxes(2, 3), 1, around)
    for axis, margin in zip((1, 2), margins):
        x = padded(x, axis, margin, margin)
    flat = gradient.reshape(-1, gradient.shape[-1])
    rows = [shifted(row, 2, kernel.shape[1], 1) for row in shifted(x, 1, kernel.shape[0], 1)]
    of_kernel = [jnp.stack([part.reshape(len(flat), -1).T @ flat for part in row]) for row in rows]
    return of_input, jnp.stack(of_kernel)


_direct.defvjp(lambda x, kernel, padding: (_direct(x, kernel, padding), (x, kernel)), _direct_gradients)
