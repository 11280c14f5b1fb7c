"""Two runs on the same test patches: what they differ in, and which of their rows differ by more than chance."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kimiajax.checks import kind_of, whole
from kimiajax.errors import UserError
from kimiajax.evaluation import statistics
from kimiajax.evaluation.claims import LEVEL
from kimiajax.evaluation.statistics import Pair
from kimiajax.io.json_records import changes
from kimiajax.io.lineage import identity_of
from kimiajax.runs.classes import Classes
from kimiajax.runs.layout import NO_RESULT
from kimiajax.runs.reader import StoredRun
from kimiajax.runs.warnings import warnings_of
from kimiajax.runtime.shell import standard_settings, xla_flags
from kimiajax.text import first_few

BETTER, WORSE, SAME, OPEN = "A is better", "B is better", "the same predictions", "no difference shown"
UNTOLD = (*NO_RESULT, "rows")  # settings whose difference is not told, since it changes no row that both have


@dataclass(frozen=True, eq=False)
class Comparison:
    """Attributes:
    folders: of A and B.
    warnings: what marks the figures of A, and of B.
    differences: of their settings, data, weights and programs, one line each.
    pairs: A's row against B's, by the row's name, corrected for all rows of its family.
    families: of the rows, by their names.
    verdicts: what stands between them in eta_total, by the row's name.
    tested: test patches of each scan.
    only: rows that one of them alone has, or has an accuracy of, by folder.
    classes: what the scans are called.
    """

    folders: tuple[str, str]
    warnings: tuple[list[str], list[str]]
    differences: list[str]
    pairs: dict[str, Pair]
    families: dict[str, str]
    verdicts: dict[str, str]
    tested: list[int]
    only: dict[str, list[str]]
    classes: Classes

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**asdict(self), "pairs": {row: pair._asdict() for row, pair in self.pairs.items()}}


@standard_settings()
def compare_runs(
    a: StoredRun | Any, b: StoredRun | Any, seed: int | Any = 0, draws: int | Any = statistics.DRAWS
) -> Comparison:
    """Compares the rows that two runs have in common, patch by patch.

    Args:
        a, b: as `read_run` reads them.
        seed, draws: of the bootstrap and of the permutations.

    Raises:
        UserError: they were tested on other patches, or are of other numbers of seeds; no run, a seed below 0, or no
            draw.
    """
    for name, run in (("a", a), ("b", b)):
        kind_of(name, run, StoredRun, "give what `read_run` returns")
    whole("seed", seed), whole("draws", draws, 1)
    check_same_test(a, b)
    if len(a.seeds) != len(b.seeds):
        raise UserError(
            f"{a.folder} has {_seeds(a)} and {b.folder} has {_seeds(b)}: compare runs of as many seeds, or the folder "
            "of one seed with another"
        )
    common = [row for row in a.predicted if row in b.predicted]
    order = _places(b, [patch.patch_id for patch in a.manifest.split("test")])
    found: dict[str, Pair] = {}
    for family in dict.fromkeys(a.rows[row]["family"] for row in common):
        names = [row for row in common if a.rows[row]["family"] == family]
        sides = (("A", slice(None), a), ("B", order, b))
        rows = {f"{side}: {row}": run.correct(row)[:, places] for row in names for side, places, run in sides}
        pairs = [(f"A: {row}", f"B: {row}") for row in names]
        found |= zip(names, statistics.compare_pairs(a.scans, rows, pairs, seed, draws))
    same = {row: bool((a.predicted[row] == b.predicted[row][:, order]).all()) for row in common}
    return Comparison(
        (str(a.folder), str(b.folder)),
        (warnings_of(a.seeds), warnings_of(b.seeds)),
        _differences(a, b),
        found,
        {row: a.rows[row]["family"] for row in found},
        {row: SAME if same[row] else verdict_on(pair) for row, pair in found.items()},
        a.manifest.counts("test"),
        {
            str(one.folder): [row for row in one.rows if row not in common]
            for one in (a, b)
            if any(row not in common for row in one.rows)
        },
        a.classes,
    )


def verdict_on(pair: Pair) -> str:
    """What eta_total's test says, after its correction."""
    if pair.adjusted["eta_total"] > LEVEL:
        return OPEN
    return BETTER if pair.difference["eta_total"] > 0 else WORSE


def check_same_test(a: StoredRun, b: StoredRun) -> None:
    """Raises UserError, with what differs, for runs whose test patches are not the same: names, scans and pixels."""
    if a.manifest.num_scans != b.manifest.num_scans:
        raise UserError(
            f"{a.folder} is of {a.manifest.num_scans} scans and {b.folder} of {b.manifest.num_scans}: other data, "
            "which cannot be compared"
        )
    tests = [{patch.patch_id: patch for patch in run.manifest.split("test")} for run in (a, b)]
    lacking = [sorted(one.keys() - other.keys()) for one, other in (tests, tests[::-1])]
    if any(lacking):
        alone = [(run.folder, missing) for run, missing in zip((a, b), lacking) if missing]
        told = [f"{len(missing)} test patches are {folder}'s alone ({first_few(missing)})" for folder, missing in alone]
        raise UserError(f"{' and '.join(told)}: other data, or another draw of them, which cannot be compared")
    other = [
        patch_id
        for patch_id, patch in tests[0].items()
        if (patch.scan, patch.sha256) != (tests[1][patch_id].scan, tests[1][patch_id].sha256)
    ]
    if other:
        raise UserError(
            f"{len(other)} of {len(tests[0])} test patches have other pixels or scans in {b.folder} than in {a.folder} "
            f"({first_few(other)}): other data, which cannot be compared"
        )


def _places(run: StoredRun, patch_ids: list[str]) -> np.ndarray:
    """Where a run has these test patches: sources give them in orders of their own."""
    places = {patch.patch_id: place for place, patch in enumerate(run.manifest.split("test"))}
    return np.array([places[patch_id] for patch_id in patch_ids])


def _differences(a: StoredRun, b: StoredRun) -> list[str]:
    def described(run: StoredRun) -> dict[str, Any]:
        config = {name: value for name, value in run.results["config"].items() if name not in UNTOLD}
        first = run.seeds[0]
        environment = first["environment"]
        # A run of an earlier version records the flags of XLA alone.
        said = environment["shell"] if "shell" in environment else xla_flags(environment.get("xla_flags") or "")
        return {
            "preset": run.results["preset"],
            "settings": config,
            "weights": {network: identity_of(lineage, 12) for network, lineage in first["weights"].items()},
            "training patches": _training(run),
            "program": {"version": environment["kimiajax"], "revision": environment["revision"], "shell": said},
            "devices": environment["devices"],
            "machine": {name: environment.get(name) for name in ("processor", "cores")},
            "packages": environment["packages"],
        }

    return [f"{name}: {one} in A, {other} in B" for name, one, other in changes(described(a), described(b))]


def _training(run: StoredRun) -> str:
    patches = sorted(f"{patch.patch_id} {patch.sha256}\n" for patch in run.manifest.split("train"))
    return f"{len(patches)}, digest {hashlib.sha256(''.join(patches).encode()).hexdigest()[:12]}"


def _seeds(run: StoredRun) -> str:
    return f"{len(run.seeds)} seed{'s' if len(run.seeds) > 1 else ''}"
