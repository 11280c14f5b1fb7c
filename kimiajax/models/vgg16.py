"""VGG16 as Keras builds it (Simonyan and Zisserman, arXiv:1409.1556, configuration D)."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from kimiajax.models.backbone import KERAS, Backbone, PublishedFile
from kimiajax.models.batch_norm import INFERENCE, Normalisation
from kimiajax.models.conv import Conv, max_pool
from kimiajax.shapes import Float, Shaped

CONVOLUTIONS = {  # block: (features, convolutions)
    "block1": (64, 2),
    "block2": (128, 2),
    "block3": (256, 3),
    "block4": (512, 3),
    "block5": (512, 3),
}
DENSE = {"fc1": 4096, "fc2": 4096}
BLOCKS = (*CONVOLUTIONS, *DENSE, "predictions")


class ConvBlock(nn.Module):
    features: int
    convolutions: int

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b _ _ d"]:
        for number in range(1, self.convolutions + 1):
            x = nn.relu(Conv(self.features, (3, 3), name=f"conv{number}")(x))
        return max_pool(x, 2, 2)


class DenseBlock(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b ..."]) -> Float[jax.Array, "b d"]:
        x = x.reshape(len(x), -1)  # h, w, c: the order in which Keras flattens
        return nn.relu(nn.Dense(self.features, name="dense")(x))


class VGG16(nn.Module):
    """Runs the named blocks, by default all of them, on the input of the first.

    At 224 x 224 the taps are block1 [b 112 112 64], block2 [b 56 56 128], block3 [b 28 28 256], block4 [b 14 14 512],
    block5 [b 7 7 512], fc1 and fc2 [b 4096], predictions [b classes]; the last are logits, of which Keras' network
    gives the softmax. The convolutions take any size from 32; fc1's parameters hold for one size.
    """

    num_classes: int = 1000

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "b ..."],
        blocks: Sequence[str] = BLOCKS,
        how: Normalisation = INFERENCE,
        mask: Shaped[jax.Array, " b"] | None = None,
    ) -> tuple[Float[jax.Array, "b ..."], dict[str, Float[jax.Array, "b ..."]]]:
        del how, mask  # nothing here normalises
        layers = {
            **{name: ConvBlock(*spec, name=name) for name, spec in CONVOLUTIONS.items()},
            **{name: DenseBlock(features, name=name) for name, features in DENSE.items()},
            "predictions": nn.Dense(self.num_classes, name="predictions"),
        }
        taps = {}
        for name in blocks:
            x = taps[name] = layers[name](x)
        return x, taps


BACKBONE = Backbone(
    "vgg16",
    "VGG16",
    VGG16,
    BLOCKS,
    features="fc2",
    bottleneck="block5",
    fine_tuned=("block5",),
    hidden=256,
    dropout=0.5,
    smallest=32,
    mapping="weights_convert.mappings.vgg16",
    published=(  # no SHA-256 of the first is known to us
        PublishedFile(
            f"{KERAS}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5",
            553_467_096,
            "md5:64373286793e3c8b2b4e3219cbf3544b",
            top=True,
        ),
        PublishedFile(
            f"{KERAS}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
            58_889_256,
            "sha256:bfe5187d0a272bed55ba430631598124cff8e880b98d38c9e56c8d66032abdc1",
            top=False,
        ),
    ),
)
