"""DenseNet-121's arrays in Keras' files, whose layers are one line: in Keras' order they are as created."""

from kimiajax.models import densenet121
from weights_convert import keras_graph
from weights_convert.keras_graph import Described
from weights_convert.keras_h5 import HEAD_TABLE, batch_norm, dense, renamed
from weights_convert.mapping import AS_IS, IMAGENET, Convention, Files, KerasModel, Table


def _kernel(layer: str, *path: str) -> Table:
    return {f"{layer}/kernel": (("params", *path, "conv", "kernel"), AS_IS)}


def _layer(block: str, number: int) -> Table:
    layer, path = f"{block}_block{number}", f"layer{number}"
    return {
        **batch_norm(f"{layer}_0_bn", block, f"{path}_conv1", "bn", scale=True),
        **_kernel(f"{layer}_1_conv", block, f"{path}_conv1"),
        **batch_norm(f"{layer}_1_bn", block, f"{path}_conv2", "bn", scale=True),
        **_kernel(f"{layer}_2_conv", block, f"{path}_conv2"),
    }


def _block(block: str) -> Table:
    if block in densenet121.DENSE:
        layers = range(1, densenet121.DENSE[block] + 1)
        return {name: entry for number in layers for name, entry in _layer(block, number).items()}
    return batch_norm(f"{block}_bn", block, "bn", scale=True) | _kernel(f"{block}_conv", block)


KERAS: Table = {
    **_kernel("conv1_conv", "stem"),
    **batch_norm("conv1_bn", "stem", "bn", scale=True),
    **{
        name: entry
        for block in densenet121.BLOCKS
        if block in (*densenet121.DENSE, *densenet121.TRANSITIONS)
        for name, entry in _block(block).items()
    },
    **batch_norm("bn", "norm", "bn", scale=True),
    **dense("predictions", "predictions"),
    **HEAD_TABLE,
}


def _described() -> Described:
    described = {}

    def norm(layer: str, x: str) -> str:
        described[layer] = "batch normalisation", x
        return keras_graph.relu(layer)

    def convolution(layer: str, x: str, padding: str = "none") -> str:
        described[layer] = keras_graph.convolution(1, padding), x
        return layer

    described["conv1_conv"] = keras_graph.convolution(2, "valid"), keras_graph.padded(3, keras_graph.INPUT)
    x = keras_graph.pool("max", 3, 2, "valid", keras_graph.padded(1, norm("conv1_bn", "conv1_conv")))
    for block in densenet121.BLOCKS:
        for number in range(1, densenet121.DENSE.get(block, 0) + 1):
            name = f"{block}_block{number}"
            y = norm(f"{name}_1_bn", convolution(f"{name}_1_conv", norm(f"{name}_0_bn", x)))
            x = keras_graph.concatenated(x, convolution(f"{name}_2_conv", y, "same"))
        if block in densenet121.TRANSITIONS:
            y = convolution(f"{block}_conv", norm(f"{block}_bn", x))
            x = keras_graph.pool("average", 2, 2, "valid", y)
    x = norm("bn", x)
    head = "dense", keras_graph.mean(x)
    return described | {"output": ("", x), "head": head, "predictions": head}


LAYERS = {
    **{"stem": "pool1", "norm": "relu", "predictions": "predictions"},
    **{block: f"{block}_block{layers}_concat" for block, layers in densenet121.DENSE.items()},
    **{block: f"{block}_pool" for block in densenet121.TRANSITIONS},
}

# The published file has layers "conv1/conv" and "conv1/bn", of which the converter takes the first part.
PUBLISHED = renamed(KERAS, {"conv1_conv": "conv1", "conv1_bn": "conv1", "predictions": "fc1000"})

MODEL = KerasModel("DenseNet121", LAYERS, described=_described())
FILES = {
    "keras": Files(
        (KERAS, PUBLISHED),
        Convention({}, IMAGENET, densenet121.EPSILON),
        MODEL,
    ),
}
