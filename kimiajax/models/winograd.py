"""Winograd's minimal filtering (Lavin and Gray, arXiv:1509.09308), in `jax.numpy`.

Along each axis m outputs of a convolution with r places take m + r - 1 multiplications a channel in place of m r. With
the tiles below that is 4 times fewer for 3 x 3, 2.8 times for 5 x 5, and 2.8 times for 1 x 7 and 7 x 1. The gradient is
made of the same parts: what autodiff makes of XLA's convolutions is slow on a CPU.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.polynomial import polynomial

from kimiajax.shapes import Float

Sides = tuple[int, int]  # along the height and the width
TILES: dict[Sides, Sides] = {(3, 3): (4, 4), (5, 5): (2, 2), (1, 7): (1, 4), (7, 1): (4, 1)}  # size -> output tiles
# Where Winograd's polynomials are evaluated, infinity beside them, by the side of the input tiles: searched for on
# random layers. With Lavin and Gray's (0, 1, -1, 2, -2) for 6 a layer's output errs 2.2 times as far.
POINTS = {1: (), 6: (0.0, 0.625, -0.625, 1.5, -1.5), 10: (0.0, 0.375, -0.375, 0.75, -0.75, 1.25, -1.25, 2.5, -2.5)}
# Bytes of an image's transformed input that a cache holds well enough; of a strip of a larger one; of a kernel that is
# read again for each strip. By these VGG16's second convolution alone goes in strips.
HELD, STRIP, READ_AGAIN = 2**23, 2**21, 2**20


def transformed(kernel: Float[jax.Array, "k l c d"], tile: Sides) -> Float[jax.Array, "a b c d"]:
    """A kernel as Winograd's algorithm takes it for tiles of these sides."""
    return _sandwiched([each.of_kernel for each in _both(tile, kernel.shape)], kernel)


def folded(kernel: Float[np.ndarray, "k l c d"], tile: Sides) -> Float[np.ndarray, "a b c d"]:
    """The same outside of programs: nothing is compiled, and only the result is rounded."""
    of_rows, of_columns = (each.of_kernel for each in _both(tile, kernel.shape))
    return np.einsum("ak,bl,klcd->abcd", of_rows, of_columns, kernel, optimize=True).astype(kernel.dtype)


class _Matrices(NamedTuple):
    """What transforms inputs [a a], kernels [a r] and products [m a] along one axis."""

    of_input: np.ndarray
    of_kernel: np.ndarray
    of_output: np.ndarray


@functools.cache
def _matrices(tile: int, side: int) -> _Matrices:
    """For m outputs of a convolution with r places."""
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
    return _Matrices(of_input, of_kernel, of_output)


def _both(tile: Sides, size: Sequence[int]) -> tuple[_Matrices, _Matrices]:
    """Along the height and along the width."""
    return _matrices(tile[0], size[0]), _matrices(tile[1], size[1])


def _winograd(x: jax.Array, kernel: jax.Array, size: Sides, margins: Sides) -> jax.Array:
    """The convolution with a transformed kernel, which had this size, of an input with so many zeros about it.

    Transformed, a large image is more than the processor's cache holds. Then it goes strip by strip, each a few rows of
    tiles, where the kernel that each strip reads again is small.
    """
    tile = _tile(kernel, size)
    lengths = [length + 2 * margin - side + 1 for length, margin, side in zip(x.shape[1:3], margins, size)]
    count = [-(-length // each) for length, each in zip(lengths, tile)]
    x = _filled(x, tile, size, margins)
    of_row = count[1] * kernel[..., 0].size * x.dtype.itemsize  # bytes of a transformed row of tiles
    rows = count[0]
    if of_row * rows > HELD and kernel.size * x.dtype.itemsize <= READ_AGAIN:
        rows = max(n for n in range(1, rows + 1) if rows % n == 0 and n * of_row <= max(of_row, STRIP))
    if rows == count[0]:
        outputs = _of_tiles(x, kernel, size)
    else:
        strips = count[0] // rows

        def of_strip(index: jax.Array) -> jax.Array:
            at = (index // strips, index % strips * (rows * tile[0]), 0, 0)
            return _of_tiles(lax.dynamic_slice(x, at, (1, rows * tile[0] + size[0] - 1, *x.shape[2:])), kernel, size)

        outputs = lax.map(of_strip, jnp.arange(len(x) * strips))
        outputs = outputs.reshape(len(x), count[0] * tile[0], count[1] * tile[1], -1)
    return outputs[:, : lengths[0], : lengths[1]]


def _of_tiles(x: jax.Array, kernel: jax.Array, size: Sides) -> jax.Array:
    """The convolution without margin of an input that whole tiles fill."""
    tile = _tile(kernel, size)
    of_rows, of_columns = _both(tile, size)
    count = [(length - side + 1) // each for length, side, each in zip(x.shape[1:3], size, tile)]
    tiles = _tiled((of_rows.of_input, of_columns.of_input), x, tile)
    products = lax.dot_general(tiles, kernel, (((3,), (2,)), ((0, 1), (0, 1))))
    products = lax.optimization_barrier(products).reshape(*kernel.shape[:2], len(x), *count, -1)  # [a b n i j d]
    rows = lax.optimization_barrier(_combined(of_rows.of_output, products))
    outputs = [jnp.stack(_combined(of_columns.of_output, row), axis=3) for row in rows]
    outputs = jnp.stack(outputs, axis=2)  # [n i m j m d]
    return outputs.reshape(len(x), count[0] * tile[0], count[1] * tile[1], -1)


def _tile(kernel: jax.Array, size: Sides) -> Sides:
    """The sides of the output tiles for which a kernel of this size is transformed."""
    rows, columns = (inputs - side + 1 for inputs, side in zip(kernel.shape, size))
    return rows, columns


def _filled(x: jax.Array, tile: Sides, size: Sides, margins: Sides) -> jax.Array:
    """With the zeros of the margins, and as many more as whole tiles of output need."""
    for axis, each, side, margin in zip((1, 2), tile, size, margins):
        outputs = x.shape[axis] + 2 * margin - side + 1
        x = padded(x, axis, margin, margin + -outputs % each)
    return x


def _tiled(matrices: Sequence[np.ndarray], x: jax.Array, tile: Sides) -> jax.Array:
    """Tiles of x, one every so many pixels, multiplied with a matrix from each side: [a b t c]."""
    of_rows, of_columns = matrices  # without the barriers XLA would compute each row again for each column
    rows = lax.optimization_barrier(_combined(of_rows, shifted(x, 1, of_rows.shape[1], tile[0])))
    tiles = [_combined(of_columns, shifted(row, 2, of_columns.shape[1], tile[1])) for row in rows]
    tiles = jnp.stack([jnp.stack([each.reshape(-1, x.shape[-1]) for each in row]) for row in tiles])
    return lax.optimization_barrier(tiles)


def _sandwiched(matrices: Sequence[np.ndarray], x: jax.Array) -> jax.Array:
    """The first matrix times x times the second one transposed, over the first two axes."""
    of_rows, of_columns = matrices
    return jnp.stack([jnp.stack(_combined(of_columns, row)) for row in _combined(of_rows, x)])


def _combined(matrix: np.ndarray, parts: Sequence[jax.Array] | jax.Array) -> tuple[jax.Array, ...]:
    """The matrix times a vector of arrays, as sums: a product of so small matrices would be slower."""
    return tuple(
        functools.reduce(jnp.add, [_times(factor, part) for factor, part in zip(row, parts) if factor])
        for row in matrix
    )


def _times(factor: float, x: jax.Array) -> jax.Array:
    return x if factor == 1 else -x if factor == -1 else x * jnp.asarray(factor, x.dtype)


def shifted(x: jax.Array, axis: int, window: int, stride: int) -> list[jax.Array]:
    """Along an axis, every window's first pixel, every window's second, ..."""
    reach = (x.shape[axis] - window) // stride * stride
    return [lax.slice_in_dim(x, start, start + reach + 1, stride, axis) for start in range(window)]


def padded(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (before, after, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _size(kernel: jax.Array) -> Sides:
    rows, columns = kernel.shape[:2]
    return rows, columns


def margins_of(size: Sequence[int], padding: str) -> Sides:
    rows, columns = (side // 2 if padding == "SAME" else 0 for side in size[:2])
    return rows, columns


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def inferred(x: jax.Array, kernel: jax.Array, kept: jax.Array, padding: str) -> jax.Array:
    """By the kept, transformed kernel where nothing is differentiated, and else by the kernel itself."""
    return _winograd(x, kept, _size(kernel), margins_of(kernel.shape, padding))


def _differentiated(x: jax.Array, kernel: jax.Array, kept: jax.Array, padding: str) -> tuple[jax.Array, tuple]:
    return inferred(x, kernel, transformed(kernel, TILES[_size(kernel)]), padding), (x, kernel, kept)


def _gradients(padding: str, given: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, kernel, kept = given
    size, margins = _size(kernel), margins_of(kernel.shape, padding)
    tile = TILES[size]
    of_rows, of_columns = _both(tile, size)
    tiles = _tiled((of_rows.of_input, of_columns.of_input), _filled(x, tile, size, margins), tile)  # [a b t c]
    outputs = _filled(gradient, tile, (1, 1), (0, 0))
    spread = _tiled((of_rows.of_output.T, of_columns.of_output.T), outputs, tile)  # [a b t d]
    products = lax.dot_general(tiles, spread, (((2,), (2,)), ((0, 1), (0, 1))))  # [a b c d]
    of_kernel = _sandwiched((of_rows.of_kernel.T, of_columns.of_kernel.T), products)
    turned = transformed(kernel[::-1, ::-1].swapaxes(2, 3), tile)
    around = size[0] - 1 - margins[0], size[1] - 1 - margins[1]
    return _winograd(gradient, turned, size, around), of_kernel, jnp.zeros_like(kept)


inferred.defvjp(_differentiated, _gradients)
