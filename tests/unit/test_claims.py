"""The paper's conclusions against its own table, and against tables made so that each verdict comes up."""

import itertools

import numpy as np
import pytest

from kimiajax import paper
from kimiajax.evaluation.claims import CLAIMS, FAILS, HOLDS, OPEN, Computed, Figures, Printed, rule
from kimiajax.evaluation.statistics import compare_pairs

KIMIA = np.repeat(np.arange(paper.NUM_SCANS), paper.TEST_PATCHES_PER_SCAN)


def test_the_papers_table_bears_out_what_it_can():
    rulings = rule(Printed())
    assert {name: ruling.verdict for name, ruling in rulings.items()} == {
        "products": FAILS,
        "features_match_training": OPEN,
        "vgg16_tuning_does_not_help": OPEN,
        "inception_v3_tuning_helps": HOLDS,
        "gain_of_8.74_points": OPEN,
        "tuned_inception_v3_is_best": HOLDS,
    }
    assert rulings["products"].reason == "CNN1: 64.98 x 64.75 is 42.07 and not 41.80"
    assert "992 against 940 of 1,325 patches, z = 2.27" in rulings["inception_v3_tuning_helps"].reason
    assert "+8.74 points, but CNN1's factors multiply to 42.07, which leaves +8.47" in (
        rulings["gain_of_8.74_points"].reason
    )
    assert "864 against 861" in rulings["features_match_training"].reason


def table(rng, noise=0.0, unfit=None, leave_out=(), **eta_p):
    """A table whose rows are right on the same patches, the easiest first, but for some that they are apart by."""
    order = rng.permutation(len(KIMIA))
    rows = {}
    for row in paper.TABLE_1:
        right = np.zeros(len(KIMIA), bool)
        right[order[: round(eta_p.get(row, 0.65) * len(KIMIA))]] = True
        rows[row] = (right ^ (rng.random(len(KIMIA)) < noise))[None]
    rows = {row: right for row, right in rows.items() if row not in leave_out}
    scores = {paper.TABLE_1[row].name: right.mean() for row, right in rows.items()}
    figures = {name: Figures(score, score, score**2, 1e-12) for name, score in scores.items()}
    pairs = compare_pairs(KIMIA, rows, draws=300)
    return Computed(figures, tuple(pairs), unfit or {})


def verdict(evidence, claim):
    return rule(evidence)[claim].verdict


@pytest.mark.parametrize(
    ("claim", "settings", "wanted"),
    [
        ("features_match_training", {"fe_vgg16": 0.655}, HOLDS),
        ("features_match_training", {"fe_vgg16": 0.75}, FAILS),
        ("features_match_training", {"noise": 0.2}, OPEN),
        ("vgg16_tuning_does_not_help", {"tl_vgg16": 0.655}, HOLDS),
        ("vgg16_tuning_does_not_help", {"tl_vgg16": 0.5}, HOLDS),
        ("vgg16_tuning_does_not_help", {"tl_vgg16": 0.75}, FAILS),
        ("vgg16_tuning_does_not_help", {"noise": 0.2}, OPEN),
        ("inception_v3_tuning_helps", {"tl_inception_v3": 0.75}, HOLDS),
        ("inception_v3_tuning_helps", {"tl_inception_v3": 0.5}, FAILS),
        ("inception_v3_tuning_helps", {}, OPEN),
        ("inception_v3_tuning_helps", {"tl_inception_v3": 0.67, "noise": 0.2}, OPEN),
        ("gain_of_8.74_points", {"fe_inception_v3": 0.7149}, HOLDS),
        ("gain_of_8.74_points", {"fe_inception_v3": 0.9}, FAILS),
        ("gain_of_8.74_points", {}, OPEN),
        ("gain_of_8.74_points", {"noise": 0.05}, FAILS),
        ("tuned_inception_v3_is_best", {"tl_inception_v3": 0.75}, HOLDS),
        ("tuned_inception_v3_is_best", {"tl_inception_v3": 0.75, "cnn": 0.9}, FAILS),
    ],
)
def test_each_verdict_comes_up_where_it_is_true(rng, claim, settings, wanted):
    assert verdict(table(rng, **settings), claim) == wanted


def test_a_pair_is_read_from_either_side(rng):
    """TL-VGG16 comes after FE-VGG16 in the table, and the claim names it first."""
    better = rule(table(rng, tl_vgg16=0.75))["vgg16_tuning_does_not_help"].reason
    assert better.startswith("+10.04 points")
    assert "133 patches that it alone got right against 0" in better


def test_rows_that_can_bear_no_claim_are_named(rng):
    unfit = table(rng, tl_inception_v3=0.9, unfit={"tl_inception_v3": "Inception-v3's weights are random"})
    assert rule(unfit)["inception_v3_tuning_helps"] == (OPEN, "Inception-v3's weights are random")
    assert verdict(unfit, "products") == HOLDS
    absent = table(rng, leave_out=("cnn",))
    assert rule(absent)["features_match_training"] == (OPEN, "CNN1 was not computed")
    assert rule(Computed({}, (), {}))["products"].verdict == OPEN


def test_a_product_that_does_not_come_out_is_found_in_any_table(rng):
    good = table(rng)
    figures = {**good.rows, "FE-VGG16, seed 1": good.rows["FE-VGG16"]._replace(eta_total=0.43)}
    ruling = rule(Computed(figures, good.pairs, {}))["products"]
    assert ruling.verdict == FAILS
    assert ruling.reason.startswith("FE-VGG16, seed 1: ")


def test_rows_of_a_few_patches_that_agree_throughout_show_nothing():
    """Five patches, all right: what is no difference here may be one of forty points elsewhere."""
    rows = {row: np.ones((1, 5), bool) for row in paper.TABLE_1}
    pairs = compare_pairs(np.array([0, 0, 1, 1, 1]), rows, draws=100)
    rulings = rule(Computed({}, tuple(pairs), {}))
    assert {ruling.verdict for ruling in rulings.values()} == {OPEN}
    assert "an interval without width" in rulings["gain_of_8.74_points"].reason
    assert "-0.00" not in " ".join(ruling.reason for ruling in rulings.values())


def test_a_significant_gain_that_is_smaller_than_the_margin_helps_and_is_no_tangible_one(rng):
    right = np.zeros((1, len(KIMIA)), bool)
    right[0, :800] = True
    more = right.copy()
    more[0, 800:813] = True
    rows = {"fe_inception_v3": right, "tl_inception_v3": more, "fe_vgg16": right, "tl_vgg16": more}
    rulings = rule(Computed({}, tuple(compare_pairs(KIMIA, rows, draws=100)), {}))
    assert rulings["inception_v3_tuning_helps"].verdict == HOLDS
    assert rulings["vgg16_tuning_does_not_help"].verdict == HOLDS


def test_counts_over_several_seeds_say_so(rng):
    rows = {row: rng.random((3, len(KIMIA))) < 0.6 for row in ("fe_vgg16", "cnn")}
    found = rule(Computed({}, tuple(compare_pairs(KIMIA, rows, draws=100)), {}, seeds=3))
    assert "over 3 seeds, paired" in found["features_match_training"].reason


def test_claims_have_names_of_their_own():
    assert all(one.name != other.name for one, other in itertools.combinations(CLAIMS, 2))
