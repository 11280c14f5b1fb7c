"""The comparison table on a screen or in a pipe."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from kimiajax.report.console import as_text, new_table
from kimiajax.runs.classes import is_kimia
from kimiajax.runs.warnings import SCORES, headline
from kimiajax.text import percent

BLOCKS = "Blocks, each as its mean over space, or flat with all its values:"


def render_table(results: dict[str, Any]) -> str:
    """The rows in per cent, of Kimia Path24 beside the paper's figures, with what a reader must know above and below.

    Rows of blocks follow in a table of their own, since they are many and the paper has none.
    """
    of_blocks = [row for row in results["rows"] if row["family"] == "blocks"]
    others = [row for row in results["rows"] if row["family"] != "blocks"]
    notes = (f"{number}. {note}" for number, note in enumerate([*results["notes"], *_beaten(results)], start=1))
    several, kimia = "seeds" in results, is_kimia(results["data"])
    tables = [_table(others, several, True, kimia)] if others or not of_blocks else []
    tables += [BLOCKS, _table(of_blocks, several, False, False)] if of_blocks else []
    return as_text(headline(results), *tables, *notes)


def _table(rows: Sequence[dict[str, Any]], several: bool, whole: bool, published: bool) -> Table:
    """Rows of a run.

    Args:
        rows: of `results.json`.
        several: whether the run is of several seeds, whose spreads take the place of some columns.
        whole: whether they are of whole networks, by their families, and not of blocks by their network.
        published: whether the paper's figures stand beside.
    """
    table = new_table()
    table.collapse_padding = True
    for name in ["approach"] if several else ["scheme", "approach"]:
        table.add_column(name, no_wrap=True)
    if whole:
        table.add_column("weights", overflow="fold", min_width=10)
    counts = [] if several else ["correct"]
    papers = (SCORES[-1:] if several else SCORES) if published else ()
    for name in (*SCORES, *counts, *(score.replace("eta_", "paper ") for score in papers), "s"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        group = row["family"] if whole else row["network"]
        if group != previous:
            table.add_section()
            previous = group
        table.add_row(
            *([] if several else [row["scheme"]]),
            label(row) if several else row["approach"],
            *([row["weights"]] if whole else []),
            *(_score(row, score) for score in SCORES),
            *([] if several else ["-" if row["correct"] is None else f"{row['correct']}/{row['tested']}"]),
            *("" if row["paper"] is None else percent(row["paper"][score]) for score in papers),
            f"{row['seconds']:.{int(row['seconds'] < 100)}f}",  # whole from 100 on: wider figures would be cut
        )
    return table


def label(row: dict[str, Any]) -> str:
    """Returns what a row is called: its approach, and of retrieval the distance."""
    by_distance = row["family"] == "retrieval" or (row["family"] == "blocks" and row["scheme"] != "features")
    return f"{row['approach']}, {row['scheme']}" if by_distance else row["approach"]


def _beaten(results: dict[str, Any]) -> list[str]:
    """A sentence on the table's rows that are not above the gray histogram, where there are any and it was computed."""
    rows = {row["name"]: row for row in results["rows"]}
    floor = rows.get("floor_histogram", {}).get("eta_total")
    if floor is None:
        return []
    scored = [row for row in rows.values() if row["family"] == "table" and row["eta_total"] is not None]
    beaten = [row["approach"] for row in scored if row["eta_total"] <= floor]
    return [f"Not above a gray histogram, which knows nothing of tissue: {', '.join(beaten)}."] if beaten else []


def _score(row: dict[str, Any], score: str) -> str:
    """A score in per cent, with its standard deviation over seeds where there are several; a dash where none is."""
    if row[score] is None:
        return "-"
    spread = row.get(f"{score}_sd")
    return percent(row[score]) + ("" if spread is None else f" ± {percent(spread)}")
