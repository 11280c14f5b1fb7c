"""This project's side of a job, through the functions that the study itself runs."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from kimiajax.data.resize import resize
from kimiajax.data.sources.scan_file import Scans
from kimiajax.errors import UserError
from kimiajax.evaluation.metrics import kimia_scores
from kimiajax.models.backbone import Array, Backbone, Variables, of_blocks
from kimiajax.models.checkpoint import Weights
from kimiajax.models.head import Classifier
from kimiajax.models.inputs import gray_to_unit_rgb, native_input
from kimiajax.parity.job import Job
from kimiajax.parity.reference import Outputs
from kimiajax.text import first_line
from kimiajax.training.freezing import TrainableBlocks
from kimiajax.training.optimizer import Optimization
from kimiajax.training.state import TrainState
from kimiajax.training.steps import Batch, Training, gradients_of, train_step


class StageError(Exception):
    """This project's code fails at a stage, which is a divergence like any other."""

    def __init__(self, stage: str, error: Exception, outputs: Outputs):
        super().__init__(f"{type(error).__name__}: {first_line(error)}")
        self.stage, self.outputs = stage, outputs


def run_single(job: Job, weights: Weights, head: Variables) -> Outputs:
    """Everything that `job.py` lists, in single precision, on the device that the study would take.

    Raises:
        StageError: with the outputs of the stages before.
    """
    try:
        outputs = images_of(job, weights)
    except Exception as error:
        raise StageError("decoded", error, {}) from error
    with jax.default_matmul_precision("float32"):  # as in the study; by itself jax computes in TF32 on a GPU
        return _networks(job, weights, head, outputs["input"], outputs)


def bottleneck(job: Job, weights: Weights) -> np.ndarray:
    """What a head gets, for all images."""
    backbone = weights.backbone
    run = jax.jit(lambda variables, x: backbone.apply(variables, x, backbone.trunk)[0])
    return np.asarray(run(weights.variables, images_of(job, weights)["input"]))


def run_double(job: Job, weights: Weights, head: Variables, images: np.ndarray) -> Outputs:
    """The networks and the training of the judged images in double precision, on the CPU: what is left of a difference
    there is not rounding.

    Args:
        images: the judge's own input, so that nothing before it counts.
    """
    with in_double(weights.variables, head) as (_, variables, head):
        return _networks(job, Weights(variables, weights.lineage), head, images.astype(np.float64), {})


@contextlib.contextmanager
def in_double(*trees: Variables) -> Iterator[tuple[Any, ...]]:
    """Within, jax computes in double precision on the CPU: gives that device, and the trees in float64.

    Raises:
        UserError: a platform without it.
    """
    try:
        (cpu, *_) = jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise UserError("float64 runs on the CPU, which JAX_PLATFORMS leaves out: add `,cpu` to it") from error
    with jax.enable_x64(True), jax.default_device(cpu):
        yield (cpu, *jax.tree.map(lambda array: array.astype(np.float64), trees))


def _networks(job: Job, weights: Weights, head: Variables, images: np.ndarray, outputs: Outputs) -> Outputs:
    backbone, variables = weights.backbone, weights.variables
    blocks = backbone.held_by(variables)
    runs, failure = _that_run(backbone, variables, job.size, blocks)
    taps = jax.jit(lambda variables, x: backbone.apply(variables, x, runs)[1])(variables, images) if runs else {}
    outputs |= {f"block/{block}": np.asarray(tap) for block, tap in taps.items()}
    if failure:
        raise StageError(f"block/{blocks[len(runs)]}", failure, outputs) from failure
    if backbone.features in taps:
        outputs["features"] = outputs[f"block/{backbone.features}"]
    try:
        outputs |= _train(job, backbone, variables, head, images)
    except Exception as error:
        raise StageError("logits", error, outputs) from error
    return outputs


def images_of(job: Job, weights: Weights) -> Outputs:
    """`decoded`, `resized` and `input` of all images."""
    with Scans(job.scans) as scans:
        patches = {index: scans.read_test_patch(index) for image in job.patches for index in image}
    resized = {index: resize(patch, job.size, job.resize) for index, patch in patches.items()}
    outputs = {
        "decoded": np.stack([[patches[index] for index in image] for image in job.patches]),
        "resized": np.stack([[resized[index] for index in image] for image in job.patches]),
    }
    if job.input == "unit":
        # A gray patch enters the study's networks three times over; here each channel is a patch of its own.
        channels = [gray_to_unit_rgb(outputs["resized"][:, channel])[..., channel] for channel in range(3)]
        return {**outputs, "input": np.stack(channels, axis=-1)}
    rgb = outputs["resized"].transpose(0, 2, 3, 1)
    return {**outputs, "input": native_input(rgb, weights.lineage["expected_input"])}


def _that_run(
    backbone: Backbone, variables: Variables, size: int, blocks: tuple[str, ...]
) -> tuple[tuple[str, ...], Exception | None]:
    """The blocks before the first that cannot run on what it gets, and why not; found by tracing, computing nothing."""
    for count in range(1, len(blocks) + 1):
        try:
            backbone.tap_shapes(variables, size, blocks[:count])
        except Exception as error:
            return blocks[: count - 1], error
    return blocks, None


def _train(job: Job, backbone: Backbone, variables: Variables, head: Variables, images: np.ndarray) -> Outputs:
    backbone = replace(backbone, dropout=0.0)  # two frameworks cannot draw the same units
    classifier = Classifier(backbone, backbone.trunk, job.num_scans)
    start = of_blocks(variables, backbone.trunk)
    start["params"]["head"] = head
    blocks = TrainableBlocks((*backbone.fine_tuned, "head"))
    optimizer, _ = Optimization("sgd", job.learning_rate, job.momentum).over(1, job.steps)
    training = Training(classifier, optimizer, blocks, batch_norm_momentum=job.batch_norm_momentum)
    labels = np.array(job.labels[: len(images)], np.int32)
    judged = slice(job.judged)
    batch = Batch(
        jnp.asarray(images[judged]), jnp.asarray(labels[judged]), jnp.ones(job.judged, bool), jnp.arange(job.judged)
    )
    predict = jax.jit(lambda variables, x: classifier.apply(variables, x)[0])

    state = training.start(start, jax.random.key(job.seed))
    outputs = {"logits": np.asarray(predict(state.variables, images))}

    @jax.jit
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Variables, Array]:
        gradients, metrics, _ = gradients_of(training, state, batch)
        return train_step(training, state, batch)[0], gradients, metrics.loss / metrics.count

    for number in range(1, job.steps + 1):
        state, gradients, loss = step(state, batch)
        if number == 1:
            outputs["loss"] = np.asarray(loss)
            outputs |= {f"gradients/{name}": array for name, array in leaves({"params": gradients}).items()}
        if number in (1, job.steps):
            changes = _changes(start, state, blocks)
            outputs |= {f"step {number}/{name}": change for name, change in changes.items()}
    outputs["predictions"] = np.asarray(predict(state.variables, images))
    if len(images) == len(job.labels):
        scores = kimia_scores(labels, outputs["predictions"].argmax(axis=1).astype(np.int32), job.num_scans)
        outputs["eta"] = np.array([scores.eta_p, scores.eta_w, scores.eta_total])
    return outputs


def _changes(start: Variables, state: TrainState, blocks: TrainableBlocks) -> Outputs:
    """How far each array has moved: those that train, and any other that did move."""
    before, after = leaves(start), leaves(state.variables)
    training = {name for name in before if name.split("/")[1] in blocks.names}
    moved = training | {name for name, array in before.items() if (after[name] != array).any()}
    return {name: after[name] - before[name] for name in sorted(moved)}


def leaves(tree: Variables) -> Outputs:
    """The arrays of a tree by their paths."""
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(tree, sep="/").items()}
