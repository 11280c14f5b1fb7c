"""What training carries from step to step: arrays only."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kimiajax.training.freezing import TrainableBlocks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Attributes:
    step: steps taken, int32.
    params: parameters by block, frozen ones included.
    batch_stats: running statistics by block.
    opt_state: the optimizer's state, for what trains only.
    key: the key that every step's randomness is folded from.
    """

    step: Any
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    key: Any

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params, "batch_stats": self.batch_stats}


def new_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, blocks: TrainableBlocks, key: jax.Array
) -> TrainState:
    """The state before the first step.

    Args:
        variables: `{"params": {block: ...}, "batch_stats": {block: ...}}`; copied, and the key too: steps donate them.
        optimizer: as `for_blocks` gives it.
        blocks: what trains.
        key: of all randomness in training.

    Raises:
        UserError: a name in `blocks` that is not in `variables`.
    """
    variables = jax.tree.map(jnp.array, variables)
    params = variables["params"]
    trainable, _ = blocks.split(params)
    return TrainState(
        jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(trainable), jnp.copy(key)
    )
