"""Which blocks train: whole block names to a label for every leaf, and the tree split along it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from kimiajax.errors import UserError

Params = dict[str, Any]


@dataclass(frozen=True)
class TrainableBlocks:
    """Names of the blocks whose parameters train; all other blocks are frozen.

    Frozen blocks normalise with their running statistics, in training too, and these never move. Trainable blocks
    normalise with the mini-batch and move theirs.
    """

    names: tuple[str, ...]

    def check(self, available: Sequence[str]) -> None:
        """Raises UserError, with the valid names, for a name that is no block."""
        unknown = [name for name in self.names if name not in available]
        if unknown:
            raise UserError(f"unknown block {unknown[0]!r}; choose from {', '.join(available)}")

    def labels(self, params: Params) -> Params:
        """A tree like `params` (block name -> parameters) that says "train" or "freeze" at every leaf."""
        return {
            block: jax.tree.map(lambda _: "train", tree)
            if block in self.names
            else jax.tree.map(lambda _: "freeze", tree)
            for block, tree in params.items()
        }

    def split(self, params: Params) -> tuple[Params, Params]:
        """The trainable blocks and the frozen ones. `{**trainable, **frozen}` is the whole again."""
        self.check(tuple(params))
        trainable = {block: tree for block, tree in params.items() if block in self.names}
        frozen = {block: tree for block, tree in params.items() if block not in self.names}
        return trainable, frozen
