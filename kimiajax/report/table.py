"""The comparison table on a screen or in a pipe."""

from typing import Any

from kimiajax.report.console import as_text, new_table
from kimiajax.runs.warnings import SCORES, headline
from kimiajax.text import percent


def render_table(results: dict[str, Any]) -> str:
    """The rows beside the paper's figures, in per cent, with what a reader must know above and below."""
    table = new_table()
    seeds = "seeds" in results  # whose spreads take the place of two columns
    for name in ["approach"] if seeds else ["scheme", "approach"]:
        table.add_column(name, no_wrap=True)
    table.add_column("weights", overflow="fold", min_width=8)
    counts = [] if seeds else ["correct"]
    for name in (*SCORES, *counts, *(score.replace("eta_", "paper ") for score in SCORES), "s"):
        table.add_column(name, justify="right", no_wrap=True)
    family = results["rows"][0]["family"] if results["rows"] else None
    for row in results["rows"]:
        if row["family"] != family:
            table.add_section()
            family = row["family"]
        table.add_row(
            *([] if seeds else [row["scheme"]]),
            row["approach"],
            row["weights"],
            *(_score(row, score) for score in SCORES),
            *([] if seeds else ["-" if row["correct"] is None else f"{row['correct']}/{row['tested']}"]),
            *("" if row["paper"] is None else percent(row["paper"][score]) for score in SCORES),
            f"{row['seconds']:.{int(row['seconds'] < 100)}f}",  # whole from 100 on: wider figures would be cut
        )
    notes = (f"{number}. {note}" for number, note in enumerate([*results["notes"], *_beaten(results)], start=1))
    return as_text(headline(results), table, *notes)


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
