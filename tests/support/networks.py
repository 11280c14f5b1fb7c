"""Random variables for any network, and a network of two blocks, for tests in which any network would do."""

import flax.linen as nn
import jax
import numpy as np

from kimiajax.models.backbone import Backbone
from kimiajax.models.batch_norm import INFERENCE
from kimiajax.models.cnn import ConvBlock


def randomise(variables: dict, rng: np.random.Generator) -> dict:
    """Every array random, statistics and biases too: constants would hide arrays that are exchanged."""

    def draw(path: tuple, leaf: np.ndarray) -> np.ndarray:
        match path[-1].key:
            case "kernel":
                return (rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(np.float32)
            case "var" | "scale":
                return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
            case _:
                return (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


BLOCKS = ("one", "two", "pooled")


class Two(nn.Module):
    """Two convolutions with batch normalisation, of which the second can go by Winograd's algorithm."""

    @nn.compact
    def __call__(self, x, blocks=BLOCKS, how=INFERENCE, mask=None):
        taps = {}
        for name in blocks:
            if name == "pooled":
                x = x.mean(axis=(1, 2))
            else:
                kernel, stride = (4, 4) if name == "one" else (3, 1)
                x = ConvBlock(8, kernel, stride, momentum=0.9, name=name)(x, how, mask)
            taps[name] = x
        return x, taps


TWO = Backbone(
    "two",
    "Two",
    Two,
    BLOCKS,
    features="pooled",
    bottleneck="pooled",
    fine_tuned=("two",),
    hidden=8,
    dropout=0.0,
    smallest=16,
)
