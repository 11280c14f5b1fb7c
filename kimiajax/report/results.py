"""The files of a run: `results.json`, `manifest.csv`, `predictions/ROW.csv`."""

import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.data.patches import Manifest
from kimiajax.errors import UserError
from kimiajax.files import write_text
from kimiajax.shapes import Int

SCHEMA_VERSION = 1


def begin_run(out: Path, manifest: Manifest, results: dict[str, Any]) -> None:
    """Makes a folder ready for a run's results: removes an earlier run's files there, and no others."""
    if (out / "results.json").exists():
        (out / "results.json").unlink()
        for folder in ("predictions", "checkpoints"):
            shutil.rmtree(out / folder, ignore_errors=True)
    write_text(out / "manifest.csv", manifest.csv)
    write_results(out, results)


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Writes `results.json`. Numbers that do not exist are null, never NaN."""
    write_text(out / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")


def read_results(out: Path) -> dict[str, Any]:
    """Reads a run's `results.json`.

    Raises:
        UserError: no results there, or of another schema.
    """
    path = out / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no readable results ({error}); run `kimiajax table` first") from error
    version = results.get("schema_version") if isinstance(results, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: has schema version {version!r}, this program reads {SCHEMA_VERSION}; compute it again"
        )
    return results


def write_predictions(out: Path, row: str, manifest: Manifest, predicted: Int[np.ndarray, " n"]) -> None:
    """Writes `predictions/ROW.csv`: patch_id, scan (the true one), predicted, in the manifest's order."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("patch_id", "scan", "predicted"))
    tested: Sequence = manifest.split("test")
    writer.writerows((patch.patch_id, patch.scan, int(guess)) for patch, guess in zip(tested, predicted, strict=True))
    write_text(out / "predictions" / f"{row}.csv", lines.getvalue())
