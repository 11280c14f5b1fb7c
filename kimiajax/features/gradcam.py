"""Where in a patch a classifier sees a scan: Grad-CAM (Selvaraju et al., ICCV 2017, arXiv:1610.02391).

A channel weighs as much as the class's linear score rises with it, on the mean over space; the map is the weighted sum
of a layer's channels, where it is positive. The paper drew its Fig. 3 with keras-vis, whose layer is a choice here.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kimiajax.checks import array_of, kind_of, whole, whole_numbers_of
from kimiajax.errors import UserError
from kimiajax.features.extract import batch_size_for
from kimiajax.models.backbone import Array, Backbone, Variables, of_blocks
from kimiajax.models.head import Classifier
from kimiajax.models.inputs import images_of, network_input, params_of
from kimiajax.runtime.precision import products_in
from kimiajax.runtime.shell import DOUBLES, standard_settings
from kimiajax.shapes import Float, Int, Shaped, UInt8

KERAS_VIS = "keras-vis"
LEAST_CELLS = 2  # a side; a map of so few shows nothing
# Matplotlib's "inferno" at nine equal steps, straight lines between: RGB, ever lighter from black to pale yellow.
COLOURS = ("000004", "210c4a", "57106e", "8a226a", "bc3754", "e45a31", "f98e09", "f9cb35", "fcffa4")
RAMP = np.array([list(bytes.fromhex(colour)) for colour in COLOURS])
OPACITY = 0.6  # of the colours where the heat is 1


class Maps(NamedTuple):
    """Heat in [0, 1], 0 everywhere where nothing speaks for the class; the classes explained; every class's score."""

    heat: Float[np.ndarray, "n s s"]
    classes: Int[np.ndarray, " n"]
    logits: Float[np.ndarray, "n k"]


class AtLayer(NamedTuple):
    """A layer's output for one image, the gradient of a class's score by it, that class, and every class's score."""

    activation: Float[jax.Array, "h w c"]
    gradient: Float[jax.Array, "h w c"]
    label: Int[jax.Array, ""]
    logits: Float[jax.Array, " k"]


@standard_settings(DOUBLES)
def grad_cam(
    classifier: Classifier | Any,
    variables: Variables | Any,
    images: Shaped[Array, "n ..."] | Any,
    *,
    classes: int | Sequence[int] | Int[Array, "_"] | Any = None,
    layer: str | Any = None,
    batch_size: int | Any = None,
) -> Maps:
    """Heat maps of the images' size, from one pass forward and one back from the scores to a layer.

    Args:
        classifier: the network and its head; whichever of its blocks train, all up to the bottleneck run.
        variables: of these blocks and the head.
        images: gray patches, uint8 [n s s], or images in [0, 1], floats [n s s 3].
        classes: whose linear score (not softmax) is explained, one for each image or one for all; by default the
            predicted one, whose score is the largest.
        layer: a block whose output has a height and a width, or "keras-vis" for the layer that keras-vis 0.4.1 took; by
            default the last such block with more than 2 x 2 cells.
        batch_size: images in one pass, which bounds the memory it takes; by default what suits the platform.

    Raises:
        UserError: a layer or a class that there is not, no images, images of another type or shape, not in [0, 1] or
            too small for the network, or variables without a head.
    """
    kind_of("classifier", classifier, Classifier, "make one as kimiajax.Classifier(backbone, blocks, num_classes)")
    backbone, images = classifier.backbone, images_of("images", images)
    number = len(images)
    if not number:
        raise UserError(f"images of shape {images.shape}: give uint8 [n s s] or floats [n s s 3], at least one")
    backbone.check_size(images.shape[1])
    if layer is not None:
        kind_of("layer", layer, str, f"choose from {', '.join(spatial(backbone, images.shape[1]))}")
    path = path_of(backbone, layer, images.shape[1])
    if "head" not in params_of(variables):
        raise UserError("these variables have no head, and so no classes: train one first, as `fit` does")
    labels = None if classes is None else _labels(classes, number, classifier.num_classes)
    held = jax.device_put(of_blocks(variables, (*backbone.trunk, "head")))
    suits = batch_size_for(jax.default_backend())
    batch_size = min(suits if batch_size is None else whole("batch_size", batch_size, 1), number)
    batches = [
        jax.device_get(_maps(classifier, path, held, *_batch((images, labels), start, batch_size)))
        for start in range(0, number, batch_size)
    ]
    return Maps(*(np.concatenate(each)[:number] for each in zip(*batches)))


def overlay(gray: UInt8[np.ndarray, "s s"], heat: Float[np.ndarray, "s s"]) -> UInt8[np.ndarray, "s s 3"]:
    """A patch in RGB with its heat over it, from the bare gray where that is 0 to `OPACITY` where it is 1."""
    steps = np.linspace(0, 1, len(RAMP))
    colours = np.stack([np.interp(heat, steps, channel) for channel in RAMP.T], axis=-1)
    opacity = OPACITY * heat[..., None]
    return np.rint((1 - opacity) * gray[..., None] + opacity * colours).astype(np.uint8)


def at_layer(
    classifier: Classifier,
    variables: Variables,
    image: Float[Array, "s s 3"],
    label: Int[Any, ""] | None,
    path: tuple[str, ...],
) -> AtLayer:
    """What Grad-CAM is made of, for one image in [0, 1].

    Args:
        classifier, variables: as `grad_cam` takes them.
        image: the network's input.
        label: the class; None for the predicted one.
        path: of the module whose output is the layer, from its block on.
    """
    backbone = replace(classifier.backbone, conv="plain")  # autodiff of XLA's own convolutions, no gradient of ours
    before = backbone.up_to(path[0])[:-1]
    rest = Classifier(backbone, backbone.span(path[0], backbone.bottleneck), classifier.num_classes)
    x = backbone.apply(variables, image[None], before)[0] if before else image[None]

    def scores(shift: Any) -> tuple[jax.Array, jax.Array]:
        with _shifted(path, shift) as outputs:
            logits, _ = rest.apply(variables, x)
        (output,) = outputs
        return logits[0], output[0]

    layer = jax.eval_shape(lambda: scores(0.0)[1])
    logits, gradients, activation = jax.vjp(scores, jnp.zeros(layer.shape, layer.dtype), has_aux=True)
    label = jnp.argmax(logits) if label is None else jnp.asarray(label)
    (gradient,) = gradients(jax.nn.one_hot(label, len(logits), dtype=logits.dtype))
    return AtLayer(activation, gradient, label, logits)


def heat_map(at: AtLayer, size: int) -> Float[jax.Array, "s s"]:
    """The map of a layer's positive evidence, resized bilinearly to `size` pixels and stretched to [0, 1]."""
    weights = at.gradient.mean(axis=(0, 1))
    evidence = nn.relu(at.activation @ weights)
    evidence -= evidence.min()  # before it is resized, too: what is constant is then 0 and not a rounding error
    evidence = jax.image.resize(evidence, (size, size), "bilinear")
    evidence -= evidence.min()
    most = evidence.max()
    return jnp.minimum(evidence / jnp.where(most == 0, 1, most), 1)  # XLA divides by a rounded reciprocal


@functools.partial(jax.jit, static_argnames=("classifier", "path"))
def _maps(
    classifier: Classifier,
    path: tuple[str, ...],
    variables: Variables,
    images: Shaped[Array, "b ..."],
    labels: Int[Array, " b"] | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The fields of `Maps` for a batch."""

    def explain(image: Array, label: Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        at = at_layer(classifier, variables, image, label, path)
        return heat_map(at, len(image)), at.label, at.logits

    with products_in("float32"):
        return jax.vmap(explain)(network_input(images), labels)


@contextlib.contextmanager
def _shifted(path: tuple[str, ...], shift: Any) -> Iterator[list[jax.Array]]:
    """Within, a shift is added to the output of the module at a path; the list gets that output."""
    outputs: list[jax.Array] = []

    def add(call: Any, arguments: tuple, options: dict, context: Any) -> Any:
        output, module = call(*arguments, **options), context.module
        if module.path == path and not module.is_initializing():  # as where the variables' tree is looked up
            output = output + shift
            outputs.append(output)
        return output

    with nn.intercept_methods(add):
        yield outputs


@functools.cache
def spatial(backbone: Backbone, size: int) -> dict[str, tuple[int, ...]]:
    """Returns the height and width of the output of each block before the head that has them, at an image size."""
    shapes = backbone.tap_shapes(backbone.shapes(size, backbone.trunk), size, backbone.trunk)
    return {block: shapes[block][:2] for block in backbone.trunk if len(shapes[block]) == 3}


def default_layer(backbone: Backbone, size: int) -> str:
    """Returns the last block before the head with more than 2 x 2 cells, or the last one with a height and a width."""
    cells = spatial(backbone, size)
    return next((block for block in reversed(cells) if min(cells[block]) > LEAST_CELLS), next(reversed(cells)))


def path_of(backbone: Backbone, layer: str | None, size: int) -> tuple[str, ...]:
    """The module that a layer is the output of, for images of `size` x `size` pixels."""
    known = spatial(backbone, size)
    if layer is None:
        return (default_layer(backbone, size),)
    if layer == KERAS_VIS:
        return tuple((backbone.keras_vis or next(reversed(known))).split("/"))
    if layer not in known:
        choices = ", ".join((*known, KERAS_VIS))
        raise UserError(f"no layer {layer!r} of {backbone.name} has a height and a width; choose from {choices}")
    return (layer,)


def _labels(classes: Any, number: int, num_classes: int) -> Int[np.ndarray, " n"]:
    """One class for each image, checked."""
    given = array_of("classes", classes)
    labels = np.asarray(whole_numbers_of("classes", given[None] if given.ndim == 0 else given))
    if given.ndim and len(labels) != number:
        raise UserError(f"{labels.size} classes for {number} images: give one for each, or one for all")
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise UserError(f"no class {wrong.flat[0]}: this head has the classes 0 to {num_classes - 1}")
    return np.broadcast_to(labels.astype(np.int32), (number,))


def _batch(arrays: Any, start: int, size: int) -> Any:
    """So many rows of each array, zeros after the last of all: one program serves."""

    def rows(array: Array) -> np.ndarray:
        part = np.asarray(array[start : start + size])
        return np.pad(part, ((0, size - len(part)), *[(0, 0)] * (part.ndim - 1)))

    return jax.tree.map(rows, arrays)
