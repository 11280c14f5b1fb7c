"""Does the head train better with an optimizer that the study has not? Any of optax' will do, schedule and all.

No transform of jax is needed here but those within: `kj.Training` takes a gradient transformation as it is, `kj.fit`
holds it to what trains (so weight decay cannot leak into frozen blocks) and the history tells the rate of its schedule.
The first line of the table is the paper's RMSprop by `kj.Optimization`, which is how the commands make theirs.

    python examples/another_optimizer.py [--scans PATH]

Seen on synthetic scans and random weights, which say nothing of tissue: after 20 epochs a loss of 0.004 by RMSprop,
0.135 by AdamW, 0.013 by Lion; 73, 67 and 75 % of test patches correct, in intervals that overlap.
"""

import optax
from scans import head_of, options_of

import kimiajax as kj
from kimiajax.evaluation.statistics import wilson

EPOCHS, BATCH = 20, 32


def main() -> None:
    task = head_of(options_of(__doc__))
    steps = -(-len(task.train) // BATCH)  # the last batch of an epoch is padded
    falling = optax.warmup_cosine_decay_schedule(0.0, 3e-4, warmup_steps=2 * steps, decay_steps=EPOCHS * steps)
    slower = optax.constant_schedule(1e-3)
    trained = {
        "rmsprop, the paper's": kj.Optimization("rmsprop2017", 1e-3).over(EPOCHS, steps),
        "adamw, warm-up, cosine": (optax.adamw(falling, weight_decay=0.01), falling),
        "lion, warm-up, cosine": (optax.lion(falling, weight_decay=0.01), falling),
        "clipped sgd, nesterov": (
            optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(slower, momentum=0.9, nesterov=True)),
            slower,
        ),
    }
    print(f"\n {'optimizer':<24} loss, epoch 1   epoch {EPOCHS}   last rate   correct (test)   95 %")
    for name, (optimizer, rate) in trained.items():
        training = kj.Training(task.classifier, optimizer, kj.TrainableBlocks(("head",)), learning_rate=rate)
        options = {"epochs": EPOCHS, "batch_size": BATCH, "seed": 0}
        variables, history = kj.fit(training, task.start(), task.train, task.train_labels, **options)
        right = kj.predict(task.classifier, variables, task.test, batch_size=BATCH) == task.test_labels
        first, last, (low, high) = history[0], history[-1], wilson(int(right.sum()), len(right))
        print(
            f" {name:<24}{first.loss:14.3f}{last.loss:11.3f}{last.learning_rate:12.1e}{right.mean():17.1%}"
            f"   {100 * low:.0f} to {100 * high:.0f}"
        )


if __name__ == "__main__":
    main()
