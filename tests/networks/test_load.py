"""Converters and loading. Keras, on the JAX backend, writes the files and is the judge."""

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from support.networks import randomise

from kimiajax.errors import UserError
from kimiajax.io.pytrees import save_tree
from kimiajax.models.backbone import PublishedFile
from kimiajax.models.checkpoint import Weights, fine_tuned, load_converted
from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.weights.load import load_weights
from weights_convert.__main__ import main as weights_convert
from weights_convert.convert import convert


@pytest.mark.parity
@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("network", ["vgg16", "inception_v3"])
def test_a_converted_network_agrees_with_keras(saved, network, top):
    """To 1e-4 relative. With one pair of equal-shaped kernels exchanged it must not: the check can fail."""
    keras = saved(network, top)
    backbone = BACKBONES[network]
    blocks = backbone.blocks if top else [b for b in backbone.trunk if b != "pooled"]
    loaded = load_weights(backbone, keras.path, blocks=blocks, image_size=keras.size)
    run = jax.jit(lambda v, x: backbone.apply(v, x, blocks)[0])

    def error(variables):
        apart = run(variables, keras.images) - keras.outputs
        return np.linalg.norm(apart) / np.linalg.norm(keras.outputs)

    assert error(loaded.variables) < 1e-4

    one, other = {
        "vgg16": (("block4", "conv2"), ("block4", "conv3")),
        "inception_v3": (("mixed9", "branch2_conv2a", "conv"), ("mixed9", "branch3_conv3a", "conv")),
    }[network]
    exchanged = jax.tree.map(np.asarray, loaded.variables)
    first, second = (find(exchanged["params"], path) for path in (one, other))
    first["kernel"], second["kernel"] = second["kernel"], first["kernel"]
    assert error(exchanged) > 1e-3


OLD = "old_weights_tf_dim_ordering_tf_kernels.h5"  # as published; no attribute says what wrote it


def find(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def to_2017(source, target, network):
    """The published layout: groups at the root, names counted from 1, `:0` at the end, VGG16's `block1_conv1_W_1:0`."""

    def numbered(layer):
        return re.fullmatch(r"(conv2d|batch_normalization)_?(\d*)", layer)

    with h5py.File(source) as old, h5py.File(target, "w") as new:
        root = old["model_weights"]
        first = min((int(match[2] or 0) for layer in root if (match := numbered(layer))), default=0)
        for layer in root:
            match = numbered(layer)
            name = f"{match[1]}_{int(match[2] or 0) - first + 1}" if match else layer
            for leaf, array in root[layer].get(layer, {}).items():
                vgg16 = {"kernel": f"{name}/{name}_W_1:0", "bias": f"{name}/{name}_b_1:0"}
                new[vgg16[leaf] if network == "vgg16" else f"{name}/{name}/{leaf}:0"] = array[...]


@pytest.mark.parametrize("network", ["vgg16", "inception_v3"])
@pytest.mark.parametrize("layout", ["2017", ".weights.h5", ".keras"])
@pytest.mark.parametrize("top", [False, True])
def test_all_layouts_of_one_network_give_the_same_arrays(saved, tmp_path, network, layout, top):
    """Inception-v3 with top has layers from `conv2d_94` on, as the second of a process, and from `conv2d` on else."""
    folder, path = saved(network, top).folder, saved(network, top).path
    if layout == "2017":
        to_2017(path, tmp_path / OLD, network)
        other = tmp_path / OLD
        with h5py.File(other) as file:
            name = {"vgg16": "block1_conv1/block1_conv1_W_1:0", "inception_v3": "conv2d_94/conv2d_94/kernel:0"}[network]
            assert name in file
    else:
        other = folder / f"x{layout}"
    assert convert(network, other).lineage["digest"] == convert(network, path).lineage["digest"]


@pytest.mark.parity
@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("network", ["vgg16", "inception_v3"])
def test_an_exported_checkpoint_is_loaded_by_keras_with_equal_arrays(saved, tmp_path, network, top):
    """Keras file -> checkpoint -> Keras file -> Keras: bit for bit, in the order of Keras' own layers."""
    path = saved(network, top).path
    assert weights_convert(["keras", network, str(path), str(tmp_path / "checkpoint")]) == 0
    assert weights_convert(["export", str(tmp_path / "checkpoint"), str(tmp_path / "back.h5")]) == 0
    saved(network, top).assert_is_in(tmp_path / "back.h5")
    again = convert(network, tmp_path / "back.h5").lineage
    first = load_converted(tmp_path / "checkpoint").lineage
    assert again["digest"] == first["digest"]
    assert again["parent"] == first


@pytest.mark.parity
def test_a_fine_tuned_network_runs_in_keras(saved, rng, tmp_path):
    """Blocks, head and logits: what the table leaves as a checkpoint gives the same logits there."""
    import keras

    path = saved("inception_v3", False).path
    backbone = BACKBONES["inception_v3"]
    parent = load_weights("inception_v3", path, image_size=139)
    classifier = Classifier(backbone, backbone.up_to("pooled"), 3)
    head = randomise(classifier.init_head(jax.random.key(0), (2048,)), rng)
    variables = {**parent.variables, "params": {**parent.variables["params"], "head": head}}
    fine_tuned(parent, variables, ("head",), "a test").save(tmp_path / "row")
    assert weights_convert(["export", str(tmp_path / "row"), str(tmp_path / "row.h5")]) == 0

    base = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(139, 139, 3), pooling="avg")
    hidden = keras.layers.Dense(1024, "relu")(base.output)
    model = keras.Model(base.input, keras.layers.Dense(3)(hidden))
    model.load_weights(tmp_path / "row.h5")
    images = rng.random((2, 139, 139, 3), np.float32)
    logits, _ = jax.jit(classifier.apply)(variables, images)
    np.testing.assert_allclose(logits, model(images), rtol=1e-4, atol=1e-4)
    back = convert("inception_v3", tmp_path / "row.h5")
    jax.tree.map(np.testing.assert_array_equal, back.variables["params"]["head"], head)


def test_an_exported_file_that_was_changed_is_no_longer_what_its_lineage_says(saved, tmp_path):
    convert("vgg16", saved("vgg16", False).path).save(tmp_path / "out")
    assert weights_convert(["export", str(tmp_path / "out"), str(tmp_path / "x.h5")]) == 0
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["block1_conv1/block1_conv1/bias"][0] += 1
    with pytest.raises(UserError, match="it was changed after its export"):
        convert("vgg16", tmp_path / "x.h5")


def test_an_array_that_was_never_written_is_not_taken_for_zeros(saved, tmp_path):
    """HDF5 gives zeros for it, and a file of a few bytes may so claim any size."""

    def change(root):
        del root["block1_conv1/block1_conv1/kernel"]
        root.create_dataset("block1_conv1/block1_conv1/kernel", (3, 3, 3, 64), np.float32)

    with pytest.raises(UserError, match="block1_conv1/kernel was never written"):
        convert("vgg16", damaged(saved("vgg16", False).path, tmp_path, change))


def test_a_kernel_of_zeros_is_refused(saved, tmp_path):
    change = set_array("block1_conv1/block1_conv1/kernel", np.zeros((3, 3, 3, 64), np.float32))
    with pytest.raises(UserError, match="block1_conv1/kernel is 0 throughout"):
        convert("vgg16", damaged(saved("vgg16", False).path, tmp_path, change))


def test_damaged_structures_of_hdf5_are_named_and_not_a_traceback(saved, tmp_path):
    """One byte turned in each node of the file's trees and tables of names."""
    whole = saved("vgg16", False).path.read_bytes()
    places = [match.start() for kind in (b"TREE", b"SNOD", b"HEAP") for match in re.finditer(kind, whole)]
    assert len(places) > 20
    for place in places[:60]:
        (tmp_path / "x.h5").write_bytes(whole[: place + 6] + b"\xff" + whole[place + 7 :])
        with contextlib.suppress(UserError):
            convert("vgg16", tmp_path / "x.h5")


def test_what_keras_does_not_have_is_not_exported(saved, tmp_path, capsys):
    path = saved("inception_v3", False).path
    weights = convert("inception_v3", path)
    Weights(weights.variables, {**weights.lineage, "options": {"count_padding": True}}).save(tmp_path / "torchs")
    load_weights("cnn", "random", image_size=32).save(tmp_path / "cnn")
    for folder, message in (("torchs", "which Keras does not have"), ("cnn", "no network of Keras'")):
        assert weights_convert(["export", str(tmp_path / folder), str(tmp_path / "x.h5")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x.h5").exists()


def test_the_lineage_says_where_weights_came_from(saved):
    path = saved("inception_v3", True).path
    lineage = convert("inception_v3", path).lineage
    assert lineage["framework"] == "keras"
    assert lineage["classes"] == 5
    assert lineage["top"] is True
    assert lineage["published"] is None
    assert lineage["expected_input"]["range"] == [-1, 1]
    assert len(lineage["source_sha256"]) == 64


def test_a_converted_checkpoint_loads_as_the_file_does_and_a_changed_one_is_refused(saved, tmp_path, capsys):
    path = saved("vgg16", False).path
    assert weights_convert(["keras", "vgg16", str(path), str(tmp_path / "out")]) == 0
    assert "vgg16 without top" in capsys.readouterr().out
    backbone = BACKBONES["vgg16"]
    blocks = backbone.up_to("block5")
    from_folder = load_weights(backbone, tmp_path / "out", blocks=blocks, image_size=64)
    from_file = load_weights(backbone, path, blocks=blocks, image_size=64)
    jax.tree.map(np.testing.assert_array_equal, from_folder.variables, from_file.variables)
    assert weights_convert(["keras", "vgg16", str(path), str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err

    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    weights = load_converted(tmp_path / "out")
    weights.variables["params"]["block1"]["conv1"]["bias"][0] += 1
    shutil.rmtree(tmp_path / "out" / "arrays")
    save_tree(tmp_path / "out" / "arrays", weights.variables)
    assert json.loads((tmp_path / "out" / "lineage.json").read_text()) == lineage
    with pytest.raises(UserError, match="digest differs"):
        load_converted(tmp_path / "out")


def damaged(path, tmp_path, change):
    target = tmp_path / "damaged.h5"
    target.write_bytes(path.read_bytes())
    with h5py.File(target, "r+") as file:
        change(file["model_weights"])
    return target


def set_array(name, array):
    def change(root):
        del root[name]
        root[name] = array

    return change


def test_everything_that_is_wrong_is_listed_at_once(saved, tmp_path):
    def change(root):
        del root["block3_conv1/block3_conv1/bias"]
        root["block9_conv1/block9_conv1/kernel"] = np.zeros((3, 3, 2, 2), np.float32)
        set_array("block1_conv1/block1_conv1/kernel", np.zeros((3, 3, 64, 3), np.float32))(root)
        set_array("block2_conv1/block2_conv1/bias", np.full(128, np.nan, np.float32))(root)
        set_array("block2_conv2/block2_conv2/bias", np.zeros(128, np.int32))(root)

    with pytest.raises(UserError) as caught:
        convert("vgg16", damaged(saved("vgg16", False).path, tmp_path, change))
    message = str(caught.value)
    assert "5 arrays are not those of vgg16" in message
    for fault in (
        "missing: block3_conv1/bias",
        "extra: block9_conv1/kernel (3, 3, 2, 2)",
        "shape: block1_conv1/kernel is (3, 3, 64, 3), must be (3, 3, 3, 64)",
        "values: block2_conv1/bias holds NaN",
        "type: block2_conv2/bias is int32",
    ):
        assert fault in message


@pytest.mark.parametrize("top", [False, True])
def test_another_networks_weights_are_refused_in_one_line(saved, top):
    path = saved("vgg16", top).path
    with pytest.raises(
        UserError, match=r"holds vgg16 weights \(block1_conv1/.*\); inception_v3 ones are needed"
    ) as caught:
        load_weights(BACKBONES["inception_v3"], path, blocks=("stem",), image_size=75)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_network_is_refused(saved, tmp_path):
    convert("vgg16", saved("vgg16", False).path).save(tmp_path / "vgg16")
    with pytest.raises(UserError, match="holds vgg16 weights; inception_v3 ones are needed"):
        load_weights(BACKBONES["inception_v3"], tmp_path / "vgg16", blocks=("stem",), image_size=75)


def test_weights_without_top_do_not_serve_where_fc2_is_read(saved):
    path = saved("vgg16", False).path
    backbone = BACKBONES["vgg16"]
    with pytest.raises(UserError, match=r"holds no fc1, fc2 of vgg16 .*give the file with top"):
        load_weights(backbone, path, blocks=backbone.up_to("fc2"), image_size=64)


def test_dense_blocks_of_another_image_size_are_refused_with_the_size_that_fits(saved):
    path = saved("vgg16", True).path
    backbone = BACKBONES["vgg16"]
    with pytest.raises(UserError, match=r"fc1 takes 2,048 values, as 64 x 64 pixels give; 96 x 96 give 4,608"):
        load_weights(backbone, path, blocks=backbone.up_to("fc2"), image_size=96)


def test_weights_without_clear_names_of_layers_are_refused(saved, tmp_path):
    path = Path(shutil.copy(saved("vgg16", False).folder / "x.weights.h5", tmp_path))
    with h5py.File(path, "r+") as file:
        del file["layers/conv2d_3/vars"].attrs["name"]
    with pytest.raises(UserError, match="/layers/conv2d_3/vars does not say which layer it is"):
        convert("vgg16", path)


def test_names_of_layers_count_and_not_the_numbers_of_their_groups(saved, tmp_path):
    """Two groups exchanged, each with its own name: the same arrays. With the names exchanged too: others."""
    original = saved("vgg16", False).path
    path = Path(shutil.copy(original.with_name("x.weights.h5"), tmp_path))
    with h5py.File(path, "r+") as file:
        for old, new in (("conv2d_11", "spare"), ("conv2d_12", "conv2d_11"), ("spare", "conv2d_12")):
            file["layers"].move(old, new)
    assert convert("vgg16", path).lineage["digest"] == convert("vgg16", original).lineage["digest"]
    with h5py.File(path, "r+") as file:
        one, other = (file[f"layers/{group}/vars"].attrs for group in ("conv2d_11", "conv2d_12"))
        one["name"], other["name"] = other["name"], one["name"]
    assert convert("vgg16", path).lineage["digest"] != convert("vgg16", original).lineage["digest"]


def test_a_top_can_be_left_out_and_that_is_said(saved, tmp_path, capsys):
    path = saved("vgg16", True).path
    assert weights_convert(["keras", "vgg16", str(path), str(tmp_path / "out"), "--no-top"]) == 0
    said = capsys.readouterr().out
    assert "vgg16 without top" in said
    assert "left out: fc1 (2 arrays), fc2 (2 arrays), predictions (2 arrays)" in said
    weights = load_converted(tmp_path / "out")
    assert set(weights.variables["params"]) == set(BACKBONES["vgg16"].up_to("block5"))
    assert weights.lineage["top"] is False


def test_a_checkpoint_whose_lineage_was_changed_is_refused(saved, tmp_path):
    convert("vgg16", saved("vgg16", True).path).save(tmp_path / "out")
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    for change, message in (
        ({"classes": 1000}, "was changed after it was written"),
        ({"framework": "torch"}, "was changed after it was written"),
        ({"seal": "0" * 64}, "was changed after it was written"),
        ({"format": 0}, "written by another version"),
    ):
        (tmp_path / "out" / "lineage.json").write_text(json.dumps({**lineage, **change}))
        with pytest.raises(UserError, match=message):
            load_converted(tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html>", "web page"),
        (b"\x80\x04.", "a pickle, which can run any program"),
    ],
)
def test_what_is_no_weight_file_is_named(tmp_path, content, message):
    (tmp_path / "w.h5").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_weights(BACKBONES["vgg16"], tmp_path / "w.h5", blocks=("block1",), image_size=32)


def test_random_weights_are_the_seeds_and_say_so():
    backbone = BACKBONES["inception_v3"]
    one, same, other = (load_weights(backbone, "random", blocks=("stem",), image_size=75, seed=s) for s in (1, 1, 2))
    assert one.lineage["source"] == "random"
    assert one.lineage["digest"] == same.lineage["digest"] != other.lineage["digest"]


def test_without_a_network_the_message_says_which_file_goes_where(tmp_path, monkeypatch):
    unreachable = PublishedFile("https://localhost:9/vgg16_notop.h5", 58_889_256, "md5:0123", top=False)
    monkeypatch.setitem(BACKBONES, "vgg16", replace(BACKBONES["vgg16"], published=(unreachable,)))
    with pytest.raises(UserError) as caught:
        load_weights(BACKBONES["vgg16"], "imagenet", blocks=("block1",), image_size=32, cache=tmp_path)
    message = str(caught.value)
    assert "the server cannot be reached" in message
    assert f"put that file (58,889,256 bytes, MD5 0123) at {tmp_path / 'downloads' / 'vgg16_notop.h5'}" in message
    assert "\n" not in message


def test_a_published_file_put_in_its_place_is_converted_once(saved, tmp_path, monkeypatch):
    """The way of `imagenet` without its download: checksum, conversion, and the converted copy the second time."""
    import pooch

    path = saved("vgg16", False).path
    published = PublishedFile(
        "https://localhost:9/vgg16_notop.h5", path.stat().st_size, f"sha256:{pooch.file_hash(str(path))}", top=False
    )
    monkeypatch.setitem(BACKBONES, "vgg16", replace(BACKBONES["vgg16"], published=(published,)))
    (tmp_path / "downloads").mkdir()
    downloaded = tmp_path / "downloads" / "vgg16_notop.h5"
    downloaded.write_bytes(path.read_bytes())
    load = lambda: load_weights(BACKBONES["vgg16"], "imagenet", blocks=("block1",), image_size=32, cache=tmp_path)  # noqa: E731
    first = load()
    assert first.lineage["published"] == "vgg16_notop.h5"
    downloaded.unlink()
    assert load().lineage == first.lineage


def test_a_file_with_another_checksum_does_not_serve_as_imagenet(tmp_path, monkeypatch):
    unreachable = PublishedFile("https://localhost:9/w.h5", 3, "sha256:" + "0" * 64, top=False)
    monkeypatch.setitem(BACKBONES, "vgg16", replace(BACKBONES["vgg16"], published=(unreachable,)))
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "w.h5").write_bytes(b"abc")
    with pytest.raises(UserError, match="put that file"):
        load_weights(BACKBONES["vgg16"], "imagenet", blocks=("block1",), image_size=32, cache=tmp_path)


def test_weights_whose_arrays_are_others_than_their_lineage_speaks_of_are_not_written(tmp_path):
    weights = load_weights("cnn", "random", image_size=32)
    changed = {**weights.variables, "params": jax.tree.map(lambda leaf: leaf + 1, weights.variables["params"])}
    with pytest.raises(UserError, match="nothing is written"):
        replace(weights, variables=changed).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fine_tuned(weights, changed, ("block4",), "a test").save(str(tmp_path / "out"))
    assert load_weights("cnn", tmp_path / "out", image_size=32).lineage["trained_blocks"] == ["block4"]


def test_a_run_taken_for_weights_says_where_they_are(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"the networks of this run's rows are .*checkpoints/ROW"):
        load_weights("cnn", tmp_path)
