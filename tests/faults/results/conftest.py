"""Finished runs, which each test may damage."""

import shutil

import numpy as np
import pytest
from PIL import Image
from support.stored_runs import manifest_of, predictions_of, write_run

from faults.results.planting import table


@pytest.fixture(scope="package")
def run(scans, tmp_path_factory):
    """A finished run of a real table; tests copy it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert table(out, scans).status == 0
    return out


@pytest.fixture
def copy(run, tmp_path):
    """A copy of that run, to be damaged."""
    return shutil.copytree(run, tmp_path / "run")


@pytest.fixture(scope="package")
def pictured(tmp_path_factory):
    """A made-up run with pictures of scans and of nearest patches, which are two of one query."""
    folder = tmp_path_factory.mktemp("pictured") / "run"
    manifest, rng = manifest_of([6, 5, 7]), np.random.default_rng(2)
    write_run(folder, manifest, {"nn_vgg16_cosine": predictions_of(rng, manifest.labels("test"), 3, 0.6)})
    Image.new("L", (9, 9), 7).save(folder / "pictures/scans/scan-1.png")  # unlike the others
    return folder
