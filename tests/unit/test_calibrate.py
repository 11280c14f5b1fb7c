"""Random weights scaled on patches: every layer's outputs, and what the scaled network makes of two patches."""

from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest

from kimiajax.errors import UserError
from kimiajax.models.batch_norm import BatchNorm
from kimiajax.models.conv import Conv
from kimiajax.models.inputs import network_input
from kimiajax.models.registry import BACKBONES
from kimiajax.weights.calibrate import BIAS, LAST_BIAS
from kimiajax.weights.load import load_weights

SIZE = 32


@pytest.fixture(scope="module")
def patches():
    return np.random.default_rng(0).integers(0, 256, (24, SIZE, SIZE), np.uint8)


def outputs(weights, images, blocks):
    """The outputs of the layers that feed a ReLU, by path."""
    seen = {}

    def keep(call, arguments, options, context):
        result, layer = call(*arguments, **options), context.module
        biased = isinstance(layer, Conv | nn.Dense) and layer.use_bias
        if not layer.is_initializing() and (biased or isinstance(layer, BatchNorm)):
            seen[layer.path] = np.asarray(result)
        return result

    with nn.intercept_methods(keep):
        weights.backbone.apply(weights.variables, images, blocks)
    return seen


@pytest.mark.parametrize(("network", "blocks"), [("vgg16", ("block1", "block2")), ("cnn", None)])
def test_every_channel_has_the_mean_and_deviation_that_its_lineage_says(network, blocks, patches):
    backbone = BACKBONES[network]
    if blocks:  # the deeper ones take time, and add nothing
        backbone = replace(backbone, features=blocks[-1], bottleneck=blocks[-1])
    blocks = blocks or backbone.trunk
    weights = load_weights(backbone, "calibrated", blocks=blocks, image_size=SIZE, patches=patches)
    assert weights.lineage["means"] == {"each": BIAS, "before_the_head": LAST_BIAS}
    for path, values in outputs(weights, network_input(patches), blocks).items():
        within = tuple(range(values.ndim - 1))
        np.testing.assert_allclose(values.std(within), 1, rtol=0.02, err_msg=str(path))  # epsilon takes a little
        mean = LAST_BIAS if path == ("block2", "conv2") else BIAS
        np.testing.assert_allclose(values.mean(within), mean, atol=2e-3, err_msg=str(path))


def test_they_are_those_of_the_seed_and_the_first_64_patches(patches):
    many = np.concatenate([patches, patches[::-1], patches])  # 72
    options = {"image_size": SIZE, "blocks": BACKBONES["cnn"].trunk}
    one = load_weights("cnn", "calibrated", patches=many, **options)
    assert one.random
    assert one.lineage["patches"] == 64
    digests = {one.lineage["digest"]}
    assert load_weights("cnn", "calibrated", patches=many[:64], **options).lineage["digest"] in digests
    for other in ({"patches": many[1:]}, {"patches": many, "seed": 1}):
        digests.add(load_weights("cnn", "calibrated", **other, **options).lineage["digest"])
    assert len(digests) == 3


def test_a_block_is_the_same_whatever_else_is_read(patches):
    backbone = BACKBONES["cnn"]
    first = load_weights(backbone, "calibrated", blocks=backbone.trunk[:1], image_size=SIZE, patches=patches)
    whole = load_weights(backbone, "calibrated", blocks=backbone.trunk, image_size=SIZE, patches=patches)
    block = backbone.trunk[0]
    jax.tree.map(np.testing.assert_array_equal, first.variables["params"][block], whole.variables["params"][block])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda patches: None, "are scaled on a study's training patches.*RUN/weights/NETWORK"),
        (lambda patches: patches[:, 1:], "uint8 .24, 31, 32.; gray uint8 .n 32 32. are needed"),
        (lambda patches: patches.astype(np.float32), "float32"),
        (lambda patches: np.repeat(patches[:1], 3, axis=0), "are all alike"),
    ],
)
def test_patches_that_tell_nothing_or_do_not_fit_are_refused(wrong, words, patches):
    with pytest.raises(UserError, match=words):
        load_weights("cnn", "calibrated", image_size=SIZE, patches=wrong(patches))
