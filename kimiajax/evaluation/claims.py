"""What the paper concludes, as statements that a table can bear out or not: its own, and one that was computed here.

Each is ruled on by a test, or by arithmetic where it is about printed numbers. A ruling holds, does not hold, or cannot
be told; what a test set of this size cannot show is never taken for shown.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kimiajax import paper
from kimiajax.evaluation.statistics import Interval, Pair, two_proportions, unpaired_interval
from kimiajax.text import over_seeds, percent, points

LEVEL = 0.05
MARGIN = 0.02  # of eta_p: what is less than 2 points is no tangible difference; the paper names no number, this is ours
GAIN = 0.0874  # of FE-Inception-v3's eta_total over CNN1's, as the paper's discussion has it
HALF_A_DIGIT = 0.00005  # what a printed figure may be off by

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
Verdict = Literal["holds", "does not hold", "cannot be told"]
NAMES = {row: published.name for row, published in paper.TABLE_1.items()}


class Ruling(NamedTuple):
    """A verdict and the test behind it, in words."""

    verdict: Verdict
    reason: str


class Difference(NamedTuple):
    """Of two rows' scores: its value in [-1, 1], an interval, the p-value of none being there, and how both came."""

    value: float
    interval: Interval
    p_value: float
    how: str


class Figures(NamedTuple):
    """A row's scores in [0, 1], and by how much each of them may be rounded."""

    eta_p: float
    eta_w: float
    eta_total: float
    rounded: float


class Evidence(ABC):
    """A table that claims are held against."""

    @abstractmethod
    def figures(self) -> dict[str, Figures]:
        """Of each row that has any, and of several seeds of each seed, under what it is called."""

    @abstractmethod
    def difference(self, first: str, second: str, score: str) -> Difference | str:
        """Of the first row's score over the second's; or, in words, why there is none that a claim could rest on."""


class Printed(Evidence):
    """The paper's own table: counts of correct patches, of which nobody knows which they were."""

    def figures(self) -> dict[str, Figures]:
        return {
            published.name: Figures(published.eta_p, published.eta_w, published.eta_total, HALF_A_DIGIT)
            for published in paper.TABLE_1.values()
        }

    def difference(self, first: str, second: str, score: str) -> Difference | str:
        if score != "eta_p":
            return f"predictions are not published, so nothing is known of how surely {score} differs"
        n = paper.TEST_PATCHES
        one, other = (round(paper.TABLE_1[row].eta_p * n) for row in (first, second))
        z, p_value = two_proportions(one, other, n)
        how = f"{one} against {other} of {n:,} patches, z = {z:.2f} as if unpaired"
        return Difference((one - other) / n, unpaired_interval(one, other, n), p_value, how)


@dataclass(frozen=True)
class Computed(Evidence):
    """A table of this project's.

    Attributes:
        rows: the scores of each row, and of each seed, under what it is called.
        pairs: the rows, compared.
        unfit: why a row can bear no claim, of those that cannot: its weights are random, say.
        seeds: how many answers each row gives to a patch.
    """

    rows: Mapping[str, Figures]
    pairs: tuple[Pair, ...]
    unfit: Mapping[str, str]
    seeds: int = 1

    def figures(self) -> dict[str, Figures]:
        return dict(self.rows)

    def difference(self, first: str, second: str, score: str) -> Difference | str:
        for row in (first, second):
            if row in self.unfit:
                return self.unfit[row]
        for pair in self.pairs:
            if {pair.first, pair.second} == {first, second}:
                return _difference(pair, score, 1 if pair.first == first else -1, self.seeds)
        compared = {row for pair in self.pairs for row in (pair.first, pair.second)}
        lacking = [NAMES[row] for row in (first, second) if row not in compared]
        return f"{' and '.join(lacking)} was not computed" if len(lacking) == 1 else "neither row was computed"


def _difference(pair: Pair, score: str, sign: int, seeds: int) -> Difference:
    low, high = sorted(sign * bound for bound in pair.intervals[score])
    only = (pair.only_first, pair.only_second)[::sign]
    how = f"{only[0]} patches that it alone got right against {only[1]}{over_seeds(seeds)}, paired"
    return Difference(sign * pair.difference[score], Interval(low, high), pair.p_values[score], how)


@dataclass(frozen=True)
class Claim:
    """Attributes:
    name: a key for it.
    sentence: what the paper says, in our words.
    judge: the ruling on it, by a table's evidence.
    """

    name: str
    sentence: str
    judge: Callable[[Evidence], Ruling]


def products(evidence: Evidence) -> Ruling:
    """Whether each eta_total is its row's eta_p times eta_w, as far as figures are printed."""
    wrong, figures = [], evidence.figures()
    for row, (eta_p, eta_w, eta_total, rounded) in figures.items():
        product = eta_p * eta_w
        if abs(product - eta_total) > rounded * (1 + eta_p + eta_w) + 1e-9:
            factors = f"{percent(eta_p)} x {percent(eta_w)}"
            wrong.append(f"{row}: {factors} is {percent(product)} and not {percent(eta_total)}")
    if not figures:
        return Ruling(OPEN, "no row was computed")
    return Ruling(FAILS, "; ".join(wrong)) if wrong else Ruling(HOLDS, f"all {len(figures)} multiply out")


def better(found: Difference) -> Verdict:
    """That the first row's score is above the second's."""
    if found.p_value <= LEVEL:
        return HOLDS if found.value > 0 else FAILS
    return FAILS if found.interval.high <= 0 else OPEN


def not_better(found: Difference) -> Verdict:
    """That it is not above it by the margin or more."""
    if found.interval.high < MARGIN:
        return HOLDS
    return FAILS if found.p_value <= LEVEL and found.value >= MARGIN else OPEN


def as_good(found: Difference) -> Verdict:
    """That both are less than the margin apart."""
    if found.interval.low > -MARGIN and found.interval.high < MARGIN:
        return HOLDS
    return FAILS if found.p_value <= LEVEL and abs(found.value) >= MARGIN else OPEN


def gains(found: Difference) -> Verdict:
    """That the first is above the second by the paper's gain."""
    if not found.interval.low <= GAIN <= found.interval.high:
        return FAILS
    return HOLDS if found.p_value <= LEVEL else OPEN


def gain(first: str, second: str) -> Callable[[Evidence], Ruling]:
    """That one row's eta_total is above another's by the paper's gain."""

    def ruling(evidence: Evidence) -> Ruling:
        if not isinstance(evidence, Printed):
            return by_difference(gains, first, second, "eta_total")(evidence)
        one, other = (evidence.figures()[NAMES[row]] for row in (first, second))
        printed, product = one.eta_total - other.eta_total, one.eta_total - other.eta_p * other.eta_w
        told = (
            f"{percent(one.eta_total)} - {percent(other.eta_total)} is {points(printed)} points, but "
            f"{NAMES[second]}'s factors multiply to {percent(other.eta_p * other.eta_w)}, which leaves "
            f"{points(product)}; how surely they differ is not known"
        )
        return Ruling(OPEN if abs(product - GAIN) > HALF_A_DIGIT else HOLDS, told)

    return ruling


def best(row: str) -> Callable[[Evidence], Ruling]:
    """That a row's eta_p is above every other's."""

    def ruling(evidence: Evidence) -> Ruling:
        others = [other for other in NAMES if other != row]
        rulings = {other: by_difference(better, row, other)(evidence) for other in others}
        verdicts = [ruling.verdict for ruling in rulings.values()]
        worst = FAILS if FAILS in verdicts else OPEN if OPEN in verdicts else HOLDS
        if len({ruling.reason for ruling in rulings.values()}) == 1:
            return Ruling(worst, rulings[others[0]].reason)
        return Ruling(worst, "; ".join(f"over {NAMES[other]}: {each.reason}" for other, each in rulings.items()))

    return ruling


def by_difference(
    judge: Callable[[Difference], Verdict], first: str, second: str, score: str = "eta_p"
) -> Callable[[Evidence], Ruling]:
    """Returns the ruling of a judge on the difference of two rows' scores."""

    def ruling(evidence: Evidence) -> Ruling:
        found = evidence.difference(first, second, score)
        if isinstance(found, str):
            return Ruling(OPEN, found)
        low, high = map(points, found.interval)
        told = f"{points(found.value)} points of {score} ({low} to {high}; {found.how}; p = {found.p_value:.2g})"
        if found.interval.low == found.interval.high:
            return Ruling(OPEN, f"{told}: an interval without width, which says nothing of how sure this is")
        return Ruling(judge(found), told)

    return ruling


CLAIMS = (
    Claim("products", "Every eta_total is the product of its row's eta_p and eta_w.", products),
    Claim(
        "features_match_training",
        "A linear SVM on features of a pre-trained VGG16 is as good as a CNN that was trained from scratch: less than "
        "2 points of eta_p apart.",
        by_difference(as_good, "fe_vgg16", "cnn"),
    ),
    Claim(
        "vgg16_tuning_does_not_help",
        "Fine-tuning VGG16 is no tangible improvement on its pre-trained features: not 2 points of eta_p or more.",
        by_difference(not_better, "tl_vgg16", "fe_vgg16"),
    ),
    Claim(
        "inception_v3_tuning_helps",
        "Fine-tuning Inception-v3 improves on the eta_p of its pre-trained features.",
        by_difference(better, "tl_inception_v3", "fe_inception_v3"),
    ),
    Claim(
        "gain_of_8.74_points",
        "Features of Inception-v3 are 8.74 points of eta_total above the CNN that was trained from scratch.",
        gain("fe_inception_v3", "cnn"),
    ),
    Claim(
        "tuned_inception_v3_is_best",
        "Fine-tuned Inception-v3 has a higher eta_p than every other approach.",
        best("tl_inception_v3"),
    ),
)


def rule(evidence: Evidence) -> dict[str, Ruling]:
    """The ruling on each claim, by its name."""
    return {claim.name: claim.judge(evidence) for claim in CLAIMS}
