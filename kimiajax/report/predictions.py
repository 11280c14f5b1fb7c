"""What a row predicts for a user's patches, on a screen or in a pipe."""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from kimiajax.report.console import as_text, new_table
from kimiajax.text import PLURALS

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
    kind = KINDS[applied.kind].format(plural=PLURALS[applied.word])
    return as_text(*warnings, table, *([more] if left > 0 else []), *_by_slide(applied), kind)


def _by_slide(applied: "Applied", most: int = 12) -> list[str]:
    """What the patches of each slide, or folder, were taken for: "a: 5 of 6 patches liver, 1 breast"."""
    taken: dict[str, Counter[str]] = {}
    for patch_id, predicted in zip(applied.ids, applied.predicted.tolist()):
        taken.setdefault(patch_id.rpartition("/")[0], Counter())[applied.names[predicted]] += 1
    lines = []
    for folder, counts in taken.items():
        (first, count), *others = counts.most_common()
        rest = "".join(f", {count} {name}" for name, count in others)
        lines.append(f"{folder or 'together'}: {count} of {counts.total()} patches {first}{rest}")
    left = len(lines) - most
    return [*lines[:most], *([f"and {left} more like these"] if left > 0 else [])] if len(applied.ids) > 1 else []


def _second(predicted: int, scores: np.ndarray) -> int | None:
    """The scan with the best score but for the predicted one; of several, the first; None where there is no other."""
    order = [scan for scan in np.argsort(-scores, kind="stable").tolist() if scan != predicted]
    return order[0] if order else None


def _of_scan(applied: "Applied", scan: int | None, scores: np.ndarray) -> tuple[str, str]:
    return ("", "") if scan is None else (f"{scan} {applied.names[scan]}", f"{scores[scan]:.3f}")
