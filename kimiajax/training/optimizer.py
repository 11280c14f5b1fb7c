"""The study's optimizers by name, with their schedule, and any optimizer held to what trains."""

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import optax

from kimiajax.checks import check_fields, positive, share, whole
from kimiajax.errors import UserError
from kimiajax.training.freezing import TrainableBlocks


class Scheduled(NamedTuple):
    """An optimizer, and the learning rate that it uses in step 0, 1, ..., for the history."""

    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule


@dataclass(frozen=True)
class Optimization:
    """How weights are moved: the one place where optimizer, schedule and loss are swapped.

    Attributes:
        optimizer: "sgd", the paper's for fine-tuning; "rmsprop", with 1e-7 inside the root (Keras 3); "rmsprop2017",
            with 1e-8 outside it (Keras 2.0), so that a weight of a feature that hardly ever fires still moves by the
            learning rate in each step; "adam" or "adamw".
        learning_rate: the highest.
        momentum: of SGD; the others have none, or their own.
        weight_decay: 0 for none; adds its multiple of a weight to the weight's gradient, but with "adamw", which
            subtracts the learning rate's multiple of that from the weight.
        schedule: "constant"; "cosine" or "linear", which fall, so that a step after the last would have 0.
        warmup_epochs: over which the learning rate rises from 0, before that; no more than the epochs.
        label_smoothing: the share of a label that is spread evenly over all classes, in [0, 1).

    Raises:
        UserError: an unknown name, or a number out of its range.
    """

    optimizer: Literal["sgd", "rmsprop", "rmsprop2017", "adam", "adamw"] = "sgd"
    learning_rate: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        positive("learning_rate", self.learning_rate)
        for name in ("momentum", "label_smoothing"):
            share(name, getattr(self, name))
        for name in ("weight_decay", "warmup_epochs"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} {getattr(self, name)}: must be 0 or more, and finite")

    def over(self, epochs: int | Any, steps_per_epoch: int | Any) -> Scheduled:
        """The optimizer for a training of so many epochs, and its schedule.

        Raises:
            UserError: what is no whole number, 0 or more.
        """
        return self._over(whole("epochs", epochs), whole("steps_per_epoch", steps_per_epoch))

    @functools.cache  # noqa: B019  the same optimizer each time is the same program
    def _over(self, epochs: int, steps_per_epoch: int) -> Scheduled:
        rate, warmup = self.learning_rate, round(self.warmup_epochs * steps_per_epoch)
        rest = max(1, epochs * steps_per_epoch - warmup)
        schedule = {
            "constant": optax.constant_schedule(rate),
            "cosine": optax.cosine_decay_schedule(rate, rest),
            "linear": optax.linear_schedule(rate, 0.0, rest),
        }[self.schedule]
        if warmup:
            schedule = optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), schedule], [warmup])
        elif self.schedule == "constant":
            return Scheduled(self._optimizer(rate), schedule)  # which counts no steps
        return Scheduled(self._optimizer(schedule), schedule)

    def _optimizer(self, schedule: Any) -> optax.GradientTransformation:
        if self.optimizer == "adamw":
            return optax.adamw(schedule, weight_decay=self.weight_decay)
        plain = {
            "sgd": lambda: optax.sgd(schedule, self.momentum),
            "rmsprop": lambda: optax.rmsprop(schedule, decay=0.9, eps=1e-7),
            "rmsprop2017": lambda: optax.rmsprop(schedule, decay=0.9, eps=1e-8, eps_in_sqrt=False),
            "adam": lambda: optax.adam(schedule),
        }[self.optimizer]()
        return optax.chain(optax.add_decayed_weights(self.weight_decay), plain) if self.weight_decay else plain


def for_blocks(optimizer: optax.GradientTransformation, blocks: TrainableBlocks) -> optax.GradientTransformation:
    """The optimizer on trainable leaves and none on frozen ones, each labelled by its block.

    Whatever the optimizer adds beside the gradient, weight decay for one, stays within what trains. On a tree of that
    only, as `train_step` uses it, no state exists for what is frozen.
    """
    return optax.partition({"train": optimizer, "freeze": optax.set_to_zero()}, blocks.labels)
