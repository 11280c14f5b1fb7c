"""Keras' own networks, with their parts by this project's names. Choose Keras' backend before."""

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import keras


def build(application: str, size: int, classes: int | None, epsilon: float | None = None) -> keras.Model:
    """A network of `keras.applications`, or of "module:function", random, for images of this size; with logits of so
    many classes, or no top; with another epsilon of batch normalisation, where one is given."""
    model = _builder(application)(
        weights=None,
        include_top=classes is not None,
        input_shape=(size, size, 3),
        **({} if classes is None else {"classes": classes, "classifier_activation": None}),
    )
    for layer in model.layers:
        if epsilon is not None and isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = epsilon
    return model


def preprocess_of(application: str) -> Callable[[Any], Any]:
    """What takes 8-bit values to the input that the network's published weights were trained on."""
    return sys.modules[_builder(application).__module__].preprocess_input


def _builder(application: str) -> Callable[..., keras.Model]:
    module, _, name = application.rpartition(":")
    return getattr(importlib.import_module(module) if module else keras.applications, name)


def block_layers(model: keras.Model, names: Mapping[str, str]) -> dict[str, keras.Layer]:
    """The layer whose output is a block's, by the block's name here, of the blocks that the model has.

    Args:
        names: block -> the layer's name, or its kind and rank, "max_pooling2d#1", where Keras only numbers it.
    """
    layers = {layer.name: layer for layer in model.layers}
    found = {}
    for block, name in names.items():
        kind, _, rank = name.partition("#")
        numbered = [layers[each] for each in layers if re.fullmatch(rf"{kind}(_\d+)?", each)]
        if rank:
            found[block] = numbered[int(rank)]
        elif name in layers:
            found[block] = layers[name]
    return found


def block_outputs(model: keras.Model, names: Mapping[str, str], pooled: str | None) -> dict[str, Any]:
    """The symbolic outputs of the model's blocks; "pooled" is the mean over space of the block that is named so."""
    outputs = {block: layer.output for block, layer in block_layers(model, names).items()}
    if pooled is not None:
        outputs["pooled"] = keras.layers.GlobalAveragePooling2D()(outputs[pooled])
    return outputs


def head_input(outputs: Mapping[str, Any], bottleneck: str) -> Any:
    """What a head gets, of the outputs of `block_outputs`: the bottleneck, flattened."""
    value = outputs[bottleneck]
    return value if len(value.shape) == 2 else keras.layers.Flatten()(value)


def name_of(variable: keras.Variable) -> str:
    """As the converter names arrays: layers that Keras only numbers by their rank."""
    layer, leaf = variable.path.rsplit("/", 1)
    kind, _, number = layer.rpartition("_") if layer.rpartition("_")[2].isdigit() else (layer, "", "0")
    return f"{kind}#{number}/{leaf}" if kind in ("conv2d", "batch_normalization") else variable.path


def train_after(model: keras.Model, boundary: keras.Layer) -> None:
    """Makes trainable what lies after a layer, in Keras' order of depth, which has all of a block before the next."""
    train = False
    for layer in model.layers:
        layer.trainable = train
        train = train or layer is boundary
