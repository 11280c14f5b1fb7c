"""Weight files as Keras 1, 2 and 3 and torch write them, of one network's arrays: written here without any of them."""

import io
import json
import zipfile

import h5py
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

OLD_LEAVES = {"kernel": "W", "bias": "b", "moving_mean": "running_mean", "moving_variance": "running_std"}
OLD_LAYERS = (("conv2d", "convolution2d"), ("batch_normalization", "batchnormalization"))


def arrays_of(path):
    """The arrays of a file that Keras 3 saved as `.h5`, by layer and leaf, and its configuration."""
    with h5py.File(path) as file:
        layers = {
            layer: {leaf: array[...] for leaf, array in group[layer].items()}
            for layer, group in file["model_weights"].items()
            if layer in group
        }
        return layers, json.loads(file.attrs["model_config"])


def turned(layers):
    """With every kernel of a convolution turned by 180 degrees, entry by entry."""
    return {
        layer: {leaf: np.flip(array, (0, 1)) if array.ndim == 4 else array for leaf, array in leaves.items()}
        for layer, leaves in layers.items()
    }


def transposed(layers):
    """With the kernels of convolutions as Keras 1 wrote them in its order "th": output, input, height, width."""
    return {
        layer: {leaf: array.transpose(3, 2, 0, 1) if array.ndim == 4 else array for leaf, array in leaves.items()}
        for layer, leaves in layers.items()
    }


def flattened_as_chw(layers, dense, channels):
    """With the rows of a dense kernel as an image gives them that was flattened as channel, height, width."""
    kernel = layers[dense]["kernel"]
    side = round((len(kernel) / channels) ** 0.5)
    place = np.arange(len(kernel)).reshape(side, side, channels)  # of each row, in height, width, channel
    rows = [place[h, w, c] for c in range(channels) for h in range(side) for w in range(side)]
    return {**layers, dense: {**layers[dense], "kernel": kernel[rows]}}


def in_type(layers, dtype):
    return {layer: {leaf: array.astype(dtype) for leaf, array in leaves.items()} for layer, leaves in layers.items()}


def _inputs(node):
    if isinstance(node, dict):
        if node.get("class_name") == "__keras_tensor__":
            return [node["config"]["keras_history"][0]]
        return [name for each in node.values() for name in _inputs(each)]
    return [name for each in node for name in _inputs(each)] if isinstance(node, list) else []


def layers_of(config):
    return config["config"]["layers"]


def keras_2(config, data_format="channels_last", flatten=True):
    """A configuration as Keras 2 wrote it; without `flatten`, of a time when Flatten named no order of axes."""
    layers = []
    for layer in layers_of(config):
        settings = {**layer["config"], "dtype": "float32"}
        if "data_format" in settings:
            settings["data_format"] = data_format
        if layer["class_name"] == "Flatten" and not flatten:
            del settings["data_format"]
        if layer["class_name"] in ("BatchNormalization", "Concatenate"):
            settings["axis"] = 1 if data_format == "channels_first" else settings["axis"]
        if layer["class_name"] == "InputLayer":
            settings = {"batch_input_shape": settings["batch_shape"], "dtype": "float32", "name": settings["name"]}
        nodes = [[[name, 0, 0, {}] for name in _inputs(layer["inbound_nodes"])]] if layer["inbound_nodes"] else []
        layers.append(
            {"class_name": layer["class_name"], "config": settings, "name": layer["name"], "inbound_nodes": nodes}
        )
    ends = {name: [[layers[at]["name"], 0, 0]] for name, at in (("input_layers", 0), ("output_layers", -1))}
    return {"class_name": "Model", "config": {"name": config["config"]["name"], "layers": layers, **ends}}


def keras_1(config, ordering="tf"):
    """A configuration as Keras 1 wrote it."""
    config = keras_2(config, {"tf": "channels_last", "th": "channels_first"}[ordering])
    for layer in layers_of(config):
        old, kind = layer["config"], layer["class_name"]
        new = {"name": old.get("name"), "trainable": True}
        if kind == "Conv2D":
            rows, columns = old["kernel_size"]
            new |= {"nb_filter": old["filters"], "nb_row": rows, "nb_col": columns, "border_mode": old["padding"]}
            new |= {"subsample": old["strides"], "activation": old["activation"], "dim_ordering": ordering}
        elif kind in ("MaxPooling2D", "AveragePooling2D"):
            new |= {"pool_size": old["pool_size"], "strides": old["strides"], "border_mode": old["padding"]}
            new["dim_ordering"] = ordering
        elif kind == "BatchNormalization":
            new |= {"mode": 0, "axis": old["axis"], "epsilon": old["epsilon"], "momentum": old["momentum"]}
        elif kind == "Concatenate":
            new |= {"mode": "concat", "concat_axis": old["axis"]}
        elif kind != "Flatten":
            new = old
        layer["config"] = new
        layer["class_name"] = {"Conv2D": "Convolution2D", "Concatenate": "Merge"}.get(kind, kind)
    return config


def changed(config, layer_kind, number=0, **settings):
    """A configuration with other settings of one layer, the `number`th of its kind; None takes a setting away."""
    config = json.loads(json.dumps(config))
    layer = [layer for layer in layers_of(config) if layer["class_name"] == layer_kind][number]["config"]
    for name, value in settings.items():
        layer.pop(name) if value is None else layer.update({name: value})
    return config


def within(config, name, *after, before=()):
    """A `Sequential` of layers before, the model under a name, and layers after it, as Keras 2.0 wrote it: a list."""
    nested = {**config, "config": {**config["config"], "name": name}}
    return {"class_name": "Sequential", "config": [*before, nested, *after]}


def layer(kind, name, **settings):
    return {"class_name": kind, "config": {"name": name, **settings}}


HEAD = (
    layer("Flatten", "flatten", data_format="channels_last"),
    layer("Dense", "hidden", units=8, activation="relu"),
    layer("Dropout", "dropout", rate=0.5),
    layer("Dense", "scans", units=3, activation="softmax"),
)


def head_arrays(inputs, hidden=8, classes=3):
    rng = np.random.default_rng(4)
    shapes = {"hidden": (inputs, hidden), "scans": (hidden, classes)}
    return {
        name: {"kernel": rng.standard_normal(shape, np.float32), "bias": rng.standard_normal(shape[1], np.float32)}
        for name, shape in shapes.items()
    }


def write_h5(path, layers, config=None, *, root=None, group=None, old=False, network="", beside=None, **storage):
    """An `.h5` file.

    Args:
        layers: arrays by layer and leaf.
        config: the configuration; without one the file holds weights alone, at its root.
        root, group: attributes of the file, and of the group of weights.
        old: as Keras 1 names layers and arrays.
        network: the layer that the network is within another model.
        beside: layers of that other model.
        storage: options of the arrays, compression say.
    """
    with h5py.File(path, "w") as file:
        weights = file.create_group("model_weights") if config else file
        for attributes, place in ((root, file), (group, weights)):
            for name, value in (attributes or {}).items():
                place.attrs[name] = np.bytes_(value)
        if config:
            file.attrs["model_config"] = json.dumps(config)
        names: dict[str, list[str]] = {}
        for where, each in ((network, layers), ("", beside or {})):
            for name, leaves in each.items():
                for today, new in OLD_LAYERS if old else ():
                    name = name.replace(today, new)
                for leaf, array in leaves.items():
                    said = f"{name}/{name}_{OLD_LEAVES.get(leaf, leaf)}" if old else f"{name}/{leaf}:0"
                    names.setdefault(where or name, []).append(said)
                    values = array.view("V2") if array.dtype == ml_dtypes.bfloat16 else array
                    weights.create_dataset(f"{where or name}/{said}", data=values, **(storage if array.ndim else {}))
        weights.attrs["layer_names"] = [name.encode() for name in names]
        for name, said in names.items():
            weights[name].attrs["weight_names"] = [each.encode() for each in said]
    return path


def _kind(leaves):
    if "kernel" not in leaves:
        return "batch_normalization"
    return "dense" if leaves["kernel"].ndim == 2 else "conv2d"


def write_numbered(path, layers, config=None, *, named=True, network="", beside=None):
    """A `.weights.h5`, or with a configuration a `.keras`; `named` as Keras writes it since its layers are named."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for where, each in ((network, layers), ("", beside or {})):
            counts = {}
            top = "layers/functional/layers" if where else "layers"
            if where:
                around = file.create_group("layers/functional/vars")
                if named:
                    around.attrs["name"] = where
            for name, leaves in each.items():
                kind = _kind(leaves)
                number = counts[kind] = counts.get(kind, -1) + 1
                variables = file.create_group(f"{top}/{kind}{f'_{number}' * (number > 0)}/vars")
                if named:
                    variables.attrs["name"] = name
                order = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
                for place, leaf in enumerate(leaf for leaf in order if leaf in leaves):
                    variables[str(place)] = leaves[leaf]
    if config is None:
        path.write_bytes(buffer.getvalue())
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.1.0"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", buffer.getvalue())
    return path


def write_torch(path, layers, table, keras, *, prefix="", beside=None, dtype=np.float32):
    """A safetensors file of the same arrays by torch's names.

    Args:
        layers: arrays by Keras' layer and leaf.
        table: torch's name -> (destination, layout).
        keras: destination -> (layer, leaf).
    """
    arrays = {}
    for name, (to, _) in table.items():
        if to in keras and keras[to][0] in layers:
            layer, leaf = keras[to]
            array = layers[layer][leaf]
            arrays[name] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    arrays |= beside or {}
    save_file({f"{prefix}{name}": np.ascontiguousarray(array.astype(dtype)) for name, array in arrays.items()}, path)
    return path
