"""The dense head that the study puts on a backbone in place of its ImageNet classes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kimiajax.shapes import Float, Shaped


class Head(nn.Module):
    """Optional hidden layer with ReLU and dropout, then one logit per scan: [b ...] -> [b classes].

    VGG16: hidden 256 on the flattened block 5, dropout 0.5 as in the recipe that the paper cites; Inception-v3: hidden
    1,024 on the pooled features, no dropout. The paper does not state the dropout.
    """

    hidden: int | None
    dropout: float
    num_classes: int

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b ..."], dropout_keys: Shaped[jax.Array, " b"] | None = None
    ) -> Float[jax.Array, "b k"]:
        x = x.reshape(len(x), -1)
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden, kernel_init=nn.initializers.glorot_uniform(), name="hidden")(x))
        if dropout_keys is not None and self.dropout:
            x = drop(x, self.dropout, dropout_keys)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.glorot_uniform(), name="logits")(x)


def drop(x: Float[jax.Array, "b d"], rate: float, keys: Shaped[jax.Array, " b"]) -> Float[jax.Array, "b d"]:
    """Zeroes each entry with probability `rate` and scales the others up. Each row has a key of its own, so that what
    is dropped does not depend on the devices that rows lie on."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)
