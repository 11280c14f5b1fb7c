"""Random shear, zoom and mirroring of a batch on the device, as Keras' ImageDataGenerator does it image by image, and
more where more is asked for.

What this reproduces is `ImageDataGenerator(shear_range=0.2, zoom_range=0.2, horizontal_flip=True)`, which has come to
mean another thing since the paper's time: see `KERAS_2017` and `KERAS_TODAY`. The transform takes each pixel of the
result from a place in the image; places beyond its rim give the rim's nearest pixel.

A draw is a matrix of whole multiples of 2**-16, and places are computed from it in integers. So every device, and
scipy's `affine_transform` given the same matrix, look at the same places to the last bit, ties included.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from kimiajax.shapes import Bool, Float, Int, Shaped

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
        turn: the angle of a rotation after these is drawn from [-turn, turn], in radians.
        contrast: differences from an image's mean are multiplied by a factor from [1 - contrast, 1 + contrast].
        brightness: a share of white from [-brightness, brightness] is added to every pixel; 0 and 255 stay the bounds.
    """

    shear: float
    zoom: float
    mirror: bool
    order: Literal[0, 1]
    sheared: Literal["rows", "columns"]
    centre: Literal[1, -1]
    turn: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0


# Keras 2.0: shear in radians, nearest pixels, and a centre one pixel too far down and right.
KERAS_2017 = Augmentation(0.2, 0.2, True, 0, "rows", 1)

# Keras 3: the same line means 0.2 degrees, bilinear interpolation, axes exchanged, about the true centre.
KERAS_TODAY = Augmentation(0.2 * 3.141592653589793 / 180, 0.2, True, 1, "columns", -1)

# This project's own: tissue has no upright and no handedness, and scanners differ in exposure.
STRONG = Augmentation(0.3, 0.3, True, 1, "rows", -1, turn=math.pi, contrast=0.25, brightness=0.1)

AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "keras2017": KERAS_2017,
    "keras": KERAS_TODAY,
    "strong": STRONG,
}


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
        turn = None  # by a key that is none of the three: the first numbers folded in give these again
        if augmentation.turn:
            turn = jax.random.uniform(jax.random.fold_in(key, 3), minval=-augmentation.turn, maxval=augmentation.turn)
        return matrix_of(angle, first, second, augmentation.sheared, turn), mirrored

    return Draws(*jax.vmap(one)(keys))


def matrix_of(
    angle: jax.Array, first: jax.Array, second: jax.Array, sheared: str, turn: jax.Array | None = None
) -> Int[jax.Array, "2 2"]:
    """Shear times zoom, [[1, -sin a], [0, cos a]] diag(first, second), then a rotation, in multiples of 2**-16."""
    matrix = jnp.array([[first, -jnp.sin(angle) * second], [0, jnp.cos(angle) * second]])
    matrix = matrix if sheared == "rows" else matrix[::-1, ::-1]
    if turn is not None:
        matrix = jnp.array([[jnp.cos(turn), -jnp.sin(turn)], [jnp.sin(turn), jnp.cos(turn)]]) @ matrix
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
    """A random transform of each gray image, decided by its key alone; values stay in [0, 255]."""
    warped = warp(images, draw(augmentation, keys), order=augmentation.order, centre=augmentation.centre)
    return grade(augmentation, warped, keys) if augmentation.contrast or augmentation.brightness else warped


def grade(
    augmentation: Augmentation, images: Shaped[jax.Array, "b h w"], keys: Shaped[jax.Array, " b"]
) -> Float[jax.Array, "b h w"]:
    """Each gray image with a contrast and a brightness that its key decides, within [0, 255]."""

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        for_contrast, for_brightness = jax.random.split(jax.random.fold_in(key, 4))
        factor = 1 + augmentation.contrast * jax.random.uniform(for_contrast, minval=-1, maxval=1)
        added = 255 * augmentation.brightness * jax.random.uniform(for_brightness, minval=-1, maxval=1)
        image = image.astype(jnp.float32)
        return jnp.clip(image.mean() + factor * (image - image.mean()) + added, 0, 255)

    return jax.vmap(one)(images, keys)


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
