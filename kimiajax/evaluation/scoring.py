"""Predictions from anywhere, scored in both forms that eta_w has been printed in.

The data set's two official scripts disagree. The MATLAB one computes the mean over scans of recall, which is the
definition. The Python one, which needs Python 2, divides the diagonal of scikit-learn's confusion matrix by its column
sums: that is precision, and NaN where a scan is never predicted.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kimiajax.checks import path_of
from kimiajax.runs.predictions import join, read_predictions, read_truth, with_ids_of
from kimiajax.runtime.shell import standard_settings

if TYPE_CHECKING:
    from kimiajax.evaluation.statistics import Interval


@dataclass(frozen=True)
class Scored:
    """Scores in [0, 1], in double precision, and the counts behind them.

    Attributes:
        predictions: the file that was scored.
        truth: what it was scored against.
        warnings: what marks that, and how files were read that are not as the project writes them.
        n: test patches.
        correct: of these, how many were predicted right.
        num_scans: how many scans there are.
        eta_p: correct by n.
        eta_w_recall: the mean over scans of (correct / test patches of the scan): the definition of eta_w.
        eta_w_precision: the mean over scans of (correct / patches predicted as the scan); None where a scan with test
            patches is never predicted. As in the script, a scan counts that is tested or predicted.
        eta_total: eta_p times eta_w_recall.
        eta_total_precision: eta_p times eta_w_precision; None with it.
        intervals: of 95 %, of eta_p by Wilson's formula, of eta_w in its recall form and of eta_total, under these
            names, by a bootstrap within scans.
        tested_per_scan: test patches of each scan, [num_scans].
        guessed_per_scan: patches predicted as each scan, [num_scans].
        correct_per_scan: correct patches of each scan, [num_scans].
        labels: what each scan is called, [num_scans]; none where that is its number.
        word: what each is, a scan or a class.
    """

    predictions: str
    truth: str
    warnings: tuple[str, ...]
    n: int
    correct: int
    num_scans: int
    eta_p: float
    eta_w_recall: float
    eta_w_precision: float | None
    eta_total: float
    eta_total_precision: float | None
    intervals: "dict[str, Interval]"
    tested_per_scan: tuple[int, ...]
    guessed_per_scan: tuple[int, ...]
    correct_per_scan: tuple[int, ...]
    labels: tuple[str, ...] = ()
    word: str = "scan"

    @property
    def never_predicted(self) -> list[int]:
        """Scans that have test patches and are never predicted: precision is undefined for them."""
        return [s for s, (t, g) in enumerate(zip(self.tested_per_scan, self.guessed_per_scan)) if t and not g]

    @property
    def without_patches(self) -> list[int]:
        """Scans that have no test patches: recall's mean leaves them out."""
        return [scan for scan, tested in enumerate(self.tested_per_scan) if not tested]

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it: what does not exist is None, never NaN, and names only where there are any."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if not self.labels:
            del fields["labels"], fields["word"]
        return {**fields, "never_predicted": self.never_predicted, "without_patches": self.without_patches}


@standard_settings()
def score(predictions_path: str | Path | Any, truth_path: str | Path | Any) -> Scored:
    """Scores a file of predictions against the truth.

    Patch ids that differ from the truth's by backslashes, blanks or an image's extension alone are taken for those.

    Raises:
        UserError: a file cannot be read, or predictions and truth are not of the same patches; see `read_predictions`,
            `read_truth` and `join`.
    """
    predictions = read_predictions(path_of("predictions", predictions_path))
    truth = read_truth(path_of("truth", truth_path))
    predictions = with_ids_of(predictions, truth)
    predicted = join(predictions, truth)

    # once the files have proved good: these import jax
    from kimiajax.evaluation.metrics import plain_scores
    from kimiajax.evaluation.statistics import intervals_of_rows

    scores = plain_scores(truth.scans, predicted, truth.num_scans)
    eta_p, precision, correct = scores["eta_p"], scores["eta_w_precision"], scores["correct"]
    return Scored(
        predictions=str(predictions.path),
        truth=str(truth.path),
        warnings=(*truth.warnings, *predictions.notes),
        n=len(predicted),
        correct=sum(correct),
        num_scans=truth.num_scans,
        eta_p=eta_p,
        eta_w_recall=scores["eta_w"],
        eta_w_precision=precision,
        eta_total=scores["eta_total"],
        eta_total_precision=None if precision is None else eta_p * precision,
        intervals=intervals_of_rows(truth.scans, {"": (predicted == truth.scans)[None]})[""],
        tested_per_scan=tuple(scores["tested"]),
        guessed_per_scan=tuple(np.bincount(predicted, minlength=truth.num_scans).tolist()),
        correct_per_scan=tuple(correct),
        labels=truth.classes.labels if truth.classes.named else (),
        word=truth.classes.word,
    )
