"""The tables of several seeds as one: mean and spread of each row."""

import statistics
from collections.abc import Sequence
from typing import Any

SCORES = ("eta_p", "eta_w", "eta_total")


def summarise(runs: Sequence[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """What `results.json` says of several seeds.

    Args:
        runs: the `results.json` of each, in the order of their seeds, with equally many rows.
        config: the settings, of all of them.

    Returns:
        The first run's head, the notes that any of them has, and for each row the mean of every score, its standard
        deviation over seeds (of the sample: divided by n - 1) as `eta_p_sd` and so on, and each seed's score as
        `eta_p_by_seed`. A row of which any seed has no score has no mean.
    """
    first, seeds = runs[0], [run["config"]["seed"] for run in runs]
    notes = list(dict.fromkeys(note for run in runs for note in run["notes"]))
    spread = (
        f"Means over seeds {', '.join(map(str, seeds))}, which decide all that is drawn for training. What stands "
        "after each is the standard deviation over seeds. It holds nothing of what other test patches would change, "
        "since all seeds are tested on the same."
    )
    rows = []
    for same in zip(*(run["rows"] for run in runs)):
        row = {key: same[0][key] for key in ("name", "approach", "scheme", "weights", "tested", "paper", "training")}
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
    kept = ("schema_version", "preset", "environment", "data", "weights")
    return {
        **{key: first[key] for key in kept},
        "complete": all(run["complete"] for run in runs),
        "config": config,
        "seeds": seeds,
        "runs": [f"seed-{seed}" for seed in seeds],
        "notes": [spread, *notes],
        "rows": rows,
    }
