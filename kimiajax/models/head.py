"""The dense head that the study puts on a backbone in place of its ImageNet classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from kimiajax.checks import kind_of, whole
from kimiajax.errors import UserError
from kimiajax.models.backbone import A_BACKBONE, Array, Backbone, Variables, cast_kernels
from kimiajax.models.batch_norm import INFERENCE, Normalisation
from kimiajax.models.inputs import fitting, inputs_of, params_of
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


@dataclass(frozen=True)
class Classifier:
    """Some blocks of a backbone, from any one to the bottleneck, and a head: what is trained.

    Its variables are the backbone's, block by block, with the head's parameters beside them under "head".

    Attributes:
        backbone: the network.
        blocks: the blocks to run; none for a head on bottleneck features.
        num_classes: of the head, 1 or more.

    Raises:
        UserError: no backbone, a block that it has not, or no whole number of classes.
    """

    backbone: Backbone
    blocks: tuple[str, ...]
    num_classes: int

    def __post_init__(self) -> None:
        kind_of("backbone", self.backbone, Backbone, A_BACKBONE)
        self.backbone.check_blocks(self.blocks)
        whole("num_classes", self.num_classes, 1)
        object.__setattr__(self, "blocks", tuple(self.blocks))  # a list would be no key of a compiled program

    @property
    def sees_images(self) -> bool:
        """Whether it begins with the network's first block, and so takes images."""
        return self.blocks[:1] == self.backbone.blocks[:1]

    @cached_property
    def head(self) -> Head:
        return Head(self.backbone.hidden, self.backbone.dropout, self.num_classes)

    def init_head(self, key: jax.Array | Any, bottleneck_shape: Sequence[int] | Any) -> Variables:
        """Fresh parameters of the head for bottleneck features of this shape, without the batch axis.

        Raises:
            UserError: no key, or a shape that is none.
        """
        kind_of("key", key, jax.Array, "give jax.random.key(seed)")
        for side in kind_of("bottleneck_shape", bottleneck_shape, Sequence, "give the features' shape[1:]"):
            whole("bottleneck_shape", side, 1)
        return cast(Variables, self.head.init(key, jnp.zeros((1, *bottleneck_shape))))["params"]

    def apply(
        self,
        variables: Variables | Any,
        x: Float[Array, "b ..."] | Any,
        *,
        normalisation: Normalisation = INFERENCE,
        mask: Shaped[Array, " b"] | None = None,
        dropout_keys: Shaped[jax.Array, " b"] | None = None,
        dtype: Any = None,
    ) -> tuple[Float[jax.Array, "b k"], Variables]:
        """Logits in float32 or better, and the running statistics after this call.

        Args:
            variables: `{"params": {block: ..., "head": ...}, "batch_stats": {block: ...}}`.
            x: the input of the first of `blocks`, or of the head.
            normalisation, mask, dtype: as in `Backbone.apply`.
            dropout_keys: one for each input, given in training only; without them the head drops nothing.

        Raises:
            UserError: as `Backbone.apply`, variables without a head, or an input that does not fit it.
        """
        if "head" not in params_of(variables):
            raise UserError('these variables have no head; put what `init_head` gives under params, as "head"')
        statistics, head = variables.get("batch_stats", {}), variables["params"]["head"]
        if self.blocks:
            options = {"normalisation": normalisation, "mask": mask, "dtype": dtype}
            x, _, statistics = self.backbone.apply(variables, x, self.blocks, **options)
        else:
            x = jnp.asarray(inputs_of("input", x, images=False), dtype)
        params = head if dtype is None else cast_kernels(head, dtype)
        with fitting(f"the head on {self.backbone.name}"):
            logits = cast(jax.Array, self.head.apply({"params": params}, x, dropout_keys))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), statistics
