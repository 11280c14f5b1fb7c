"""Arrays that do not fit, values that no network has, and checkpoints that are not what was written."""

import errno
import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from faults.harness import ask, files_of, nothing_changes, refused
from faults.weights.planting import (
    ONE,
    convert,
    drop,
    features,
    flip,
    keras_arrays,
    keras_file,
    largest,
    ones,
    parity,
    place,
    refused_whole,
    safetensors,
)
from kimiajax.models import checkpoint as weights_module
from kimiajax.weights.load import load_weights
from weights_convert.mappings import vgg16


@pytest.fixture(scope="module")
def torch_arrays(arrays):
    """The same as torchvision names and lays it out."""
    to_keras = {to: name for name, (to, _) in vgg16.KERAS.items()}
    named = {name: to_keras[to] for name, (to, _) in vgg16.TORCHVISION.items()}
    return {
        name: np.ascontiguousarray(values.transpose(3, 2, 0, 1) if values.ndim == 4 else values)
        for name, given in named.items()
        if (values := arrays.get(given)) is not None
    }


def put(name, values, **options):
    """A change of a file: other values of an array, or one more."""

    def change(file):
        if place(name) in file:
            del file[place(name)]
        file.create_dataset(place(name), data=values, **options)

    return change


def unwritten(name, shape, **options):
    """A change of a file: an array of this shape that holds nothing."""

    def change(file):
        del file[place(name)]
        file.create_dataset(place(name), shape, np.float32, **options)

    return change


MISFITS = {
    "an array of another shape": (
        put("block2_conv1/bias", ones(127)),
        ["shape: block2_conv1/bias is (127,), must be (128,)"],
    ),
    "a kernel in torch's order": (
        put("block1_conv1/kernel", ones(64, 3, 3, 3)),
        ["shape: block1_conv1/kernel is (64, 3, 3, 3), must be (3, 3, 3, 64)"],
    ),
    "an array missing": (drop("block3_conv1/bias"), ["missing: block3_conv1/bias"]),
    "an array too many": (put("block6_conv1/kernel", ones(1, 1, 2, 3)), ["extra: block6_conv1/kernel (1, 1, 2, 3)"]),
    "an array of another type": (
        put("block1_conv2/bias", ones(64, dtype=np.int32)),
        ["type: block1_conv2/bias is int32, must be float32"],
    ),
}


@pytest.mark.fault("misfits")
@pytest.mark.parametrize("name", MISFITS)
def test_an_array_that_does_not_fit_is_named_with_what_fits(scans, tmp_path, changed, name):
    change, words = MISFITS[name]
    line = refused_whole(scans, tmp_path, changed(change), *words, "an array is not that of vgg16")
    assert "give vgg16's file as its framework saved it" in line


@pytest.mark.fault("misfits")
def test_all_that_does_not_fit_is_listed_in_the_one_line(scans, tmp_path, changed):
    def change(file):
        for each, _ in MISFITS.values():
            each(file)

    words = [word for _, words in MISFITS.values() for word in words]
    refused_whole(scans, tmp_path, changed(change), "5 arrays are not those of vgg16", *words)


@pytest.mark.fault("misfits")
def test_a_file_in_torchs_order_under_keras_names_is_refused_kernel_by_kernel(scans, tmp_path, arrays):
    turned = {
        name: np.moveaxis(values, (3, 2), (0, 1)) if values.ndim == 4 else values for name, values in arrays.items()
    }
    kernels = [f"shape: {name} is {turned[name].shape}" for name in arrays if name.endswith("/kernel")]
    assert len(kernels) == 13
    refused_whole(scans, tmp_path, keras_file(tmp_path / "turned.h5", turned), "13 arrays are not those", *kernels)


TORCH_MISFITS = {
    "a kernel in Keras' order": ({"features.0.weight": ones(3, 3, 3, 64)}, "shape: features.0.weight is (3, 3, 3, 64)"),
    "an array missing": ({"features.5.bias": None}, "missing: features.5.bias"),
    "an array too many": ({"features.30.bias": ones(4)}, "extra: features.30.bias (4,)"),
}


@pytest.mark.fault("misfits")
@pytest.mark.parametrize("name", TORCH_MISFITS)
def test_an_array_of_torchs_that_does_not_fit_is_named_with_what_fits(scans, tmp_path, torch_arrays, name):
    changes, word = TORCH_MISFITS[name]
    given = {name: values for name, values in {**torch_arrays, **changes}.items() if values is not None}
    save_file(given, tmp_path / "x.safetensors")
    refused_whole(scans, tmp_path, tmp_path / "x.safetensors", word, "an array is not that of vgg16")


@pytest.mark.fault("misfits")
def test_another_networks_file_is_named_as_what_it_is(scans, tmp_path, vgg16, torch_arrays):
    save_file(torch_arrays, tmp_path / "x.safetensors")
    load_weights("cnn", "random", image_size=32).save(tmp_path / "cnn")
    needed = "holds vgg16 weights", "inception_v3 ones are needed"
    for file in (vgg16, tmp_path / "x.safetensors"):
        refused_whole(scans, tmp_path, file, *needed, command=features, network="inception_v3", size=75)
    refused_whole(scans, tmp_path, tmp_path / "cnn", "holds cnn weights", "vgg16 ones are needed")


@pytest.mark.fault("misfits")
def test_a_file_of_no_network_known_here_is_named_with_what_it_holds(scans, tmp_path):
    file = keras_file(tmp_path / "x.h5", {"dense_of_mine/kernel": ones(3, 3)})
    refused_whole(scans, tmp_path, file, "weights of no network known here (dense_of_mine/")
    save_file({}, tmp_path / "x.safetensors")
    refused_whole(scans, tmp_path, tmp_path / "x.safetensors", "holds no weights", "give a file of vgg16")


@pytest.mark.fault("misfits")
def test_a_name_of_several_lines_stays_in_one(scans, tmp_path):
    file = keras_file(tmp_path / "x.h5", {"block1_conv1/kernel": ones(3), "a\nkimiajax: b/kernel": ones(3)})
    refused_whole(scans, tmp_path, file, r"'a\nkimiajax: b'", "give a file that Keras saved")
    save_file({"a\nkimiajax: b": ones(3)}, tmp_path / "x.safetensors")
    refused_whole(scans, tmp_path, tmp_path / "x.safetensors", r"'a\nkimiajax: b'", "fetch or save the file again")
    safetensors(tmp_path / "x.safetensors", {"a\nkimiajax: b": {**ONE, "data_offsets": [4, 8]}}, bytes(8))
    refused_whole(scans, tmp_path, tmp_path / "x.safetensors", r"a\nkimiajax: b", "fetch or save it again")


@pytest.mark.fault("misfits")
def test_a_file_of_the_other_framework_is_refused_where_one_is_named(scans, tmp_path, vgg16, torch_arrays):
    save_file(torch_arrays, tmp_path / "x.safetensors")
    with nothing_changes(tmp_path):
        ended = convert("torch", "vgg16", vgg16, tmp_path / "out")
        refused(ended, vgg16, "a file of keras, not of torch", "name keras in its place")
        ended = convert("keras", "vgg16", tmp_path / "x.safetensors", tmp_path / "out")
        refused(ended, "x.safetensors", "a file of torch, not of keras", "name torch in its place")
    out = tmp_path / "parity"
    refused(parity(scans, tmp_path / "x.safetensors", out), "x.safetensors", "a file of torch, not of keras")
    assert not (out / "parity.json").exists()


@pytest.mark.fault("misfits")
def test_a_file_without_top_does_not_serve_where_the_top_is_read(scans, tmp_path, vgg16):
    refused_whole(scans, tmp_path, vgg16, "holds no fc1, fc2 of vgg16", "give the file with top", command=features)


@pytest.mark.fault("misfits")
def test_networks_that_two_frameworks_trained_are_no_table_unless_that_is_asked_for(scans, tmp_path, torch_arrays):
    save_file(torch_arrays, tmp_path / "torch.safetensors")
    keras_file(tmp_path / "keras.h5", keras_arrays("inception_v3", lambda name, shape, rng: ones(*shape)))
    given = ("--weights", f"vgg16={tmp_path / 'torch.safetensors'}", f"inception_v3={tmp_path / 'keras.h5'}")
    rows = ("--rows", "tl_vgg16", "tl_inception_v3", "--image-size", 75, "--conv", "plain")
    ended = ask("table", "quick", "--scans", scans, *rows, *given, "--out", tmp_path / "out")
    refused(ended, "vgg16's weights come from torch", "inception_v3's weights come from keras", "--mixed-lineages")
    assert files_of(tmp_path / "out") == {}


@pytest.mark.fault("misfits")
def test_what_an_exported_file_says_of_its_arrays_must_be_so(scans, tmp_path, changed):
    lineage = {"format": 1, "network": "vgg16", "framework": "torch", "label_offset": 0, "expected_input": None}
    said = json.dumps({**lineage, "digest": "0" * 64})
    file = changed(lambda file: file.attrs.create("kimiajax_lineage", said))
    refused_whole(scans, tmp_path, file, "it was changed after its export", "remove the attribute 'kimiajax_lineage'")


@pytest.mark.fault("misfits")
@pytest.mark.parametrize("command", ["table", "weights_convert", "parity"])
def test_every_command_refuses_them_and_leaves_what_was_there(scans, tmp_path, changed, command):
    file, out = changed(drop("block3_conv1/bias")), tmp_path / "out"
    table = ("table", "quick", "--scans", scans, "--image-size", 32, "--conv", "plain", "--out", out)
    if command == "table":
        assert ask(*table, "--rows", "floor_mean_sd").status == 0
    else:
        out.mkdir()
        (out / "parity.json").write_text('{"verdict": "VERIFIED"}')
    asked = {
        "table": lambda: ask(*table, "--rows", "tl_vgg16", "--weights", f"vgg16={file}", "--fresh"),
        "weights_convert": lambda: convert("keras", "vgg16", file, tmp_path / "checkpoint"),
        "parity": lambda: parity(scans, file, out),
    }
    with nothing_changes(tmp_path):
        refused(asked[command](), file, "missing: block3_conv1/bias", "give vgg16's file as its framework saved it")


def claim(**changes):
    def change(checkpoint):
        path = checkpoint / "lineage.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


CHECKPOINTS = {
    "a bit of an array turned": (lambda checkpoint: flip(largest(checkpoint)), "its arrays are not those"),
    "a file of its arrays removed": (lambda checkpoint: (checkpoint / "arrays" / "_METADATA").unlink(), "damaged"),
    "its arrays removed": (lambda checkpoint: shutil.rmtree(checkpoint / "arrays"), "damaged"),
    "its lineage edited": (claim(framework="keras"), "lineage.json: was changed after it was written"),
    "its lineage of another version": (claim(format=0), "another version of this program"),
    "its lineage removed": (lambda checkpoint: (checkpoint / "lineage.json").unlink(), "not a converted checkpoint"),
    "its lineage without end": (
        lambda checkpoint: (checkpoint / "lineage.json").write_text("[" * 100_000),
        "not a converted checkpoint",
    ),
}


@pytest.mark.fault("misfits")
@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_a_checkpoint_that_is_not_what_was_written_is_refused(scans, tmp_path, damage):
    change, word = CHECKPOINTS[damage]
    whole, checkpoint = tmp_path / "whole", tmp_path / "checkpoint"
    load_weights("cnn", "random", image_size=32).save(whole)
    shutil.copytree(whole, checkpoint)
    assert features(scans, checkpoint, tmp_path / "earlier", network="cnn").status == 0
    change(checkpoint)
    line = refused_whole(scans, tmp_path, checkpoint, word, command=features, network="cnn")
    assert re.search("convert (the weights )?again|make one with", line)
    assert features(scans, whole, tmp_path / "again", network="cnn").status == 0
    np.testing.assert_array_equal(*(np.load(tmp_path / name / "features.npy") for name in ("earlier", "again")))


VALUES = {
    "NaN": (put("block1_conv1/kernel", np.full((3, 3, 3, 64), np.nan, np.float32)), "holds NaN or infinity"),
    "infinity": (put("block1_conv1/bias", np.full(64, -np.inf, np.float32)), "holds NaN or infinity"),
    "a kernel of zeros": (put("block1_conv1/kernel", np.zeros((3, 3, 3, 64), np.float32)), "is 0 throughout"),
    "compressed and never written": (
        unwritten("block1_conv1/kernel", (3, 3, 3, 64), compression="gzip"),
        "block1_conv1/kernel was never written, or only in part",
    ),
}


@pytest.mark.fault("pickles")
@pytest.mark.parametrize("name", VALUES)
def test_values_that_no_network_has_are_refused_with_the_array(scans, tmp_path, changed, name):
    change, word = VALUES[name]
    refused_whole(scans, tmp_path, changed(change), f"block1_conv1/{'bias' if name == 'infinity' else 'kernel'}", word)


@pytest.mark.fault("pickles")
def test_infinity_in_a_file_of_torchs_is_refused_with_the_array(scans, tmp_path, torch_arrays):
    save_file({**torch_arrays, "features.5.bias": np.full(128, np.inf, np.float32)}, tmp_path / "x.safetensors")
    refused_whole(scans, tmp_path, tmp_path / "x.safetensors", "values: features.5.bias holds NaN or infinity")


@pytest.mark.fault("misfits")
@pytest.mark.parametrize(
    "error", [MemoryError("1 GiB"), PermissionError(errno.EACCES, "no"), OSError(errno.EMFILE, "no")], ids=repr
)
def test_sound_weights_that_cannot_be_read_now_are_not_called_damaged(scans, tmp_path, monkeypatch, error):
    def fail(path):
        raise error

    load_weights("vgg16", "random", blocks=("block1",), image_size=32).save(tmp_path / "w")
    monkeypatch.setattr(weights_module, "load_tree", fail)
    refused_whole(scans, tmp_path, tmp_path / "w", "/arrays: cannot be read (", "; nothing of it was changed")
