"""Which training patches led the head to get this test patch wrong? Influence, patch by patch.

The transform is `vmap` of `grad`: the gradient of every training patch's own loss at once. A step of SGD on training
patch z lowers the loss of test patch z' by rate * <grad loss(z), grad loss(z')> to first order; summed over checkpoints
that is TracInCP (Pruthi, Liu, Kale and Sundararajan, NeurIPS 2020, arXiv:2002.08484), here of the last layer, as they
suggest. The inner products alone need no gradient a patch: one `jvp` of all losses along the test patch's gradient
gives them too, and holds the first way to account.

    python examples/influential_patches.py [--scans PATH]

Seen on synthetic scans and random weights, which say nothing of tissue: test/s2/1 of scan 2, taken for scan 6, owes
it to train/s6/0_672 (-148) and four others of scan 6, against train/s2/112_336 (224) and four others of scan 2.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scans import head_of, options_of

import kimiajax as kj

RATE, CHECKPOINTS = 0.01, 4


def loss_of(last, hidden, classifier, feature, label):
    """Cross-entropy of one patch, by the head's last layer and by what it has before that."""
    logits, _ = classifier.apply({"params": {"head": {**hidden, "logits": last}}}, feature[None])
    return optax.softmax_cross_entropy_with_integer_labels(logits[0], label)


def influences(loss, params, train, test):
    """<grad of each training patch's loss, grad of the test patch's loss>, [n]; `train` is [n ...] and [n]."""
    of_each = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params, *train)  # each leaf [n ...]
    of_test = jax.grad(loss)(params, *test)
    products = jax.tree.map(lambda each, one: jnp.tensordot(each, one, one.ndim), of_each, of_test)
    return jax.tree.reduce(jnp.add, products)


def influences_by_jvp(loss, params, train, test):
    """The same as directional derivatives, forward, without a gradient of any training patch."""
    direction = jax.grad(loss)(params, *test)
    return jax.jvp(lambda params: jax.vmap(loss, in_axes=(None, 0, 0))(params, *train), (params,), (direction,))[1]


def main() -> None:
    task = head_of(options_of(__doc__))
    # Plain SGD, so that a step is the learning rate times the gradient, as the sum below takes it to be.
    training = kj.Training(task.classifier, optax.sgd(RATE), kj.TrainableBlocks(("head",)))
    variables, heads = task.start(), []
    for number in range(CHECKPOINTS):
        options = {"epochs": 5, "batch_size": 32, "seed": number}
        variables, _ = kj.fit(training, variables, task.train, task.train_labels, **options)
        heads.append(variables["params"]["head"])
    logits = np.asarray(task.classifier.apply(variables, task.test)[0])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, task.test_labels)
    worst = int(jnp.argmax(losses))  # the patch that is got most wrong
    patch, predicted = task.manifest.split("test")[worst], logits[worst].argmax()
    print(f"{patch.patch_id} of scan {patch.scan}, predicted as of scan {predicted}: loss {losses[worst]:.2f} nats")

    train, test = (task.train, task.train_labels), (task.test[worst], task.test_labels[worst])
    total = np.zeros(len(task.train))
    for head in heads:
        hidden = {name: layer for name, layer in head.items() if name != "logits"}
        of_last = jax.tree_util.Partial(lambda last, *one, hidden=hidden: loss_of(last, hidden, task.classifier, *one))
        found = jax.jit(influences)(of_last, head["logits"], train, test)
        by_jvp = jax.jit(influences_by_jvp)(of_last, head["logits"], train, test)
        np.testing.assert_allclose(found, by_jvp, atol=1e-4 * np.abs(found).max())
        total += RATE * np.asarray(found)

    order, patches = np.argsort(total), task.manifest.split("train")
    for title, places in (("against the truth", order[:5]), ("for the truth", order[::-1][:5])):
        print(f"\n the most influential {title}:  scan  influence")
        for place in places:
            print(f"{patches[place].patch_id:>40} {patches[place].scan:5} {total[place]:10.3f}")


if __name__ == "__main__":
    main()
