"""Inception-v3 as Keras builds it (Szegedy et al., arXiv:1512.00567).

A block is branches side by side, their outputs concatenated; a branch is layers one after another. Every convolution
is without bias and followed by batch normalisation without scale and a ReLU. The tables below name them in the order
in which Keras creates them, which is how its weight files number them. torchvision's and timm's network of this name
differs in two points, each an option: its batch normalisation scales, and its average pools count the padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from kimiajax.models import conv
from kimiajax.models.backbone import KERAS, Backbone, PublishedFile
from kimiajax.models.batch_norm import INFERENCE, BatchNorm, Normalisation
from kimiajax.shapes import Float, Shaped

EPSILON = 1e-3  # as in the checkpoint


@dataclass(frozen=True)
class Conv:
    features: int
    height: int
    width: int
    stride: int = 1
    padding: str = "SAME"


@dataclass(frozen=True)
class Fork:
    """Two convolutions on one input, concatenated."""

    left: Conv
    right: Conv


MAX = "max pool 3 x 3 / 2"
AVERAGE = "average pool 3 x 3 / 1, same size"


def _mixed_35(pooled: int) -> tuple:
    return (
        (Conv(64, 1, 1),),
        (Conv(48, 1, 1), Conv(64, 5, 5)),
        (Conv(64, 1, 1), Conv(96, 3, 3), Conv(96, 3, 3)),
        (AVERAGE, Conv(pooled, 1, 1)),
    )


def _mixed_17(c: int) -> tuple:
    return (
        (Conv(192, 1, 1),),
        (Conv(c, 1, 1), Conv(c, 1, 7), Conv(192, 7, 1)),
        (Conv(c, 1, 1), Conv(c, 7, 1), Conv(c, 1, 7), Conv(c, 7, 1), Conv(192, 1, 7)),
        (AVERAGE, Conv(192, 1, 1)),
    )


MIXED_8 = (
    (Conv(320, 1, 1),),
    (Conv(384, 1, 1), Fork(Conv(384, 1, 3), Conv(384, 3, 1))),
    (Conv(448, 1, 1), Conv(384, 3, 3), Fork(Conv(384, 1, 3), Conv(384, 3, 1))),
    (AVERAGE, Conv(192, 1, 1)),
)

MIXED = {  # shapes at 299 x 299
    "stem": (  # [b 35 35 192]
        (
            Conv(32, 3, 3, 2, "VALID"),
            Conv(32, 3, 3, 1, "VALID"),
            Conv(64, 3, 3),
            MAX,
            Conv(80, 1, 1, 1, "VALID"),
            Conv(192, 3, 3, 1, "VALID"),
            MAX,
        ),
    ),
    "mixed0": _mixed_35(32),  # [b 35 35 256]
    "mixed1": _mixed_35(64),  # [b 35 35 288]
    "mixed2": _mixed_35(64),  # [b 35 35 288]
    "mixed3": (  # [b 17 17 768]
        (Conv(384, 3, 3, 2, "VALID"),),
        (Conv(64, 1, 1), Conv(96, 3, 3), Conv(96, 3, 3, 2, "VALID")),
        (MAX,),
    ),
    "mixed4": _mixed_17(128),  # [b 17 17 768]
    "mixed5": _mixed_17(160),
    "mixed6": _mixed_17(160),
    "mixed7": _mixed_17(192),
    "mixed8": (  # [b 8 8 1280]
        (Conv(192, 1, 1), Conv(320, 3, 3, 2, "VALID")),
        (Conv(192, 1, 1), Conv(192, 1, 7), Conv(192, 7, 1), Conv(192, 3, 3, 2, "VALID")),
        (MAX,),
    ),
    "mixed9": MIXED_8,  # [b 8 8 2048]
    "mixed10": MIXED_8,
}
BLOCKS = (*MIXED, "pooled", "predictions")

# What Keras' layers[172:] are, the cut that its documentation named until 2017: it goes through the middle of mixed6,
# where of one unit it leaves the convolution frozen and takes the batch normalisation.
FROM_LAYER_172 = (
    "mixed6/branch1_conv1",
    "mixed6/branch2_conv1/bn",
    "mixed6/branch2_conv2",
    "mixed6/branch2_conv3",
    "mixed6/branch3_conv3",
    "mixed6/branch3_conv4",
    "mixed6/branch3_conv5",
    "mixed6/branch4_conv2",
    "mixed7",
    "mixed8",
    "mixed9",
    "mixed10",
    "head",
)


def _named(branches: tuple) -> list[list[tuple[str, object]]]:
    """The layers of a block with their names: branch and position, a fork's two sides by a letter."""
    return [
        [(f"branch{b}_conv{i}", layer) for i, layer in enumerate(branch, start=1)]
        for b, branch in enumerate(branches, start=1)
    ]


def convolutions() -> list[tuple[str, str]]:
    """(block, unit) of all 94 convolutions, in Keras' order of creation."""
    names = []
    for block, branches in MIXED.items():
        for branch in _named(branches):
            for name, layer in branch:
                sides = ("a", "b") if isinstance(layer, Fork) else ("",) if isinstance(layer, Conv) else ()
                names += [(block, name + side) for side in sides]
    return names


class ConvUnit(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    spec: Conv
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w c"], how: Normalisation, mask: Shaped[jax.Array, " b"] | None
    ) -> Float[jax.Array, "b _ _ d"]:
        c = self.spec
        x = conv.Conv(c.features, (c.height, c.width), c.stride, c.padding, use_bias=False, name="conv")(x)
        return nn.relu(self.norm(name="bn")(x, how, mask))


class Mixed(nn.Module):
    branches: tuple
    norm: Callable[..., BatchNorm]
    count_padding: bool

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w c"], how: Normalisation, mask: Shaped[jax.Array, " b"] | None
    ) -> Float[jax.Array, "b _ _ d"]:
        def run(name: str, layer: object, y: jax.Array) -> jax.Array:
            if layer is MAX:
                return conv.max_pool(y, 3, 2)
            if layer is AVERAGE:
                return conv.avg_pool(y, 3, count_padding=self.count_padding)
            if isinstance(layer, Fork):
                return jnp.concatenate([run(name + "a", layer.left, y), run(name + "b", layer.right, y)], axis=-1)
            assert isinstance(layer, Conv)
            return ConvUnit(layer, self.norm, name=name)(y, how, mask)

        outputs = []
        for branch in _named(self.branches):
            y = x
            for name, layer in branch:
                y = run(name, layer, y)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=-1)


class InceptionV3(nn.Module):
    """Runs the named blocks, by default all of them, on the input of the first.

    The taps are the blocks' outputs as in the tables above, pooled [b 2048], predictions [b classes]; the last are
    logits, of which Keras' network gives the softmax. Any size from 75 x 75 serves. `how` tells each batch
    normalisation what to do, and padded images (mask false) count in no statistics of a mini-batch. `scale` and
    `count_padding` make it torchvision's network; `epsilon` is that of its batch normalisation, by default Keras'.
    """

    num_classes: int = 1000
    momentum: float = 0.99
    scale: bool = False
    count_padding: bool = False
    epsilon: float | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "b ..."],
        blocks: Sequence[str] = BLOCKS,
        how: Normalisation = INFERENCE,
        mask: Shaped[jax.Array, " b"] | None = None,
    ) -> tuple[Float[jax.Array, "b ..."], dict[str, Float[jax.Array, "b ..."]]]:
        norm = partial(BatchNorm, self.epsilon or EPSILON, self.momentum, self.scale)
        taps = {}
        for name in blocks:
            if name in MIXED:
                mixed = Mixed(MIXED[name], norm, self.count_padding, name=name)
                x = mixed(x, how, mask)
            elif name == "pooled":
                x = x.mean(axis=(1, 2))
            else:
                x = nn.Dense(self.num_classes, name=name)(x)
            taps[name] = x
        return x, taps


BACKBONE = Backbone(
    "inception_v3",
    "Inception-v3",
    InceptionV3,
    BLOCKS,
    features="pooled",
    bottleneck="pooled",
    fine_tuned=("mixed9", "mixed10"),
    hidden=1024,
    dropout=0.0,
    smallest=75,
    mapping="weights_convert.mappings.inception_v3",
    published=(
        PublishedFile(
            f"{KERAS}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels.h5",
            96_112_376,
            "sha256:00c9ea4e4762f716ac4d300d6d9c2935639cc5e4d139b5790d765dcbeea539d0",
            top=True,
        ),
        PublishedFile(
            f"{KERAS}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
            87_910_968,
            "sha256:9617109a16463f250180008f9818336b767bdf5164315e8cd5761a8c34caa62a",
            top=False,
        ),
    ),
    cuts=(("inception_172", FROM_LAYER_172),),
    keras_vis="mixed10/branch4_conv2/conv",  # Keras' conv2d_94, 192 of 2,048 channels, of both signs
)
