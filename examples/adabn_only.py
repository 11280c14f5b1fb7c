"""Can a network follow a change of scanner without any label? Batch statistics adapt, and no weight does.

A network is trained on the patches as they are, and then sees the test patches as another scanner might give them,
darker and of less contrast. AdaBN (Li, Wang, Shi, Liu and Hou, arXiv:1603.04779) passes the new patches through it
until the running statistics of batch normalisation are theirs. The study has that as a preset of what trains: nothing
does, `kj.blocks_of(network, ("adabn_only",))`, and statistics move. The transform is `grad`, within `kj.fit`, with
respect to an empty tree: nothing is left to differentiate, and XLA compiles a forward pass alone.

    python examples/adabn_only.py [--scans PATH]

Seen on synthetic scans and random weights, which say nothing of tissue: 58.3% correct on the patches as they are, 11.7%
on those of another scanner, and 28.3% once the statistics have adapted.
"""

import jax
import numpy as np
import optax
from scans import options_of, patches_of

import kimiajax as kj


def as_another_scanner(patches: np.ndarray) -> np.ndarray:
    """Gray values 0 to 255 squeezed into 20 to 147."""
    return (20 + 0.5 * patches).astype(np.uint8)


def differ(before: dict, after: dict) -> list[bool]:
    """Of each array of a tree, whether any number in it is another."""
    return jax.tree.leaves(
        jax.tree.map(lambda one, other: bool((np.asarray(one) != np.asarray(other)).any()), before, after)
    )


def main() -> None:
    options = options_of(__doc__, network="cnn", size=96)
    manifest, train, test = patches_of(options)
    labels, truth, shifted = manifest.labels("train"), manifest.labels("test"), as_another_scanner(test)
    weights = kj.load_weights(options.network, options.weights, image_size=options.size)
    network = weights.backbone
    classifier = kj.Classifier(network, network.trunk, manifest.num_scans)
    variables = {kind: {b: part[b] for b in network.trunk if b in part} for kind, part in weights.variables.items()}
    bottleneck = network.tap_shapes(variables, options.size, network.trunk)[network.bottleneck]
    variables["params"]["head"] = classifier.init_head(jax.random.key(0), bottleneck)

    def accuracy(variables: dict, images: np.ndarray) -> float:
        return float((kj.predict(classifier, variables, images, batch_size=32) == truth).mean())

    training = kj.Training(classifier, optax.adam(1e-3), kj.blocks_of(network, ("all",)))
    trained, history = kj.fit(training, variables, train, labels, epochs=15, batch_size=32, seed=0)
    print(f"{network.title}, trained for {len(history)} epochs to a loss of {history[-1].loss:.3f}")

    adapting = kj.Training(classifier, optax.set_to_zero(), kj.blocks_of(network, ("adabn_only",)))
    nobody_reads = np.zeros(len(shifted), np.int32)  # `fit` asks for labels; where nothing trains they change nothing
    adapted, _ = kj.fit(adapting, trained, shifted, nobody_reads, epochs=20, batch_size=len(shifted), seed=0)
    assert not any(differ(trained["params"], adapted["params"])), "a parameter moved"
    assert all(differ(trained["batch_stats"], adapted["batch_stats"])), "a statistic stayed"

    print("\n test patches            statistics       correct")
    print(f" as they are             of training    {accuracy(trained, test):9.1%}")
    print(f" of another scanner      of training    {accuracy(trained, shifted):9.1%}")
    print(f" of another scanner      adapted        {accuracy(adapted, shifted):9.1%}")
    parameters, statistics = (len(jax.tree.leaves(adapted[kind])) for kind in ("params", "batch_stats"))
    print(f"\n{parameters} arrays of parameters, none moved; {statistics} arrays of statistics, all moved")


if __name__ == "__main__":
    main()
