import numpy as np
import pytest

from kimiajax.data.open_scans import open_scans
from kimiajax.data.patches import cut_patches
from kimiajax.data.sources import synthetic
from kimiajax.data.sources.synthetic import write_synthetic_scans
from kimiajax.data.survey import WHITE
from kimiajax.features.baselines import features_of, fit_standardised

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


def tissues(seed=0):
    """12 patches of 96 x 96 of each of 12 scans, in an order of chance, and whose they are."""
    rng, patches = np.random.default_rng(seed), []
    for _ in range(12):
        drawn = synthetic.draw_tissue(synthetic.Tissue.draw(rng), 5 * 96, 6 * 96, rng)
        grid = drawn.reshape(5, 96, 6, 96).swapaxes(1, 2)
        patches += [*grid[1:-1, 1:-1].reshape(-1, 96, 96)]
    order = rng.permutation(len(patches))
    return np.stack(patches)[order], np.repeat(np.arange(12), 12)[order]


def energies(images):
    """How much of each wavelength and direction a patch holds: 6 bands of 8 to 48 pixels by 4 directions."""
    spectrum = np.abs(np.fft.rfft2(images - images.mean(axis=(1, 2), keepdims=True)))
    y, x = np.fft.fftfreq(96)[:, None], np.fft.rfftfreq(96)[None]
    band = np.digitize(1 / np.maximum(np.hypot(x, y), 1e-9), np.geomspace(8, 48, 7)) - 1
    sector = (np.arctan2(y, x) % np.pi / (np.pi / 4)).astype(int) % 4
    return np.stack([spectrum[:, (band == b) & (sector == s)].sum(axis=1) for b in range(6) for s in range(4)], axis=1)


def accuracy(features, labels):
    """Of a linear SVM that learns from two thirds and is tested on the others."""
    learnt = fit_standardised(features[48:], labels[48:])
    return np.mean(learnt.predict(features[:48]) == labels[:48])


def test_structure_at_the_scale_of_glands_tells_scans_apart_and_gray_levels_and_neighbouring_pixels_hardly():
    images, labels = tissues()
    assert accuracy(energies(images), labels) > 0.8
    assert accuracy(features_of("floor_lbp", images), labels) < 0.4
    for gray in ("floor_mean_sd", "floor_bright", "floor_histogram"):
        assert accuracy(features_of(gray, images), labels) < 2 / 12


@pytest.mark.parametrize(
    ("taken_out", "by", "told_by"),
    [
        ("MOSAIC", ((0, 0), (0, 0)), "floor_lbp"),
        ("_ranks", lambda glands, size: glands / np.abs(glands).max(), "floor_histogram"),
    ],
)
def test_what_hides_the_scans_from_simple_features_is_what_hides_them(monkeypatch, taken_out, by, told_by):
    monkeypatch.setattr(synthetic, taken_out, by)
    images, labels = tissues()
    assert accuracy(features_of(told_by, images), labels) > 0.5
