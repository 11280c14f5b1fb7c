"""A tap: a block's output, and the form in which it leaves the network.

"mixed8" is the output as it is, [h w c]; "mixed8.mean" its mean over height and width, [c]; "mixed8.flat" all values in
one row, [h*w*c]. Of an output without height and width all three are the output.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax

from kimiajax.errors import UserError
from kimiajax.models.backbone import Backbone

FORMS = ("mean", "flat")


class Tap(NamedTuple):
    """A block's name, and a form: one of `FORMS`, or "" for the output as it is."""

    block: str
    form: str = ""

    @property
    def name(self) -> str:
        return f"{self.block}.{self.form}" if self.form else self.block

    def read(self, output: jax.Array) -> jax.Array:
        """Returns the block's output, [b ...], in this form."""
        if output.ndim < 4 or not self.form:
            return output
        return output.mean(axis=(1, 2)) if self.form == "mean" else output.reshape(len(output), -1)

    def shape(self, output: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of this form, for one image, where the output's is given."""
        if len(output) < 3 or not self.form:
            return output
        return output[-1:] if self.form == "mean" else (math.prod(output),)

    def plainest(self, outputs: Mapping[str, tuple[int, ...]]) -> "Tap":
        """Returns the same tap by one name: without a form where the block's output has no height and width."""
        return self if len(outputs[self.block]) > 2 else Tap(self.block)


def tap_of(backbone: Backbone, name: str) -> Tap:
    """Returns the tap that a name speaks of.

    Raises:
        UserError: a block that the network has not, or another form.
    """
    block, _, form = name.rpartition(".")
    if name not in backbone.blocks and block in backbone.blocks:
        if form not in FORMS:
            known = " or ".join(f"{block}.{form}" for form in FORMS)
            raise UserError(f"{name}: no such form of a block's output; use {block}, {known}")
        return Tap(block, form)
    backbone.check_blocks([name])
    return Tap(name)


def source_of(name: str) -> tuple[str, str | None]:
    """Returns the network, and the tap that NETWORK@BLOCK or NETWORK@BLOCK.flat reads, as rows of a table have it.

    The first reads the block's mean over height and width. Of NETWORK alone the tap is None.
    """
    network, at, block = name.partition("@")
    if not at:
        return network, None
    return network, block if block.endswith(".flat") else Tap(block, "mean").name


def blocks_to(backbone: Backbone, taps: Iterable[str]) -> tuple[str, ...]:
    """Returns the blocks that must run so that these taps can be read: from the network's first to the last of them.

    Raises:
        UserError: as of `tap_of`.
    """
    return backbone.up_to(backbone.last_of([tap_of(backbone, tap).block for tap in taps]))
