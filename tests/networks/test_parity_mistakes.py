"""The usual mistakes, planted: each must make the certificate fail at its own stage. Minutes; `make test-parity`."""

import contextlib
import dataclasses
import functools
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import flax.linen as nn
import numpy as np
import optax
import pytest

from kimiajax.cli.main import main
from kimiajax.data.sources.scan_file import Scans
from kimiajax.models import conv, inception_v3
from kimiajax.models.checkpoint import Weights
from kimiajax.models.inception_v3 import Conv
from kimiajax.models.registry import BACKBONES
from kimiajax.parity import ours
from kimiajax.parity.certificate import FAILED, VERIFIED
from kimiajax.parity.certificate_text import render
from kimiajax.parity.config import ParityConfig
from kimiajax.parity.job import Job
from kimiajax.parity.run import add_head, certify, prepare, run_reference
from kimiajax.runtime.progress import Silent
from kimiajax.training.optimizer import Optimization

pytestmark = pytest.mark.parity

# The reference runs once a setting; each mistake is made on our side alone.
NATIVE = {"input": "native"}


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
def setting(shared):
    """Gives a network's setting, whose reference runs once a test run."""

    @functools.cache
    def build(network, **options):
        def make(folder):
            size = {"vgg16": 64, "inception_v3": 139}[network]
            config = ParityConfig("keras", "random", image_size=size, steps=2, **options)
            job, weights = prepare(network, config, folder, Silent())
            job, head = add_head(job, weights, folder)
            found = Setting(job, weights, head, run_reference(job, "keras", folder, Silent()))
            (folder / "setting.pickle").write_bytes(pickle.dumps(found))

        return pickle.loads((shared(f"parity {network} {options}", make) / "setting.pickle").read_bytes())

    return build


@pytest.fixture(autouse=True)
def optimizers_made_anew():
    """An optimizer is made once and kept: a mistaken one must not be that of other tests, nor theirs its own."""
    Optimization._over.cache_clear()
    yield
    Optimization._over.cache_clear()


@pytest.mark.parametrize(("network", "options"), [("vgg16", {}), ("vgg16", NATIVE), ("inception_v3", NATIVE)])
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


def max_for_average(x, window, *, count_padding):
    return nn.max_pool(x, (window, window), (1, 1), "SAME")


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
    "epsilon 1e-5 for 1e-3": ("inception_v3", NATIVE, patched(inception_v3, "EPSILON", 1e-5), "block/stem"),
    "SAME to VALID, sizes fit": (
        "inception_v3",
        NATIVE,
        block("stem", Conv(64, 3, 3), Conv(64, 3, 3, 1, "VALID")),
        "block/stem",
    ),
    "SAME to VALID, sizes do not fit": (
        "inception_v3",
        NATIVE,
        block("mixed5", Conv(160, 1, 7), Conv(160, 1, 7, 1, "VALID")),
        "block/mixed5",
    ),
    "average pool counts padding": ("inception_v3", NATIVE, lineage(options={"count_padding": True}), "block/mixed0"),
    "max for average": ("inception_v3", NATIVE, patched(conv, "avg_pool", max_for_average), "block/mixed0"),
    "beta and moving mean exchanged": (
        "inception_v3",
        NATIVE,
        exchanged(("params", "mixed2", *BN, "bias"), ("batch_stats", "mixed2", *BN, "mean")),
        "block/mixed2",
    ),
    "one kernel flipped": (
        "inception_v3",
        NATIVE,
        array(("params", "mixed4", "branch2_conv2", "conv", "kernel"), lambda kernel: kernel[:, ::-1]),
        "block/mixed4",
    ),
    "a pair of equal-shaped kernels exchanged": (
        "inception_v3",
        NATIVE,
        exchanged(
            ("params", "mixed9", "branch2_conv2a", "conv", "kernel"),
            ("params", "mixed9", "branch3_conv3a", "conv", "kernel"),
        ),
        "block/mixed9",
    ),
    "running statistics too fast": ("inception_v3", NATIVE, job(batch_norm_momentum=0.98), "step 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_fails_at_its_own_stage(setting, monkeypatch, name):
    network, options, mistake, stage = MISTAKES[name]
    done = mistake(setting(network, **options), monkeypatch).certify()
    assert done.verdict == FAILED
    assert done.first_divergence == stage, render(done)
    assert f"FAILED: {network} and keras part at {stage}" in render(done)


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
