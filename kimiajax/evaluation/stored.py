"""A stored run, read again, whose scores are those of its predictions."""

from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.checks import path_of
from kimiajax.errors import UserError
from kimiajax.evaluation.metrics import scores_from_counts
from kimiajax.runs.layout import RunFolder
from kimiajax.runs.reader import StoredRun, read_files

ROUNDING = 1e-6


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
