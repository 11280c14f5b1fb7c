"""From resized patches to what a network takes: three channels, in [0, 1]."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kimiajax.shapes import Float, Shaped, UInt8


def gray_to_unit_rgb(gray: Shaped[Any, "b h w"]) -> Float[Any, "b h w 3"]:
    """Gray 0..255 to three equal channels in [0, 1], the paper's input to both networks.

    Takes NumPy and jax arrays. The paper scales before it resizes and this project after, on 8 bits: at most half a
    gray level apart.
    """
    return (gray.astype(np.float32) / np.float32(255))[..., None].repeat(3, axis=-1)


def network_input(inputs: Shaped[Any, "b ..."]) -> Float[Any, "b ..."]:
    """Gray uint8 patches [b h w] become three channels in [0, 1]; images and activations, as floats, stay."""
    return gray_to_unit_rgb(inputs) if inputs.dtype == np.uint8 else inputs


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
