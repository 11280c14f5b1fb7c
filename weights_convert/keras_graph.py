"""What a model's configuration, as Keras writes it, says that the model computes.

Each layer that has arrays is described by what it does and by what it is given, an expression over the layers before
it: `max pool 2, stride 2, padding valid(relu(block1_conv2))`. Models within models are opened. What does nothing once
training is over, dropout for one, is passed over. Configurations of Keras 1, 2 and 3 describe one network alike.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

INPUT = "input"
NOTHING = frozenset(("InputLayer", "Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "AlphaDropout"))
WITH_ARRAYS = {
    **dict.fromkeys(("Conv2D", "Convolution2D"), "convolution"),
    **dict.fromkeys(("BatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2"), "batch normalisation"),
    "Dense": "dense",
}
POOLS = {"MaxPooling2D": "max", "MaxPool2D": "max", "AveragePooling2D": "average", "AvgPool2D": "average"}
MEANS = ("GlobalAveragePooling2D", "GlobalAvgPool2D")
FORMATS = {"th": "channels_first", "tf": "channels_last", "default": None}  # as Keras 1 has them
CHANNELS = {"channels_last": (-1, 3), "channels_first": (1, -3)}  # axes

NUMBERED = {  # kinds of layers that Keras only numbers -> in tables
    **{"conv2d": "conv2d", "convolution2d": "conv2d"},
    **{"batch_normalization": "batch_normalization", "batchnormalization": "batch_normalization"},
}

Described = dict[str, tuple[str, str]]  # layer -> what it does, what it is given


def ranks(layers: Iterable[str]) -> dict[str, str]:
    """Returns the names in tables of layers that Keras only numbers: conv2d#0, conv2d#1, ..., by the rank of their
    number."""
    ranked: dict[str, str] = {}
    unique = set(layers)
    for kind, known in NUMBERED.items():
        numbered = [layer for layer in unique if re.fullmatch(rf"{kind}(_\d+)?", layer)]
        numbered.sort(key=lambda layer: _number(layer, kind))
        ranked |= {layer: f"{known}#{rank}" for rank, layer in enumerate(numbered)}
    return ranked


def _number(name: str, kind: str) -> int:
    return int(name.removeprefix(kind)[1:] or 0)


def convolution(stride: int = 1, padding: str = "same") -> str:
    """Returns how a convolution is described; one of a single pixel pads nothing: padding "none"."""
    return f"convolution, stride {stride}, padding {padding}"


def pool(kind: str, side: int, stride: int, padding: str, x: str) -> str:
    """Returns the expression of a pool ("max", "average") of `side` x `side` pixels."""
    return f"{kind} pool {side}, stride {stride}, padding {padding}({x})"


def padded(pixels: int, x: str) -> str:
    """Returns the expression of so many rows and columns of zeros on each side."""
    return f"zeros {pixels} {pixels} {pixels} {pixels}({x})"


def relu(x: str) -> str:
    """Returns the expression of a ReLU."""
    return f"relu({x})"


def concatenated(*parts: str) -> str:
    """Returns the expression of a concatenation of channels; one within another is opened."""
    opened = [part.removeprefix("channels(")[:-1] if part.startswith("channels(") else part for part in parts]
    return f"channels({', '.join(opened)})"


def added(*parts: str) -> str:
    """Returns the expression of a sum, in whatever order."""
    return f"sum({', '.join(sorted(parts))})"


def mean(x: str) -> str:
    """Returns the expression of the mean over height and width."""
    return f"mean({x})"


def flattened(x: str) -> str:
    """Returns the expression of an image as a row, in the order of height, width, channel."""
    return f"flat({x})"


@dataclass(frozen=True)
class Layer:
    """A layer of a configuration.

    Attributes:
        kind: its class.
        config: its settings.
        inputs: keys of the layers that it is given: their names, after those of the models that they are in.
        training: it is told to compute as in training, always.
    """

    kind: str
    config: dict[str, Any]
    inputs: tuple[str, ...] = ()
    training: bool = False


@dataclass
class Graph:
    """A model's layers.

    Attributes:
        layers: by key, each after those that it is given.
        kinds: classes, by key, of models within the model as well.
        shared: keys of models within the model that are called more than once.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)

    def within(self, model: str) -> list[str]:
        """Returns the keys of a model's own layers; it is named as "vgg16/", the outermost one as ""."""
        return [key for key in self.kinds if key.startswith(model) and "/" not in key.removeprefix(model)]

    def policies(self) -> list[str]:
        """Returns the types that its layers compute in, as their policies name them."""
        named = (layer.config.get("dtype") for layer in self.layers.values())
        return sorted({policy for each in named if isinstance(policy := _policy(each), str)})

    def data_formats(self) -> list[str]:
        """Returns the orders of axes that its convolutions and pools name."""
        spatial = (each for each in self.layers.values() if each.kind in POOLS or each.kind in WITH_ARRAYS)
        return sorted({said for layer in spatial if (said := data_format(layer))})

    def described(self, names: Mapping[str, str], form: str) -> tuple[Described, set[str]]:
        """Describes the layers that have arrays.

        Args:
            names: what the network's layers are called in the description, by key; others have their key after "~".
            form: the order of axes, "channels_last" or "channels_first".

        Returns:
            the layers by these names, and the expressions of all layers' outputs.
        """
        outputs: dict[str, str] = {}
        described: Described = {}
        for key, layer in self.layers.items():
            given = [outputs.get(each, INPUT) for each in layer.inputs] or [INPUT]
            if layer.kind in WITH_ARRAYS:
                name = names.get(key, f"~{key}")
                described[name] = _described(layer, given[0], form)
                outputs[key] = _activated(layer, name)
            else:
                outputs[key] = _expression(layer, given, form)
        return described, set(outputs.values())


def parse(config: Any) -> Graph:
    """Returns the layers of a configuration: that of a model, {"class_name": ..., "config": ...}.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, IndexError: it is not as Keras writes it.
    """
    graph = Graph()
    _open(graph, config["config"], "", [])
    return graph


def data_format(layer: Layer) -> str | None:
    """Returns the order of axes that a layer names, if it does."""
    said = layer.config.get("data_format", layer.config.get("dim_ordering"))
    return said if said is None else FORMATS.get(said, said)


def _open(graph: Graph, config: Any, path: str, given: list[str]) -> list[str]:
    """Adds a model's layers under their path, and returns the keys of its outputs."""
    settings: dict[str, Any] = {"layers": config} if isinstance(config, list) else config
    entries: list[dict[str, Any]] = settings.get("layers", [])
    sequential = "input_layers" not in settings
    inputs = [] if sequential else [name for name, _ in _named(settings["input_layers"])]
    outputs = settings.get("output_layers")
    last: dict[str, list[str]] = {}  # a layer's name -> keys of its outputs
    before = given
    for entry in entries:
        settings = entry["config"]
        own = settings.get("name") if isinstance(settings, dict) else None
        name = entry.get("name") or own or f"{entry['class_name'].lower()}_{len(last) + 1}"
        key, nodes = f"{path}{name}", entry.get("inbound_nodes") or []
        if sequential:
            taken = before
        elif name in inputs:
            taken = given[inputs.index(name) :][:1]
        else:
            taken = [_output(last, *each) for each in _named(nodes[:1])]
        graph.shared |= {key} if len(nodes) > 1 else set()
        if key in graph.kinds:
            raise ValueError(f"two layers {key}")
        graph.kinds[key] = entry["class_name"]
        inner = settings.get("layer") if isinstance(settings, dict) else None  # of a wrapper
        if isinstance(settings, list) or "layers" in settings:
            last[name] = _open(graph, settings, f"{key}/", taken)
        elif isinstance(inner, dict) and isinstance(inner.get("config"), list | dict) and "layers" in inner["config"]:
            last[name] = _open(graph, inner["config"], f"{key}/", taken)
        else:
            graph.layers[key] = Layer(entry["class_name"], settings, tuple(taken), _trains(nodes[:1]))
            last[name] = [key]
        before = last[name]
    if sequential:
        return before
    return [_output(last, *each) for each in _named(outputs)]


def _output(last: Mapping[str, list[str]], name: str, number: int) -> str:
    """The key of a layer's output; a model's may be several."""
    return last[name][number if number < len(last[name]) else 0]


def _trains(node: Any) -> bool:
    """Returns whether a call's description has `training=True`."""
    if isinstance(node, dict) and node.get("training") is True:
        return True
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return any(map(_trains, inner))


def _named(node: Any) -> Iterator[tuple[str, int]]:
    """The layers, and which of their outputs, that a description of tensors names, whichever Keras wrote it."""
    if isinstance(node, dict):
        history = node["config"].get("keras_history") if node.get("class_name") == "__keras_tensor__" else None
        yield from [(history[0], history[2])] if history else (one for each in node.values() for one in _named(each))
    elif isinstance(node, list):
        if len(node) >= 3 and isinstance(node[0], str) and isinstance(node[1], int):
            yield node[0], node[2]
            node = node[3:]
        for each in node:
            yield from _named(each)


def _described(layer: Layer, given: str, form: str) -> tuple[str, str]:
    config, kind = layer.config, WITH_ARRAYS[layer.kind]
    what = kind
    if kind == "convolution":
        sides = _pair(config.get("kernel_size", [config.get("nb_row"), config.get("nb_col")]))
        stride, padding = _pair(config.get("strides", config.get("subsample", 1))), _padding(config)
        around = "zeros " + " ".join(str((side - 1) // 2) for side in (sides[0], sides[0], sides[1], sides[1])) + "("
        if sides == (1, 1):
            padding = "none"
        elif padding == "valid" and stride == (1, 1) and given.startswith(around):
            padding, given = "same", given.removeprefix(around)[:-1]
        what = convolution(_one(stride), padding)
        for name, usual in (("dilation_rate", (1, 1)), ("groups", 1)):
            said = config.get(name, usual)
            said = _pair(said) if name == "dilation_rate" else said
            what += f" {name} {said}" if said not in (usual, None) else ""
    elif kind == "batch normalisation":
        axis = config.get("axis", -1)
        axis = axis[0] if isinstance(axis, list) else axis
        what += f" axis {axis}" if axis not in CHANNELS[form] else ""
        what += "".join(f" {name} {config[name]}" for name in ("mode", "renorm") if config.get(name))
    what += " in training" if layer.training else ""
    return what, given


def _expression(layer: Layer, given: list[str], form: str) -> str:
    """What a layer without arrays makes of what it is given."""
    config, kind, x = layer.config, layer.kind, given[0]
    if kind in NOTHING:
        return f"{kind} in training({x})" if layer.training else x
    if kind == "Activation":
        return _activated(layer, x)
    if kind == "ReLU":
        return _rectified(config, x)
    if kind in POOLS:
        sides = _pair(config["pool_size"])
        stride = _pair(config.get("strides") or config["pool_size"])
        return pool(POOLS[kind], _one(sides), _one(stride), _padding(config), x)
    if kind in MEANS:
        return mean(x)
    if kind == "ZeroPadding2D":
        sides = [_pair(each) for each in _pair(config["padding"])]
        return f"zeros {' '.join(str(n) for side in sides for n in side)}({x})"
    if kind in ("Concatenate", "Merge", "Add"):
        mode = config.get("mode", "sum" if kind == "Add" else "concat")
        if mode == "sum":
            return added(*given)
        axis = config.get("axis", config.get("concat_axis", -1))
        if mode == "concat" and axis in CHANNELS[form]:
            return concatenated(*given)
    if kind == "Flatten":
        # Keras writes what it flattens as height, width, channel where it is told the order of axes, and else as it is.
        said = data_format(layer) or "channels_last"
        return flattened(x) if said == form else f"flat c h w({x})" if form == "channels_first" else f"flat w c h({x})"
    return f"{kind}({', '.join(given)})"


def _activated(layer: Layer, x: str) -> str:
    said = layer.config.get("activation")
    if isinstance(said, dict):
        module, settings = str(said.get("module") or "keras"), said.get("config")
        name = settings if isinstance(settings, str) else said["class_name"]
        if said.get("registered_name") not in (None, "function", name, said["class_name"]) or not module.startswith(
            ("keras", "builtins", "tensorflow")
        ):
            name = f"{module}.{name}"
        elif isinstance(settings, dict) and name.lower() == "relu":
            return _rectified(settings, x)
        elif isinstance(settings, dict):
            name = f"{name} {sorted(settings.items(), key=str)}"
        said = name
    name = str(said).lower()
    return x if said is None or name == "linear" else f"{name}({x})"


def _rectified(settings: Mapping[str, Any], x: str) -> str:
    """The expression of a ReLU with limits and slopes, where it has such."""
    limits = {name: settings[name] for name in ("max_value", "negative_slope", "threshold") if settings.get(name)}
    return f"relu {limits}({x})" if limits else relu(x)


def _policy(said: Any) -> Any:
    """The name of a policy; quantised ones and maps of them are described otherwise."""
    return said.get("config", {}).get("name") or said.get("class_name") if isinstance(said, dict) else said


def _padding(config: Mapping[str, Any]) -> str:
    return str(config.get("padding", config.get("border_mode", "valid"))).lower()


def _pair(said: Any) -> tuple[Any, Any]:
    """Two numbers, of which Keras writes one where they are the same."""
    return tuple(said) if isinstance(said, list | tuple) and len(said) == 2 else (said, said)  # pyright: ignore[reportReturnType]  # of two


def _one(pair: tuple[Any, Any]) -> Any:
    """One number in place of two equal ones, else "2x1"."""
    return pair[0] if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"
