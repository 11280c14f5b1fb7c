"""The frozen prefix of a classifier, computed apart from the rest: each core by itself, as for features.

On one CPU device, in the fast way, a step becomes two programs. In the first nothing is differentiated and every core
has its own part of the batch, where one program for all would have XLA divide each operation among the cores.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from kimiajax.features.extract import Extractor
from kimiajax.models.backbone import Variables
from kimiajax.models.batch_norm import INFERENCE, Normalisation
from kimiajax.models.head import Classifier
from kimiajax.runtime.precision import Precision
from kimiajax.shapes import Float, Shaped
from kimiajax.training.state import TrainState
from kimiajax.training.steps import Batch, StepMetrics, Training, augmented


class Prefix:
    """The blocks that a classifier begins with and that nothing moves.

    Attributes:
        blocks: their names; none where the classifier does not begin with the network's first block.
        rest: the classifier of what follows.
    """

    def __init__(self, classifier: Classifier, precision: Precision, normalisation: Normalisation = INFERENCE):
        self.backbone = classifier.backbone
        self.precision: Precision = precision
        first = classifier.blocks[:1] == self.backbone.blocks[:1]
        self.blocks: tuple[str, ...] = self.backbone.still(classifier.blocks, normalisation) if first else ()
        self.rest = replace(classifier, blocks=classifier.blocks[len(self.blocks) :])
        self._extractor: Extractor | None = None
        self._given: list[Any] = []

    def split(self, variables: Variables) -> tuple[Variables, Variables]:
        """Those of the blocks, and all others."""
        own, others = {}, {}
        for kind, part in variables.items():
            own[kind] = {block: tree for block, tree in part.items() if block in self.blocks}
            others[kind] = {block: tree for block, tree in part.items() if block not in self.blocks}
        return own, others

    def __call__(self, variables: Variables, images: Shaped[Any, "b ..."]) -> Float[jax.Array, "b ..."]:
        """The last block's output.

        Args:
            variables: of the blocks. Kernels are folded once for as long as these are the same arrays.
            images: as `Extractor` takes them.
        """
        given = jax.tree.leaves(variables)
        if self._extractor is None or any(one is not other for one, other in zip(given, self._given, strict=True)):
            last, size = self.blocks[-1:], images.shape[1]
            self._extractor = Extractor(self.backbone, variables, size, last, precision=self.precision)
            self._given = given
        return jnp.concatenate([part[self.blocks[-1]] for part in self._extractor(images)])


class PrefixedStep:
    """`train_step` with the frozen prefix apart: of a state, what trains of which it donates, and a batch."""

    def __init__(self, prefix: Prefix, training: Training, step: Callable[[Training], Callable]):
        """`step` compiles the step of what follows the prefix."""
        self.prefix = prefix
        self._augmented = jax.jit(lambda state, batch: augmented(training, state, batch))
        self._step = step(replace(training, classifier=prefix.rest, augmentation=None))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        frozen, rest = self.prefix.split(state.variables)
        outputs = self.prefix(frozen, self._augmented(state, batch))
        state, metrics = self._step(replace(state, **rest), batch._replace(inputs=outputs))
        whole = {kind: {**tree, **frozen[kind]} for kind, tree in state.variables.items()}
        return replace(state, **whole), metrics
