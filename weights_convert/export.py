"""A checkpoint as an HDF5 file that Keras' `load_weights` takes: the way back."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from safetensors.numpy import save_file

from kimiajax.errors import UserError
from kimiajax.io.files import new_file
from kimiajax.models.backbone import Variables
from kimiajax.models.checkpoint import load_converted
from weights_convert import keras_h5
from weights_convert.convert import reading
from weights_convert.mappings import all_files, files_of


def export(checkpoint: Path, path: Path) -> str:
    """Writes a checkpoint's arrays in Keras' layout, layer by layer in the order of Keras' `model.layers`.

    `model.load_weights(path)` takes it for the network of `keras.applications`, with top as the checkpoint has it; a
    fine-tuned network's two dense layers follow as `head_hidden` and `head_logits`.

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
    files = dict(all_files("keras")).get(network)
    if files is None or files.model is None:
        raise UserError(f"{checkpoint}: {network} is no network of Keras'; only those can be exported")
    if options:
        said = ", ".join(f"{name}={value}" for name, value in options.items())
        raise UserError(f"{checkpoint}: {network} with {said} is a network which Keras does not have")
    table = files.tables[0]
    arrays = {name: array for name, (to, _) in table.items() if (array := _find(weights.variables, to)) is not None}
    layers = _write_keras(path, arrays, files.model.order, json.dumps(weights.lineage))
    parts = [part for part in ("predictions", "head") if part in weights.variables["params"]]
    return f"{network}, {layers} layers, {' and '.join(parts) or 'without top'}"


def write_as_today(network: str, path: Path, out: Path) -> None:
    """Writes the network that a weight file holds, and nothing else, as its framework's programs write it today.

    Args:
        network: a key of `BACKBONES`.
        path: any file that `convert` reads.
        out: the file to write.

    Raises:
        UserError: as `convert` does.
    """
    with reading(network, path) as (opened, table, held):
        files = files_of(network, opened.framework)
        names = {entry[0]: name for name, entry in files.tables[0].items()}
        arrays = {}
        for name, (to, layout) in table.items():
            if name in held.arrays:
                today = names.get(to, name)
                today = today if files.tables[0].get(today, (to, None))[1] is layout else name
                arrays[today] = np.ascontiguousarray(held.arrays[name].read().astype(np.float32))
    if opened.framework == "torch":
        save_file(arrays, out)
    else:
        _write_keras(out, arrays, files.model.order if files.model else ())


def _write_keras(path: Path, arrays: dict[str, np.ndarray], order: Iterable[str], lineage: str | None = None) -> int:
    """Writes arrays by the names of tables layer by layer, and returns how many layers they are."""
    layers: dict[str, dict[str, np.ndarray]] = {_keras_name(layer): {} for layer in order}
    for name, array in arrays.items():
        layer, leaf = name.split("/")
        layers.setdefault(_keras_name(layer), {})[leaf] = array
    layers = {layer: leaves for layer, leaves in layers.items() if leaves}
    with new_file(path) as aside, h5py.File(aside, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        file.attrs["backend"], file.attrs["keras_version"] = b"jax", b"3.0.0"
        if lineage is not None:
            file.attrs[keras_h5.LINEAGE] = lineage
        for layer, leaves in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{leaf}".encode() for leaf in leaves]
            for leaf, array in leaves.items():
                group[f"{layer}/{leaf}"] = array
    return len(layers)


def must_be_new(path: Path) -> None:
    """Raises UserError for what exists already: weights are not overwritten."""
    if path.exists():
        raise UserError(f"{path}: exists already; choose another name or remove it")


def _find(variables: Variables, path: tuple[str, ...]) -> np.ndarray | None:
    node: Any = variables
    for key in path:
        if key not in node:
            return None
        node = node[key]
    return node


def _keras_name(layer: str) -> str:
    """conv2d#0 is `conv2d` in a new process of Keras, conv2d#1 `conv2d_1`."""
    kind, _, rank = layer.partition("#")
    return kind if rank in ("", "0") else f"{kind}_{rank}"
