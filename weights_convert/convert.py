"""A weight file to a backbone's variables: every array in its place, once, or one error that lists what is wrong."""

import contextlib
import datetime
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from kimiajax import __version__
from kimiajax.errors import UserError
from kimiajax.io.files import sha256_file
from kimiajax.io.json_records import parse_json
from kimiajax.io.pytrees import digest
from kimiajax.models.backbone import Backbone, Flat, Variables
from kimiajax.models.checkpoint import LINEAGE_FORMAT, Weights, origin_of, published_lineage, top_of
from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.text import first_few, quoted
from weights_convert import keras_h5, safetensors
from weights_convert.arrays import Opened, Stored, framework_of
from weights_convert.held import AS_PUBLISHED, Held, Stated, Wanted
from weights_convert.mapping import IMAGENET, Destination, Table
from weights_convert.mappings import all_files, files_of

FRAMEWORKS = {"keras": keras_h5, "torch": safetensors}
LONGEST_LIST = 2_000  # characters of what is wrong with a file
BACKGROUND_CLASSES = 1001  # TensorFlow-Slim's ImageNet classes, whose first is the background
NARROWED = {"float16": "widened", "bfloat16": "widened", "float64": "rounded"}  # types that are taken as float32


@contextlib.contextmanager
def reading(
    network: str, path: Path, stated: Stated | None = None, framework: str | None = None
) -> Iterator[tuple[Opened, Table, Held]]:
    """Opens a weight file and finds the network in it.

    Gives the file, the table of the network's names, and the arrays with what the file says of them. Arguments and
    errors are those of `convert`.
    """
    stated, found = stated or Stated(), framework_of(path)
    if framework not in (None, found):
        raise UserError(
            f"{path}: seems to be a file of {found}, not of {framework}; name {found} in its place, or give a file of "
            f"{framework}"
        )
    if found != "keras" and (stated.backend or stated.data_format):
        raise UserError(f"{path}: {found} has one layout; leave the backend and the order of axes out")
    with FRAMEWORKS[found].open_arrays(path) as opened:
        if not any(opened.networks.values()):
            raise UserError(f"{path}: holds no weights; give a file of {network}")
        place, table = _choose(network, opened, path)
        held = Held(
            {name: stored for name, stored in opened.networks[place].items() if name in table},
            {array.name: array for each in opened.networks.values() for array in each.values()},
            published_lineage(BACKBONES[network], path),
        )
        FRAMEWORKS[found].hold(opened, place, held, _wanted(network, found, table), stated, path)
        yield opened, {**table, **FRAMEWORKS[found].HEAD_TABLE}, held


def convert(
    network: str,
    path: Path,
    *,
    framework: str | None = None,
    top: bool = True,
    head: bool = False,
    fold: bool = False,
    normalised: bool = False,
    backend: str | None = None,
    data_format: str | None = None,
) -> Weights:
    """Reads a weight file of a network.

    The network may lie within another model, or have another head than its classes: what is not the network's is left
    out, and the lineage names it under `left_out`. What the file says of itself is held against what reading it
    assumes; the lineage has it under `says`, and under `changes` what was done to the arrays for it.

    Args:
        network: a key of `BACKBONES` that has a mapping.
        path: a file that Keras saved (`.h5`, of 2016 or of today, `.weights.h5`, `.keras`), or torchvision's or timm's
            arrays as `.safetensors`; with or without top.
        framework: "keras" or "torch" where the file must be of that one; by default either.
        top: false leaves the ImageNet classes, and VGG16's dense layers, out.
        head: take a person's own head of the study's form: a hidden dense layer with a ReLU, and one of logits.
        fold: multiply the scale of batch normalisation into the kernels and means, for a network that has none.
            Inference is the same but for rounding; statistics of mini-batches are not.
        normalised: torch's Inception-v3 was trained on ImageNet-normalised images and not on [-1, 1], as timm's
            `gluon_in1k` was; the arrays do not show it.
        backend: what Keras ran on, for a file that does not say it: "theano", whose kernels are turned, or
            "tensorflow".
        data_format: "channels_last" or "channels_first", for a file of weights alone with dense layers on a flattened
            image that does not say it.

    Raises:
        UserError: an option that does not apply, no such file, not such a file, another network's, one that contradicts
            itself or does not say enough, or arrays missing, extra, misshapen, of another type or not finite; they are
            counted, and listed as far as a line goes.
    """
    with reading(network, path, Stated(top, head, backend, data_format), framework) as (opened, table, held):
        found = opened.framework
        convention = files_of(network, found).convention
        if fold and not convention.options.get("scale"):
            raise UserError(
                f"{path}: {found}'s {network} has no batch normalisation with a scale; leave the folding out"
            )
        if normalised and (found != "torch" or convention.expected_input == IMAGENET):
            raise UserError(f"{path}: what {found}'s {network} was trained on is known; leave the normalisation out")
        if "scale" in _fields(network) and any(to[-1] == "scale" for to, _ in table.values()):
            held.options["scale"] = True
        backbone = BACKBONES[network].variant(**{**convention.options, **held.options})
        variables = _place(backbone, held, table, path)
        if held.parts_at:
            raise UserError(
                f"{path}: its configuration and its arrays part at {held.parts_at}; save it again from the model"
            )
    exported = _exported_lineage(network, opened.lineage, variables, path)
    options = dict(backbone.options)
    if fold:
        del options["scale"]
        variables = fold_scale(variables)
    expected_input = convention.expected_input if held.expected_input is AS_PUBLISHED else held.expected_input
    lineage = {
        "format": LINEAGE_FORMAT,
        "network": network,
        "options": options,
        "framework": found,
        "layout": opened.layout,
        "source": path.name,
        "source_sha256": sha256_file(path),
        "published": held.published,
        "says": held.says,
        "changes": held.changes,
        **top_of(variables),
        "label_offset": int(top_of(variables)["classes"] == BACKGROUND_CLASSES),
        "expected_input": IMAGENET if normalised else expected_input,
        "batch_norm_epsilon": held.options.get("epsilon", convention.batch_norm_epsilon),
        "batch_norm_scale": "kept" if options.get("scale") else "folded" if fold else None,
        "left_out": _summary(held),
        "converter": f"kimiajax {__version__}",
        "converted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **exported,
        "digest": digest(variables),
    }
    return Weights(variables, lineage)


def _wanted(network: str, framework: str, table: Table) -> Wanted:
    """Returns what a file of a network is held against."""
    backbone, files = BACKBONES[network], files_of(network, framework)
    today = files.tables[0]
    layers = {to[1:-1]: _layer(name) for name, (to, _) in today.items()}
    shapes = backbone.tap_shapes(backbone.shapes(backbone.smallest, backbone.trunk), backbone.smallest, backbone.trunk)
    return Wanted(
        title=backbone.name,
        layers={_layer(name): _layer(name) if table is today else layers[to[1:-1]] for name, (to, _) in table.items()},
        described=files.model.described if files.model else {},
        top={block: {name for name, (to, _) in table.items() if to[1] == block} for block in backbone.top},
        widths=_widths(backbone),
        channels=shapes[backbone.bottleneck][-1],
        flat=backbone.bottleneck != "pooled",
        epsilon=files.convention.batch_norm_epsilon,
        takes_epsilon="epsilon" in _fields(network),
    )


def _exported_lineage(network: str, written: Any, variables: Variables, path: Path) -> dict[str, object]:
    """What an exported file says of its weights: they were trained where it says, not by the framework it is for.

    Raises:
        UserError: its arrays are not those that were exported.
    """
    if written is None:
        return {}
    parent, inherited, same = None, {}, False
    with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError):
        parent = parse_json(written)
        inherited = {key: parent[key] for key in ("label_offset", "expected_input")}
        origin_of(parent)
        told = parent["format"], parent["network"], parent["digest"]
        same = told == (LINEAGE_FORMAT, network, digest(variables))
    if not same:
        raise UserError(
            f"{path}: its arrays are not those that its lineage speaks of: it was changed after its export; remove the "
            f"attribute {keras_h5.LINEAGE!r} to take it as a file of Keras"
        )
    return {"parent": parent, **inherited}


def _fields(network: str) -> Iterable[str]:
    """The options that the network has."""
    return BACKBONES[network].module.__dataclass_fields__


def _layer(name: str) -> str:
    return re.split(r"[/.](?=[^/.]*$)", name)[0]


def _widths(backbone: Backbone) -> dict[str, int]:
    """How many values the dense blocks before the classes give."""
    blocks = backbone.top[:-1]
    if not blocks:
        return {}
    arrays: Flat = flatten_dict(backbone.shapes(backbone.smallest)["params"])
    return {block: leaf.shape[0] for (block, *_, kind), leaf in arrays.items() if block in blocks and kind == "bias"}


def _choose(network: str, opened: Opened, path: Path) -> tuple[str, Table]:
    """The place in a file, and the table of the network, that share most names: two spellings may exist.

    Raises:
        UserError: the file's arrays are named as another network's, or as no known one's, or two networks lie in it.
    """
    shared = {
        (name, place): [(len(_own(table) & arrays.keys()), len(table.keys() & arrays.keys())) for table in each.tables]
        for name, each in all_files(opened.framework)
        for place, arrays in opened.networks.items()
    }
    best = max(opened.networks, key=lambda place: (max(shared[network, place]), -len(place)))
    here = {name: max(shared[name, best]) for name, of in shared if of == best}
    if not here[network][0] or here[network][0] < max(here.values())[0]:
        anywhere = {name: max(max(counts) for (of, _), counts in shared.items() if of == name) for name in here}
        likely = max(anywhere, key=anywhere.__getitem__)
        seen = f"{likely} weights" if anywhere[likely][0] else "weights of no network known here"
        names = first_few(stored.name for arrays in opened.networks.values() for stored in arrays.values())
        raise UserError(f"{path}: holds {seen} ({names}); {network} ones are needed")
    places = [place for place in opened.networks if max(shared[network, place]) == here[network]]
    place = best
    apart = [other for other in places if not _overlap(opened.networks[place], opened.networks[other])]
    if apart:
        raise UserError(
            f"{path}: holds two networks {network}, in {quoted(place)} and in {quoted(apart[0])}; give the file of one"
        )
    counts = shared[network, place]
    return place, files_of(network, opened.framework).tables[counts.index(max(counts))]


def _overlap(one: dict[str, Stored], other: dict[str, Stored]) -> bool:
    return bool({stored.name for stored in one.values()} & {stored.name for stored in other.values()})


def _own(table: Table) -> set[str]:
    """The names that tell a network from another: not those of classes or head, which all have."""
    return {name for name, (to, _) in table.items() if to[1] not in ("predictions", "head")}


def _place(backbone: Backbone, held: Held, table: Table, path: Path) -> Variables:
    """Every array in its place, or one error that lists what is wrong."""
    arrays = held.arrays
    groups = {name: _group(backbone, to) for name, (to, _) in table.items()}
    present = {"blocks"} | {groups[name] for name in arrays if name in groups}
    table = {name: entry for name, entry in table.items() if groups[name] in present}
    expected = _expected_shapes(backbone, arrays, table, present)
    places = [to for to, _ in table.values()]
    if sorted(places) != sorted(expected):
        odd = min(set(places).symmetric_difference(expected), default=("one named twice",))
        raise UserError(
            f"{backbone.mapping}: its table and the arrays of {backbone.name} part at {'/'.join(odd)}; mend it"
        )

    faults = [f"missing: {name}" for name in table if name not in arrays]
    faults += [f"extra: {name} {stored.shape}" for name, stored in arrays.items() if name not in table]
    variables: Variables = {"params": {}}
    types: Counter[str] = Counter()
    for name, (to, layout) in table.items():
        if name not in arrays:
            continue
        stored, shape = arrays[name], layout.stored(expected[to])
        if stored.shape != shape:
            faults.append(f"shape: {name} is {stored.shape}, must be {shape}")
            continue
        if stored.dtype != "float32" and stored.dtype not in NARROWED:
            faults.append(f"type: {name} is {stored.dtype}, must be float32, or float16, bfloat16 or float64")
            continue
        array = np.ascontiguousarray(layout.read(stored.read()))
        if stored.dtype != "float32":
            types[stored.dtype] += 1
            with np.errstate(over="ignore"):  # infinity, which is told below
                array = array.astype(np.float32)
        if not np.isfinite(array).all():
            faults.append(f"values: {name} holds NaN or infinity")
        elif to[-1] == "var" and (array < 0).any():
            faults.append(f"values: {name} holds negative variances")
        elif to[-1] == "kernel" and not array.any():
            faults.append(f"values: {name} is 0 throughout")
        node = variables
        for part in to[:-1]:
            node = node.setdefault(part, {})
        node[to[-1]] = array
    if faults:
        count = "an array is not that" if len(faults) == 1 else f"{len(faults)} arrays are not those"
        raise UserError(
            f"{path}: {count} of {backbone.name}: {_listed(faults)}; give {backbone.name}'s file as its framework "
            "saved it"
        )
    held.changes += [f"{count} arrays {NARROWED[dtype]} from {dtype}" for dtype, count in sorted(types.items())]
    return variables


def _listed(faults: list[str]) -> str:
    text = "; ".join(faults)
    return text if len(text) <= LONGEST_LIST else f"{text[:LONGEST_LIST].rpartition('; ')[0]}; ..."


def _group(backbone: Backbone, destination: Destination) -> str:
    """Which arrays a file holds all or none of: the blocks', the top's, the head's."""
    block = destination[1]
    return "top" if block in backbone.top else "head" if block == "head" else "blocks"


def _expected_shapes(
    backbone: Backbone, arrays: dict[str, Stored], table: Table, present: set[str]
) -> dict[Destination, tuple[int, ...]]:
    """The shapes that the network has at the image size and class count that the file's dense layers speak of."""
    size, stored = backbone.smallest, {to: arrays[name] for name, (to, _) in table.items() if name in arrays}

    def count(*to: str) -> int | None:
        return stored[to].shape[-1] if to in stored and stored[to].shape else None

    def inputs(*to: str) -> int | None:
        kernel, outputs = stored.get((*to, "kernel")), count(*to, "bias")
        return math.prod(kernel.shape) // outputs if kernel and outputs else None

    first = [to[:-1] for to in stored if to[1] in backbone.top[:1] and to[-1] == "kernel"]
    flat = (inputs(*first[0]) if first else None) or (inputs("params", "head", "hidden") if backbone.hidden else None)
    if flat:  # dense layers on what is flattened hold for one image size
        size = backbone.size_for(flat)
    blocks = backbone.blocks if "top" in present else backbone.trunk
    shapes = backbone.shapes(size, blocks, num_classes=count("params", "predictions", "bias") or 1000)
    if "head" in present:
        hidden, classes = (count("params", "head", layer, "bias") for layer in ("hidden", "logits"))
        classifier = Classifier(replace(backbone, hidden=hidden or backbone.hidden), (), classes or 1)
        bottleneck = backbone.tap_shapes(shapes, size, backbone.trunk)[backbone.bottleneck]
        shapes["params"]["head"] = jax.eval_shape(lambda: classifier.init_head(jax.random.key(0), bottleneck))
    return {tuple(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}


def fold_scale(variables: Variables) -> Variables:
    """Batch normalisation's scale multiplied into the convolution before it and into the running mean.

    s (x - m) / sqrt(v + e) + b is (s x - s m) / sqrt(v + e) + b: the variance stays as it is.
    """
    params, statistics = dict(variables["params"]), {}
    for block, units in variables["batch_stats"].items():
        params[block], statistics[block] = {}, {}
        for unit, moments in units.items():
            arrays = variables["params"][block][unit]
            scale = arrays["bn"]["scale"]
            params[block][unit] = {
                "conv": {"kernel": arrays["conv"]["kernel"] * scale},
                "bn": {"bias": arrays["bn"]["bias"]},
            }
            statistics[block][unit] = {"bn": {"mean": moments["bn"]["mean"] * scale, "var": moments["bn"]["var"]}}
    return {"params": params, "batch_stats": statistics}


def _summary(held: Held) -> list[str]:
    """The arrays that were passed over, by the part of the network that they belong to."""
    parts: dict[str, int] = {}
    for name in held.left_out:
        own = name.removeprefix(held.prefix)
        part = "num_batches_tracked" if own.endswith("num_batches_tracked") else re.split(r"[/.]", own)[0]
        parts[part] = parts.get(part, 0) + 1
    return [f"{part} ({count} array{'s' * (count > 1)})" for part, count in parts.items()]
