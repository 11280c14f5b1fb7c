"""The runner over Table 1: scans -> patches -> approaches -> scores, for one seed or for several."""

import contextlib
import functools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax import paper
from kimiajax.checks import kind_of
from kimiajax.data.manifest import Manifest
from kimiajax.evaluation.metrics import plain_scores
from kimiajax.experiments.approach import Approach, Features, Outcome
from kimiajax.experiments.artifacts import digest_of_learnt, save_learnt
from kimiajax.experiments.config import TableConfig
from kimiajax.experiments.notes import notes_of
from kimiajax.experiments.resume import check_config, identity_of, take_up, ways_of
from kimiajax.experiments.selection import Selection, rows_of, select, taps_of
from kimiajax.experiments.study import Request, Study, open_studies
from kimiajax.experiments.table1 import all_rows
from kimiajax.features.extract import extract_taps
from kimiajax.features.taps import blocks_to
from kimiajax.io.cache import default_cache
from kimiajax.io.files import sha256_file
from kimiajax.io.lineage import DRAWN
from kimiajax.io.locks import only_writer
from kimiajax.models.registry import BACKBONES
from kimiajax.runs.classes import classes_of, is_kimia
from kimiajax.runs.layout import SCANS, SCHEMA_VERSION, RunFolder
from kimiajax.runs.pictures import Picture
from kimiajax.runs.seeds import summarise
from kimiajax.runtime import distributed
from kimiajax.runtime.environment import describe_environment
from kimiajax.runtime.progress import Silent
from kimiajax.runtime.shell import recorded, standard_settings
from kimiajax.runtime.signals import Interruption
from kimiajax.training.diagnosis import learnt_nothing, lost_head

PICTURE_SIDE = {"table": 224, "floor": 96, "retrieval": 96, "blocks": 96}  # the most, in pixels


@standard_settings()
def run_table(
    preset: str | Any,
    config: TableConfig | Any,
    progress: Silent | None = None,
    interruption: Interruption | None = None,
) -> dict[str, Any]:
    """Computes the table's rows and writes them, with all that they rest on, to the output folder.

    Where that folder holds the same run, finished or not, its finished rows stand and its training goes on.

    Args:
        preset: its name, for the record and the default folder.
        config: all settings.
        progress: shows what goes on.
        interruption: ends the run where it is asked to; training is saved first.

    Returns:
        The content of `results.json`, which is written anew after each row, "complete" being true after the last. Of
        several seeds each has a folder of its own, `seed-N`, and this is the summary over them.

    Raises:
        UserError: settings, scans or weights that cannot serve, or another run in the folder; all are looked at
            before the long work begins.
        Interrupted: as asked; the same call goes on from there.
    """
    kind_of("preset", preset, str, "give a name for the record")
    kind_of("config", config, TableConfig, "take one of kimiajax.PRESETS, or TableConfig()")
    rows = rows_of(config)  # which refuses settings before a folder is made
    progress = (progress if distributed.is_first() else None) or Silent()
    with _own_folder(config.folder(preset), progress) as folder:
        with distributed.first_goes_first("weights"):
            selection = select(rows, config, config.data.cache or default_cache(), progress)
        rows = selection.rows
        config = config.replace(rows=tuple(row.name for row in rows))
        request = Request(preset, config, folder, progress, interruption or Interruption())
        studies = _open(request, selection)
        _take_up(request, rows, studies)
        _write(request, rows, studies)
        shared = _Shared(rows, studies)
        networks = list(dict.fromkeys(row.network for row in rows))
        for row in sorted(rows, key=lambda row: networks.index(row.network)):
            if waiting := [study for study in studies if row.name not in study.finished]:
                _compute(row, shared, waiting)
                _write(request, rows, studies)
            for study in studies:
                study.folder.clear_state(row.name)
            distributed.wait("the end of a row")  # the first writes longer
        return _write(request, rows, studies)


@contextlib.contextmanager
def _own_folder(out: Path, progress: Silent) -> Iterator[RunFolder]:
    """The output folder, held; of several processes for the first. What the others write is not kept."""
    if distributed.is_first():
        with only_writer(out, say=progress.say):
            yield RunFolder(out)
    else:
        with tempfile.TemporaryDirectory(prefix="kimiajax-") as scratch:
            yield RunFolder(Path(scratch))


def _open(request: Request, selection: Selection) -> list[Study]:
    """Opens the studies, whose results begin, once the folder is known to hold no other run."""
    taps = taps_of(selection.rows, request.config)
    config, folder = request.config, request.folder
    before = {}
    if not config.output.fresh:
        distributed.of_first(functools.partial(check_config, folder, config.as_dict()))
        before = distributed.of_first(functools.partial(ways_of, folder))
    with distributed.first_goes_first("data and weights"):  # which the others then find in the cache
        studies = open_studies(request, taps, before, selection.weights)
        for study in studies:
            study.results.update(_begun(study, selection))
    distributed.check_same("variables of the shell, XLA_FLAGS say,", recorded())
    distributed.check_same("data, weights or settings", [identity_of(study.results) for study in studies])
    return studies


def _begun(study: Study, selection: Selection) -> dict[str, Any]:
    """What `results.json` says before the first row."""
    notes = [*selection.notes, *notes_of(study, selection.rows)]
    taps = taps_of(selection.rows, study.config)
    return {
        "schema_version": SCHEMA_VERSION,
        "complete": False,
        "preset": study.request.preset,
        "config": study.config.as_dict(),
        "environment": describe_environment(),
        "data": study.data,
        "weights": {network: loaded.lineage for network, loaded in study.weights.items()},
        "blocks": {network: list(blocks_to(BACKBONES[network], read)) for network, read in taps.items()},
        "conv": {network: asdict(choice) for network, choice in study.conv.items()},
        "statistic_groups": len(study.engine.devices) if study.config.model.bn_statistics == "local" else 1,
        "notes": notes,
        "general_notes": len(notes),
        "rows": [],
    }


def _take_up(request: Request, rows: Sequence[Approach], studies: list[Study]) -> None:
    """Takes up what an earlier process of this run left, or clears the folder."""
    say, fresh = request.progress.say, request.config.output.fresh
    earlier = distributed.of_first(
        lambda: [None if fresh else take_up(study.folder, study.results, say) for study in studies]
    )
    if not any(earlier):
        request.folder.clear([row.name for row in all_rows()])
    for study, results in zip(studies, earlier):
        study.manifest.write(study.folder.manifest)
        if distributed.is_first():
            _save_calibrated(study)
            study.results["pictures"] = study.folder.write_pictures(SCANS, _samples(study), 160)
        if results is None:
            continue
        study.results.update(results)
        names = [row.name for row in rows if row.name in study.finished]
        if len(names) == len(rows):
            say(f"{study.folder.path}: all rows were finished before; --fresh computes them again")
        else:
            say(f"{study.folder.path}: resumed; finished before: {', '.join(names) or 'no row'}")


def _save_calibrated(study: Study) -> None:
    """Saves weights that only this study's patches make, for whoever predicts with a row of features."""
    for network, loaded in study.weights.items():
        folder = study.folder.weights(network)
        if loaded.lineage["source"] == "calibrated" and not folder.exists():
            loaded.save(folder)


def _samples(study: Study) -> list[Picture]:
    """The training patch in the middle of each scan's, as the networks see it."""
    patches, scans = study.manifest.split("train"), study.manifest.labels("train")
    of_scan = [np.flatnonzero(scans == scan) for scan in np.unique(scans)]
    places = [int(own[len(own) // 2]) for own in of_scan]
    about = [{"patch_id": patches[place].patch_id, "scan": patches[place].scan} for place in places]
    return [Picture(f"scan-{each['scan']}", study.train[place], each) for place, each in zip(places, about)]


def _extract(network: str, study: Study, taps: set[str]) -> Features:
    started, weights = time.perf_counter(), study.weights[network]
    train, test = (
        extract_taps(
            weights.backbone,
            weights.variables,
            images,
            sorted(taps),
            precision=study.config.model.precision,
            cache=study.request.cache,
            progress=study.progress,
            description=f"{network} on {split} patches",
        )
        for split, images in (("training", study.train), ("test", study.test))
    )
    if train.cached or test.cached:
        study.note(f"{network}: features found in the cache, all or some; the seconds leave these out.")
    return Features(train.arrays, test.arrays, time.perf_counter() - started)


class _Shared:
    """A network's outputs and what its rows prepare of them, which they share; of one network at a time."""

    def __init__(self, rows: Sequence[Approach], studies: Sequence[Study]):
        self.studies = studies
        self._taps = taps_of(rows, studies[0].config)
        self._network, self._features, self._prepared = "", [], {}

    def of(self, row: Approach) -> tuple[Sequence[Features | None], Sequence[Any], float]:
        """Returns the features and what is prepared for each study, and the seconds that this took for each."""
        if row.network != self._network or not self._features:
            self._network, self._prepared = row.network, {}
            taps = self._taps.get(row.network)
            self._features = [_extract(row.network, study, taps) if taps else None for study in self.studies]
        features = self._features if row.taps(self.studies[0].config) else [None] * len(self.studies)
        how = type(row).prepare
        if how not in self._prepared:
            started = time.perf_counter()
            prepared = row.prepare(self.studies, features)
            self._prepared[how] = prepared, (time.perf_counter() - started) / len(self.studies)
        return features, *self._prepared[how]


def _compute(row: Approach, shared: _Shared, waiting: list[Study]) -> None:
    """Computes a row of the studies that wait for it; what all seeds share is done for all of them."""
    for study in waiting:
        if study.folder.state(row.name).exists():
            study.note(f"{row.title} was resumed: its seconds are those of the last process alone.")
        study.folder.clear_row(row.name)  # what an unfinished attempt left, but for its states
    features, prepared, seconds = shared.of(row)
    for study, given, part in zip(shared.studies, features, prepared):
        if study in waiting:
            started = time.perf_counter()
            outcome = row.fit(study, given, part)
            _record(row, study, outcome, time.perf_counter() - started + seconds + (given.seconds if given else 0))
            if len(shared.studies) > 1:
                study.folder.write_results(study.results)


def _record(row: Approach, study: Study, outcome: Outcome, seconds: float) -> None:
    """Adds a row's outcome to its study, its files on disk and the rest in its results."""
    entry = {**_described(row, outcome, study, seconds), "predictions_sha256": None, "learnt_sha256": None}
    if outcome.predicted is not None:
        predictions = study.folder.write_predictions(row.name, study.manifest, outcome.predicted)
        entry["predictions_sha256"] = sha256_file(predictions)
        _note_what_was_learnt(row, study, outcome, outcome.predicted)
    else:
        study.note(f"{row.title} has no accuracy: {outcome.failure}")
    study.history.close()
    if distributed.is_first():
        entry["pictures"] = study.folder.write_pictures(row.name, outcome.pictures, PICTURE_SIDE[row.family])
    if outcome.learnt is not None:
        entry["learnt_sha256"] = digest_of_learnt(outcome.learnt)
        if distributed.is_first():
            save_learnt(study.folder.artifact(row.name), outcome.learnt)
    order = [each.name for each in all_rows()]
    study.results["rows"] = sorted([*study.results["rows"], entry], key=lambda each: order.index(each["name"]))
    study.note(*outcome.notes)


def _note_what_was_learnt(row: Approach, study: Study, outcome: Outcome, predicted: np.ndarray) -> None:
    """Says where a row learnt nothing, or lost what it had learnt."""
    counts = np.bincount(study.labels)
    largest = float(counts.max() / counts.sum())
    lost = lost_head(outcome.history, largest)
    if np.ptp(predicted) == 0 < np.ptp(study.manifest.labels("test")):
        why = lost or ("it learnt nothing." if learnt_nothing(outcome.history, largest) else None)
        word = classes_of(study.data).word
        study.note(f"{row.title} predicts one and the same {word} for every patch{f': {why}' if why else '.'}")
    elif lost:
        study.note(f"{row.title}: {lost}")


def _write(request: Request, rows: Sequence[Approach], studies: list[Study]) -> dict[str, Any]:
    """Writes `results.json`: that of the one study, or those of several and their summary."""
    for study in studies:
        study.results["complete"] = len(study.finished) == len(rows)
    if len(studies) == 1:
        results = studies[0].results
    else:
        for study in studies:
            study.folder.write_results(study.results)
        results = summarise([study.results for study in studies], request.config.as_dict())
    request.folder.write_results(results)
    return results


def _described(row: Approach, outcome: Outcome, study: Study, seconds: float) -> dict[str, Any]:
    """A row of `results.json`. Scores are in double precision, so that they are those of a plain count."""
    source = study.config.weights_of(row.network) if row.network in study.weights else "none"
    return {
        "name": row.name,
        "approach": row.title,
        "scheme": row.scheme,
        "family": row.family,
        "network": row.network or None,
        "block": row.block,
        "against": row.against,
        "weights": source if source in (*DRAWN, "imagenet", "none") else Path(source).name,
        **_scores(outcome.predicted, study.manifest),
        "failure": outcome.failure,
        "seconds": seconds,
        "paper": asdict(paper.TABLE_1[row.name]) if row.name in paper.TABLE_1 and is_kimia(study.data) else None,
        "training": outcome.training,
        "history": {phase: [asdict(epoch) for epoch in epochs] for phase, epochs in outcome.history.items()},
        "retrieval": outcome.retrieval,
    }


def _scores(predicted: np.ndarray | None, manifest: Manifest) -> dict[str, Any]:
    labels = manifest.labels("test")
    if predicted is None:
        nothing = dict.fromkeys(("eta_p", "eta_w", "eta_total", "eta_w_precision", "correct"))
        return {**nothing, "tested": len(labels)}
    scores = plain_scores(labels, predicted, manifest.num_scans)
    return {**scores, **{name: sum(scores[name]) for name in ("correct", "tested")}}
