"""The certificate: what it demands, how it says so, and that each usual mistake makes it fail at its stage."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import flax.linen as nn
import numpy as np
import optax
import pytest

from kimiajax.cli import main
from kimiajax.config import ParityConfig
from kimiajax.data.scans import Scans
from kimiajax.models import inception_v3
from kimiajax.models.backbone import BACKBONES
from kimiajax.models.inception_v3 import Conv
from kimiajax.models.weights import Weights
from kimiajax.progress import Silent
from weights_convert.parity import ours
from weights_convert.parity.certificate import FAILED, VERIFIED, Sides, compare, render
from weights_convert.parity.job import Job
from weights_convert.parity.run import add_head, certify, prepare, run_reference

JOB = Job(
    network="vgg16",
    weights="w.h5",
    classes=None,
    scans="s.h5",
    patches=((0, 1, 2), (1, 2, 0), (2, 0, 1)),
    labels=(0, 1, 0),
    size=32,
    resize="box",
    input="unit",
    judged=2,
    boundary="block4",
    steps=1,
    learning_rate=1e-4,
    momentum=0.9,
    batch_norm_momentum=0.99,
    hidden=256,
    seed=0,
)


def sides(rng):
    """Two sides that agree to single precision; block1 and logits of three images, of which two are judged."""
    judge = {
        "decoded": rng.integers(0, 255, (3, 3, 9, 9), dtype=np.uint8),
        "resized": rng.integers(0, 255, (3, 3, 8, 8), dtype=np.uint8),
        "input": rng.random((3, 8, 8, 3)),
        "block/block1": rng.random((3, 4, 4, 5)),
        "logits": rng.random((3, 4)),
        "loss": np.array(rng.random()),
        "gradients/params/block5/kernel": rng.random((3, 2)),
        "step 1/params/block5/kernel": rng.random((3, 2)),
        "predictions": rng.random((3, 4)),
        "eta": rng.random(3),
    }
    whole = {"decoded", "resized", "input"}
    single = {
        name: array if array.dtype == np.uint8 or name == "eta" else array.astype(np.float32)
        for name, array in judge.items()
    }
    several = {name for name, array in judge.items() if array.ndim and "/params/" not in name} - whole
    judged = {name: array[:2] if name in several else array for name, array in judge.items()}
    double = {name: array for name, array in judged.items() if name not in whole | {"eta"}}
    return Sides(dict(single), double, dict(single), judged)


def stages_of(given):
    return {stage.name: stage for stage in compare(JOB, ["block1"], given)}


def test_sides_that_agree_to_rounding_pass_every_stage(rng):
    stages = stages_of(sides(rng))
    order = [
        "decoded",
        "resized",
        "input",
        "block/block1",
        "logits",
        "loss",
        "gradients",
        "step 1",
        "predictions",
        "eta",
    ]
    assert list(stages) == order
    assert all(stage.passed for stage in stages.values())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("resized", lambda a: a + np.uint8(1), "is over"),
        ("block/block1", lambda a: a * np.float32(1 + 1e-4), "relative L2 1.0e-04 is over 1.0e-05"),
        ("block/block1", lambda a: np.where(np.arange(3)[:, None, None, None] == 2, 0, a), "over all images"),
        ("block/block1", lambda a: a * np.float32(np.nan), "is over"),
        ("block/block1", lambda a: a[:, :3], r"shape (3, 3, 4, 5), in the reference (3, 4, 4, 5)"),
        ("gradients/params/block5/kernel", lambda a: -a, "is over"),
        ("eta", lambda a: a + 1 / 1325, "is over"),
    ],
)
def test_a_stage_that_is_off_fails_and_says_by_how_much(rng, name, change, message):
    given = sides(rng)
    given.ours[name] = change(given.ours[name])
    failed = [stage for stage in stages_of(given).values() if not stage.passed]
    assert [stage.name for stage in failed] == [name.partition("/params")[0]]
    assert message in failed[0].fault


def test_double_precision_leaves_no_room_where_single_precision_does(rng):
    """A gradient off by a thousandth is within single precision's luck, and no rounding in double precision."""
    given = sides(rng)
    name = "gradients/params/block5/kernel"
    given.ours[name] = given.ours[name] * np.float32(1.001)
    assert stages_of(given)["gradients"].passed
    given.ours_double[name] = given.ours_double[name] * 1.001
    assert "in float64 is over" in stages_of(given)["gradients"].arrays[name].fault


def test_an_array_that_one_side_alone_has_fails(rng):
    given = sides(rng)
    given.ours["gradients/params/block4/kernel"] = given.ours_double["gradients/params/block4/kernel"] = np.ones(3)
    del given.ours["step 1/params/block5/kernel"]
    stages = stages_of(given)
    assert "here and not in the reference" in stages["gradients"].arrays["gradients/params/block4/kernel"].fault
    assert "in the reference only" in stages["step 1"].arrays["step 1/params/block5/kernel"].fault


def test_another_largest_logit_fails_however_small_the_difference(rng):
    """A tie, parted by the last digit one way here and the other way there."""
    given = sides(rng)
    for side in (given.ours, given.reference, given.judge, given.ours_double):
        side["logits"] = side["logits"].copy()
        side["logits"][0, :2] = 2
    given.ours["logits"][0, 1] += 4e-7
    assert "1 of 3 images have another largest entry" in stages_of(given)["logits"].arrays["logits"].fault


def test_a_stage_without_arrays_fails(rng):
    given = sides(rng)
    for side in (given.ours, given.ours_double, given.reference, given.judge):
        del side["gradients/params/block5/kernel"]
    assert stages_of(given)["gradients"].fault == "gradients has no array on both sides"


def test_an_array_without_its_double_precision_fails(rng):
    given = sides(rng)
    del given.ours_double["loss"]
    assert "was not computed here in float64" in stages_of(given)["loss"].arrays["loss"].fault


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("block/block1", np.zeros_like, "is 0 everywhere, which proves nothing"),
        ("logits", lambda array: array * 0 + array[:1], "is the same for all images, which proves nothing"),
        ("gradients/params/block5/kernel", np.zeros_like, "is 0 everywhere, which proves nothing"),
    ],
)
def test_dead_weights_prove_nothing_however_well_the_sides_agree(rng, name, change, message):
    given = sides(rng)
    for side in (given.ours, given.ours_double, given.reference, given.judge):
        side[name] = change(side[name])
    assert message in stages_of(given)[name.partition("/params")[0]].fault


def test_the_bound_has_a_ceiling_however_far_off_the_reference_is(rng):
    """Three times the error of a reference that gives 0 would let anything pass."""
    given = sides(rng)
    given.reference["logits"] = given.reference["logits"] * np.float32(1e-3)
    given.ours["logits"] = -given.ours["logits"]
    assert "is over 3.0e-01" in stages_of(given)["logits"].fault


def test_a_step_that_single_precision_cannot_resolve_is_left_to_double_precision_and_said(rng):
    given = sides(rng)
    name = "step 1/params/block5/kernel"
    given.reference[name] = np.zeros_like(given.reference[name])
    stage = stages_of(given)["step 1"]
    assert stage.passed
    assert stage.arrays["step 1"].bound is None
    given.ours_double[name] = given.ours_double[name] * (1 + 1e-8)
    assert not stages_of(given)["step 1"].passed


def test_what_one_side_alone_computed_is_a_stage_and_fails(rng):
    given = sides(rng)
    given.judge["block/block2"] = given.reference["block/block2"] = rng.random((3, 2))
    given.ours["features"] = rng.random((3, 2))
    stages = stages_of(given)
    assert not stages["block/block2"].passed
    assert not stages["features"].passed
    stages = compare(JOB, ["block1"], sides(rng), ("nowhere", "boom"))
    assert [(stage.name, stage.fault) for stage in stages][-1] == ("nowhere", "boom")


@pytest.mark.parametrize("name", ["block/block1", "logits", "gradients/params/block5/kernel"])
@pytest.mark.parametrize("side", ["judge", "ours_double"])
def test_a_judge_that_saw_less_than_it_should_fails(rng, side, name):
    given = sides(rng)
    outputs = getattr(given, side)
    outputs[name] = outputs[name][:1]
    assert "has not the shape" in stages_of(given)[name.partition("/params")[0]].fault


def test_a_reference_that_is_not_finite_proves_nothing(rng):
    given = sides(rng)
    for side in (given.ours, given.reference, given.judge):
        side["loss"] = np.array(np.inf)
    assert "the reference itself is not finite" in stages_of(given)["loss"].arrays["loss"].fault


def test_a_stage_that_does_not_run_here_is_the_last_one_and_failed(rng):
    stages = compare(JOB, ["block1"], sides(rng), ("block/block1", "TypeError: no"))
    assert [stage.name for stage in stages] == ["decoded", "resized", "input", "block/block1"]
    assert not stages[-1].passed


@pytest.mark.parametrize(("flags", "status"), [([], 0), (["--require"], 4)])
def test_without_the_reference_nothing_is_verified(tmp_path, monkeypatch, capsys, flags, status):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = ["parity", "vgg16", "--reference", "torch", "--weights", "random", "--out", str(tmp_path), *flags]
    assert main(command) == status
    assert "NOT RUN: torch is not installed (make setup-torch" in capsys.readouterr().out
    assert json.loads((tmp_path / "parity.json").read_text())["verdict"] == "NOT RUN"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet"], "parity resnet: no such network; choose from vgg16, inception_v3"),
        ([], "parity NETWORK: no such network"),
        (["vgg16", "--steps", "0"], "--steps 0: must be 1 or more"),
        (["vgg16", "--image-size", "20"], "20 is too small"),
        (["vgg16", "--weights", "absent.h5"], "absent.h5: no such file"),
        (["vgg16", "--scans", "absent.h5"], "absent.h5: no such file"),
        (["vgg16", "--weights", "w.safetensors"], "w.safetensors: an empty file"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"")
    given = ["--weights", "random"] if "--weights" not in arguments else ["--image-size", "32"]
    assert main(["parity", *arguments, "--reference", "keras", *given, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "parity.json").exists()


def test_vgg16_is_verified_from_the_command_line_and_leaves_a_certificate(tmp_path, capsys):
    command = ["parity", "vgg16", "--reference", "keras", "--weights", "random", "--image-size", "64", "--steps", "2"]
    status = main([*command, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert (
        "VERIFIED: vgg16 computes what keras computes, at all 19 stages, on 8 images, 2 of them in float64" in printed
    )
    content = json.loads((tmp_path / "parity.json").read_text())
    assert content["verdict"] == "VERIFIED"
    assert content["first_divergence"] is None
    assert len(content["weights"]["sha256"]) == len(content["inputs"]["decoded_sha256"]) == 64
    assert content["versions"]["reference"]["keras"]
    by_name = {stage["name"]: stage for stage in content["stages"]}
    assert by_name["block/fc1"]["arrays"]["block/fc1"]["double_relative_l2"] < 1e-12
    assert len(by_name["gradients"]["arrays"]) == 11, "ten arrays, and all of them together"
    assert content["settings"]["weights"] == "random"
    assert set(content["legend"]) >= set(by_name["loss"]["arrays"]["loss"])
    assert by_name["block/block1"]["arrays"]["block/block1"]["relative_l2"] > 0, "the judge is not ourselves"


# What follows plants the usual mistakes. The reference runs once a setting; each mistake is made on our side alone.


@dataclasses.dataclass
class Setting:
    job: Job
    weights: Weights
    head: dict
    reference: tuple

    def certify(self):
        return certify(self.job, "keras", self.weights, self.head, *self.reference)

    def with_array(self, path, change):
        """The same weights but for one array."""
        variables = {kind: _copy(part) for kind, part in self.weights.variables.items()}
        node = variables
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = np.ascontiguousarray(change(node[path[-1]], node))
        return dataclasses.replace(self, weights=Weights(variables, self.weights.lineage))


def _copy(tree):
    return {key: _copy(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    built = {}

    def build(network, **options):
        key = (network, *options.items())
        if key not in built:
            folder = tmp_path_factory.mktemp("parity")
            size = {"vgg16": 64, "inception_v3": 139}[network]
            config = ParityConfig("keras", "random", image_size=size, steps=2, **options)
            job, weights = prepare(network, config, folder, Silent())
            job, head = add_head(job, weights, folder)
            built[key] = Setting(job, weights, head, run_reference(job, "keras", folder, Silent()))
        return built[key]

    return build


@pytest.mark.parity
@pytest.mark.parametrize(
    ("network", "options"), [("vgg16", {}), ("vgg16", {"input": "native"}), ("inception_v3", {"input": "native"})]
)
def test_without_a_mistake_the_settings_are_verified(setting, network, options):
    done = setting(network, **options).certify()
    assert done.verdict == VERIFIED, render(done)


def exchanged(path, other):
    """Two arrays of equal shape in each other's place."""

    def mistake(given, monkeypatch):
        def find(to):
            node = given.weights.variables
            for key in to:
                node = node[key]
            return node

        one, two = find(path), find(other)
        return given.with_array(path, lambda *_: two).with_array(other, lambda *_: one)

    return mistake


def array(path, change):
    return lambda given, monkeypatch: given.with_array(path, lambda value, _: change(value))


def block(name, old, new):
    """One layer of a block's table replaced."""

    def mistake(given, monkeypatch):
        branches = [list(branch) for branch in inception_v3.MIXED[name]]
        branch = next(branch for branch in branches if old in branch)
        branch[branch.index(old)] = new
        monkeypatch.setitem(inception_v3.MIXED, name, tuple(map(tuple, branches)))
        return given

    return mistake


def lineage(**changes):
    def mistake(given, monkeypatch):
        changed = Weights(given.weights.variables, {**given.weights.lineage, **changes})
        return dataclasses.replace(given, weights=changed)

    return mistake


def patched(*target):
    """A function or constant of the project, or of a library that it calls, replaced."""

    def mistake(given, monkeypatch):
        monkeypatch.setattr(*target)
        return given

    return mistake


def job(**changes):
    return lambda given, monkeypatch: dataclasses.replace(given, job=dataclasses.replace(given.job, **changes))


def backbone(**changes):
    def mistake(given, monkeypatch):
        changed = dataclasses.replace(BACKBONES[given.job.network], **changes)
        monkeypatch.setitem(BACKBONES, given.job.network, changed)
        return given

    return mistake


def max_for_average(x, window, padding, count_include_pad):
    return nn.max_pool(x, window, (1, 1), padding)


def chw(kernel):
    """VGG16's first dense layer at 64 x 64 as if its inputs had been flattened channels first."""
    return kernel.reshape(2, 2, 512, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)


REAL_SGD, REAL_READ, REAL_SCORES = optax.sgd, Scans.read_test_patch, ours.kimia_scores
RGB = {"channels": "RGB", "range": [0, 255], "mean": [103.939, 116.779, 123.68], "std": None}
BN = ("branch1_conv1", "bn")

MISTAKES = {
    "patches transposed": (
        "vgg16",
        {},
        patched(Scans, "read_test_patch", lambda self, index: REAL_READ(self, index).T),
        "decoded",
    ),
    "resize filter changed": ("vgg16", {}, job(resize="bilinear"), "resized"),
    "RGB for BGR": ("vgg16", {"input": "native"}, lineage(expected_input=RGB), "input"),
    "first kernel for BGR": (
        "vgg16",
        {},
        array(("params", "block1", "conv1", "kernel"), lambda kernel: kernel[:, :, ::-1]),
        "block/block1",
    ),
    "fc1 flattened C, H, W": ("vgg16", {}, array(("params", "fc1", "dense", "kernel"), chw), "block/fc1"),
    "another block for features": ("vgg16", {}, backbone(features="fc1"), "features"),
    "a frozen block trained": ("vgg16", {}, backbone(fine_tuned=("block4", "block5")), "gradients"),
    "Nesterov's momentum": (
        "vgg16",
        {},
        patched(optax, "sgd", lambda rate, momentum: REAL_SGD(rate, momentum, nesterov=True)),
        "step 1",
    ),
    "no momentum": ("vgg16", {}, patched(optax, "sgd", lambda rate, momentum: REAL_SGD(rate)), "step 2"),
    "scores of shifted labels": (
        "vgg16",
        {},
        patched(ours, "kimia_scores", lambda labels, *rest: REAL_SCORES((labels + 1) % labels.max(), *rest)),
        "eta",
    ),
    "epsilon 1e-5 for 1e-3": ("inception_v3", {}, patched(inception_v3, "EPSILON", 1e-5), "block/stem"),
    "SAME to VALID, sizes fit": (
        "inception_v3",
        {},
        block("stem", Conv(64, 3, 3), Conv(64, 3, 3, 1, "VALID")),
        "block/stem",
    ),
    "SAME to VALID, sizes do not fit": (
        "inception_v3",
        {},
        block("mixed5", Conv(160, 1, 7), Conv(160, 1, 7, 1, "VALID")),
        "block/mixed5",
    ),
    "average pool counts padding": ("inception_v3", {}, lineage(options={"count_padding": True}), "block/mixed0"),
    "max for average": ("inception_v3", {}, patched(inception_v3.nn, "avg_pool", max_for_average), "block/mixed0"),
    "beta and moving mean exchanged": (
        "inception_v3",
        {},
        exchanged(("params", "mixed2", *BN, "bias"), ("batch_stats", "mixed2", *BN, "mean")),
        "block/mixed2",
    ),
    "one kernel flipped": (
        "inception_v3",
        {},
        array(("params", "mixed4", "branch2_conv2", "conv", "kernel"), lambda kernel: kernel[:, ::-1]),
        "block/mixed4",
    ),
    "a pair of equal-shaped kernels exchanged": (
        "inception_v3",
        {},
        exchanged(
            ("params", "mixed9", "branch2_conv2a", "conv", "kernel"),
            ("params", "mixed9", "branch3_conv3a", "conv", "kernel"),
        ),
        "block/mixed9",
    ),
    "running statistics too fast": ("inception_v3", {}, job(batch_norm_momentum=0.98), "step 1"),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_fails_at_its_own_stage(setting, monkeypatch, name):
    network, options, mistake, stage = MISTAKES[name]
    done = mistake(setting(network, **options), monkeypatch).certify()
    assert done.verdict == FAILED
    assert done.first_divergence == stage, render(done)
    assert f"FAILED: {network} and keras part at {stage}" in render(done)


@pytest.mark.parity
def test_a_stopped_comparison_leaves_no_process_and_no_file(tmp_path):
    command = [
        sys.executable,
        "-m",
        "kimiajax",
        "parity",
        "inception_v3",
        "--reference",
        "keras",
        "--weights",
        "random",
    ]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([*command, "--out", str(tmp_path / "out")], env=environment, stderr=subprocess.PIPE) as done:
        for line in done.stderr:
            if b"float32 on" in line:
                break
        time.sleep(3)
        assert processes_with(tmp_path)
        done.terminate()
        assert done.wait(60) == 143
    time.sleep(1)
    assert not processes_with(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def processes_with(folder):
    """Commands of running processes that name a folder under this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(entry.read_bytes())
    return [command for command in found if f"{folder}/kimiajax-parity-".encode() in command]


@pytest.mark.parity
def test_a_file_without_top_is_compared_as_far_as_it_goes(tmp_path, capsys):
    """A `.keras` archive of Keras' own, of which the reference loads the arrays."""
    import keras

    model = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(139, 139, 3))
    model.save(tmp_path / "x.keras")
    command = ["parity", "inception_v3", "--reference", "keras", "--weights", str(tmp_path / "x.keras")]
    assert main([*command, "--image-size", "139", "--steps", "1", "--out", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "ImageNet logits" not in printed
    assert "not compared: predictions" in printed
