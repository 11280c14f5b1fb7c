"""A run's folder: what its files are called, how they appear, and how they go.

Of one seed: `results.json`, `manifest.csv` and its header, `predictions/ROW.csv`, `checkpoints/ROW` (what the row
learnt), `weights/NETWORK` (where calibrated), `history/ROW.jsonl`, `tensorboard/ROW`, `pictures/`, and `unfinished/ROW`
while a row trains. Of several seeds: `results.json`, and a folder `seed-N` of this kind for each.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.data.config import SOURCES
from kimiajax.data.manifest import Manifest
from kimiajax.io.files import csv_text, write_text
from kimiajax.io.json_records import sealed
from kimiajax.runs.pictures import Picture, clear_pictures, write_pictures
from kimiajax.shapes import Int

# 4: how each network convolved; 5: floors, retrieval, pictures; 6: a seal; 7: settings of any network; 8: modes
# of trained batch normalisation, and "rmsprop" names the optimizer of Keras 3; 9: heads alone, and rows of any block;
# 10: dark and flat places are left out, and an audit may be NOT TOLD
SCHEMA_VERSION = 10

# Settings that change no result: a run goes on with others, and two runs are not told apart by them.
NO_RESULT = (
    *(*SOURCES, "skip_unreadable"),  # what the patches are, their manifest says
    *("cache", "out", "feed", "checkpoint_seconds", "fresh", "tensorboard"),
    *("distributed", "coordinator", "processes", "process", "peer_timeout"),
)

SCANS = "scans"  # the folder of the pictures of one patch a scan


@dataclass(frozen=True)
class RunFolder:
    """The one owner of a run's files, of one seed or of several."""

    path: Path

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.csv"

    def of_seed(self, seed: int) -> "RunFolder":
        """Returns the folder of one of several seeds."""
        return RunFolder(self.path / f"seed-{seed}")

    def predictions(self, row: str) -> Path:
        return self.path / "predictions" / f"{row}.csv"

    def artifact(self, row: str) -> Path:
        """Returns where that lies which a row learnt."""
        return self.path / "checkpoints" / row

    def weights(self, network: str) -> Path:
        """Returns where calibrated weights lie, which no file holds that a run was given."""
        return self.path / "weights" / network

    def history(self, row: str) -> Path:
        return self.path / "history" / f"{row}.jsonl"

    def events(self, row: str) -> Path:
        """Returns where a row's event files for TensorBoard lie."""
        return self.path / "tensorboard" / row

    def state(self, row: str) -> Path:
        """Returns where the states of a row's unfinished training lie."""
        return self.path / "unfinished" / row

    def write_results(self, results: dict[str, Any]) -> None:
        """Writes `results.json`, with a digest of all that it says. Numbers that do not exist are null, never NaN."""
        write_text(self.results, json.dumps(sealed(results), indent=2, allow_nan=False) + "\n")

    def write_predictions(self, row: str, manifest: Manifest, predicted: Int[np.ndarray, " n"]) -> Path:
        """Writes a row's predictions: patch_id, scan (the true one), predicted, in the manifest's order."""
        guesses = zip(manifest.split("test"), predicted.tolist(), strict=True)
        lines = ((patch.patch_id, patch.scan, guess) for patch, guess in guesses)
        write_text(self.predictions(row), csv_text(("patch_id", "scan", "predicted"), lines))
        return self.predictions(row)

    def write_pictures(self, name: str, pictures: Iterable[Picture], most: int) -> list[dict[str, Any]]:
        """Writes the pictures of a row, or those of `SCANS`; see `kimiajax.runs.pictures.write_pictures`."""
        return write_pictures(self.path, name, pictures, most)

    def clear(self, rows: Sequence[str]) -> None:
        """Removes an earlier run's files of these rows, of one seed or of several, and no others."""
        seeds = [path for path in self.path.glob("seed-*") if path.is_dir()]
        seeds = [RunFolder(path) for path in seeds if path.name.removeprefix("seed-").isdecimal()]
        for folder in (self, *seeds):
            for name in ("results.json", "manifest.csv", "manifest.json", "report.html", "report.analysis.json"):
                (folder.path / name).unlink(missing_ok=True)
            clear_pictures(folder.path, SCANS)
            shutil.rmtree(folder.path / "weights", ignore_errors=True)
            for row in rows:
                folder.clear_row(row)
                folder.clear_state(row)

    def clear_row(self, row: str) -> None:
        """Removes what one row left, but for the state that its training goes on from."""
        self.predictions(row).unlink(missing_ok=True)
        self.history(row).unlink(missing_ok=True)
        for folder in (self.artifact(row), self.events(row)):
            shutil.rmtree(folder, ignore_errors=True)
        clear_pictures(self.path, row)

    def clear_state(self, row: str) -> None:
        """Removes the states of a row's training."""
        shutil.rmtree(self.state(row), ignore_errors=True)
        with contextlib.suppress(OSError):  # other rows' are there, or none ever were
            self.state(row).parent.rmdir()
