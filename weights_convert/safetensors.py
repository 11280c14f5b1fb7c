"""torchvision's and timm's arrays, as safetensors."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kimiajax.text import quoted
from weights_convert.arrays import Opened, Stored, open_safetensors
from weights_convert.held import Held, Stated, Wanted, check_top, take_head
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
    if place:
        held.changes.append(f"the prefix {quoted(place)} of its names left out")
    tops = {name.split(".")[0] for names in wanted.top.values() for name in names}
    own = {layer.split(".")[0] for layer in wanted.layers} - tops
    for name, stored in opened.networks[place].items():
        if name.split(".")[0] in own and not is_unused(name):
            held.arrays[name] = stored
    check_top(held, wanted)
    if stated.head:
        take_head(held, wanted, ".", path)
