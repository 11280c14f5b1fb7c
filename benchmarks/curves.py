"""`kimiajax bench curves RUN... --out FILE.json`: how finished runs trained, side by side, as a record and a picture.

Claim: none. The record holds, for each row of each run that has an accuracy, its correct test patches and the loss of
every epoch of its head and its fine-tuning. The picture, beside the record as .svg, has one panel for
each fine-tuned row and one line for each run. Dashed is the loss at which the head ended. Of several seeds the first is
drawn.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib import rc_context

from kimiajax.errors import UserError
from kimiajax.evaluation.stored import read_run
from kimiajax.runs.reader import StoredRun
from kimiajax.text import first_few

from .choices import provenance
from .interleaved import write_record
from .plots import STYLE


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the runs, writes the record and draws it.

    Raises:
        UserError: a folder without a run, two of one name, or no run with a fine-tuned row.
    """
    parser = argparse.ArgumentParser(prog="kimiajax bench curves", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders that `kimiajax table` wrote")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    runs = [read_run(folder) for folder in options.runs]
    names = [run.folder.name for run in runs]
    if twice := first_few(dict.fromkeys(name for name in names if names.count(name) > 1)):
        raise UserError(f"two of the runs are called {twice}; the record tells runs by the names of their folders")
    results = [told for run in runs for told in _told(run)]
    if not any(told["fine_tuning"] for told in results):
        raise UserError(f"{', '.join(map(str, options.runs))}: no row was fine-tuned, so there is no curve to draw")
    write_record(options.out, results, runs={run.folder.name: provenance(run.seeds[0]) for run in runs})
    draw_curves(results, options.out.with_suffix(".svg"))
    for told in results:
        print(f"{told['run']:24} {told['row']:20} {told['correct']} of {told['tested']} test patches")
    print(f"written to {options.out}")
    return 0


def _told(run: StoredRun) -> list[dict[str, Any]]:
    """Returns the entries of a run in the record, one a row."""
    told = []
    for row in run.seeds[0]["rows"]:
        if row["name"] not in run.predicted:
            continue
        right = run.correct(row["name"])[0]
        history = row["history"] or {}
        losses = {
            phase: [round(epoch["loss"], 4) for epoch in history.get(phase, [])] for phase in ("head", "fine_tuning")
        }
        told.append(
            {
                "run": run.folder.name,
                "row": row["name"],
                "correct": int(right.sum()),
                "tested": len(right),
                "training": row["training"],
                **losses,
            }
        )
    return told


def draw_curves(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the loss over the epochs of fine-tuning, in nats on a logarithmic axis: a panel a row, a line a run."""
    tuned = [told for told in results if told["fine_tuning"]]
    rows = list(dict.fromkeys(told["row"] for told in tuned))
    with rc_context(STYLE):
        figure, panels = plt.subplots(1, len(rows), figsize=(4.6 * len(rows), 3), squeeze=False)
        for panel, row in zip(panels[0], rows):
            for told in (told for told in tuned if told["row"] == row):
                losses = told["fine_tuning"]
                label = f"{told['run']}: {told['correct']} of {told['tested']}"
                (line,) = panel.semilogy(range(1, len(losses) + 1), losses, lw=1.2, label=label)
                if told["head"]:
                    panel.axhline(told["head"][-1], color=line.get_color(), lw=0.8, ls="--")
            panel.set_title(row)
            panel.set_xlabel("epoch of fine-tuning")
            panel.set_ylabel("loss, nats")
            panel.legend(edgecolor="none", fontsize=8)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
