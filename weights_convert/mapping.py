"""What a mapping says of a network's files in another framework: of each array where it goes and how it lies there."""

from collections.abc import Callable
from dataclasses import dataclass, field
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


AS_IS = Layout(lambda shape: shape, lambda array: array)
CONV_OIHW = Layout(lambda s: (s[3], s[2], s[0], s[1]), lambda array: array.transpose(2, 3, 1, 0))
DENSE_OUT_IN = Layout(lambda s: (s[1], s[0]), lambda array: array.T)
DENSE_OUT_IN_1_1 = Layout(lambda s: (s[1], s[0], 1, 1), lambda array: array[:, :, 0, 0].T)

# What `keras.applications` and torchvision feed their networks with: see `Convention.expected_input`.
CAFFE = {"channels": "BGR", "range": [0, 255], "mean": [103.939, 116.779, 123.68], "std": None}
MINUS_ONE_TO_ONE = {"channels": "RGB", "range": [-1, 1], "mean": None, "std": None}
IMAGENET = {"channels": "RGB", "range": [0, 1], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

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


@dataclass(frozen=True)
class KerasModel:
    """Where Keras' own network is, for a comparison with it and for files that it loads.

    Attributes:
        application: the function of `keras.applications` that builds it, or one of the same arguments elsewhere,
            "module:function".
        layers: block -> the layer whose output is the block's; "max_pooling2d#1" is the second that Keras numbered.
            "pooled" is the mean of the block before it and needs none.
        order: the layers that have arrays, as `model.layers` has them; where none is given, as in the table.
        described: what Keras' configuration says of these layers, which files are held against (`keras_graph`), and of
            "output", what the last block gives, and "head", what a head takes; by default nothing.
    """

    application: str
    layers: dict[str, str]
    order: tuple[str, ...] = ()
    described: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    """What a network's files of a framework hold.

    Attributes:
        tables: where their arrays go, a table for each way in which they are named.
        convention: what the framework's network differs in.
        model: the network itself, of Keras.
    """

    tables: tuple[Table, ...]
    convention: Convention
    model: KerasModel | None = None
