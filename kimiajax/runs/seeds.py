"""The tables of several seeds as one: mean and spread of each row."""

import statistics
from collections.abc import Sequence
from typing import Any

from kimiajax.runs.warnings import SCORES

SHARED = (
    "name",
    "approach",
    "scheme",
    "family",
    "network",
    "block",
    "against",
    "weights",
    "tested",
    "paper",
    "training",
)


def summarise(runs: Sequence[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """What `results.json` says of several seeds.

    Args:
        runs: the `results.json` of each, in the order of their seeds; rows that not all have are left out.
        config: the settings, of all of them.

    Returns:
        What the runs have in common, the notes of all of them, and for each row the mean of every score, its standard
        deviation over seeds (of the sample: divided by n - 1) as `eta_p_sd` and so on, and each seed's score as
        `eta_p_by_seed`. A row of which any seed has no score has no mean.
    """
    first, seeds = runs[0], [run["config"]["seed"] for run in runs]
    shared = [note for note in first["notes"] if all(note in run["notes"] for run in runs)]
    own = [f"Seed {seed}: {note}" for seed, run in zip(seeds, runs) for note in run["notes"] if note not in shared]
    spread = (
        f"Means over seeds {', '.join(map(str, seeds))}, which decide all that is drawn for training. What stands "
        "after each is the standard deviation over seeds. It holds nothing of what other test patches would change, "
        "since all seeds are tested on the same."
    )
    rows = []
    by_name = [{row["name"]: row for row in run["rows"]} for run in runs]
    for name in (name for name in by_name[0] if all(name in finished for finished in by_name)):
        same = [finished[name] for finished in by_name]
        row = {key: same[0].get(key) for key in SHARED}
        row["retrieval"] = _mean_recall([each["retrieval"] for each in same])
        row["seconds"] = sum(each["seconds"] for each in same)
        row["failure"] = next((each["failure"] for each in same if each["failure"]), None)
        row["correct"] = None
        for score in SCORES:
            values = [each[score] for each in same]
            whole = None not in values
            row[score] = statistics.fmean(values) if whole else None
            row[f"{score}_sd"] = statistics.stdev(values) if whole and len(values) > 1 else None
            row[f"{score}_by_seed"] = values
        rows.append(row)
    return {
        **{key: first[key] for key in ("schema_version", "preset", "environment")},
        **{key: _common([run[key] for run in runs]) for key in ("data", "weights", "blocks", "conv")},
        "complete": all(run["complete"] for run in runs),
        "config": config,
        "seeds": seeds,
        "runs": [f"seed-{seed}" for seed in seeds],
        "notes": [spread, *shared, *own],
        "rows": rows,
    }


def _mean_recall(records: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """What the seeds found of the nearest patches, on average."""
    found = [record for record in records if record is not None]
    if len(found) < len(records):
        return None
    shares = {k: statistics.fmean(each["recall_at"][k] for each in found) for k in found[0]["recall_at"]}
    rate = statistics.fmean(each["queries_per_second"] for each in found)
    return {**found[0], "recall_at": shares, "queries_per_second": rate}


def _common(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The entries that are the same in all; what differs stands in each run's own."""
    return {key: value for key, value in records[0].items() if all(record.get(key) == value for record in records)}
