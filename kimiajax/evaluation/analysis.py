"""What a stored run shows, and how surely: from its predictions alone."""

from collections.abc import Container
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kimiajax import paper
from kimiajax.checks import kind_of, whole
from kimiajax.evaluation import claims, statistics
from kimiajax.evaluation.statistics import Interval, Pair
from kimiajax.runs.reader import StoredRun
from kimiajax.runs.warnings import failed_checks, is_synthetic, is_unverified, random_networks
from kimiajax.runtime.shell import standard_settings
from kimiajax.shapes import Int
from kimiajax.text import with_few_patches

HISTOGRAM = "floor_histogram"


@dataclass(frozen=True, eq=False)
class Analysis:
    """Attributes:
    intervals: of each row and score, 95 %.
    pairs: the table's rows against one another, corrected for all of them.
    tuning: each fine-tuned row against the head that it began with, a family of its own.
    margins: each of the table's rows against each floor, likewise.
    depth: each row of a block against its network's features, likewise.
    printed: the ruling on each claim by the paper's table; none where the data are not the paper's.
    computed: the same by this one.
    confusion: by row, test patches of scan i that were taken for scan j, of all seeds, [scans scans].
    few: scans with so few test patches that the bootstrap's intervals may be too short.
    coverage: where there are any, in how many of simulated test sets with these counts those of eta_w hold the truth.
    discordant: the share of patches that one of two of the table's rows alone gets right, on average; None of fewer
        rows, and of several seeds.
    smallest: the smallest difference of eta_p that a single test at 5 % would then find four times in five; None where
        no difference would be, and with the above.
    draws, seed: of the bootstrap and of the permutations.
    """

    intervals: dict[str, dict[str, Interval]]
    pairs: list[Pair]
    tuning: list[Pair]
    margins: list[Pair]
    depth: list[Pair]
    printed: dict[str, claims.Ruling]
    computed: dict[str, claims.Ruling]
    confusion: dict[str, Int[np.ndarray, "s s"]]
    few: list[int]
    coverage: float | None
    discordant: float | None
    smallest: float | None
    draws: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """The content of `report.analysis.json`."""
        pairs = {
            name: [each._asdict() for each in getattr(self, name)] for name in ("pairs", "tuning", "margins", "depth")
        }
        rulings = {name: {k: r._asdict() for k, r in getattr(self, name).items()} for name in ("printed", "computed")}
        confusion = {row: matrix.tolist() for row, matrix in self.confusion.items()}
        return {**asdict(self), **pairs, **rulings, "confusion": confusion, "margin_of_claims": claims.MARGIN}


@standard_settings()
def analyse(run: StoredRun | Any, seed: int | Any = 0, draws: int | Any = statistics.DRAWS) -> Analysis:
    """Intervals, tests, claims and confusions of a run.

    Args:
        run: as `read_run` reads it.
        seed, draws: of the bootstrap and of the permutations.

    Raises:
        UserError: no run, a seed below 0 or no draw.
    """
    kind_of("run", run, StoredRun, "give what `read_run` returns")
    whole("seed", seed), whole("draws", draws, 1)
    table, floors = run.family("table"), run.family("floor")
    everything = {row: run.correct(row) for row in run.predicted}
    intervals = statistics.intervals_of_rows(run.scans, everything, seed, draws)
    pairs = statistics.compare_pairs(run.scans, table, seed=seed, draws=draws)
    tuning = statistics.compare_pairs(run.scans, table, _against(run, "table", table), seed, draws)
    above = [(row, floor) for row in table for floor in floors]
    margins = statistics.compare_pairs(run.scans, {**table, **floors}, above, seed, draws)
    rows = {**table, **run.family("blocks")}
    depth = statistics.compare_pairs(run.scans, rows, _against(run, "blocks", rows), seed, draws)
    tested = np.bincount(run.scans, minlength=run.manifest.num_scans)
    few = with_few_patches(tested.tolist())
    chance = float(np.clip(np.mean([right.mean() for right in everything.values()] or 0.5), 0.05, 0.95))
    discordant = _discordant(pairs, len(run.scans)) if len(run.seeds) == 1 else None
    computed = claims.Computed(_figures(run), tuple(pairs), unfit(run), len(run.seeds))
    return Analysis(
        intervals=intervals,
        pairs=pairs,
        tuning=tuning,
        margins=margins,
        depth=depth,
        printed=claims.rule(claims.Printed()) if run.is_kimia else {},
        computed=claims.rule(computed) if run.is_kimia else {},
        confusion={row: confusion_of(run.scans, guess, len(tested)) for row, guess in run.predicted.items()},
        few=few,
        coverage=statistics.simulated_coverage(tested, chance, seed) if few else None,
        discordant=discordant,
        smallest=statistics.smallest_difference(len(run.scans), discordant) if discordant else None,
        draws=draws,
        seed=seed,
    )


def _against(run: StoredRun, family: str, rows: Container[str]) -> list[tuple[str, str]]:
    """The rows of a family that are held against another row, each with that one, where both have an accuracy."""
    pairs = ((name, row["against"]) for name, row in run.rows.items() if row["family"] == family)
    return [pair for pair in pairs if all(name in rows for name in pair)]


def confusion_of(
    scans: Int[np.ndarray, " n"], predicted: Int[np.ndarray, "k n"], num_scans: int
) -> Int[np.ndarray, "s s"]:
    """How many patches of scan i were taken for scan j, over all seeds."""
    places = scans * num_scans + predicted
    return np.bincount(places.ravel(), minlength=num_scans**2).reshape(num_scans, num_scans)


def unfit(run: StoredRun) -> dict[str, str]:
    """Why rows can bear no claim of the paper's, of those that cannot."""
    synthetic, unverified = is_synthetic(run.seeds), is_unverified(run.seeds)
    failed, random = failed_checks(run.seeds), random_networks(run.seeds)
    found = {}
    for name, row in run.rows.items():
        network = next((network for network in random if name.endswith(network)), None)
        if synthetic:
            found[name] = "the scans are drawn by a program"
        elif unverified:
            found[name] = "the data are not known to be those that were published"
        elif failed:
            found[name] = "the audit of these data failed"
        elif row["failure"]:
            found[name] = f"{row['approach']} has no accuracy: {row['failure']}"
        elif network is not None:
            found[name] = f"{network}'s weights are random"
    return found


def beaten_by_histogram(analysis: Analysis) -> list[str] | None:
    """The table's rows that are not shown to be above the gray histogram, by eta_p; None where it was not computed."""
    margins = [pair for pair in analysis.margins if pair.second == HISTOGRAM]
    if not margins:
        return None
    above = [pair.difference["eta_p"] > 0 and pair.adjusted["eta_p"] <= claims.LEVEL for pair in margins]
    return [pair.first for pair, is_above in zip(margins, above) if not is_above]


def _figures(run: StoredRun) -> dict[str, claims.Figures]:
    """The scores of the rows that the paper has; of several seeds those of each, since means do not multiply."""
    found = {}
    for results in run.seeds:
        of_seed = f", seed {results['config']['seed']}" if len(run.seeds) > 1 else ""
        for row in results["rows"]:
            if row["name"] in paper.TABLE_1 and row["eta_p"] is not None:
                scores = (row["eta_p"], row["eta_w"], row["eta_total"])
                found[row["approach"] + of_seed] = claims.Figures(*scores, 0)
    return found


def _discordant(pairs: list[Pair], answers: int) -> float | None:
    if not pairs:
        return None
    return float(np.mean([pair.only_first + pair.only_second for pair in pairs]) / answers)
