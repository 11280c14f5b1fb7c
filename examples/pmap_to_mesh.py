"""What changes when `pmap` becomes `jit` over a mesh of devices? One training step in both forms, side by side.

Under `pmap` you write one device's program: batches have an axis of devices in front, and sums over devices stand in
the step. Under `jit` you write the whole batch's program and say where arrays lie; XLA divides the work and puts the
sums in. Gone are reshape, axis name and pmean. Both bare, then by this project's engines, around one pure `train_step`.

    python examples/pmap_to_mesh.py [--scans PATH]

Seen on synthetic scans and random weights, which say nothing of tissue: all forms end within a rounding, 7.5e-09.
"""

import functools
import os

os.environ["JAX_PLATFORMS"] = "cpu"  # read when jax starts its devices
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ["NPROC"] = "8"  # XLA's threads: with fewer than devices, a sum waits for one that has none to run on

import jax
import numpy as np
import optax
from scans import Task, head_of, options_of

import kimiajax as kj
from kimiajax.training.steps import Batch

RATE, STEPS = 0.01, 3


def descended(task: Task, head: dict, features: jax.Array, labels: jax.Array, axis: str | None = None) -> dict:
    def loss(head: dict) -> jax.Array:
        logits, _ = task.classifier.apply({"params": {"head": head}}, features)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradients = jax.grad(loss)(head) if axis is None else jax.lax.pmean(jax.grad(loss)(head), axis)
    return jax.tree.map(lambda leaf, gradient: leaf - RATE * gradient, head, gradients)


def by_pmap(task: Task, head: dict, batch: tuple) -> dict:
    step = jax.pmap(functools.partial(descended, task, axis="data"), "data", in_axes=(None, 0, 0), out_axes=None)
    parts = [array.reshape(jax.device_count(), -1, *array.shape[1:]) for array in batch]  # other patches on each
    for _ in range(STEPS):
        head = jax.block_until_ready(step(head, *parts))  # devices of one CPU must not be at two steps at once
    return head


def by_mesh(task: Task, head: dict, batch: tuple) -> dict:
    step = jax.jit(functools.partial(descended, task))
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    head = jax.device_put(head, jax.NamedSharding(mesh, jax.P()))  # whole, on every device
    batch = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))  # divided by its first axis
    for _ in range(STEPS):
        head = jax.block_until_ready(step(head, *batch))
    return head


def main() -> None:
    task = head_of(options_of(__doc__))
    order, rows = np.random.default_rng(0).permutation(len(task.train))[:64], np.arange(64, dtype=np.int32)
    start, batch = task.start(), (task.train[order], task.train_labels[order])
    head, whole = start["params"]["head"], Batch(*batch, mask=rows >= 0, index=rows)  # of which none is padding
    ends = {"the start": head, "pmap": by_pmap(task, head, batch), "jit over a mesh": by_mesh(task, head, batch)}
    engines = {f'kj.engine_of("{name}")': kj.engine_of(name) for name in ("pmap", "jit")}
    training = kj.Training(task.classifier, optax.sgd(RATE), kj.TrainableBlocks(("head",)))
    for name, engine in {**engines, "one device": kj.engine_of("jit", jax.devices()[:1])}.items():
        state, step = engine.place(training.start(start, jax.random.key(0))), engine.step(training)
        for _ in range(STEPS):
            state, _ = step(state, whole)  # the engine divides the batch, and awaits the step where it must
        ends[name] = state.params["head"]
    expected = jax.device_get(ends.pop("one device"))
    print(f"\nafter {STEPS} steps on {jax.device_count()} devices, how far from where one device ends")
    for name, end in ends.items():
        apart = max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), jax.device_get(end), expected)))
        assert name == "the start" or apart < 1e-6, f"{name} ends elsewhere than one device"
        print(f" {name:<24}{apart:9.1e}")


if __name__ == "__main__":
    main()
