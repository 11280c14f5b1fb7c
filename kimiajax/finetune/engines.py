"""The one place where the pure steps meet devices: the same step under jit over a mesh, or under pmap."""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kimiajax.errors import UserError
from kimiajax.finetune.state import TrainState
from kimiajax.finetune.steps import Batch, StepMetrics, Training, predict_step, train_step
from kimiajax.models.backbone import Classifier
from kimiajax.precision import Precision

AXIS = "data"

Step = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
Predict = Callable[[dict[str, Any], np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Engine(ABC):
    """Spreads batches over devices, each of which holds all parameters. Both engines compute the same.

    Attributes:
        devices: by default all of this process.
    """

    devices: tuple[jax.Device, ...] = field(default_factory=lambda: tuple(jax.local_devices()))

    def rows(self, batch_size: int, groups: int = 1) -> int:
        """The least number of rows from `batch_size` on that divides among the devices, and among groups."""
        parts = math.lcm(len(self.devices), groups)
        return -(-batch_size // parts) * parts

    @property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (AXIS,))

    def place(self, tree: Any) -> Any:
        """The tree's arrays on every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def spread(self, batch: Any) -> Any:
        """The batch's arrays on the devices, each holding its part, as compiled steps take them."""
        return jax.device_put(self.arranged(batch), NamedSharding(self.mesh, PartitionSpec(AXIS)))

    def step(self, training: Training) -> Step:
        """`train_step`, compiled. Its state is donated; its batch has a number of rows as `rows` gives it."""
        compiled = _compiled_step(self, training)
        # On a CPU that plays several devices, steps that wait for each other's threads would lock each other out.
        in_turn = len(self.devices) > 1 and self.devices[0].platform == "cpu"

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
            done = compiled(state, self.arranged(batch))
            return jax.block_until_ready(done) if in_turn else done

        return step

    def predict(self, classifier: Classifier, precision: Precision) -> Predict:
        """`predict_step`, compiled: variables and inputs [b ...] to predicted scans [b], on the host."""
        compiled = _compiled_predict(self, classifier, precision)
        return lambda variables, inputs: np.asarray(compiled(variables, self.arranged(inputs))).reshape(-1)

    @abstractmethod
    def arranged(self, batch: Any) -> Any:
        """The batch's arrays in the shape that the wrapped functions take."""

    @abstractmethod
    def wrap_step(self, training: Training) -> Any:
        """`train_step`, not compiled yet: it can be lowered. It takes a state, which it donates, and a batch."""

    @abstractmethod
    def wrap_predict(self, classifier: Classifier, precision: Precision) -> Any:
        """`predict_step`, likewise, of variables and inputs."""


class JitEngine(Engine):
    """jit over a mesh: one program for the whole batch, which XLA divides. The default."""

    def arranged(self, batch: Any) -> Any:
        return batch

    def wrap_step(self, training: Training) -> Any:
        return self._jit(functools.partial(train_step, training), out=PartitionSpec(), donate_argnums=0)

    def wrap_predict(self, classifier: Classifier, precision: Precision) -> Any:
        return self._jit(functools.partial(predict_step, classifier, precision), out=PartitionSpec(AXIS))

    def _jit(self, step: Callable, *, out: PartitionSpec, **options: Any) -> Any:
        everywhere, spread, out = (
            NamedSharding(self.mesh, spec) for spec in (PartitionSpec(), PartitionSpec(AXIS), out)
        )
        return jax.jit(step, in_shardings=(everywhere, spread), out_shardings=out, **options)


class PmapEngine(Engine):
    """pmap: one program a device, for its part of the batch; sums over devices stand in the step itself."""

    def arranged(self, batch: Any) -> Any:
        """[b ...] -> [devices b/devices ...]"""
        return jax.tree.map(lambda array: array.reshape(len(self.devices), -1, *array.shape[1:]), batch)

    def wrap_step(self, training: Training) -> Any:
        step = functools.partial(train_step, training, axis=AXIS)
        return self._pmap(step, out_axes=(None, None), donate_argnums=0)

    def wrap_predict(self, classifier: Classifier, precision: Precision) -> Any:
        return self._pmap(functools.partial(predict_step, classifier, precision))

    def _pmap(self, step: Callable, **options: Any) -> Any:
        return jax.pmap(step, AXIS, in_axes=(None, 0), devices=self.devices, **options)


ENGINES: dict[str, type[Engine]] = {"jit": JitEngine, "pmap": PmapEngine}


def engine_of(name: str, devices: Sequence[jax.Device] | None = None) -> Engine:
    """The engine of this name, on these devices or on all of this process.

    Raises:
        UserError: no such engine.
    """
    if name not in ENGINES:
        raise UserError(f"no engine {name!r}; choose from {', '.join(ENGINES)}")
    return ENGINES[name]() if devices is None else ENGINES[name](tuple(devices))


@functools.lru_cache(maxsize=8)  # the same training of another seed is the same program
def _compiled_step(engine: Engine, training: Training) -> Any:
    return engine.wrap_step(training)


@functools.lru_cache(maxsize=8)
def _compiled_predict(engine: Engine, classifier: Classifier, precision: Precision) -> Any:
    return engine.wrap_predict(classifier, precision)
