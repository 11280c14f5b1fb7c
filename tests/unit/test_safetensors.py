"""torchvision's and timm's layout, without torch: where each array goes, and what is refused."""

import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from kimiajax.errors import UserError
from kimiajax.models.checkpoint import load_converted
from kimiajax.models.registry import BACKBONES
from kimiajax.weights.load import load_weights
from weights_convert.__main__ import main as weights_convert
from weights_convert.convert import convert, fold_scale
from weights_convert.mappings import files_of
from weights_convert.mappings.vgg16 import TIMM, TORCHVISION


def vgg16_arrays(rng, classes=3, side=1, timm=False):
    """Every array of a VGG16 for 32 x 32 pixels, named and laid out as torch has them."""
    arrays, channels = {}, 3
    for position, features in zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (64, 64, 128, 128, *(256,) * 3, *(512,) * 6)
    ):
        arrays[f"features.{position}.weight"] = 0.05 * rng.standard_normal((features, channels, 3, 3))
        arrays[f"features.{position}.bias"] = 0.05 * rng.standard_normal(features)
        channels = features
    shapes = {"classifier.0": (4096, 512 * side * side), "classifier.3": (4096, 4096), "classifier.6": (classes, 4096)}
    if timm:
        shapes = {"pre_logits.fc1": (4096, 512, side, side), "pre_logits.fc2": (4096, 4096, 1, 1)}
        shapes["head.fc"] = (classes, 4096)
    for name, shape in shapes.items():
        arrays[f"{name}.weight"] = 0.02 * rng.standard_normal(shape)
        arrays[f"{name}.bias"] = 0.02 * rng.standard_normal(shape[0])
    return {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def arrays():
    return vgg16_arrays(np.random.default_rng(3))


def saved(arrays, tmp_path, **changes):
    """A file of these arrays; a change to None leaves one out."""
    merged = {**arrays, **changes}
    save_file({name: array for name, array in merged.items() if array is not None}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("timm", [False, True])
def test_dense_layers_take_height_width_channels_where_torch_takes_channels_first(tmp_path, timm):
    """One value of block 5, at row 1, column 0, channel 7, reaches the hidden unit that torch's kernel sends it to."""
    arrays = vgg16_arrays(np.random.default_rng(3), side=2, timm=timm)
    kernel = convert("vgg16", saved(arrays, tmp_path)).variables["params"]["fc1"]["dense"]["kernel"]
    theirs = arrays["pre_logits.fc1.weight" if timm else "classifier.0.weight"].reshape(4096, 512, 2, 2)
    np.testing.assert_array_equal(kernel.reshape(2, 2, 512, 4096)[1, 0, 7], theirs[:, 7, 1, 0])


def test_a_convolution_is_the_transposed_one(arrays, tmp_path):
    kernel = convert("vgg16", saved(arrays, tmp_path)).variables["params"]["block3"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 2, 5, 9], arrays["features.12.weight"][9, 5, 0, 2])


def test_both_spellings_name_every_array_once():
    for table in (TORCHVISION, TIMM):
        assert len({to for to, _ in table.values()}) == len(table) == 32


def test_the_command_says_what_it_wrote_and_load_weights_takes_file_and_folder(arrays, tmp_path, capsys):
    path = saved(arrays, tmp_path)
    assert weights_convert(["torch", "vgg16", str(path), str(tmp_path / "out")]) == 0
    assert "vgg16 with top, 3 classes, from x.safetensors" in capsys.readouterr().out
    lineage = load_converted(tmp_path / "out").lineage
    assert lineage["framework"] == "torch"
    assert lineage["expected_input"]["channels"] == "RGB"
    assert lineage["expected_input"]["std"] == [0.229, 0.224, 0.225]
    from_file = load_weights("vgg16", path, image_size=32)
    assert from_file.lineage["digest"] == lineage["digest"]


def inception_arrays(rng):
    (table,) = files_of("inception_v3", "torch").tables
    backbone = BACKBONES["inception_v3"].variant(scale=True, count_padding=True)
    shapes = backbone.shapes(75, num_classes=4)

    def shape(to):
        node = shapes
        for key in to:
            node = node[key]
        return node.shape

    return {
        name: np.abs(0.1 * rng.standard_normal(layout.stored(shape(to)))).astype(np.float32)
        for name, (to, layout) in table.items()
    }


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    return saved(inception_arrays(np.random.default_rng(4)), tmp_path_factory.mktemp("inception"))


def test_inception_v3_of_torch_is_another_network_and_does_not_pass_for_keras(inception):
    backbone = BACKBONES["inception_v3"]
    with pytest.raises(
        UserError, match=r"inception_v3 with count_padding=True, scale=True; give load_weights the name"
    ):
        load_weights(backbone, inception, image_size=75)
    weights = load_weights("inception_v3", inception, image_size=75)
    assert weights.backbone == backbone.variant(scale=True, count_padding=True)
    with pytest.raises(UserError, match="use the `backbone` of the weights"):
        backbone.apply(weights.variables, np.zeros((1, 75, 75, 3), np.float32), ("stem",))


def test_folding_takes_the_scale_into_kernel_and_mean(rng):
    """On one unit, by the formula of batch normalisation."""
    kernel, scale, bias, mean, var = (rng.uniform(0.5, 2, shape) for shape in ((1, 1, 2, 3), 3, 3, 3, 3))
    unit = {"conv": {"kernel": kernel}, "bn": {"scale": scale, "bias": bias}}
    folded = fold_scale({"params": {"b": {"u": unit}}, "batch_stats": {"b": {"u": {"bn": {"mean": mean, "var": var}}}}})
    x = rng.standard_normal((5, 2))
    expected = scale * (x @ kernel[0, 0] - mean) / np.sqrt(var + 1e-3) + bias
    unit, moments = folded["params"]["b"]["u"], folded["batch_stats"]["b"]["u"]["bn"]
    got = (x @ unit["conv"]["kernel"][0, 0] - moments["mean"]) / np.sqrt(moments["var"] + 1e-3) + unit["bn"]["bias"]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert "scale" not in unit["bn"]


def test_auxiliary_classifier_and_counters_are_left_out_and_named(inception, tmp_path):
    arrays = inception_arrays(np.random.default_rng(4))
    arrays["AuxLogits.fc.weight"] = np.zeros((4, 768), np.float32)
    arrays["Mixed_5b.branch1x1.bn.num_batches_tracked"] = np.array(7)
    lineage = convert("inception_v3", saved(arrays, tmp_path)).lineage
    assert lineage["left_out"] == ["AuxLogits (1 array)", "num_batches_tracked (1 array)"]
    assert lineage["digest"] == convert("inception_v3", inception).lineage["digest"]


def test_a_head_of_1001_classes_is_taken_as_one_with_background(arrays, tmp_path, capsys):
    head = {"classifier.6.weight": np.ones((1001, 4096), np.float32), "classifier.6.bias": np.ones(1001, np.float32)}
    path = saved(arrays, tmp_path, **head)
    assert weights_convert(["torch", "vgg16", str(path), str(tmp_path / "out")]) == 0
    assert "1,001 classes (the first taken as the background, as TensorFlow-Slim counts)" in capsys.readouterr().out
    assert load_converted(tmp_path / "out").lineage["label_offset"] == 1


def nan(shape):
    return np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features.5.bias": nan(128)}, "values: features.5.bias holds NaN or infinity"),
        ({"features.5.bias": None}, "missing: features.5.bias"),
        ({"features.30.bias": np.zeros(4, np.float32)}, r"extra: features.30.bias \(4,\)"),
        (
            {"features.0.weight": np.zeros((3, 3, 3, 64), np.float32)},
            r"shape: features.0.weight is \(3, 3, 3, 64\), must be \(64, 3, 3, 3\)",
        ),
        ({"features.0.bias": np.zeros(64, np.int32)}, "type: features.0.bias is I32, must be float32"),
    ],
)
def test_one_wrong_array_is_one_line(arrays, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        convert("vgg16", saved(arrays, tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_a_header_out_of_all_proportion_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2**60) + b'{"a":' + b" " * 100)
    with pytest.raises(UserError, match=r"not a whole safetensors file .*fetch or save it again"):
        convert("vgg16", tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty file"), (b"version https://git-lfs", "git lfs pull"), (b"<!DOCTYPE html>", "web page")],
)
def test_what_is_no_weight_file_is_named(tmp_path, capsys, content, message):
    (tmp_path / "x.safetensors").write_bytes(content)
    assert weights_convert(["torch", "vgg16", str(tmp_path / "x.safetensors"), str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_does_not_exist_is_named(tmp_path, capsys):
    assert weights_convert(["torch", "vgg16", str(tmp_path / "absent"), str(tmp_path / "out")]) == 2
    assert "absent: no such file" in capsys.readouterr().err


def test_an_option_that_does_not_apply_is_refused(arrays, inception, tmp_path):
    with pytest.raises(UserError, match="has no batch normalisation with a scale"):
        convert("vgg16", saved(arrays, tmp_path), fold=True)
    with pytest.raises(UserError, match="what torch's vgg16 was trained on is known"):
        convert("vgg16", saved(arrays, tmp_path), normalised=True)
    assert convert("inception_v3", inception, normalised=True).lineage["expected_input"]["std"] is not None


def test_a_truncated_file_is_refused(arrays, tmp_path):
    path = saved(arrays, tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        convert("vgg16", path)


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_is_never_loaded_and_the_way_to_safetensors_is_shown(tmp_path, old):
    """Both of torch's formats. The pickle would leave a file behind if anything loaded it."""
    import pickle

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / "vgg16.pth"
    if old:
        path.write_bytes(pickle.dumps(Trap(), protocol=2))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"a pickle, which can run any program .*safetensors.torch.save_file"):
        load_weights("vgg16", path)
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_the_other_framework_is_named(arrays, tmp_path, capsys):
    assert weights_convert(["keras", "vgg16", str(saved(arrays, tmp_path)), str(tmp_path / "out")]) == 2
    assert "seems to be a file of torch, not of keras" in capsys.readouterr().err
