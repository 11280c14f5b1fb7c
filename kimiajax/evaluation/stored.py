"""A stored run, read again, whose scores are those of its predictions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.checks import path_of
from kimiajax.data.audit.audit import record_of
from kimiajax.data.manifest import read_manifest
from kimiajax.errors import UserError
from kimiajax.evaluation.metrics import scores_from_counts
from kimiajax.runs.layout import RunFolder
from kimiajax.runs.reader import StoredRun, read_files
from kimiajax.runs.warnings import audit_note, is_audit_note

ROUNDING = 1e-6


def with_newest_audits(run: StoredRun, cache: Path | None) -> StoredRun:
    """A run that says of its data what the newest audit of its patches does, also one that was made after the run.

    Args:
        run: a stored run.
        cache: the folder in which audits are kept.
    """
    seeds = []
    for folder, results in zip(run.folders, run.seeds):
        data = results["data"]
        found = record_of(data.get("identity"), read_manifest(RunFolder(folder).manifest), cache)
        newest = max(filter(None, (data["audit"], found)), key=lambda audit: audit["date"], default=None)
        seeds.append({**results, "data": {**data, "audit": newest}})
    kept = [note for note in run.results["notes"] if not is_audit_note(note)]
    said = [note for results in seeds if (note := audit_note(results["data"]))]
    results = {**run.results, "notes": [*kept, *dict.fromkeys(said)]}
    if len(seeds) == 1:
        results["data"] = seeds[0]["data"]
    return replace(run, results=results, seeds=tuple(seeds))


def read_run(folder: str | Path | Any) -> StoredRun:
    """Reads what `kimiajax table` left in a folder.

    Raises:
        UserError: there is no run, one of a version that is not read, one whose files were changed since or are
            missing, several seeds that were tested on other patches, or scores that are not those of the predictions,
            as of seeds that were computed again after the summary was written.
    """
    run = read_files(path_of("run", folder))
    tested = np.array(run.manifest.counts("test"))
    of_scan = run.scans[:, None] == np.arange(len(tested))
    for name in run.predicted:
        scores = scores_from_counts(run.correct(name).astype(float) @ of_scan, tested)
        for score, values in scores._asdict().items():
            said = run.rows[name][score]
            if abs(said - values.mean()) > ROUNDING:
                raise UserError(
                    f"{RunFolder(run.folder).results}: {score} of {name} is {said:.4f}, and its predictions give "
                    f"{values.mean():.4f}; the same `kimiajax table` mends it"
                )
    return run
