"""Mistakes that no shape shows, code in an archive, and references that are absent or break down."""

import json
import sys
import zipfile

import numpy as np
import pytest

from faults.harness import ask, nothing_changes, refused
from faults.weights.planting import array, features, parity, refused_whole
from kimiajax.parity import run as parity_run
from weights_convert.mapping import DENSE_OUT_IN
from weights_convert.mappings import vgg16

BUG, PARITY_FAILED, PARITY_NOT_RUN = 1, 3, 4


# Mistakes that no shape shows, and code in an archive, both under the eyes of Keras


def lambda_of(folder):
    """A layer's function that leaves a folder behind wherever it is run."""
    return lambda x: (__import__("os").makedirs(folder, exist_ok=True), x)[1]


@pytest.fixture(scope="module")
def judged(scans, tmp_path_factory):
    """A parity run of an archive that Keras saved, with code in it, and what the reference computed there."""
    import keras

    folder, rng = tmp_path_factory.mktemp("parity"), np.random.default_rng(0)
    archive, sprung = folder / "vgg16.keras", folder / "sprung"
    network = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=2, classifier_activation=None)
    network.set_weights([array(each.path.rsplit("/", 1)[-1], tuple(each.shape), rng) for each in network.weights])
    keras.Model(network.input, keras.layers.Lambda(lambda_of(str(sprung)))(network.output)).save(archive)
    assert sprung.exists(), "Keras runs the code where it builds the network"
    sprung.rmdir()
    computed = {}

    def kept(name):
        function = getattr(parity_run, name)

        def keeping(*arguments):
            computed[name] = function(*arguments)
            return computed[name]

        return keeping

    with pytest.MonkeyPatch.context() as patched:
        for name in ("add_head", "run_reference"):
            patched.setattr(parity_run, name, kept(name))
        ended = parity(scans, archive, folder / "out")
    return archive, sprung, ended, computed, folder / "out" / "parity.json"


@pytest.mark.fault("pickles")
def test_code_in_an_archive_of_keras_is_run_neither_here_nor_by_the_reference(judged):
    import keras

    archive, sprung, ended, _, certificate = judged
    assert ended.status == 0, ended
    assert json.loads(certificate.read_text())["verdict"] == "VERIFIED"
    assert not sprung.exists()
    with zipfile.ZipFile(archive) as members:
        layers = json.loads(members.read("config.json"))["config"]["layers"]
    (code,) = (layer["config"] for layer in layers if layer["class_name"] == "Lambda")
    keras.layers.Lambda.from_config(code, safe_mode=False)(np.zeros((1, 2), np.float32))
    assert sprung.exists(), "whoever runs the code leaves a folder behind"
    sprung.rmdir()


def misread(*names, layout=None):
    """A mistake of the converter's: an array read in another layout, or two in each other's place."""

    def mistake(monkeypatch):
        table = vgg16.KERAS
        entries = [table[name] for name in reversed(names)]
        for name, (to, own) in zip(names, entries):
            monkeypatch.setitem(table, name, (to, layout or own))

    return mistake


MISTAKES = {
    "a square dense kernel transposed": (misread("fc2/kernel", layout=DENSE_OUT_IN), "block/fc2"),
    "two kernels of one shape exchanged": (misread("block5_conv2/kernel", "block5_conv3/kernel"), "block/block5"),
}


@pytest.mark.fault("misfits")
@pytest.mark.parametrize("name", MISTAKES)
def test_where_shapes_coincide_parity_fails_at_the_block(scans, tmp_path, monkeypatch, judged, name):
    """The reference is Keras' own reading of the file, computed once for all of these."""
    archive, _, _, computed, _ = judged
    mistake, stage = MISTAKES[name]
    mistake(monkeypatch)
    for function, given in computed.items():
        monkeypatch.setattr(parity_run, function, lambda *_, given=given: given)
    ended = parity(scans, archive, tmp_path / "out")
    assert ended.status == PARITY_FAILED, ended
    assert f"FAILED: vgg16 and keras part at {stage}" in ended.shown
    content = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert (content["verdict"], content["first_divergence"]) == ("FAILED", stage)


@pytest.mark.fault("misfits")
def test_dense_kernels_of_another_image_size_are_refused_with_the_size_that_fits(scans, tmp_path, judged):
    archive, *_ = judged
    refused_whole(scans, tmp_path, archive, "fc1 takes 512 values", "--image-size 32", command=features, size=64)


# References


@pytest.fixture
def without(monkeypatch):
    """Takes a framework away."""
    return lambda name: monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.fault("references")
@pytest.mark.parametrize("required", [False, True], ids=["", "required"])
@pytest.mark.parametrize("reference", ["keras", "torch"])
@pytest.mark.parametrize("network", ["vgg16", "inception_v3"])
def test_without_a_reference_nothing_is_verified_and_that_is_said(
    tmp_path, monkeypatch, without, network, reference, required
):
    without(reference)
    monkeypatch.setattr(parity_run, "prepare", lambda *_: pytest.fail("it goes on without it"))
    (tmp_path / "parity.json").write_text('{"verdict": "VERIFIED"}')
    flags = ("--weights", "random", "--out", tmp_path, *(["--require"] if required else []))
    ended = ask("parity", network, "--reference", reference, *flags)
    assert ended.status == (PARITY_NOT_RUN if required else 0)
    assert f"NOT RUN: {reference} is not installed" in ended.shown
    assert "VERIFIED" not in ended.shown
    content = json.loads((tmp_path / "parity.json").read_text())
    assert content["verdict"] == "NOT RUN"
    assert content["stages"] == []
    assert f"{reference} is not installed" in content["reason"]


@pytest.mark.fault("references")
def test_a_reference_that_breaks_down_is_an_error_and_no_verdict(tmp_path, monkeypatch):
    package = tmp_path / "packages" / "keras"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libkeras is broken')")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "parity.json").write_text('{"verdict": "NOT RUN"}')
    with nothing_changes(tmp_path / "out"):
        ended = ask("parity", "vgg16", "--reference", "keras", "--weights", "random", "--out", tmp_path / "out")
        refused(ended, "keras breaks down (make, exit status 1)", "libkeras is broken")
    assert "VERIFIED" not in ended.shown
