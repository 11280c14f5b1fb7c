"""What a row predicts for a user's patches, on a screen or in a pipe."""

from typing import TYPE_CHECKING

import numpy as np

from kimiajax.report.console import as_text, new_table
from kimiajax.runs.classes import PLURALS

if TYPE_CHECKING:
    from kimiajax.runs.predictions import Applied

KINDS = {
    "softmax": "Scores are the network's softmax, which says how it chose and not how often it is right.",
    "share of votes": "Scores are shares of the votes of an SVM's pairs of {plural}; of k, one has 2 / k at most.",
}


def render_applied(applied: "Applied", most: int = 20) -> str:
    """One line a patch: the predicted scan and the runner-up with their scores, and how many patches are not shown.

    Args:
        applied: as `apply_row` gives it.
        most: patches to show, the first ones.
    """
    table = new_table()
    table.add_column("patch", overflow="fold")
    for name in ("predicted", "score", "runner-up", "score"):
        table.add_column(name, justify="right" if name == "score" else "left", no_wrap=name == "score")
    shown = zip(applied.ids[:most], applied.predicted.tolist(), applied.scores)
    for patch_id, predicted, scores in shown:
        table.add_row(
            patch_id, *_of_scan(applied, predicted, scores), *_of_scan(applied, _second(predicted, scores), scores)
        )
    left = len(applied.ids) - most
    more = f"and {left:,} more patches; --out FILE.csv writes all of them, with the score of every {applied.word}"
    warnings = (f"The run: {warning}" for warning in applied.warnings)
    return as_text(
        *warnings, table, *([more] if left > 0 else []), KINDS[applied.kind].format(plural=PLURALS[applied.word])
    )


def _second(predicted: int, scores: np.ndarray) -> int | None:
    """The scan with the best score but for the predicted one; of several, the first; None where there is no other."""
    order = [scan for scan in np.argsort(-scores, kind="stable").tolist() if scan != predicted]
    return order[0] if order else None


def _of_scan(applied: "Applied", scan: int | None, scores: np.ndarray) -> tuple[str, str]:
    return ("", "") if scan is None else (f"{scan} {applied.names[scan]}", f"{scores[scan]:.3f}")
