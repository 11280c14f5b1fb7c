"""How sharp is the minimum that the head ends in, and could a larger step have been taken?

The transform is `jvp` of `grad`: the product of the loss's Hessian and a vector, at the price of about two gradients
and without the Hessian, which for a million parameters would have 10^12 entries. Power iteration on it gives the
eigenvalue of largest magnitude, the sharpness. Full-batch gradient descent on a quadratic diverges once its learning
rate exceeds 2 / sharpness; networks are known to sharpen until they are there (Cohen, Kaur, Li, Kolter and Talwalkar,
arXiv:2103.00065), which is why the last column is worth a look beside the learning rate of your run.

    python examples/sharpness.py [--scans PATH]

Seen on synthetic scans and random weights, which say nothing of tissue: a sharpness of 84 at the start, 48 after two
epochs and 12 after eighty, so that a quadratic would bear rates of up to 0.024 throughout.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scans import head_of, options_of

import kimiajax as kj

RATE = 0.01


def hessian_vector_product(loss: Callable, at: Any, vector: Any) -> Any:
    """H v by forward over reverse: how the gradient changes along v."""
    return jax.jvp(jax.grad(loss), (at,), (vector,))[1]


def sharpness_of(loss: Callable, at: Any, key: jax.Array, iterations: int = 30) -> jax.Array:
    """Rayleigh quotients of the power iteration, [iterations]: their last is the eigenvalue of largest magnitude."""
    flat, unravel = ravel_pytree(at)

    def iteration(v, _):
        product, _ = ravel_pytree(hessian_vector_product(loss, at, unravel(v)))
        return product / jnp.linalg.norm(product), v @ product

    start = jax.random.normal(key, flat.shape, flat.dtype)
    return jax.lax.scan(iteration, start / jnp.linalg.norm(start), length=iterations)[1]


def main() -> None:
    task = head_of(options_of(__doc__))

    def loss(head: dict) -> jax.Array:
        logits, _ = task.classifier.apply({"params": {"head": head}}, task.train)
        return optax.softmax_cross_entropy_with_integer_labels(logits, task.train_labels).mean()

    sharpness = jax.jit(functools.partial(sharpness_of, loss))
    training = kj.Training(task.classifier, optax.sgd(RATE), kj.TrainableBlocks(("head",)))
    variables, epochs = task.start(), 0
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(variables)):,} parameters, SGD at {RATE}, no momentum")
    print("\n epochs    loss   sharpness   last change   2 / sharpness")
    for more in (0, 2, 8, 20, 50):
        options = {"epochs": more, "batch_size": 32, "seed": epochs}
        variables, _ = kj.fit(training, variables, task.train, task.train_labels, **options)
        epochs += more
        head = variables["params"]["head"]
        quotients = np.asarray(sharpness(head, jax.random.key(0)))
        change = abs(quotients[-1] / quotients[-2] - 1)  # of the last iteration: what it has not settled yet
        print(f"{epochs:7} {loss(head):7.3f} {quotients[-1]:11.3f} {change:13.1e} {2 / quotients[-1]:15.4f}")


if __name__ == "__main__":
    main()
