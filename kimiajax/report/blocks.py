"""A network's blocks on a screen or in a pipe."""

from collections.abc import Sequence
from typing import Any

from kimiajax.report.console import as_text, new_table


def render_blocks(entries: Sequence[Any], headline: str, names: str | None = None) -> str:
    """One line a block, as `list_blocks` gives them, what trains in all, in digits alone, and how rows name blocks."""
    table = new_table()
    table.add_column("block")
    for name in ("output", "parameters", "statistics", "FLOPs an image"):
        table.add_column(name, justify="right")
    table.add_column("trains")
    for entry in entries:
        none = "statistics" if entry.adapts else "-"
        trains = {entry.parameters: "yes", 0: none}.get(entry.trained, f"{entry.trained} of them")
        shape = " x ".join(map(str, entry.output))
        table.add_row(entry.name, shape, str(entry.parameters), str(entry.statistics), str(entry.flops), trains)
    *backbone, _ = entries
    trained, all_of_them = (sum(getattr(e, name) for e in backbone) for name in ("trained", "parameters"))
    adapting = any(entry.adapts for entry in entries)
    return as_text(
        headline,
        table,
        f"{trained} backbone parameters train, of {all_of_them}; the head is not counted",
        *(["Running statistics of frozen blocks adapt."] if adapting else []),
        *([names] if names else []),
    )


def rows_of_blocks(network: str, after: Sequence[str]) -> str:
    """Returns a sentence on the names of rows and features of a network's blocks, those below the list too."""
    others = f" After the blocks above come {', '.join(after)}." if after else ""
    return (
        f"`--rows fe_{network}@BLOCK`, `nn_{network}@BLOCK_cosine` or `fe_{network}@all` take a block's mean over "
        f"space, BLOCK.flat all its values; `kimiajax features {network}@BLOCK` writes these.{others}"
    )
