"""What training carries from step to step: arrays only."""

from dataclasses import dataclass
from typing import Any

import jax


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
