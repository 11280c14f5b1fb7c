"""Trivial features and their SVM, against plain loops and scikit-learn."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from kimiajax.errors import UserError
from kimiajax.features.baselines import FLOORS, features_of, fit_standardised, histogram, local_binary_patterns


def patterns_by_hand(image):
    """Shares of the uniform patterns, by their eight digits, pixel by pixel."""
    ring = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    counts = {}
    for row in range(1, image.shape[0] - 1):
        for col in range(1, image.shape[1] - 1):
            digits = [int(image[row + r, col + c] >= image[row, col]) for r, c in ring]
            uniform = sum(one != other for one, other in zip(digits, digits[1:] + digits[:1])) <= 2
            key = sum(digit << bit for bit, digit in enumerate(digits)) if uniform else -1
            counts[key] = counts.get(key, 0) + 1
    total = sum(counts.values())
    return sorted(count / total for count in counts.values())


def test_local_binary_patterns_are_a_plain_count(rng):
    image = rng.integers(0, 8, (12, 15), dtype=np.uint8)
    found = local_binary_patterns(image)
    assert len(found) == 59
    assert sorted(found[found > 0]) == pytest.approx(patterns_by_hand(image))
    rising = np.tile(np.arange(9, dtype=np.uint8), (9, 1))
    assert (local_binary_patterns(rising) > 0).sum() == 1, "one pattern everywhere, and a uniform one"
    assert local_binary_patterns(rising)[58] == 0


def test_a_histogram_counts_each_gray_value(rng):
    image = rng.integers(0, 256, (9, 9), dtype=np.uint8)
    assert histogram(image) == pytest.approx([(image == value).mean() for value in range(256)])


def test_every_floor_gives_a_row_an_image(rng):
    images = rng.integers(0, 256, (3, 10, 10), dtype=np.uint8)
    shapes = {name: features_of(name, images).shape for name in FLOORS}
    assert shapes == {
        "floor_mean_sd": (3, 2),
        "floor_bright": (3, 1),
        "floor_histogram": (3, 256),
        "floor_lbp": (3, 59),
    }
    assert features_of("floor_bright", images, background=100)[0, 0] == (images[0] >= 100).mean()


def test_the_svm_is_scikit_learns_on_standardised_features(rng):
    labels = np.arange(60) % 4
    features = rng.standard_normal((60, 5)) * [1e-4, 1, 30, 0, 2] + labels[:, None] * [1e-4, 0.3, 5, 0, 0] + 7
    tested = features + 0.1 * rng.standard_normal((60, 5)) * [1e-4, 1, 30, 0, 2]
    judge = make_pipeline(StandardScaler(), SVC(kernel="linear", C=1.0)).fit(features, labels)
    found = fit_standardised(features, labels)
    np.testing.assert_array_equal(found.predict(tested), judge.predict(tested))
    assert (found.coef[:, 3] == 0).all(), "what is the same everywhere decides nothing"


def test_features_that_are_the_same_for_every_patch_are_refused(rng):
    with pytest.raises(UserError, match="the same for every patch"):
        fit_standardised(np.full((8, 1), 0.3), np.arange(8) % 2)
