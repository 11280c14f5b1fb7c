"""`kimiajax bench show RECORD`: a record's races as a table in Markdown."""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .compare import read_record
from .race import OURS, seconds_of

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
    ours, peer = (_cell(result, shown.get(name)) for name in (OURS, result["best_peer"]))
    ratio = result["ratio"]
    times = said_ratio(ratio) if ratio else "-"
    peer = f"{result['best_peer']}, {peer}" if ratio else "-"
    target = f"{result['target']:g}" if result["target"] else "-"
    return f"| {result['name']} | {ours} | {peer} | {times} | {target} | {result['verdict']} |"


def _cell(result: dict[str, Any], showing: dict[str, Any] | None) -> str:
    if showing is None or showing["state"] != "valid":
        return "-"
    seconds = statistics.median(seconds_of(showing))
    rate, unit = result["amount"] / seconds, result["unit"]
    if rate < 1:
        return f"{seconds:,.0f} s"
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.1f} {unit}/s"


def said_ratio(ratio: dict[str, float]) -> str:
    """A ratio and its quartiles over rounds, or that there was but one."""
    spread = "one round" if ratio["low"] == ratio["high"] else f"{ratio['low']:.2f} to {ratio['high']:.2f}"
    return f"{ratio['median']:.2f} ({spread})"


def line_of(result: dict[str, Any]) -> str:
    """One line: ours, the best peer, ratio with its spread, target, verdict."""
    shown = {each["name"]: each for each in result["contenders"]}
    names = [result["contenders"][0]["name"], result["best_peer"]]
    rates = [f"{name} {_rate(result, shown[name])}" for name in names if name and shown[name]["state"] == "valid"]
    parts = [f"{result['name']:42}", *(f"{rate:30}" for rate in rates)]
    if result["ratio"]:
        parts.append(f"ratio {said_ratio(result['ratio'])}")
    if result["target"]:
        parts.append(f"target {result['target']:g}")
    wrong = [
        f"{each['name']}: {each['why']}" for each in result["contenders"] if each["state"] in ("INVALID", "failed")
    ]
    return "  ".join([*parts, result["verdict"], *(f"({each})" for each in wrong)])


def lines_of(result: dict[str, Any]) -> list[str]:
    """One line a contender, the fastest first."""
    shown = result["contenders"]
    ran = sorted(
        (each for each in shown if each["state"] == "valid"), key=lambda each: statistics.median(seconds_of(each))
    )
    lines = [
        f"  {each['name']:28} {_rate(result, each):>20}   first run after {sum(each['phases'].values()):5.1f} s"
        f"{_memory(each)}   error {max(each['error'].values(), default=0):.1e}"
        for each in ran
    ]
    return lines + [
        f"  {each['name']:28} {each['state']}: {each['why']}".rstrip(": ") for each in shown if each not in ran
    ]


def _memory(showing: dict[str, Any]) -> str:
    return f"   peak {showing['peak_bytes'] / 2**30:4.1f} GiB" if showing["peak_bytes"] else ""


def _rate(result: dict[str, Any], showing: dict[str, Any]) -> str:
    rate = result["amount"] / statistics.median(seconds_of(showing))
    return f"{rate:,.{max(0, 2 - len(str(int(rate))) + 1)}f} {result['unit']}/s"
