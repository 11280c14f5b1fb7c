"""The effect of each choice of the protocol: `kimiajax table quick`, one setting at a time.

    kimiajax bench choices --out FOLDER --scans FILE --weights vgg16=FILE inception_v3=FILE [--flags of the table]

Claim: none; this shows on given tissue and weights which choices matter, and which do not.

All training patches are used, so that each seed trains on the same ones; seeds differ in the head's start, the order of
training and dropout. Each variant differs from `quick` in one choice and is a run of its own in FOLDER, which the same
command resumes. The record, FOLDER/choices.json, holds for each row and variant eta_p by seed, the loss at the end of
the head and in the first and last epoch of fine-tuning, and the difference of eta_p from that of `quick`, with its
interval and its p-value corrected for all variants of that row.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.errors import UserError
from kimiajax.evaluation.statistics import compare_pairs
from kimiajax.models.registry import BACKBONES

from .interleaved import write_record

BASE = "quick"
NETWORKS = ("vgg16", "inception_v3")
VARIANTS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "the head alone": ("--blocks", "head_only"),
    "trained batch normalisation keras2017": ("--trained-bn", "keras2017"),
    "frozen batch normalisation batch": ("--frozen-bn", "batch"),
    "frozen batch normalisation keras2017": ("--frozen-bn", "keras2017"),
    "head optimizer rmsprop2017": ("--head-optimizer", "rmsprop2017"),
    "both of 2017": ("--trained-bn", "keras2017", "--head-optimizer", "rmsprop2017"),
    "learning rate 1e-5": ("--learning-rate", "1e-5"),
    "learning rate 1e-3": ("--learning-rate", "1e-3"),
    "head epochs 10": ("--head-epochs", "10"),
    "head epochs 200": ("--head-epochs", "200"),
    "resize nearest": ("--resize", "nearest"),
    "resize bilinear": ("--resize", "bilinear"),
}


def rows_of(flags: Sequence[str]) -> list[str]:
    """The rows that a variant concerns: a network without batch normalisation has no mode of it."""
    of_modes = {"--trained-bn", "--frozen-bn"} & set(flags)
    return [f"tl_{network}" for network in NETWORKS if BACKBONES[network].statistics or not of_modes]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs every variant and writes the record; the exit status is that of the first run that failed."""
    parser = argparse.ArgumentParser(prog="kimiajax bench choices")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the record")
    options, of_table = parser.parse_known_args(argv)

    from kimiajax.cli.main import main as kimiajax
    from kimiajax.evaluation.stored import read_run

    given = ["--seeds", "3", "--patches-per-scan", "all", *of_table]
    runs = {}
    for name, flags in VARIANTS.items():
        folder = options.out / name.replace(" ", "-")
        command = ["table", BASE, *given, *flags, "--rows", *rows_of(flags), "--out", str(folder)]
        if status := kimiajax(command):
            return status
        runs[name] = read_run(folder)
    scans = runs[BASE].scans
    results = [told for network in NETWORKS for told in _told(f"tl_{network}", runs, scans)]
    for told in results:
        print(_line(told))
    write_record(options.out / "choices.json", results, **provenance(runs[BASE].seeds[0]))
    return 0


def provenance(results: dict[str, Any]) -> dict[str, Any]:
    """Returns which patches and weights a run used, from its `results.json`, without the folders where they lay."""
    return {
        "data": {
            "file": Path(results["data"]["source"]).name,
            **{name: results["data"][name] for name in ("scans", "train", "test", "manifest_sha256", "pixels_sha256")},
        },
        "weights": {
            network: {"file": Path(lineage["source"]).name, "digest": lineage["digest"]}
            for network, lineage in results["weights"].items()
        },
    }


def _told(row: str, runs: dict[str, Any], scans: np.ndarray) -> list[dict[str, Any]]:
    """Returns the entries of one row, one for each variant in which it has an accuracy, the base first."""
    correct = {name: run.correct(row) for name, run in runs.items() if row in run.predicted}
    if BASE not in correct:
        raise UserError(f"{row} has no accuracy in {runs[BASE].folder}, so there is nothing to compare choices with")
    pairs = [(name, BASE) for name in correct if name != BASE]
    against = {pair.first: pair for pair in compare_pairs(scans, correct, pairs)}
    told = []
    for name, right in correct.items():
        histories = [next(each for each in seed["rows"] if each["name"] == row)["history"] for seed in runs[name].seeds]
        pair = against.get(name)
        told.append(
            {
                "row": row,
                "variant": name,
                "flags": list(VARIANTS[name]),
                "eta_p": right.mean(axis=1).tolist(),
                "head_loss": [each["head"][-1]["loss"] for each in histories],
                "first_loss": [each["fine_tuning"][0]["loss"] for each in histories],
                "last_loss": [each["fine_tuning"][-1]["loss"] for each in histories],
                "difference": pair and pair.difference["eta_p"],
                "interval": pair and list(pair.intervals["eta_p"]),
                "p_adjusted": pair and pair.adjusted["eta_p"],
            }
        )
    return told


def _line(told: dict[str, Any]) -> str:
    eta_p, losses = np.mean(told["eta_p"]), [np.mean(told[f"{when}_loss"]) for when in ("head", "first", "last")]
    apart = ""
    if told["difference"] is not None:
        low, high = told["interval"]
        apart = f"; {told['difference']:+.1%} ({low:+.1%} to {high:+.1%}), p {told['p_adjusted']:.3f}"
    shown = " -> ".join(f"{loss:.2f}" for loss in losses)
    return f"{told['row']:16} {told['variant']:40} eta_p {eta_p:.1%}; loss {shown}{apart}"


if __name__ == "__main__":
    raise SystemExit(main())
