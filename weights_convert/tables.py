"""What a mapping table says of an array: where it goes, and how it lies in the file."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Destination = tuple[str, ...]  # collection, block, ..., leaf


@dataclass(frozen=True)
class Layout:
    """How a framework lays out an array.

    Attributes:
        stored: the shape in the file of an array that has this shape here.
        read: the array here from the array in the file.
    """

    stored: Callable[[Shape], Shape]
    read: Callable[[np.ndarray], np.ndarray]


VGG16_FEATURES = 512  # of its last convolution: what its first dense layer flattens


def _side(inputs: int) -> int:
    return math.isqrt(inputs // VGG16_FEATURES)


def _from_chw(array: np.ndarray) -> np.ndarray:
    """A dense kernel (out, in) whose inputs were flattened as C, H, W to one (in, out) with H, W, C."""
    outputs, side = len(array), _side(array[0].size)
    return array.reshape(outputs, -1, side, side).transpose(2, 3, 1, 0).reshape(-1, outputs)


AS_IS = Layout(lambda shape: shape, lambda array: array)
CONV_OIHW = Layout(lambda s: (s[3], s[2], s[0], s[1]), lambda array: array.transpose(2, 3, 1, 0))
DENSE_OUT_IN = Layout(lambda s: (s[1], s[0]), lambda array: array.T)
DENSE_OUT_IN_1_1 = Layout(lambda s: (s[1], s[0], 1, 1), lambda array: array[:, :, 0, 0].T)
DENSE_OUT_CHW = Layout(lambda s: (s[1], s[0]), _from_chw)
DENSE_OUT_C_H_W = Layout(lambda s: (s[1], VGG16_FEATURES, _side(s[0]), _side(s[0])), _from_chw)

Table = dict[str, tuple[Destination, Layout]]  # name in the file -> where it goes, how it lies there


@dataclass(frozen=True)
class Convention:
    """What a framework's network differs in from any other's of that name.

    Attributes:
        options: the backbone's options that it needs.
        expected_input: what its published weights were trained on: channels "RGB" or "BGR", 8-bit values mapped onto
            `range`, then `mean` taken off and divided by `std`, per channel, where there are such.
        batch_norm_epsilon: of its batch normalisation, if it has any.
    """

    options: dict[str, Any]
    expected_input: dict[str, Any]
    batch_norm_epsilon: float | None
