"""Epochs: batches in, trained variables and a history out."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from kimiajax.checks import MOST_SEED, kind_of, labels_of, on_host, whole
from kimiajax.errors import UserError, check_known
from kimiajax.io.pytrees import digest, digest_of_leaf
from kimiajax.models.head import Classifier
from kimiajax.models.inputs import inputs_of, params_of
from kimiajax.runtime.precision import Precision
from kimiajax.runtime.progress import Silent
from kimiajax.runtime.shell import DOUBLES, standard_settings
from kimiajax.shapes import Int, Shaped
from kimiajax.training.checkpoints import Checkpoints
from kimiajax.training.engines import Engine, JitEngine
from kimiajax.training.freezing import merge
from kimiajax.training.input_feeds import Feed, FeedName, feed_of
from kimiajax.training.state import TrainState
from kimiajax.training.steps import Plan, StepMetrics, Training, order_of


@dataclass(frozen=True)
class Epoch:
    """One epoch of a history.

    Attributes:
        epoch: from 1.
        loss: mean over the training patches, each as it was trained on; nats.
        accuracy: likewise, in [0, 1].
        learning_rate: of the epoch's last step; None where `Training` does not tell.
        images_per_second: patches trained on, over `seconds`.
        seconds: of the epoch, the first holding the compilation; of all heads together, where several are trained.
    """

    epoch: int
    loss: float
    accuracy: float
    learning_rate: float | None
    images_per_second: float
    seconds: float


Record = Callable[[Epoch], None]


class NonFiniteError(UserError):
    """A loss or a parameter that is not finite: training stopped, and what it had learnt says nothing.

    Attributes:
        variables: as they were after the last epoch whose loss and parameters are finite.
        history: the epochs up to then.
    """

    def __init__(self, message: str, variables: dict[str, Any], history: list[Epoch]):
        super().__init__(message)
        self.variables, self.history = variables, history

    def __reduce__(self) -> tuple:
        return NonFiniteError, (str(self), self.variables, self.history)


@standard_settings(DOUBLES)
def fit(
    training: Training | Any,
    variables: dict[str, Any] | Any,
    inputs: Shaped[np.ndarray, "n ..."] | Any,
    labels: Int[np.ndarray, " n"] | Any,
    *,
    epochs: int | Any,
    batch_size: int | Any,
    seed: int | Any,
    engine: Engine | None = None,
    feed: FeedName | Any = "auto",
    checkpoints: Checkpoints | None = None,
    progress: Silent | None = None,
    description: str = "training",
    record: Record | None = None,
) -> tuple[dict[str, Any], list[Epoch]]:
    """Trains what `training` says of a classifier.

    Args:
        training: classifier, optimizer, blocks, and how a step computes.
        variables: parameters and running statistics of the classifier's blocks and its head.
        inputs: what its first block takes: gray patches as uint8 [n h w], images in [0, 1] as floats [n h w 3], or
            stored activations as float32. May be a memory-mapped file.
        labels: the scan of each input.
        epochs: passes over the inputs, each in a new order; 0 leaves the variables as they are.
        batch_size: the last batch of an epoch is padded to it, and any batch to a multiple of the devices; the padding
            counts nowhere.
        seed: of the order, of augmentation and of dropout. On any number of devices the result is the same, but for
            rounding, and where mini-batch statistics are local to each.
        engine: by default jit over all devices of this process.
        feed: "resident", all inputs on every device; "stream", batch by batch; "auto", the first where they fit.
        checkpoints: where training is saved, and goes on from; on one machine it ends bit for bit as if it had never
            stopped. What is not compared with what was saved, the optimizer and the inputs' values, belongs into its
            `identity`.
        progress: shows epochs.
        description: what to call it there.
        record: called with each epoch as it ends, and first with those of an earlier process.

    Returns:
        The trained variables, and a record of each epoch.

    Raises:
        UserError: an unknown block or feed, variables that are not its own, inputs of another type or shape or, as
            images, not in [0, 1], labels that are not one class for each, or a number out of its range.
        NonFiniteError: a loss or parameters that are not finite any more.
        Interrupted: as `checkpoints` was asked to; the state is saved.
    """
    progress, engine = progress or Silent(), engine or JitEngine()
    kind_of("training", training, Training, "make one as kimiajax.Training(classifier, optimizer, blocks)")
    inputs = on_host(
        inputs_of("inputs", inputs, training.classifier.sees_images, finite=False)
    )  # a step that is not says more
    labels = check_labels(labels, len(inputs), training.classifier.num_classes)
    for name, value, least in (("epochs", epochs, 0), ("a batch of", batch_size, 1)):
        whole(name, value, least)
    whole("seed", seed, most=MOST_SEED)
    batch_size, record = min(batch_size, len(labels)), record or (lambda epoch: None)
    plan = Plan(len(labels), batch_size, engine.rows(batch_size, training.statistic_groups))
    state = training.start(variables, jax.random.key(seed))
    course = _Course(state, _learning(training, state))
    if checkpoints:
        facts = {"epochs": epochs, "batch_size": batch_size, "seed": seed, **training.facts()}
        facts |= {"inputs": [str(inputs.dtype), *inputs.shape], "labels": digest_of_leaf("labels", labels)}
        facts["variables"] = digest(variables)
        course = _restored(course, checkpoints, facts, plan, description)
    for epoch in course.history:
        record(epoch)
    course.state = engine.place(course.state)
    source = feed_of(feed, engine, training, plan, inputs, labels, jax.random.key(seed))
    with checkpoints.training() if checkpoints else contextlib.nullcontext():
        done = len(course.history)
        for epoch in progress.track(range(done + 1, epochs + 1), description, epochs, "epochs", done=done):
            if problem := _finish_epoch(training, course, source, plan, epoch, checkpoints):
                raise NonFiniteError(f"{description}: {problem}", course.good_variables(training), course.history)
            record(course.history[-1])
        if checkpoints and epochs:
            course.save(checkpoints, plan)
    return course.state.variables, course.history


@dataclass
class _Course:
    """Where a training is: what a checkpoint holds.

    Attributes:
        state: after the last step taken.
        good: what trains, parameters and statistics, as of the last epoch that ended.
        history: the epochs that ended.
        metrics: of the steps since then, [s] each.
        seconds: of these.
    """

    state: TrainState
    good: dict[str, Any]
    history: list[Epoch] = field(default_factory=list)
    metrics: list[StepMetrics] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def taken(self) -> int:
        """Steps since the last epoch that ended."""
        return sum(len(metrics.loss) for metrics in self.metrics)

    def sums(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The metrics of those steps, [s] each."""
        if not self.metrics:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        losses, correct, counts = (np.concatenate(values) for values in zip(*self.metrics))
        return losses, correct, counts

    def good_variables(self, training: Training) -> dict[str, Any]:
        """The whole network's, as of the last epoch that ended."""
        _, frozen = training.blocks.split(self.state.params)
        return {"params": merge(self.good["params"], frozen), "batch_stats": self.good["batch_stats"]}

    def save(self, checkpoints: Checkpoints, plan: Plan) -> None:
        sums = [[float(value) for value in values] for values in self.sums()]
        about = {"history": [asdict(epoch) for epoch in self.history], "sums": sums, "seconds": self.seconds}
        steps = len(self.history) * plan.steps + self.taken
        checkpoints.save(steps, {"state": self.state, "good": self.good}, about)


def _restored(
    course: _Course, checkpoints: Checkpoints, facts: dict[str, Any], plan: Plan, description: str
) -> _Course:
    """Where an earlier process left this training, if one did."""
    found = checkpoints.restore({"state": course.state, "good": course.good}, facts)
    if found is None:
        return course
    tree, about = found
    history = [Epoch(**epoch) for epoch in about["history"]]
    metrics = [StepMetrics(*(np.array(values) for values in about["sums"]))]
    course = _Course(tree["state"], tree["good"], history, metrics, about["seconds"])
    within = f" and {course.taken} of {plan.steps} steps" if course.taken else ""
    checkpoints.say(f"{description}: resumed after {len(history)} epochs{within}")
    return course


def _finish_epoch(
    training: Training, course: _Course, feed: Feed, plan: Plan, epoch: int, checkpoints: Checkpoints | None
) -> str | None:
    """Takes the steps that are left of an epoch, and writes it down; or says what is not finite, and where."""
    if not course.taken:
        course.good = _copy(_learning(training, course.state))  # steps donate the state
    started, waiting = time.perf_counter() - course.seconds, None
    for start in range(course.taken, plan.steps, feed.at_once):
        stop = min(start + feed.at_once, plan.steps)
        course.state, metrics = feed.run(course.state, epoch, start, stop)
        if waiting:  # only now, so that the device never waits for the host
            course.metrics.append(waiting())
        waiting, due = metrics, bool(checkpoints and checkpoints.due())
        if due or stop == plan.steps:
            course.metrics.append(waiting())
            waiting, course.seconds = None, time.perf_counter() - started
        if checkpoints and due and np.isfinite(course.sums()[0]).all():
            course.save(checkpoints, plan)
        if checkpoints and due:
            checkpoints.stop_if_asked()
    problem = problem_of(course.sums()[0], epoch, plan, course.state.key)  # not earlier: here all processes look
    if problem := problem or (None if all_finite(course.state.variables) else problem_of_state(epoch)):
        return problem
    course.history.append(epoch_of(training, epoch, plan.steps, *course.sums(), course.seconds))
    course.metrics, course.seconds = [], 0.0
    return None


def _learning(training: Training, state: TrainState) -> dict[str, Any]:
    """What training moves."""
    trainable, _ = training.blocks.split(state.params)
    return {"params": trainable, "batch_stats": state.batch_stats}


@standard_settings(DOUBLES)
def predict(
    classifier: Classifier | Any,
    variables: dict[str, Any] | Any,
    inputs: Shaped[np.ndarray, "n ..."] | Any,
    *,
    batch_size: int | Any,
    precision: Precision | Any = "float32",
    engine: Engine | None = None,
    progress: Silent | None = None,
    description: str = "predicting",
) -> Int[np.ndarray, " n"]:
    """The scan predicted for each input, in inference mode; arguments as of `fit`.

    Raises:
        UserError: an unknown precision, variables or inputs as `fit` refuses them, or an input whose scores are not
            finite.
    """
    progress, engine = progress or Silent(), engine or JitEngine()
    kind_of("classifier", classifier, Classifier, "make one as kimiajax.Classifier(backbone, blocks, num_classes)")
    inputs = on_host(inputs_of("inputs", inputs, classifier.sees_images))
    whole("a batch of", batch_size, 1)
    check_known("precision", precision, get_args(Precision))
    params_of(variables)
    batch_size = min(batch_size, len(inputs))
    plan = Plan(len(inputs), batch_size, engine.rows(batch_size))
    step, variables = engine.predict(classifier, precision), engine.place(variables)
    steps = progress.track(range(plan.steps), description, len(inputs), "patches", step=batch_size)
    predicted = [step(variables, inputs[plan.places[number]])[plan.mask[number]] for number in steps]
    scans = np.concatenate(predicted).astype(np.int32)
    if (scans < 0).any():
        raise UserError(
            f"{description}: the scores of input {scans.argmin()} are not finite and tell no scan; check the weights"
        )
    return scans


def check_labels(labels: Any, count: int, num_classes: int) -> Int[np.ndarray, " n"]:
    """Returns labels, after UserError was raised for those that are not one class for each input."""
    return np.asarray(labels_of("labels", labels, count, num_classes))


def problem_of(losses: np.ndarray, epoch: int, plan: Plan, key: jax.Array) -> str | None:
    """Where a loss of an epoch's first steps is not finite: in which step, on which patches, and from which key.

    `order_of(jax.random.wrap_key_data(key), epoch, patches)` is the order in which they came.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if not len(bad):
        return None
    order = np.asarray(order_of(key, epoch, plan.count))
    rows = order[plan.places[bad[0]][plan.mask[bad[0]]]]
    drawn = np.asarray(jax.random.key_data(key)).tolist()
    return (
        f"the loss is {losses[bad[0]]} in epoch {epoch}, step {bad[0] + 1} (training patches "
        f"{', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''}; key {drawn}); no accuracy is reported; "
        "lower the learning rate, and check the weights"
    )


def problem_of_state(epoch: int) -> str:
    """That an epoch's last step broke the parameters, which no loss shows any more."""
    return (
        f"the parameters are not finite after the last step of epoch {epoch}; no accuracy is reported; lower the "
        "learning rate"
    )


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether every number in a tree is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def epoch_of(
    training: Training,
    epoch: int,
    steps: int,
    losses: np.ndarray,
    correct: np.ndarray,
    counts: np.ndarray,
    seconds: float,
    heads: int = 1,
) -> Epoch:
    """The record of an epoch of so many steps, from each step's sums."""
    rate = None if training.learning_rate is None else float(training.learning_rate(epoch * steps - 1))
    count = float(counts.sum(dtype=np.float64))
    mean_loss, accuracy = (float(sums.sum(dtype=np.float64)) / count for sums in (losses, correct))
    return Epoch(epoch, mean_loss, accuracy, rate, heads * count / seconds, seconds)
