"""What a network consists of, block by block, and what of it trains."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from kimiajax.models.backbone import Backbone, Flat
from kimiajax.models.flops import flops_of
from kimiajax.models.head import Classifier
from kimiajax.training.freezing import TrainableBlocks


@dataclass(frozen=True)
class BlockEntry:
    """Attributes:
    name: of the block.
    output: its output's shape for one image.
    parameters: how many numbers training can move.
    trained: how many of them train.
    statistics: how many running statistics of batch normalisation it holds.
    adapts: whether any of them move although their layer is frozen.
    flops: of a forward pass of one image.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    trained: int
    statistics: int
    adapts: bool
    flops: int


def list_blocks(backbone: Backbone, blocks: TrainableBlocks, size: int, num_classes: int) -> list[BlockEntry]:
    """The blocks of a backbone up to its bottleneck, and the head, for images of `size` x `size` pixels.

    Raises:
        UserError: too small a size, or an unknown name in `blocks`.
    """
    shapes = backbone.shapes(size, backbone.trunk)
    outputs = backbone.tap_shapes(shapes, size, backbone.trunk)
    bottleneck, x = outputs[backbone.bottleneck], jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    classifier = Classifier(backbone, (), num_classes)
    head = jax.eval_shape(lambda: classifier.init_head(jax.random.key(0), bottleneck))
    params = {**shapes["params"], "head": head}
    blocks.check(params)

    entries = []
    for name in backbone.trunk:
        flops = flops_of(lambda v, x, name=name: backbone.apply(v, x, (name,))[0], shapes, x)
        x = jax.ShapeDtypeStruct((1, *outputs[name]), jnp.float32)
        entries.append(_entry(name, outputs[name], params, shapes.get("batch_stats", {}), blocks, flops))
    flops = flops_of(lambda v, x: classifier.apply(v, x)[0], {"params": {"head": head}}, x)
    return [*entries, _entry("head", (num_classes,), params, {}, blocks, flops)]


def _entry(
    name: str, output: tuple[int, ...], params: dict, statistics: dict, blocks: TrainableBlocks, flops: int
) -> BlockEntry:
    arrays: Flat = flatten_dict(params.get(name, {}))
    sizes = {path: math.prod(leaf.shape) for path, leaf in arrays.items()}
    trained = sum(size for path, size in sizes.items() if blocks.trains((name, *path)))
    running: Flat = flatten_dict(statistics.get(name, {}))
    kept = sum(math.prod(leaf.shape) for leaf in running.values())
    adapts = blocks.frozen_bn == "keras2017" and any(not blocks.trains((name, *path)) for path in running)
    return BlockEntry(name, output, sum(sizes.values()), trained, kept, adapts, flops)
