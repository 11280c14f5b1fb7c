"""The files of a run: `results.json`, `manifest.csv` and its header, `predictions/ROW.csv`, `checkpoints/ROW`,
`pictures/`, and `unfinished/ROW` while a row trains."""

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.data.manifest import Manifest
from kimiajax.io.files import write_text
from kimiajax.io.json_records import sealed
from kimiajax.runs.pictures import clear_pictures
from kimiajax.shapes import Int

# 4: how each network convolved; 5: floors, retrieval, pictures; 6: a seal; 7: settings of any network; 8: modes
# of trained batch normalisation, and "rmsprop" names the optimizer of Keras 3
SCHEMA_VERSION = 8

SCANS = "scans"  # the folder of the pictures of one patch a scan


def clear_run(out: Path, rows: Sequence[str]) -> None:
    """Removes an earlier run's files of these rows, of one seed or of several, and no others."""
    seeds = [path for path in out.glob("seed-*") if path.is_dir() and path.name.removeprefix("seed-").isdecimal()]
    for folder in (out, *seeds):
        for name in ("results.json", "manifest.csv", "manifest.json", "report.html", "report.analysis.json"):
            (folder / name).unlink(missing_ok=True)
        clear_pictures(folder, SCANS)
        for row in rows:
            clear_row(folder, row)
            clear_unfinished(folder, row)


def clear_row(out: Path, row: str) -> None:
    """Removes what one row left, but for the state that its training goes on from."""
    (out / "predictions" / f"{row}.csv").unlink(missing_ok=True)
    (out / "history" / f"{row}.jsonl").unlink(missing_ok=True)
    for kind in ("checkpoints", "tensorboard", "pictures"):
        shutil.rmtree(out / kind / row, ignore_errors=True)


def unfinished(out: Path, row: str) -> Path:
    """Where the states of a row's training are."""
    return out / "unfinished" / row


def clear_unfinished(out: Path, row: str) -> None:
    """Removes them."""
    shutil.rmtree(unfinished(out, row), ignore_errors=True)
    with contextlib.suppress(OSError):  # other rows' are there, or none ever were
        (out / "unfinished").rmdir()


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Writes `results.json`, sealed. Numbers that do not exist are null, never NaN."""
    write_text(out / "results.json", json.dumps(sealed(results), indent=2, allow_nan=False) + "\n")


def write_predictions(out: Path, row: str, manifest: Manifest, predicted: Int[np.ndarray, " n"]) -> Path:
    """Writes `predictions/ROW.csv`: patch_id, scan (the true one), predicted, in the manifest's order."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("patch_id", "scan", "predicted"))
    tested: Sequence = manifest.split("test")
    writer.writerows((patch.patch_id, patch.scan, int(guess)) for patch, guess in zip(tested, predicted, strict=True))
    path = out / "predictions" / f"{row}.csv"
    write_text(path, lines.getvalue())
    return path
