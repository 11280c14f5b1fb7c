"""Holds a file of Keras' against the network that it is read as."""

import math
import re
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
    check_top,
    leave_top_out,
    no_head,
    place_head,
    take_head,
)
from weights_convert.keras_graph import INPUT, NOTHING, Described, Graph, ranks
from weights_convert.keras_said import Said, by_hand, config_named, data_format, transpose, turn

OUTPUT, HEAD = "output", "head"  # of a network's description: what its last block gives, and what a head is
SAME_VALUES = re.compile("Resizing|CenterCrop|Random(Flip|Rotation|Zoom|Translation|Crop|Height|Width)")
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
    transposed = transpose(held, said)
    turn(held, said, path, stated)
    form = data_format(held, said, path, stated) or ("channels_first" if transposed else None)
    if said.graph is not None:
        with config_named(path):
            _hold_described(held, said.graph, opened, place, wanted, stated, path, form or "channels_last")
        return
    taken = {stored.name for stored in held.arrays.values()}
    for name, stored in opened.networks[place].items():  # which may lie within the network, for all the file says
        if stored.name not in taken and (len(stored.shape) == 4 or name.endswith(("moving_mean", "moving_variance"))):
            held.arrays[name] = stored
    check_top(held, wanted)
    if stated.head:
        take_head(held, wanted, "/", path)
    _order_flattened(held, said, wanted, path, form)


def _order_flattened(held: Held, said: Said, wanted: Wanted, path: Path, form: str | None) -> None:
    """Orders the rows of a dense layer on a flattened image, of weights without a configuration."""
    tops = [name for name in next(iter(wanted.top.values()), ()) if name.endswith("/kernel")] if wanted.flat else []
    for name in (*tops, f"{HEAD_LAYERS[0]}/kernel"):
        if name not in held.arrays or said.flattens_alike or held.arrays[name].shape[0] <= wanted.channels:
            continue
        if form is None:
            raise UserError(
                f"{path}: {name.split('/')[0]} takes an image that was flattened, and nothing says in which order of "
                f"axes; {by_hand('--data-format channels_last, or channels_first,')}; --no-top leaves the classes out"
            )
        if form == "channels_first":
            _reorder(held, name, wanted.channels)


def _reorder(held: Held, name: str, channels: int) -> None:
    """Reorders a dense kernel's rows from channel, height, width to height, width, channel."""

    def reordered(kernel: np.ndarray) -> np.ndarray:
        side = math.isqrt(len(kernel) // channels)
        return kernel.reshape(channels, side, side, -1).transpose(1, 2, 0, 3).reshape(kernel.shape)

    held.arrays[name] = held.arrays[name].changed(reordered)
    held.changes.append(f"{name.split('/')[0]}'s rows reordered from channel, height, width (channels_first)")


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
        if name.split("/")[0] not in all_names:  # which no configuration excuses
            held.arrays[name] = stored
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
    check_top(held, wanted)
    for block in wanted.top:
        expected = wanted.described.get(block, ("", ""))
        if f"{block}/kernel" not in held.arrays or not wanted.described or described.get(block) == expected:
            continue
        if described.get(block) != _of_channels_first(expected):
            leave_top_out(held, wanted)
            break
        _reorder(held, f"{block}/kernel", wanted.channels)
    if stated.head and HEAD in wanted.described:
        layers = _head(described, names, wanted.described[HEAD])
        arrays = [_arrays_of(opened, layer) for layer in layers]
        if not layers or not all(arrays):
            raise no_head(held, wanted, path)
        place_head(held, "/", arrays)
        held.changes.append(f"{' and '.join(layers)} taken as the head")
        if described[layers[0]] != wanted.described[HEAD]:
            _reorder(held, f"{HEAD_LAYERS[0]}/kernel", wanted.channels)


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
    normalising = [layer.config for layer in layers.values() if "epsilon" in layer.config]
    epsilons = sorted({config["epsilon"] for config in normalising})
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
    while inputs:
        layer = graph.layers[inputs[0]]
        before.append(layer)
        inputs = layer.inputs
    scale, offset, rescaled = np.ones(1), np.zeros(1), False
    for layer in reversed(before):
        config = layer.config
        if layer.kind == "Rescaling":
            by, more = np.asarray(config["scale"], float), np.asarray(config.get("offset", 0), float)
        elif layer.kind == "Normalization" and config.get("mean") is not None and config.get("variance") is not None:
            by = 1 / np.sqrt(np.ravel(np.asarray(config["variance"], float)))
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


def _head(described: Described, names: Mapping[str, str], wanted: tuple[str, str]) -> tuple[str, ...]:
    """Finds a hidden dense layer with a ReLU on the network's output, and one of logits after it, by their keys."""
    own = set(names.values())
    for hidden, given in described.items():
        if hidden in own or given not in (wanted, _of_channels_first(wanted)):
            continue
        for logits, after in described.items():
            if logits not in own and after == ("dense", keras_graph.relu(hidden)):
                return hidden, logits
    return ()


def _of_channels_first(layer: tuple[str, str]) -> tuple[str, str]:
    """A dense layer's description where it was flattened as channel, height, width."""
    what, given = layer
    return what, given.replace("flat(", "flat c h w(", 1)


def _short(what: str, given: str) -> str:
    text = f"{what} of {given}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
