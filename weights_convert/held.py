"""A network's arrays in a file, as they are held against what reading them assumes."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.errors import UserError
from kimiajax.text import first_few
from weights_convert.arrays import Stored
from weights_convert.keras_graph import Described

AS_PUBLISHED = "as published"
HEAD_LAYERS = ("head_hidden", "head_logits")
LEAVES = {"/": ("kernel", "bias"), ".": ("weight", "bias")}  # of a dense layer of Keras', of torch's


@dataclass
class Held:
    """How a network's arrays are to be read.

    Attributes:
        arrays: by the names of the table, as their framework would write them today.
        everything: all arrays of the file, by their names there.
        published: the name of the file that Keras publishes, if it is one, which its checksum says.
        changes: what was done to arrays, a sentence each.
        says: what the file says of itself.
        options: of the backbone, that the file asks for.
        expected_input: what the network was trained on, where layers before it say so; None where they cannot be read.
        parts_at: where the configuration speaks of other arrays than there are, if it does.
        prefix: what the names of torch's arrays begin with, which was taken off.
    """

    arrays: dict[str, Stored]
    everything: dict[str, Stored]
    published: str | None = None
    changes: list[str] = field(default_factory=list)
    says: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    expected_input: Any = AS_PUBLISHED
    prefix: str = ""
    parts_at: str | None = None

    @property
    def left_out(self) -> list[str]:
        """Names of the arrays that have no place in the network."""
        taken = {stored.name for stored in self.arrays.values()}
        return [name for name in self.everything if name not in taken]


@dataclass(frozen=True)
class Stated:
    """What a person says of a file.

    Attributes:
        top: false leaves the classes out.
        head: take a head of the study's form.
        backend: where the file says nothing, or two things.
        data_format: where the file says nothing.
    """

    top: bool = True
    head: bool = False
    backend: str | None = None
    data_format: str | None = None


@dataclass(frozen=True)
class Wanted:
    """What a network is, for a file to be held against.

    Attributes:
        title: its name in messages.
        layers: names of its layers in the file's table -> in Keras of today.
        described: what Keras says that they compute; nothing where the mapping does not tell.
        top: names of arrays of its classes, and of the dense layers before them, by block.
        widths: outputs of these blocks but the last.
        channels: of its last block.
        flat: whether a head takes that as it is, flattened, and not its mean over space.
        epsilon: of its batch normalisation.
        takes_epsilon: whether it can have another one.
    """

    title: str
    layers: dict[str, str]
    described: Described
    top: dict[str, set[str]]
    widths: dict[str, int]
    channels: int
    flat: bool
    epsilon: float | None
    takes_epsilon: bool

    def is_input(self, values: int) -> bool:
        """Returns whether a head may take so many values."""
        side = math.isqrt(values // self.channels) if self.flat else 1
        return values == self.channels * side * side > 0


def check_top(held: Held, wanted: Wanted, stated: Stated) -> None:
    """Leaves dense layers out that have the classes' names and are a person's own: not all, or of other widths; and the
    classes where a person wants none."""
    here = {block: names & held.arrays.keys() for block, names in wanted.top.items()}
    biases = {block: [held.arrays[name] for name in names if name.endswith("bias")] for block, names in here.items()}
    alike = all(bias.shape == (width,) for block, width in wanted.widths.items() for bias in biases[block])
    if any(here.values()) and not (stated.top and all(here.values()) and alike):
        leave_top_out(held, wanted)


def check_own_head(held: Held) -> None:
    """Leaves out what has the name of a head's layer where the other layer, or an array, is lacking."""
    own = [name for name in held.arrays if re.split(r"[/.]", name)[0] in HEAD_LAYERS]
    if len(own) != 2 * len(HEAD_LAYERS):
        for name in own:
            del held.arrays[name]


def leave_top_out(held: Held, wanted: Wanted) -> None:
    """Leaves the classes out, and the dense layers before them."""
    for names in wanted.top.values():
        for name in names & held.arrays.keys():
            del held.arrays[name]


def take_head(held: Held, wanted: Wanted, separator: str, path: Path) -> None:
    """Takes, by their shapes, a dense layer on the network's output and another one on that as the head.

    What activation lies between them no file of weights alone says; it is taken for a ReLU, which is told.

    Raises:
        UserError: there are none, or several.
    """
    layers: dict[str, dict[str, Stored]] = defaultdict(dict)
    for name in held.left_out:
        layer, _, leaf = name.rpartition(separator)
        layers[layer][leaf.removesuffix(":0")] = held.everything[name]
    kernel, bias = LEAVES[separator]
    dense = {
        layer: leaves[kernel].shape[:: 1 if separator == "/" else -1]
        for layer, leaves in layers.items()
        if leaves.keys() == {kernel, bias} and len(leaves[kernel].shape) == 2
    }
    pairs = [
        (hidden, logits)
        for hidden, (inputs, outputs) in dense.items()
        for logits, (given, _) in dense.items()
        if hidden != logits and wanted.is_input(inputs) and given == outputs
    ]
    if len(pairs) != 1 or any(dense[pairs[0][1]][1] == given for given, _ in dense.values()):
        raise no_head(held, wanted, path)
    among = pairs[0][0].rpartition(".")[0]  # a module of torch's, whose other arrays would lie between these
    if separator == "." and among and any(layer.startswith(f"{among}.") for layer in layers.keys() - {*pairs[0]}):
        raise no_head(held, wanted, path)
    place_head(held, separator, [layers[layer] for layer in pairs[0]])
    on = "the last block, flattened" if wanted.flat else "the means of the last block"
    held.changes.append(
        f"{' and '.join(pairs[0])} taken as a head on {on}, with a ReLU between them, as nothing says otherwise"
    )


def place_head(held: Held, separator: str, layers: list[dict[str, Stored]]) -> None:
    """Gives a hidden layer and one of logits the names of a head."""
    for name, leaves in zip(HEAD_LAYERS, layers, strict=True):
        for leaf in LEAVES[separator]:
            held.arrays[f"{name}{separator}{leaf}"] = leaves[leaf]


def reorder(held: Held, name: str, channels: int, axis: int = 0) -> None:
    """Reorders a dense kernel's inputs, along an axis, from channel, height, width to height, width, channel."""

    def reordered(kernel: np.ndarray) -> np.ndarray:
        rows = np.moveaxis(kernel, axis, 0)
        side = math.isqrt(len(rows) // channels)
        rows = rows.reshape(channels, side, side, -1).transpose(1, 2, 0, 3).reshape(rows.shape)
        return np.moveaxis(rows, 0, axis)

    held.arrays[name] = held.arrays[name].changed(reordered)
    layer = re.split(r"[/.]", name)[0]
    held.changes.append(f"{layer}'s rows reordered from channel, height, width")


def no_head(held: Held, wanted: Wanted, path: Path) -> UserError:
    """Returns the error for a file without a head of the study's form."""
    takes = f"{wanted.channels} channels, flattened" if wanted.flat else f"{wanted.channels} means"
    return UserError(
        f"{path}: has no head of the study's form, a hidden dense layer with a ReLU on the network's {takes}, and one"
        f" of logits on that; beside the network it has {first_few(held.left_out) or 'nothing'}; leave the head out"
    )
