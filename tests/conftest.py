"""Every test runs on the CPU, with array shapes checked, and with a cache folder of its own.

Compiling takes most of the time, so a program is compiled once for all tests of a run, in whatever process they are.
"""

import atexit
import os
import shutil
import tempfile

PROGRAMS = tempfile.mkdtemp(prefix="kimiajax-tests-")
atexit.register(shutil.rmtree, PROGRAMS, ignore_errors=True)

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
os.environ["KERAS_BACKEND"] = "jax"

from jaxtyping import install_import_hook

install_import_hook(["kimiajax", "weights_convert"], "beartype.beartype")

from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

from kimiajax.data.synthetic import write_synthetic_scans
from kimiajax.models.backbone import Backbone
from kimiajax.models.registry import BACKBONES


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    path = tmp_path_factory.mktemp("scans") / "scans.h5"
    write_synthetic_scans(path, num_scans=4, patch_size=80, grid=(4, 4), test_patches=(2, 3), seed=5)
    return path


@pytest.fixture(scope="module")
def tissues():
    """The examples of a colour set with a training split alone, as colorectal_histology is."""
    from foreign_sets import colours  # which loads TFDS

    return colours(np.random.default_rng(3))


@pytest.fixture(scope="module")
def colour(tissues, tmp_path_factory):
    """The folder in which that set is prepared."""
    from foreign_sets import prepare

    root = tmp_path_factory.mktemp("sets")
    prepare(root, {"train": tissues}, shards=2)
    return root


def write_scans(
    path: Path,
    scans: list[np.ndarray],
    patches: np.ndarray | None = None,
    targets: np.ndarray | None = None,
) -> Path:
    """A scan file in the official layout, with one gray test patch of 8 x 8 per scan unless others are given."""
    patches = np.full((len(scans), 8, 8), 100, np.uint8) if patches is None else patches
    targets = np.arange(len(patches)) if targets is None else targets
    with h5py.File(path, "w") as file:
        for number, scan in enumerate(scans):
            file[f"scan{number}/data"] = scan
            file[f"scan{number}/thumbnail"] = scan[::4, ::4]
        file["test_data/patches"] = patches
        file["test_data/targets"] = targets
    return path


def tissue(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(40, 180, (height, width), dtype=np.uint8)


def randomise(variables: dict, rng: np.random.Generator) -> dict:
    """Every array random, statistics and biases too: constants would hide arrays that are exchanged."""

    def draw(path: tuple, leaf: np.ndarray) -> np.ndarray:
        match path[-1].key:
            case "kernel":
                return (rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(np.float32)
            case "var" | "scale":
                return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
            case _:
                return (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


@pytest.fixture
def cnn() -> Backbone:
    return BACKBONES["cnn"]
