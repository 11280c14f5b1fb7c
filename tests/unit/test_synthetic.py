import numpy as np
import pytest

from kimiajax.data.open_scans import open_scans
from kimiajax.data.patches import cut_patches
from kimiajax.data.sources.synthetic import write_synthetic_scans
from kimiajax.data.survey import WHITE

SMALL = {"num_scans": 3, "patch_size": 32, "grid": (6, 6), "test_patches": (2, 6)}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "scans.h5"
    write_synthetic_scans(path, seed=0, **SMALL)
    return path


def test_the_file_has_the_official_layout_and_says_that_it_is_synthetic(path):
    with open_scans(path) as scans:
        assert len(scans) == 3
        assert scans.patch_size == 32
        assert scans.synthetic
        assert len(set(np.bincount(scans.targets).tolist())) > 1, "test counts are uneven"


def test_the_same_seed_draws_the_same_scans_and_another_seed_others(path, tmp_path):
    for seed, same in ((0, True), (1, False)):
        write_synthetic_scans(tmp_path / "again.h5", seed=seed, **SMALL)
        with open_scans(path) as first, open_scans(tmp_path / "again.h5") as second:
            assert np.array_equal(first.read(1, 0, 0, 200, 200), second.read(1, 0, 0, 200, 200)) == same


def test_glass_varies_and_only_whitened_places_are_white(path):
    with open_scans(path) as scans:
        for scan in range(3):
            pixels = scans.read(scan, 0, 0, *scans.shape(scan))
            whitened = np.count_nonzero(scans.targets == scan) * 32 * 32
            assert np.count_nonzero(pixels == WHITE) == whitened
            assert len(np.unique(pixels[pixels >= 236])) > 5


def test_some_test_places_lie_on_the_grid_and_some_off_it(path):
    with open_scans(path) as scans:
        assert all((scans.read_test_patch(k) < WHITE).all() for k in range(len(scans.targets)))
        whitened = [
            np.mean(scans.read(scan, row, col, 32, 32) == WHITE)
            for scan in range(3)
            for row in range(0, scans.shape(scan)[0] - 31, 32)
            for col in range(0, scans.shape(scan)[1] - 31, 32)
        ]
        assert 1 in whitened
        assert any(0.01 < fraction < 1 for fraction in whitened)


def test_no_training_patch_of_synthetic_scans_lies_over_a_whitened_place(path):
    with open_scans(path) as scans:
        for patch in cut_patches(scans).split("train"):
            assert np.mean(scans.read(patch.scan, patch.row, patch.col, 32, 32) == WHITE) <= 0.01


def test_tissues_differ_more_from_scan_to_scan_than_within_one(path):
    """Mean gray and contrast of patches: variance between scans against variance within."""
    with open_scans(path) as scans:
        patches = cut_patches(scans).split("train")
        pixels = [scans.read(p.scan, p.row, p.col, 32, 32).astype(float) for p in patches]
    seen = np.array([(image.mean(), image.std()) for image in pixels])
    labels = np.array([p.scan for p in patches])
    within = np.mean([seen[labels == scan].var(axis=0) for scan in range(3)], axis=0)
    between = np.var([seen[labels == scan].mean(axis=0) for scan in range(3)], axis=0)
    assert (between > within).any()
