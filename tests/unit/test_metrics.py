import math

import jax
import numpy as np
import pytest
from support.scores import counted_by_hand

from kimiajax.errors import UserError
from kimiajax.evaluation.metrics import kimia_scores


@pytest.mark.parametrize("scans_tested", [5, 3])
def test_scores_equal_a_plain_count_with_and_without_absent_scans(rng, scans_tested):
    labels = rng.integers(0, scans_tested, 40)
    predicted = rng.integers(0, 5, 40)
    scores = kimia_scores(labels, predicted, 5)
    np.testing.assert_allclose(scores[:4], counted_by_hand(labels, predicted, 5), rtol=1e-6)


def test_the_papers_products_come_out():
    # 1 of 1 and 1 of 3 correct: eta_p 2/4, eta_w (1 + 1/3) / 2.
    scores = kimia_scores(np.array([0, 1, 1, 1]), np.array([0, 1, 0, 0]), 2)
    np.testing.assert_allclose(scores[:3], [1 / 2, 2 / 3, 1 / 3], rtol=1e-6)


def test_padded_entries_count_nowhere(rng):
    labels, predicted = rng.integers(0, 4, 30), rng.integers(0, 4, 30)
    mask = np.arange(30) < 21
    padded = kimia_scores(labels, predicted, 4, mask)
    np.testing.assert_allclose(padded[:4], kimia_scores(labels[:21], predicted[:21], 4)[:4], rtol=1e-6)


def test_precision_is_undefined_where_a_tested_scan_is_never_predicted():
    scores = kimia_scores(np.array([0, 1]), np.array([0, 0]), 2)
    assert math.isnan(scores.eta_w_precision)
    assert float(scores.eta_w) == 0.5


def test_a_prediction_outside_the_scans_is_wrong_and_nothing_else():
    scores = kimia_scores(np.array([0, 1]), np.array([-1, 1]), 2)
    np.testing.assert_allclose(scores[:2], [0.5, 0.5])


def test_a_label_that_is_no_scan_is_refused_and_makes_no_score_under_jit():
    labels, predicted = np.array([0, 1, 5]), np.array([0, 1, 0])
    with pytest.raises(UserError, match="outside 0 to 1"):
        kimia_scores(labels, predicted, 2)
    traced = jax.jit(kimia_scores, static_argnums=2)(labels, predicted, 2)
    assert np.isnan([traced.eta_p, traced.eta_total]).all()
    masked = kimia_scores(np.array([0, 1, -1]), predicted, 2, np.array([True, True, False]))
    assert float(masked.eta_total) == 1


def test_scores_run_under_jit_and_vmap(rng):
    labels, predicted = rng.integers(0, 4, (3, 20)), rng.integers(0, 4, (3, 20))
    together = jax.jit(jax.vmap(lambda t, p: kimia_scores(t, p, 4)))(labels, predicted)
    for row in range(3):
        alone = kimia_scores(labels[row], predicted[row], 4)
        np.testing.assert_allclose([field[row] for field in together[:4]], alone[:4], rtol=1e-6)
