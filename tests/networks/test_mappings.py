"""The networks beside the paper's: their sizes, and Keras' own files of them, there and back."""

import h5py
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from kimiajax.models.registry import BACKBONES
from kimiajax.training.freezing import blocks_of
from kimiajax.weights.load import load_weights
from weights_convert.__main__ import main as weights_convert
from weights_convert.convert import convert

NETWORKS = {  # arrays' entries with top and without, as Keras documents them, and the last block's output at 224 x 224
    "resnet50": (25_636_712, 23_587_712, (7, 7, 2048)),
    "densenet121": (8_062_504, 7_037_504, (7, 7, 1024)),
}
TUNED = {"resnet50": ("conv5_",), "densenet121": ("conv5_", "bn/")}  # Keras' layers of the blocks that are fine-tuned
# Two kernels of one shape, and what a published file calls other than Keras does today.
ALIKE = {
    "resnet50": ("conv5_block2/conv1/conv/kernel", "conv5_block3/conv1/conv/kernel"),
    "densenet121": ("conv5/layer3_conv2/conv/kernel", "conv5/layer4_conv2/conv/kernel"),
}
OTHER_NAMES = {
    "resnet50": {"predictions": "probs"},
    "densenet121": {"conv1_conv": "conv1/conv", "conv1_bn": "conv1/bn", "predictions": "fc1000"},
}


@pytest.mark.parity
@pytest.mark.parametrize("network", NETWORKS)
def test_its_logits_are_those_of_keras_and_not_those_of_kernels_that_are_exchanged(saved, network):
    keras = saved(network, True)
    backbone = BACKBONES[network]
    variables = load_weights(network, keras.path, blocks=backbone.blocks, image_size=keras.size).variables
    run = jax.jit(lambda variables, x: backbone.apply(variables, x, backbone.blocks)[0])

    def error(params):
        apart = run({**variables, "params": params}, keras.images) - keras.outputs
        return np.linalg.norm(apart) / np.linalg.norm(keras.outputs)

    assert error(variables["params"]) < 1e-4
    flat, (one, other) = flatten_dict(variables["params"], sep="/"), ALIKE[network]
    assert error(unflatten_dict({**flat, one: flat[other], other: flat[one]}, sep="/")) > 1e-3


@pytest.mark.parity
@pytest.mark.parametrize("network", NETWORKS)
def test_the_names_of_the_published_file_give_the_same_arrays(saved, tmp_path, network):
    path = saved(network, True).path
    published = tmp_path / f"{network}_weights_tf_dim_ordering_tf_kernels.h5"
    with h5py.File(path) as source, h5py.File(published, "w") as target:
        for layer, group in source["model_weights"].items():
            name = OTHER_NAMES[network].get(layer, layer)
            for leaf, array in group.get(layer, {}).items():
                target[f"{name}/{name}/{leaf}:0"] = array[...]
    one, other = (convert(network, each).lineage for each in (path, published))
    assert one["digest"] == other["digest"]
    assert one["layout"] != other["layout"]


@pytest.mark.parity
@pytest.mark.parametrize("network", NETWORKS)
def test_keras_loads_what_is_exported_bit_for_bit(saved, tmp_path, network):
    path = saved(network, True).path
    assert weights_convert(["keras", network, str(path), str(tmp_path / "checkpoint")]) == 0
    assert weights_convert(["export", str(tmp_path / "checkpoint"), str(tmp_path / "back.h5")]) == 0
    saved(network, True).assert_is_in(tmp_path / "back.h5")


def count(arrays):
    return sum(int(np.prod(array.shape)) for array in arrays)


@pytest.mark.parity
@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_fine_tuned_is_as_much_as_in_keras(saved, network):
    keras = saved(network, True)
    backbone, model = BACKBONES[network], keras.model()
    params = backbone.shapes(keras.size, backbone.trunk)["params"]
    trained = [params[block] for block in blocks_of(backbone, ("paper",)).within(backbone.trunk)]
    there = [weight for weight in model.trainable_weights if weight.path.startswith(TUNED[network])]
    assert count(jax.tree.leaves(trained)) == count(there) > 0


@pytest.mark.parametrize("network", NETWORKS)
def test_it_has_as_many_parameters_as_keras_counts(network):
    backbone, (whole, trunk, last) = BACKBONES[network], NETWORKS[network]
    assert count(jax.tree.leaves(backbone.shapes(224))) == whole
    assert count(jax.tree.leaves(backbone.shapes(224, backbone.trunk))) == trunk
    shapes = backbone.tap_shapes(backbone.shapes(224), 224, backbone.blocks)
    assert shapes[backbone.fine_tuned[-1]] == last
