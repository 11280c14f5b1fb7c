"""Weights for a backbone: find, verify, load, and fit them strictly into the blocks that are needed.

A converted checkpoint is a folder: `lineage.json`, which says where the arrays came from, and `arrays/`.
"""

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from kimiajax import __version__
from kimiajax.checkpoints import digest, load_tree, refuse_unreadable, save_tree
from kimiajax.errors import UserError
from kimiajax.files import new_folder
from kimiajax.lineage import ancestry, root_of
from kimiajax.models.backbone import Backbone, Flat, PublishedFile, Variables
from kimiajax.models.conv import Way
from kimiajax.models.registry import BACKBONES
from kimiajax.seals import SEAL, is_sealed, sealed

LINEAGE_FORMAT = 1


@dataclass(frozen=True)
class Weights:
    """A backbone's variables and where they came from.

    Attributes:
        variables: `{"params": {block: ...}, "batch_stats": {block: ...}}`.
        lineage: network and its options, framework, source file and its SHA-256, class count, the input that the
            weights were trained on, and the SHA-256 of the arrays (`digest`).
        conv: how their backbone convolves.
    """

    variables: Variables
    lineage: dict[str, Any]
    conv: Way = "plain"

    @property
    def backbone(self) -> Backbone:
        """The network in the variant that these weights are of."""
        backbone = BACKBONES[self.lineage["network"]].variant(**self.lineage["options"])
        return replace(backbone, conv=self.conv)

    def save(self, folder: str | Path) -> None:
        """Writes a converted checkpoint; the folder appears whole or not at all.

        Raises:
            UserError: other arrays than those that the lineage speaks of.
        """
        if digest(self.variables) != self.lineage.get("digest"):
            raise UserError(
                f"{folder}: the lineage speaks of other arrays, so nothing is written; of arrays that were trained "
                "`kimiajax.fine_tuned(weights, variables, blocks, source)` makes weights"
            )
        with new_folder(Path(folder)) as aside:
            save_tree(aside / "arrays", self.variables)
            (aside / "lineage.json").write_text(json.dumps(sealed(self.lineage), indent=2) + "\n")


def load_weights(
    network: Backbone | str,
    source: str | Path = "imagenet",
    *,
    blocks: Sequence[str] | None = None,
    image_size: int = 224,
    seed: int = 0,
    cache: Path | None = None,
    progress: Callable[[str], Any] | None = None,
) -> Weights:
    """Loads the weights of some blocks of a backbone.

    Args:
        network: its name, for the variant that the weights are of (`backbone` of what is returned); or a backbone,
            which must be that variant.
        source: "imagenet" for the files that Keras publishes, "random" for He-scaled random weights, or the path of a
            converted checkpoint, of a file that Keras saved, or of torchvision's or timm's arrays as safetensors.
        blocks: the blocks needed, by default up to the paper's features; others that the source holds are left out.
        image_size: side of the images; VGG16's dense blocks hold for one size only.
        seed: of the random weights.
        cache: where downloads and conversions are kept; by default the user's cache folder.
        progress: called with a description, gives pooch's progress object for a download.

    Raises:
        UserError: weights that cannot be had, are damaged, are another network's, or do not fit; nothing falls back
            to random weights.
    """
    backbone = _backbone(network)
    blocks = backbone.up_to(backbone.features) if blocks is None else tuple(blocks)
    if source == "random":
        weights = _random(backbone, blocks, image_size, seed)
    elif source == "imagenet":
        weights = _imagenet(backbone, bool(set(backbone.top) & set(blocks)), cache or default_cache(), progress)
    elif Path(source).is_dir():
        weights = load_converted(Path(source))
    else:
        weights = _convert(backbone.name, Path(source))
    if weights.lineage["network"] != backbone.name:
        raise UserError(f"{source}: holds {weights.lineage['network']} weights; {backbone.name} ones are needed")
    options = weights.lineage["options"]
    if not isinstance(network, str) and dict(backbone.options) != options:
        needed = ", ".join(f"{name}={value}" for name, value in options.items()) or "no option"
        raise UserError(
            f"{source}: these weights are of {backbone.name} with {needed}; give load_weights the name "
            f"{backbone.name!r} and use the `backbone` of what it returns"
        )
    variables = _only(weights.variables, backbone.variant(**options), blocks, image_size, source)
    return Weights(variables, weights.lineage)


def load_converted(folder: Path) -> Weights:
    """Loads a converted checkpoint, or a fine-tuned network's, and checks its arrays against its lineage.

    Raises:
        UserError: not such a checkpoint, one of another version of this program, or arrays that are not those that the
            lineage speaks of.
    """
    try:
        lineage = json.loads((folder / "lineage.json").read_text())
        whole, written = is_sealed(lineage), lineage.get("format")
        lineage.pop(SEAL, None)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        remedy = "make one with `python -m weights_convert keras NETWORK FILE OUT`"
        if (folder / "results.json").is_file():
            remedy = f"the networks of this run's rows are {folder / 'checkpoints'}/ROW"
        raise UserError(f"{folder}: not a converted checkpoint ({type(error).__name__}); {remedy}") from error
    if written != LINEAGE_FORMAT:
        raise UserError(f"{folder}: written by another version of this program; convert the weights again")
    if not whole:
        raise UserError(f"{folder}/lineage.json: was changed after it was written; convert the weights again")
    try:
        variables = load_tree(folder / "arrays")
    except Exception as error:  # whatever a damaged file makes Orbax raise
        refuse_unreadable(folder / "arrays", error)
        raise UserError(
            f"{folder}/arrays: damaged ({type(error).__name__}); remove {folder} and convert again"
        ) from error
    if digest(variables) != lineage["digest"]:
        raise UserError(
            f"{folder}: its arrays are not those that were written (digest differs); remove that folder and "
            "convert again"
        )
    return Weights(variables, lineage)


def fine_tuned(
    parent: Weights, variables: Variables, blocks: Sequence[str], source: str, run: dict[str, Any] | None = None
) -> Weights:
    """Weights whose lineage says what they were trained from.

    Args:
        parent: the weights that training began with.
        variables: the whole network's after it, the head's among them.
        blocks: what was trained.
        source: who trained them, for a reader.
        run: what names the run: data, seed.
    """
    kept = ("format", "network", "options", "label_offset", "expected_input", "batch_norm_epsilon")
    lineage = {
        **{key: parent.lineage[key] for key in kept},
        "framework": "kimiajax",
        "source": source,
        "trained_blocks": list(blocks),
        "run": run or {},
        "converter": f"kimiajax {__version__}",
        "converted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "parent": parent.lineage,
        **top_of(variables),
        "digest": digest(variables),
    }
    return Weights(variables, lineage)


def origin_of(lineage: dict[str, Any]) -> str | None:
    """Where weights were trained: "keras", "torch", and what was fine-tuned since; None for random ones."""
    framework = root_of(lineage)["framework"]
    tuned = any(each.get("trained_blocks") for each in ancestry(lineage))
    return f"{framework or 'random weights'}, fine-tuned since" if tuned else framework


def top_of(variables: Variables) -> dict[str, Any]:
    """A lineage's words on the ImageNet classes: whether they are there, and how many."""
    predictions = variables["params"].get("predictions")
    return {"top": predictions is not None, "classes": predictions and predictions["kernel"].shape[-1]}


def _backbone(network: Backbone | str) -> Backbone:
    if isinstance(network, str) and network not in BACKBONES:
        raise UserError(f"unknown network {network!r}; choose from {', '.join(BACKBONES)}")
    return BACKBONES[network] if isinstance(network, str) else network


def default_cache() -> Path:
    """The user's cache folder for this program."""
    import pooch  # here only: what needs no download needs no pooch

    return Path(pooch.os_cache("kimiajax"))


def _random(backbone: Backbone, blocks: Sequence[str], image_size: int, seed: int) -> Weights:
    variables = backbone.init(np.random.default_rng(seed), image_size, backbone.up_to(backbone.last_of(blocks)))
    lineage = {
        "format": LINEAGE_FORMAT,
        "network": backbone.name,
        "options": dict(backbone.options),
        "framework": None,
        "source": "random",
        "scale": "He",
        "seed": seed,
        **top_of(variables),
        "label_offset": 0,
        "expected_input": None,
        "batch_norm_epsilon": None,
        "digest": digest(variables),
    }
    return Weights(variables, lineage)


def _imagenet(backbone: Backbone, top: bool, cache: Path, progress: Callable[[str], Any] | None) -> Weights:
    file = next((file for file in backbone.published if file.top == top), None)
    if file is None:
        raise UserError(f"no ImageNet weights are published for {backbone.name}; give a file, or `random`")
    folder = cache / "weights" / f"{file.name.removesuffix('.h5')}-{LINEAGE_FORMAT}"
    if folder.is_dir():
        return load_converted(folder)
    weights = _convert(backbone.name, _fetch(file, cache / "downloads", progress))
    weights.save(folder)
    return weights


def _fetch(file: PublishedFile, folder: Path, progress: Callable[[str], Any] | None) -> Path:
    import pooch

    bar = progress(f"downloading {file.name}") if progress else False
    pooch.get_logger().setLevel("ERROR")
    try:
        downloader = pooch.HTTPDownloader(progressbar=bar, timeout=30)
        return Path(pooch.retrieve(file.url, file.checksum, file.name, folder, downloader=downloader))  # pyright: ignore[reportArgumentType]  # pooch's own
    except (OSError, ValueError) as error:  # no network; another checksum
        algorithm, checksum = file.checksum.split(":")
        reason = "its checksum is wrong" if isinstance(error, ValueError) else _reason(error)
        raise UserError(
            f"cannot download {file.url}: {reason}; put that file ({file.size:,} bytes, {algorithm.upper()} "
            f"{checksum}) at {folder / file.name}, or give the path of your own copy"
        ) from error


def _reason(error: OSError) -> str:
    if error.strerror and error.filename:  # of the disk
        return f"{error.filename}: {error.strerror}"
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code}"
    return f"the server cannot be reached ({type(error).__name__})"


def _convert(network: str, path: Path) -> Weights:
    from weights_convert.convert import convert

    return convert(network, path)


def _only(
    variables: Variables, backbone: Backbone, blocks: Sequence[str], image_size: int, source: str | Path
) -> Variables:
    """The variables of `blocks`, each of the shape that `image_size` asks for."""
    needed = [block for block in blocks if block != "pooled"]
    absent = [block for block in needed if block not in variables["params"]]
    if absent:
        topless = set(backbone.top) & set(absent)
        hint = "weights without top; give the file with top" if topless else "convert the file again"
        raise UserError(f"{source}: holds no {', '.join(absent)} of {backbone.name} ({hint})")
    if set(backbone.top[:1]) & set(needed):
        check_dense_size(variables, backbone, image_size, source)
    tree = {
        kind: {block: arrays for block, arrays in part.items() if block in needed} for kind, part in variables.items()
    }
    classes = variables["params"]["predictions"]["kernel"].shape[-1] if "predictions" in needed else 1000
    expected = backbone.shapes(image_size, backbone.up_to(backbone.last_of(blocks)), num_classes=classes)
    wrong = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        kind, block, *rest = (key.key for key in path)
        if block not in needed:
            continue
        found = tree.get(kind, {}).get(block, {})
        for key in rest:
            found = found.get(key, {})
        if getattr(found, "shape", None) != leaf.shape:
            wrong.append(f"{block}/{'/'.join(rest)} must be {leaf.shape} and is {getattr(found, 'shape', 'missing')}")
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} arrays do not fit {backbone.name}: {'; '.join(wrong)}; convert its file again"
        )
    return tree


def check_dense_size(variables: Variables, backbone: Backbone, image_size: int, source: str | Path) -> None:
    """Raises UserError where the first block after the bottleneck, of VGG16 say, is for images of another size."""
    first = backbone.top[0]
    expected: Flat = flatten_dict(backbone.shapes(image_size, backbone.up_to(first))["params"][first])
    arrays: Flat = flatten_dict(variables["params"][first])
    for path, leaf in expected.items():
        held = arrays.get(path)
        if path[-1] == "kernel" and held is not None and len(held) != leaf.shape[0]:
            side = backbone.size_for(len(held))
            raise UserError(
                f"{source}: {first} takes {len(held):,} values, as {side} x {side} pixels give; "
                f"{image_size} x {image_size} give {leaf.shape[0]:,}; use --image-size {side}"
            )


def published_lineage(backbone: Backbone, path: Path) -> str | None:
    """The published file's name if this file has its size and checksum, and None for any other file."""
    for file in backbone.published:
        if path.stat().st_size == file.size:
            import pooch

            algorithm, checksum = file.checksum.split(":")
            if pooch.file_hash(str(path), algorithm) == checksum:
                return file.name
    return None
