"""`kimiajax bench compare A B`: whether this project got faster or slower between two records of the same machine."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kimiajax.errors import UserError

from .interleaved import quartiles
from .race import OURS, seconds_of

SCHEMA_VERSION = 1
HARDWARE = ("processor", "cores", "backend", "devices")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each race that both records hold."""
    parser = argparse.ArgumentParser(prog="kimiajax bench compare", description=__doc__)
    parser.add_argument("before", type=Path, help="record that `--out` wrote")
    parser.add_argument("after", type=Path)
    options = parser.parse_args(argv)
    for line in compare(read_record(options.before), read_record(options.after)):
        print(line)
    return 0


def read_record(path: Path) -> dict[str, Any]:
    """A record.

    Raises:
        UserError: not one, or of another version.
    """
    try:
        record = json.loads(path.read_text())
        version = record["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no record of `kimiajax bench --out` ({type(error).__name__})") from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: of version {version}, which this program does not read; measure again")
    return record


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line for each race of both: times as fast as before, or that there is no difference.

    A difference is one where the quartiles of the two samples of rounds lie apart.

    Raises:
        UserError: other hardware, or no race in common.
    """
    for name in HARDWARE:
        ours, theirs = before["environment"][name], after["environment"][name]
        if ours != theirs:
            raise UserError(f"the records are of different hardware ({name}: {ours} and {theirs}): not comparable")
    seconds = [{r["name"]: _seconds(r) for r in record["results"] if _seconds(r)} for record in (before, after)]
    names = [name for name in seconds[0] if name in seconds[1]]
    if not names:
        raise UserError("the records have no valid race in common")
    return [f"{name:48} {_difference(*(each[name] for each in seconds))}" for name in names]


def _seconds(result: dict[str, Any]) -> list[float]:
    """Of a run of ours, by round; empty where it was not valid."""
    ours = next(each for each in result["contenders"] if each["name"] == OURS)
    return seconds_of(ours) if ours["state"] == "valid" else []


def _difference(before: Sequence[float], after: Sequence[float]) -> str:
    (low, middle, high), (new_low, new_middle, new_high) = quartiles(before), quartiles(after)
    if low <= new_high and new_low <= high:
        return f"no difference ({middle:.3g} s, {new_middle:.3g} s)"
    times = middle / new_middle
    return f"{times:.2f} times as fast" if times > 1 else f"slower: takes {1 / times:.2f} times as long"
