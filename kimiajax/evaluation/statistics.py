"""What can be said of rows of predictions on one test set, and how surely: from which patches each row got right.

All rows have the same test patches, so whatever stands between two of them is paired; and test patches were chosen scan
by scan, so whatever is drawn anew is drawn within each scan. A row of several seeds is the mean over them; what its
seeds differ by is another thing than what other test patches would change, and stays out of every figure here.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.stats

from kimiajax.evaluation.metrics import Scores, scores_from_counts
from kimiajax.shapes import Bool, Float, Int

CONFIDENCE, POWER, DRAWS = 0.95, 0.8, 10_000
INTERVAL = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2  # the quantiles of one
AT_ONCE = 100  # draws whose patches are held
TIE = 1e-6  # two statistics in float32 that are nearer than this are one


class Interval(NamedTuple):
    """Where a score in [0, 1], or a difference of two, lies."""

    low: float
    high: float


class Pair(NamedTuple):
    """One row against another on the same patches; what is told of each score is told by its name.

    Attributes:
        first, second: names of the rows.
        only_first, only_second: patches that one of them alone got right, over all seeds.
        difference: the first's score less the second's, in [-1, 1].
        intervals: of the difference. Of eta_p by Newcombe's formula, of several seeds and of the other scores by the
            bootstrap.
        p_values: of no difference being there. Of eta_p by McNemar's exact test, of several seeds and of the other
            scores by permutation.
        adjusted: the same after Holm's correction for all pairs of the family.
    """

    first: str
    second: str
    only_first: int
    only_second: int
    difference: dict[str, float]
    intervals: dict[str, Interval]
    p_values: dict[str, float]
    adjusted: dict[str, float]


def wilson(correct: int, tested: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's interval for a share of patches (Wilson, JASA 22, 1927)."""
    found = scipy.stats.binomtest(correct, tested).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


def newcombe(both: int, only_first: int, only_second: int, neither: int, confidence: float = CONFIDENCE) -> Interval:
    """An interval for the difference of two rows' shares of the same patches, from how many of them both rows got
    right, one alone, or neither (Newcombe, Statistics in Medicine 17, 1998, his method 10).

    Two Wilson intervals, squared and added with the rows' correlation. It has a width where the rows agree throughout.
    """
    tested = both + only_first + only_second + neither
    (low1, high1), (low2, high2) = (wilson(both + only, tested, confidence) for only in (only_first, only_second))
    first, second = (both + only_first) / tested, (both + only_second) / tested
    product = both * neither - only_first * only_second
    product = max(product - tested / 2, 0) if product > 0 else product
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    correlation = product / np.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return float(np.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0)))

    difference = first - second
    low, high = reach(first - low1, high2 - second), reach(high1 - first, second - low2)
    return Interval(difference - low, difference + high)


def resampled_scores(
    scans: Int[np.ndarray, " n"], correct: Bool[np.ndarray, "r n"], seed: int = 0, draws: int = DRAWS
) -> Scores:
    """Scores on test sets drawn anew: of each scan as many of its patches as there are, with replacement.

    A draw serves all rows, so that a difference of two rows within it is paired.

    Args:
        scans: the true scan of each test patch.
        correct: which of them each row got right.
        seed: of the draws.
        draws: how many.

    Returns:
        [draws r] each.
    """
    order = np.argsort(scans, kind="stable")
    tested = np.bincount(scans)
    starts = np.cumsum(tested) - tested
    right = correct[:, order].astype(np.float32)
    of_scan = np.asarray(_resampled(jax.random.key(seed), right, scans[order], starts, tested, draws))
    return scores_from_counts(of_scan.astype(np.float64), tested)


@functools.partial(jax.jit, static_argnames="draws")
def _resampled(
    key: jax.Array, correct: jax.Array, scans: jax.Array, starts: jax.Array, tested: jax.Array, draws: int
) -> Float[jax.Array, "draws r s"]:
    """Correct patches of each scan, of patches that are sorted by scan."""

    def draw(key: jax.Array) -> jax.Array:
        within = jax.random.uniform(key, scans.shape) * tested[scans]
        return correct_of_scan(correct, starts[scans] + within.astype(jnp.int32), scans, len(tested))

    return jax.lax.map(draw, jax.random.split(key, draws), batch_size=min(AT_ONCE, draws))


def correct_of_scan(
    correct: Float[jax.Array, "r n"], places: Int[jax.Array, " m"], scans: Int[jax.Array, " m"], num_scans: int
) -> Float[jax.Array, "r s"]:
    """Of the patches at some places, which are of some scans, how many of each scan every row got right."""
    return correct[:, places] @ jax.nn.one_hot(scans, num_scans)


def interval_of(samples: Float[np.ndarray, " draws"]) -> Interval:
    """Between two quantiles of the bootstrap's draws."""
    low, high = np.quantile(samples, INTERVAL)
    return Interval(float(low), float(high))


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test: of the patches that one row alone got right, whether it is a
    coin's chance which row that is (McNemar, Psychometrika 12, 1947)."""
    both = only_first + only_second
    return float(scipy.stats.binomtest(only_first, both).pvalue) if both else 1.0


def permutation(
    scans: Int[np.ndarray, " n"],
    first: Bool[np.ndarray, "p k n"],
    second: Bool[np.ndarray, "p k n"],
    seed: int = 0,
    draws: int = DRAWS,
) -> Scores:
    """Two-sided p-values of differences as large, were it a coin's chance which row gave which answers to a patch.

    Args:
        scans: the true scan of each test patch.
        first, second: which of them the two rows of each pair got right, with each of k seeds. A patch's answers change
            places for all seeds together.
        seed: of the coins.
        draws: how often they are thrown; the smallest p-value is 1 / (draws + 1).

    Returns:
        [p] each.
    """
    right = (each.astype(np.float32) for each in (first, second))
    found = _permuted(jax.random.key(seed), scans, *right, np.bincount(scans), draws)
    return Scores(*map(np.asarray, found))


@functools.partial(jax.jit, static_argnames="draws")
def _permuted(
    key: jax.Array, scans: jax.Array, first: jax.Array, second: jax.Array, tested: jax.Array, draws: int
) -> Scores:
    of_scan = jax.nn.one_hot(scans, len(tested))
    together, apart = (first + second) @ of_scan, first - second

    def differences(apart: jax.Array) -> Scores:
        """Of each pair, from how many more patches of each scan its first row got right, [p k s]."""
        one, other = (scores_from_counts((together + sign * apart) / 2, tested) for sign in (1, -1))
        return jax.tree.map(lambda one, other: (one - other).mean(-1), one, other)

    def draw(key: jax.Array) -> Scores:
        coins = jax.random.rademacher(key, scans.shape, jnp.float32)
        return differences(apart @ (coins[:, None] * of_scan))

    drawn = jax.lax.map(draw, jax.random.split(key, draws), batch_size=min(AT_ONCE, draws))

    def p_value(drawn: jax.Array, observed: jax.Array) -> jax.Array:
        return (1 + (abs(drawn) >= abs(observed) - TIE).sum(0)) / (1 + draws)

    return jax.tree.map(p_value, drawn, differences(apart @ of_scan))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of a family of tests, adjusted so that the chance of a single false one among them stays below the level
    (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * float(p_values[place])))
        adjusted[place] = highest
    return adjusted


def intervals_of_rows(
    scans: Int[np.ndarray, " n"], rows: Mapping[str, Bool[np.ndarray, "k n"]], seed: int = 0, draws: int = DRAWS
) -> dict[str, dict[str, Interval]]:
    """Of each row and score: of eta_p Wilson's, of several seeds and of the other scores the bootstrap's.

    Args:
        scans: the true scan of each test patch.
        rows: by name, which of them each row got right, with each of k seeds.
        seed, draws: of the bootstrap.
    """
    if not rows:
        return {}
    resampled = _mean_over_seeds(resampled_scores(scans, _stacked(rows), seed, draws), len(rows))
    found = {}
    for number, (name, correct) in enumerate(rows.items()):
        found[name] = {score: interval_of(draws[:, number]) for score, draws in resampled._asdict().items()}
        if len(correct) == 1:
            found[name]["eta_p"] = wilson(int(correct.sum()), correct.size)
    return found


def compare_pairs(
    scans: Int[np.ndarray, " n"],
    rows: Mapping[str, Bool[np.ndarray, "k n"]],
    pairs: Sequence[tuple[str, str]] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[Pair]:
    """Rows of a family against one another.

    Args:
        scans: the true scan of each test patch.
        rows: by name, which of them each row got right, with each of k seeds.
        pairs: which are compared, and corrected for together; by default all.
        seed, draws: of the bootstrap and of the permutations.
    """
    pairs = list(itertools.combinations(rows, 2)) if pairs is None else list(pairs)
    if not pairs:
        return []
    names, tested, correct = list(rows), np.bincount(scans), _stacked(rows)
    resampled = _mean_over_seeds(resampled_scores(scans, correct, seed, draws), len(rows))
    of_scan = correct.astype(np.float64) @ (scans[:, None] == np.arange(len(tested)))
    whole = _mean_over_seeds(scores_from_counts(of_scan, tested), len(rows))
    sides = [np.stack([rows[pair[side]] for pair in pairs]) for side in (0, 1)]
    permuted = permutation(scans, sides[0], sides[1], seed, draws)
    only = [(one & ~other).sum((1, 2)) for one, other in (sides, sides[::-1])]
    found = []
    for number, (first, second) in enumerate(pairs):
        one, other = names.index(first), names.index(second)
        p_values = {score: float(values[number]) for score, values in permuted._asdict().items()}
        alone = int(only[0][number]), int(only[1][number])
        apart = {score: values[:, one] - values[:, other] for score, values in resampled._asdict().items()}
        intervals = {score: interval_of(samples) for score, samples in apart.items()}
        if sides[0].shape[1] == 1:
            p_values["eta_p"] = mcnemar(*alone)
            both = int((sides[0][number] & sides[1][number]).sum())
            intervals["eta_p"] = newcombe(both, *alone, len(scans) - both - sum(alone))
        found.append(
            Pair(
                first,
                second,
                *alone,
                {score: float(values[one] - values[other]) for score, values in whole._asdict().items()},
                intervals,
                p_values,
                {},
            )
        )
    for score in Scores._fields:
        for pair, adjusted in zip(found, holm([pair.p_values[score] for pair in found])):
            pair.adjusted[score] = adjusted
    return found


def _stacked(rows: Mapping[str, Bool[np.ndarray, "k n"]]) -> Bool[np.ndarray, "r n"]:
    """Every seed of every row, row by row."""
    return np.concatenate(list(rows.values()))


def _mean_over_seeds(scores: Scores, rows: int) -> Scores:
    """Of the last axis, which holds every seed of every row, one mean a row."""
    return Scores(*(values.reshape(*values.shape[:-1], rows, -1).mean(-1) for values in scores))


def two_proportions(first: int, second: int, tested: int) -> tuple[float, float]:
    """Tests whether two numbers of correct patches differ, not knowing which they were: z and the two-sided p-value.

    Each of `tested`, as if of different patches, with the pooled variance; of the same patches it is the more cautious
    the more the rows agree.
    """
    pooled = (first + second) / (2 * tested)
    spread = np.sqrt(2 * pooled * (1 - pooled) / tested)
    z = float((first - second) / tested / spread) if spread else 0.0
    return z, float(2 * scipy.stats.norm.sf(abs(z)))


def unpaired_interval(first: int, second: int, tested: int) -> Interval:
    """Wald's interval of the difference of two shares, of which it is not known which patches they were."""
    shares = np.array([first, second]) / tested
    half = scipy.stats.norm.ppf(INTERVAL[1]) * np.sqrt((shares * (1 - shares)).sum() / tested)
    return Interval(float(shares[0] - shares[1] - half), float(shares[0] - shares[1] + half))


def simulated_coverage(tested: Int[np.ndarray, " s"], chance: float, seed: int = 0) -> float:
    """Returns the share of 600 made-up test sets whose bootstrap interval of eta_w (1000 draws) holds the truth.

    Args:
        tested: test patches of each scan.
        chance: of any patch to be right, which is the truth.
        seed: of the test sets and the bootstrap.
    """
    scans, held = np.repeat(np.arange(len(tested)), tested), []
    rng = np.random.default_rng(seed)
    for part in range(0, 600, AT_ONCE):
        correct = rng.random((AT_ONCE, len(scans))) < chance
        low, high = np.quantile(resampled_scores(scans, correct, seed + part, 1000).eta_w, INTERVAL, axis=0)
        held.append((low <= chance) & (chance <= high))
    return float(np.concatenate(held).mean())


def smallest_difference(tested: int, discordant: float) -> float | None:
    """The smallest difference of eta_p that McNemar's test would find with a chance of `POWER` (Connor, Biometrics 43,
    1987).

    Args:
        tested: test patches.
        discordant: the share of them that one of the two rows alone gets right, in [0, 1].

    Returns:
        In [0, discordant]; None where not even `discordant` would be found as often.
    """
    level, wanted = scipy.stats.norm.ppf((INTERVAL[1], POWER))

    def found(difference: float) -> float:
        spread = np.sqrt(max(discordant - difference**2, 0))
        return difference * np.sqrt(tested) - level * np.sqrt(discordant) - wanted * spread

    if found(discordant) <= 0:
        return None
    return float(scipy.optimize.brentq(found, 0, discordant))  # pyright: ignore[reportArgumentType]  # a tuple on request
