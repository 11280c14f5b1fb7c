"""Keras' side of the networks' workloads, on the backend that KERAS_BACKEND names: its own networks, compiled.

Features by `predict_on_batch`, training by `train_on_batch`, as its `predict` and `fit` do it; both give their results
when they are done.
"""

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kimiajax.parity.keras_networks import block_layers, block_outputs, build, head_input, name_of, train_after

from ..contender import Work, serve


def load(model: keras.Model, folder: str) -> None:
    with np.load(Path(folder) / "keras.npz") as arrays:
        for variable in model.weights:
            variable.assign(arrays[name_of(variable).replace("/", "|")])


def about() -> dict[str, Any]:
    said = {"keras": keras.__version__, "backend": keras.backend.backend(), "xla_flags": os.environ.get("XLA_FLAGS")}
    if keras.backend.backend() == "jax":
        import jax

        return {**said, "jax": jax.__version__, "device": jax.devices()[0].device_kind}
    import tensorflow as tf

    return {**said, "tensorflow": tf.__version__, "threads": tf.config.threading.get_intra_op_parallelism_threads()}


def features(job: dict[str, Any]) -> Work:
    images = np.load(Path(job["folder"]) / "images.npy")
    model = build(job["application"], job["size"], 1000 if job["top"] else None)
    outputs = block_outputs(model, job["layers"], job["pooled"])
    model = keras.Model(model.input, outputs[job["features"]])
    load(model, job["folder"])
    x = keras.ops.convert_to_tensor(images)
    return Work(lambda: model.predict_on_batch(x), lambda y: {"features": y}, about=about())


def finetune_step(job: dict[str, Any]) -> Work:
    folder = Path(job["folder"])
    model = build(job["application"], job["size"], None)
    layers, outputs = block_layers(model, job["layers"]), block_outputs(model, job["layers"], job["pooled"])
    hidden = keras.layers.Dense(job["hidden"], activation="relu", name="head_hidden")
    logits = keras.layers.Dense(job["classes"], name="head_logits")
    classifier = keras.Model(model.input, logits(hidden(head_input(outputs, job["bottleneck"]))))
    load(classifier, job["folder"])
    if job["boundary"]:
        train_after(classifier, layers[job["boundary"]])
    images, labels = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
    if job["cached"]:
        before = keras.Model(model.input, layers[job["boundary"]].output)
        images = np.asarray(before.predict(images, batch_size=8, verbose=0))
        classifier = keras.Model(before.output, classifier.output)
    classifier.compile(
        optimizer=keras.optimizers.SGD(job["learning_rate"], momentum=job["momentum"]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    names = {name_of(variable): variable for variable in classifier.trainable_variables}
    watched = {what: names[name] for what, name in job["watched"]["keras"].items()}
    start = {what: np.array(variable) for what, variable in watched.items()}
    x, y = keras.ops.convert_to_tensor(images), keras.ops.convert_to_tensor(labels)

    def fetch(loss: Any) -> dict[str, np.ndarray]:
        moved = {what: np.asarray(variable) - start[what] for what, variable in watched.items()}
        return {"loss": np.atleast_1d(np.asarray(loss, np.float64)), **moved}

    return Work(lambda: classifier.train_on_batch(x, y), fetch, about=about())


def head(job: dict[str, Any]) -> Work:
    with np.load(Path(job["folder"]) / "head.npz") as arrays:
        given = {name: arrays[name] for name in arrays.files}
    start = [given[name] for name in ("hidden/kernel", "hidden/bias", "logits/kernel", "logits/bias")]
    classes = len(start[-1])
    dense = [keras.layers.Dense(len(start[1]), activation="relu"), keras.layers.Dense(classes)]
    model = keras.Sequential([keras.Input((job["width"],)), *dense])
    optimizer = keras.optimizers.RMSprop(job["learning_rate"], rho=0.9, epsilon=1e-7)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    optimizer.build(model.trainable_variables)
    untouched = [np.array(variable) for variable in optimizer.variables]

    def run() -> float:
        model.set_weights(start)
        for variable, value in zip(optimizer.variables, untouched):
            variable.assign(value)
        losses = []
        for order in given["orders"]:
            x, y = given["features"][order], given["labels"][order]
            history = model.fit(x, y, batch_size=job["batch"], shuffle=False, verbose=0)
            losses += history.history["loss"]
        return losses[0]

    return Work(run, lambda loss: {"loss": np.array([loss])}, about=about())


WORKLOADS = {"features": features, "finetune_step": finetune_step, "head": head}

if __name__ == "__main__":
    serve(lambda job: WORKLOADS[job["workload"]](job))
