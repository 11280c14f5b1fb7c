"""A weight file to a backbone's variables: every array in its place, once, or one error that lists what is wrong."""

import contextlib
import datetime
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kimiajax import __version__
from kimiajax.errors import UserError
from kimiajax.io.files import sha256_file
from kimiajax.io.json_records import parse_json
from kimiajax.io.pytrees import digest
from kimiajax.models.backbone import Backbone, Variables
from kimiajax.models.checkpoint import LINEAGE_FORMAT, Weights, origin_of, published_lineage, top_of
from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from weights_convert import keras_h5, safetensors
from weights_convert.arrays import Stored, framework_of
from weights_convert.mapping import IMAGENET, Destination, Files, Table
from weights_convert.mappings import all_files, files_of

FRAMEWORKS = {"keras": keras_h5, "torch": safetensors}
LONGEST_LIST = 2_000  # characters of what is wrong with a file
BACKGROUND_CLASSES = 1001  # TensorFlow-Slim's ImageNet classes, whose first is the background


def convert(
    network: str,
    path: Path,
    *,
    framework: str | None = None,
    top: bool = True,
    fold: bool = False,
    normalised: bool = False,
) -> Weights:
    """Reads a weight file of a network.

    Args:
        network: a key of `BACKBONES` that has a mapping.
        path: a file that Keras saved (`.h5`, of 2017 or of today, `.weights.h5`, `.keras`), or torchvision's or timm's
            arrays as `.safetensors`; with or without top.
        framework: "keras" or "torch" where the file must be of that one; by default either.
        top: false leaves the ImageNet classes, and VGG16's dense layers, out.
        fold: multiply the scale of batch normalisation into the kernels and means, for a network that has none.
            Inference is the same but for rounding; statistics of mini-batches are not.
        normalised: torch's Inception-v3 was trained on ImageNet-normalised images and not on [-1, 1], as timm's
            `gluon_in1k` was; the arrays do not show it.

    Raises:
        UserError: an option that does not apply, no such file, not such a file, another network's, or arrays missing,
            extra, misshapen, of another type or not finite; they are counted, and listed as far as a line goes.
    """
    found = framework_of(path)
    if framework not in (None, found):
        raise UserError(
            f"{path}: seems to be a file of {found}, not of {framework}; name {found} in its place, or give a file of "
            f"{framework}"
        )
    module = FRAMEWORKS[found]
    files = files_of(network, found)
    convention = files.convention
    if fold and not convention.options.get("scale"):
        raise UserError(f"{path}: {found}'s {network} has no batch normalisation with a scale; leave the folding out")
    if normalised and (found != "torch" or convention.expected_input == IMAGENET):
        raise UserError(f"{path}: what {found}'s {network} was trained on is known; leave the normalisation out")
    with module.open_arrays(path) as (arrays, layout, attributes):
        left_out = [name for name in arrays if module.is_unused(name)]
        arrays = {name: stored for name, stored in arrays.items() if name not in left_out}
        if not arrays:
            raise UserError(f"{path}: holds no weights; give a file of {network}")
        table = _choose_table(network, files, arrays, found, path)
        backbone = BACKBONES[network].variant(**convention.options)
        variables = _place(backbone, arrays, table, path)
    exported = _exported_lineage(network, attributes, variables, path)
    if not top and "predictions" in variables["params"]:
        left_out += [name for name in table if table[name][0][1] in backbone.top and name in arrays]
        variables["params"] = {k: v for k, v in variables["params"].items() if k not in backbone.top}
    options = dict(backbone.options)
    if fold:
        del options["scale"]
        variables = fold_scale(variables)
    lineage = {
        "format": LINEAGE_FORMAT,
        "network": network,
        "options": options,
        "framework": found,
        "layout": layout,
        "source": path.name,
        "source_sha256": sha256_file(path),
        "published": published_lineage(backbone, path),
        **top_of(variables),
        "label_offset": int(top_of(variables)["classes"] == BACKGROUND_CLASSES),
        "expected_input": IMAGENET if normalised else convention.expected_input,
        "batch_norm_epsilon": convention.batch_norm_epsilon,
        "batch_norm_scale": ("kept" if options.get("scale") else "folded") if "scale" in convention.options else None,
        "left_out": _summary(left_out),
        "converter": f"kimiajax {__version__}",
        "converted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **exported,
        "digest": digest(variables),
    }
    return Weights(variables, lineage)


def _exported_lineage(network: str, attributes: dict[str, Any], variables: Variables, path: Path) -> dict[str, object]:
    """What an exported file says of its weights: they were trained where it says, not by the framework it is for.

    Raises:
        UserError: its arrays are not those that were exported.
    """
    if keras_h5.LINEAGE not in attributes:
        return {}
    parent, inherited, same = None, {}, False
    with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError):
        parent = parse_json(attributes[keras_h5.LINEAGE])
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


def _choose_table(network: str, files: Files, arrays: dict[str, Stored], framework: str, path: Path) -> Table:
    """The table of the network that shares most names with the file: two spellings may exist.

    Raises:
        UserError: the file's arrays are named as another network's, or as no known one's.
    """
    shared = {
        name: max(len(_own(table) & arrays.keys()) for table in each.tables) for name, each in all_files(framework)
    }
    if not shared[network] or shared[network] < max(shared.values()):
        likely = max(shared, key=shared.__getitem__)
        seen = f"{likely} weights" if shared[likely] else "weights of no network known here"
        raise UserError(f"{path}: holds {seen} ({', '.join(list(arrays)[:3])}, ...); {network} ones are needed")
    return max(files.tables, key=lambda table: len(table.keys() & arrays.keys()))


def _own(table: Table) -> set[str]:
    """The names that tell a network from another: not those of classes or head, which all have."""
    return {name for name, (to, _) in table.items() if to[1] not in ("predictions", "head")}


def _place(backbone: Backbone, arrays: dict[str, Stored], table: Table, path: Path) -> Variables:
    """Every array in its place, or one error that lists what is wrong."""
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

    _check_type(arrays, path)
    faults = [f"missing: {name}" for name in table if name not in arrays]
    faults += [f"extra: {name} {stored.shape}" for name, stored in arrays.items() if name not in table]
    variables: Variables = {"params": {}}
    for name, (to, layout) in table.items():
        if name not in arrays:
            continue
        stored, shape = arrays[name], layout.stored(expected[to])
        if stored.shape != shape:
            faults.append(f"shape: {name} is {stored.shape}, must be {shape}")
            continue
        if stored.dtype != "float32":
            faults.append(f"type: {name} is {stored.dtype}, must be float32")
            continue
        array = np.ascontiguousarray(layout.read(stored.read()))
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
    return variables


def _listed(faults: list[str]) -> str:
    text = "; ".join(faults)
    return text if len(text) <= LONGEST_LIST else f"{text[:LONGEST_LIST].rpartition('; ')[0]}; ..."


def _group(backbone: Backbone, destination: Destination) -> str:
    """Which arrays a file holds all or none of: the blocks', the top's, the head's."""
    block = destination[1]
    return "top" if block in backbone.top else "head" if block == "head" else "blocks"


def _check_type(arrays: dict[str, Stored], path: Path) -> None:
    types = {stored.dtype for stored in arrays.values()}
    if len(types) == 1 and types != {"float32"}:
        raise UserError(f"{path}: all {len(arrays)} arrays are {types.pop()}; float32 is needed: save them so")


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


def _summary(names: list[str]) -> list[str]:
    """Arrays that were passed over, by the part of the network that they belong to."""
    parts: dict[str, int] = {}
    for name in names:
        part = "num_batches_tracked" if name.endswith("num_batches_tracked") else name.split(".")[0].split("/")[0]
        parts[part] = parts.get(part, 0) + 1
    return [f"{part} ({count} arrays)" for part, count in parts.items()]
