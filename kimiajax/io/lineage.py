"""Where weights came from: a record that holds, under "parent", that of the weights which training began with."""

from typing import Any


def ancestry(lineage: dict[str, Any]) -> list[dict[str, Any]]:
    """The lineage, its parent, and so on."""
    parent = lineage.get("parent")
    return [lineage, *(ancestry(parent) if parent else [])]


def root_of(lineage: dict[str, Any]) -> dict[str, Any]:
    """The lineage that all training began with."""
    return ancestry(lineage)[-1]
