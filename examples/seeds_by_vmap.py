"""How much of a head's accuracy is its seed's luck? Heads of eight seeds, trained at once.

The transform is `vmap`, over whole training states: `kj.fit_heads` maps an epoch, itself a scan of training steps, over
the seeds' parameters, optimizer states and keys. (On a CPU it unrolls the seeds within one program instead: there a
batch of small matrix products is slower than one after the other.) Predicting is one more `vmap`, written out below.
Seeds and test patches are two kinds of luck, so they are printed apart: what seeds differ by as a standard deviation,
what other test patches would change as an interval of the mean over seeds.

    python examples/seeds_by_vmap.py [--scans PATH]

Seen on synthetic scans and random weights, which say nothing of tissue:

    mean 73.3%; between seeds, standard deviation 1.3%
    95 % interval of the mean, over test patches: 63.1% to 82.7%
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scans import head_of, options_of

import kimiajax as kj
from kimiajax.evaluation.statistics import intervals_of_rows

SEEDS = range(8)


def main() -> None:
    task = head_of(options_of(__doc__))
    training = kj.Training(task.classifier, optax.rmsprop(1e-3, decay=0.9), kj.TrainableBlocks(("head",)))
    starts = [task.start(seed) for seed in SEEDS]
    data = [task.train] * len(SEEDS), [task.train_labels] * len(SEEDS)
    results = kj.fit_heads(training, starts, *data, epochs=20, batch_size=32, seeds=SEEDS)
    for result in results:
        if isinstance(result, kj.NonFiniteError):  # the other seeds went on; a mean without this one would flatter
            raise result

    heads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(variables for variables, _ in results))
    logits, _ = jax.jit(jax.vmap(task.classifier.apply, in_axes=(0, None)))(heads, task.test)  # [seeds t scans]
    correct = np.asarray(logits.argmax(axis=-1)) == task.test_labels  # [seeds t]

    print("\n seed   loss   eta_p")
    for seed, (_, history), right in zip(SEEDS, results, correct):
        print(f"{seed:5} {history[-1].loss:6.3f} {right.mean():7.1%}")
    of_seeds = correct.mean(axis=1)
    low, high = intervals_of_rows(task.test_labels, {"head": correct})["head"]["eta_p"]
    print(f"\nmean {of_seeds.mean():.1%}; between seeds, standard deviation {of_seeds.std(ddof=1):.1%}")
    print(f"95 % interval of the mean, over test patches: {low:.1%} to {high:.1%}")


if __name__ == "__main__":
    main()
