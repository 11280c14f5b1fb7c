"""A network's blocks on a screen or in a pipe."""

import io
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kimiajax.report.table import WIDTH


def render_blocks(entries: Sequence[Any], headline: str) -> str:
    """One line a block, as `list_blocks` gives them, and what trains in all, in digits alone."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("block")
    for name in ("output", "parameters", "statistics", "FLOPs an image"):
        table.add_column(name, justify="right")
    table.add_column("trains")
    for entry in entries:
        none = "statistics" if entry.adapts else "-"
        trains = {entry.parameters: "yes", 0: none}.get(entry.trained, f"{entry.trained} of them")
        shape = " x ".join(map(str, entry.output))
        table.add_row(entry.name, shape, str(entry.parameters), str(entry.statistics), str(entry.flops), trains)
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, highlight=False, markup=False, emoji=False)
    console.print(headline)
    console.print(table)
    *backbone, _ = entries
    trained, all_of_them = (sum(getattr(e, name) for e in backbone) for name in ("trained", "parameters"))
    console.print(f"{trained} backbone parameters train, of {all_of_them}; the head is not counted")
    if any(entry.adapts for entry in entries):
        console.print("Running statistics of frozen blocks adapt.")
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
