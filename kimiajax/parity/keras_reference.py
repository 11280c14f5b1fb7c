"""Keras' side of a job, on its JAX backend: its own networks, its own loading of weights, its own optimizer.

python -m kimiajax.parity.keras_reference FOLDER make|float32|float64
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1" if sys.argv[-1] == "float64" else "0"

import functools
import platform
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
from keras.src.backend.common import dtypes

from kimiajax.parity import keras_networks
from kimiajax.parity.job import Job
from kimiajax.parity.reference import Outputs, main, read_images, score


def make(job: Job) -> None:
    """A weight file as Keras saves it, every array random: constants would hide arrays that are exchanged."""
    assert job.application is not None
    rng = np.random.default_rng(job.seed)
    model = keras_networks.build(job.application, job.size, job.classes)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name == "kernel":  # He's scale: activations keep their size
            return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
        return rng.uniform(0.5, 2, shape) if name == "moving_variance" else 0.1 * rng.standard_normal(shape)

    model.set_weights([draw(weight.path.rsplit("/", 1)[-1], tuple(weight.shape)) for weight in model.weights])
    model.save(job.weights)


def load(model: keras.Model, path: str) -> None:
    """Keras' own loading. Of a `.keras` archive the arrays alone: a model is never deserialised."""
    with Path(path).open("rb") as stream:  # as the other side tells them apart
        archived = stream.read(4) == b"PK\x03\x04"
    if not archived:
        model.load_weights(path)
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        model.load_weights(archive.extract("model.weights.h5", folder))


def compute_in(dtype: str) -> None:
    """Every layer in this type. Keras' promotion turns float64 beside float32 into float32 on JAX, though not on
    TensorFlow, and batch normalisation goes that way whatever `set_floatx` says: its table gets TensorFlow's entry."""
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    if dtype == "float64":
        dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
    assert keras.backend.result_type(dtype, "float32") == dtype


def run(job: Job, dtype: str, folder: Path) -> Outputs:
    assert job.application is not None
    compute_in(dtype)
    outputs = read_images(job)
    count = job.judged if dtype == "float64" else len(job.patches)
    pixels = outputs["resized"].transpose(0, 2, 3, 1).astype(dtype)
    images = pixels / 255 if job.input == "unit" else keras_networks.preprocess_of(job.application)(pixels.copy())
    outputs["input"] = np.asarray(images, dtype)
    images = outputs["input"][:count]

    if job.batches:
        for mode in job.modes:
            outputs |= {f"{mode}/{name}": array for name, array in train_protocol(job, mode, images, folder).items()}
        return outputs
    model = keras_networks.build(job.application, job.size, job.classes, job.epsilon)
    load(model, job.weights)
    taps = keras_networks.block_outputs(model, job.layers, job.pooled)
    for block, value in keras.Model(model.input, taps)(images, training=False).items():
        outputs[f"block/{block}"] = np.asarray(value)
    if job.features in taps:
        outputs["features"] = outputs[f"block/{job.features}"]

    classifier = keras.Model(model.input, with_head(job, keras_networks.head_input(taps, job.bottleneck), folder))
    keras_networks.train_after(classifier, keras_networks.block_layers(model, job.layers)[job.boundary])
    assert {variable.dtype for variable in classifier.weights} == {dtype}
    outputs |= train_steps(job, classifier, images)
    return outputs


def with_head(job: Job, features: Any, folder: Path) -> Any:
    """The logits of the job's head on a bottleneck's symbolic output."""
    hidden = keras.layers.Dense(job.hidden, activation="relu", name="head_hidden")
    logits = keras.layers.Dense(job.num_scans, name="head_logits")
    output = logits(hidden(features))
    with np.load(folder / "head.npz") as head:
        hidden.set_weights([head["hidden/kernel"], head["hidden/bias"]])
        logits.set_weights([head["logits/kernel"], head["logits/bias"]])
    return output


class Inference(keras.layers.Layer):
    """A model whose batch normalisation stays on its stored statistics, whatever the model around it is called with.

    Called as `model(x, training=False)` within another model, as Keras' guide to transfer learning has it, Keras 3
    overrides it in training (keras-team/keras#20285).
    """

    def __init__(self, model: keras.Model):
        super().__init__()
        self.model = model

    def call(self, x: Any) -> Any:
        return self.model(x, training=False)


def train_protocol(job: Job, mode: str, images: np.ndarray, folder: Path) -> Outputs:
    """The losses of a protocol: of each step's batch, and of all images after each epoch."""
    assert job.application is not None
    model = keras_networks.build(job.application, job.size, job.classes, job.epsilon)
    load(model, job.weights)
    taps = keras_networks.block_outputs(model, job.layers, job.pooled)
    boundary = keras_networks.block_layers(model, job.layers)[job.boundary].output
    stored = keras.Model(model.input, boundary).predict(images, batch_size=32, verbose="0")
    after = keras.Model(boundary, keras_networks.head_input(taps, job.bottleneck))
    start = keras.Input(stored.shape[1:])
    features = Inference(after)(start) if mode == "inference" else after(start)
    classifier = keras.Model(start, with_head(job, features, folder))
    labels, cross_entropy = np.array(job.labels), keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss_of(trained: list, others: list, batch: Any, labels: Any, training: bool) -> tuple:
        logits, others = classifier.stateless_call(  # pyright: ignore[reportAssignmentType]  # three with losses only
            trained, others, batch, training=training
        )
        return cross_entropy(labels, logits), others

    gradient_of = jax.jit(jax.value_and_grad(loss_of, has_aux=True), static_argnums=4)
    evaluate = jax.jit(functools.partial(loss_of, training=False))
    optimizer = keras.optimizers.SGD(job.learning_rate, momentum=job.momentum)
    optimizer.build(classifier.trainable_variables)
    trained, others, state = (
        [variable.value for variable in variables]
        for variables in (classifier.trainable_variables, classifier.non_trainable_variables, optimizer.variables)
    )
    losses, evaluations = [], []
    for epoch in job.batches:
        for batch in map(list, epoch):
            (loss, others), gradients = gradient_of(trained, others, stored[batch], labels[batch], True)
            trained, state = optimizer.stateless_apply(state, gradients, trained)
            losses.append(np.asarray(loss))
        evaluations.append(np.asarray(evaluate(trained, others, stored, labels)[0]))
    return {"loss": np.array(losses), "evaluation": np.array(evaluations)}


def train_steps(job: Job, classifier: keras.Model, images: np.ndarray) -> Outputs:
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    batch, labels = images[: job.judged], np.array(job.labels[: job.judged])

    def loss_of(trained: list, others: list) -> tuple:
        logits, others = classifier.stateless_call(  # pyright: ignore[reportAssignmentType]  # three with losses only
            trained, others, batch, training=True
        )
        return cross_entropy(labels, logits), others

    predict = jax.jit(lambda trained, others: classifier.stateless_call(trained, others, images, training=False)[0])
    gradient_of = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    optimizer = keras.optimizers.SGD(job.learning_rate, momentum=job.momentum)
    optimizer.build(classifier.trainable_variables)

    names = [keras_networks.name_of(variable) for variable in classifier.trainable_variables]
    other_names = [keras_networks.name_of(variable) for variable in classifier.non_trainable_variables]
    trained = start = [variable.value for variable in classifier.trainable_variables]
    others = start_others = [variable.value for variable in classifier.non_trainable_variables]
    state = [variable.value for variable in optimizer.variables]
    outputs = {"logits": np.asarray(predict(trained, others))}
    for step in range(1, job.steps + 1):
        (loss, others), gradients = gradient_of(trained, others)
        if step == 1:
            outputs["loss"] = np.asarray(loss)
            outputs |= {f"gradients/{name}": np.asarray(value) for name, value in zip(names, gradients)}
        trained, state = optimizer.stateless_apply(state, gradients, trained)
        if step in (1, job.steps):
            moved = dict(zip(names, zip(start, trained))) | {
                name: pair for name, pair in zip(other_names, zip(start_others, others)) if (pair[0] != pair[1]).any()
            }
            outputs |= {f"step {step}/{name}": np.asarray(b) - np.asarray(a) for name, (a, b) in moved.items()}
    outputs["predictions"] = np.asarray(predict(trained, others))
    outputs["eta"] = score(outputs["predictions"], job.labels[: len(images)])
    return outputs


def versions() -> dict[str, str]:
    return {
        "keras": keras.__version__,
        "backend": f"jax {jax.__version__} on {jax.default_backend()}",
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main(make, run, versions)
