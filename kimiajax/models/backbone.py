"""What the study needs to know of a network: its blocks in order, and which of them it reads, trains and replaces."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby, takewhile
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kimiajax.checks import kind_of, names_of, whole
from kimiajax.errors import UserError
from kimiajax.models.batch_norm import INFERENCE, Normalisation
from kimiajax.models.conv import KEPT, Conv, Way, convolving, tile_of
from kimiajax.models.inputs import block_input, fitting, params_of
from kimiajax.models.winograd import Sides, folded
from kimiajax.shapes import Float, Shaped

Array = jax.Array | np.ndarray
Variables = dict[str, Any]
Flat = dict[tuple[str, ...], Any]  # leaves by their paths, as `flatten_dict` gives them
Taps = dict[str, jax.Array]
A_BACKBONE = "give one of kimiajax.BACKBONES, or the `backbone` of loaded weights"
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"  # where Keras publishes its weights
AT_ONCE = 2**21  # bytes between two blocks for which images go through them together, in the fast way; a cache's worth


@dataclass(frozen=True)
class PublishedFile:
    """A file of ImageNet weights that Keras publishes.

    Attributes:
        url: where.
        size: in bytes.
        checksum: as pooch takes it, "sha256:..." or "md5:...".
        top: whether it holds the blocks after the bottleneck as well.
    """

    url: str
    size: int
    checksum: str
    top: bool

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Backbone:
    """A network as a sequence of named blocks.

    Attributes:
        name: its key in `BACKBONES` (of `kimiajax.models.registry`).
        title: its name in tables.
        module: the Linen module; called as `module(x, blocks, how, mask) -> (output, taps)`.
        blocks: all block names, first to last.
        features: the block whose output is the paper's feature vector.
        bottleneck: the last block before the head.
        fine_tuned: the blocks that the paper trains, a run of blocks that ends at the bottleneck.
        hidden: width of the head's hidden layer; None for a head of one layer.
        dropout: of the head, in [0, 1).
        smallest: the least image size, in pixels.
        mapping: the module that says where the arrays of other frameworks' files go, which `weights_convert` imports;
            none for a network that is in no other framework.
        published: its files of ImageNet weights.
        cuts: choices of what trains that only this network has, as (name, names that `TrainableBlocks` takes).
        keras_vis: the path of the module that keras-vis 0.4.1 looked at, for Grad-CAM: Keras' last layer before the
            head that convolves or pools windows; by default the last block with a height and a width.
        options: fields of the module that differ from their defaults, as (name, value); see `variant`.
        conv: how it convolves. "fast" is for one CPU device and float32: other sums, the same but for rounding; it has
            a gradient, but no forward-mode derivative.
    """

    name: str
    title: str
    module: type[nn.Module]
    blocks: tuple[str, ...]
    features: str
    bottleneck: str
    fine_tuned: tuple[str, ...]
    hidden: int | None
    dropout: float
    smallest: int
    mapping: str | None = None
    published: tuple[PublishedFile, ...] = ()
    cuts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    keras_vis: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    conv: Way = "plain"

    def variant(self, **options: Any) -> "Backbone":
        """This network with other options of its module, as weights of another framework may need them.

        Raises:
            UserError: an option that the network has not.
        """
        defaults = {name: field.default for name, field in self.module.__dataclass_fields__.items()}
        unknown = [name for name in options if name not in defaults]
        if unknown:
            raise UserError(f"{self.name} has no option {unknown[0]!r}")
        options = {**dict(self.options), **options}
        return replace(self, options=tuple(sorted((k, v) for k, v in options.items() if v != defaults[k])))

    def check_blocks(self, names: Sequence[str] | Any) -> None:
        """Raises UserError, with the valid names, for names that are no blocks of this network."""
        unknown = [name for name in names_of("blocks", names) if name not in self.blocks]
        if unknown:
            raise UserError(f"unknown block {unknown[0]!r} of {self.name}; choose from {', '.join(self.blocks)}")

    def size_for(self, values: int) -> int:
        """The image size at which a bottleneck with a height and a width has so many values, once it is flattened."""
        if self.bottleneck == "pooled":
            return self.smallest
        shape = self.tap_shapes(self.shapes(self.smallest, self.trunk), self.smallest, self.trunk)[self.bottleneck]
        return max(self.smallest, self.smallest // shape[0] * round((values / shape[-1]) ** 0.5))

    def check_size(self, size: int | Any) -> None:
        """Raises UserError for a size that is no number of pixels, or too small for this network."""
        if whole("image size", size) < self.smallest:
            raise UserError(f"{self.name} takes images from {self.smallest} x {self.smallest}; {size} is too small")

    def span(self, first: str, last: str) -> tuple[str, ...]:
        """The blocks from `first` to `last`, both included."""
        self.check_blocks([first, last])
        return self.blocks[self.blocks.index(first) : self.blocks.index(last) + 1]

    def up_to(self, block: str) -> tuple[str, ...]:
        """The blocks from the network's first to `block`, both included."""
        return self.span(self.blocks[0], block)

    def held_by(self, variables: Variables | Any) -> tuple[str, ...]:
        """The blocks that can run with some variables: those with parameters there, and the pool, which has none."""
        params = params_of(variables)
        return tuple(name for name in self.blocks if name in params or name == "pooled")

    def last_of(self, blocks: Collection[str] | Any) -> str:
        """The deepest of some blocks.

        Raises:
            UserError: none is named, or one that there is not.
        """
        blocks = names_of("blocks", blocks)
        if not blocks:
            raise UserError(f"blocks: none of {self.name} is named; choose from {', '.join(self.blocks)}")
        self.check_blocks(blocks)
        return max(blocks, key=self.blocks.index)

    @property
    def trunk(self) -> tuple[str, ...]:
        """The blocks before a head, up to the bottleneck."""
        return self.up_to(self.bottleneck)

    @property
    def top(self) -> tuple[str, ...]:
        """The blocks with parameters after the bottleneck, which only files with ImageNet's classes hold."""
        return tuple(block for block in self.blocks if block not in self.trunk and block != "pooled")

    @property
    def statistics(self) -> set[tuple[str, ...]]:
        """The paths of its running statistics of batch normalisation, each beginning with a block."""
        return {
            (block, *path)
            for block, leaves in _leaves(self)[0].items()
            for kind, *path in leaves
            if kind == "batch_stats"
        }

    def before(self, block: str) -> str | None:
        """The block before this one, None before the network's first."""
        self.check_blocks([block])
        index = self.blocks.index(block)
        return self.blocks[index - 1] if index else None

    def shapes(self, size: int | Any, blocks: Sequence[str] | Any = None, *, num_classes: int = 1000) -> Variables:
        """The tree of parameters and running statistics, as shapes, for images of `size` x `size` pixels.

        Args:
            size: side of the images.
            blocks: a run of blocks that starts at the first; by default all.
            num_classes: of the block "predictions".

        Raises:
            UserError: a size under `smallest`, or an unknown block.
        """
        blocks = self.blocks if blocks is None else names_of("blocks", blocks)
        self.check_blocks(blocks)
        self.check_size(size)
        module = self.build(num_classes)
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        return jax.eval_shape(lambda images: module.init(jax.random.key(0), images, blocks), images)

    def init(self, rng: np.random.Generator | Any, size: int | Any, blocks: Sequence[str] | Any = None) -> Variables:
        """He-scaled random parameters, as NumPy arrays in the tree of `shapes`.

        He's scale (kernels of variance 2 / fan-in) keeps the activations' size, which a linear SVM with C = 1 on raw
        features needs; Keras' default shrinks Inception-v3's to 1e-5. Biases and means are 0, scales and variances 1.
        NumPy draws them: compiling a network's initialisers takes longer than running it.

        Raises:
            UserError: as `shapes`, or what draws is no generator of NumPy's.
        """
        kind_of("rng", rng, np.random.Generator, "give np.random.default_rng(seed)")

        def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
            match path[-1].key:
                case "kernel":
                    scale = np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
                    return rng.standard_normal(leaf.shape, np.float32) * scale
                case "scale" | "var":
                    return np.ones(leaf.shape, np.float32)
                case _:
                    return np.zeros(leaf.shape, np.float32)

        return jax.tree_util.tree_map_with_path(draw, self.shapes(size, blocks))

    def apply(
        self,
        variables: Variables | Any,
        x: Float[Array, "b ..."] | Any,
        blocks: Sequence[str] | Any = None,
        *,
        normalisation: Normalisation = INFERENCE,
        mask: Shaped[Array, " b"] | None = None,
        dtype: Any = None,
    ) -> tuple[Float[jax.Array, "b ..."], dict[str, jax.Array], Variables]:
        """Runs a sequence of blocks, by default all that `variables` has.

        Args:
            variables: `{"params": {block: ...}, "batch_stats": {block: ...}}`; more blocks than needed may be in it.
            x: the input of the first block; images as [b h w 3] in [0, 1] for the network's first.
            blocks: the blocks to run.
            normalisation: what batch normalisation does; by default it normalises by the running statistics.
            mask: false for padded images, which a mini-batch's statistics leave out.
            dtype: of activations, and of kernels as they are used; by default the variables' own. Batch normalisation
                computes in float32 or better, and running statistics keep their type.

        Returns:
            The last block's output, every block's output by name, and the running statistics after this call.

        Raises:
            UserError: unknown blocks, variables that are not theirs, or an input of another shape or type than the
                first block takes, or, where it has values yet, that is not finite.
        """
        params = params_of(variables)
        blocks = self.held_by(variables) if blocks is None else names_of("blocks", blocks)
        self.last_of(blocks)  # which refuses none, and unknown ones
        self._check_leaves(variables, blocks)
        x = jnp.asarray(self._checked(x, blocks[0]), dtype)
        module = self.build(params["predictions"]["kernel"].shape[-1] if "predictions" in blocks else 1000)
        arrays = {**variables, "params": params if dtype is None else cast_kernels(params, dtype)}

        def run(arrays: Variables, x: Array, blocks: Sequence[str], mask: Array | None = None) -> Any:
            given = arrays, x, tuple(blocks), normalisation, mask
            with fitting(f"{blocks[0]} to {blocks[-1]} of {self.name}"):
                (_, taps), moved = module.apply(*given, mutable=["batch_stats", KEPT])
            return taps, moved

        with convolving(self.conv):
            if self.conv == "plain":
                taps, moved = run(arrays, x, blocks, mask)
            else:
                if KEPT not in arrays:
                    arrays = {**arrays, KEPT: run(arrays, x[:1], blocks)[1].get(KEPT, {})}
                taps = self._in_parts(run, arrays, x, self.still(blocks, normalisation))
                rest, moved = blocks[len(taps) :], {}
                if rest:
                    last, moved = run(arrays, taps[blocks[len(taps) - 1]] if taps else x, rest, mask)
                    taps |= last
        return taps[blocks[-1]], taps, {**variables.get("batch_stats", {}), **moved.get("batch_stats", {})}

    def fold_for_inference(self, variables: Variables, size: int, blocks: Sequence[str]) -> Variables:
        """Variables as `apply` takes them, and beside them whatever it would compute of them in each call.

        Args:
            variables: of the blocks at least.
            size: side of the images.
            blocks: a run of blocks that starts at the first.
        """
        return variables if self.conv == "plain" else {**variables, **_kept(self, size, blocks, variables)}

    def _in_parts(self, run: Callable, arrays: Variables, x: Array, blocks: Sequence[str]) -> Taps:
        """The outputs of convolutional blocks, from the first on, through which few images go at once."""
        taps: Taps = {}
        for part, images in self._parts(run, arrays, x, blocks):
            groups = x.reshape(-1, images, *x.shape[1:])
            outputs = jax.lax.map(lambda group, part=part: run(arrays, group, part)[0], groups)
            taps |= {block: each.reshape(len(x), *each.shape[2:]) for block, each in outputs.items()}
            x = taps[part[-1]]
        return taps

    def _parts(
        self, run: Callable, arrays: Variables, x: Array, blocks: Sequence[str]
    ) -> list[tuple[tuple[str, ...], int]]:
        """Runs of those blocks, and how many images go through each at once."""
        with convolving("plain"):  # which has the same shapes
            taps = jax.eval_shape(lambda arrays, x: run(arrays, x, blocks)[0], arrays, x) if blocks else {}
        images = {}
        for block, before in zip(blocks, [x, *(taps[block] for block in blocks)]):
            if taps[block].ndim != 4:  # a dense layer reads its parameters once a call
                break
            most = AT_ONCE * len(x) / max(each.size * each.dtype.itemsize for each in (before, taps[block]))
            images[block] = max(n for n in range(1, len(x) + 1) if len(x) % n == 0 and n <= max(1, most))
        return [(tuple(part), count) for count, part in groupby(images, key=images.__getitem__)]

    def still(self, blocks: Sequence[str], normalisation: Normalisation) -> tuple[str, ...]:
        """The first of some blocks, before any that trains or normalises by the mini-batch."""
        moving = {name.split("/")[0] for name in normalisation.names}
        if normalisation.frozen != "inference":
            moving |= {path[0] for path in self.statistics}
        return tuple(takewhile(lambda block: block not in moving, blocks))

    def tap_shapes(self, variables: Variables | Any, size: int, blocks: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """The shape of each block's output for one image of `size` x `size` pixels, without the batch axis."""
        params_of(variables)
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        plain = replace(self, conv="plain")  # of the same shapes, and traced in a tenth of the time
        taps = jax.eval_shape(lambda variables, x: plain.apply(variables, x, blocks)[1], variables, image)
        return {block: output.shape[1:] for block, output in taps.items()}

    def build(self, num_classes: int = 1000) -> nn.Module:
        """The Linen module with this network's options."""
        options = {"num_classes": num_classes, **dict(self.options)}
        return self.module(**{key: value for key, value in options.items() if key in self.module.__dataclass_fields__})

    def _checked(self, x: Any, first: str) -> Any:
        before = self.before(first)
        taken = (self.smallest, self.smallest, 3) if before is None else _leaves(self)[1].get(before)
        # A network that does not tell what its blocks give is refused by `check_backbone`.
        return x if taken is None else block_input(x, f"{first} of {self.name}", taken, before)

    def _check_leaves(self, variables: Variables, blocks: Sequence[str]) -> None:
        """Refuses parameters of another variant: Flax would pass over a leaf that it does not know."""
        for block in blocks:
            known, found = _leaves(self)[0][block], _leaves_of(variables, block)
            if found != known:
                wrong = sorted("/".join(path) for path in known ^ found)
                raise UserError(
                    f"{block} of {self.name}: {len(wrong)} arrays are missing or not its own ({wrong[0]}, ...); use "
                    "the `backbone` of the weights that `load_weights` gives"
                )


def _kept(backbone: Backbone, size: int, blocks: Sequence[str], variables: Variables) -> Variables:
    """The kernels that the fast way transforms, transformed."""
    tiles: dict[tuple[str, ...], Sides] = {}

    def note(call, arguments, options, context):
        module = context.module
        if isinstance(module, Conv) and (tile := tile_of(module, arguments[0].shape[-1])):
            tiles[(*module.path, "kernel")] = tile
        return call(*arguments, **options)

    with nn.intercept_methods(note):
        backbone.shapes(size, blocks)
    kernels = flatten_dict(variables["params"])
    return {KEPT: unflatten_dict({path: jnp.asarray(folded(np.asarray(kernels[path]), tiles[path])) for path in tiles})}


def of_blocks(variables: Variables, blocks: Iterable[str]) -> Variables:
    """The variables of these blocks, as far as there are any."""
    return {kind: {block: part[block] for block in blocks if block in part} for kind, part in variables.items()}


def cast_kernels(params: Variables, dtype: Any) -> Variables:
    """Parameters as a computation in `dtype` uses them: all in it, but for those of batch normalisation ("bn")."""

    def cast(path: tuple, leaf: Array) -> Array:
        return leaf if any(key.key == "bn" for key in path) else jnp.asarray(leaf, dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


@cache
def _leaves(backbone: Backbone) -> tuple[dict[str, set[tuple[str, ...]]], dict[str, tuple[int, ...]]]:
    """The paths of each block's arrays, which do not depend on the image size; and each block's output shape, for one
    image of the smallest size."""
    images = jax.ShapeDtypeStruct((1, backbone.smallest, backbone.smallest, 3), jnp.float32)
    module = backbone.build()
    (_, taps), shapes = jax.eval_shape(
        lambda images: module.init_with_output(jax.random.key(0), images, backbone.blocks), images
    )
    return {block: _leaves_of(shapes, block) for block in backbone.blocks}, {
        block: output.shape[1:] for block, output in taps.items()
    }


def _leaves_of(variables: Variables, block: str) -> set[tuple[str, ...]]:
    return {
        (kind, *(key.key for key in path))
        for kind, part in variables.items()
        if kind != KEPT
        for path, _ in jax.tree_util.tree_leaves_with_path(part.get(block, {}))
    }
