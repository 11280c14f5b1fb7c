"""The features that a network computes of a user's own patches, as files."""

import functools
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from kimiajax.checks import kind_of, path_of
from kimiajax.data.inference_inputs import Inputs, read_inputs
from kimiajax.data.manifest import Manifest
from kimiajax.data.patches import Rules
from kimiajax.data.resize import FILTERS
from kimiajax.data.tfds.datasets import Dataset
from kimiajax.errors import UserError, check_known
from kimiajax.features.extract import batch_size_for, extract_taps
from kimiajax.features.taps import blocks_to, source_of, tap_of
from kimiajax.io.cache import new_array
from kimiajax.io.files import csv_text, new_folder, sha256_file, write_text
from kimiajax.io.lineage import as_read
from kimiajax.models.checkpoint import Weights
from kimiajax.models.conv_autotune import choose_way
from kimiajax.models.registry import BACKBONES
from kimiajax.runtime.environment import describe_environment
from kimiajax.runtime.precision import Precision
from kimiajax.runtime.progress import Download, Silent
from kimiajax.runtime.shell import standard_settings
from kimiajax.shapes import UInt8
from kimiajax.text import text_of
from kimiajax.weights.load import load_weights

AT_ONCE = 2**28  # bytes of a block's outputs that are held in memory
WORDS = {"train": "training patches", "test": "test patches", None: "images"}


@standard_settings()
def export_features(
    network: str | Any,
    path: str | Path | Dataset | Any,
    out: str | Path | Any,
    *,
    tap: str | Any = None,
    weights: str | Path | Any = "imagenet",
    image_size: int | Any = 224,
    resize: str | Any = "box",
    rules: Rules | Any = None,
    manifest: Manifest | Any = None,
    precision: Precision | Any = "float32",
    conv: Literal["auto", "plain", "fast"] | Any = "auto",
    seed: int | Any = 0,
    cache: str | Path | None = None,
    progress: Silent | None = None,
    **reading: Any,
) -> dict[str, Any]:
    """Writes a block's outputs for all patches that a path holds to a new folder.

    `features.npy` is float32, [n 4096] for VGG16's fc2; row i is of the patch in line i of `ids.csv` (patch_id, scan,
    split), lines being counted from 0 below the first. Of scans there is their `manifest.csv` with its header as well.
    `features.json` says what they were computed with.

    Args:
        network: a key of `BACKBONES`; or what a row reads, "inception_v3@mixed8" or "inception_v3@mixed8.flat".
        path: what `read_inputs` reads.
        out: the folder; a failure leaves none.
        tap: as of `extract_taps`: "mixed8", "mixed8.mean" or "mixed8.flat"; by default what the network's name says, or
            the paper's features.
        weights: as `load_weights` takes them.
        image_size: side of the network's input in pixels.
        resize: the filter from patch to input.
        rules, manifest: as in `read_inputs`.
        precision: of convolutions and matrix products.
        conv: how the network convolves; see `choose_way`.
        seed: of random weights.
        cache: a folder for what serves again; the features are then kept there too. Without it nothing is kept but
            weights that are downloaded.
        progress: shows what goes on.
        reading: how it is read, as of `read_inputs`: patch_size, mpp, slide_mpp, skip_unreadable.

    Returns:
        The content of `features.json`.

    Raises:
        UserError: the folder exists already, an unknown network, block, precision, filter or way to convolve, two taps,
            a number out of its range, or whatever `load_weights` and
            `read_inputs` refuse.
    """
    out, progress, cache = path_of("out", out), progress or Silent(), None if cache is None else path_of("cache", cache)
    given = kind_of("network", network, str, f"choose from {', '.join(BACKBONES)}")
    check_known("precision", precision, get_args(Precision))
    check_known("filter", resize, FILTERS)
    rules = Rules() if rules is None else kind_of("rules", rules, Rules, "make them as kimiajax.Rules(...)")
    network, named = source_of(given)
    check_known("network", network, BACKBONES)
    if named and tap:
        raise UserError(f"{given}: names a block already; leave --tap out, or give {network} alone")
    backbone = BACKBONES[network]
    tap = named or tap or backbone.features
    blocks = blocks_to(backbone, [tap])
    backbone.check_size(image_size)
    check_new(out, "--out")
    with new_folder(out) as aside:
        loaded = load_weights(
            network,
            weights,
            blocks=blocks,
            image_size=image_size,
            seed=seed,
            cache=cache,
            progress=functools.partial(Download, progress),
        )
        batch = batch_size_for(jax.default_backend())
        choice = choose_way(conv, backbone, image_size, batch, precision=precision, cache=cache)
        progress.say(f"{network}: {choice.way} convolutions ({choice.reason})")
        loaded = replace(loaded, conv=choice.way)
        if done := as_read(loaded.lineage):
            progress.say(f"{network}, as its file asks: {done}")
        options = {"manifest": manifest, "cache": cache, "track": progress.track, "say": progress.say}
        parts = read_inputs(path, rules, image_size, resize, **options, **reading)
        shape = (sum(len(part.ids) for part in parts), *shape_of(loaded, tap, image_size))
        features = new_array(aside / "features.npy", shape, np.float32, "--out")
        first = 0
        for part in parts:
            what = f"{network} on {WORDS[part.split]}"
            for some in outputs_of(loaded, tap, part.pixels, precision, cache, progress, what):
                features[first : first + len(some)] = some
                first += len(some)
        features.flush()
        write_text(aside / "ids.csv", _ids(parts))
        manifest = parts[0].manifest
        if manifest is not None:
            manifest.write(aside / "manifest.csv")
        record = {
            "network": network,
            "tap": tap,
            "shape": list(shape),
            "features_sha256": sha256_file(aside / "features.npy"),
            "source": text_of(path),
            "manifest_sha256": manifest and manifest.sha256,
            "unverified": manifest and manifest.about.get("unverified"),
            "image_size": image_size,
            "resize": resize,
            "weights": loaded.lineage,
            "precision": precision,
            "conv": asdict(choice),
            "environment": describe_environment(),
        }
        write_text(aside / "features.json", json.dumps(record, indent=2) + "\n")
    return record


def outputs_of(
    loaded: Weights,
    tap: str,
    images: UInt8[np.ndarray, "n s s"],
    precision: Precision,
    cache: Path | None,
    progress: Silent,
    description: str,
) -> Iterator[np.ndarray]:
    """A tap's outputs for some images, float32, in parts that memory holds.

    With a cache all are computed at the first step, into a file that is mapped, or found there.
    """
    backbone = loaded.backbone
    batch = batch_size_for(jax.default_backend(), backbone.conv)
    step = batch * max(1, AT_ONCE // (4 * batch * math.prod(shape_of(loaded, tap, images.shape[1]))))
    options = {"precision": precision, "cache": cache, "progress": progress, "description": description}
    extract = functools.partial(extract_taps, backbone, loaded.variables, taps=(tap,), **options)
    whole = None if cache is None else extract(images).arrays[tap]
    for start in range(0, len(images), step):
        some = slice(start, start + step)
        yield extract(images[some]).arrays[tap] if whole is None else whole[some]


def shape_of(loaded: Weights, tap: str, size: int) -> tuple[int, ...]:
    """Returns the shape of a tap for one image."""
    asked = tap_of(loaded.backbone, tap)
    return asked.shape(
        loaded.backbone.tap_shapes(loaded.variables, size, blocks_to(loaded.backbone, [tap]))[asked.block]
    )


def check_new(folder: Path, flag: str) -> None:
    """Raises UserError for a folder that is there already, which a flag named."""
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another {flag}, or remove it")


def _ids(parts: Sequence[Inputs]) -> str:
    """The text of `ids.csv`; what is unknown is empty."""
    return csv_text(
        ("patch_id", "scan", "split"),
        (
            (patch_id, scan, part.split)
            for part in parts
            for patch_id, scan in zip(part.ids, itertools.repeat(None) if part.scans is None else part.scans.tolist())
        ),
    )
