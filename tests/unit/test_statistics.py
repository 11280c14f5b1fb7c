"""Intervals and tests against oracles that are written another way, and under hypotheses that are known to hold."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from kimiajax import paper
from kimiajax.evaluation import statistics
from kimiajax.evaluation.metrics import kimia_scores, scores_from_counts
from kimiajax.evaluation.statistics import (
    compare_pairs,
    holm,
    interval_of,
    intervals_of_rows,
    mcnemar,
    newcombe,
    permutation,
    resampled_scores,
    simulated_coverage,
    smallest_difference,
    two_proportions,
    unpaired_interval,
    wilson,
)

KIMIA = np.repeat(np.arange(paper.NUM_SCANS), paper.TEST_PATCHES_PER_SCAN)


def drawn_rows(rng, scans, *chances):
    """Which patches rows get right, each with its chance."""
    return rng.random((len(chances), len(scans))) < np.array(chances)[:, None]


def plain_scores(scans, correct):
    eta_w = np.mean([correct[scans == scan].mean() for scan in np.unique(scans)])
    return np.array([correct.mean(), eta_w, correct.mean() * eta_w])


def test_scores_from_counts_are_the_metric_modules(rng):
    scans = rng.integers(0, 7, 90)
    scans[scans == 3] = 4  # a scan without test patches
    predicted = np.where(rng.random(90) < 0.5, scans, rng.integers(0, 7, 90))
    counts = np.bincount(scans, predicted == scans, 7)
    found, wanted = scores_from_counts(counts, np.bincount(scans, minlength=7)), kimia_scores(scans, predicted, 7)
    for name in found._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-6)


def test_wilsons_interval_is_its_formula():
    n, k, z = 1325, 861, 1.959963984540054
    p, shrunk = k / n, 1 + z**2 / n
    half = z / shrunk * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    middle = (p + z**2 / (2 * n)) / shrunk
    assert wilson(k, n) == pytest.approx((middle - half, middle + half))
    assert wilson(0, 5).low == 0
    assert wilson(5, 5).high == 1


def test_the_bootstrap_is_a_plain_loops(rng):
    scans = np.repeat([2, 0, 1], [12, 5, 30])
    correct = drawn_rows(rng, scans, 0.4, 0.8)
    found = resampled_scores(scans, correct, seed=1, draws=4000)
    loop = []
    for _ in range(4000):
        places = np.concatenate([rng.choice(np.flatnonzero(scans == scan), (scans == scan).sum()) for scan in range(3)])
        loop.append([plain_scores(scans[places], row[places]) for row in correct])
    loop = np.moveaxis(np.array(loop), 2, 0)  # [scores draws rows]
    for drawn, wanted in zip(found, loop):
        assert drawn.shape == (4000, 2)
        for row in range(2):  # quantiles of 4,000 draws, of steps of 1 / 47, wander by as much
            np.testing.assert_allclose(interval_of(drawn[:, row]), interval_of(wanted[:, row]), atol=0.025)
    paired, of_loop = np.subtract(*found.eta_w.T), np.subtract(*loop[1].T)
    np.testing.assert_allclose(np.std(paired), np.std(of_loop), rtol=0.08)


def test_the_bootstrap_of_one_scan_is_scipys(rng):
    correct = rng.random(60) < 0.7
    drawn = resampled_scores(np.zeros(60, int), correct[None], draws=9999).eta_w[:, 0]
    wanted = scipy.stats.bootstrap((correct,), np.mean, method="percentile", rng=rng).confidence_interval
    np.testing.assert_allclose(interval_of(drawn), wanted, atol=1 / 60)


def right_on_one_scan_only():
    return (KIMIA == 0)[None]


def test_every_draw_has_each_scans_number_of_patches():
    """So a row that is right on all of one scan and nothing else has one eta_p in every draw."""
    found = resampled_scores(KIMIA, right_on_one_scan_only(), draws=50)
    np.testing.assert_allclose(found.eta_p, 65 / 1325)


def test_a_bootstrap_that_is_not_stratified_is_found_out(monkeypatch):
    def anywhere(key, correct, scans, starts, tested, draws):
        places = jax.random.randint(key, (draws, len(scans)), 0, len(scans))
        return jnp.swapaxes(jnp.asarray(correct)[:, places], 0, 1) @ jax.nn.one_hot(scans, len(tested))

    monkeypatch.setattr(statistics, "_resampled", anywhere)
    with pytest.raises(AssertionError):
        test_every_draw_has_each_scans_number_of_patches()


def test_intervals_hold_the_truth_in_93_to_97_of_100_test_sets_of_kimias_counts(rng):
    chances, trials = rng.uniform(0.3, 0.95, paper.NUM_SCANS), 600
    correct = rng.random((trials, len(KIMIA))) < chances[KIMIA]
    found = resampled_scores(KIMIA, correct, draws=1000)
    eta_p, eta_w = chances[KIMIA].mean(), chances.mean()
    for drawn, truth in ((found.eta_w, eta_w), (found.eta_total, eta_p * eta_w)):
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        assert 0.93 <= np.mean((low <= truth) & (truth <= high)) <= 0.97
    # Wilson's knows nothing of strata, which make eta_p vary less than a single share does.
    within = [wilson(int(row.sum()), len(row)) for row in correct]
    assert np.mean([low <= eta_p <= high for low, high in within]) >= 0.93
    same = rng.random((trials, len(KIMIA))) < 0.65
    within = [wilson(int(row.sum()), len(row)) for row in same]
    assert 0.93 <= np.mean([low <= 0.65 <= high for low, high in within]) <= 0.97


def test_how_often_intervals_of_few_patches_a_scan_hold_the_truth_is_simulated(rng):
    def coverage(each):
        scans = np.repeat(np.arange(24), each)
        correct = rng.random((600, len(scans))) < 0.65
        low, high = np.quantile(resampled_scores(scans, correct, draws=1000).eta_w, [0.025, 0.975], axis=0)
        return np.mean((low <= 0.65) & (high >= 0.65))

    for each, least, most in ((1, 0, 0), (2, 0.75, 0.9), (4, 0.86, 0.95)):
        assert least <= coverage(each) <= most
        assert simulated_coverage(np.full(24, each), 0.65) == pytest.approx(coverage(each), abs=0.05)


def test_newcombes_interval_is_that_of_his_paper():
    """36 and 12 of 50 against 2 more: a line of his table II, by method 10."""
    assert newcombe(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    low, high = newcombe(5, 0, 0, 0)
    assert low == pytest.approx(-high)
    assert -0.45 < low < -0.4, "five patches on which both agree show little"
    one, other = newcombe(20, 9, 4, 7), newcombe(20, 4, 9, 7)
    assert one == pytest.approx((-other.high, -other.low))


@pytest.mark.parametrize(("tested", "chance"), [(40, 0.95), (129, 0.5), (1325, 0.65)])
def test_intervals_of_a_difference_hold_none_where_there_is_none(rng, tested, chance):
    held = []
    for _ in range(600):
        common = rng.random(tested) < chance
        rows = [np.where(rng.random(tested) < 0.8, common, rng.random(tested) < chance) for _ in range(2)]
        both, first, second = (int((rows[0] == a) @ (rows[1] == b)) for a, b in ((1, 1), (1, 0), (0, 1)))
        low, high = newcombe(both, first, second, tested - both - first - second)
        held.append(low <= 0 <= high)
    assert np.mean(held) >= 0.93


def test_mcnemars_test_is_the_tail_of_a_coin():
    for first, second in ((3, 9), (9, 3), (4, 4), (0, 6), (0, 0)):
        both, least = first + second, min(first, second)
        tail = sum(math.comb(both, k) for k in range(least + 1)) / 2**both
        assert mcnemar(first, second) == pytest.approx(min(1, 2 * tail))


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_permutation_test_is_a_count_over_all_swaps(rng, seeds):
    scans = np.array([0] * 5 + [1] * 7)
    first, second = (drawn_rows(rng, scans, *[chance] * seeds) for chance in (0.9, 0.3))

    def difference(first, second):
        return np.mean([plain_scores(scans, a) - plain_scores(scans, b) for a, b in zip(first, second)], axis=0)

    observed = np.abs(difference(first, second))
    places = np.flatnonzero((first != second).any(0))
    counts, total = np.zeros(3), 0
    for swaps in itertools.product([False, True], repeat=len(places)):
        swapped = np.zeros(len(scans), bool)
        swapped[places] = swaps
        drawn = difference(np.where(swapped, second, first), np.where(swapped, first, second))
        counts, total = counts + (np.abs(drawn) >= observed - 1e-9), total + 1
    found = permutation(scans, first[None], second[None], draws=20_000)
    np.testing.assert_allclose(np.ravel(found), counts / total, atol=0.012)


def level(rng, seeds):
    """How often two rows that are equally good, and mostly right on the same patches, are told apart."""
    scans, trials = np.repeat(np.arange(6), 20), 300
    common = np.repeat(rng.random((trials, 1, len(scans))) < 0.6, seeds, axis=1)
    first, second = (np.where(rng.random(common.shape) < 0.3, rng.random(common.shape) < 0.6, common) for _ in range(2))
    exact = [mcnemar(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in zip(first, second)]
    found = permutation(scans, first, second, draws=499)
    return [np.mean(np.array(p_values) <= 0.05) for p_values in (exact, *found)]


@pytest.mark.parametrize("seeds", [1, 3])
def test_tests_keep_their_level_where_there_is_no_difference(rng, seeds):
    exact, *permuted = level(rng, seeds)
    assert exact <= 0.075 or seeds > 1  # an exact test is the more cautious; of several seeds it is not used
    assert all(0.015 <= share <= 0.085 for share in permuted)


def test_the_pairs_tests_see_that_rows_are_right_on_the_same_patches(rng):
    """Ten patches more of 600: sure where all others agree, nothing where each row's are shuffled."""
    scans = np.repeat(np.arange(6), 100)
    first = rng.random((1, 600)) < 0.5
    second = first & (np.cumsum(first) > 12)
    (pair,) = compare_pairs(scans, {"first": first, "second": second}, draws=2000)
    assert max(pair.p_values.values()) < 0.002
    assert pair.intervals["eta_w"].low > 0
    shuffled = rng.permuted(second, axis=1)
    (pair,) = compare_pairs(scans, {"first": first, "second": shuffled}, draws=2000)
    assert min(pair.p_values.values()) > 0.05
    assert pair.intervals["eta_w"].low < 0


def test_a_row_differs_from_itself_in_no_draw(rng):
    """Which it would, were each row given draws of its own."""
    row = rng.random((2, len(KIMIA))) < 0.6
    (pair,) = compare_pairs(KIMIA, {"one": row, "same": row.copy()}, draws=500)
    assert all(interval == (0, 0) for interval in pair.intervals.values())
    assert set(pair.p_values.values()) == set(pair.adjusted.values()) == {1.0}


def test_a_pair_is_told_by_its_rows_whatever_others_there_are(rng):
    rows = {name: drawn_rows(rng, KIMIA, chance, chance) for name, chance in (("a", 0.5), ("b", 0.7), ("c", 0.71))}
    found = {(pair.first, pair.second): pair for pair in compare_pairs(KIMIA, rows, draws=400)}
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    for (first, second), pair in found.items():
        wanted = np.mean([plain_scores(KIMIA, row) for row in rows[first]], axis=0)
        wanted = wanted - np.mean([plain_scores(KIMIA, row) for row in rows[second]], axis=0)
        assert list(pair.difference.values()) == pytest.approx(list(wanted))
        assert pair.only_first == (rows[first] & ~rows[second]).sum()
        assert all(low <= pair.difference[score] <= high for score, (low, high) in pair.intervals.items())
        assert all(pair.adjusted[score] >= p_value for score, p_value in pair.p_values.items())
    assert found["a", "b"].adjusted["eta_w"] < 0.01 < 0.05 < found["b", "c"].adjusted["eta_w"]


def test_the_interval_of_several_seeds_is_of_their_mean(rng):
    """Seeds that err on other patches cancel each other; what their scores differ by is not in it."""
    one = drawn_rows(rng, KIMIA, 0.6)
    many = drawn_rows(rng, KIMIA, *[0.6] * 8)
    found = intervals_of_rows(KIMIA, {"one": np.repeat(one, 8, axis=0), "many": many}, draws=1000)
    widths = {name: scores["eta_w"].high - scores["eta_w"].low for name, scores in found.items()}
    assert widths["many"] == pytest.approx(widths["one"] / math.sqrt(8), rel=0.25)
    exact = intervals_of_rows(KIMIA, {"one": one}, draws=10)["one"]["eta_p"]
    assert exact == wilson(int(one.sum()), len(KIMIA))
    assert intervals_of_rows(KIMIA, {}) == {}


def test_the_same_seed_draws_the_same(rng):
    correct = drawn_rows(rng, KIMIA, 0.6)
    one, same, other = (resampled_scores(KIMIA, correct, seed, 20).eta_w for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_holms_correction_is_worked_out_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_two_counts_whose_patches_are_unknown_are_compared_as_scipy_does():
    first, second, n = 992, 940, 1325
    z, p_value = two_proportions(first, second, n)
    table = [[first, n - first], [second, n - second]]
    chi = scipy.stats.chi2_contingency(table, correction=False)
    assert (z**2, p_value) == pytest.approx((chi.statistic, chi.pvalue))
    assert two_proportions(5, 5, 5) == (0, 1)
    low, high = unpaired_interval(861, 864, n)
    assert high - low == pytest.approx(2 * 0.036, abs=0.001), "the 3.6 points of the literature's table"


def test_the_smallest_difference_is_found_four_times_in_five(rng):
    """By simulation: rows that differ by it, with so many patches on which one alone is right."""
    n, discordant = 1325, 0.2
    smallest = smallest_difference(n, discordant)
    only = rng.multinomial(n, [(discordant + smallest) / 2, (discordant - smallest) / 2, 1 - discordant], 1500)
    assert np.mean([mcnemar(a, b) <= 0.05 for a, b, _ in only.tolist()]) == pytest.approx(0.8, abs=0.04)
    assert smallest_difference(5, 0.2) is None, "not even one that all of those patches make"
