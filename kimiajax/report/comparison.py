"""Two runs beside each other, on a screen or in a pipe."""

from kimiajax.evaluation.compare import OPEN, SAME, Comparison
from kimiajax.report.console import as_text, new_table
from kimiajax.runs.warnings import SCORES
from kimiajax.text import cautions, points

NOTHING_DIFFERS = "Settings, weights, training patches and programs are the same."
NOTE = (
    "Differences are A's score less B's, in points, patch by patch on the same test patches; of eta_total with a 95 % "
    "interval. p is of eta_total, by permutation, after Holm's correction for the rows between two rules. It tells "
    "what other test patches might show, and not what other seeds of training would."
)


def render_comparison(comparison: Comparison) -> str:
    """What differs between two runs, and a verdict for each row that both have."""
    table = new_table()
    table.add_column("row", no_wrap=True)
    for name in (*SCORES, "95 % interval", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    family = None
    for row, pair in comparison.pairs.items():
        if comparison.families[row] != family:
            table.add_section()
            family = comparison.families[row]
        differences = (points(pair.difference[score]) for score in SCORES)
        interval = " to ".join(map(points, pair.intervals["eta_total"]))
        table.add_row(row, *differences, interval, f"{pair.adjusted['eta_total']:.2g}", comparison.verdicts[row])
    runs = zip("AB", comparison.folders, comparison.warnings)
    only = comparison.only.items()
    intervals = [bounds for pair in comparison.pairs.values() for bounds in pair.intervals.values()]
    apart = [row for row, verdict in comparison.verdicts.items() if verdict not in (SAME, OPEN)]
    return as_text(
        *(line for name, folder, told in runs for line in (f"{name}: {folder}", *(f"  {each}" for each in told))),
        *(f"  {line}" for line in comparison.differences or [NOTHING_DIFFERS]),
        *(f"  {folder} alone has, or has an accuracy of: {', '.join(rows)}" for folder, rows in only),
        table,
        NOTE,
        *cautions(comparison.tested, intervals, comparison.classes.word, comparison.classes.labels),
        f"Differ: {', '.join(apart)}." if apart else f"No difference shown in any of {len(comparison.pairs)} rows.",
    )
