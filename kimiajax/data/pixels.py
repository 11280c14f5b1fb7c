"""From a patch's gray values to what a network takes: resized, three channels, [0, 1]."""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kimiajax.shapes import Float, UInt8

FILTERS = ("nearest", "bilinear", "box")  # nearest is what Keras 2.0's image loader did


def resize(patch: UInt8[np.ndarray, "h w"], size: int, filter: str) -> UInt8[np.ndarray, "s s"]:
    """Resizes gray values to `size` x `size` with one of `FILTERS`, as Pillow defines them."""
    from PIL import Image  # an image library is needed here only, and a GPU image may hold none

    if patch.shape == (size, size):
        return patch
    return np.asarray(Image.fromarray(patch).resize((size, size), Image.Resampling[filter.upper()]))


def resize_all(
    patches: Iterable[UInt8[np.ndarray, "h w"]], count: int, size: int, filter: str
) -> UInt8[np.ndarray, "n s s"]:
    """Resizes `count` patches as they come, on every core, holding a few full-size patches at a time."""
    resized = np.empty((count, size, size), np.uint8)
    workers = os.cpu_count() or 1

    def store(index: int, patch: np.ndarray) -> None:
        resized[index] = resize(patch, size, filter)

    with ThreadPoolExecutor(workers) as pool:
        pending = []
        for index, patch in enumerate(patches):
            pending.append(pool.submit(store, index, patch))
            if len(pending) > 2 * workers:
                pending.pop(0).result()
        for task in pending:
            task.result()
    return resized


def gray_to_unit_rgb(gray: UInt8[object, "b h w"]) -> Float[object, "b h w 3"]:
    """Gray 0..255 to three equal channels in [0, 1], the paper's input to both networks.

    Takes NumPy and jax arrays. The paper scales before it resizes and this project after, on 8 bits: at most half a
    gray level apart.
    """
    return (gray.astype(np.float32) / np.float32(255))[..., None].repeat(3, axis=-1)


def native_input(rgb: UInt8[object, "b h w 3"], expected: Mapping[str, Any]) -> Float[object, "b h w 3"]:
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
