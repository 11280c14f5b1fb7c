"""ResNet-50's arrays in Keras' files."""

from kimiajax.models import resnet50
from weights_convert import keras_graph
from weights_convert.keras_graph import Described
from weights_convert.keras_h5 import HEAD_TABLE, batch_norm, dense, renamed
from weights_convert.mapping import CAFFE, Convention, Files, KerasModel, Table

UNITS = {"conv1": "1", "conv2": "2", "shortcut": "0", "conv3": "3"}  # a block's, in Keras' order of depth


def _unit(layer: str, *path: str) -> Table:
    return dense(f"{layer}_conv", *path, "conv") | batch_norm(f"{layer}_bn", *path, "bn", scale=True)


def _projects(block: str) -> bool:
    return block.endswith("_block1")


KERAS: Table = {
    **_unit("conv1", "stem", "conv1"),
    **{
        name: entry
        for block in resnet50.BOTTLENECKS
        for unit, number in UNITS.items()
        if unit != "shortcut" or _projects(block)
        for name, entry in _unit(f"{block}_{number}", block, unit).items()
    },
    **dense("predictions", "predictions"),
    **HEAD_TABLE,
}


def _described() -> Described:
    described = {}

    def unit(layer: str, x: str, stride: int = 1, padding: str = "none") -> str:
        described[f"{layer}_conv"] = keras_graph.convolution(stride, padding), x
        described[f"{layer}_bn"] = "batch normalisation", f"{layer}_conv"
        return f"{layer}_bn"

    x = keras_graph.relu(unit("conv1", keras_graph.padded(3, keras_graph.INPUT), 2, "valid"))
    x = keras_graph.pool("max", 3, 2, "valid", keras_graph.padded(1, x))
    for block, (_, stride) in resnet50.BOTTLENECKS.items():
        shortcut = unit(f"{block}_0", x, stride) if _projects(block) else x
        y = keras_graph.relu(unit(f"{block}_1", x, stride))
        y = keras_graph.relu(unit(f"{block}_2", y, padding="same"))
        x = keras_graph.relu(keras_graph.added(shortcut, unit(f"{block}_3", y)))
    head = "dense", keras_graph.mean(x)
    return described | {"output": ("", x), "head": head, "predictions": head}


LAYERS = {"stem": "pool1_pool", "predictions": "predictions"} | {name: f"{name}_out" for name in resnet50.BOTTLENECKS}


def _order() -> tuple[str, ...]:
    """As in the table, but that a projection lies beside the last convolution: first both, then both normalised."""
    layers = ["conv1_conv", "conv1_bn"]
    for block in resnet50.BOTTLENECKS:
        layers += [f"{block}_{number}_{kind}" for number in (1, 2) for kind in ("conv", "bn")]
        numbers = (0, 3) if _projects(block) else (3,)
        layers += [f"{block}_{number}_{kind}" for kind in ("conv", "bn") for number in numbers]
    return (*layers, "predictions")


PUBLISHED = renamed(KERAS, {"predictions": "probs"})

MODEL = KerasModel("ResNet50", LAYERS, _order(), _described())
FILES = {
    "keras": Files(
        (KERAS, PUBLISHED),
        Convention({}, CAFFE, resnet50.EPSILON),
        MODEL,
    ),
}
