"""torchvision's and timm's VGG16 and Inception-v3, as safetensors: mapping tables, and what the networks differ in.

Both give Inception-v3's arrays the same names; VGG16's dense layers are `classifier.*` in torchvision, and convolutions
`pre_logits.*` in timm, which compute the same at the size that they were trained at.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kimiajax.models import inception_v3, vgg16
from weights_convert.arrays import Stored, open_safetensors
from weights_convert.tables import (
    AS_IS,
    CONV_OIHW,
    DENSE_OUT_C_H_W,
    DENSE_OUT_CHW,
    DENSE_OUT_IN,
    DENSE_OUT_IN_1_1,
    Convention,
    Layout,
    Table,
)

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def _layer(name: str, layout: Layout, *path: str) -> Table:
    return {f"{name}.weight": (("params", *path, "kernel"), layout), f"{name}.bias": (("params", *path, "bias"), AS_IS)}


def _vgg16_convolutions() -> Table:
    """`features.N`: convolution and ReLU count as one each, and so does the pool after a block."""
    table: Table = {}
    position = itertools.count()
    for block, (_, count) in vgg16.CONVOLUTIONS.items():
        for n in range(1, count + 1):
            table |= _layer(f"features.{next(position)}", CONV_OIHW, block, f"conv{n}")
            next(position)  # ReLU
        next(position)  # pool
    return table


# The head is this project's own; so are its names.
HEAD_TABLE = {
    **_layer("head_hidden", DENSE_OUT_IN, "head", "hidden"),
    **_layer("head_logits", DENSE_OUT_IN, "head", "logits"),
}
TORCHVISION_VGG16 = {
    **_vgg16_convolutions(),
    **_layer("classifier.0", DENSE_OUT_CHW, "fc1", "dense"),
    **_layer("classifier.3", DENSE_OUT_IN, "fc2", "dense"),
    **_layer("classifier.6", DENSE_OUT_IN, "predictions"),
}
TIMM_VGG16 = {
    **_vgg16_convolutions(),
    **_layer("pre_logits.fc1", DENSE_OUT_C_H_W, "fc1", "dense"),
    **_layer("pre_logits.fc2", DENSE_OUT_IN_1_1, "fc2", "dense"),
    **_layer("head.fc", DENSE_OUT_IN, "predictions"),
}

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


INCEPTION_V3_TABLE: Table = {
    **{
        key: entry
        for name, (block, unit) in zip(CONVOLUTIONS, inception_v3.convolutions(), strict=True)
        for key, entry in _unit(name, block, unit).items()
    },
    **_layer("fc", DENSE_OUT_IN, "predictions"),
}

TABLES = {"vgg16": (TORCHVISION_VGG16, TIMM_VGG16), "inception_v3": (INCEPTION_V3_TABLE,)}

NORMALISED = {"channels": "RGB", "range": [0, 1], **IMAGENET}
CONVENTIONS = {
    "vgg16": Convention({}, NORMALISED, None),
    # torchvision's `transform_input` takes its usual normalisation to this range before the first convolution.
    "inception_v3": Convention(
        {"count_padding": True, "scale": True},
        {"channels": "RGB", "range": [-1, 1], "mean": None, "std": None},
        inception_v3.EPSILON,
    ),
}


def is_unused(name: str) -> bool:
    """Whether it is one of the arrays that have no place here: the auxiliary classifier, and a counter of batches."""
    return name.startswith("AuxLogits.") or name.endswith(".num_batches_tracked")


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[tuple[dict[str, Stored], str, dict[str, Any]]]:
    """The arrays of a file, the layout's name, and no attributes."""
    with open_safetensors(path) as arrays:
        yield arrays, "safetensors", {}
