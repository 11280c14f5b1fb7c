"""Random shear, zoom and mirroring of a batch on the device, as Keras' ImageDataGenerator does it image by image.

What this reproduces is `ImageDataGenerator(shear_range=0.2, zoom_range=0.2, horizontal_flip=True)`, which has come to
mean another thing since the paper's time: see `KERAS_2017` and `KERAS_TODAY`. The transform takes each pixel of the
result from a place in the image; places beyond its rim give the rim's nearest pixel.

A draw is a matrix of whole multiples of 2**-16, and places are computed from it in integers. So every device, and
scipy's `affine_transform` given the same matrix, look at the same places to the last bit, ties included.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from kimiajax.shapes import Bool, Int, Shaped

BITS = 16  # after the binary point; images up to 8,000 pixels wide stay within 32-bit integers


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each image, and how pixels are taken.

    Attributes:
        shear: the angle is drawn from [-shear, shear], in radians.
        zoom: both axes' factors are drawn, apart, from [1 - zoom, 1 + zoom]; a factor over 1 shows more of the image.
        mirror: whether half of the images are mirrored, left and right exchanged.
        order: of interpolation; 0 takes the nearest pixel, 1 is bilinear.
        sheared: the axis that the matrix's first row moves along.
        centre: what is added to half the side for the fixed point of the transform, in half pixels: 1 or -1.
    """

    shear: float
    zoom: float
    mirror: bool
    order: Literal[0, 1]
    sheared: Literal["rows", "columns"]
    centre: Literal[1, -1]


# Keras 2.0: shear in radians, nearest pixels, and a centre one pixel too far down and right.
KERAS_2017 = Augmentation(0.2, 0.2, True, 0, "rows", 1)

# Keras 3: the same line means 0.2 degrees, bilinear interpolation, axes exchanged, about the true centre.
KERAS_TODAY = Augmentation(0.2 * 3.141592653589793 / 180, 0.2, True, 1, "columns", -1)

AUGMENTATIONS: dict[str, Augmentation | None] = {"none": None, "keras2017": KERAS_2017, "keras": KERAS_TODAY}


class Draws(NamedTuple):
    """One transform for each image: where a pixel of the result comes from, relative to the centre, in 2**-16, row and
    column; and whether the result is mirrored after that."""

    matrices: Int[jax.Array, "b 2 2"]
    mirrored: Bool[jax.Array, " b"]


def draw(augmentation: Augmentation, keys: Shaped[jax.Array, " b"]) -> Draws:
    """One transform for each key, which nothing else decides."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        for_shear, for_zoom, for_mirror = jax.random.split(key, 3)
        angle = jax.random.uniform(for_shear, minval=-augmentation.shear, maxval=augmentation.shear)
        first, second = jax.random.uniform(for_zoom, (2,), minval=1 - augmentation.zoom, maxval=1 + augmentation.zoom)
        mirrored = jax.random.bernoulli(for_mirror) & augmentation.mirror
        return matrix_of(angle, first, second, augmentation.sheared), mirrored

    return Draws(*jax.vmap(one)(keys))


def matrix_of(angle: jax.Array, first: jax.Array, second: jax.Array, sheared: str) -> Int[jax.Array, "2 2"]:
    """Shear times zoom, [[1, -sin a], [0, cos a]] diag(first, second), in multiples of 2**-16."""
    matrix = jnp.array([[first, -jnp.sin(angle) * second], [0, jnp.cos(angle) * second]])
    matrix = matrix if sheared == "rows" else matrix[::-1, ::-1]
    return jnp.round(matrix * 2**BITS).astype(jnp.int32)


def warp(images: Shaped[jax.Array, "b h w"], draws: Draws, *, order: int, centre: int) -> Shaped[jax.Array, "b h w"]:
    """Each image under its transform: of the images' type for order 0, float32 for order 1; same size.

    Args:
        images: gray values; up to 8,000 pixels a side.
        draws: as `draw` gives them.
        order: of interpolation, 0 or 1.
        centre: as in `Augmentation`.
    """
    _, height, width = images.shape
    assert max(height, width) <= 8000, "places would pass 32 bits"

    def one(image: jax.Array, matrix: jax.Array, mirrored: jax.Array) -> jax.Array:
        # All in half pixels, in which the centre is a whole number.
        rows = 2 * jnp.arange(height, dtype=jnp.int32)[:, None] - (height + centre)
        columns = jnp.arange(width, dtype=jnp.int32)
        columns = 2 * jnp.where(mirrored, width - 1 - columns, columns)[None, :] - (width + centre)
        places = [
            jnp.clip(m[0] * rows + m[1] * columns + ((side + centre) << BITS), 0, (2 * side - 2) << BITS)
            for m, side in zip(matrix, (height, width))
        ]
        return _nearest(image, *places) if order == 0 else _bilinear(image, *places)

    return jax.vmap(one)(images, *draws)


def augment(
    augmentation: Augmentation, images: Shaped[jax.Array, "b h w"], keys: Shaped[jax.Array, " b"]
) -> Shaped[jax.Array, "b h w"]:
    """A random transform of each gray image, decided by its key alone; values stay within the image's own."""
    return warp(images, draw(augmentation, keys), order=augmentation.order, centre=augmentation.centre)


ONE = 1 << (BITS + 1)  # a pixel, in the unit of places


def _nearest(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """Pixels nearest to places; a half goes up."""
    return _take(image, (row + ONE // 2) // ONE, (column + ONE // 2) // ONE)


def _bilinear(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    top, left = row // ONE, column // ONE
    down, right = (jnp.float32(1 / ONE) * (place % ONE).astype(jnp.float32) for place in (row, column))
    bottom, beside = (jnp.minimum(at + 1, side - 1) for at, side in zip((top, left), image.shape))
    image = image.astype(jnp.float32)
    upper = (1 - right) * _take(image, top, left) + right * _take(image, top, beside)
    lower = (1 - right) * _take(image, bottom, left) + right * _take(image, bottom, beside)
    return (1 - down) * upper + down * lower


def _take(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    return image.reshape(-1)[row * image.shape[1] + column]
