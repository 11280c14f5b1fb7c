"""Files that Keras saved: their arrays under the names that mapping tables have.

Layers that Keras only numbers, as it creates them and from network to network in one process, have the rank of their
number there: `conv2d`, `conv2d_1` or `conv2d_94` may be conv2d#0. Four layouts: the weight files published in 2017
(`block1_conv1/block1_conv1_W_1:0`, `conv2d_1/conv2d_1/kernel:0`), what `model.save("x.h5")` of Keras 3 writes (the same
under `/model_weights`, without `:0`), `.weights.h5` and `.keras`. A network may lie within another model in each.
"""

import contextlib
import math
import mmap
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np

from kimiajax.errors import UserError
from kimiajax.io.hdf5_files import check_filters, damage_named
from kimiajax.text import is_name, quoted
from weights_convert.arrays import Opened, Stored, open_keras
from weights_convert.keras_graph import Graph, ranks
from weights_convert.keras_hold import hold
from weights_convert.keras_said import Said
from weights_convert.mapping import AS_IS, Destination, Table

WEIGHT = re.compile(r"(W|b|kernel|bias|gamma|beta|(?:moving|running)_(?:mean|variance|std))(?:_\d+)?")
# Of Keras 1, whose `running_std` is a variance as well.
OLD_NAMES = {
    **{"W": "kernel", "b": "bias", "running_mean": "moving_mean"},
    **dict.fromkeys(("running_std", "running_variance"), "moving_variance"),
}
LISTS = ("layers", "_layer_checkpoint_dependencies")  # groups of a model's layers
BFLOAT16 = "|V2"  # as h5py writes it: two bytes of no type
HEAP = b"GCOL\1"  # of texts, in an HDF5 file
__all__ = ["HEAD_TABLE", "LINEAGE", "batch_norm", "dense", "hold", "open_arrays", "renamed"]
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


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[Opened]:
    """Opens a file: its arrays under the names of the tables, and what it says of itself.

    Raises:
        UserError: not a file that Keras wrote, or one whose arrays have no clear names.
    """
    with open_keras(path) as (file, archived):
        with damage_named(path):
            _check_texts(file, path)
            _check_links(file, path)
            said = Said.read(file, archived, path)
            networks, layout = _find(file, path, said)
            lineage = file.attrs.get(LINEAGE)
        yield Opened("keras", {place: by_rank(arrays) for place, arrays in networks.items()}, layout, lineage, said)


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


Networks = dict[str, dict[str, Stored]]  # place within the file -> array by name


def _find(file: h5py.File, path: Path, said: Said) -> tuple[Networks, str]:
    if said.saved_by_number:
        return _by_saved_name(file, path, said.graph), ".weights.h5 or .keras"
    root = file.get("model_weights", file)
    if not isinstance(root, h5py.Group):
        raise UserError(f"{path}: /model_weights is no group; give a file that Keras saved")
    return _by_layer(root, path), ".h5" if root is not file else ".h5 of weights"


def _stored(dataset: h5py.Dataset, path: Path) -> Stored:
    """An array that is whole in the file: one never written reads as zeros, of any size."""
    name = str(dataset.name)
    if dataset.external:
        raise UserError(f"{path}: {name} lies in another file; give a file that Keras saved")
    check_filters(dataset, path)
    if dataset.shape is None or not _is_written(dataset):
        raise UserError(f"{path}: {name} was never written, or only in part; fetch the file again")

    def read() -> np.ndarray:
        with damage_named(path):
            values = dataset[...]
        return values.view(ml_dtypes.bfloat16) if values.dtype.str == BFLOAT16 else values

    dtype = "bfloat16" if dataset.dtype.str == BFLOAT16 else str(dataset.dtype)
    return Stored(dataset.shape, dtype, read, name.removeprefix("/model_weights").strip("/"))


def _is_written(dataset: h5py.Dataset) -> bool:
    """Returns whether all of an array is in the file; compressed, as a program that saves space leaves it, it may be
    small."""
    stored = dataset.id.get_storage_size()
    if dataset.chunks is None:
        return bool(stored >= dataset.size * dataset.dtype.itemsize)
    needed = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks))
    return bool(stored > 0 and dataset.id.get_num_chunks() == needed)


def _by_layer(root: h5py.Group, path: Path) -> Networks:
    """LAYER/.../WEIGHT, the layer being the first part of the path; within a model that is a layer, the next one."""
    found: list[tuple[list[str], h5py.Dataset]] = []

    def visit(name: str, item: h5py.HLObject) -> None:
        parts = name.split("/")
        if isinstance(item, h5py.Dataset) and parts[0] != "optimizer_weights":
            found.append(([*parts[:-1], _leaf(parts)], item))

    root.visititems(visit)
    networks: Networks = defaultdict(dict)

    def place(items: list[tuple[list[str], h5py.Dataset]], network: str) -> None:
        layers = defaultdict(list)
        for parts, item in items:
            layers[parts[0]].append((parts, item))
        for layer, each in layers.items():
            leaves = Counter(parts[-1] for parts, _ in each)
            if max(leaves.values()) == 1:
                networks[network] |= {f"{layer}/{parts[-1]}": _stored(item, path) for parts, item in each}
            elif min(len(parts) for parts, _ in each) > 2:
                place([(parts[1:], item) for parts, item in each], f"{network}{layer}/")
            else:
                twice = next(leaf for leaf, count in leaves.items() if count > 1)
                raise UserError(f"{path}: holds two arrays {layer}/{twice}; give the file of one network")

    place(found, "")
    return networks


def _leaf(parts: list[str]) -> str:
    """Which of a layer's arrays one is, under the names of today: "kernel" for `block1_conv1_W_1:0`."""
    said = parts[-1].removesuffix(":0")
    match = WEIGHT.fullmatch(said.removeprefix(f"{parts[-2]}_") if len(parts) > 1 else said)
    return OLD_NAMES.get(match[1], match[1]) if match else said


def _by_saved_name(file: h5py.File, path: Path, graph: Graph | None) -> Networks:
    """.../GROUP/vars/0, 1, ...: groups are numbered by depth; the layer's own name is an attribute of vars."""
    networks: Networks = defaultdict(dict)
    for key, group in _saved(file, "", graph or Graph(), path):
        place, _, layer = key.rpartition("/")
        arrays = networks[f"{place}/" if place else ""]
        entries = [group.get(str(number)) for number in range(len(group))]
        numbered = [entry for entry in entries if isinstance(entry, h5py.Dataset)]
        if len(numbered) != len(group):
            raise UserError(f"{path}: {group.name} is not numbered from 0; give a file that Keras saved")
        for leaf, dataset in zip(_leaves(numbered), numbered):
            if f"{layer}/{leaf}" in arrays:
                raise UserError(f"{path}: holds two layers {layer}; give the file of one network")
            arrays[f"{layer}/{leaf}"] = replace(_stored(dataset, path), name=f"{key}/{leaf}")
    return networks


def _saved(group: h5py.Group, model: str, graph: Graph, path: Path) -> Iterator[tuple[str, h5py.Group]]:
    """Gives each layer's group of arrays with the layer's key, as `Graph` has it.

    Raises:
        UserError: an earlier Keras 3 wrote kinds and numbers in place of names, with no configuration beside them.
    """
    kinds: Counter[str] = Counter()
    for name in sorted(group, key=_in_order):
        child = group[name]
        if not isinstance(child, h5py.Group) or name == "vars" or (name == "optimizer" and not model):
            continue
        if name in LISTS:
            yield from _saved(child, model, graph, path)
            continue
        arrays, kind = child.get("vars"), re.sub(r"_\d+$", "", name)
        said = arrays.attrs.get("name") if isinstance(arrays, h5py.Group) else None
        if not isinstance(said, str) or not is_name(said):
            alike = [key for key in graph.within(model) if _saved_kind(graph.kinds[key]) == kind]
            said = alike[kinds[kind]].removeprefix(model) if kinds[kind] < len(alike) else None
        kinds[kind] += 1
        if isinstance(arrays, h5py.Group) and len(arrays):
            if said is None:
                raise UserError(f"{path}: {arrays.name} does not say which layer it is; save it with a newer Keras")
            yield f"{model}{said}", arrays
        yield from _saved(child, f"{model}{said or name}/", graph, path)


def _in_order(name: str) -> tuple[str, int]:
    """Conv2d, conv2d_1, conv2d_2, ..., conv2d_10."""
    match = re.fullmatch(r"(.*)_(\d+)", name)
    return (match[1], int(match[2])) if match else (name, 0)


def _saved_kind(kind: str) -> str:
    """A layer's class as groups are named by it: batch_normalization, conv2d."""
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()


def _leaves(datasets: list[h5py.Dataset]) -> Iterable[str]:
    """The names of a layer's arrays, which are only numbered: the first one's rank tells the kind of layer."""
    match [dataset.ndim for dataset in datasets]:
        case [4 | 2]:
            return ("kernel",)
        case [4 | 2, 1]:
            return "kernel", "bias"
        case [1, 1, 0]:
            return "mean", "variance", "count"
        case [1, 1, 1]:
            return "beta", "moving_mean", "moving_variance"
        case [1, 1, 1, 1]:
            return "gamma", "beta", "moving_mean", "moving_variance"
    return map(str, range(len(datasets)))


def by_rank(arrays: Mapping[str, Stored]) -> dict[str, Stored]:
    """Returns arrays of which numbered layers have the names that tables give them."""
    ranked = ranks(name.split("/")[0] for name in arrays)

    def rename(name: str) -> str:
        layer, leaf = name.split("/", 1)
        return f"{ranked.get(layer, layer)}/{leaf}"

    return {rename(name): stored for name, stored in arrays.items()}
