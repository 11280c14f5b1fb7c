"""Maps are judged by finite differences and by NumPy; gradients in float64, where rounding hides no fault."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import randomise

from kimiajax.errors import UserError
from kimiajax.features import gradcam
from kimiajax.features.gradcam import OPACITY, RAMP, at_layer, default_layer, grad_cam, overlay, spatial
from kimiajax.models import backbone as networks
from kimiajax.models.head import Classifier
from kimiajax.models.inception_v3 import convolutions
from kimiajax.models.inputs import gray_to_unit_rgb
from kimiajax.models.registry import BACKBONES

CLASSES = 3
STEP = 1e-4  # of the finite differences: small beside the distance to the next kink of a ReLU, large beside rounding


def classifier_of(name, size, rng, conv="plain"):
    """A network with its head, and random variables, biases and statistics too."""
    backbone = replace(BACKBONES[name], conv=conv)
    classifier = Classifier(backbone, backbone.trunk, CLASSES)
    variables = backbone.init(rng, size, backbone.trunk)
    bottleneck = backbone.tap_shapes(variables, size, backbone.trunk)[backbone.bottleneck]
    variables["params"]["head"] = jax.eval_shape(lambda: classifier.init_head(jax.random.key(0), bottleneck))
    return classifier, randomise(variables, rng)


def grays(rng, number, size):
    return rng.integers(0, 256, (number, size, size), dtype=np.uint8)


@pytest.fixture
def small(rng):
    """The small network for 128 x 128 pixels, where its last block is 4 x 4, and three patches."""
    return *classifier_of("cnn", 128, rng), grays(rng, 3, 128)


def double(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def path_of(name, layer):
    backbone = BACKBONES[name]
    return tuple(
        (backbone.keras_vis or next(reversed(spatial(backbone, 224))) if layer == "keras-vis" else layer).split("/")
    )


def at(classifier, variables, image, label, layer):
    explain = jax.jit(at_layer, static_argnums=(0, 4))
    return explain(classifier, variables, image, label, path_of(classifier.backbone.name, layer))


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def slopes(scores, variables, start, directions):
    """The scores' central differences along each direction, [directions classes]."""
    return np.array(
        [
            (scores(variables, start + STEP * each) - scores(variables, start - STEP * each)) / (2 * STEP)
            for each in directions
        ]
    )


def along(gradient, directions):
    return np.tensordot(directions, gradient, gradient.ndim)


def after(backbone, block):
    """The classes' scores by a block's output, by the network's own blocks: (variables, output) -> scores."""
    rest = backbone.trunk[backbone.trunk.index(block) + 1 :]
    return jax.jit(lambda variables, tap: Classifier(backbone, rest, CLASSES).apply(variables, tap[None])[0][0])


@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        pytest.param("vgg16", 32, "block4", marks=pytest.mark.parity),
        pytest.param("vgg16", 32, "block5", marks=pytest.mark.parity),
        pytest.param("inception_v3", 75, "mixed10", marks=pytest.mark.parity),
        ("cnn", 32, "block1"),
        ("cnn", 64, "block4"),
    ],
)
def test_gradients_at_a_block_are_the_scores_finite_differences(rng, name, size, layer):
    classifier, variables = classifier_of(name, size, rng)
    image, variables = rng.random((size, size, 3)), double(variables)
    with jax.enable_x64(True):
        found = at(classifier, variables, image, 1, layer)
        tap, scores = found.activation, after(classifier.backbone, layer)
        np.testing.assert_allclose(found.logits, scores(variables, tap), rtol=1e-10)
        directions = rng.standard_normal((4, *tap.shape)) * np.abs(tap).mean() / 100
        expected = slopes(scores, variables, tap, directions)
        assert error(along(found.gradient, directions), expected[:, 1]) < 1e-6

        by_other_class = at(classifier, variables, image, 2, layer).gradient
        share = jax.jit(jax.grad(lambda tap, variables: jax.nn.softmax(scores(variables, tap))[1]))
        by_softmax = share(tap, variables)
        for fault in (by_other_class, by_softmax):
            assert error(along(fault, directions), expected[:, 1]) > 0.1, "the check sees what is not the score's"


@pytest.mark.parametrize(("name", "size"), [pytest.param("inception_v3", 107, marks=pytest.mark.parity), ("cnn", 64)])
def test_channel_weights_at_keras_vis_layer_are_slopes_by_the_means_of_its_batch_normalisation(rng, name, size):
    """Which takes the convolution's output minus a mean: a lower mean is the same as an output higher everywhere."""
    classifier, variables = classifier_of(name, size, rng)
    image, variables = rng.random((size, size, 3)), double(variables)
    block, *unit, _ = path_of(name, "keras-vis")
    mean = variables["batch_stats"][block]
    for part in (*unit, "bn"):
        mean = mean[part]
    backbone = classifier.backbone
    rest = Classifier(backbone, backbone.span(block, backbone.bottleneck), CLASSES)

    with jax.enable_x64(True):
        found = at(classifier, variables, image, 1, "keras-vis")
        before = backbone.up_to(backbone.before(block))
        x, _, _ = jax.jit(backbone.apply, static_argnums=2)(variables, image[None], before)

        @jax.jit
        def scores(variables, shift):
            moved = {"bn": {"mean": mean["mean"] - shift, "var": mean["var"]}}
            for part in reversed(unit):
                moved = {**variables["batch_stats"][block], part: moved}
            statistics = {**variables["batch_stats"], block: moved}
            return rest.apply({**variables, "batch_stats": statistics}, x)[0][0]

        directions = rng.standard_normal((4, len(mean["mean"])))
        expected = slopes(scores, variables, np.zeros(len(mean["mean"])), directions)
        weights = np.asarray(found.gradient).mean(axis=(0, 1)) * np.prod(found.gradient.shape[:2])
        assert error(along(weights, directions), expected[:, 1]) < 1e-6
        assert error(along(weights, directions), expected[:, 2]) > 0.1


def test_only_the_network_that_runs_is_shifted(rng):
    """Not the one that is built on the way to look up its variables' names, of another size."""
    classifier, variables = classifier_of("cnn", 128, rng)
    networks._leaves.cache_clear()
    found = at(classifier, variables, rng.random((128, 128, 3), np.float32), 0, "block1")
    assert found.gradient.shape == (32, 32, 32)


def test_keras_vis_layer_is_the_convolution_that_keras_creates_last():
    assert BACKBONES["inception_v3"].keras_vis == "/".join((*convolutions()[-1], "conv"))


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("inception_v3", "keras-vis", (5, 5, 192)),
        ("inception_v3", "mixed10", (5, 5, 2048)),
        ("vgg16", "keras-vis", (7, 7, 512)),
        ("vgg16", "block5", (7, 7, 512)),
    ],
)
def test_layers_have_the_shapes_that_are_documented(name, layer, shape):
    backbone = BACKBONES[name]
    classifier = Classifier(backbone, backbone.trunk, CLASSES)
    variables = backbone.shapes(224, backbone.trunk)
    bottleneck = backbone.tap_shapes(variables, 224, backbone.trunk)[backbone.bottleneck]
    variables["params"]["head"] = jax.eval_shape(lambda: classifier.init_head(jax.random.key(0), bottleneck))
    image = jax.ShapeDtypeStruct((224, 224, 3), jnp.float32)
    path = path_of(name, layer)
    found = jax.eval_shape(lambda v, x: at_layer(classifier, v, x, None, path), variables, image)
    assert (found.activation.shape, found.gradient.shape) == (shape, shape)


@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("inception_v3", 224, "mixed10"),
        ("inception_v3", 96, "mixed7"),
        ("vgg16", 96, "block5"),
        ("vgg16", 64, "block4"),
        ("cnn", 32, "block2"),
    ],
)
def test_by_default_a_map_is_made_of_more_than_2_x_2_cells(name, size, layer):
    assert default_layer(BACKBONES[name], size) == layer


def resized(values, size):
    """Bilinear, between the pixels' centres."""
    centres = [(np.arange(size) + 0.5) * side / size - 0.5 for side in values.shape]
    rows = np.stack([np.interp(centres[1], np.arange(len(row)), row) for row in values])
    return np.stack([np.interp(centres[0], np.arange(len(column)), column) for column in rows.T], axis=1)


def test_a_map_is_what_numpy_makes_of_the_activations_and_the_heads_kernel(small):
    """The head is linear in the mean over space: a channel's weight is its entry of the kernel over the pixels."""
    classifier, variables, images = small
    _, taps, _ = classifier.backbone.apply(variables, gray_to_unit_rgb(images), classifier.blocks)
    head = variables["params"]["head"]["logits"]
    maps = grad_cam(classifier, variables, images)
    np.testing.assert_allclose(maps.logits, taps["pooled"] @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-5)
    for heat, activation, label in zip(maps.heat, np.asarray(taps["block4"]), maps.classes):
        expected = resized(np.maximum(activation @ (head["kernel"][:, label] / 16), 0), 128)
        expected -= expected.min()
        np.testing.assert_allclose(heat, expected / expected.max(), atol=1e-5)


def test_by_default_the_predicted_class_is_explained(small):
    classifier, variables, images = small
    maps = grad_cam(classifier, variables, images)
    np.testing.assert_array_equal(maps.classes, maps.logits.argmax(axis=1))
    given = grad_cam(classifier, variables, images, classes=maps.classes)
    np.testing.assert_allclose(maps.heat, given.heat, atol=1e-6)  # two programs
    others = grad_cam(classifier, variables, images, classes=(maps.classes + 1) % CLASSES)
    assert np.abs(maps.heat - others.heat).max() > 0.1


@pytest.mark.parametrize("layer", ["block1", "block4", "keras-vis"])
def test_heat_is_from_0_to_1_at_the_images_size(small, layer):
    classifier, variables, images = small
    heat = grad_cam(classifier, variables, images, layer=layer).heat
    assert (heat.shape, heat.dtype) == (images.shape, np.float32)
    np.testing.assert_array_equal(heat.min(axis=(1, 2)), 0)
    np.testing.assert_allclose(heat.max(axis=(1, 2)), 1, atol=1e-6)
    assert heat.max() <= 1


def spotlight(rng):
    """A network to which black is nothing, and two classes: all that is seen speaks for one and against the other."""
    backbone = BACKBONES["cnn"]
    variables = backbone.init(rng, 128, backbone.trunk)
    kernel = np.outer(np.ones(256), [1, -1]).astype(np.float32)
    variables["params"]["head"] = {"logits": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}
    return Classifier(backbone, backbone.trunk, 2), variables


SPOTS = [(16, 16), (16, 112), (112, 16), (80, 48)]


def spotted():
    images = np.zeros((len(SPOTS), 128, 128), np.uint8)
    for image, (row, column) in zip(images, SPOTS):
        image[row - 4 : row + 4, column - 4 : column + 4] = 255
    return images


def test_what_speaks_for_a_class_lights_up_where_it_is(rng):
    heat = grad_cam(*spotlight(rng), spotted(), classes=0).heat
    for each, (row, column) in zip(heat, SPOTS):
        peak = np.unravel_index(each.argmax(), each.shape)
        assert np.hypot(peak[0] - row, peak[1] - column) <= 32, "within a cell of the layer, 32 pixels"
        assert each[127 - row, 127 - column] < 0.3


def test_a_class_without_evidence_has_no_heat(rng):
    maps = grad_cam(*spotlight(rng), spotted(), classes=1)
    np.testing.assert_array_equal(maps.heat, 0)


def test_a_constant_map_has_no_heat(rng):
    """A layer of one pixel says nothing of where."""
    classifier, variables = classifier_of("cnn", 32, rng)
    np.testing.assert_array_equal(grad_cam(classifier, variables, grays(rng, 2, 32), layer="block4").heat, 0)
    flat = gradcam.AtLayer(jnp.full((5, 5, 8), 0.1), jnp.full((5, 5, 8), 0.1), jnp.array(0), jnp.zeros(3))
    np.testing.assert_array_equal(gradcam.heat_map(flat, 224), 0)


def test_an_activation_that_is_not_finite_shows_in_the_map_and_an_image_is_refused(small):
    classifier, variables, images = small
    spoilt = np.ones((4, 4, 2), np.float32)
    spoilt[1, 2, 0] = np.nan
    at_spoilt = gradcam.AtLayer(jnp.asarray(spoilt), jnp.ones((4, 4, 2)), jnp.asarray(0), jnp.zeros(3))
    assert np.isnan(gradcam.heat_map(at_spoilt, 8)).any()
    images = np.array(gray_to_unit_rgb(images))
    images[1, 5, 5] = np.nan
    with pytest.raises(UserError, match=r"images: nan at \[1, 5, 5, 0\]"):
        grad_cam(classifier, variables, images)


def test_batches_change_nothing(rng):
    classifier, variables = classifier_of("cnn", 128, rng)
    images, classes = grays(rng, 5, 128), np.array([0, 1, 2, 0, 1])
    whole = grad_cam(classifier, variables, images, classes=classes, batch_size=8)
    for batch_size in (1, 2, 3):
        parts = grad_cam(classifier, variables, images, classes=classes, batch_size=batch_size)
        np.testing.assert_array_equal(parts.classes, classes)
        np.testing.assert_allclose(parts.logits, whole.logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(parts.heat, whole.heat, atol=1e-5)  # another program for each size


def test_one_program_serves_all_batches(rng):
    classifier, variables = classifier_of("cnn", 64, rng)
    gradcam._maps.clear_cache()
    grad_cam(classifier, variables, grays(rng, 5, 64), batch_size=2)
    assert gradcam._maps._cache_size() == 1


def test_patches_and_the_images_made_of_them_have_the_same_maps(small):
    classifier, variables, images = small
    of_patches = grad_cam(classifier, variables, images, classes=0)
    of_images = grad_cam(classifier, variables, gray_to_unit_rgb(images), classes=0)
    np.testing.assert_allclose(of_patches.heat, of_images.heat, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["vgg16", "inception_v3"])
def test_both_networks_give_maps_of_patches(rng, name):
    """Of an inner block: at these sizes the last one is a pixel."""
    size, layer = {"vgg16": (32, "block3"), "inception_v3": (75, "mixed7")}[name]
    classifier, variables = classifier_of(name, size, rng)
    maps = grad_cam(classifier, variables, grays(rng, 3, size), layer=layer, batch_size=2)
    assert (maps.heat.shape, maps.logits.shape) == ((3, size, size), (3, CLASSES))
    assert maps.heat.max() == pytest.approx(1)


def test_a_network_that_convolves_fast_is_explained_in_plain_convolutions(rng):
    fast, variables = classifier_of("cnn", 128, rng, conv="fast")
    folded = fast.backbone.fold_for_inference(variables, 128, fast.blocks)
    plain, images = Classifier(BACKBONES["cnn"], fast.blocks, CLASSES), grays(rng, 2, 128)
    np.testing.assert_array_equal(grad_cam(fast, folded, images).heat, grad_cam(plain, variables, images).heat)


def test_a_classifier_of_which_only_the_end_trains_is_explained_from_the_image_on(small):
    classifier, variables, images = small
    end = Classifier(classifier.backbone, ("block4", "pooled"), CLASSES)
    found, expected = (grad_cam(each, variables, images) for each in (end, classifier))
    np.testing.assert_allclose(found.heat, expected.heat, atol=1e-5)


@pytest.mark.parametrize("layer", ["mixed12", "pooled", "predictions", "mixed10/branch4_conv2/conv"])
def test_a_layer_without_height_and_width_is_refused_with_the_choices(rng, layer):
    backbone = BACKBONES["inception_v3"]
    choices = "choose from stem, mixed0, .*, mixed9, mixed10, keras-vis$"
    with pytest.raises(UserError, match=f"no layer '{layer}' of inception_v3 .*; {choices}"):
        grad_cam(Classifier(backbone, backbone.trunk, CLASSES), {"params": {}}, grays(rng, 1, 75), layer=layer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 3}, "no class 3: this head has the classes 0 to 2"),
        ({"classes": [0, -1, 1]}, "no class -1"),
        ({"classes": [0, 1]}, "2 classes for 3 images"),
    ],
)
def test_classes_that_do_not_fit_are_refused(small, options, message):
    with pytest.raises(UserError, match=message):
        grad_cam(*small, **options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 128, 128), np.uint8), "at least one"),
        (np.zeros((2, 128, 128, 3), np.uint8), r"give uint8 \[n s s\] or floats"),
        (np.zeros((2, 128, 128), np.float32), r"give uint8 \[n s s\] or floats"),
        (np.zeros((2, 128, 64), np.uint8), r"images of shape \(2, 128, 64\)"),
        (np.zeros((2, 16, 16), np.uint8), "16 is too small"),
    ],
)
def test_images_that_do_not_fit_are_refused(small, images, message):
    classifier, variables, _ = small
    with pytest.raises(UserError, match=message):
        grad_cam(classifier, variables, images)


def test_variables_without_a_head_are_refused(small):
    classifier, variables, images = small
    del variables["params"]["head"]
    with pytest.raises(UserError, match="no head"):
        grad_cam(classifier, variables, images)


def test_an_overlay_is_the_bare_patch_where_there_is_no_heat(rng):
    gray = grays(rng, 1, 40)[0]
    heat = np.zeros((40, 40), np.float32)
    heat[:, 20:] = 1
    rgb = overlay(gray, heat)
    assert (rgb.shape, rgb.dtype) == ((40, 40, 3), np.uint8)
    np.testing.assert_array_equal(rgb[:, :20], np.repeat(gray[:, :20, None], 3, axis=-1))
    np.testing.assert_allclose(rgb[:, 20:], (1 - OPACITY) * gray[:, 20:, None] + OPACITY * RAMP[-1], atol=0.5)
    assert np.corrcoef(rgb[:, 20:, 0].ravel(), gray[:, 20:].ravel())[0, 1] > 0.99, "the patch shows through"


def test_more_heat_is_a_lighter_colour():
    lightness = RAMP @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 5).all()
