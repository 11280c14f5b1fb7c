"""`kimiajax bench plots RECORD --out FOLDER`: pictures of a record, as SVG. Needs matplotlib, of the extra `report`."""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from .compare import read_record
from .interleaved import quartiles
from .race import OURS, seconds_of

mpl.use("svg")
STYLE = {
    "svg.hashsalt": "kimiajax",  # the same picture is the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}
OUR_COLOUR, PEER_COLOUR, BOUND_COLOUR = "#0b6e4f", "#9aa5b1", "#c44536"


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the races of one record."""
    parser = argparse.ArgumentParser(prog="kimiajax bench plots", description=__doc__)
    parser.add_argument("record", type=Path, help="that `--out` wrote")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the pictures")
    options = parser.parse_args(argv)
    results = read_record(options.record)["results"]
    options.out.mkdir(parents=True, exist_ok=True)
    for workload in ("features", "finetune_step"):
        shown = [result for result in results if result["workload"] == workload and result["best_peer"]]
        if shown:
            path = options.out / f"{options.record.stem}-{workload}.svg"
            draw_races(shown, path)
            print(f"written to {path}")
    return 0


def draw_races(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Each race's contenders as bars, images per second, the fastest on top; whiskers are the quartiles of rounds."""
    with mpl.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(results), figsize=(3.6 * len(results), 2.6), squeeze=False)
        for panel, result in zip(panels[0], results):
            valid = [each for each in result["contenders"] if each["state"] == "valid"]
            spans = {e["name"]: quartiles([result["amount"] / seconds for seconds in seconds_of(e)]) for e in valid}
            names = sorted(spans, key=lambda name: spans[name][1])
            low, middle, high = zip(*(spans[name] for name in names))
            spread = [[m - edge for m, edge in zip(middle, low)], [edge - m for m, edge in zip(middle, high)]]
            colours = [OUR_COLOUR if name == OURS else PEER_COLOUR for name in names]
            panel.barh(names, middle, xerr=spread, color=colours, error_kw={"lw": 0.8})
            panel.set_title(_title(result))
            panel.set_xlabel(f"{result['unit']}/s")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _title(result: dict[str, Any]) -> str:
    settings = result["settings"]
    scope = f", {settings['scope']}" if "scope" in settings else ""
    return f"{settings['network']}{scope}, batch {settings['batch']}"


def draw_roofline(record: dict[str, Any], path: Path) -> None:
    """Blocks as points under the device's roof: operations per second over operations per byte."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.8))
        peak, bandwidth = record["peak_flops_per_second"], record["bytes_per_second"]
        intensities = [row["flops"] / row["bytes"] for row in record["blocks"] if row["flops"]]
        reached = [row["flops"] / statistics.median(row["seconds"]) for row in record["blocks"] if row["flops"]]
        span = [min(intensities) / 2, max(intensities) * 2]
        knee = peak / bandwidth
        roof = sorted({*span, min(max(knee, span[0]), span[1])})
        axes.loglog(roof, [min(peak, bandwidth * x) / 1e9 for x in roof], color=BOUND_COLOUR, lw=1.2)
        axes.scatter(intensities, [each / 1e9 for each in reached], color=OUR_COLOUR, s=18, zorder=3)
        for row, x, y in zip([row for row in record["blocks"] if row["flops"]], intensities, reached):
            axes.annotate(row["block"], (x, y / 1e9), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.set_xlabel("operations a byte")
        axes.set_ylabel("GFLOP/s, counted as direct convolutions")
        axes.set_title(f"{record['network']}, batch {record['batch']}, {record['precision']}, {record['conv']}")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
