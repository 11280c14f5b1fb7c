"""The network trained from scratch. The paper's CNN1 is described in a text that we do not have; this one is ours."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from kimiajax.models.backbone import Backbone
from kimiajax.models.batch_norm import INFERENCE, BatchNorm, Normalisation
from kimiajax.models.conv import Conv
from kimiajax.shapes import Float, Shaped

CONVOLUTIONS = {  # block: (features, kernel, stride); strides in place of pooling are 5 x faster on a CPU
    "block1": (32, 4, 4),
    "block2": (64, 3, 2),
    "block3": (128, 3, 2),
    "block4": (256, 3, 2),
}
BLOCKS = (*CONVOLUTIONS, "pooled")
EPSILON = 1e-5


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    features: int
    kernel: int
    stride: int
    momentum: float

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w c"], how: Normalisation, mask: Shaped[jax.Array, " b"] | None
    ) -> Float[jax.Array, "b _ _ d"]:
        size = (self.kernel, self.kernel)
        x = Conv(self.features, size, self.stride, use_bias=False, name="conv")(x)
        return nn.relu(BatchNorm(EPSILON, self.momentum, name="bn")(x, how, mask))


class CNN(nn.Module):
    """Four strided convolutions with batch normalisation, then the mean over space.

    At 224 x 224 the taps are block1 [b 56 56 32], block2 [b 28 28 64], block3 [b 14 14 128], block4 [b 7 7 256],
    pooled [b 256]. Any size from 32 x 32 serves.
    """

    momentum: float = 0.9

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "b ..."],
        blocks: Sequence[str] = BLOCKS,
        how: Normalisation = INFERENCE,
        mask: Shaped[jax.Array, " b"] | None = None,
    ) -> tuple[Float[jax.Array, "b ..."], dict[str, Float[jax.Array, "b ..."]]]:
        taps = {}
        for name in blocks:
            if name == "pooled":
                x = x.mean(axis=(1, 2))
            else:
                x = ConvBlock(*CONVOLUTIONS[name], self.momentum, name=name)(x, how, mask)
            taps[name] = x
        return x, taps


BACKBONE = Backbone(
    "cnn",
    "CNN (ours)",
    CNN,
    BLOCKS,
    features="pooled",
    bottleneck="pooled",
    fine_tuned=BLOCKS[:-1],
    hidden=None,
    dropout=0.2,
    smallest=32,
    keras_vis="block4/conv",
)
