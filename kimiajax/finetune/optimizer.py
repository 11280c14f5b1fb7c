"""The study's optimizers, and any optimizer held to the trainable blocks."""

import optax

from kimiajax.finetune.blocks import TrainableBlocks


def for_blocks(optimizer: optax.GradientTransformation, blocks: TrainableBlocks) -> optax.GradientTransformation:
    """The optimizer on trainable leaves and none on frozen ones, each labelled by its block.

    Whatever the optimizer adds beside the gradient, weight decay for one, stays within the trainable blocks. On a tree
    of trainable blocks only, as `train_step` uses it, no state exists for what is frozen.
    """
    return optax.partition({"train": optimizer, "freeze": optax.set_to_zero()}, blocks.labels)


def fine_tuning_sgd(learning_rate: float, momentum: float) -> optax.GradientTransformation:
    """SGD with momentum, the paper's choice for fine-tuning: learning rate 1e-4, momentum 0.9."""
    return optax.sgd(learning_rate, momentum)


def head_rmsprop(learning_rate: float) -> optax.GradientTransformation:
    """RMSprop as Keras 2.0 had it: rho 0.9, epsilon 1e-8 outside the square root."""
    return optax.rmsprop(learning_rate, decay=0.9, eps=1e-8, eps_in_sqrt=False)
