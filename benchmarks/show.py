"""`kimiajax bench show RECORD`: a record's races as a table in Markdown."""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .compare import read_record
from .race import OURS, said_ratio, seconds_of

HEAD = ("| work | kimiajax | best peer | times as fast, quartiles of rounds | target | |", "|---|---|---|---|---|---|")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="kimiajax bench show", description=__doc__)
    parser.add_argument("record", type=Path, help="that `--out` wrote")
    options = parser.parse_args(argv)
    print("\n".join(table_of(read_record(options.record))))
    return 0


def table_of(record: dict[str, Any]) -> list[str]:
    """The lines of the table, a line a race."""
    return [*HEAD, *(_line(result) for result in record["results"])]


def _line(result: dict[str, Any]) -> str:
    shown = {each["name"]: each for each in result["contenders"]}
    ours, peer = (_rate(result, shown.get(name)) for name in (OURS, result["best_peer"]))
    ratio = result["ratio"]
    times = said_ratio(ratio) if ratio else "-"
    peer = f"{result['best_peer']}, {peer}" if ratio else "-"
    target = f"{result['target']:g}" if result["target"] else "-"
    return f"| {result['name']} | {ours} | {peer} | {times} | {target} | {result['verdict']} |"


def _rate(result: dict[str, Any], showing: dict[str, Any] | None) -> str:
    if showing is None or showing["state"] != "valid":
        return "-"
    seconds = statistics.median(seconds_of(showing))
    rate, unit = result["amount"] / seconds, result["unit"]
    if rate < 1:
        return f"{seconds:,.0f} s"
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.1f} {unit}/s"
