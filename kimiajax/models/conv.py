"""Convolutions and pools, two ways: `plain`, XLA's own, and `fast`, which is faster on a CPU. Models know neither.

Fast is Winograd's minimal filtering (Lavin and Gray, arXiv:1509.09308): m x m outputs of an r x r convolution take
(m + r - 1)^2 multiplications a channel in place of m^2 r^2. In inference that is F(4, 3), 4 times fewer for 3 x 3, and
F(2, 5), 2.8 times fewer for 5 x 5. Where something is differentiated it is F(2, 3), 2.25 times fewer and closer to
exact, with a gradient made of the same parts: what autodiff makes of XLA's convolutions is slow on a CPU.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax
from numpy.polynomial import polynomial

from kimiajax.shapes import Float

Way = Literal["plain", "fast"]
KEPT = "transformed"  # the collection of variables in which transformed kernels are kept
TILES = {(3, 3): 4, (5, 5): 2}  # size -> side of the output tiles in inference; of 6 inputs both
TRAINED_TILE = 2
# Where Winograd's polynomials are evaluated, infinity beside them, by the side of the input tiles. Of 6, a search on
# random layers: with Lavin and Gray's (0, 1, -1, 2, -2) a layer's output errs 2.2 times as far.
POINTS = {4: (0.0, 1.0, -1.0), 6: (0.0, 0.625, -0.625, 1.5, -1.5)}
# Bytes of an image's transformed input that a cache holds well enough; of a strip of a larger one; of a kernel that is
# read again for each strip. By these VGG16's second convolution alone goes in strips.
HELD, STRIP, READ_AGAIN = 2**23, 2**21, 2**20
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
    size: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b _ _ d"]:
        shape = (*self.size, x.shape[-1], self.features)
        x, kernel = promote_dtype(x, self.param("kernel", nn.initializers.lecun_normal(), shape))
        tile = TILES.get(self.size) if self.stride == 1 and _WAY.get() == "fast" else None
        if tile is not None and x.shape[-1] > 3:  # an image's channels are too few to pay for transforming it
            kept = self.variable(KEPT, "kernel", transformed, kernel, tile)
            y = _inferred(x, kernel, kept.value, self.padding)
        else:
            y = convolve(x, kernel, self.stride, self.padding)
        if self.use_bias:
            y += promote_dtype(self.param("bias", nn.initializers.zeros, (self.features,)), dtype=y.dtype)[0]
        return y


def convolve(
    x: Float[jax.Array, "b h w c"], kernel: Float[jax.Array, "k l c d"], stride: int = 1, padding: str = "SAME"
) -> Float[jax.Array, "b _ _ d"]:
    """XLA's convolution; in the fast way a matrix product where it is one, and a gradient that is fast on a CPU."""
    if _WAY.get() == "plain" or stride > 1:
        return _xla(x, kernel, stride, padding)
    if kernel.shape[:2] == (1, 1):
        return x @ kernel[0, 0]
    return _direct(x, kernel, padding)


def max_pool(x: Float[jax.Array, "b h w c"], window: int, stride: int) -> Float[jax.Array, "b _ _ c"]:
    """The largest of each window that lies within, per channel."""
    if _WAY.get() == "plain":
        return nn.max_pool(x, (window, window), (stride, stride))
    for axis in (1, 2):
        x = functools.reduce(jnp.maximum, _shifted(x, axis, window, stride))
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
        x = functools.reduce(jnp.add, _shifted(_padded(x, axis, margin, margin), axis, window, 1))
    return x * (1 / np.outer(*counts))[..., None].astype(x.dtype)


def transformed(kernel: Float[jax.Array, "r r c d"], tile: int) -> Float[jax.Array, "a a c d"]:
    """A kernel as Winograd's algorithm takes it for tiles of this side."""
    _, of_kernel, _ = _matrices(tile, len(kernel))
    return _twice(of_kernel, kernel)


def _xla(x: jax.Array, kernel: jax.Array, stride: int, padding: str | Sequence[tuple[int, int]]) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


# Winograd's algorithm: tiles of the input are transformed, multiplied with the transformed kernel, and transformed to
# tiles of the output. Without the barriers XLA would compute each row of a transformation again for each column.


@functools.cache
def _matrices(tile: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What transforms inputs [a a], kernels [a r] and products [m a], for m x m tiles of an r x r convolution."""
    size = tile + side - 1
    points = np.array(POINTS[size])
    of_input, of_kernel, of_output = np.zeros((size, size)), np.zeros((size, side)), np.zeros((tile, size))
    for row, point in enumerate(points):
        others = np.delete(points, row)
        of_input[row, :-1] = polynomial.polyfromroots(others)
        of_kernel[row] = point ** np.arange(side) / np.prod(point - others)
        of_output[:, row] = point ** np.arange(tile)
    of_input[-1] = polynomial.polyfromroots(points)
    of_kernel[-1, -1] = of_output[-1, -1] = 1
    return of_input, of_kernel, of_output


def _winograd(x: jax.Array, kernel: jax.Array, side: int, margin: int) -> jax.Array:
    """The convolution with a transformed kernel, which had `side` rows, of an input with so many zeros about it.

    Transformed, a large image is more than the processor's cache holds. Then it goes strip by strip, each a few rows of
    tiles, where the kernel that each strip reads again is small.
    """
    tile = len(kernel) - side + 1
    size = [length + 2 * margin - side + 1 for length in x.shape[1:3]]
    count = [-(-length // tile) for length in size]
    x = _filled(x, tile, side, margin)
    of_row = count[1] * kernel[..., 0].size * x.dtype.itemsize  # bytes of a transformed row of tiles
    rows = count[0]
    if of_row * rows > HELD and kernel.size * x.dtype.itemsize <= READ_AGAIN:
        rows = max(n for n in range(1, rows + 1) if rows % n == 0 and n * of_row <= max(of_row, STRIP))
    if rows == count[0]:
        outputs = _of_tiles(x, kernel, side)
    else:
        strips = count[0] // rows

        def of_strip(index: jax.Array) -> jax.Array:
            at = (index // strips, index % strips * (rows * tile), 0, 0)
            return _of_tiles(lax.dynamic_slice(x, at, (1, rows * tile + side - 1, *x.shape[2:])), kernel, side)

        outputs = lax.map(of_strip, jnp.arange(len(x) * strips))
        outputs = outputs.reshape(len(x), count[0] * tile, count[1] * tile, -1)
    return outputs[:, : size[0], : size[1]]


def _of_tiles(x: jax.Array, kernel: jax.Array, side: int) -> jax.Array:
    """The convolution without margin of an input that whole tiles fill."""
    tile = len(kernel) - side + 1
    of_input, _, of_output = _matrices(tile, side)
    count = [(length - side + 1) // tile for length in x.shape[1:3]]
    products = lax.dot_general(_tiled(of_input, x, tile), kernel, (((3,), (2,)), ((0, 1), (0, 1))))
    products = lax.optimization_barrier(products).reshape(*kernel.shape[:2], len(x), *count, -1)  # [a a b i j d]
    rows = lax.optimization_barrier(_combined(of_output, products))
    outputs = jnp.stack([jnp.stack(_combined(of_output, row), axis=3) for row in rows], axis=2)  # [b i m j m d]
    return outputs.reshape(len(x), count[0] * tile, count[1] * tile, -1)


def _filled(x: jax.Array, tile: int, side: int, margin: int) -> jax.Array:
    """With the zeros of the margin, and as many more as whole tiles of output need."""
    for axis in (1, 2):
        outputs = x.shape[axis] + 2 * margin - side + 1
        x = _padded(x, axis, margin, margin + -outputs % tile)
    return x


def _tiled(matrix: np.ndarray, x: jax.Array, stride: int) -> jax.Array:
    """Tiles of x, one every so many pixels, each multiplied with the matrix from both sides: [a a t c]."""
    window = matrix.shape[1]
    rows = lax.optimization_barrier(_combined(matrix, _shifted(x, 1, window, stride)))
    tiles = [_combined(matrix, _shifted(row, 2, window, stride)) for row in rows]
    tiles = jnp.stack([jnp.stack([each.reshape(-1, x.shape[-1]) for each in row]) for row in tiles])
    return lax.optimization_barrier(tiles)


def _twice(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """The matrix times x times the matrix transposed, over the first two axes."""
    return jnp.stack([jnp.stack(_combined(matrix, row)) for row in _combined(matrix, x)])


def _combined(matrix: np.ndarray, parts: Sequence[jax.Array] | jax.Array) -> tuple[jax.Array, ...]:
    """The matrix times a vector of arrays, as sums: a product of so small matrices would be slower."""
    return tuple(
        functools.reduce(jnp.add, [_times(factor, part) for factor, part in zip(row, parts) if factor])
        for row in matrix
    )


def _times(factor: float, x: jax.Array) -> jax.Array:
    return x if factor == 1 else -x if factor == -1 else x * jnp.asarray(factor, x.dtype)


def _shifted(x: jax.Array, axis: int, window: int, stride: int) -> list[jax.Array]:
    """Along an axis, every window's first pixel, every window's second, ..."""
    reach = (x.shape[axis] - window) // stride * stride
    return [lax.slice_in_dim(x, start, start + reach + 1, stride, axis) for start in range(window)]


def _padded(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (before, after, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _margin(side: int, padding: str) -> int:
    return side // 2 if padding == "SAME" else 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _inferred(x: jax.Array, kernel: jax.Array, kept: jax.Array, padding: str) -> jax.Array:
    """By the kept, transformed kernel where nothing is differentiated, and else by the kernel itself."""
    return _winograd(x, kept, len(kernel), _margin(len(kernel), padding))


def _differentiated(x: jax.Array, kernel: jax.Array, kept: jax.Array, padding: str) -> tuple[jax.Array, tuple]:
    side = len(kernel)
    if side != 3:
        return _xla(x, kernel, 1, padding), (x, kernel, kept)
    return _winograd(x, transformed(kernel, TRAINED_TILE), side, _margin(side, padding)), (x, kernel, kept)


def _gradients(padding: str, given: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, kernel, kept = given
    if len(kernel) != 3:
        return *_direct_gradients(padding, (x, kernel), gradient), jnp.zeros_like(kept)
    side, tile, margin = len(kernel), TRAINED_TILE, _margin(len(kernel), padding)
    of_input, of_kernel, of_output = _matrices(tile, side)
    tiles = _tiled(of_input, _filled(x, tile, side, margin), tile)  # [a a t c]
    spread = _tiled(of_output.T, _filled(gradient, tile, 1, 0), tile)  # [a a t d]
    products = lax.dot_general(tiles, spread, (((2,), (2,)), ((0, 1), (0, 1))))  # [a a c d]
    turned = transformed(kernel[::-1, ::-1].swapaxes(2, 3), tile)
    return _winograd(gradient, turned, side, side - 1 - margin), _twice(of_kernel.T, products), jnp.zeros_like(kept)


_inferred.defvjp(_differentiated, _gradients)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _direct(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    return _xla(x, kernel, 1, padding)


def _direct_gradients(padding: str, given: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the input a convolution again, of the kernel a matrix product for each of its places."""
    x, kernel = given
    margins = [_margin(side, padding) for side in kernel.shape[:2]]
    around = [(side - 1 - margin,) * 2 for side, margin in zip(kernel.shape[:2], margins)]
    of_input = _xla(gradient, kernel[::-1, ::-1].swapaxes(2, 3), 1, around)
    for axis, margin in zip((1, 2), margins):
        x = _padded(x, axis, margin, margin)
    flat = gradient.reshape(-1, gradient.shape[-1])
    rows = [_shifted(row, 2, kernel.shape[1], 1) for row in _shifted(x, 1, kernel.shape[0], 1)]
    of_kernel = [jnp.stack([part.reshape(len(flat), -1).T @ flat for part in row]) for row in rows]
    return of_input, jnp.stack(of_kernel)


_direct.defvjp(lambda x, kernel, padding: (_direct(x, kernel, padding), (x, kernel)), _direct_gradients)
