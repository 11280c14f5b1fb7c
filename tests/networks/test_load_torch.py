"""torchvision's and timm's arrays. torch itself, in double precision, is the judge of the converted networks."""

import jax
import numpy as np
import pytest

from weights_convert.convert import convert

pytestmark = pytest.mark.torch

SIZES = {"torchvision_vgg16": 64, "timm_vgg16": 64, "inception_v3": 139}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(network's class, with top) -> (torch network with random arrays, path of its .safetensors), built once each."""
    from safetensors.torch import save_file

    from kimiajax.parity import torch_networks as networks

    folder, built = tmp_path_factory.mktemp("torch"), {}
    builders = {
        "torchvision_vgg16": lambda classes: networks.torchvision_vgg16(classes, side=2),
        "timm_vgg16": lambda classes: networks.timm_vgg16(classes, side=2),
        "inception_v3": lambda classes: networks.inception_v3(classes),
    }

    def build(name, classes=5):
        if (name, classes) not in built:
            network = builders[name](classes).eval()
            networks.randomise(network, len(built))
            path = folder / f"{name}-{classes}.safetensors"
            save_file(network.state_dict(), path)
            built[name, classes] = network, path
        return built[name, classes]

    return build


def agree(network, path, name, rng, backbone_name, fold=False):
    """The largest relative error over the blocks' outputs, against torch in double precision, and where it is."""
    import torch

    from kimiajax.parity.torch_networks import blocks as run

    weights = convert(backbone_name, path, fold=fold)
    backbone, size = weights.backbone, SIZES[name]
    blocks = [b for b in backbone.blocks if b in weights.variables["params"] or b == "pooled"]
    images = rng.random((2, size, size, 3), np.float32)
    taps = jax.jit(lambda v, x: backbone.apply(v, x, blocks)[1])(weights.variables, images)
    with torch.no_grad():
        expected = run(network.double(), torch.from_numpy(images).double().permute(0, 3, 1, 2))
    network.float()
    errors = {}
    for block in blocks:
        judge = expected[block].numpy()
        judge = judge.transpose(0, 2, 3, 1) if judge.ndim == 4 else judge
        errors[block] = float(np.linalg.norm(taps[block] - judge) / np.linalg.norm(judge))
    return errors


@pytest.mark.parametrize("classes", [5, None])
@pytest.mark.parametrize("name", SIZES)
def test_a_converted_network_agrees_with_torch_at_every_block(saved, rng, name, classes):
    network, path = saved(name, classes)
    backbone = "inception_v3" if name == "inception_v3" else "vgg16"
    errors = agree(network, path, name, rng, backbone)
    assert max(errors.values()) < 1e-5, errors


def test_folding_the_scale_changes_nothing_but_rounding(saved, rng):
    network, path = saved("inception_v3")
    errors = agree(network, path, "inception_v3", rng, "inception_v3", fold=True)
    assert max(errors.values()) < 1e-5, errors
    lineage = convert("inception_v3", path, fold=True).lineage
    assert lineage["batch_norm_scale"] == "folded"
    assert lineage["options"] == {"count_padding": True}
