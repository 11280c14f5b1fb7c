"""`load_weights`: find a backbone's weights, download, verify and convert them once, and fit them into its blocks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from kimiajax.checks import MOST_SEED, array_of, kind_of, names_of, path_of, whole
from kimiajax.errors import UserError, check_known
from kimiajax.io.cache import default_cache
from kimiajax.io.pytrees import digest
from kimiajax.models.backbone import A_BACKBONE, Backbone, Flat, PublishedFile, Variables, of_blocks
from kimiajax.models.checkpoint import LINEAGE_FORMAT, Weights, load_converted, top_of
from kimiajax.models.registry import BACKBONES
from kimiajax.runtime.shell import standard_settings
from kimiajax.shapes import Shaped
from kimiajax.weights.calibrate import BIAS, LAST_BIAS, PATCHES, calibrate


class MissingBlocksError(UserError):
    """Weights that hold some of the blocks that are asked for, and not those of `absent`."""

    def __init__(self, message: str, absent: Sequence[str]):
        super().__init__(message)
        self.absent = tuple(absent)


@standard_settings()
def load_weights(
    network: Backbone | str | Any,
    source: str | Path | Any = "imagenet",
    *,
    blocks: Sequence[str] | Any = None,
    image_size: int | Any = 224,
    seed: int | Any = 0,
    patches: Shaped[np.ndarray, "n _ _"] | Any = None,
    cache: str | Path | None = None,
    progress: Callable[[str], Any] | None = None,
) -> Weights:
    """Loads the weights of some blocks of a backbone.

    Args:
        network: its name, for the variant that the weights are of (`backbone` of what is returned); or a backbone,
            which must be that variant.
        source: "imagenet" for the files that Keras publishes, "random" for He-scaled random weights, "calibrated" for
            random ones that are scaled on patches, or the path of a converted checkpoint, of a file that Keras saved,
            or of torchvision's or timm's arrays as safetensors.
        blocks: the blocks needed, by default up to the paper's features; others that the source holds are left out.
        image_size: side of the images; VGG16's dense blocks hold for one size only.
        seed: of weights that are drawn.
        patches: gray training patches, uint8, at the images' size, in the manifest's order, for "calibrated", which
            takes the first 64 (`kimiajax.weights.calibrate`).
        cache: where downloads and conversions are kept; by default the user's cache folder.
        progress: called with a description, gives pooch's progress object for a download.

    Raises:
        MissingBlocksError: weights without blocks that are asked for.
        UserError: weights that cannot be had, are damaged, are another network's, or do not fit; nothing falls back
            to random weights.
    """
    if isinstance(network, str):
        check_known("network", network, BACKBONES)
    backbone = BACKBONES[network] if isinstance(network, str) else kind_of("network", network, Backbone, A_BACKBONE)
    blocks = backbone.up_to(backbone.features) if blocks is None else names_of("blocks", blocks)
    backbone.last_of(blocks)  # which refuses none, and unknown ones
    backbone.check_size(image_size)
    whole("seed", seed, most=MOST_SEED)
    path_of("source", source)
    cache = None if cache is None else path_of("cache", cache)
    if source == "random":
        weights = _random(backbone, blocks, image_size, seed)
    elif source == "calibrated":
        weights = _calibrated(backbone, blocks, image_size, seed, patches)
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


def _random(backbone: Backbone, blocks: Sequence[str], image_size: int, seed: int) -> Weights:
    variables = backbone.init(np.random.default_rng(seed), image_size, backbone.up_to(backbone.last_of(blocks)))
    return _drawn(backbone, variables, seed, {"source": "random", "scale": "He"})


def _calibrated(
    backbone: Backbone, blocks: Sequence[str], image_size: int, seed: int, patches: np.ndarray | Any
) -> Weights:
    """Random weights up to the paper's features at least, so that they do not depend on what else is read, scaled."""
    if patches is None:
        raise UserError(
            "calibrated weights are scaled on a study's training patches: `kimiajax table` makes and saves them; give "
            "load_weights these `patches`, or the folder of a run's saved weights, RUN/weights/NETWORK"
        )
    patches = np.asarray(array_of("patches", patches)[:PATCHES])
    if not len(patches) or patches.dtype != np.uint8 or patches.shape[1:] != (image_size, image_size):
        raise UserError(
            f"patches for calibrated weights: {patches.dtype} {patches.shape}; gray uint8 [n {image_size} {image_size}]"
            " are needed"
        )
    run = backbone.up_to(backbone.last_of([*blocks, backbone.features]))
    variables = calibrate(backbone, backbone.init(np.random.default_rng(seed), image_size, run), patches, run)
    about = {
        "source": "calibrated",
        "scale": "He, then each channel to a standard deviation of 1 on the patches",
        "means": {"each": BIAS, "before_the_head": LAST_BIAS},
        "patches": len(patches),
        "patches_digest": digest({"patches": patches}),
    }
    return _drawn(backbone, of_blocks(variables, blocks), seed, about)


def _drawn(backbone: Backbone, variables: Variables, seed: int, about: dict[str, Any]) -> Weights:
    lineage = {
        "format": LINEAGE_FORMAT,
        "network": backbone.name,
        "options": dict(backbone.options),
        "framework": None,
        **about,
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
        topless = set(absent) <= set(backbone.top)
        what = f"weights without top, which serve up to {backbone.bottleneck}; give the file with top for the others"
        hint = what if topless else "convert the file again"
        raise MissingBlocksError(f"{source}: holds no {', '.join(absent)} of {backbone.name} ({hint})", absent)
    if set(backbone.top[:1]) & set(needed):
        check_dense_size(variables, backbone, image_size, source)
    tree = of_blocks(variables, needed)
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
