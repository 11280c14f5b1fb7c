"""Every test runs on the CPU, with array shapes checked, and with a cache folder of its own.

Compiling takes most of the time. So each program is compiled once for all processes of a run and for the runs after it,
as little optimised as XLA can, but for tests marked `optimised`; and convolutions are plain where a test does not name
another algorithm.
"""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNOPTIMISED = "--xla_backend_optimization_level=0"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["KERAS_BACKEND"] = "jax"

from jaxtyping import install_import_hook

install_import_hook(["kimiajax", "weights_convert"], "beartype.beartype")

import jax
import numpy as np
import pytest
from support.networks import TWO
from support.once import assert_untouched, once

from kimiajax.data.sources.synthetic import write_synthetic_scans
from kimiajax.models import conv_autotune
from kimiajax.models.backbone import Backbone
from kimiajax.models.registry import BACKBONES
from kimiajax.report import figures
from kimiajax.runtime.compilation_cache import keep_programs


def pytest_configure(config: pytest.Config) -> None:
    """Settles what JAX reads once a process, for this one and for those that it starts."""
    chosen = config.option.markexpr
    if "optimised" not in chosen or "not optimised" in chosen:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '').replace(UNOPTIMISED, '')} {UNOPTIMISED}".strip()
    kept = keep_programs(ROOT / ".cache")  # None in a worker, which inherits the folder
    if kept is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(kept.folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("optimised") and "networks" not in item.path.parts:
            raise pytest.UsageError(f"{item.nodeid}: `make test` looks for `optimised` in tests/networks alone")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def nothing_is_autotuned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement on a busy machine may come out either way, and compiles what a test then does not need."""
    if not request.node.get_closest_marker("autotunes"):

        def measured(*_: object) -> None:
            raise AssertionError("this test measures convolutions: name one (`--conv plain`), or mark it `autotunes`")

        monkeypatch.setattr(conv_autotune, "_measured", measured)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for `--cache` that the tests of a file share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory):
    """Makes a folder once for all processes of a test run, see `support.once`: `shared(name, make)`."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"
    yield lambda name, make: once(root / name, make)
    assert_untouched(root)


@pytest.fixture(scope="session")
def scans(shared):
    """A scan file of 4 synthetic scans, 16 training and 11 test patches of 80 x 80 pixels."""
    options = {"num_scans": 4, "patch_size": 80, "grid": (4, 4), "test_patches": (2, 3), "seed": 8}
    return shared("scans", lambda folder: write_synthetic_scans(folder / "scans.h5", **options)) / "scans.h5"


@pytest.fixture(scope="session")
def tissues():
    """The examples of a colour set with a training split alone, as colorectal_histology is."""
    from support.foreign_sets import colours  # which loads TFDS

    return colours(np.random.default_rng(3))


@pytest.fixture(scope="session")
def colour(tissues, shared):
    """The folder in which that set is prepared."""
    from support.foreign_sets import prepare

    return shared("colour", lambda folder: prepare(folder, {"train": tissues}, shards=2))


@pytest.fixture(scope="session")
def two():
    """Has `fe_two`, `tl_two` and the rest among the rows, in this process, from here on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, TWO.name, TWO)
        yield


@pytest.fixture
def cnn() -> Backbone:
    return BACKBONES["cnn"]


@pytest.fixture
def undrawn(monkeypatch):
    """Figures without their drawings, which take most of a report's time."""
    monkeypatch.setattr(figures, "_svg", lambda canvas: b"<svg/>")
