"""Weight files that say something of themselves, and networks within people's own models."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from support import foreign
from support import weight_files as w
from support.foreign import CASES, check
from support.networks import TWO

from kimiajax.models.registry import BACKBONES
from kimiajax.parity import run as parity_run
from kimiajax.parity.certificate import FAILED, VERIFIED
from kimiajax.parity.certificate_text import render
from kimiajax.parity.config import ParityConfig
from kimiajax.weights.load import load_weights
from weights_convert import keras_graph
from weights_convert.__main__ import main as weights_convert
from weights_convert.convert import convert
from weights_convert.mappings import files_of

SAMPLE = (  # the others are in `make test-faults`
    "backend: Theano's, said of the weights",
    "backend: of nobody",
    "Keras 1: th, Theano by its name",
    "configuration: an epsilon",
    "configuration: an activation",
    "model: a head taken",
    "model: rescaled",
    "model: .keras, Sequential",
    "type: bfloat16",
    "torch: prefix module.",
    "torch: half",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_file_of_its_kind_is_read_to_the_bit_or_refused(tmp_path, name):
    check(CASES[name], tmp_path)


def test_the_rows_of_a_dense_layer_are_reordered_where_the_file_says_how_they_lie(tmp_path):
    """One row: of channel 7, row 1, column 0 of a 2 x 2 image."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((2048, 8), np.float32)
    layers = {"hidden": {"kernel": kernel}}
    there = w.flattened_as_chw(layers, "hidden", 512)["hidden"]["kernel"]
    np.testing.assert_array_equal(there.reshape(512, 2, 2, 8)[7, 1, 0], kernel.reshape(2, 2, 512, 8)[1, 0, 7])


@pytest.mark.parity
@pytest.mark.parametrize("network", ["vgg16", "inception_v3", "resnet50", "densenet121"])
def test_what_a_mapping_describes_is_what_keras_configures(network):
    """Of all layers, whatever Keras' own configuration says that they compute."""
    import keras

    model = files_of(network, "keras").model
    keras.utils.clear_session()
    built = getattr(keras.applications, model.application)(weights=None)
    graph = keras_graph.parse(json.loads(built.to_json()))
    names = dict(zip(graph.layers, graph.layers)) | keras_graph.ranks(graph.layers)
    described, outputs = graph.described(names, "channels_last")
    expected = dict(model.described)
    (_, output), _ = expected.pop("output"), expected.pop("head")
    assert described == expected
    assert output in outputs


@pytest.mark.parity
def test_people_s_own_models_as_keras_saves_them_hold_the_network(tmp_path):
    """In `Sequential`, functional with a head, rescaled, in half precision: the arrays of the network alone."""
    import keras

    keras.utils.clear_session()
    size = (64, 64, 3)
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=size)
    base.set_weights([0.05 * np.random.default_rng(1).standard_normal(each.shape, np.float32) for each in base.weights])
    base.save(tmp_path / "base.h5")
    digest = convert("vgg16", tmp_path / "base.h5").lineage["digest"]
    dense = keras.layers.Dense
    inner = keras.Sequential([base, keras.layers.Flatten()])
    nested = keras.Sequential([inner, dense(8, "relu"), keras.layers.Dropout(0.5), dense(3, "softmax")])
    nested.build((None, *size))
    hidden = dense(8, "relu")(keras.layers.Flatten()(base.output))
    functional = keras.Model(base.input, dense(3)(hidden))
    start = keras.Input(size)
    scaled = base(keras.layers.Rescaling(1 / 255)(start))
    rescaled = keras.Model(start, dense(3)(keras.layers.GlobalAveragePooling2D()(scaled)))
    functional.compile("adam", "mse")  # its optimizer is saved too
    for name, model in (("nested", nested), ("functional", functional), ("rescaled", rescaled)):
        for kind in ("h5", "keras", "weights.h5"):
            path = tmp_path / f"{name}.{kind}"
            (model.save_weights if kind == "weights.h5" else model.save)(path)
            weights = convert("vgg16", path)
            assert weights.lineage["digest"] == digest, path
            assert any("dense" in each for each in weights.lineage["left_out"]), path
            if name != "rescaled":
                head = convert("vgg16", path, head=True).variables["params"]["head"]
                first, last = [layer for layer in model.layers if isinstance(layer, dense)]
                np.testing.assert_array_equal(head["hidden"]["kernel"], first.kernel, err_msg=str(path))
                np.testing.assert_array_equal(head["logits"]["bias"], last.bias, err_msg=str(path))
            path.unlink()
    path = tmp_path / "rescaled.keras"
    rescaled.save(path)
    assert convert("vgg16", path).lineage["expected_input"]["range"] == [0, 1]


def test_what_was_done_is_told_by_the_command_and_kept_in_the_lineage(tmp_path, capsys):
    case = CASES["model: Sequential with a head"]
    path = case["write"](tmp_path / "x.h5", *foreign.source("vgg16"))
    assert weights_convert(["keras", "vgg16", str(path), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "taken out of vgg16" in said
    assert "left out: hidden (2 arrays), scans (2 arrays)" in said
    lineage = load_weights("vgg16", tmp_path / "out", blocks=("block1",)).lineage
    assert lineage["says"] == {
        "backend": "tensorflow",
        "keras_version": "2.0.8",
        "within": "vgg16",
        "data_format": "channels_last",
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backend", "tensorflow"], None),
        (["--backend", "theano"], "changed: kernels turned by 180 degrees, since Theano has them so (you say theano)"),
    ],
)
def test_a_person_says_what_a_file_does_not(tmp_path, capsys, flags, message):
    layers, _ = foreign.source("vgg16")
    path = w.write_h5(tmp_path / "x.h5", layers)
    assert weights_convert(["keras", "vgg16", str(path), str(tmp_path / "out")]) == 2
    assert "and --backend tensorflow, or theano, if you know" in capsys.readouterr().err
    assert weights_convert(["keras", "vgg16", str(path), str(tmp_path / "out"), *flags]) == 0
    said = capsys.readouterr().out
    assert message in said if message else "changed" not in said


def two_arrays():
    rng = np.random.default_rng(2)

    def block(name, kernel):
        scales = {leaf: rng.uniform(0.5, 2, 8).astype(np.float32) for leaf in ("gamma", "moving_variance")}
        shifts = {leaf: 0.1 * rng.standard_normal(8, np.float32) for leaf in ("beta", "moving_mean")}
        return {f"{name}_conv": {"kernel": rng.standard_normal(kernel, np.float32)}, f"{name}_bn": scales | shifts}

    return block("one", (4, 4, 3, 8)) | block("two", (3, 3, 8, 8))


@pytest.mark.parity
def test_a_reference_is_given_the_arrays_as_they_were_read_and_would_fail_without(tmp_path, monkeypatch):
    """Keras 3 loads Theano's kernels as they are: that is no reference for such a file."""
    monkeypatch.setitem(BACKBONES, "two", dataclasses.replace(TWO, mapping="support.keras_two"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    path = w.write_h5(tmp_path / "x.h5", w.turned(two_arrays()), root=foreign.THEANO)
    config = ParityConfig("keras", str(path), image_size=32, steps=1, out=tmp_path)
    done = parity_run.run_parity("two", config)
    assert done.verdict == VERIFIED, render(done)
    said = " ".join(render(done).split())
    assert "for both sides: kernels turned by 180 degrees, since Theano has them so (its backend is theano)." in said
    monkeypatch.setattr(parity_run, "needs_rewriting", lambda weights: False)
    failed = parity_run.run_parity("two", config)
    assert (failed.verdict, failed.first_divergence) == (FAILED, "block/one")
