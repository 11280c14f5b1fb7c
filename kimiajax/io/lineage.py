"""Where weights came from: a record that holds, under "parent", that of the weights which training began with."""

from typing import Any

DRAWN = ("random", "calibrated")  # sources of weights that no file holds


def ancestry(lineage: dict[str, Any]) -> list[dict[str, Any]]:
    """The lineage, its parent, and so on."""
    parent = lineage.get("parent")
    return [lineage, *(ancestry(parent) if parent else [])]


def root_of(lineage: dict[str, Any]) -> dict[str, Any]:
    """The lineage that all training began with."""
    return ancestry(lineage)[-1]


def is_random(lineage: dict[str, Any]) -> bool:
    """Returns whether weights began random, whatever scaled or trained them since."""
    return root_of(lineage)["source"] in DRAWN
