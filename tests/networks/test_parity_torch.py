"""The certificate with torch as the judge, through the command line and with one planted mistake."""

import dataclasses

import pytest

from kimiajax.cli.main import main
from kimiajax.models.checkpoint import Weights
from kimiajax.parity.config import ParityConfig
from kimiajax.parity.run import add_head, certify, prepare, run_reference
from kimiajax.runtime.progress import Silent

pytestmark = [pytest.mark.torch, pytest.mark.parity]


@pytest.mark.parametrize("kind", ["unit", "native"])
@pytest.mark.parametrize(("network", "size"), [("vgg16", 64), ("inception_v3", 139)])
def test_networks_of_torch_are_verified(tmp_path, capsys, network, size, kind):
    command = ["parity", network, "--reference", "torch", "--weights", "random", "--image-size", str(size)]
    status = main([*command, "--input", kind, "--require", "--out", str(tmp_path)])
    assert status == 0, capsys.readouterr().out


def test_torchs_network_with_keras_pools_is_another_one(tmp_path):
    job, weights = prepare("inception_v3", ParityConfig("torch", "random", image_size=139), tmp_path, Silent())
    job, head = add_head(job, weights, tmp_path)
    reference = run_reference(job, "torch", tmp_path, Silent())
    keras_pools = Weights(weights.variables, {**weights.lineage, "options": {"scale": True}})
    done = certify(dataclasses.replace(job), "torch", keras_pools, head, *reference)
    assert done.first_divergence == "block/mixed0"


def test_timms_vgg16_is_verified(tmp_path, capsys):
    """Its dense layers are convolutions; the reference knows its file by the names."""
    from safetensors.torch import save_file

    from kimiajax.parity.torch_networks import randomise, timm_vgg16

    network = timm_vgg16(classes=7, side=2)
    randomise(network, 0)
    save_file(network.state_dict(), tmp_path / "timm.safetensors")
    command = ["parity", "vgg16", "--reference", "torch", "--weights", str(tmp_path / "timm.safetensors")]
    status = main([*command, "--image-size", "64", "--out", str(tmp_path)])
    assert status == 0, capsys.readouterr().out
