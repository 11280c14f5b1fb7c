"""How training patches reach the device: all of them once, or batch by batch."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import numpy as np

from kimiajax.errors import check_known
from kimiajax.runtime import distributed
from kimiajax.training.engines import Engine
from kimiajax.training.state import TrainState
from kimiajax.training.steps import Batch, Plan, StepMetrics, Training, order_of

FeedName = Literal["auto", "resident", "stream"]
SHARE = 0.4  # of a device's memory that the training set may take where that is not asked for
LOOP = 64  # steps in one call: a run that is asked to end waits for two calls
READERS, AHEAD = 4, 2  # threads that read batches of a stream, and batches that wait on the device

Read = Callable[[], StepMetrics]


class Feed(ABC):
    """Runs steps of an epoch. Both feeds give the same parameters.

    Attributes:
        at_once: steps after which the host looks up: few where they take long, as on a CPU.
    """

    at_once = 1

    @abstractmethod
    def run(self, state: TrainState, epoch: int, start: int, stop: int) -> tuple[TrainState, Read]:
        """Some steps of an epoch, not waited for: the state after them, and what waits for their metrics, [s] each."""


def loops(engine: Engine) -> bool:
    """Whether a resident epoch is one loop on the device; XLA's convolutions are 2 to 17 times slower so on a CPU."""
    return engine.devices[0].platform != "cpu"


class Resident(Feed):
    """The whole training set lies on every device, and steps follow one another there without the host."""

    def __init__(
        self, engine: Engine, training: Training, plan: Plan, inputs: np.ndarray, labels: np.ndarray, key: jax.Array
    ):
        self._looped = loops(engine)
        self._data, self._key = engine.place(((np.asarray(inputs), labels), key))
        if self._looped:
            self.at_once, self._steps = LOOP, engine.steps(training, plan)
        else:
            self._gather, self._step = engine.gather(plan), engine.placed_step(training)

    def run(self, state: TrainState, epoch: int, start: int, stop: int) -> tuple[TrainState, Read]:
        if self._looped:
            state, metrics = self._steps(state, self._data, epoch, start, stop)
            return state, lambda: jax.tree.map(lambda values: np.asarray(values)[start:stop], metrics)
        every = []
        for step in range(start, stop):
            state, metrics = self._step(state, self._gather(self._data, self._key, epoch, step))
            every.append(metrics)
        return state, lambda: _together(every)


class Stream(Feed):
    """Batches are read by Grain, in threads, and wait on the device for their turn."""

    def __init__(
        self, engine: Engine, training: Training, plan: Plan, inputs: np.ndarray, labels: np.ndarray, key: jax.Array
    ):
        self._engine, self._plan, self._inputs, self._labels, self._key = engine, plan, inputs, labels, key
        self._step = engine.placed_step(training)
        self._next: tuple[int, int] | None = None
        self._batches: Iterator[Batch] = iter(())

    def run(self, state: TrainState, epoch: int, start: int, stop: int) -> tuple[TrainState, Read]:
        if self._next != (epoch, start):
            self._batches = self._epoch_from(epoch, start)
        every = []
        for _ in range(start, stop):
            state, metrics = self._step(state, next(self._batches))
            every.append(metrics)
        self._next = (epoch, stop)
        return state, lambda: _together(every)

    def _epoch_from(self, epoch: int, start: int) -> Iterator[Batch]:
        import grain  # here only: it takes a second

        order = np.asarray(order_of(self._key, epoch, self._plan.count))
        steps = grain.MapDataset.range(start, self._plan.steps).map(lambda step: self._batch(order, int(step)))
        batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=READERS, prefetch_buffer_size=READERS))
        placed = batches.map(self._engine.spread)
        return iter(grain.experimental.ThreadPrefetchIterDataset(placed, prefetch_buffer_size=AHEAD))

    def _batch(self, order: np.ndarray, step: int) -> Batch:
        part = self._engine.own(self._plan.rows)
        rows = order[self._plan.places[step, part]]
        in_file_order, back = np.unique(rows, return_inverse=True)  # a mapped file is read front to back
        index = np.arange(self._plan.rows, dtype=np.int32)[part]
        return Batch(self._inputs[in_file_order][back], self._labels[rows], self._plan.mask[step, part], index)


def _together(every: list[StepMetrics]) -> StepMetrics:
    """Metrics of single steps on the host, [s] each."""
    return StepMetrics(*(np.array(values) for values in zip(*jax.device_get(every))))


def feed_of(
    name: FeedName | Any,
    engine: Engine,
    training: Training,
    plan: Plan,
    inputs: np.ndarray,
    labels: np.ndarray,
    key: jax.Array,
) -> Feed:
    """The feed of this name; "auto" is "resident" where the inputs take no more than 0.4 of a device's memory.

    Raises:
        UserError: no such feed.
    """
    feeds = {"resident": Resident, "stream": Stream}
    if name == "auto":
        name = distributed.of_first(lambda: "resident" if inputs.nbytes <= SHARE * _memory(engine) else "stream")
    check_known("feed", name, ("auto", *feeds))
    return feeds[name](engine, training, plan, inputs, labels, key)


def _memory(engine: Engine) -> float:
    """Bytes that a device has for its own; those of a CPU share the machine's."""
    local = [device for device in engine.devices if device.process_index == distributed.number()]
    stats: dict[str, Any] = local[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(local)
    except (ValueError, OSError, AttributeError):  # Windows, macOS
        return 2**32 / len(local)
