"""What a stored run shows, and how surely: from its predictions alone."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kimiajax import claims, statistics
from kimiajax.report.stored import StoredRun
from kimiajax.shapes import Int
from kimiajax.statistics import Interval, Pair

HISTOGRAM = "floor_histogram"


@dataclass(frozen=True, eq=False)
class Analysis:
    """Attributes:
    intervals: of each row and score, 95 %.
    pairs: the table's rows against one another, corrected for all of them.
    margins: each of the table's rows against each floor, a family of its own.
    printed: the ruling on each claim by the paper's table.
    computed: the same by this one.
    confusion: by row, test patches of scan i that were taken for scan j, of all seeds, [scans scans].
    few: scans with so few test patches that the bootstrap's intervals are too short.
    discordant: the share of patches that one of two of the table's rows alone gets right, on average; None of fewer.
    smallest: the smallest difference of eta_p that a test would then find four times in five; None with it.
    """

    intervals: dict[str, dict[str, Interval]]
    pairs: list[Pair]
    margins: list[Pair]
    printed: dict[str, claims.Ruling]
    computed: dict[str, claims.Ruling]
    confusion: dict[str, Int[np.ndarray, "s s"]]
    few: list[int]
    discordant: float | None
    smallest: float | None

    def as_dict(self) -> dict[str, Any]:
        """The content of `analysis.json`."""
        pairs = {name: [each._asdict() for each in getattr(self, name)] for name in ("pairs", "margins")}
        rulings = {name: {k: r._asdict() for k, r in getattr(self, name).items()} for name in ("printed", "computed")}
        confusion = {row: matrix.tolist() for row, matrix in self.confusion.items()}
        return {**asdict(self), **pairs, **rulings, "confusion": confusion, "draws": statistics.DRAWS}


def analyse(run: StoredRun, seed: int = 0, draws: int = statistics.DRAWS) -> Analysis:
    """Intervals, tests, claims and confusions of a run.

    Args:
        run: as `read_run` reads it.
        seed, draws: of the bootstrap and of the permutations.
    """
    table, floors = run.family("table"), run.family("floor")
    everything = {row: run.correct(row) for row in run.predicted}
    intervals = statistics.intervals_of_rows(run.scans, everything, seed, draws)
    pairs = statistics.compare_pairs(run.scans, table, seed=seed, draws=draws)
    above = [(row, floor) for row in table for floor in floors]
    margins = statistics.compare_pairs(run.scans, {**table, **floors}, above, seed, draws)
    tested = np.bincount(run.scans, minlength=run.manifest.num_scans)
    discordant = _discordant(pairs, len(run.scans) * len(run.seeds))
    return Analysis(
        intervals=intervals,
        pairs=pairs,
        margins=margins,
        printed=claims.rule(claims.Printed()),
        computed=claims.rule(claims.Computed(_figures(run), tuple(pairs), unfit(run))),
        confusion={row: confusion_of(run.scans, guess, len(tested)) for row, guess in run.predicted.items()},
        few=np.flatnonzero((tested > 0) & (tested < statistics.FEW)).tolist(),
        discordant=discordant,
        smallest=None if discordant is None else statistics.smallest_difference(len(run.scans), discordant),
    )


def confusion_of(
    scans: Int[np.ndarray, " n"], predicted: Int[np.ndarray, "k n"], num_scans: int
) -> Int[np.ndarray, "s s"]:
    """How many patches of scan i were taken for scan j, over all seeds."""
    places = scans * num_scans + predicted
    return np.bincount(places.ravel(), minlength=num_scans**2).reshape(num_scans, num_scans)


def unfit(run: StoredRun) -> dict[str, str]:
    """Why rows can bear no claim of the paper's, of those that cannot."""
    data, random = run.seeds[0]["data"], random_networks(run)
    found = {}
    for row in run.rows:
        network = next((network for network in random if row.endswith(network)), None)
        if data["synthetic"]:
            found[row] = "the scans are drawn by a program"
        elif data["audit"] is not None and data["audit"]["failed"]:
            found[row] = "the audit of these data failed"
        elif network is not None:
            found[row] = f"{network}'s weights are random"
    return found


def random_networks(run: StoredRun) -> list[str]:
    """The networks whose weights began random, whatever trained them since."""
    weights = run.seeds[0]["weights"]
    return [network for network, lineage in weights.items() if _root(lineage)["source"] == "random"]


def beaten_by_histogram(analysis: Analysis) -> list[str]:
    """The table's rows that are not shown to be above the gray histogram, by eta_p."""
    return [
        pair.first
        for pair in analysis.margins
        if pair.second == HISTOGRAM and not (pair.difference["eta_p"] > 0 and pair.adjusted["eta_p"] <= claims.LEVEL)
    ]


def _figures(run: StoredRun) -> dict[str, claims.Figures]:
    """The scores of the table's rows; of several seeds the product of means, which is no mean of products."""
    found = {}
    for name, row in run.rows.items():
        if row["family"] == "table" and row["eta_p"] is not None:
            total = row["eta_total"] if len(run.seeds) == 1 else row["eta_p"] * row["eta_w"]
            found[name] = claims.Figures(row["eta_p"], row["eta_w"], total, 0)
    return found


def _discordant(pairs: list[Pair], answers: int) -> float | None:
    if not pairs:
        return None
    return float(np.mean([pair.only_first + pair.only_second for pair in pairs]) / answers)


def _root(lineage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where weights began, before any fine-tuning."""
    while lineage.get("parent"):
        lineage = lineage["parent"]
    return lineage
