"""The files of a run: `results.json`, `manifest.csv` and its header, `predictions/ROW.csv`, `checkpoints/ROW`."""

import csv
import io
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.data.manifest import Manifest
from kimiajax.files import write_text
from kimiajax.shapes import Int

SCHEMA_VERSION = 1


def begin_run(out: Path, manifest: Manifest, rows: Iterable[str]) -> None:
    """Makes a folder ready for a run's results: removes an earlier run's files of these rows there, and no others."""
    (out / "results.json").unlink(missing_ok=True)
    for row in rows:
        (out / "predictions" / f"{row}.csv").unlink(missing_ok=True)
        (out / "history" / f"{row}.jsonl").unlink(missing_ok=True)
        for folder in ("checkpoints", "tensorboard"):
            shutil.rmtree(out / folder / row, ignore_errors=True)
    manifest.write(out / "manifest.csv")


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Writes `results.json`. Numbers that do not exist are null, never NaN."""
    write_text(out / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")


def write_predictions(out: Path, row: str, manifest: Manifest, predicted: Int[np.ndarray, " n"]) -> None:
    """Writes `predictions/ROW.csv`: patch_id, scan (the true one), predicted, in the manifest's order."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("patch_id", "scan", "predicted"))
    tested: Sequence = manifest.split("test")
    writer.writerows((patch.patch_id, patch.scan, int(guess)) for patch, guess in zip(tested, predicted, strict=True))
    write_text(out / "predictions" / f"{row}.csv", lines.getvalue())
