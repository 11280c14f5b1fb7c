"""The one place where the pure steps meet devices: the same step under jit over a mesh, or under pmap."""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kimiajax.errors import UserError, check_known
from kimiajax.models.head import Classifier
from kimiajax.runtime import distributed
from kimiajax.runtime.precision import Precision
from kimiajax.training.frozen_prefix import Prefix, PrefixedStep
from kimiajax.training.state import TrainState
from kimiajax.training.steps import (
    Batch,
    Plan,
    StepMetrics,
    Training,
    gather,
    predict_step,
    train_step,
    train_steps,
)

AXIS = "data"

Step = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
Steps = Callable[..., tuple[TrainState, StepMetrics]]
Gather = Callable[..., Batch]
Predict = Callable[[dict[str, Any], np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Engine(ABC):
    """Spreads batches over devices, each of which holds all parameters. Both engines compute the same.

    Attributes:
        devices: by default all, those of other processes too.
    """

    devices: tuple[jax.Device, ...] = field(default_factory=lambda: all_devices())  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs

    @property
    def alone_on_cpu(self) -> bool:
        """Whether a batch, as compiled steps take it, lies whole on the one CPU device."""
        return False

    def rows(self, batch_size: int, groups: int = 1) -> int:
        """The least number of rows from `batch_size` on that divides among the devices, and among groups."""
        parts = math.lcm(len(self.devices), groups)
        return -(-batch_size // parts) * parts

    @property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (AXIS,))

    @property
    def everywhere(self) -> NamedSharding:
        """Of what lies on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def divided(self) -> NamedSharding:
        """Of what is divided among the devices by its first axis."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def own(self, rows: int) -> slice:
        """Which rows of a batch lie on this process's devices."""
        mine = [n for n, device in enumerate(self.devices) if device.process_index == distributed.number()]
        each = rows // len(self.devices)
        return slice(mine[0] * each, (mine[-1] + 1) * each)

    def place(self, tree: Any) -> Any:
        """The tree's arrays, which all processes hold, on every device."""
        return (
            jax.tree.map(self._everywhere, tree) if distributed.count() > 1 else jax.device_put(tree, self.everywhere)
        )

    def spread(self, batch: Any) -> Any:
        """The batch's arrays, of which each process holds its `own` rows, divided among devices for compiled steps."""
        if distributed.count() == 1:
            return jax.device_put(self.arranged(batch), self.divided)
        return jax.tree.map(functools.partial(jax.make_array_from_process_local_data, self.divided), batch)

    def _everywhere(self, leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self._everywhere(jax.random.key_data(leaf)))
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, self.everywhere, lambda index: array[index])

    def step(self, training: Training) -> Step:
        """`train_step`, compiled. Its state is donated; its batch has a number of rows as `rows` gives it."""
        step = self.placed_step(training)
        return lambda state, batch: step(state, self.arranged(batch))

    def placed_step(self, training: Training) -> Step:
        """Likewise, of a batch as `spread` gives it."""
        step = functools.partial(_compiled, type(self).wrap_step, self)
        prefix = self._prefix(training.classifier, training.precision, training.normalisation())
        if prefix is not None:
            return PrefixedStep(prefix, training, step)
        compiled = step(training)
        return lambda state, batch: self._in_turn(compiled(state, batch))

    def steps(self, training: Training, plan: Plan) -> Steps:
        """`train_steps`, compiled: of a state, which is donated, data that lie on every device, epoch, start, stop."""
        compiled = _compiled(type(self).wrap_steps, self, training, plan)
        return lambda state, data, *which: self._in_turn(compiled(state, data, *map(np.int32, which)))

    def gather(self, plan: Plan) -> Gather:
        """`gather`, compiled: of data that lie on every device, a key, epoch and step, a batch as `spread` gives it."""
        compiled = _compiled(type(self).wrap_gather, self, plan)
        return lambda data, key, *which: compiled(data, key, *map(np.int32, which))

    def wrap_gather(self, plan: Plan) -> Any:
        """`gather`, not compiled yet."""
        batch = functools.partial(gather, plan)
        return jax.jit(
            lambda *given: self.arranged(batch(*given)), in_shardings=self.everywhere, out_shardings=self.divided
        )

    def _in_turn(self, done: Any) -> Any:
        """On a CPU that plays several devices, steps that wait for each other's threads would lock each other out."""
        alone = len(self.devices) == 1 or self.devices[0].platform != "cpu"
        return done if alone else jax.block_until_ready(done)

    def predict(self, classifier: Classifier, precision: Precision) -> Predict:
        """`predict_step`, compiled: variables and inputs [b ...] to predicted scans [b], on the host."""
        prefix = self._prefix(classifier, precision)
        compiled = _compiled(type(self).wrap_predict, self, prefix.rest if prefix else classifier, precision)

        def predicted(variables: dict[str, Any], inputs: np.ndarray) -> np.ndarray:
            own = inputs[self.own(len(inputs))]
            if prefix is not None:
                frozen, variables = prefix.split(variables)
                own = prefix(frozen, own)
            return np.asarray(compiled(variables, self.spread(own))).reshape(-1)

        return predicted

    def _prefix(self, classifier: Classifier, *how: Any) -> Prefix | None:
        """What of a classifier is computed apart: on one CPU device, in the fast way."""
        if not self.alone_on_cpu or classifier.backbone.conv != "fast":
            return None
        prefix = Prefix(classifier, *how)
        return prefix if prefix.blocks else None

    @abstractmethod
    def arranged(self, batch: Any) -> Any:
        """The batch's arrays in the shape that the wrapped functions take."""

    @abstractmethod
    def wrap_step(self, training: Training) -> Any:
        """`train_step`, not compiled yet: it can be lowered. It takes a state, which it donates, and a batch."""

    @abstractmethod
    def wrap_steps(self, training: Training, plan: Plan) -> Any:
        """`train_steps`, likewise; it takes a state, which it donates, data, epoch, start and stop."""

    @abstractmethod
    def wrap_predict(self, classifier: Classifier, precision: Precision) -> Any:
        """`predict_step`, likewise, of variables and inputs."""


class JitEngine(Engine):
    """jit over a mesh: one program for the whole batch, which XLA divides. The default."""

    @property
    def alone_on_cpu(self) -> bool:
        return len(self.devices) == 1 and self.devices[0].platform == "cpu"

    def arranged(self, batch: Any) -> Any:
        return batch

    def wrap_step(self, training: Training) -> Any:
        return self._jit(functools.partial(train_step, training), self.everywhere, donate_argnums=0)

    def wrap_steps(self, training: Training, plan: Plan) -> Any:
        def share(rows: Any) -> Any:
            return jax.lax.with_sharding_constraint(rows, self.divided)

        steps = functools.partial(train_steps, training, plan, share=share)
        return jax.jit(steps, in_shardings=self.everywhere, out_shardings=self.everywhere, donate_argnums=0)

    def wrap_predict(self, classifier: Classifier, precision: Precision) -> Any:
        return self._jit(functools.partial(predict_step, classifier, precision), self.everywhere)

    def _jit(self, step: Callable, out: NamedSharding, **options: Any) -> Any:
        return jax.jit(step, in_shardings=(self.everywhere, self.divided), out_shardings=out, **options)


class PmapEngine(Engine):
    """pmap: one program a device, for its part of the batch; sums over devices stand in the step itself.

    Of one process: under several it would want each process's part of every argument.
    """

    def arranged(self, batch: Any) -> Any:
        """[b ...] -> [devices b/devices ...]"""
        return jax.tree.map(lambda array: array.reshape(len(self.devices), -1, *array.shape[1:]), batch)

    def wrap_step(self, training: Training) -> Any:
        step = functools.partial(train_step, training, axis=AXIS)
        return self._pmap(step, out_axes=(None, None), donate_argnums=0)

    def wrap_steps(self, training: Training, plan: Plan) -> Any:
        def of_device(state: TrainState, device: jax.Array, *which: Any) -> tuple[TrainState, StepMetrics]:
            def share(rows: Any) -> Any:
                return jax.tree.map(lambda array: array[device], self.arranged(rows))

            return train_steps(training, plan, state, *which, share=share, axis=AXIS)

        axes = {"in_axes": (None, 0, None, None, None, None), "out_axes": (None, None)}
        mapped = jax.pmap(of_device, AXIS, devices=self.devices, donate_argnums=0, **axes)
        return lambda state, *which: mapped(state, np.arange(len(self.devices)), *which)

    def wrap_predict(self, classifier: Classifier, precision: Precision) -> Any:
        return self._pmap(functools.partial(predict_step, classifier, precision))

    def _pmap(self, step: Callable, **options: Any) -> Any:
        return jax.pmap(step, AXIS, in_axes=(None, 0), devices=self.devices, **options)


def all_devices() -> tuple[jax.Device, ...]:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    """All of all processes, process by process."""
    return tuple(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))


ENGINES: dict[str, type[Engine]] = {"jit": JitEngine, "pmap": PmapEngine}


def engine_of(name: str | Any, devices: Sequence[jax.Device] | None = None) -> Engine:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    """The engine of this name, on these devices or on all.

    Raises:
        UserError: no such engine, no device, or pmap for several processes.
    """
    check_known("engine", name, ENGINES)
    if devices is not None and not devices:
        raise UserError("devices: there are none; give one at least, or leave them out for all")
    if name == "pmap" and distributed.count() > 1:
        raise UserError("--engine pmap is for the devices of one process; leave --engine out with --distributed")
    return ENGINES[name]() if devices is None else ENGINES[name](tuple(devices))


@functools.lru_cache(maxsize=32)  # the same training of another seed is the same program
def _compiled(wrap: Callable, *given: Any) -> Any:
    """Calls a method of an engine, which is the first that is given, once for the same arguments."""
    return wrap(*given)
