"""The certificate: what it demands, how it says so, and that each usual mistake makes it fail at its stage."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest

from kimiajax.cli.main import main
from kimiajax.models.registry import BACKBONES
from kimiajax.parity.certificate import Sides, compare
from kimiajax.parity.job import Job

JOB = Job(
    network="vgg16",
    application="VGG16",
    layers={"block1": "block1_pool"},
    features="fc2",
    bottleneck="block5",
    pooled=None,
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


BIAS, SHIFT = "gradients/params/block5/conv/bias", "gradients/params/block5/bn/bias"


def with_a_bias_before_batch_normalisation(rng):
    """Its gradient is rounding, other on each side."""
    given = sides(rng)
    shift = rng.random(2)
    for side, error in ((given.ours, 1e-8), (given.ours_double, 1e-17), (given.reference, 1e-8), (given.judge, 1e-17)):
        side[BIAS], side[SHIFT] = error * rng.standard_normal(2), shift
    return given


def test_a_gradient_that_is_rounding_on_both_sides_passes_where_it_must_be_0(rng):
    assert stages_of(with_a_bias_before_batch_normalisation(rng))["gradients"].passed


@pytest.mark.parametrize(("side", "value"), [("ours", 1e-3), ("ours_double", 1e-9), ("ours", np.nan)])
def test_one_that_is_a_gradient_on_this_side_fails(rng, side, value):
    given = with_a_bias_before_batch_normalisation(rng)
    getattr(given, side)[BIAS] = np.array([value, 0])
    assert "0 but for rounding in the reference, and here" in stages_of(given)["gradients"].arrays[BIAS].fault


def test_rounding_anywhere_else_proves_nothing(rng):
    given = with_a_bias_before_batch_normalisation(rng)
    for side in (given.ours, given.ours_double, given.reference, given.judge):
        del side[SHIFT]
    assert not stages_of(given)["gradients"].passed


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
    assert "NOT RUN: torch is not installed (pip install torch torchvision timm)" in capsys.readouterr().out
    assert json.loads((tmp_path / "parity.json").read_text())["verdict"] == "NOT RUN"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet"], "parity resnet: no such network; choose from vgg16, inception_v3"),
        ([], "parity NETWORK: no such network"),
        (["cnn"], "parity cnn: there is no such network in keras, and its mapping names none; choose from vgg16"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"hidden": None}, "a head with a hidden layer"), ({"fine_tuned": ("block1",)}, "a block below those that are")],
)
def test_a_network_whose_steps_cannot_be_compared_is_refused(tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.setitem(BACKBONES, "vgg16", dataclasses.replace(BACKBONES["vgg16"], **changes))
    command = ["parity", "vgg16", "--reference", "keras", "--weights", "random", "--image-size", "32"]
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parity
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
