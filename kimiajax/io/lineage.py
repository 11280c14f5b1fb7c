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


def identity_of(lineage: dict[str, Any], length: int | None = None) -> str:
    """Returns what tells weights from others: their arrays' digest, as far as `length`, and the network's options."""
    options = "".join(f", {name} {value}" for name, value in sorted(lineage.get("options", {}).items()))
    return f"{lineage['digest'][:length]}{options}"


def as_read(lineage: dict[str, Any]) -> str | None:
    """Returns what was done to a weight file's arrays for what the file says of itself; None where nothing was."""
    origin = root_of(lineage)
    done = list(origin.get("changes", []))
    within = origin.get("says", {}).get("within")
    done += [f"taken out of {within}"] if within else []
    usual = ("AuxLogits (", "num_batches_tracked (")  # of torch's own files
    left_out = [part for part in origin.get("left_out", []) if not part.startswith(usual)]
    done += [f"left out: {', '.join(left_out)}"] if left_out else []
    if "epsilon" in origin.get("options", {}):
        done.append(f"batch normalisation with epsilon {origin['options']['epsilon']}")
    return "; ".join(done) or None
