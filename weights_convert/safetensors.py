"""torchvision's and timm's arrays, as safetensors."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weights_convert.arrays import Stored, open_safetensors
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
    """Whether it is one of the arrays that have no place here: the auxiliary classifier, and a counter of batches."""
    return name.startswith("AuxLogits.") or name.endswith(".num_batches_tracked")


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[tuple[dict[str, Stored], str, dict[str, Any]]]:
    """The arrays of a file, the layout's name, and no attributes."""
    with open_safetensors(path) as arrays:
        yield arrays, "safetensors", {}
