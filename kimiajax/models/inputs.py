"""From resized patches to what a network takes: three channels, in [0, 1]."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax.errors import ScopeParamShapeError

from kimiajax.checks import array_of, check_finite, refuse_where
from kimiajax.errors import UserError
from kimiajax.shapes import Float, Shaped, UInt8
from kimiajax.text import first_line

SLACK = 1e-3  # beyond [0, 1], for images that were resized as floats


def gray_to_unit_rgb(gray: Shaped[Any, "b h w"]) -> Float[Any, "b h w 3"]:
    """Gray 0..255 to three equal channels in [0, 1], the paper's input to both networks.

    Takes NumPy and jax arrays. The paper scales before it resizes and this project after, on 8 bits: at most half a
    gray level apart.
    """
    return (gray.astype(np.float32) / np.float32(255))[..., None].repeat(3, axis=-1)


def network_input(inputs: Shaped[Any, "b ..."]) -> Float[Any, "b ..."]:
    """Gray uint8 patches [b h w] become three channels in [0, 1]; images and activations, as floats, stay."""
    return gray_to_unit_rgb(inputs) if inputs.dtype == np.uint8 else inputs


def images_of(name: str, given: Any, square: bool = True, floats: bool = True) -> Any:
    """Returns images as `network_input` takes them: gray, uint8 [n h w]; or floats [n h w 3] in [0, 1].

    Args:
        name: of the argument.
        given: the images.
        square: whether they must be as wide as they are high.
        floats: whether the latter are taken.

    Raises:
        UserError: another type or shape, or values that are not finite or not in [0, 1].
    """
    images = array_of(name, given)
    wanted = "give uint8 [n s s]" + (" or floats [n s s 3] in [0, 1], channels last" if floats else ", gray values")
    gray = images.dtype == np.uint8
    if not gray and images.dtype.kind in "iub":
        raise UserError(f"{name} of type {images.dtype}: {wanted}")
    fits = images.ndim == 3 if gray else floats and images.ndim == 4 and images.shape[-1] == 3
    if not fits or 0 in images.shape[1:] or (square and images.shape[1] != images.shape[2]):
        raise UserError(f"{name} of shape {images.shape} and type {images.dtype}: {wanted}")
    if not gray:
        why = "is not in [0, 1]; divide 8-bit values by 255, or give gray patches as uint8"
        refuse_where(name, images, lambda part: ~((part >= -SLACK) & (part <= 1 + SLACK)), why)
    return images


def inputs_of(name: str, given: Any, images: bool, finite: bool = True) -> Any:
    """Returns what a classifier takes: `images_of`, where it begins with the network's first block, or activations.

    Args:
        name, given: as of `images_of`.
        images: whether the first block is.
        finite: whether activations must be.

    Raises:
        UserError: as `images_of`; there are none; or activations that are no floats, or not finite.
    """
    inputs = images_of(name, given, square=False) if images else array_of(name, given)
    if not images and (inputs.dtype.kind in "iub" or inputs.ndim < 2 or 0 in inputs.shape[1:]):
        raise UserError(
            f"{name} of shape {inputs.shape} and type {inputs.dtype}: give floats [n ...], as a block has them"
        )
    if not len(inputs):
        raise UserError(f"{name}: there are none; give one at least")
    if finite:
        check_finite(name, inputs)
    return inputs


def block_input(x: Any, block: str, taken: tuple[int, ...], before: str | None) -> Any:
    """Returns the input of a block as an array.

    Args:
        x: the input.
        block: how a message calls the block.
        taken: the shape that it takes for one image; the least height and width of images, and any of activations.
        before: the block whose output that is; None for images.

    Raises:
        UserError: no floats, another number of axes or of channels, images that are too small, or, where there are
            values yet, NaN or infinity.
    """
    x = array_of("input", x)
    if x.dtype.kind in "iub" or x.ndim != len(taken) + 1 or x.shape[-1] != taken[-1] or 0 in x.shape:
        shape = f"[b {taken[-1]}]" if len(taken) == 1 else f"[b h w {taken[-1]}]"
        whence = "in [0, 1], channels last" if before is None else f"as {before} gives them"
        raise UserError(f"{block} takes floats {shape}, {whence}; the input is {x.dtype} of shape {x.shape}")
    if before is None and min(x.shape[1:3]) < taken[0]:
        raise UserError(f"{block} takes images from {taken[0]} x {taken[0]}; {min(x.shape[1:3])} is too small")
    check_finite("input", x)
    return x


@contextlib.contextmanager
def fitting(what: str) -> Iterator[None]:
    """Within, parameters that do not fit an input end in a UserError that says whose they are."""
    try:
        yield
    except ScopeParamShapeError as error:
        raise UserError(
            f"{what}: the input does not fit these variables ({first_line(error)}); use images of the size that "
            "they are for, and features of the block that they read"
        ) from error


def params_of(variables: Any) -> dict[str, Any]:
    """The parameters among some variables.

    Raises:
        UserError: there are none, or these are no variables.
    """
    if not isinstance(variables, Mapping) or not isinstance(variables.get("params"), Mapping):
        raise UserError(
            f"variables: a {type(variables).__name__}, which holds no params by block; give the `variables` of what "
            "`load_weights` or `fit` returns"
        )
    return variables["params"]


def native_input(rgb: UInt8[Any, "b h w 3"], expected: Mapping[str, Any]) -> Float[Any, "b h w 3"]:
    """8-bit RGB to the input that weights were trained on, as their lineage's `expected_input` describes it.

    Args:
        rgb: values 0..255.
        expected: `channels` ("RGB" or "BGR"), `range` that 0..255 is mapped onto, and `mean` and `std` per channel, in
            the channels' order and the range's units, or None.
    """
    low, high = expected["range"]
    x = rgb.astype(np.float32) * np.float32((high - low) / 255) + np.float32(low)
    x = x[..., ::-1] if expected["channels"] == "BGR" else x
    x = x if expected["mean"] is None else x - np.array(expected["mean"], np.float32)
    return x if expected["std"] is None else x / np.array(expected["std"], np.float32)
