"""Two runs beside each other, on a screen or in a pipe."""

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kimiajax.evaluation.compare import OPEN, SAME, Comparison
from kimiajax.report.table import WIDTH
from kimiajax.runs.warnings import SCORES
from kimiajax.text import cautions, points

NOTE = (
    "Differences are A's score less B's, in points, patch by patch on the same test patches; of eta_total with a 95 % "
    "interval. p is of eta_total, by permutation, after Holm's correction for the rows between two rules. It tells "
    "what other test patches might show, and not what other seeds of training would."
)


def render_comparison(comparison: Comparison) -> str:
    """What differs between two runs, and a verdict for each row that both have."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
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
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, highlight=False, markup=False, emoji=False)
    for name, folder, warnings in zip("AB", comparison.folders, comparison.warnings):
        console.print(f"{name}: {folder}")
        for warning in warnings:
            console.print(f"  {warning}")
    for line in comparison.differences or ["Settings, weights, training patches and programs are the same."]:
        console.print(f"  {line}")
    for folder, rows in comparison.only.items():
        console.print(f"  {folder} alone has, or has an accuracy of: {', '.join(rows)}")
    console.print(table)
    console.print(NOTE)
    intervals = [bounds for pair in comparison.pairs.values() for bounds in pair.intervals.values()]
    for caution in cautions(comparison.tested, intervals):
        console.print(caution)
    apart = [row for row, verdict in comparison.verdicts.items() if verdict not in (SAME, OPEN)]
    console.print(
        f"Differ: {', '.join(apart)}." if apart else f"No difference shown in any of {len(comparison.pairs)} rows."
    )
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
