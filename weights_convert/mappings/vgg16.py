"""VGG16's arrays in Keras' files, and in torchvision's and timm's.

Its dense layers are `classifier.*` in torchvision, and convolutions `pre_logits.*` in timm, which compute the same at
the size that they were trained at.
"""

import itertools
import math

import numpy as np

from kimiajax.models import vgg16
from weights_convert import keras_graph
from weights_convert.keras_graph import Described
from weights_convert.keras_h5 import HEAD_TABLE, dense
from weights_convert.mapping import (
    CAFFE,
    CONV_OIHW,
    DENSE_OUT_IN,
    DENSE_OUT_IN_1_1,
    IMAGENET,
    Convention,
    Files,
    KerasModel,
    Layout,
    Table,
)
from weights_convert.safetensors import layer

FEATURES = 512  # of its last convolution: what its first dense layer flattens


def _side(inputs: int) -> int:
    return math.isqrt(inputs // FEATURES)


def _from_chw(array: np.ndarray) -> np.ndarray:
    """A dense kernel (out, in) whose inputs were flattened as C, H, W to one (in, out) with H, W, C."""
    outputs, side = len(array), _side(array[0].size)
    return array.reshape(outputs, -1, side, side).transpose(2, 3, 1, 0).reshape(-1, outputs)


DENSE_OUT_CHW = Layout(lambda s: (s[1], s[0]), _from_chw)
DENSE_OUT_C_H_W = Layout(lambda s: (s[1], FEATURES, _side(s[0]), _side(s[0])), _from_chw)

KERAS: Table = {
    **{
        name: entry
        for block, (_, count) in vgg16.CONVOLUTIONS.items()
        for n in range(1, count + 1)
        for name, entry in dense(f"{block}_conv{n}", block, f"conv{n}").items()
    },
    **dense("fc1", "fc1", "dense"),
    **dense("fc2", "fc2", "dense"),
    **dense("predictions", "predictions"),
    **HEAD_TABLE,
}


def _described() -> Described:
    described, x = {}, keras_graph.INPUT
    for block, (_, count) in vgg16.CONVOLUTIONS.items():
        for n in range(1, count + 1):
            described[f"{block}_conv{n}"] = keras_graph.convolution(), x
            x = keras_graph.relu(f"{block}_conv{n}")
        x = keras_graph.pool("max", 2, 2, "valid", x)
    described |= {"output": ("", x), "head": ("dense", keras_graph.flattened(x))}
    described["fc1"] = described["head"]
    described |= {after: ("dense", keras_graph.relu(fc)) for fc, after in (("fc1", "fc2"), ("fc2", "predictions"))}
    return described


LAYERS = {block: f"{block}_pool" for block in vgg16.CONVOLUTIONS} | {name: name for name in vgg16.BACKBONE.top}


def _convolutions() -> Table:
    """torch's `features.N`: convolution and ReLU count as one each, and so does the pool after a block."""
    table: Table = {}
    position = itertools.count()
    for block, (_, count) in vgg16.CONVOLUTIONS.items():
        for n in range(1, count + 1):
            table |= layer(f"features.{next(position)}", CONV_OIHW, block, f"conv{n}")
            next(position)  # ReLU
        next(position)  # pool
    return table


TORCHVISION = {
    **_convolutions(),
    **layer("classifier.0", DENSE_OUT_CHW, "fc1", "dense"),
    **layer("classifier.3", DENSE_OUT_IN, "fc2", "dense"),
    **layer("classifier.6", DENSE_OUT_IN, "predictions"),
}
FEATURES_ALONE = {name.removeprefix("features."): entry for name, entry in _convolutions().items()}
TIMM = {
    **_convolutions(),
    **layer("pre_logits.fc1", DENSE_OUT_C_H_W, "fc1", "dense"),
    **layer("pre_logits.fc2", DENSE_OUT_IN_1_1, "fc2", "dense"),
    **layer("head.fc", DENSE_OUT_IN, "predictions"),
}

FILES = {
    "keras": Files((KERAS,), Convention({}, CAFFE, None), KerasModel("VGG16", LAYERS, described=_described())),
    "torch": Files((TORCHVISION, TIMM, FEATURES_ALONE), Convention({}, IMAGENET, None)),
}
