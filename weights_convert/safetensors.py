"""torchvision's and timm's arrays, as safetensors."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kimiajax.text import quoted
from weights_convert.arrays import Opened, Stored, open_safetensors
from weights_convert.held import HEAD_LAYERS, Held, Stated, Wanted, check_top, leave_top_out, reorder, take_head
from weights_convert.mapping import AS_IS, DENSE_OUT_IN, Layout, Table


def layer(name: str, layout: Layout, *path: str) -> Table:
    """Where the kernel and the bias of a dense layer or a convolution go."""
    return {f"{name}.weight": (("params", *path, "kernel"), layout), f"{name}.bias": (("params", *path, "bias"), AS_IS)}


# The head is this project's own; so are its names.
HEAD_TABLE = {
    **layer("head_hidden", DENSE_OUT_IN, "head", "hidden"),
    **layer("head_logits", DENSE_OUT_IN, "head", "logits"),
}


def is_unused(name: str) -> bool:
    """Returns whether it is an array without a place here: of the auxiliary classifier, or a counter of batches."""
    return name.startswith("AuxLogits.") or name.endswith(".num_batches_tracked")


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[Opened]:
    """Opens a file: its arrays as they are named, and without each prefix that some of the names have.

    Raises:
        UserError: a damaged file.
    """
    with open_safetensors(path) as arrays:
        networks: dict[str, dict[str, Stored]] = {"": arrays}
        for name, stored in arrays.items():
            parts = name.split(".")
            for end in range(1, len(parts) - 1):
                prefix = ".".join(parts[:end]) + "."
                networks.setdefault(prefix, {})[name.removeprefix(prefix)] = stored
        yield Opened("torch", networks, "safetensors")


def hold(opened: Opened, place: str, held: Held, wanted: Wanted, stated: Stated, path: Path) -> None:
    """Takes a network's arrays without the prefix that a training program left, and leaves out what is beside them.

    Raises:
        UserError: no head of the study's form where one is asked for.
    """
    held.prefix = place
    if place:
        held.changes.append(f"the prefix {quoted(place)} of its names left out")
    own = {layer.split(".")[0] for layer in wanted.layers} - _modules(wanted)
    parents = {layer.rpartition(".")[0] for layer in wanted.layers if layer.split(".")[0] in own}
    for name, stored in opened.networks[place].items():
        layer = name.rpartition(".")[0]
        if (layer.split(".")[0] in own or (layer and layer.rpartition(".")[0] in parents)) and not is_unused(name):
            held.arrays[name] = stored
    check_top(held, wanted, stated)
    beside = [name for name in opened.networks[place] if name.split(".")[0] in _modules(wanted)]
    if any(name not in held.arrays for name in beside):  # which lies between the classes' layers, or after them
        leave_top_out(held, wanted)
    if stated.head:
        take_head(held, wanted, ".", path)
        if wanted.flat:
            reorder(held, f"{HEAD_LAYERS[0]}.weight", wanted.channels, axis=1)


def _modules(wanted: Wanted) -> set[str]:
    """The modules that hold the classes."""
    return {name.split(".")[0] for names in wanted.top.values() for name in names}
