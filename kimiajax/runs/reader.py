"""A run's files, read again: what it says, checked against what it holds."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.data.manifest import Manifest, read_manifest
from kimiajax.errors import UserError
from kimiajax.io.files import sha256_file
from kimiajax.io.json_records import is_sealed, parse_json
from kimiajax.runs.classes import Classes, classes_of, is_kimia
from kimiajax.runs.layout import SCHEMA_VERSION, RunFolder
from kimiajax.runs.predictions import Truth, join, read_predictions, truth_of
from kimiajax.runs.schema import faults
from kimiajax.shapes import Bool, Int
from kimiajax.text import first_few, quoted

READS = (4, 5, 6, 7, 8, 9, SCHEMA_VERSION)  # of results.json; 4 had no floors, no retrieval and no pictures
SEALED = 6  # the first that is
OF_TWO = 6  # the last whose settings were each of VGG16's or Inception-v3's
OF_2017 = 7  # the last that knew the trained batch normalisation and the RMSprop of 2017 alone
OF_ALL_PLACES = 9  # the last that left out no dark or flat places
Presets = Mapping[str, Mapping[str, Any]]  # name -> settings
NO_RESULTS = "no results of this program, or damaged"
LATER = {"family": "table", **dict.fromkeys(("network", "block", "against", "retrieval")), "pictures": []}  # since 4


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A run of one seed or of several.

    Attributes:
        folder: where it lies.
        results: the content of its `results.json`.
        seeds: the same of each seed, in their order; of one seed, that alone.
        folders: where each seed's files lie.
        manifest: the patches of the first seed, and so the test patches of all.
        predicted: the predicted scan of each test patch by row, [seeds patches], of rows that have an accuracy.
    """

    folder: Path
    results: dict[str, Any]
    seeds: tuple[dict[str, Any], ...]
    folders: tuple[Path, ...]
    manifest: Manifest
    predicted: dict[str, Int[np.ndarray, "k n"]]

    @cached_property
    def scans(self) -> Int[np.ndarray, " n"]:
        """The true scan of each test patch."""
        return self.manifest.labels("test")

    @cached_property
    def classes(self) -> Classes:
        """What the classes are called."""
        return classes_of(self.seeds[0]["data"])

    @cached_property
    def is_kimia(self) -> bool:
        """Whether the paper's figures may stand beside: the data are Kimia Path24's."""
        return is_kimia({**self.seeds[0]["data"], "test_per_scan": self.manifest.counts("test")})

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of `results.json`, by name."""
        return {row["name"]: row for row in self.results["rows"]}

    def correct(self, row: str) -> Bool[np.ndarray, "k n"]:
        """Which test patches a row that has an accuracy got right, with each seed."""
        return self.predicted[row] == self.scans

    def family(self, name: str) -> dict[str, Bool[np.ndarray, "k n"]]:
        """The same of each row of a family."""
        rows = self.rows
        return {row: self.correct(row) for row in self.predicted if rows[row]["family"] == name}


def read_files(folder: str | Path) -> StoredRun:
    """Reads what `kimiajax table` left in a folder; `kimiajax.evaluation.stored.read_run` checks its scores as well.

    Raises:
        UserError: there is no run, one of a version that is not read, one whose files were changed since or are
            missing, or several seeds that were tested on other patches.
    """
    folder = Path(folder)
    results = read_results(folder)
    folders = tuple(folder / name for name in results.get("runs", ["."]))
    seeds = tuple(read_results(each) for each in folders) if "runs" in results else (results,)
    for each, found in zip(folders, seeds):
        if "runs" in found:
            raise UserError(f"{each}: holds the runs of several seeds; give the folder of one, or of several of these")
    manifests = [_read_manifest(*each) for each in zip(folders, seeds)]
    truths = [truth_of(*each) for each in zip(folders, manifests)]
    for truth in truths[1:]:
        if set(truth.patch_ids) != set(truths[0].patch_ids):
            raise UserError(
                f"{folder}: {folders[0].name} and {truth.path.name} were tested on other patches, so they are no seeds "
                "of one run; give one of them"
            )
    predicted = {}
    for row in results["rows"]:
        if row["eta_p"] is None:
            continue
        each_seed = [_predictions(at, found, row["name"], truths[0]) for at, found in zip(folders, seeds)]
        predicted[row["name"]] = np.stack(each_seed).astype(np.int32)
    return StoredRun(folder, results, seeds, folders, manifests[0], predicted)


def read_results(folder: Path) -> dict[str, Any]:
    """The content of a folder's `results.json`; what older versions had not is empty.

    Raises:
        UserError: there is none, it is damaged, or of a version that is not read.
    """
    path = RunFolder(folder).results
    try:
        results = parse_json(path.read_text(encoding="utf-8"))
        version = results["schema_version"]
        found = {"pictures": [], "blocks": {}, **results, "rows": [{**LATER, **row} for row in results["rows"]]}
    except FileNotFoundError as error:
        remedy = "give the folder of a run, as `kimiajax table` leaves it"
        if (folder / "places").is_dir():
            remedy = f"this is a sweep, whose runs are the folders in {folder / 'places'}"
        raise UserError(f"{path}: no such file; {remedy}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: {NO_RESULTS} ({type(error).__name__}); run it anew") from error
    if version not in READS:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        remedy = "use a newer kimiajax" if newer else "compute the table again"
        raise UserError(
            f"{path}: of schema version {quoted(version)}, and {READS[0]} to {READS[-1]} are read here; {remedy}"
        )
    if version >= SEALED and not is_sealed(results):
        raise UserError(f"{path}: was changed after it was written; compute the table again")
    if wrong := first_few(faults(found)):
        raise UserError(f"{path}: {NO_RESULTS} ({wrong}); run it anew")
    return {**found, "config": as_of_today(found["config"], version)}


def as_of_today(config: dict[str, Any], version: int) -> dict[str, Any]:
    """Returns the settings of an older schema version under their names and values of today."""
    if version <= OF_TWO:
        config = _of_any_network(config)
    if version <= OF_2017:
        config = {**config, "trained_bn": "keras2017", "head_optimizer": "rmsprop2017"}
        if config.get("optimizer") == "rmsprop":
            config["optimizer"] = "rmsprop2017"
    if version <= OF_ALL_PLACES:
        config = {**config, "dark": "none", "darkness": None, "flat": "none"}
    return config


def _of_any_network(config: dict[str, Any]) -> dict[str, Any]:
    """Older settings as they are given now: `vgg16_weights` as one of `weights`."""
    settings = {name: value for name, value in config.items() if not name.endswith(("_weights", "_blocks"))}
    for kind in ("weights", "blocks"):
        own = {name.removesuffix(f"_{kind}"): config[name] for name in config if name.endswith(f"_{kind}")}
        texts = {name: ",".join(value) if isinstance(value, list) else value for name, value in own.items()}
        if len(set(texts.values())) == 1:
            settings[kind] = [*set(texts.values())]
        elif texts:
            settings[kind] = [f"{name}={text}" for name, text in texts.items()]
    return settings


def _read_manifest(folder: Path, results: dict[str, Any]) -> Manifest:
    manifest = read_manifest(RunFolder(folder).manifest)
    if manifest.sha256 != results["data"]["manifest_sha256"]:
        raise UserError(f"{folder}: manifest.csv is not the one that results.json was computed with; run it again")
    said = {"scans": manifest.num_scans, "patch_size": manifest.patch_size}
    said |= {"synthetic": manifest.about["synthetic"]} if "synthetic" in manifest.about else {}
    if manifest.about.get("unverified") is not None:  # results keep the mark of what a run began with
        said["unverified"] = manifest.about["unverified"]
    if other := [name for name, value in said.items() if value != results["data"].get(name, value)]:
        raise UserError(
            f"{folder / 'manifest.json'}: {', '.join(other)} is not what results.json was computed with; run it again"
        )
    return manifest


def _predictions(folder: Path, results: dict[str, Any], row: str, truth: Truth) -> Int[np.ndarray, " n"]:
    path = RunFolder(folder).predictions(row)
    entry = next((each for each in results["rows"] if each["name"] == row), None)
    if entry is None:
        raise UserError(f"{folder}: lacks the row {row}, which the run has; the same `kimiajax table` mends it")
    predictions = read_predictions(path)
    if sha256_file(path) != entry["predictions_sha256"]:
        raise UserError(f"{path}: was changed since results.json was written; the same `kimiajax table` mends it")
    return join(predictions, truth)


def rerun(results: dict[str, Any], presets: Presets, command: str = "kimiajax table") -> str:
    """The command that computes a run again: its preset, and every setting in which it departs from that.

    Args:
        results: of the run.
        presets: the settings of each preset, by name.
        command: whose presets these are.
    """
    default = presets.get(results["preset"], {})
    return " ".join([command, results["preset"], *_flags(results["config"], default)])


def _flags(config: dict[str, Any], default: Mapping[str, Any]) -> Iterator[str]:
    own = json.loads(json.dumps(default))
    for name, value in config.items():
        if value is None or value == own.get(name) or name in ("fresh", "cache", "process", "processes", "coordinator"):
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-", 1)
        else:
            yield shlex.join([flag, *map(str, value if isinstance(value, list) else [value])])
