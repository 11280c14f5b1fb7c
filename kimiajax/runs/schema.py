"""What `results.json` must hold for a table, a report or a comparison to be made of it."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from kimiajax.text import quoted

Kind = Any  # a type, a function that tells, an object of kinds by name, a list of one kind, or a tuple of any of these
NULL = type(None)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _share(value: Any) -> bool:
    return type(value) is float and 0 <= value <= 1


def _seconds(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0


def _matching(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


NAME = _matching(r"[a-z0-9_]{1,60}(@[A-Za-z0-9_.-]{1,90})?")  # of a row, and so of files
TAP = _matching(r".{1,90}\.(mean|flat)")  # that a row of a block reads
LABEL = _matching(r"[ !#%-\[\]_a-z~]{1,80}")  # what figures show: ASCII without the signs of formulas and escapes
FILE = _matching(r"pictures(/(?!\.)[\w.@-]{1,100}){1,3}")  # within the run's folder
SEED_FOLDER = _matching(r"seed-[0-9]{1,20}")
EACH = "*"  # stands for all names of an object

PICTURE = {"file": FILE, "patch_id": str, "scan": int}
EXPLAINED = (
    {**PICTURE, "kind": lambda kind: kind == "patch"},
    {**PICTURE, "kind": str, "layer": str, "cells": [int], "evidence": bool, "predicted": int},
)
NEIGHBOUR = (
    {**PICTURE, "query": str, "rank": lambda rank: rank == 0},
    {**PICTURE, "query": str, "rank": int, "distance": (int, float)},
)
EPOCH = {"epoch": int, "loss": (float, NULL), "accuracy": (float, NULL)}
RECALL = {"recall_at": {EACH: _share}, "gallery": int, "queries_per_second": _seconds}
SCORES = {"eta_p": _share, "eta_w": _share, "eta_total": _share}
LINEAGE: dict[str, Kind] = {"source": str, "digest": str, "run?": (dict, NULL)}
LINEAGE["parent?"] = (LINEAGE, NULL)

ROW = {
    "name": NAME,
    "approach": LABEL,
    "scheme": LABEL,
    "network": (NAME, NULL),
    "block": (str, NULL),
    "against": (NAME, NULL),
    "weights": str,
    "correct": (_count, NULL),
    "tested": _count,
    "failure": (str, NULL),
    "seconds": _seconds,
    "paper": (SCORES, NULL),
    "retrieval": (RECALL, NULL),
    **{f"{score}_sd?": (float, NULL) for score in SCORES},
}
OF_ONE_SEED = {"history": {EACH: [EPOCH]}, "predictions_sha256": (str, NULL)}
WITH_PICTURES = (
    {"family": lambda family: family == "table", "pictures": [EXPLAINED]},
    {"family": lambda family: family in ("floor", "retrieval"), "pictures": [NEIGHBOUR]},
    {"family": lambda family: family == "blocks", "block": TAP, "pictures": [NEIGHBOUR]},
)
SCORED = (SCORES, dict.fromkeys(SCORES, NULL))

GROUPS = {"column": str, "shared": [str]}  # of patients, say; those in training and test
DATA = {
    **dict.fromkeys(("train", "test", "patch_size"), _count),
    **{"test_per_scan?": [_count], "groups?": (GROUPS, NULL)},
    "scans": lambda scans: _count(scans) and scans > 0,
    "source": str,
    "synthetic": bool,
}
AUDIT = {"failed": [str], "untold?": [str], "verdict": str, "date": str, "kimiajax": str}
DATA_OF_ONE_SEED = {
    "kind": str,
    "manifest_sha256": str,
    "pixels_sha256": (str, NULL),
    "rules": (dict, NULL),
    "names": [str],
    "left_out?": ({EACH: [_count]}, NULL),
    "identity?": str,
    "audit": (AUDIT, NULL),
}
RESULTS = {
    "preset": str,
    "complete": bool,
    "config": {
        **{"seed": int, "image_size": int},
        **{f"{network}_weights?": str for network in ("vgg16", "inception_v3")},  # of versions before 7
        **{f"{network}_blocks?": [str] for network in ("vgg16", "inception_v3")},
    },
    "environment": {"kimiajax": str, "revision": (str, NULL), "devices": (list, str), "packages": dict},
    "data": {**DATA, "audit?": (AUDIT, NULL)},
    "weights": {EACH: LINEAGE},
    "blocks?": {EACH: [LABEL]},
    "notes": [str],
    "pictures": [PICTURE],
    "rows": [ROW],
}
OF_SEEDS = {"runs": [SEED_FOLDER], "seeds?": [int]}


def faults(results: dict[str, Any]) -> list[str]:
    """What is wrong with the content of a `results.json`, in words; nothing where all of it can be used."""
    several = "runs" in results
    kinds = (SCORED, WITH_PICTURES, {} if several else OF_ONE_SEED)
    found = [
        *_faults(results, RESULTS),
        *_faults(results, OF_SEEDS if several else {"data": DATA_OF_ONE_SEED}),
        *(fault for kind in kinds for fault in _faults(results["rows"], [kind], "rows")),
    ]
    return found or list(_contradictions(results))


def _contradictions(results: dict[str, Any]) -> Iterator[str]:
    if len({row["name"] for row in results["rows"]}) < len(results["rows"]):
        yield "two rows have one name"
    runs = results.get("runs", ["."])
    if not 0 < len(runs) == len(results.get("seeds", runs)):
        yield "runs and seeds must be as many"


def _faults(value: Any, kind: Kind, where: str = "") -> Iterator[str]:
    pending = [(value, kind, where)]
    while pending:
        value, kind, where = pending.pop()
        if isinstance(kind, tuple) and type(value) in kind:
            continue
        if isinstance(kind, tuple):
            yield from min((list(_faults(value, each, where)) for each in kind), key=len)
        elif isinstance(kind, dict):
            if type(value) is not dict:
                yield f"{where or 'all'} is {quoted(value)} and no object"
                continue
            for name, each in kind.items():
                for key in value if name == EACH else [name.removesuffix("?")]:
                    below = f"{where}.{key}".lstrip(".")
                    if key in value:
                        pending.append((value[key], each, below))
                    elif name == key:
                        yield f"{quoted(below)} is missing"
        elif isinstance(kind, list):
            if type(value) is not list:
                yield f"{quoted(where)} is {quoted(value)} and no list"
            else:
                pending += [(each, kind[0], f"{where}[{place}]") for place, each in enumerate(value)]
        elif type(value) is not kind if isinstance(kind, type) else not kind(value):
            yield f"{quoted(where)} is {quoted(value)}"
