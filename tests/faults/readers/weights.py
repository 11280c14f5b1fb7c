"""Files of weights, of Keras and of torch."""

import json
import zipfile

import h5py
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from faults.readers.fuzzing import (
    BLOWS,
    NUMBERS,
    VALUES,
    anywhere,
    as_text,
    asked,
    chooser,
    damaged,
    fuzz,
    read_anew,
    rebuild,
)
from kimiajax.models.backbone import Backbone
from weights_convert import keras_h5
from weights_convert.convert import convert
from weights_convert.mapping import AS_IS, CONV_OIHW, Convention, Files, Layout

LEAVES = {  # of a network so small that ten thousand files of it are read in no time: where they go, and their shapes
    ("params", "block1", "conv", "kernel"): (3, 3, 1, 2),
    ("params", "block1", "conv", "bias"): (2,),
    ("params", "block1", "bn", "bias"): (2,),
    ("batch_stats", "block1", "bn", "mean"): (2,),
    ("batch_stats", "block1", "bn", "var"): (2,),
    ("params", "predictions", "kernel"): (2, 3),
    ("params", "predictions", "bias"): (3,),
}
KERAS_NAMES = (
    *("conv2d#0/kernel", "conv2d#0/bias", "batch_normalization#0/beta", "batch_normalization#0/moving_mean"),
    *("batch_normalization#0/moving_variance", "predictions/kernel", "predictions/bias"),
)
TORCH_NAMES = ("conv.weight", "conv.bias", "bn.bias", "bn.running_mean", "bn.running_var", "fc.weight", "fc.bias")
KERAS_ITEMS = (
    *("model_weights", "layers", "conv2d/conv2d/kernel:0", "predictions/predictions/bias:0", "conv2d_3/b", "a" * 400),
    *("model_weights/conv2d/kernel", "layers/conv2d/vars", "layers/conv2d/vars/0", "layers/x/vars", "conv2d\nb/x"),
)
TORCH_VALUES = (*VALUES, "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "F4", "U8", "C64", "f32", [0, 8], [8, 0])


def files(names: tuple[str, ...], kernel: Layout) -> Files:
    """What a framework's files hold of it, its convolutions in this layout."""
    layouts = [kernel if len(shape) == 4 else AS_IS for shape in LEAVES.values()]
    return Files((dict(zip(names, zip(LEAVES, layouts))),), Convention({}, {"channels": "RGB"}, None))


FILES = {"keras": files(KERAS_NAMES, AS_IS), "torch": files(TORCH_NAMES, CONV_OIHW)}


class Small(Backbone):
    """That network, as far as a conversion asks for it."""

    def size_for(self, values):
        return self.smallest

    def tap_shapes(self, shapes, size, blocks):
        return {"block1": (1, 1, 2)}

    def shapes(self, size, blocks=("block1", "predictions"), *, num_classes=3):
        tree = {to: (*shape[:-1], num_classes) if "predictions" in to else shape for to, shape in LEAVES.items()}
        kept = {to: jax.ShapeDtypeStruct(shape, np.float32) for to, shape in tree.items() if to[1] in blocks}
        return unflatten_dict(kept)


def small_arrays():
    rng = np.random.default_rng(3)
    return [rng.random(shape, np.float32) for shape in LEAVES.values()]


def keras_files(folder):
    """Its weights in each of Keras' four layouts."""
    layers = {}
    for name, array in zip(KERAS_NAMES, small_arrays()):
        layer, leaf = name.replace("#0", "").split("/")
        layers.setdefault(layer, {})[leaf] = array
    paths = [folder / name for name in ("old.h5", "new.h5", "x.weights.h5", "x.keras")]
    with h5py.File(paths[0], "w") as old, h5py.File(paths[1], "w") as new, h5py.File(paths[2], "w") as numbered:
        old.attrs["backend"] = new.attrs["backend"] = b"tensorflow"
        old.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, leaves in layers.items():
            variables = numbered.create_group(f"layers/{layer}/vars")
            variables.attrs["name"] = layer
            for number, (leaf, array) in enumerate(leaves.items()):
                old[f"{layer}/{layer}/{leaf}:0"] = array
                new[f"model_weights/{layer}/{leaf}"] = array
                variables[str(number)] = array
    with zipfile.ZipFile(paths[3], "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.write(paths[2], "model.weights.h5")
    return [path.read_bytes() for path in paths]


def see_weights(path):
    weights = convert("small", path)
    found = flatten_dict(weights.variables)
    assert set(found) <= set(LEAVES)
    for to, array in found.items():
        assert array.dtype == np.float32
        assert array.shape[:-1] == LEAVES[to][:-1]
        assert np.isfinite(array).all()
    assert json.dumps(weights.lineage, allow_nan=False)
    return True


def weights_of_keras(folder):
    path, whole = folder / "x.h5", keras_files(folder)
    assert all(read_anew(path, content, lambda: see_weights(path)) for content in whole)

    def made(number):
        choose = chooser(number)
        path.unlink(missing_ok=True)
        path.write_bytes(whole[choose(3)])
        rebuild(path, choose, KERAS_ITEMS, ["name", "backend", "keras_version", "model_config", keras_h5.LINEAGE])
        asked(lambda: see_weights(path), path)

    half = fuzz(lambda blows: read_anew(path, damaged(blows, whole), lambda: see_weights(path)), BLOWS, 2)
    return half + fuzz(made, NUMBERS, 2)


def weights_of_torch(folder):
    path = folder / "x.safetensors"
    arrays = [array.transpose(3, 2, 0, 1).copy() if array.ndim == 4 else array for array in small_arrays()]
    save_file(dict(zip(TORCH_NAMES, arrays)), path)
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    assert read_anew(path, whole, lambda: see_weights(path))

    def made(number):
        choose, changed = chooser(number), header
        for _ in range(1 + choose(2)):
            changed = anywhere(changed, choose, TORCH_VALUES[choose(len(TORCH_VALUES))])
        text = as_text(changed, choose)
        claimed = (len(text), len(text), len(text), len(text) + choose(300), choose(2**40), 2**64 - 1)[choose(6)]
        content = claimed.to_bytes(8, "little") + text + body[: len(body) - choose(2) * choose(len(body))]
        read_anew(path, content, lambda: see_weights(path))

    half = fuzz(lambda blows: read_anew(path, damaged(blows, [whole]), lambda: see_weights(path)), BLOWS, 2)
    return half + fuzz(made, NUMBERS, 2)
