"""ResNet-50 as Keras builds it (He, Zhang, Ren and Sun, arXiv:1512.03385): strides in a block's first convolution."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax

from kimiajax.models.backbone import KERAS, Backbone, PublishedFile
from kimiajax.models.batch_norm import INFERENCE, BatchNorm, Normalisation
from kimiajax.models.conv import Conv, max_pool, zero_padded
from kimiajax.shapes import Float, Shaped

EPSILON = 1.001e-5  # as in the checkpoint
STAGES = {"conv2": (64, 3), "conv3": (128, 4), "conv4": (256, 6), "conv5": (512, 3)}  # (features, blocks)
BOTTLENECKS = {  # block: (features, stride), [b 56 56 256], [b 28 28 512], [b 14 14 1024], [b 7 7 2048] at 224 x 224
    f"{stage}_block{number}": (features, 2 if number == 1 and stage != "conv2" else 1)
    for stage, (features, count) in STAGES.items()
    for number in range(1, count + 1)
}
BLOCKS = ("stem", *BOTTLENECKS, "pooled", "predictions")


class ConvNorm(nn.Module):
    """Convolution and batch normalisation."""

    features: int
    size: int
    stride: int
    norm: Callable[..., BatchNorm]
    padding: str = "SAME"

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w c"], how: Normalisation, mask: Shaped[jax.Array, " b"] | None
    ) -> Float[jax.Array, "b _ _ d"]:
        x = Conv(self.features, (self.size, self.size), self.stride, self.padding, name="conv")(x)
        return self.norm(name="bn")(x, how, mask)


class Stem(nn.Module):
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w c"], how: Normalisation, mask: Shaped[jax.Array, " b"] | None
    ) -> Float[jax.Array, "b _ _ 64"]:
        x = nn.relu(ConvNorm(64, 7, 2, self.norm, "VALID", name="conv1")(zero_padded(x, 3), how, mask))
        return max_pool(zero_padded(x, 1), 3, 2)  # [b 56 56 64]


class Bottleneck(nn.Module):
    """Three convolutions, added to the input; to its projection where their output is of another shape."""

    features: int
    stride: int
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w c"], how: Normalisation, mask: Shaped[jax.Array, " b"] | None
    ) -> Float[jax.Array, "b _ _ d"]:
        def run(name: str, y: jax.Array, features: int, size: int, stride: int = 1) -> jax.Array:
            return ConvNorm(features, size, stride, self.norm, name=name)(y, how, mask)

        wide = 4 * self.features
        shortcut = x if x.shape[-1] == wide else run("shortcut", x, wide, 1, self.stride)
        y = nn.relu(run("conv1", x, self.features, 1, self.stride))
        y = nn.relu(run("conv2", y, self.features, 3))
        return nn.relu(shortcut + run("conv3", y, wide, 1))


class ResNet50(nn.Module):
    """Runs the named blocks, by default all of them, on the input of the first.

    The taps are the stem's [b 56 56 64], the blocks' as in the table above, pooled [b 2048] and predictions
    [b classes], which are logits. Any size from 32 x 32 serves. `epsilon` is that of batch
    normalisation, by default Keras'.
    """

    num_classes: int = 1000
    momentum: float = 0.99
    epsilon: float | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "b ..."],
        blocks: Sequence[str] = BLOCKS,
        how: Normalisation = INFERENCE,
        mask: Shaped[jax.Array, " b"] | None = None,
    ) -> tuple[Float[jax.Array, "b ..."], dict[str, Float[jax.Array, "b ..."]]]:
        norm = partial(BatchNorm, self.epsilon or EPSILON, self.momentum)
        taps = {}
        for name in blocks:
            if name == "stem":
                x = Stem(norm, name=name)(x, how, mask)
            elif name in BOTTLENECKS:
                x = Bottleneck(*BOTTLENECKS[name], norm, name=name)(x, how, mask)
            elif name == "pooled":
                x = x.mean(axis=(1, 2))
            else:
                x = nn.Dense(self.num_classes, name=name)(x)
            taps[name] = x
        return x, taps


BACKBONE = Backbone(
    "resnet50",
    "ResNet-50",
    ResNet50,
    BLOCKS,
    features="pooled",
    bottleneck="pooled",
    fine_tuned=tuple(block for block in BLOCKS if block.startswith("conv5")),
    hidden=1024,
    dropout=0.0,
    smallest=32,
    mapping="weights_convert.mappings.resnet50",
    published=(  # no SHA-256 is known to us
        PublishedFile(
            f"{KERAS}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels.h5",
            102_967_424,
            "md5:2cb95161c43110f7111970584f804107",
            top=True,
        ),
        PublishedFile(
            f"{KERAS}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            94_765_736,
            "md5:4d473c1dd8becc155b73f8504c6f6626",
            top=False,
        ),
    ),
    keras_vis="conv5_block3/conv3/conv",
)
