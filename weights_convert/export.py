"""A checkpoint as an HDF5 file that Keras' `load_weights` takes: the way back."""

import json
from pathlib import Path

import h5py
import numpy as np

from kimiajax.errors import UserError
from kimiajax.files import new_file
from kimiajax.models import inception_v3
from kimiajax.models.backbone import Variables
from kimiajax.models.inception_v3 import Conv, Fork
from kimiajax.models.weights import load_converted
from weights_convert import keras


def export(checkpoint: Path, path: Path) -> str:
    """Writes a checkpoint's arrays in Keras' layout, layer by layer in the order of Keras' `model.layers`.

    `model.load_weights(path)` takes it for `keras.applications.VGG16` or `InceptionV3`, with top as the checkpoint has
    it; a fine-tuned network's two dense layers follow as `head_hidden` and `head_logits`.

    Args:
        checkpoint: a converted checkpoint, or a fine-tuned network's.
        path: the file to write; it appears whole or not at all.

    Returns:
        What was written, in one line.

    Raises:
        UserError: `path` exists, not such a checkpoint, or a network that Keras does not have.
    """
    must_be_new(path)
    if path.suffix != ".h5" or path.name.endswith(".weights.h5"):
        raise UserError(f"{path}: Keras knows this layout by a name in .h5, and not .weights.h5; choose such a name")
    if not (checkpoint / "arrays").is_dir() and (checkpoint / "_CHECKPOINT_METADATA").exists():
        raise UserError(f"{checkpoint}: holds an SVM and no network; give the checkpoint of a row that trains one")
    weights = load_converted(checkpoint)
    network, options = weights.lineage["network"], weights.lineage["options"]
    if network not in keras.TABLES:
        raise UserError(f"{checkpoint}: {network} is no network of Keras'; VGG16 and Inception-v3 can be exported")
    if options:
        said = ", ".join(f"{name}={value}" for name, value in options.items())
        raise UserError(f"{checkpoint}: {network} with {said} is torchvision's network, which Keras does not have")
    (table,) = keras.TABLES[network]
    arrays = {name: array for name, (to, _) in table.items() if (array := _find(weights.variables, to)) is not None}
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name in sorted(arrays, key=_position(network)):
        layer, leaf = name.split("/")
        layers.setdefault(_keras_name(layer), {})[leaf] = arrays[name]
    with new_file(path) as aside, h5py.File(aside, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        file.attrs["backend"], file.attrs["keras_version"] = b"jax", b"3.0.0"
        file.attrs[keras.LINEAGE] = json.dumps(weights.lineage)
        for layer, leaves in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{leaf}".encode() for leaf in leaves]
            for leaf, array in leaves.items():
                group[f"{layer}/{leaf}"] = array
    parts = [part for part in ("predictions", "head") if part in weights.variables["params"]]
    return f"{network}, {len(layers)} layers, {' and '.join(parts) or 'without top'}"


def must_be_new(path: Path) -> None:
    """Raises UserError for what exists already: weights are not overwritten."""
    if path.exists():
        raise UserError(f"{path}: exists already; choose another name or remove it")


def _find(variables: Variables, path: tuple[str, ...]) -> np.ndarray | None:
    node = variables
    for key in path:
        if key not in node:
            return None
        node = node[key]
    return node


def _keras_name(layer: str) -> str:
    """conv2d#0 is `conv2d` in a new process of Keras, conv2d#1 `conv2d_1`."""
    kind, _, rank = layer.partition("#")
    return kind if rank in ("", "0") else f"{kind}_{rank}"


def _position(network: str) -> object:
    """The key that sorts names as Keras sorts layers: by distance from the output, then by creation.

    Python's sort keeps the table's order, which is that of creation, and VGG16's is a single line.
    """
    if network == "vgg16":
        return lambda name: 0
    distances = _distances()

    def distance(name: str) -> int:
        kind, _, rank = name.split("/")[0].partition("#")
        return -(distances[int(rank)] - (kind == "batch_normalization")) if rank else 1

    return distance


def _distances() -> list[int]:
    """Layers from each of Inception-v3's convolutions to the last block's output, by rank.

    Keras counts convolution, batch normalisation, ReLU, pool and concatenation as a layer each.
    """
    distances, after = [], 0
    for branches in reversed(inception_v3.MIXED.values()):
        after += len(branches) > 1  # the block's concatenation
        ranked, depths = [], []
        for branch in branches:
            steps = [3 if isinstance(layer, Conv) else 4 if isinstance(layer, Fork) else 1 for layer in branch]
            for place, layer in enumerate(branch):
                left = after + sum(steps[place:])
                ranked += [left] if isinstance(layer, Conv) else [left, left] if isinstance(layer, Fork) else []
            depths.append(after + sum(steps))
        distances = ranked + distances
        after = max(depths)
    return distances
