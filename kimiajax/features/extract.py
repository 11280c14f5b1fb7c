"""One forward pass a patch, every tap that is asked for, kept under the digest of what they were computed from."""

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, get_args

import flax
import jax
import jax.numpy as jnp
import numpy as np

from kimiajax import __version__
from kimiajax.checks import kind_of, names_of, on_host, path_of, whole
from kimiajax.errors import UserError, check_known
from kimiajax.features.taps import Tap, blocks_to, tap_of
from kimiajax.io.cache import ArrayCache, let_go, load_arrays, mark_used
from kimiajax.io.pytrees import digest
from kimiajax.models.backbone import A_BACKBONE, Backbone, Variables, of_blocks
from kimiajax.models.conv import Way
from kimiajax.models.inputs import images_of, network_input
from kimiajax.runtime import distributed
from kimiajax.runtime.precision import Precision, compute_dtype, products_in
from kimiajax.runtime.progress import Silent
from kimiajax.runtime.shell import DOUBLES, recorded, standard_settings
from kimiajax.shapes import Float, Shaped, UInt8

ROWS = "images"  # the file that says of which images a folder's arrays are, by their digests
COPIED = 1024  # rows at a time
HELD = 2048  # images after which mapped memory is let go
VERSION = 3  # rises with every change to what a network computes: features of another version are not found


def cores() -> int:
    """Of this process: those it may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batch_size_for(platform: str, conv: Way = "plain") -> int:
    """Images in one pass: what was fastest. A CPU's caches hold few, which the fast way sees to by itself."""
    return 128 if platform != "cpu" else cores() * (2 if conv == "plain" else 8)


class Taps(NamedTuple):
    """Outputs by tap, float32, one row an image; and whether they were found in the cache and not computed."""

    arrays: dict[str, Float[np.ndarray, "n ..."]]
    cached: bool


@standard_settings(DOUBLES)
def extract_features(
    backbone: Backbone | Any, variables: Variables | Any, images: UInt8[np.ndarray, "n s s"] | Any, **options: Any
) -> Float[np.ndarray, "n d"]:
    """The paper's feature vectors, [n 4096] of VGG16 and [n 2048] of Inception-v3; options as in `extract_taps`.

    Raises:
        UserError: as `extract_taps`.
    """
    kind_of("backbone", backbone, Backbone, A_BACKBONE)
    return extract_taps(backbone, variables, images, (backbone.features,), **options).arrays[backbone.features]


def extract_taps(
    backbone: Backbone | Any,
    variables: Variables | Any,
    images: UInt8[np.ndarray, "n s s"] | Any,
    taps: Sequence[str] | Any,
    *,
    batch_size: int | Any = None,
    precision: Precision | Any = "float32",
    cache: str | Path | None = None,
    progress: Silent | None = None,
    description: str = "features",
) -> Taps:
    """The outputs of some blocks of a backbone in inference mode, one forward pass a patch.

    Args:
        backbone: the network.
        variables: its parameters and running statistics, for the blocks up to the last tap at least.
        images: gray patches; they enter the network as three equal channels in [0, 1].
        taps: what is wanted, each a block ("mixed8"), its mean over height and width ("mixed8.mean"), or its output in
            one row ("mixed8.flat"); the mean and the row are taken on the device, so that memory and cache hold these.
        batch_size: images in one pass; by default what suits the platform.
        precision: of convolutions and matrix products; the outputs are given as float32 whatever it is.
        cache: a folder in which results are kept and found again by content, as files that are mapped into memory and
            not read into it; without it they are computed into memory.
        progress: shows what is computed.
        description: what to call it there.

    Raises:
        UserError: an unknown tap or precision, variables that are not this network's, images that are not gray squares
            of the network's size in uint8, or a batch of less than 1.
    """
    kind_of("backbone", backbone, Backbone, A_BACKBONE)
    taps = names_of("taps", taps)
    if not taps:
        raise UserError(f"taps: none is named; choose from {', '.join(backbone.blocks)}")
    blocks = blocks_to(backbone, taps)
    images = on_host(images_of("images", images, floats=False))
    backbone.check_size(images.shape[1])
    check_known("precision", precision, get_args(Precision))
    progress = progress or Silent()
    cache = None if cache is None else path_of("cache", cache)
    suits = batch_size_for(jax.default_backend(), backbone.conv)
    batch_size = suits if batch_size is None else whole("batch_size", batch_size, 1)
    outputs = backbone.tap_shapes(variables, images.shape[1], blocks)
    named = {tap: tap_of(backbone, tap).plainest(outputs) for tap in taps}  # under which the cache knows them
    shapes = {tap.name: (len(images), *tap.shape(outputs[tap.block])) for tap in named.values()}

    def given(arrays: Mapping[str, np.ndarray], cached: bool) -> Taps:
        return Taps({tap: arrays[each.name] for tap, each in named.items()}, cached)

    if cache is None:
        arrays = {tap: np.empty(shape, np.float32) for tap, shape in shapes.items()}
        _compute(backbone, variables, images, arrays, batch_size, precision, progress, description)
        return given(arrays, cached=False)

    pictures, batch = _digests(images), _batch_of(len(images), batch_size)
    let_go([images])
    name = f"{len(images)}-{hashlib.sha256(pictures.data).hexdigest()[:16]}"
    kept = ArrayCache(cache, "features", np.float32)
    keys = {tap: f"{_key(backbone, variables, images.shape[1:], tap, precision, batch)}-{name}" for tap in shapes}
    found = {tap: kept.get(key, {tap: shapes[tap]}) for tap, key in keys.items()}
    arrays = {tap: array[tap] for tap, array in found.items() if array is not None}
    absent = [tap for tap in shapes if tap not in arrays]
    if distributed.agree(not absent):
        progress.say(f"{description}: found in {kept.folder}")
        return given(arrays, cached=True)
    alone = distributed.count() == 1  # of several each has a cache of its own, perhaps, and all must compute alike
    absent = absent if alone else list(shapes)
    with contextlib.ExitStack() as stack:
        entries = {tap: stack.enter_context(kept.making({tap: shapes[tap]}, keys[tap])) for tap in absent}
        new = {tap: entry.arrays[tap] for tap, entry in entries.items()}
        lacking = np.arange(len(images))
        if alone:
            copied = [_copy_known(kept.folder / keys[tap], tap, pictures, new[tap]) for tap in absent]
            lacking = np.unique(np.concatenate(copied))
        known = len(images) - len(lacking)
        if known:
            progress.say(f"{description}: {known:,} of {len(images):,} found in {kept.folder}")
        _compute(backbone, variables, images, new, batch_size, precision, progress, description, lacking)
        for entry in entries.values():
            np.save(entry.folder / f"{ROWS}.npy", pictures)
    arrays |= {tap: entry.arrays[tap] for tap, entry in entries.items()}
    return given(arrays, cached=known > 0 or len(absent) < len(shapes))


def _copy_known(folder: Path, tap: str, pictures: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Fills in what the same program computed of any of these images before; the places of the others.

    A patch's outputs do not depend on the patches beside it in a batch of the same size.
    """
    lacking = np.arange(len(pictures))
    others = {kept: count for kept in folder.parent.glob("*") if kept != folder and (count := _count_of(kept, folder))}
    for kept in sorted(others, key=others.__getitem__, reverse=True):
        if not len(lacking):
            break
        rows = load_arrays(kept, {ROWS: (others[kept], pictures.shape[1])}, np.uint8)
        place_of = {row.tobytes(): place for place, row in enumerate(rows[ROWS])} if rows else {}
        found = np.array([place_of.get(pictures[place].tobytes(), -1) for place in lacking], np.int64)
        outputs = None
        if (found >= 0).any():
            outputs = load_arrays(kept, {tap: (others[kept], *array.shape[1:])}, np.float32)
        if outputs is None:
            continue
        places, found = lacking[found >= 0], found[found >= 0]
        for start in range(0, len(places), COPIED):
            part = slice(start, start + COPIED)
            array[places[part]] = outputs[tap][found[part]]
        mark_used(kept)
        lacking = np.setdiff1d(lacking, places)
    return lacking


def _count_of(kept: Path, folder: Path) -> int:
    """Of how many images an entry of the cache holds what `folder` is to hold; 0 where it is of something else."""
    program, _, _ = folder.name.rsplit("-", 2)
    match = re.fullmatch(rf"{re.escape(program)}-(\d+)-[0-9a-f]{{16}}", kept.name)
    return int(match[1]) if match else 0


def _batch_of(count: int, batch_size: int) -> int:
    """Images in one pass over so many: fewer than asked for where there are no more, and as many on each core."""
    return min(batch_size, -(-count // _threads()) * _threads())


def _threads() -> int:
    """Programs that run side by side, each on a part of a batch."""
    return cores() if jax.default_backend() == "cpu" else 1


def _digests(images: np.ndarray) -> np.ndarray:
    """SHA-256 of each image, [n 32] bytes."""
    each = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]
    return np.frombuffer(b"".join(each), np.uint8).reshape(-1, 32)


class Extractor:
    """The outputs of some blocks of a network, batch by batch, compiled for inference.

    On a CPU every core computes a part of the batch by itself, by a program of one thread: where XLA's own threads
    divide each operation among the cores, they wait for one another at its end. Dense blocks, which read their many
    parameters once a call, take the whole batch. No setting of the process is touched.
    """

    def __init__(
        self,
        backbone: Backbone,
        variables: Variables,
        size: int,
        taps: Sequence[str],
        *,
        precision: Precision = "float32",
    ):
        """Folds what can be computed of the variables alone.

        Args:
            backbone, variables, taps, precision: as of `extract_taps`.
            size: side of the images.
        """
        self.backbone, self.precision = backbone, precision
        self.taps = tuple(tap_of(backbone, tap) for tap in taps)
        blocks = blocks_to(backbone, taps)
        self.threads = _threads()
        self.variables = backbone.fold_for_inference(jax.device_put(variables), size, blocks)
        leaves = {block: jax.tree.leaves(self.variables["params"].get(block, {})) for block in blocks}
        dense = [block for block in blocks if any(leaf.ndim == 2 for leaf in leaves[block])]
        cut = blocks.index(dense[0]) if dense and self.threads > 1 else len(blocks)
        self.shared, self.whole = blocks[:cut], blocks[cut:]

    def __call__(self, images: Shaped[Any, "b ..."]) -> list[dict[str, jax.Array]]:
        """The outputs by tap, float32, of the batch's parts in their order.

        Args:
            images: gray patches, uint8 [b s s], or images in [0, 1], floats [b s s 3]. Where they do not divide among
                the cores, the last core's part is shorter.
        """
        parts = self.parts(images)
        program = self.program(parts)

        def run(part: jax.Array) -> dict[str, jax.Array]:
            return jax.block_until_ready(program(self.variables, part))

        outputs = list(self._pool.map(run, parts)) if len(parts) > 1 else [program(self.variables, parts[0])]
        size = len(parts[0])
        if self.whole:
            last = self.shared[-1]
            x = jnp.concatenate([output[last] for output in outputs])
            rest = self._program(self.whole, x)(self.variables, x)
            for number, output in enumerate(outputs):
                output |= {tap: each[number * size : (number + 1) * size] for tap, each in rest.items()}
        if len(images) % size:  # the last part's padding
            outputs[-1] = {tap: each[: len(images) % size] for tap, each in outputs[-1].items()}
        return [{tap.name: output[tap.name] for tap in self.taps} for output in outputs]

    def program(self, parts: Sequence[jax.Array]) -> Any:
        """The compiled pass over each of a batch's parts, up to the dense blocks."""
        return self._program(self.shared, parts[0], alone=len(parts) > 1)

    def _program(self, blocks: tuple[str, ...], x: jax.Array, alone: bool = False) -> Any:
        wanted = [tap for tap in self.taps if tap.block in blocks]
        if self.whole and blocks == self.shared:  # what the others begin with
            wanted.append(Tap(blocks[-1]))
        leaves, tree = jax.tree.flatten(jax.tree.map(_shape, self.variables))
        return _compiled(
            self.backbone, blocks, tuple(dict.fromkeys(wanted)), self.precision, alone, tree, tuple(leaves), _shape(x)
        )

    def parts(self, images: Shaped[Any, "b ..."]) -> list[jax.Array]:
        """The batch for each core, or for fewer: all of one size, so that one program serves, the last one padded."""
        size = -(-len(images) // self.threads)
        parts = [jnp.asarray(images[start : start + size]) for start in range(0, len(images), size)]
        missing = size - len(parts[-1])
        parts[-1] = jnp.pad(parts[-1], ((0, missing), *[(0, 0)] * (parts[-1].ndim - 1))) if missing else parts[-1]
        return parts

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, thread_name_prefix="features")


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


@functools.lru_cache(maxsize=16)  # both splits, and every seed, are one program
def _compiled(
    backbone: Backbone,
    blocks: tuple[str, ...],
    taps: tuple[Tap, ...],
    precision: Precision,
    alone: bool,
    tree: Any,
    leaves: tuple[jax.ShapeDtypeStruct, ...],
    part: jax.ShapeDtypeStruct,
) -> Any:
    """The pass as a program, of one thread where it is one of several."""

    def forward(variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        with products_in(precision):
            images = network_input(images)
            _, outputs, _ = backbone.apply(variables, images, blocks, dtype=compute_dtype(precision))
        return {tap.name: tap.read(outputs[tap.block].astype(jnp.float32)) for tap in taps}

    lowered = jax.jit(forward).lower(tree.unflatten(leaves), part)
    return lowered.compile({"xla_cpu_multi_thread_eigen": False} if alone else None)


def _compute(
    backbone: Backbone,
    variables: Variables,
    images: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    batch_size: int,
    precision: Precision,
    progress: Silent,
    description: str,
    places: np.ndarray | None = None,
) -> None:
    """Computes the rows of `arrays` at some places; by default all."""
    places = np.arange(len(images)) if places is None else places
    if not len(places):
        return
    taps = tuple(arrays)
    extractor = Extractor(backbone, variables, images.shape[1], taps, precision=precision)
    batch_size = _batch_of(len(images), batch_size)  # whatever is lacking, so that a warm cache changes no figure
    # Of several processes each takes every so manieth batch; what they give is then known to all.
    together = batch_size * distributed.count()
    starts = range(0, len(places), together)
    for start in progress.track(starts, description, len(places), "patches", step=together):
        own = start + batch_size * distributed.number()
        batch = images[places[own : own + batch_size]]
        padding = ((0, batch_size - len(batch)), (0, 0), (0, 0))  # the last batches, so that one program serves
        parts = extractor(np.pad(batch, padding))
        for number, given in enumerate(distributed.gathered(parts)):
            first = start + batch_size * number
            for part in given:
                size = len(part[taps[0]])
                rows = places[first : first + size]
                for tap, array in arrays.items():
                    array[rows] = np.asarray(part[tap])[: len(rows)]
                first += size
        if start // HELD > (start - together) // HELD:
            let_go([images, *arrays.values()])


def _key(
    backbone: Backbone, variables: Variables, shape: tuple[int, ...], tap: str, precision: Precision, batch: int
) -> str:
    """Names what is computed of any image: its shape, parameters, blocks, device, precision, versions."""
    blocks = blocks_to(backbone, [tap])
    content = {
        "backbone": [backbone.name, list(backbone.options), backbone.conv],
        "blocks": list(blocks),
        "shape": list(shape),
        "batch": [batch, cores()],  # on which rounding depends
        "variables": digest(of_blocks(variables, blocks)),
        "code": [VERSION, __version__, flax.__version__, jax.__version__],
        "platform": jax.default_backend(),
        "precision": precision,
        **({"shell": said} if (said := recorded()) else {}),
    }
    return f"{backbone.name}-{tap}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]}"
