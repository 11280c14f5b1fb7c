"""Files that Keras saved: their arrays under the names that mapping tables have.

Layers that Keras only numbers, as it creates them and from network to network in one process, have the rank of their
number there: `conv2d`, `conv2d_1` or `conv2d_94` may be conv2d#0. Four layouts: the weight files published in 2017
(`block1_conv1/block1_conv1_W_1:0`, `conv2d_1/conv2d_1/kernel:0`), what `model.save("x.h5")` of Keras 3 writes (the same
under `/model_weights`, without `:0`), `.weights.h5` and `.keras`.
"""

import contextlib
import functools
import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kimiajax.errors import UserError
from kimiajax.io.files import damage_named
from kimiajax.text import is_name, quoted
from weights_convert.arrays import Stored, open_keras
from weights_convert.mapping import AS_IS, Destination, Table

WEIGHT = re.compile(r"(?:.*_)?(W|b|kernel|bias|beta|gamma|moving_mean|moving_variance)(?:_\d+)?(?::0)?")
NAMES_OF_2017 = {"W": "kernel", "b": "bias"}
HEAP = b"GCOL\1"  # of texts, in an HDF5 file
LINEAGE = "kimiajax_lineage"  # the attribute in which an exported file says where its arrays came from


def dense(layer: str, *path: str) -> Table:
    """Where the kernel and the bias of a dense layer or a convolution go."""
    return {f"{layer}/{leaf}": (("params", *path, leaf), AS_IS) for leaf in ("kernel", "bias")}


def batch_norm(layer: str, *path: str, scale: bool = False) -> Table:
    """Where the arrays of a batch normalisation go; `gamma` where it has a scale."""
    destinations: dict[str, Destination] = {
        **({"gamma": ("params", *path, "scale")} if scale else {}),
        "beta": ("params", *path, "bias"),
        "moving_mean": ("batch_stats", *path, "mean"),
        "moving_variance": ("batch_stats", *path, "var"),
    }
    return {f"{layer}/{leaf}": (to, AS_IS) for leaf, to in destinations.items()}


def renamed(table: Table, layers: dict[str, str]) -> Table:
    """A table for files in which some layers have other names."""

    def rename(name: str) -> str:
        layer, leaf = name.split("/")
        return f"{layers.get(layer, layer)}/{leaf}"

    return {rename(name): entry for name, entry in table.items()}


# The head is this project's own; so are its names, in files that `export` writes.
HEAD_TABLE = dense("head_hidden", "head", "hidden") | dense("head_logits", "head", "logits")


def is_unused(name: str) -> bool:
    """Whether a network of Keras' holds an array of this name that has no place here: none does."""
    return False


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[tuple[dict[str, Stored], str, dict[str, Any]]]:
    """A file's arrays under the names of the tables, the layout's name, and the attribute `LINEAGE`, if it is there.

    Raises:
        UserError: not a file that Keras wrote, or one whose arrays have no clear names.
    """
    with open_keras(path) as file:
        with damage_named(path):
            _check_texts(file, path)
            _check_links(file, path)
            arrays, layout = _find(file, path)
            attributes = {LINEAGE: file.attrs[LINEAGE]} if LINEAGE in file.attrs else {}
        if not arrays:
            raise UserError(f"{path}: holds no weights; give a file that Keras saved")
        yield _by_rank(arrays), layout, attributes


def _check_texts(file: h5py.File, path: Path) -> None:
    """Raises UserError for texts that HDF5, 2.0 at least, would read for ever: an entry without length, as in a hole.

    Texts lie in heaps, whose header of 16 bytes ends with their size: entries one after another, each with its number,
    0 for what is free, and its length in a header of 16 bytes. That of what is free counts the header.
    """
    if file.id.get_create_plist().get_sizes() != (8, 8):
        raise UserError(f"{path}: has lengths of other than 64 bits, and Keras writes none such; fetch it again")
    with _content(Path(file.filename)) as content:
        heap = content.find(HEAP)
        while heap >= 0:
            place, end = heap + 16, min(heap + int.from_bytes(content[heap + 8 : heap + 16], "little"), len(content))
            while place + 16 <= end:
                number, length = struct.unpack_from("<H6xQ", content, place)
                taken = (16 + -(-length // 8) * 8) % 2**64 if number else length
                if not taken:
                    raise UserError(f"{path}: a damaged HDF5 file (its texts have a hole at {place:,}); fetch it again")
                place += taken
            heap = content.find(HEAP, heap + len(HEAP))


@contextlib.contextmanager
def _content(path: Path) -> Iterator[mmap.mmap | bytes]:
    """A file's bytes, mapped where the file system can."""
    with path.open("rb") as stream:
        try:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError:
            yield stream.read()
            return
        with mapped:
            yield mapped


def _check_links(file: h5py.File, path: Path) -> None:
    """Raises UserError for what leads elsewhere, into another file perhaps, and for a name that no line can show."""

    def visit(name: str, link: object) -> str | None:
        return None if isinstance(link, h5py.HardLink) and is_name(name) else name

    odd = file.visititems_links(visit)
    if odd is not None:
        raise UserError(
            f"{path}: {quoted(odd)} is a link, or a name that no line can show, and Keras writes neither; give a file "
            "that Keras saved"
        )


def _find(file: h5py.File, path: Path) -> tuple[dict[str, Stored], str]:
    layers = file.get("layers")
    if isinstance(layers, h5py.Group):
        return _by_saved_name(layers, path), ".weights.h5 or .keras"
    root = file.get("model_weights", file)
    if not isinstance(root, h5py.Group):
        raise UserError(f"{path}: /model_weights is no group; give a file that Keras saved")
    return _by_layer(root, path), ".h5" if root is not file else ".h5 of weights"


def _stored(dataset: h5py.Dataset, path: Path) -> Stored:
    """An array that is whole in the file: one never written reads as zeros, of any size."""
    if dataset.external:
        raise UserError(f"{path}: {dataset.name} lies in another file; give a file that Keras saved")
    if dataset.shape is None or dataset.id.get_storage_size() < dataset.size * dataset.dtype.itemsize:
        raise UserError(
            f"{path}: {dataset.name} was never written, or is compressed, which Keras does not do; fetch the file again"
        )
    return Stored(dataset.shape, str(dataset.dtype), functools.partial(_read, dataset, path))


def _read(dataset: h5py.Dataset, path: Path) -> np.ndarray:
    with damage_named(path):
        return dataset[...]


def _by_layer(root: h5py.Group, path: Path) -> dict[str, Stored]:
    """LAYER/.../WEIGHT, the layer being the first part of the path."""
    arrays: dict[str, Stored] = {}

    def visit(name: str, item: h5py.HLObject) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        layer, leaf = name.split("/", 1)[0], name.rsplit("/", 1)[-1]
        match = WEIGHT.fullmatch(leaf)
        name = f"{layer}/{NAMES_OF_2017.get(match[1], match[1]) if match else leaf}"
        if name in arrays:
            raise UserError(f"{path}: holds two arrays {name}; give the file of one network")
        arrays[name] = _stored(item, path)

    root.visititems(visit)
    return arrays


def _by_saved_name(layers: h5py.Group, path: Path) -> dict[str, Stored]:
    """.../GROUP/vars/0, 1, ...: groups are numbered by depth; the layer's own name is an attribute of vars."""
    arrays: dict[str, Stored] = {}

    def visit(name: str, item: h5py.HLObject) -> None:
        if not isinstance(item, h5py.Group) or name.rsplit("/", 1)[-1] != "vars" or not len(item):
            return
        layer = item.attrs.get("name")
        if not isinstance(layer, str) or not is_name(layer):
            raise UserError(f"{path}: {item.name} does not say which layer it is; save it with a newer Keras")
        entries = [item.get(str(number)) for number in range(len(item))]
        numbered = [entry for entry in entries if isinstance(entry, h5py.Dataset)]
        leaves = _leaves(numbered)
        if leaves is None or len(numbered) != len(item):
            raise UserError(
                f"{path}: {layer} is no convolution, dense layer or batch normalisation; give the file of "
                "one network alone"
            )
        for leaf, dataset in zip(leaves, numbered):
            if f"{layer}/{leaf}" in arrays:
                raise UserError(f"{path}: holds two layers {layer}; give the file of one network")
            arrays[f"{layer}/{leaf}"] = _stored(dataset, path)

    layers.visititems(visit)
    return arrays


def _leaves(datasets: list[h5py.Dataset]) -> tuple[str, ...] | None:
    """The names of a layer's arrays, which are only numbered: the first one's rank tells the kind of layer."""
    match [dataset.ndim for dataset in datasets]:
        case [4 | 2]:
            return ("kernel",)
        case [4 | 2, 1]:
            return "kernel", "bias"
        case [1, 1, 1]:
            return "beta", "moving_mean", "moving_variance"
        case [1, 1, 1, 1]:
            return "gamma", "beta", "moving_mean", "moving_variance"
    return None


def _by_rank(arrays: dict[str, Stored]) -> dict[str, Stored]:
    """Numbered layers renamed by the rank of their number: conv2d#0, conv2d#1, ..."""
    ranked = {}
    for kind in ("conv2d", "batch_normalization"):
        layers = {name.split("/")[0] for name in arrays if re.match(rf"{kind}(_\d+)?/", name)}
        by_number = sorted(layers, key=lambda layer: int(layer.removeprefix(kind)[1:] or 0))
        ranked |= {layer: f"{kind}#{rank}" for rank, layer in enumerate(by_number)}
    renamed = {}
    for name, stored in arrays.items():
        layer, leaf = name.split("/", 1)
        renamed[f"{ranked.get(layer, layer)}/{leaf}"] = stored
    return renamed
