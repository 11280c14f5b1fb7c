"""Inception-v3's arrays in Keras' files, and in torchvision's and timm's, which give them the same names."""

import functools
import itertools

from kimiajax.models import inception_v3
from kimiajax.models.inception_v3 import Conv, Fork
from weights_convert import keras_graph
from weights_convert.keras_graph import Described
from weights_convert.keras_h5 import HEAD_TABLE, batch_norm, dense
from weights_convert.mapping import (
    AS_IS,
    CONV_OIHW,
    DENSE_OUT_IN,
    MINUS_ONE_TO_ONE,
    Convention,
    Files,
    KerasModel,
    Table,
)
from weights_convert.safetensors import layer

KERAS: Table = {  # by rank, in Keras' order of creation
    **{
        name: entry
        for rank, (block, unit) in enumerate(inception_v3.convolutions())
        for name, entry in {
            f"conv2d#{rank}/kernel": (("params", block, unit, "conv", "kernel"), AS_IS),
            **batch_norm(f"batch_normalization#{rank}", block, unit, "bn"),
        }.items()
    },
    **dense("predictions", "predictions"),
    **HEAD_TABLE,
}


def _described() -> Described:
    described, rank = {}, itertools.count()

    def run(layer: object, x: str) -> str:
        if layer is inception_v3.MAX:
            return keras_graph.pool("max", 3, 2, "valid", x)
        if layer is inception_v3.AVERAGE:
            return keras_graph.pool("average", 3, 1, "same", x)
        if isinstance(layer, Fork):
            return keras_graph.concatenated(run(layer.left, x), run(layer.right, x))
        assert isinstance(layer, Conv)
        number = next(rank)
        padding = "none" if (layer.height, layer.width) == (1, 1) else layer.padding.lower()
        described[f"conv2d#{number}"] = keras_graph.convolution(layer.stride, padding), x
        described[f"batch_normalization#{number}"] = "batch normalisation", f"conv2d#{number}"
        return keras_graph.relu(f"batch_normalization#{number}")

    x = keras_graph.INPUT
    for branches in inception_v3.MIXED.values():
        ends = [functools.reduce(lambda y, layer: run(layer, y), branch, x) for branch in branches]
        x = keras_graph.concatenated(*ends) if len(ends) > 1 else ends[0]
    head = "dense", keras_graph.mean(x)
    return described | {"output": ("", x), "head": head, "predictions": head}


SCALED = KERAS | {  # Keras 1 gave every batch normalisation a scale
    f"batch_normalization#{rank}/gamma": (("params", block, unit, "bn", "scale"), AS_IS)
    for rank, (block, unit) in enumerate(inception_v3.convolutions())
}
LAYERS = {"stem": "max_pooling2d#1"} | {name: name for name in inception_v3.BLOCKS if name not in ("stem", "pooled")}


def _order() -> tuple[str, ...]:
    """Keras sorts layers by their distance from the output, and those of one distance as they were created."""
    distances = {}
    for rank, distance in enumerate(_distances()):
        distances |= {f"conv2d#{rank}": distance, f"batch_normalization#{rank}": distance - 1}
    return (*sorted(distances, key=lambda name: -distances[name]), "predictions")


def _distances() -> list[int]:
    """Layers from each of Inception-v3's convolutions to the last block's output, by rank.

    Keras counts convolution, batch normalisation, ReLU, pool and concatenation as a layer each.
    """
    distances, after = [], 0
    for branches in reversed(inception_v3.MIXED.values()):
        after += len(branches) > 1  # the block's concatenation
        ranked, depths = [], []
        for branch in branches:
            steps = [3 if isinstance(step, Conv) else 4 if isinstance(step, Fork) else 1 for step in branch]
            for place, step in enumerate(branch):
                left = after + sum(steps[place:])
                ranked += [left] if isinstance(step, Conv) else [left, left] if isinstance(step, Fork) else []
            depths.append(after + sum(steps))
        distances = ranked + distances
        after = max(depths)
    return distances


STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
MIXED_35 = (
    *("branch1x1", "branch5x5_1", "branch5x5_2"),
    *("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", "branch_pool"),
)
MIXED_17 = (
    *("branch1x1", "branch7x7_1", "branch7x7_2", "branch7x7_3"),
    *("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5", "branch_pool"),
)
MIXED_8 = (
    *("branch1x1", "branch3x3_1", "branch3x3_2a", "branch3x3_2b"),
    *("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a", "branch3x3dbl_3b", "branch_pool"),
)
MIXED = {  # block there -> its convolutions, in the order of `inception_v3.MIXED`
    "Mixed_5b": MIXED_35,
    "Mixed_5c": MIXED_35,
    "Mixed_5d": MIXED_35,
    "Mixed_6a": ("branch3x3", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
    "Mixed_6b": MIXED_17,
    "Mixed_6c": MIXED_17,
    "Mixed_6d": MIXED_17,
    "Mixed_6e": MIXED_17,
    "Mixed_7a": (*("branch3x3_1", "branch3x3_2", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"),),
    "Mixed_7b": MIXED_8,
    "Mixed_7c": MIXED_8,
}
CONVOLUTIONS = (*STEM, *(f"{block}.{name}" for block, names in MIXED.items() for name in names))


def _unit(name: str, block: str, unit: str) -> Table:
    return {
        f"{name}.conv.weight": (("params", block, unit, "conv", "kernel"), CONV_OIHW),
        f"{name}.bn.weight": (("params", block, unit, "bn", "scale"), AS_IS),
        f"{name}.bn.bias": (("params", block, unit, "bn", "bias"), AS_IS),
        f"{name}.bn.running_mean": (("batch_stats", block, unit, "bn", "mean"), AS_IS),
        f"{name}.bn.running_var": (("batch_stats", block, unit, "bn", "var"), AS_IS),
    }


TORCH: Table = {
    **{
        key: entry
        for name, (block, unit) in zip(CONVOLUTIONS, inception_v3.convolutions(), strict=True)
        for key, entry in _unit(name, block, unit).items()
    },
    **layer("fc", DENSE_OUT_IN, "predictions"),
}

MODEL = KerasModel("InceptionV3", LAYERS, _order(), _described())
FILES = {
    "keras": Files(
        (KERAS, SCALED),
        Convention({}, MINUS_ONE_TO_ONE, inception_v3.EPSILON),
        MODEL,
    ),
    # torchvision's `transform_input` takes its usual normalisation to this range before the first convolution.
    "torch": Files(
        (TORCH,), Convention({"count_padding": True, "scale": True}, MINUS_ONE_TO_ONE, inception_v3.EPSILON)
    ),
}
