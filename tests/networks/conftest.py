"""Networks as Keras builds and saves them, once a test run."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weights_convert.mappings import files_of

CLASSES = 5
# The last convolutions see 4 x 4 and 3 x 3 pixels: no kernel is its centre only.
SIZES = {"vgg16": 64, "inception_v3": 139, "resnet50": 64, "densenet121": 64}
EARLIER = 94  # convolutions of an Inception-v3, after which Keras goes on numbering its layers in the same process


@dataclass(frozen=True)
class Saved:
    """A network of Keras' with every array random.

    Attributes:
        folder: holds it as `x.h5` and as `x.keras`, and its arrays alone as `x.weights.h5`.
        size: the side of the images that it takes.
    """

    folder: Path
    size: int

    @property
    def path(self) -> Path:
        return self.folder / "x.h5"

    @property
    def images(self) -> np.ndarray:
        """Two images, [2 size size 3]."""
        return np.load(self.folder / "images.npy")

    @property
    def outputs(self) -> np.ndarray:
        """Keras' outputs of these images: logits, or without top the last block's output."""
        return np.load(self.folder / "outputs.npy")

    def model(self) -> Any:
        return _loaded(self.folder / "x.keras")

    def assert_is_in(self, path: Path) -> None:
        """Asserts that Keras loads the same arrays from a file, bit for bit."""
        model = self.model()
        before = [weight.numpy().copy() for weight in model.weights]
        model.set_weights([np.full_like(array, np.nan) for array in before])
        model.load_weights(path)
        for weight, array in zip(model.weights, before):
            np.testing.assert_array_equal(weight.numpy(), array, err_msg=weight.path)


@functools.cache
def _loaded(path: Path) -> Any:
    import keras

    return keras.models.load_model(path)


def random_array(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Kernels He-scaled, scales and variances in [0.5, 2], the rest small: no constant that would hide an exchange."""
    if name == "kernel":
        return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
    positive = name in ("gamma", "moving_variance")
    return rng.uniform(0.5, 2, shape) if positive else 0.1 * rng.standard_normal(shape)


@pytest.fixture(scope="session")
def saved(shared):
    """Gives a network, with top or without. Inception-v3 with top is numbered as the second one of a process."""

    def build(network: str, top: bool) -> Saved:
        size = SIZES[network]

        def make(folder: Path) -> None:
            import keras

            keras.utils.clear_session()  # which counts layers
            if (network, top) == ("inception_v3", True):
                for kind in (lambda: keras.layers.Conv2D(1, 1), keras.layers.BatchNormalization):
                    [kind() for _ in range(EARLIER)]
            rng = np.random.default_rng(5)
            builder = getattr(keras.applications, files_of(network, "keras").model.application)
            options = {"include_top": top, "classes": CLASSES, "classifier_activation": None}
            model = builder(weights=None, input_shape=(size, size, 3), **options)
            model.set_weights([random_array(w.path.rsplit("/", 1)[-1], tuple(w.shape), rng) for w in model.weights])
            for name in ("x.h5", "x.keras"):
                model.save(folder / name)
            model.save_weights(folder / "x.weights.h5")
            images = rng.random((2, size, size, 3), np.float32)
            np.save(folder / "images.npy", images)
            np.save(folder / "outputs.npy", np.asarray(model(images)))

        return Saved(shared(f"{network} {'with' if top else 'without'} top", make), size)

    return build
