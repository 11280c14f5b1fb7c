"""Weight files that do not fit, that would run or unfold, that cannot be fetched; and references that are absent."""

import ast
import contextlib
import http.server
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

import kimiajax
import weights_convert
from faults.harness import Ended, ask, files_of, nothing_changes, refused
from kimiajax.cache import vouch_for
from kimiajax.files import sha256_file
from kimiajax.models import weights as weights_module
from kimiajax.models.backbone import BACKBONES
from kimiajax.models.weights import PUBLISHED, PublishedFile, load_weights
from weights_convert import keras as keras_tables
from weights_convert import torch as torch_tables
from weights_convert.__main__ import main as converter
from weights_convert.arrays import KERAS_MEMBER, LARGEST_HEADER
from weights_convert.parity import run as parity_run
from weights_convert.tables import DENSE_OUT_IN

BUG, PARITY_FAILED, PARITY_NOT_RUN = 1, 3, 4
MIB = 2**20


def features(scans, weights, out, *flags, network="vgg16", size=32):
    """The cheapest command that reads a file of weights: one block of tiny patches."""
    wanted = ("--image-size", size, "--conv", "plain", "--out", out)
    return ask("features", network, "--scans", scans, "--weights", weights, *wanted, *flags)


def block1(scans, weights, out, *flags, **options):
    return features(scans, weights, out, "--tap", "block1", *flags, **options)


def parity(scans, weights, out):
    flags = ("--image-size", 32, "--steps", 1, "--out", out)
    return ask("parity", "vgg16", "--reference", "keras", "--weights", weights, "--scans", scans, *flags)


def convert(*arguments):
    """`python -m weights_convert ARGUMENTS`, whose line begins with its own name."""
    shown, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
        status = converter([str(argument) for argument in arguments])
    assert "kimiajax: " not in said.getvalue()
    return Ended(status, re.sub("^weights_convert: ", "kimiajax: ", said.getvalue(), flags=re.M), shown.getvalue())


def refused_whole(scans, folder, weights, *words, command=block1, **options):
    """Asserts that weights are refused with the file's name and that nothing is left of the attempt."""
    with nothing_changes(folder):
        return refused(command(scans, weights, folder / "out", **options), weights, *words)


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    """So that what a command leaves there is seen, and what leaves it upwards too."""
    folder = tmp_path / "of" / "temporary" / "files"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# Files of weights


def array(name, shape, rng):
    """Random throughout, and He-scaled where a layer computes with it."""
    if name == "kernel":
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)


def keras_arrays(network, draw=array):
    """All arrays of a network without top, by the names that Keras' files have."""
    backbone, rng = BACKBONES[network], np.random.default_rng(0)
    shapes, arrays = backbone.shapes(backbone.smallest, backbone.trunk), {}
    for name, ((kind, block, *rest), _) in keras_tables.TABLES[network][0].items():
        node = shapes[kind].get(block)
        for key in rest if node else ():
            node = node[key]
        if node:
            arrays[name.replace("#", "_")] = draw(name.split("/")[1], node.shape, rng)
    return arrays


def keras_file(path, arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[f"{name.split('/')[0]}/{name}"] = values
    return path


@pytest.fixture(scope="module")
def arrays():
    return keras_arrays("vgg16")


@pytest.fixture(scope="module")
def vgg16(arrays, tmp_path_factory):
    """VGG16 without top as Keras lays it out."""
    return keras_file(tmp_path_factory.mktemp("keras") / "vgg16.h5", arrays)


@pytest.fixture(scope="module")
def torch_arrays(arrays):
    """The same as torchvision names and lays it out."""
    to_keras = {to: name for name, (to, _) in keras_tables.VGG16_TABLE.items()}
    named = {name: to_keras[to] for name, (to, _) in torch_tables.TORCHVISION_VGG16.items()}
    return {
        name: np.ascontiguousarray(values.transpose(3, 2, 0, 1) if values.ndim == 4 else values)
        for name, given in named.items()
        if (values := arrays.get(given)) is not None
    }


@pytest.fixture
def changed(vgg16, tmp_path):
    """A copy of that file with a change to it."""

    def copy(change):
        path = tmp_path / "changed.h5"
        shutil.copyfile(vgg16, path)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return copy


def place(name):
    return f"{name.split('/')[0]}/{name}"


def put(name, values, **options):
    """A change of a file: other values of an array, or one more."""

    def change(file):
        if place(name) in file:
            del file[place(name)]
        file.create_dataset(place(name), data=values, **options)

    return change


def drop(name):
    return lambda file: file.__delitem__(place(name))


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


# Misfits

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
        put("block1_conv2/bias", ones(64, dtype=np.float16)),
        ["type: block1_conv2/bias is float16, must be float32"],
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
    refused_whole(scans, tmp_path, file, "weights of no network known here (dense_of_mine/kernel, ...)")
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
    given = ("--vgg16-weights", tmp_path / "torch.safetensors", "--inception-v3-weights", tmp_path / "keras.h5")
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
        "table": lambda: ask(*table, "--rows", "tl_vgg16", "--vgg16-weights", file, "--fresh"),
        "weights_convert": lambda: convert("keras", "vgg16", file, tmp_path / "checkpoint"),
        "parity": lambda: parity(scans, file, out),
    }
    with nothing_changes(tmp_path):
        refused(asked[command](), file, "missing: block3_conv1/bias", "give vgg16's file as its framework saved it")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


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


# Mistakes that no shape shows, and code in an archive, both under the eyes of Keras


by_keras = pytest.mark.xdist_group("weights by Keras")  # its run, a minute or more, is for all of these


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
@by_keras
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
        table = keras_tables.VGG16_TABLE
        entries = [table[name] for name in reversed(names)]
        for name, (to, own) in zip(names, entries):
            monkeypatch.setitem(table, name, (to, layout or own))

    return mistake


MISTAKES = {
    "a square dense kernel transposed": (misread("fc2/kernel", layout=DENSE_OUT_IN), "block/fc2"),
    "two kernels of one shape exchanged": (misread("block5_conv2/kernel", "block5_conv3/kernel"), "block/block5"),
}


@pytest.mark.fault("misfits")
@by_keras
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
@by_keras
def test_dense_kernels_of_another_image_size_are_refused_with_the_size_that_fits(scans, tmp_path, judged):
    archive, *_ = judged
    refused_whole(scans, tmp_path, archive, "fc1 takes 512 values", "--image-size 32", command=features, size=64)


# Pickles, and whatever else would run


class Trap:
    """Whoever unpickles it leaves a folder behind."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def trap(tmp_path):
    return Trap(tmp_path / "sprung")


@pytest.fixture
def unpickling_fails(monkeypatch):
    """Any unpickling fails the test, NumPy's too."""

    def forbidden(*arguments, **options):
        pytest.fail("something is unpickled")

    @contextlib.contextmanager
    def forbid():
        with monkeypatch.context() as patched:
            for name in ("load", "loads", "Unpickler", "_Unpickler"):
                patched.setattr(pickle, name, forbidden)
            yield

    return forbid


def objects(trap):
    return np.array([trap], dtype=object)


def write_torch_zip(path, trap):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(trap))


def read_torch_zip(path):
    with zipfile.ZipFile(path) as archive:
        pickle.loads(archive.read("archive/data.pkl"))


def write_npz(path, trap):
    with path.open("wb") as file:
        np.savez(file, **{"block1_conv1/kernel": objects(trap)})


def write_npy(path, trap):
    with path.open("wb") as file:
        np.save(file, objects(trap))


def read_npz(path):
    with np.load(path, allow_pickle=True) as arrays:
        arrays["block1_conv1/kernel"]


def write_pickle(path, trap):
    path.write_bytes(pickle.dumps(trap, protocol=2))


def read_pickle(path):
    pickle.loads(path.read_bytes())


NEVER = "a pickle, which can run any program and is never loaded"
PICKLES = {
    "a pickle": ("vgg16.pth", write_pickle, read_pickle, NEVER),
    "a pickle named as HDF5": ("vgg16.h5", write_pickle, read_pickle, NEVER),
    "a pickle named as safetensors": ("vgg16.safetensors", write_pickle, read_pickle, NEVER),
    "an old pickle": (
        "vgg16.pkl",
        lambda path, trap: path.write_bytes(pickle.dumps(trap, protocol=0)),
        read_pickle,
        "not a .h5, .keras or .safetensors file",
    ),
    "a zip of torch's": ("vgg16.pt", write_torch_zip, read_torch_zip, NEVER),
    "objects in .npz": ("vgg16.npz", write_npz, read_npz, "a zip archive that Keras did not save"),
    "objects in .npy": (
        "vgg16.npy",
        write_npy,
        lambda path: np.load(path, allow_pickle=True),
        "not a .h5, .keras or .safetensors file",
    ),
}


@pytest.mark.fault("pickles")
@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_in_place_of_weights_is_never_loaded(scans, tmp_path, trap, unpickling_fails, kind):
    name, write, read, word = PICKLES[kind]
    write(tmp_path / name, trap)
    with unpickling_fails():
        refused_whole(scans, tmp_path, tmp_path / name, word)
        with nothing_changes(tmp_path):
            refused(convert("torch", "vgg16", tmp_path / name, tmp_path / "out"), name, word)
    assert not trap.folder.exists()
    read(tmp_path / name)
    assert trap.folder.exists(), "whoever loads it leaves a folder behind"


@pytest.mark.fault("pickles")
@pytest.mark.parametrize("write", [write_npy, write_npz, write_pickle], ids=["objects", "an archive", "a pickle"])
def test_a_pickle_in_the_cache_is_never_loaded_and_what_it_stood_for_is_computed_again(
    scans, tmp_path, trap, unpickling_fails, write
):
    cache, weights = tmp_path / "cache", load_weights("cnn", "random", image_size=32)
    weights.save(tmp_path / "cnn")

    def run(out):
        return features(scans, tmp_path / "cnn", tmp_path / out, "--cache", cache, network="cnn")

    assert run("before").status == 0
    kept = [*cache.glob("features/*/*.npy"), *cache.glob("pixels/*/*.npy")]
    assert len(kept) == 4, "of training and test patches each: their pixels and their features"
    for path in kept:
        write(path, trap)
        vouch_for(path.parent)  # by whoever put it there
    with unpickling_fails():
        ended = run("after")
    assert ended.status == 0, ended
    assert not trap.folder.exists()
    assert "computed again" in ended.said or "reading train patches" in ended.said
    np.testing.assert_array_equal(*(np.load(tmp_path / name / "features.npy") for name in ("before", "after")))
    assert all(np.load(path).dtype in (np.uint8, np.float32) for path in kept)


@pytest.mark.fault("pickles")
def test_objects_in_a_survey_that_was_kept_are_never_loaded(scans, tmp_path, trap, unpickling_fails):
    def run(out):
        return ask("data", "export", "--scans", scans, "--out", tmp_path / out, "--cache", tmp_path / "cache")

    assert run("before").status == 0
    (survey,) = (tmp_path / "cache").glob("surveys/*.npz")
    with np.load(survey) as arrays:
        names = arrays.files
    with survey.open("wb") as file:
        np.savez(file, **dict.fromkeys(names, objects(trap)))
    for path in (tmp_path / "cache").glob("manifests/*"):
        path.unlink()
    with unpickling_fails():
        assert run("after").status == 0
    assert not trap.folder.exists()
    assert files_of(tmp_path / "before") == files_of(tmp_path / "after")


@pytest.mark.fault("pickles")
def test_pickles_in_the_place_of_what_a_row_learnt_are_never_loaded(scans, tmp_path, trap, unpickling_fails):
    run = ("table", "quick", "--scans", scans, "--rows", "floor_mean_sd", "--image-size", 32, "--out", tmp_path / "run")
    assert ask(*run).status == 0
    learnt = tmp_path / "run" / "checkpoints" / "floor_mean_sd"
    for path in learnt.rglob("*"):
        if path.is_file():
            write_pickle(path, trap)
    with unpickling_fails():
        with nothing_changes(tmp_path):
            ended = ask("predict", tmp_path / "run" / "floor_mean_sd", scans)
            refused(ended, learnt, "the same `kimiajax table` computes it again")
        ended = ask(*run)
    assert ended.status == 0, ended
    assert "floor_mean_sd is computed again" in ended.said
    assert not trap.folder.exists()
    assert ask("predict", tmp_path / "run" / "floor_mean_sd", scans).status == 0


# Files out of all proportion, or damaged

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def safetensors(path, header, body=b"", claimed=None):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content) if claimed is None else claimed) + content + body)
    return path


def crowded(path):
    entry = b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return safetensors(path, b"{" + b",".join(entry % number for number in range(400_000)) + b"}")


def bomb(path, member=KERAS_MEMBER):
    """400 MiB of zeros in 400 kB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(member, "w") as file:
            for _ in range(400):
                file.write(bytes(MIB))
        if member != KERAS_MEMBER:
            archive.writestr(KERAS_MEMBER, b"none", zipfile.ZIP_STORED)
    return path


def crowded_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in (KERAS_MEMBER, *map(str, range(30_000))):
            archive.writestr(name, b"")
    return path


def hidden_crowd(path):
    """The same, with its list where an archive of more than 4 GiB has it, and none where others have it."""
    content = crowded_archive(path).read_bytes()
    end = content.rindex(b"PK\x05\x06")
    size, start = struct.unpack("<2I", content[end + 12 : end + 20])
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 30_001, 30_001, size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    path.write_bytes(content[:end] + record + locator + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 0, 0, 0))
    return path


def claiming(path):
    """A file of a few kilobytes that claims arrays of 4 GiB, all of them zeros."""
    with h5py.File(path, "w") as file:
        for name in ("kernel", "bias"):
            file.create_dataset(place(f"block1_conv1/{name}"), (2**30,), np.float32)
    return path


HUGE = {
    "a header of 100 MB and a byte": (
        lambda path: safetensors(path, b'{"a":', claimed=100_000_001),
        "a header of 100,000,001 bytes",
    ),
    "a header of a tebibyte": (
        lambda path: safetensors(path, b'{"a":', claimed=2**40),
        "a header of 1,099,511,627,776",
    ),
    "a header of 400,000 arrays": (crowded, "not a whole safetensors file (a header of "),
    "an array of four tebibytes": (
        lambda path: safetensors(path, {"a": {**ONE, "shape": [2**40]}}, bytes(4)),
        "not a whole safetensors file",
    ),
    "a zip bomb": (bomb, "its arrays are compressed or encrypted"),
    "a zip bomb beside the arrays": (lambda path: bomb(path, "config.json"), f"{KERAS_MEMBER}: not an HDF5 file"),
    "an archive of 30,001 members": (crowded_archive, "an archive of too many members"),
    "an archive that hides how many": (hidden_crowd, "an archive of too many members"),
    "arrays that were never written": (claiming, "was never written"),
}
MEASURE = """
import json, resource, sys
from faults.harness import ask
resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 2**20, 100 * 2**20))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
command = json.loads(sys.argv[1])
ended = {}
for path in [command[0], *command]:
    start = peak()
    given = ["--weights", path, "--scans", "scans.h5", "--image-size", "32", "--out", "out"]
    ended[path] = (*ask("features", "vgg16", *given), peak() - start)
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What is said of each of these files, and by how many MiB memory grew, in a process that may write 100 MiB."""
    folder = tmp_path_factory.mktemp("huge")
    for number, (write, _) in enumerate(HUGE.values()):
        write(folder / f"{number}.keras")
    names = [f"{number}.keras" for number in range(len(HUGE))]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(folder)}
    command = [sys.executable, "-c", MEASURE, json.dumps(names)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done
    assert sorted(path.name for path in folder.iterdir()) == sorted(names), "nothing is left of them"
    ended = json.loads(done.stdout.splitlines()[-1])
    return {each: ended[name] for each, name in zip(HUGE, names)}


@pytest.mark.fault("pickles")
@pytest.mark.xdist_group("weights out of proportion")
@pytest.mark.parametrize("name", HUGE)
def test_what_is_out_of_all_proportion_is_refused_in_little_memory(measured, name):
    *ended, grown = measured[name]
    refused(Ended(*ended), ".keras", HUGE[name][1])
    assert grown < 300


@pytest.mark.fault("pickles")
def test_the_largest_header_that_a_network_has_is_far_from_the_bound(tmp_path):
    """timm's Inception-v3 with its auxiliary classifier and counters has some 600 arrays."""
    names = [*torch_tables.INCEPTION_V3_TABLE, *(f"AuxLogits.{n}.num_batches_tracked" for n in range(120))]
    save_file(dict.fromkeys(names, ones(1)), tmp_path / "x.safetensors")
    (size,) = struct.unpack("<Q", (tmp_path / "x.safetensors").read_bytes()[:8])
    assert 8 * size < LARGEST_HEADER


DAMAGED = {
    "a header that is not JSON": b'{"a": nonsense}',
    "a header without end": b'{"a":' + b"[" * 100_000,
    "offsets outside": {"a": {**ONE, "data_offsets": [0, 2**50]}},
    "offsets that leave a gap": {"a": {**ONE, "data_offsets": [2, 6]}},
    "a shape below zero": {"a": {**ONE, "shape": [-1]}},
    "a type that nobody knows": {"a": {**ONE, "dtype": "Q8"}},
}


@pytest.mark.fault("pickles")
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_refused(scans, tmp_path, name):
    file = safetensors(tmp_path / "x.safetensors", DAMAGED[name], bytes(6))
    refused_whole(scans, tmp_path, file, "not a whole safetensors file", "fetch or save it again")


VALUES = {
    "NaN": (put("block1_conv1/kernel", np.full((3, 3, 3, 64), np.nan, np.float32)), "holds NaN or infinity"),
    "infinity": (put("block1_conv1/bias", np.full(64, -np.inf, np.float32)), "holds NaN or infinity"),
    "a kernel of zeros": (put("block1_conv1/kernel", np.zeros((3, 3, 3, 64), np.float32)), "is 0 throughout"),
    "compressed arrays": (
        put("block1_conv1/kernel", ones(3, 3, 3, 64), compression="gzip"),
        "was never written, or is compressed",
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


def in_another_file(file):
    outside = Path(file.filename).with_name("outside")
    outside.write_bytes(ones(64).tobytes())
    del file[place("block1_conv1/bias")]
    file.create_dataset(place("block1_conv1/bias"), (64,), np.float32, external=[(str(outside), 0, 256)])


def linked(file):
    with h5py.File(Path(file.filename).with_name("outside"), "w") as outside:
        outside["bias"] = ones(64)
    file["model_weights"] = h5py.ExternalLink("outside", "/")


@pytest.mark.fault("pickles")
@pytest.mark.parametrize(
    ("change", "word"), [(in_another_file, "lies in another file"), (linked, "'model_weights' is a link")]
)
def test_a_file_that_reads_another_one_is_refused(scans, tmp_path, changed, change, word):
    """Its digest would say nothing of what is read."""
    refused_whole(scans, tmp_path, changed(change), word, "give a file that Keras saved")


# Archives


@pytest.fixture
def archive(vgg16, tmp_path):
    """Writes an archive as Keras does, with members of other names before its arrays."""

    def write(*others, arrays=vgg16):
        with zipfile.ZipFile(tmp_path / "x.keras", "w") as file:
            for name in ("metadata.json", "config.json", *others):
                file.writestr(name, b"{}")
            file.write(arrays, KERAS_MEMBER)
        return tmp_path / "x.keras"

    return write


@pytest.mark.fault("pickles")
def test_of_an_archive_the_arrays_alone_are_unpacked_whatever_the_others_are_named(
    scans, tmp_path, monkeypatch, archive
):
    read, opened = zipfile.ZipFile.open, []

    def spied(self, name, *rest, **options):
        if self.filename == str(file):
            opened.append(getattr(name, "filename", name))
        return read(self, name, *rest, **options)

    file = archive("../../evil", str(tmp_path / "evil"), "..\\evil", "assets/../../../evil")
    monkeypatch.setattr(zipfile.ZipFile, "open", spied)
    before = files_of(tmp_path)
    ended = block1(scans, file, tmp_path / "out")
    assert ended.status == 0, ended
    assert opened == [KERAS_MEMBER]
    assert {name for name in files_of(tmp_path) if not name.startswith("out/")} == set(before)
    assert not list(tmp_path.rglob("*evil*"))


def cut(content):
    return content[: len(content) // 2]


def before_the_first_byte(content):
    """Its members are said to lie there."""
    end = content.rindex(b"PK\x05\x06")
    return content[: end + 16] + struct.pack("<I", 2**30) + content[end + 20 :]


def of_a_newer_version(content):
    place = content.rindex(b"PK\x01\x02")
    return content[: place + 6] + struct.pack("<H", 990) + content[place + 8 :]


def turned(content):
    place = content.index(b"HDF\r\n\x1a\n") + 3000
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.fault("pickles")
@pytest.mark.parametrize("damage", [cut, before_the_first_byte, of_a_newer_version, turned])
def test_a_damaged_archive_is_refused(scans, tmp_path, archive, damage):
    small = keras_file(tmp_path / "small.h5", {"block1_conv1/kernel": ones(3, 3, 3, 64)})
    file = archive(arrays=small)
    file.write_bytes(damage(file.read_bytes()))
    refused_whole(scans, tmp_path, file, "a damaged archive", "fetch or save it again")


@pytest.mark.fault("pickles")
def test_an_archive_behind_an_hdf5_file_does_not_take_its_place(scans, tmp_path, changed):
    """zipfile looks for an archive at a file's end."""
    file = changed(drop("block3_conv1/bias"))
    hidden = io.BytesIO()
    with zipfile.ZipFile(hidden, "w") as members:
        members.writestr("config.json", "{}")
    with file.open("ab") as stream:
        stream.write(hidden.getvalue())
    assert zipfile.is_zipfile(file)
    refused_whole(scans, tmp_path, file, "missing: block3_conv1/bias")


@pytest.mark.fault("disks")
def test_a_disk_that_is_full_while_an_archive_is_unpacked_is_named(scans, tmp_path, monkeypatch, archive):
    def full(*_):
        raise OSError(28, "No space left on device")

    file = archive()
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with nothing_changes(tmp_path):
        refused(block1(scans, file, tmp_path / "out"), tempfile.gettempdir(), "No space left on device", "space")


# Downloads


@pytest.mark.fault("downloads")
@pytest.mark.parametrize("file", PUBLISHED.values(), ids=lambda file: file.name)
def test_what_is_fetched_comes_by_https_and_has_a_digest(file):
    assert file.url.startswith("https://")
    algorithm, digest = file.checksum.split(":")
    assert re.fullmatch({"md5": "[0-9a-f]{32}", "sha256": "[0-9a-f]{64}"}[algorithm], digest)
    assert file.size > MIB


def sources():
    for package in (kimiajax, weights_convert):
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            yield path, ast.parse(path.read_text())


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


HARMLESS = {"pooch.os_cache", "pooch.file_hash", "pooch.get_logger", "pooch.HTTPDownloader"}
FETCHERS = {"urlopen", "urlretrieve", "HTTPConnection", "HTTPSConnection", "download_and_extract", "create_connection"}
CLIENTS = {"urllib", "requests", "http", "ftplib", "aiohttp", "httpx", "urllib3", "huggingface_hub"}


@pytest.mark.fault("downloads")
def test_no_other_line_of_the_source_fetches_anything():
    fetched, addresses = [], []
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
                assert not CLIENTS & {module.split(".")[0] for module in modules}, path
                assert isinstance(node, ast.Import) or node.module != "pooch", "it is called by its full name"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                addresses += re.findall(r"\b(?:http|ftp)://\S+", node.value)
        for name, call in calls(tree):
            assert name.rsplit(".", 1)[-1] not in FETCHERS, (path, ast.unparse(call))
            if re.fullmatch(r"pooch\.\w+", name) and name not in HARMLESS:
                fetched.append((path.name, name, *map(ast.unparse, call.args[:2])))
    assert fetched == [("weights.py", "pooch.retrieve", "file.url", "file.checksum")]
    assert addresses == [], "none goes without encryption"


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.answer(self)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch, vgg16):
    """Gives VGG16's file from this machine, which nothing leaves; returns what sets how it answers."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    url = f"http://127.0.0.1:{server.server_port}/vgg16_notop.h5"
    file = PublishedFile(url, vgg16.stat().st_size, f"sha256:{sha256_file(vgg16)}")
    monkeypatch.setitem(weights_module.PUBLISHED, ("vgg16", False), file)
    monkeypatch.setenv("NO_PROXY", "*")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def answers(answer):
        server.answer = answer
        return file

    yield answers
    server.shutdown()
    server.server_close()
    thread.join()


def gives(content, status=200, claimed=None, **headers):
    """An answer of the server's."""

    def answer(request):
        request.send_response(status)
        for name, value in {"Content-Length": len(content) if claimed is None else claimed, **headers}.items():
            request.send_header(name, str(value))
        request.end_headers()
        request.wfile.write(content)

    return answer


def hangs_up(request):
    request.connection.close()


def fetch(scans, cache, out):
    return block1(scans, "imagenet", out, "--cache", cache)


ANSWERS = {
    "another file": (gives(b"\x89HDF\r\n\x1a\n" + bytes(1000)), "its checksum is wrong"),
    "a web page": (gives(b"<!DOCTYPE html><html>sign in</html>"), "its checksum is wrong"),
    "nothing": (gives(b""), "its checksum is wrong"),
    "a part of it": (gives(bytes(1000), claimed=10**6), "the server cannot be reached"),
    "no such page": (gives(b"", status=404), "the server answers 404"),
    "no answer": (hangs_up, "the server cannot be reached"),
    "another address": (gives(b"", status=302, Location="http://127.0.0.1:9/"), "the server cannot be reached"),
}


@pytest.mark.fault("downloads")
@pytest.mark.parametrize("name", ANSWERS)
def test_another_answer_than_the_file_is_refused_with_the_digest_and_the_place(scans, tmp_path, site, name):
    answer, word = ANSWERS[name]
    file = site(answer)
    where = tmp_path / "cache" / "downloads" / file.name
    for _ in range(2):  # nor does a second attempt take what the first one left
        line = refused(fetch(scans, tmp_path / "cache", tmp_path / "out"), file.url, word, where, "SHA256")
        assert file.checksum.removeprefix("sha256:") in line
        assert f"{file.size:,} bytes" in line
        assert files_of(tmp_path) == {}


@pytest.mark.fault("downloads")
def test_an_interrupted_download_leaves_nothing_that_is_taken_for_the_file(scans, tmp_path, monkeypatch, site):
    file = site(gives(bytes(1000)))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pooch.core.hash_matches", interrupted)
    assert fetch(scans, tmp_path / "cache", tmp_path / "out").status == 130
    assert not (tmp_path / "cache" / "downloads" / file.name).exists()
    assert not (tmp_path / "cache" / "weights").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("downloads")
@pytest.mark.parametrize("earlier", ["truncated", "other bytes"])
def test_what_lies_where_the_file_belongs_is_fetched_again_unless_it_is_the_file(scans, tmp_path, vgg16, site, earlier):
    whole = vgg16.read_bytes()
    file, downloads = site(hangs_up), tmp_path / "cache" / "downloads"
    downloads.mkdir(parents=True)
    left = whole[: len(whole) // 2] if earlier == "truncated" else whole[:-1] + bytes([whole[-1] ^ 1])
    (downloads / file.name).write_bytes(left)
    with nothing_changes(tmp_path):
        ended = fetch(scans, tmp_path / "cache", tmp_path / "out")
        refused(ended, file.url, "the server cannot be reached", downloads / file.name)
    site(gives(whole))
    ended = fetch(scans, tmp_path / "cache", tmp_path / "out")
    assert ended.status == 0, ended
    lineage = json.loads((tmp_path / "out" / "features.json").read_text())["weights"]
    assert (lineage["published"], f"sha256:{lineage['source_sha256']}") == (file.name, file.checksum)
    assert sha256_file(downloads / file.name) == sha256_file(vgg16)


@pytest.mark.fault("downloads")
def test_a_converted_copy_that_is_damaged_is_refused_until_it_is_removed(scans, tmp_path, vgg16, site):
    site(gives(vgg16.read_bytes()))
    assert fetch(scans, tmp_path / "cache", tmp_path / "before").status == 0
    (copy,) = (tmp_path / "cache" / "weights").iterdir()
    flip(largest(copy))
    with nothing_changes(tmp_path):
        refused(fetch(scans, tmp_path / "cache", tmp_path / "out"), copy, "remove that folder and convert again")
    shutil.rmtree(copy)
    site(hangs_up)
    assert fetch(scans, tmp_path / "cache", tmp_path / "out").status == 0, "the download itself was kept"


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
