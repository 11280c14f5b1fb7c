"""DenseNet-121 as Keras builds it (Huang, Liu, van der Maaten and Weinberger, arXiv:1608.06993)."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from kimiajax.models.backbone import KERAS, Backbone, PublishedFile
from kimiajax.models.batch_norm import INFERENCE, BatchNorm, Normalisation
from kimiajax.models.conv import Conv, max_pool, zero_padded
from kimiajax.shapes import Float, Shaped

EPSILON = 1.001e-5  # as in the checkpoint
GROWTH = 32  # channels that each layer adds
DENSE = {  # block: layers
    "conv2": 6,  # [b 56 56 256] at 224 x 224
    "conv3": 12,  # [b 28 28 512]
    "conv4": 24,  # [b 14 14 1024]
    "conv5": 16,  # [b 7 7 1024]
}
TRANSITIONS = ("pool2", "pool3", "pool4")  # each halves height, width and channels
BLOCKS = ("stem", "conv2", "pool2", "conv3", "pool3", "conv4", "pool4", "conv5", "norm", "pooled", "predictions")


class NormConv(nn.Module):
    """Batch normalisation, ReLU, convolution."""

    features: int
    size: int
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w c"], how: Normalisation, mask: Shaped[jax.Array, " b"] | None
    ) -> Float[jax.Array, "b h w d"]:
        x = nn.relu(self.norm(name="bn")(x, how, mask))
        return Conv(self.features, (self.size, self.size), use_bias=False, name="conv")(x)


class Stem(nn.Module):
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w c"], how: Normalisation, mask: Shaped[jax.Array, " b"] | None
    ) -> Float[jax.Array, "b _ _ 64"]:
        x = Conv(64, (7, 7), 2, "VALID", use_bias=False, name="conv")(zero_padded(x, 3))
        x = nn.relu(self.norm(name="bn")(x, how, mask))
        return max_pool(zero_padded(x, 1), 3, 2)  # [b 56 56 64]


class DenseBlock(nn.Module):
    """Layers of two convolutions, each of which sees the outputs of all before it."""

    layers: int
    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w c"], how: Normalisation, mask: Shaped[jax.Array, " b"] | None
    ) -> Float[jax.Array, "b h w d"]:
        for number in range(1, self.layers + 1):
            y = NormConv(4 * GROWTH, 1, self.norm, name=f"layer{number}_conv1")(x, how, mask)
            y = NormConv(GROWTH, 3, self.norm, name=f"layer{number}_conv2")(y, how, mask)
            x = jnp.concatenate([x, y], axis=-1)
        return x


class Norm(nn.Module):
    """Batch normalisation and ReLU."""

    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w c"], how: Normalisation, mask: Shaped[jax.Array, " b"] | None
    ) -> Float[jax.Array, "b h w c"]:
        return nn.relu(self.norm(name="bn")(x, how, mask))


class DenseNet121(nn.Module):
    """Runs the named blocks, by default all of them, on the input of the first.

    The taps are the stem's [b 56 56 64], the dense blocks' as in the table above, the transitions' of half their
    height, width and channels, norm [b 7 7 1024], pooled [b 1024] and predictions [b classes], which are logits. Any
    size from 32 x 32 serves. `epsilon` is that of batch normalisation, by default Keras'.
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
            elif name in DENSE:
                x = DenseBlock(DENSE[name], norm, name=name)(x, how, mask)
            elif name in TRANSITIONS:
                x = _halved(NormConv(x.shape[-1] // 2, 1, norm, name=name)(x, how, mask))
            elif name == "norm":
                x = Norm(norm, name=name)(x, how, mask)
            elif name == "pooled":
                x = x.mean(axis=(1, 2))
            else:
                x = nn.Dense(self.num_classes, name=name)(x)
            taps[name] = x
        return x, taps


def _halved(x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b _ _ c"]:
    """The means of windows of 2 x 2; an odd last row or column is left out."""
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


BACKBONE = Backbone(
    "densenet121",
    "DenseNet-121",
    DenseNet121,
    BLOCKS,
    features="pooled",
    bottleneck="pooled",
    fine_tuned=("conv5", "norm"),
    hidden=1024,
    dropout=0.0,
    smallest=32,
    mapping="weights_convert.mappings.densenet121",
    published=(  # no SHA-256 is known to us
        PublishedFile(
            f"{KERAS}/densenet/densenet121_weights_tf_dim_ordering_tf_kernels.h5",
            33_188_688,
            "md5:9d60b8095a5708f2dcce2bca79d332c7",
            top=True,
        ),
        PublishedFile(
            f"{KERAS}/densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
            29_084_464,
            "md5:30ee3e1110167f948a6b9946edeeb738",
            top=False,
        ),
    ),
    keras_vis="conv5/layer16_conv2/conv",
)
