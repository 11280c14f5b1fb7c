"""Tables and sentences as text of one width, on a screen or in a pipe."""

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

WIDTH = 120  # characters


def new_table(show_footer: bool = False) -> Table:
    """Returns a table in the style of all of them, without columns yet."""
    return Table(box=SIMPLE_HEAD, pad_edge=False, show_footer=show_footer)


def as_text(*parts: str | Table) -> str:
    """Returns sentences and tables one below the other, sentences folded, without blanks at the end of a line."""
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().split("\n"))
