"""What every backbone must do, so that all that the study does with one works: `check_backbone`."""

import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kimiajax.checks import kind_of, whole
from kimiajax.errors import UserError
from kimiajax.models.backbone import Array, Backbone, Flat, Variables, of_blocks
from kimiajax.models.batch_norm import INFERENCE, Normalisation

IMAGES = 3  # in a batch
CLOSE = 1e-4  # of single precision, in units of the largest value
COARSE = 0.2  # of bfloat16, relative L2: seven binary digits a layer


def check_backbone(backbone: Backbone | Any, *, size: int | Any = None, seed: int | Any = 0) -> list[str]:
    """Runs a network through everything that the study asks of one, with random weights.

    Args:
        backbone: the network.
        size: side of the images; by default `smallest`, twice if statistics of a mini-batch would see one pixel.
        seed: of the weights and the images.

    Returns:
        What was checked, in words.

    Raises:
        UserError: the first that does not hold, with what to change.
    """
    kind_of("backbone", backbone, Backbone, "make one as kimiajax.Backbone(name, title, module, blocks, ...)")
    _check_names(backbone)
    rng = np.random.default_rng(whole("seed", seed))
    size = 2 * backbone.smallest if size is None else whole("size", size, backbone.smallest)
    variables = _drawn(backbone, size, rng)
    images = jnp.asarray(rng.uniform(0, 1, (IMAGES, size, size, 3)), jnp.float32)
    passed = ["names"]
    for check in CHECKS:
        check(backbone, variables, images)
        passed.append(check.__name__.removeprefix("_check_").replace("_", " "))
    return passed


def _check_names(backbone: Backbone) -> None:
    name = backbone.name
    if len(set(backbone.blocks)) < len(backbone.blocks):
        raise _broken(backbone, "two blocks have one name; name each once")
    backbone.check_blocks([backbone.features, backbone.bottleneck, *backbone.fine_tuned])
    trunk = [block for block in backbone.trunk if block != "pooled"]
    if not backbone.fine_tuned or list(backbone.fine_tuned) != trunk[-len(backbone.fine_tuned) :]:
        raise _broken(backbone, "`fine_tuned` must be a run of blocks that ends at the bottleneck")
    if not name.isidentifier() or name != name.lower():
        raise _broken(backbone, "its name must be of lower-case letters, digits and _, as flags and rows have it")


def _check_parameters(backbone: Backbone, variables: Variables, images: jax.Array) -> None:
    """Each block has arrays of its own, by the names that the rest of the program knows them by."""
    strange = set(variables["params"]) - set(backbone.blocks)
    if strange:
        raise _broken(backbone, f"parameters of {first(strange)}, which is no block; name modules as their blocks")
    bare = [block for block in backbone.blocks if block not in variables["params"] and block != "pooled"]
    if bare:
        raise _broken(backbone, f"block {bare[0]} has no parameters; only `pooled` may have none: join it to another")
    for path in flatten_dict(variables.get("batch_stats", {})):
        if path[-2:] not in (("bn", "mean"), ("bn", "var")):
            raise _broken(backbone, f"statistics {'/'.join(path)}: use `models.batch_norm.BatchNorm`, named `bn`")


def _check_taps(backbone: Backbone, variables: Variables, images: jax.Array) -> None:
    """Every block's output is told, and blocks can be run one after another from any output on."""
    taps = _run(backbone, variables, images)[1]
    held = backbone.held_by(variables)
    if set(taps) != set(held):
        raise _broken(backbone, f"gives taps of {', '.join(taps)}; give one for each block that runs")
    x = images
    for block in held:
        x = _run(backbone, variables, x, (block,))[0]
        _same(backbone, x, taps[block], f"{block} run by itself gives other values than in the whole network")
    if taps[backbone.features].ndim != 2:
        raise _broken(
            backbone, f"its features, {backbone.features}, are no vector an image; name a block that gives one"
        )
    shape = taps[backbone.bottleneck].shape
    if len(shape) not in (2, 4):
        raise _broken(backbone, f"its bottleneck has shape {shape}; a head takes [b c] or [b h w c]")


def _check_any_batch_size(backbone: Backbone, variables: Variables, images: jax.Array) -> None:
    """An image's outputs do not depend on the others in its batch."""
    whole = _run(backbone, variables, images)[0]
    one_by_one = jnp.concatenate([_run(backbone, variables, image[None])[0] for image in images])
    _same(backbone, one_by_one, whole, "an image gives other values alone than in a batch")


def _check_any_size(backbone: Backbone, variables: Variables, images: jax.Array) -> None:
    """Images of the smallest size run, and smaller ones are refused by name."""
    small = _drawn(backbone, backbone.smallest, np.random.default_rng(0))
    side = backbone.smallest
    if not np.isfinite(_run(backbone, small, images[:, :side, :side])[0]).all():
        raise _broken(backbone, f"images of {side} x {side} pixels, its smallest, give NaN; raise `smallest`")


def _check_vmap(backbone: Backbone, variables: Variables, images: jax.Array) -> None:
    """Under vmap, over images and over weights at once, it computes the same."""

    def run(variables: Variables, x: jax.Array) -> jax.Array:
        return backbone.apply(variables, x[None])[0][0]

    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(images)), variables)
    each = jax.jit(jax.vmap(run))(stacked, images)
    _same(backbone, each, _run(backbone, variables, images)[0], "vmap over images and weights changes its output")


def _check_gradients(backbone: Backbone, variables: Variables, images: jax.Array) -> None:
    """Every parameter of the trunk gets a finite gradient, and some of each block's are not 0."""
    trunk = of_blocks(variables, backbone.trunk)
    output = jax.eval_shape(lambda x: backbone.apply(trunk, x, backbone.trunk)[0], images)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(output.shape), jnp.float32)

    def loss(params: Variables) -> jax.Array:
        return jnp.vdot(weights, backbone.apply({**trunk, "params": params}, images, backbone.trunk)[0])

    gradients: Flat = flatten_dict(jax.jit(jax.grad(loss))(trunk["params"]))
    for path, gradient in gradients.items():
        if not np.isfinite(gradient).all():
            raise _broken(backbone, f"the gradient of {'/'.join(path)} is not finite")
    for block in {path[0] for path in gradients}:
        if not any(np.any(gradient) for path, gradient in gradients.items() if path[0] == block):
            raise _broken(backbone, f"no parameter of {block} has a gradient; use its output")


def _check_padding(backbone: Backbone, variables: Variables, images: jax.Array) -> None:
    """Padded images change neither the others' outputs nor the statistics of a mini-batch; in double precision, since
    normalising by few values makes much of rounding."""
    training, trunk = Normalisation(backbone.trunk), backbone.trunk
    with jax.enable_x64(True):
        variables, images = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (variables, images))
        padded, mask = jnp.concatenate([images, jnp.full_like(images[:1], 7)]), jnp.array([True] * IMAGES + [False])
        alone, _, moved = _run(backbone, variables, images, trunk, training)
        beside, _, moved_beside = _run(backbone, variables, padded, trunk, training, mask=mask)
    _same(backbone, beside[:IMAGES], alone, "a padded image changes the others' outputs: hand the mask to `BatchNorm`")
    alone_moved: Flat = flatten_dict(moved)
    beside_moved: Flat = flatten_dict(moved_beside)
    for path, leaf in alone_moved.items():
        name = "/".join(path)
        _same(backbone, beside_moved[path], leaf, f"a padded image counts in the statistics of {name}")


def _check_frozen_statistics(backbone: Backbone, variables: Variables, images: jax.Array) -> None:
    """Statistics move where they train and nowhere else."""
    before: Flat = flatten_dict(variables.get("batch_stats", {}))
    for training, moves in ((Normalisation(), False), (Normalisation(backbone.trunk), True)):
        after: Flat = flatten_dict(_run(backbone, variables, images, backbone.trunk, training)[2])
        for path in (path for path in before if path[0] in backbone.trunk):
            if np.array_equal(before[path], after[path]) == moves:
                done = "do not move where they train" if moves else "move where they are frozen"
                raise _broken(backbone, f"the statistics {'/'.join(path)} {done}; hand `how` to `BatchNorm`")


def _check_bfloat16(backbone: Backbone, variables: Variables, images: jax.Array) -> None:
    """In bfloat16 it computes what it does in float32, as far as seven binary digits go."""
    whole = np.asarray(_run(backbone, variables, images, backbone.trunk)[0])
    coarse = np.asarray(_run(backbone, variables, images, backbone.trunk, dtype=jnp.bfloat16)[0]).astype(np.float32)
    if not np.isfinite(coarse).all() or np.linalg.norm(coarse - whole) > COARSE * np.linalg.norm(whole):
        raise _broken(backbone, "bfloat16 gives other values; keep sums and statistics in float32, as `BatchNorm` does")


def _check_both_convolutions(backbone: Backbone, variables: Variables, images: jax.Array) -> None:
    """The fast convolutions of a CPU give what XLA's give."""
    whole = _run(backbone, variables, images)[0]
    fast = _run(replace(backbone, conv="fast"), variables, images)[0]
    _same(backbone, fast, whole, "fast convolutions give other values; use `models.conv.Conv` and its pools")


def _check_mapping(backbone: Backbone, variables: Variables, images: jax.Array) -> None:
    """Every array of the network has its place in another framework's file, and every block its layer there."""
    if backbone.mapping is None:
        return
    try:
        of_frameworks = importlib.import_module(backbone.mapping).FILES.items()
    except (ImportError, AttributeError) as error:
        what = f"its mapping, {backbone.mapping!r}, is no name of a module with FILES ({error})"
        raise _broken(backbone, what) from error
    for framework, files in of_frameworks:
        for rank, table in enumerate(files.tables):
            places = sorted(to for to, _ in table.values() if to[1] != "head")
            options = dict(files.convention.options)
            if "scale" in backbone.module.__dataclass_fields__ and any(to[-1] == "scale" for to in places):
                options["scale"] = True
            network = backbone.variant(**options)
            size = images.shape[1]
            whole = _places(network.shapes(size))
            if places == whole or (rank and places == _places(network.shapes(size, network.trunk))):
                continue  # an older form may leave the top out
            odd = first("/".join(path) for path in set(whole).symmetric_difference(places))
            raise _broken(
                backbone, f"the table of {framework}'s files and its arrays part at {odd or 'one named twice'}"
            )
        absent = set(backbone.blocks) - {"pooled"} - set(files.model.layers) if files.model else set()
        if absent:
            raise _broken(backbone, f"{framework} has no layer for {first(absent)}; name it in the mapping's `layers`")


def _places(variables: Variables) -> list[tuple[str, ...]]:
    """The arrays of a network as a mapping names them."""
    return sorted((kind, *path) for kind, part in variables.items() for path in flatten_dict(part))


CHECKS: tuple[Callable[[Backbone, Variables, jax.Array], None], ...] = (
    _check_parameters,
    _check_taps,
    _check_any_batch_size,
    _check_any_size,
    _check_vmap,
    _check_gradients,
    _check_padding,
    _check_frozen_statistics,
    _check_bfloat16,
    _check_both_convolutions,
    _check_mapping,
)


@functools.partial(jax.jit, static_argnames=("backbone", "blocks", "normalisation", "dtype"))
def _run(
    backbone: Backbone,
    variables: Variables,
    x: jax.Array,
    blocks: tuple[str, ...] | None = None,
    normalisation: Normalisation = INFERENCE,
    *,
    mask: jax.Array | None = None,
    dtype: type | None = None,
) -> tuple[jax.Array, dict[str, jax.Array], Variables]:
    """`Backbone.apply`, compiled."""
    return backbone.apply(variables, x, blocks, normalisation=normalisation, mask=mask, dtype=dtype)


def _drawn(backbone: Backbone, size: int, rng: np.random.Generator) -> Variables:
    """He-scaled kernels, and all else random as well: constants would hide what is exchanged or left out."""

    def draw(path: tuple[str, ...], leaf: np.ndarray) -> np.ndarray:
        if path[-1] == "kernel":
            return leaf
        low, high = (0.5, 2.0) if path[-1] in ("var", "scale") else (-0.1, 0.1)
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    leaves: Flat = flatten_dict(backbone.init(rng, size))
    return unflatten_dict({path: draw(path, leaf) for path, leaf in leaves.items()})


def _same(backbone: Backbone, one: Array, other: Array, what: str) -> None:
    """Raises UserError where two arrays differ by more than rounding, in units of the larger one's largest value."""
    one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
    scale = max(float(np.abs(other).max(initial=0)), 1e-30)
    if one.shape != other.shape or not np.allclose(one / scale, other / scale, rtol=CLOSE, atol=CLOSE):
        raise _broken(backbone, what)


def _broken(backbone: Backbone, what: str) -> UserError:
    return UserError(f"backbone {backbone.name!r}: {what}")


def first(names: Iterable[str]) -> str:
    """The first of some names in the order of the alphabet."""
    return min(names, default="")
