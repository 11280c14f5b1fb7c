"""The dense head that the study puts on a backbone in place of its ImageNet classes."""

import flax.linen as nn
import jax

from kimiajax.shapes import Float


class Head(nn.Module):
    """Optional hidden layer with ReLU and dropout, then one logit per scan: [b ...] -> [b classes].

    VGG16: hidden 256 on the flattened block 5, dropout 0.5 as in the recipe that the paper cites; Inception-v3: hidden
    1,024 on the pooled features, no dropout. The paper does not state the dropout.
    """

    hidden: int | None
    dropout: float
    num_classes: int

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b ..."], *, train: bool = False) -> Float[jax.Array, "b k"]:
        x = x.reshape(len(x), -1)
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden, kernel_init=nn.initializers.glorot_uniform(), name="hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.glorot_uniform(), name="logits")(x)
