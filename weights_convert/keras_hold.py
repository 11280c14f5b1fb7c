"""Holds a file of Keras' against the network that it is read as."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.errors import UserError
from kimiajax.text import quoted
from weights_convert import keras_graph
from weights_convert.arrays import Opened, Stored
from weights_convert.held import (
    AS_PUBLISHED,
    HEAD_LAYERS,
    Held,
    Stated,
    Wanted,
    check_own_head,
    check_top,
    leave_top_out,
    no_head,
    place_head,
    reorder,
    take_head,
)
from weights_convert.keras_graph import INPUT, NOTHING, Described, Graph, ranks
from weights_convert.keras_said import Said, by_hand, config_named, data_format, transpose, turn

OUTPUT, HEAD = "output", "head"  # of a network's description: what its last block gives, and what a head is
SAME_VALUES = re.compile(
    "Resizing|CenterCrop|Random(Flip|Rotation|Zoom|Translation|Crop|Height|Width|Contrast|Brightness)"
)
LEAVES_OF = {"use_bias": "bias", "scale": "gamma", "center": "beta"}  # what says whether a layer has such an array
LONGEST = 160  # characters of an expression in a message


def hold(opened: Opened, place: str, held: Held, wanted: Wanted, stated: Stated, path: Path) -> None:
    """Makes a network's arrays what they would be in a file of today, and says how.

    Args:
        opened: the file.
        place: where the network lies in it.
        held: the arrays, which this changes.
        wanted: the network.
        stated: what a person says of the file.
        path: of the file.

    Raises:
        UserError: the file describes another network, contradicts itself, or does not say enough.
    """
    said: Said = opened.said
    said_so = {"backend": ", ".join(said.backends), "keras_version": said.version, "within": place.rstrip("/")}
    held.says |= {key: value for key, value in said_so.items() if value}
    transposed = transpose(held, said, stated)
    turn(held, said, path, stated)
    form = data_format(held, said, path, stated) or ("channels_first" if transposed else None)
    if said.graph is not None:
        with config_named(path):
            _hold_described(held, said.graph, opened, place, wanted, stated, path, form or "channels_last")
        return
    layers: dict[str, dict[str, Stored]] = defaultdict(dict)
    taken = {stored.name for stored in held.arrays.values()}
    for name, stored in opened.networks[place].items():
        if stored.name not in taken:
            layers[name.split("/")[0]][name.split("/")[1]] = stored
    for layer, leaves in layers.items():
        if leaves.keys() == {"mean", "variance", "count"}:
            held.expected_input = None
        elif layer in wanted.layers or not _is_dense(leaves):  # it may lie within the network, for all the file says
            held.arrays |= {f"{layer}/{leaf}": stored for leaf, stored in leaves.items()}
    check_top(held, wanted, stated)
    check_own_head(held)
    if stated.head and not _has_head(held):
        take_head(held, wanted, "/", path)
    _order_flattened(held, said, wanted, path, form)


def _is_dense(leaves: Mapping[str, Stored]) -> bool:
    return leaves.keys() <= {"kernel", "bias"} and all(len(stored.shape) <= 2 for stored in leaves.values())


def _has_head(held: Held) -> bool:
    return f"{HEAD_LAYERS[0]}/kernel" in held.arrays


def _order_flattened(held: Held, said: Said, wanted: Wanted, path: Path, form: str | None) -> None:
    """Orders the rows of a dense layer on a flattened image, of weights without a configuration."""
    tops = [name for name in next(iter(wanted.top.values()), ()) if name.endswith("/kernel")] if wanted.flat else []
    for name in (*tops, f"{HEAD_LAYERS[0]}/kernel"):
        if name not in held.arrays or said.flattens_alike or held.arrays[name].shape[0] <= wanted.channels:
            continue
        if form is None:
            raise UserError(
                f"{path}: {name.split('/')[0]} takes an image that was flattened, and nothing says in which order of "
                f"axes; {by_hand('--data-format channels_last, or channels_first,')}; or leave it out (--no-top, no "
                "--with-head)"
            )
        if form == "channels_first":
            reorder(held, name, wanted.channels)


def _hold_described(
    held: Held, graph: Graph, opened: Opened, place: str, wanted: Wanted, stated: Stated, path: Path, form: str
) -> None:
    """Holds the configuration against the network, layer by layer."""
    names = _located(graph, wanted, path)
    described, outputs = graph.described(names, form)
    here = {names[key]: layer for key, layer in graph.layers.items() if key in names}
    all_names = {part for key in graph.kinds for part in key.split("/")}
    all_names |= set(ranks(all_names).values())
    for name, stored in opened.networks[place].items():
        layer = name.split("/")[0]
        if layer not in all_names or layer in wanted.layers:  # which no configuration excuses
            held.arrays.setdefault(name, stored)
    policies = graph.policies()
    held.says |= {"dtype_policy": ", ".join(policies)} if policies not in ([], ["float32"]) else {}
    for layer, expected in wanted.described.items():
        if layer in (OUTPUT, HEAD) or layer in wanted.top:
            continue
        what, given = described.get(layer, ("no such layer", "its configuration"))
        before, leaf, after = expected[1].partition(INPUT)
        if leaf and given.startswith(before) and given.endswith(after):  # whatever comes before the network
            given = expected[1]
        if (what, given) != expected:
            raise UserError(
                f"{path}: its configuration has {layer} as {_short(what, given)}; {wanted.title}'s is "
                f"{_short(*expected)}: it is another network; give a file of {wanted.title}"
            )
    _hold_output(outputs, wanted, path)
    _hold_epsilon(held, here, wanted, path)
    held.expected_input = _input(graph, names, wanted)
    _hold_leaves(held, here, wanted)
    check_top(held, wanted, stated)
    for block in wanted.top:
        expected = wanted.described.get(block, ("", ""))
        if f"{block}/kernel" not in held.arrays or not wanted.described or described.get(block) == expected:
            continue
        if described.get(block) != _of_channels_first(expected):
            leave_top_out(held, wanted)
            break
        reorder(held, f"{block}/kernel", wanted.channels)
    check_own_head(held)
    if HEAD in wanted.described and (stated.head or _has_head(held)):
        _hold_head(held, graph, described, names, opened, wanted, stated.head, path)


def _hold_head(
    held: Held,
    graph: Graph,
    described: Described,
    names: Mapping[str, str],
    opened: Opened,
    wanted: Wanted,
    asked: bool,
    path: Path,
) -> None:
    """Takes the head that the configuration has, if it is of the study's form; leaves out what only has its names.

    Raises:
        UserError: it was asked for, and there is none, or there are several.
    """
    for name in [name for name in held.arrays if name.split("/")[0] in HEAD_LAYERS]:
        del held.arrays[name]
    keys = {name: key for key, name in names.items()}
    held_layers = {name.split("/")[0] for name in held.arrays}
    heads = _heads(described, held_layers, wanted.described[HEAD])
    layers = [keys.get(name, name.removeprefix("~")) for name in heads[0]] if len(heads) == 1 else []
    arrays = [_arrays_of(opened, layer) for layer in layers]
    whole = all(each.keys() >= {"kernel", "bias"} for each in arrays)
    last = graph.layers[layers[1]].config.get("activation") if layers else None
    if not layers or not whole or last not in (None, "linear", "softmax"):
        if asked:
            raise no_head(held, wanted, path)
        return
    place_head(held, "/", arrays)
    held.changes.append(f"{' and '.join(layers)} taken as the head")
    if described[heads[0][0]] != wanted.described[HEAD]:
        reorder(held, f"{HEAD_LAYERS[0]}/kernel", wanted.channels)


def _arrays_of(opened: Opened, key: str) -> dict[str, Stored]:
    """A layer's arrays by their kind."""
    place, _, layer = key.rpartition("/")
    here = opened.networks.get(f"{place}/" if place else "", {})
    return {name.partition("/")[2]: stored for name, stored in here.items() if name.partition("/")[0] == layer}


def _located(graph: Graph, wanted: Wanted, path: Path) -> dict[str, str]:
    """Finds the network within a model: its layers' names by their keys."""
    found: dict[str, dict[str, str]] = {}
    for prefix in sorted({key[: key.rfind("/") + 1] for key in graph.layers} | {""}):
        here = {key: key.removeprefix(prefix).replace("/", "_") for key in graph.layers if key.startswith(prefix)}
        numbered = ranks(name for key, name in here.items() if "/" not in key.removeprefix(prefix))
        named = {key: numbered.get(name, name) for key, name in here.items()}
        found[prefix] = {key: wanted.layers[name] for key, name in named.items() if name in wanted.layers}
    most = max(map(len, found.values()))
    likely = [prefix for prefix, names in found.items() if len(names) == most]
    if not most or len(likely) > 1:
        what = "layers of it in " + ", ".join(map(quoted, likely)) if most else "no layer of it"
        raise UserError(f"{path}: its configuration has {what}; give the file of one {wanted.title}")
    return found[likely[0]]


def _hold_output(outputs: set[str], wanted: Wanted, path: Path) -> None:
    """Raises UserError where something else than the network's last pool or activation follows its last arrays."""
    _, output = wanted.described.get(OUTPUT, ("", ""))
    if not output or output in outputs:
        return
    inner = output[output.find("(") + 1 : -1]
    others = sorted(each for each in outputs if each.partition("(")[2] == f"{inner})" and " pool " in each)
    if others or inner not in outputs:
        said = others[0] if others else "something else"
        raise UserError(
            f"{path}: its configuration ends in {_short('', said)}; {wanted.title} ends in {_short('', output)}: it is "
            f"another network; give a file of {wanted.title}"
        )


def _hold_epsilon(held: Held, layers: Mapping[str, keras_graph.Layer], wanted: Wanted, path: Path) -> None:
    """Makes an epsilon of batch normalisation other than the network's an option of it."""
    normalising = [layer.config for layer in layers.values() if layer.kind.startswith("BatchNorm")]
    said = any("epsilon" in config for config in normalising)
    epsilons = sorted({config.get("epsilon", wanted.epsilon) for config in normalising}) if said else []
    momenta = sorted({config["momentum"] for config in normalising if config.get("momentum") is not None})
    held.says |= {"batch_norm_momentum": momenta} if momenta else {}
    if not epsilons or epsilons == [wanted.epsilon]:
        return
    if len(epsilons) > 1 or not wanted.takes_epsilon or not 0 < epsilons[0] < 1:
        raise UserError(
            f"{path}: its batch normalisation has epsilon {' and '.join(map(str, epsilons))}; {wanted.title}'s is "
            f"{wanted.epsilon}, or another one throughout; give a file of {wanted.title}"
        )
    held.options["epsilon"] = epsilons[0]


def _input(graph: Graph, names: Mapping[str, str], wanted: Wanted) -> Any:
    """Returns what the network's first layer is given of 8-bit values, where layers before it say so.

    `scale` and `offset` are such that a value v becomes scale v + offset.
    """
    first = next((key for key, name in names.items() if INPUT in wanted.described.get(name, ("", ""))[1]), None)
    before: list[keras_graph.Layer] = []
    inputs = graph.layers[first].inputs if first else ()
    if first and any(first.startswith(f"{model}/") for model in graph.shared):
        return None  # its calls may be given other inputs
    while inputs:
        layer = graph.layers[inputs[0]]
        before.append(layer)
        inputs = layer.inputs
    scale, offset, rescaled = np.ones(1), np.zeros(1), False
    for layer in reversed(before):
        config = layer.config
        if layer.kind == "Rescaling" and _numbers(config["scale"]) and _numbers(config.get("offset", 0)):
            by, more = np.asarray(config["scale"], float), np.asarray(config.get("offset", 0), float)
        elif layer.kind == "Normalization" and _numbers(config.get("mean")) and not config.get("invert"):
            by = 1 / np.maximum(np.sqrt(np.ravel(np.asarray(config["variance"], float))), 1e-7)  # as Keras does
            more = -np.ravel(np.asarray(config["mean"], float)) * by
        elif layer.kind in NOTHING or SAME_VALUES.fullmatch(layer.kind) or layer.kind == "ZeroPadding2D":
            continue
        else:
            return None
        scale, offset, rescaled = scale * by, offset * by + more, True
    if not rescaled:
        return AS_PUBLISHED
    scale, offset = (np.ravel(each) for each in (scale, offset))
    if scale.size == offset.size == 1:
        return {
            "channels": "RGB",
            "range": [float(offset[0]), float(255 * scale[0] + offset[0])],
            "mean": None,
            "std": None,
        }
    scale, offset = np.broadcast_arrays(scale, offset)
    return {"channels": "RGB", "range": [0, 255], "mean": (-offset / scale).tolist(), "std": (1 / scale).tolist()}


def _heads(described: Described, own: set[str], wanted: tuple[str, str]) -> list[tuple[str, str]]:
    """Finds each hidden dense layer with a ReLU on the network's output, and the logits after it, which end there."""
    dense = [layer for layer in described if layer not in own and described[layer][0] == "dense"]
    return [
        (hidden, logits)
        for hidden in dense
        if described[hidden] in (wanted, _of_channels_first(wanted))
        for logits in dense
        if described[logits] == ("dense", keras_graph.relu(hidden))
        and not any(logits in given for _, given in described.values())
    ]


def _hold_leaves(held: Held, layers: Mapping[str, keras_graph.Layer], wanted: Wanted) -> None:
    """Notes where the configuration and the arrays speak of other layers."""
    shapes = {}
    for name, stored in held.arrays.items():
        layer, _, leaf = name.partition("/")
        shapes.setdefault(wanted.layers.get(layer, layer), {})[leaf] = stored.shape
    for layer, described in layers.items():
        config, found = described.config, shapes.get(layer, {})
        agrees = {leaf: config[flag] == (leaf in found) for flag, leaf in LEAVES_OF.items() if flag in config}
        kernel = found.get("kernel", ())
        size = config.get("kernel_size", config.get("nb_row") and [config["nb_row"], config.get("nb_col")])
        outputs = config.get("filters", config.get("units", config.get("nb_filter")))
        if len(kernel) == 4 and size is not None:
            agrees["kernel size"] = tuple(size if isinstance(size, list) else [size, size]) == kernel[:2]
        if kernel and outputs is not None:
            agrees["number of outputs"] = outputs == kernel[-1]
        wrong = next((what for what, so in agrees.items() if not so), None) if found else None
        if wrong and held.parts_at is None:
            held.parts_at = f"{layer}'s {wrong}"


def _numbers(said: Any) -> bool:
    return isinstance(said, int | float) or (isinstance(said, list) and bool(said))


def _of_channels_first(layer: tuple[str, str]) -> tuple[str, str]:
    """A dense layer's description where it was flattened as channel, height, width."""
    what, given = layer
    return what, given.replace("flat(", "flat c h w(", 1)


def _short(what: str, given: str) -> str:
    text = f"{what} of {given}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
