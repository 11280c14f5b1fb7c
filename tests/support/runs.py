"""Flags of `kimiajax table` that make it short, and what it leaves in its folder, as a test reads it."""

import csv
import json

SMALL = ["--image-size", "32", "--patches-per-scan", "4", "--epochs", "1", "--head-epochs", "2", "--batch-size", "8"]
SMALL += ["--conv", "plain"]  # a measurement on a busy machine could choose otherwise for the next run
RANDOM = ["--weights", "random"]


def rows_of(out):
    results = json.loads((out / "results.json").read_text())
    return results, {row["name"]: row for row in results["rows"]}


def predictions(out, row):
    with (out / "predictions" / f"{row}.csv").open() as file:
        return list(csv.DictReader(file))
