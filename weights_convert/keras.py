"""Keras `.h5` files of VGG16 and Inception-v3, read as plain arrays: no model is ever deserialised.

Two layouts: the weight files published in 2017 (`block1_conv1/block1_conv1_W_1:0`, `conv2d_1/conv2d_1/kernel:0`) and
what `model.save("x.h5")` of today's Keras writes (the same under `/model_weights`, without `:0`).
"""

import datetime
import re
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from kimiajax import __version__
from kimiajax.checkpoints import digest
from kimiajax.errors import UserError
from kimiajax.files import open_hdf5, sha256_file
from kimiajax.models import inception_v3, vgg16
from kimiajax.models.backbone import BACKBONES, Variables
from kimiajax.models.weights import TOP_BLOCKS, Weights, published_lineage

Source = tuple[str, str]  # layer, weight
Destination = tuple[str, ...]  # collection, block, ..., leaf

WEIGHT = re.compile(r"(?:.*_)?(W|b|kernel|bias|beta|gamma|moving_mean|moving_variance)(?:_\d+)?(?::0)?")
NAMES_OF_2017 = {"W": "kernel", "b": "bias"}


def _dense(layer: str, *path: str) -> dict[Source, Destination]:
    return {(layer, leaf): ("params", *path, leaf) for leaf in ("kernel", "bias")}


VGG16_TABLE: dict[Source, Destination] = {
    **{
        key: value
        for block, (_, count) in vgg16.CONVOLUTIONS.items()
        for n in range(1, count + 1)
        for key, value in _dense(f"{block}_conv{n}", block, f"conv{n}").items()
    },
    **_dense("fc1", "fc1", "dense"),
    **_dense("fc2", "fc2", "dense"),
    **_dense("predictions", "predictions"),
}

# Keras numbers Inception-v3's layers as it creates them and goes on counting from network to network in one process:
# `conv2d`, `conv2d_1` or `conv2d_94` may be the first. What counts is the number's rank; below, layers have their rank.
INCEPTION_V3_TABLE: dict[Source, Destination] = {
    key: value
    for rank, (block, unit) in enumerate(inception_v3.convolutions())
    for key, value in {
        (f"conv2d#{rank}", "kernel"): ("params", block, unit, "conv", "kernel"),
        (f"batch_normalization#{rank}", "beta"): ("params", block, unit, "bn", "bias"),
        (f"batch_normalization#{rank}", "moving_mean"): ("batch_stats", block, unit, "bn", "mean"),
        (f"batch_normalization#{rank}", "moving_variance"): ("batch_stats", block, unit, "bn", "var"),
    }.items()
} | _dense("predictions", "predictions")

TABLES = {"vgg16": VGG16_TABLE, "inception_v3": INCEPTION_V3_TABLE}

# What `keras.applications` feeds each network with: the convention of a file in this layout.
EXPECTED_INPUT = {
    "vgg16": {"channels": "BGR", "range": [0, 255], "subtract": [103.939, 116.779, 123.68], "batch_norm_epsilon": None},
    "inception_v3": {"channels": "RGB", "range": [-1, 1], "subtract": None, "batch_norm_epsilon": inception_v3.EPSILON},
}


def convert_keras(network: str, path: Path) -> Weights:
    """Reads a Keras `.h5` file of a network.

    Args:
        network: "vgg16" or "inception_v3".
        path: a file in the published layout of 2017 or in that of today's `model.save("x.h5")`, with or without top.

    Raises:
        UserError: no such file, not such a file, another network's, or arrays missing, extra, misshapen or not finite;
            all of them are listed.
    """
    if network not in TABLES:
        raise UserError(f"no table for {network!r}; choose from {', '.join(TABLES)}")
    with open_hdf5(path, f"{network} weights") as file:
        variables, top = _convert(network, file, path)
    predictions = variables["params"].get("predictions", {}).get("kernel")
    lineage = {
        "network": network,
        "framework": "keras",
        "source": path.name,
        "source_sha256": sha256_file(path),
        "published": published_lineage(path),
        "top": top,
        "classes": None if predictions is None else predictions.shape[-1],
        "label_offset": 0,
        "expected_input": EXPECTED_INPUT[network],
        "converter": f"kimiajax {__version__}",
        "converted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "digest": digest(variables),
    }
    return Weights(variables, lineage)


def _convert(network: str, file: h5py.File, path: Path) -> tuple[Variables, bool]:
    """The variables of a file, and whether the top is among them."""
    source = _find(file, path)
    layers = list(dict.fromkeys(layer for layer, _ in source))
    source = _by_rank(source) if network == "inception_v3" else source
    found = [name for name, own in TABLES.items() if _layers(_by_rank(source)) & _layers(own) - {"predictions"}]
    if network not in found:
        seen = f"{found[0]} weights" if found else "weights of neither network"
        raise UserError(f"{path}: holds {seen} ({', '.join(layers[:3])}, ...); {network} ones are needed")
    top = any(destination[1] in TOP_BLOCKS and key in source for key, destination in TABLES[network].items())
    return _place(network, source, top, path), top


def _layers(arrays: Iterable[Source]) -> set[str]:
    return {layer for layer, _ in arrays}


def _find(file: h5py.File, path: Path) -> dict[Source, h5py.Dataset]:
    """All weights by layer and name, not yet read: the file may be another one, and large."""
    if "layers" in file:
        raise UserError(
            f"{path}: has the layout of `.weights.h5` or `.keras`; save it with `model.save('x.h5')` instead"
        )
    root = file.get("model_weights", file)
    if not isinstance(root, h5py.Group):
        raise UserError(f"{path}: /model_weights is no group; give a file that Keras saved")
    datasets: dict[Source, h5py.Dataset] = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        layer, leaf = name.split("/", 1)[0], name.rsplit("/", 1)[-1]
        match = WEIGHT.fullmatch(leaf)
        weight = NAMES_OF_2017.get(match[1], match[1]) if match else leaf
        if (layer, weight) in datasets:
            raise UserError(f"{path}: holds two arrays for {weight} of {layer}")
        datasets[layer, weight] = item

    root.visititems(visit)
    if not datasets:
        raise UserError(f"{path}: holds no weights; give a file that Keras saved")
    return datasets


def _by_rank(source: dict[Source, h5py.Dataset]) -> dict[Source, h5py.Dataset]:
    """Numbered layers renamed by the rank of their number: conv2d#0, conv2d#1, ..."""
    ranked = {}
    for kind in ("conv2d", "batch_normalization"):
        layers = {layer for layer, _ in source if re.fullmatch(rf"{kind}(_\d+)?", layer)}
        by_number = sorted(layers, key=lambda layer: int(re.search(r"\d+$", layer.removeprefix(kind) or "0")[0]))
        ranked |= {layer: f"{kind}#{rank}" for rank, layer in enumerate(by_number)}
    return {(ranked.get(layer, layer), weight): dataset for (layer, weight), dataset in source.items()}


def _place(network: str, source: dict[Source, h5py.Dataset], top: bool, path: Path) -> Variables:
    """Every array in its place, or one error that lists everything that is wrong."""
    table = {key: to for key, to in TABLES[network].items() if top or to[1] not in TOP_BLOCKS}
    shapes = _expected_shapes(network, source, top)
    faults = [f"missing: {'/'.join(key)}" for key in table if key not in source]
    faults += [f"extra: {'/'.join(key)} {source[key].shape}" for key in source if key not in table]
    variables: Variables = {}
    for key, to in table.items():
        if key not in source:
            continue
        dataset, expected = source[key], shapes
        for part in to:
            expected = expected[part]
        if dataset.shape != expected.shape:
            faults.append(f"shape: {'/'.join(key)} is {dataset.shape}, must be {expected.shape}")
            continue
        if dataset.dtype != np.float32:
            faults.append(f"type: {'/'.join(key)} is {dataset.dtype}, must be float32")
            continue
        try:
            array = dataset[...]
        except OSError as error:
            raise UserError(f"{path}: cannot read {dataset.name} ({error}); fetch the file again") from error
        if not np.isfinite(array).all():
            faults.append(f"values: {'/'.join(key)} holds NaN or infinity")
        node = variables
        for part in to[:-1]:
            node = node.setdefault(part, {})
        node[to[-1]] = array
    if faults:
        raise UserError(f"{path}: {len(faults)} arrays are not those of {network}:\n  " + "\n  ".join(faults))
    return variables


def _expected_shapes(network: str, source: dict[Source, h5py.Dataset], top: bool) -> Variables:
    """The network's shapes, at the image size and class count that the file's own dense layers speak of."""
    backbone = BACKBONES[network]
    if not top:
        return backbone.shapes(backbone.smallest, backbone.up_to(backbone.bottleneck))
    fc1, predictions = source.get(("fc1", "kernel")), source.get(("predictions", "kernel"))
    side = 224 if fc1 is None or fc1.ndim != 2 else max(1, round((fc1.shape[0] / 512) ** 0.5)) * 32
    classes = 1000 if predictions is None or predictions.ndim != 2 else predictions.shape[1]
    return backbone.shapes(max(side, backbone.smallest), num_classes=classes)
