"""The scores of a file of predictions on a screen or in a pipe."""

from kimiajax.evaluation.scoring import Scored
from kimiajax.report.console import as_text, new_table
from kimiajax.runs.classes import Classes
from kimiajax.text import cautions, percent

SCORES = (  # name, the name of its interval, what it is
    ("eta_p", "eta_p", "eta_p: correct test patches by all test patches"),
    ("eta_w_recall", "eta_w", "eta_w, recall: the definition, and the data set's MATLAB script"),
    ("eta_w_precision", None, "eta_w, precision: what its Python script prints under the same name"),
    ("eta_total", "eta_total", "eta_total: eta_p x eta_w, recall"),
    ("eta_total_precision", None, "eta_total, precision: eta_p x eta_w, precision"),
)
DIFFERENCE = (
    "Recall divides the correct patches of a {word} by its test patches, precision by the patches that were predicted "
    "as that {word}; either eta_w is the mean over {plural}. The two can lie points apart for the same predictions, so "
    "compare a figure with others of its own form only. Precision does not exist where a {word} with test patches is "
    "never predicted."
)


def render_score(scored: Scored) -> str:
    """Both forms of the scores in per cent, how they differ, and the counts of each scan; a dash where none is."""
    classes = Classes(scored.word, scored.labels or tuple(map(str, range(scored.num_scans))))
    scores = new_table()
    scores.add_column("score")
    scores.add_column("%", justify="right", no_wrap=True)
    scores.add_column("95 % interval", justify="right", no_wrap=True)
    for name, interval, what in SCORES:
        bounds = " to ".join(map(percent, scored.intervals[interval])) if interval else ""
        scores.add_row(what, percent(getattr(scored, name)), bounds)

    by_scan = new_table()
    by_scan.add_column(classes.word, overflow="fold", justify="left" if classes.named else "right")
    for name in ("test patches", "correct", "recall", "predicted as it", "precision"):
        by_scan.add_column(name, justify="right", no_wrap=True)
    counts = zip(scored.tested_per_scan, scored.correct_per_scan, scored.guessed_per_scan)
    for scan, (tested, correct, guessed) in enumerate(counts):
        recall, precision = (percent(correct / all_ if all_ else None) for all_ in (tested, guessed))
        by_scan.add_row(classes.numbered(scan), str(tested), str(correct), recall, str(guessed), precision)

    parts = [
        *scored.warnings,
        f"{scored.predictions}, scored against {scored.truth}: {scored.correct} of {scored.n} test patches of "
        f"{scored.num_scans} {classes.plural} are correct. Figures in per cent.",
        scores,
        DIFFERENCE.format(word=classes.word, plural=classes.plural),
        *cautions(scored.tested_per_scan, scored.intervals.values(), classes.word, classes.labels),
    ]
    if scored.never_predicted:
        parts.append(f"Never predicted, so that precision is undefined: {classes.called(scored.never_predicted)}.")
    if scored.without_patches:
        parts.append(
            f"Without test patches: {classes.called(scored.without_patches)}. Recall leaves them out; precision counts "
            "0 for one that is predicted, and leaves out the others."
        )
    return as_text(*parts, by_scan)
