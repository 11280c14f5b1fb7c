"""Which learning rate suits the head? All of them in one program.

The transform is `vmap` over the learning rate, which the optimizer closes over: it is a tracer like any other number,
and `train_steps`, the loop over an epoch's batches that `kj.fit` compiles, does not mind. So whole trainings, optimizer
state and all, are mapped, and every rate sees the same batches in the same order. A rate that breaks the training shows
as a loss that is no number, and stops no other.

    python examples/learning_rates_by_vmap.py [--scans PATH]

Seen on synthetic scans and random weights, which say nothing of tissue: after 20 epochs a loss of 1.3 at 0.0001, the
lowest, 0.0017, at 0.03, and none that is finite at 0.3.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scans import Task, head_of, options_of

import kimiajax as kj
from kimiajax.training.steps import Plan, train_steps

RATES = np.logspace(-4, -0.5, 8, dtype=np.float32)
EPOCHS = 20


@functools.partial(jax.jit, static_argnums=0)
def trained(classifier: kj.Classifier, variables: dict, data: tuple, rates: jax.Array) -> tuple[dict, jax.Array]:
    """The variables after a training at each rate, and the mean loss of each epoch, [rates epochs]."""
    plan = Plan(len(data[1]), batch_size=32, rows=32)

    def at(rate: jax.Array) -> tuple[dict, jax.Array]:
        training = kj.Training(classifier, optax.sgd(rate, momentum=0.9), kj.TrainableBlocks(("head",)))

        def epoch(state, number):
            state, metrics = train_steps(training, plan, state, data, number, 0, plan.steps)
            return state, metrics.loss.sum() / metrics.count.sum()

        state, losses = jax.lax.scan(epoch, training.start(variables, jax.random.key(0)), jnp.arange(1, EPOCHS + 1))
        return state.variables, losses

    return jax.vmap(at)(rates)


def show(task: Task, heads: dict, losses: jax.Array) -> None:
    logits, _ = jax.vmap(task.classifier.apply, in_axes=(0, None))(heads, task.test)
    correct = (logits.argmax(axis=-1) == task.test_labels).mean(axis=1)
    best = int(np.nanargmin(losses[:, -1]))
    print(f"\n learning rate   loss, epoch 1   epoch {EPOCHS // 2}   epoch {EPOCHS}   correct (test)")
    for number, (rate, curve) in enumerate(zip(RATES, losses)):
        shown = f"{curve[0]:16.3g}{curve[EPOCHS // 2 - 1]:11.3g}{curve[-1]:11.3g}"
        right = f"{correct[number]:17.1%}" if np.isfinite(curve[-1]) else f"{'-':>17}"
        print(f"{rate:14.5f}{shown}{right}{'   lowest loss' if number == best else ''}")


def main() -> None:
    task = head_of(options_of(__doc__))
    data = jnp.asarray(task.train), jnp.asarray(task.train_labels)
    show(task, *trained(task.classifier, task.start(), data, RATES))


if __name__ == "__main__":
    main()
