"""The runner over Table 1: scans -> patches -> approaches -> scores, for one seed or for several."""

import contextlib
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kimiajax import paper
from kimiajax.data.audit.audit import record_of
from kimiajax.data.manifest import Manifest, read_manifest
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import Patches, check_of, prepare_patches, read_patches
from kimiajax.data.sources.source import Source
from kimiajax.data.sources.synthetic import write_synthetic_scans
from kimiajax.errors import UserError
from kimiajax.evaluation.metrics import kimia_scores
from kimiajax.experiments.approach import Features, Outcome, Row, Study
from kimiajax.experiments.artifacts import digest_of_learnt, save_learnt
from kimiajax.experiments.config import TableConfig
from kimiajax.experiments.notes import mixed_lineages, notes_of
from kimiajax.experiments.resume import check_config, identity_of, take_up, ways_of
from kimiajax.experiments.table1 import all_rows
from kimiajax.features.extract import extract_taps
from kimiajax.io.cache import default_cache
from kimiajax.io.files import sha256_file
from kimiajax.io.locks import only_writer
from kimiajax.models.checkpoint import Weights
from kimiajax.models.conv import Way
from kimiajax.models.conv_autotune import Choice, choose_way
from kimiajax.models.registry import BACKBONES
from kimiajax.runs.history import History
from kimiajax.runs.layout import (
    SCANS,
    SCHEMA_VERSION,
    clear_row,
    clear_run,
    clear_unfinished,
    unfinished,
    write_predictions,
    write_results,
)
from kimiajax.runs.pictures import Picture, write_pictures
from kimiajax.runs.seeds import summarise
from kimiajax.runtime import distributed
from kimiajax.runtime.environment import describe_environment
from kimiajax.runtime.progress import Download, Silent
from kimiajax.runtime.signals import Interruption
from kimiajax.text import text_of
from kimiajax.training.checkpoints import Checkpoints
from kimiajax.training.diagnosis import learnt_nothing, lost_head
from kimiajax.training.engines import Engine, engine_of
from kimiajax.training.loop import Record
from kimiajax.weights.load import load_weights

PICTURE_SIDE = {"table": 224, "floor": 96, "retrieval": 96}  # the most, in pixels
SYNTHETIC = {"num_scans": paper.NUM_SCANS, "patch_size": 112, "grid": (6, 7), "test_patches": (3, 8)}


@dataclass(frozen=True, eq=False)
class Run:
    """The table of one seed: where it goes, what it rests on, and the content of its `results.json` so far."""

    out: Path
    study: Study
    history: History
    results: dict[str, Any]

    @property
    def finished(self) -> list[str]:
        """The rows that are."""
        return [row["name"] for row in self.results["rows"]]

    def note(self, *notes: str) -> None:
        """Adds to what a reader must know, once."""
        self.results["notes"] = list(dict.fromkeys([*self.results["notes"], *notes]))


def run_table(
    preset: str, config: TableConfig, progress: Silent | None = None, interruption: Interruption | None = None
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
    progress, interruption = progress or Silent(), interruption or Interruption()
    config.validate(tuple(row.name for row in all_rows()))
    config.check_networks(BACKBONES)
    rows = [row for row in all_rows() if row.name in config.rows]
    for network in (*config.networks_named(), *(row.network for row in rows if row.together)):
        config.blocks_of(BACKBONES[network])  # names that there are, whether this run reads them or not
    cache = config.cache or default_cache()
    progress = progress if distributed.is_first() else Silent()
    with _own_folder(config.folder(preset), progress) as out:
        ways = {}
        if not config.fresh:
            distributed.of_first(functools.partial(check_config, out, config.as_dict()))
            ways = distributed.of_first(functools.partial(ways_of, out))
        with distributed.first_goes_first("data and weights"):  # which the others then find in the cache
            runs = _prepare(preset, config, rows, out, ways, cache, progress, interruption)
        distributed.check_same("data, weights or settings", [identity_of(run.results) for run in runs])
        return _run(config, rows, runs, out, cache, progress)


@contextlib.contextmanager
def _own_folder(out: Path, progress: Silent) -> Iterator[Path]:
    """The output folder, held; of several processes for the first. What the others write is not kept."""
    if distributed.is_first():
        with only_writer(out, say=progress.say):
            yield out
    else:
        with tempfile.TemporaryDirectory(prefix="kimiajax-") as scratch:
            yield Path(scratch)


def _run(
    config: TableConfig, rows: list[Row], runs: list[Run], out: Path, cache: Path, progress: Silent
) -> dict[str, Any]:
    taps = _taps(rows, config)
    _begin(config, rows, runs, out, progress)
    _write(config, runs, rows, out)
    features: dict[str, list[Features]] = {}
    networks = list(dict.fromkeys(row.network for row in rows))
    for row in sorted(rows, key=lambda row: networks.index(row.network)):
        waiting = [run for run in runs if row.name not in run.finished]
        if not waiting:
            _clear_states(row, runs)
            continue
        if row.network in taps and row.network not in features:  # one network's at a time
            features = {row.network: [_extract(row.network, run, taps[row.network], cache) for run in runs]}
        given = features.get(row.network, [None] * len(runs))
        for run in waiting:
            _clear_for_again(row, run)
        started = time.perf_counter()
        together = row.together(row, [run.study for run in runs], given) if row.together else [None] * len(runs)
        shared = (time.perf_counter() - started) / len(runs)
        for run, extracted, part in zip(runs, given, together):
            if run not in waiting:
                continue
            started = time.perf_counter()
            outcome = row.run(row, run.study, extracted, part)
            seconds = time.perf_counter() - started + shared + (extracted.seconds if extracted else 0)
            _record(row, run, outcome, seconds)
            _write(config, [run], rows, run.out)
        _write(config, runs, rows, out)
        _clear_states(row, runs)
        distributed.wait("the end of a row")  # the first writes longer
    return _write(config, runs, rows, out)


def _begin(config: TableConfig, rows: list[Row], runs: list[Run], out: Path, progress: Silent) -> None:
    """Takes up what an earlier process of this run left, or clears the folder."""

    def taken_up() -> list[dict[str, Any] | None]:
        return [None if config.fresh else take_up(run.out, run.results, progress.say) for run in runs]

    earlier = distributed.of_first(taken_up)
    if not any(earlier):
        clear_run(out, [row.name for row in all_rows()])
    for run, results in zip(runs, earlier):
        run.study.manifest.write(run.out / "manifest.csv")
        if distributed.is_first():
            run.results["pictures"] = write_pictures(run.out, SCANS, _samples(run.study), 160)
        if results is None:
            continue
        run.results.update(results)
        names = [row.name for row in rows if row.name in run.finished]
        if len(names) == len(rows):
            progress.say(f"{run.out}: all rows were finished before; --fresh computes them again")
        else:
            progress.say(f"{run.out}: resumed; finished before: {', '.join(names) or 'no row'}")


def _samples(study: Study) -> list[Picture]:
    """The training patch in the middle of each scan's, as the networks see it."""
    patches, scans = study.manifest.split("train"), study.manifest.labels("train")
    of_scan = [np.flatnonzero(scans == scan) for scan in np.unique(scans)]
    places = [int(own[len(own) // 2]) for own in of_scan]
    about = [{"patch_id": patches[place].patch_id, "scan": patches[place].scan} for place in places]
    return [Picture(f"scan-{each['scan']}", study.train[place], each) for place, each in zip(places, about)]


def _clear_states(row: Row, runs: list[Run]) -> None:
    """Removes the states of a row's training, which every seed has finished."""
    for run in runs:
        clear_unfinished(run.out, row.name)


def _clear_for_again(row: Row, run: Run) -> None:
    """Removes what an unfinished attempt at a row left; its training begins with the states that it saved."""
    if unfinished(run.out, row.name).exists():
        run.note(f"{row.approach} was resumed: its seconds are those of the last process alone.")
    clear_row(run.out, row.name)


def _record(row: Row, run: Run, outcome: Outcome, seconds: float) -> None:
    """Adds a row's outcome to its run, its files on disk and the rest in its results."""
    manifest, learnt = run.study.manifest, run.out / "checkpoints" / row.name
    entry = {**_describe_row(row, outcome, run.study, seconds), "predictions_sha256": None, "learnt_sha256": None}
    if outcome.predicted is not None:
        predictions = write_predictions(run.out, row.name, manifest, outcome.predicted)
        entry["predictions_sha256"] = sha256_file(predictions)
        counts = np.bincount(manifest.labels("train"))
        largest = float(counts.max() / counts.sum())
        lost = lost_head(outcome.history, largest)
        if np.ptp(outcome.predicted) == 0 < np.ptp(manifest.labels("test")):
            why = lost or ("it learnt nothing." if learnt_nothing(outcome.history, largest) else None)
            run.note(f"{row.approach} predicts one and the same scan for every patch{f': {why}' if why else '.'}")
        elif lost:
            run.note(f"{row.approach}: {lost}")
    else:
        run.note(f"{row.approach} has no accuracy: {outcome.failure}")
    run.history.close()
    if distributed.is_first():
        entry["pictures"] = write_pictures(run.out, row.name, outcome.pictures, PICTURE_SIDE[row.family])
    if outcome.learnt is not None:
        entry["learnt_sha256"] = digest_of_learnt(outcome.learnt)
        if distributed.is_first():
            save_learnt(learnt, outcome.learnt)
    order = [each.name for each in all_rows()]
    run.results["rows"] = sorted([*run.results["rows"], entry], key=lambda each: order.index(each["name"]))
    run.note(*outcome.notes)


def _write(config: TableConfig, runs: list[Run], rows: list[Row], out: Path) -> dict[str, Any]:
    """Writes `results.json`: that of the one run, or the summary of several."""
    for run in runs:
        run.results["complete"] = len(run.finished) == len(rows)
    several = len(runs) > 1
    if several:
        for run in runs:
            write_results(run.out, run.results)
    results = summarise([run.results for run in runs], config.as_dict()) if several else runs[0].results
    write_results(out, results)
    return results


def _prepare(
    preset: str,
    config: TableConfig,
    rows: list[Row],
    out: Path,
    before: dict[str, Way],
    cache: Path,
    progress: Silent,
    interruption: Interruption,
) -> list[Run]:
    """Scans, weights and folders, each looked at before the long work, and then the patches of every seed."""
    for row in rows:
        if row.network:
            BACKBONES[row.network].check_size(config.image_size)
    engine, taps = engine_of(config.engine), _taps(rows, config)
    History.check(config.tensorboard)
    manifest = None if config.manifest is None else read_manifest(config.manifest)
    seeds = range(config.seed, config.seed + config.seeds)
    cache.mkdir(parents=True, exist_ok=True)
    ways = {network: _way(network, config, engine, cache, progress, before.get(network)) for network in taps}
    runs = []
    with _open_scans(preset, config, out, cache, progress) as source:
        if manifest is not None:
            check_of(source, manifest)
        weights: dict[str, Weights] = {}
        for seed in seeds:
            own = replace(config, seed=seed, seeds=1)
            weights = _load_weights(taps, own, weights, cache, progress)
            weights = {network: replace(loaded, conv=ways[network].way) for network, loaded in weights.items()}
            patches = _read_patches(source, manifest, own, cache, progress)
            data = _describe_data(source, patches.manifest, record_of(source, patches.manifest, cache))
            folder = out if len(seeds) == 1 else out / f"seed-{seed}"
            history = History(folder, config.tensorboard)
            results: dict[str, Any] = {}
            record, keeper = _recorder(history, results), _keeper(folder, results, own, progress, interruption)
            study = Study(own, data, *patches, weights, engine, progress, record, keeper)
            results |= _begin_results(preset, study, ways)
            runs.append(Run(folder, study, history, results))
    return runs


def _recorder(history: History, results: dict[str, Any]) -> Callable[[str, str], Record]:
    """What takes the epochs of a row's phase; those of a finished row, which another seed trains again, are known."""

    def record(row: str, phase: str) -> Record:
        finished = any(each["name"] == row for each in results["rows"])
        return (lambda epoch: None) if finished else history.of(row, phase)

    return record


def _keeper(
    folder: Path, results: dict[str, Any], config: TableConfig, progress: Silent, interruption: Interruption
) -> Callable[[str, str], Checkpoints]:
    """What gives the checkpoints of a row's phase."""

    def checkpoints(row: str, phase: str) -> Checkpoints:
        return Checkpoints(
            unfinished(folder, row) / phase,
            {"run": identity_of(results), "row": row, "phase": phase},
            every=config.checkpoint_seconds,
            say=progress.say,
            interruption=interruption,
        )

    return checkpoints


def _way(
    network: str, config: TableConfig, engine: Engine, cache: Path, progress: Silent, before: Way | None
) -> Choice:
    """How a network convolves in this run."""
    options = {"precision": config.precision, "devices": engine.devices, "cache": cache, "before": before}
    choice = choose_way(config.conv, BACKBONES[network], config.image_size, config.batch_size, **options)
    progress.say(f"{network}: {choice.way} convolutions ({choice.reason})")
    return choice


def _begin_results(preset: str, study: Study, ways: dict[str, Choice]) -> dict[str, Any]:
    """What `results.json` says before the first row."""
    notes = notes_of(study)
    return {
        "schema_version": SCHEMA_VERSION,
        "complete": False,
        "preset": preset,
        "config": study.config.as_dict(),
        "environment": describe_environment(),
        "data": study.data,
        "weights": {network: loaded.lineage for network, loaded in study.weights.items()},
        "conv": {network: asdict(choice) for network, choice in ways.items()},
        "statistic_groups": len(study.engine.devices) if study.config.bn_statistics == "local" else 1,
        "notes": notes,
        "general_notes": len(notes),
        "rows": [],
    }


def _read_patches(
    source: Source, manifest: Manifest | None, config: TableConfig, cache: Path, progress: Silent
) -> Patches:
    options = {"cache": cache, "track": progress.track}
    if manifest is not None:
        return read_patches(source, manifest, config.image_size, config.resize, **options)
    return prepare_patches(source, config.rules(), config.image_size, config.resize, **options)


def _open_scans(preset: str, config: TableConfig, out: Path, cache: Path, progress: Silent) -> Source:
    """What is given, or a synthetic scan file drawn into the output folder."""
    if config.given() is None and config.draw_synthetic:
        return open_scans(draw_scans(out, config, progress), config.patch_size)
    needs = f"{preset} needs scans: --scans PATH, of a scan file in the layout of Kimia_Path24.h5 or a folder"
    return open_scans(config.needed(needs), config.patch_size, config.mpp, cache=cache, track=progress.track)


def draw_scans(out: Path, config: TableConfig, progress: Silent) -> Path:
    """Draws a synthetic scan file into a folder.

    Raises:
        UserError: a file that no program drew lies there.
    """
    path = out / "scans.h5"
    if path.exists():
        with open_scans(path) as earlier:
            if not earlier.synthetic:
                raise UserError(f"{path}: is no synthetic scan file and would be overwritten; choose another --out")
    write_synthetic_scans(path, seed=config.seed, track=progress.track, **SYNTHETIC)
    return path


def _taps(rows: list[Row], config: TableConfig) -> dict[str, set[str]]:
    """The blocks whose outputs the rows read, by network: one pass a patch gives them all."""
    taps: dict[str, set[str]] = {}
    for row in rows:
        if row.taps:
            taps.setdefault(row.network, set()).update(row.taps(BACKBONES[row.network], config))
    return taps


def _load_weights(
    taps: dict[str, set[str]], config: TableConfig, earlier: dict[str, Weights], cache: Path, progress: Silent
) -> dict[str, Weights]:
    """The weights of each network, up to the last block that is read; of another seed's, all but random ones serve."""
    loaded = {}
    for network, blocks in taps.items():
        if network in earlier and config.weights_of(network) != "random":
            loaded[network] = earlier[network]
            continue
        backbone = BACKBONES[network]
        progress.say(f"{network}: {config.weights_of(network)} weights")
        loaded[network] = load_weights(
            network,
            config.weights_of(network),
            blocks=backbone.up_to(backbone.last_of(blocks)),
            image_size=config.image_size,
            seed=config.seed,
            cache=cache,
            progress=functools.partial(Download, progress),
        )
    mixed = mixed_lineages(loaded)
    if mixed and not config.mixed_lineages:
        raise UserError(
            f"{mixed}, trained apart and on other inputs; choose weights of one origin, or allow these with "
            "--mixed-lineages, which the table will say"
        )
    return loaded


def _extract(network: str, run: Run, taps: set[str], cache: Path) -> Features:
    study, started = run.study, time.perf_counter()
    train, test = (
        extract_taps(
            study.weights[network].backbone,
            study.weights[network].variables,
            images,
            sorted(taps),
            precision=study.config.precision,
            cache=cache,
            progress=study.progress,
            description=f"{network} on {split} patches",
        )
        for split, images in (("training", study.train), ("test", study.test))
    )
    cached = train.cached or test.cached
    if cached:
        run.note(f"{network}: features found in the cache, all or some; the seconds leave these out.")
    return Features(train.arrays, test.arrays, time.perf_counter() - started, cached)


def _describe_data(source: Source, manifest: Manifest, audit: dict[str, Any] | None) -> dict[str, Any]:
    train, test = manifest.counts("train"), manifest.counts("test")
    return {
        "source": text_of(source.path),
        "title": source.title,
        "flags": source.flags,
        "held_out": source.test_patches() is None,
        "kind": source.kind,
        **source.marks,
        "scans": manifest.num_scans,
        "names": list(source.names),
        "patch_size": manifest.patch_size,
        "train": sum(train),
        "test": sum(test),
        "train_per_scan": train,
        "test_per_scan": test,
        "manifest_sha256": manifest.sha256,
        "pixels_sha256": manifest.pixels_sha256,
        "rules": manifest.about.get("rules"),
        "audit": audit,
    }


def _describe_row(row: Row, outcome: Outcome, study: Study, seconds: float) -> dict[str, Any]:
    """A row of `results.json`. Scores are in double precision, so that they are those of a plain count."""
    source = study.config.weights_of(row.network) if row.network in study.weights else "none"
    return {
        "name": row.name,
        "approach": row.approach,
        "scheme": row.scheme,
        "family": row.family,
        "weights": source if source in ("random", "imagenet", "none") else Path(source).name,
        **_scores(outcome.predicted, study.manifest),
        "failure": outcome.failure,
        "seconds": seconds,
        "paper": asdict(paper.TABLE_1[row.name]) if row.name in paper.TABLE_1 else None,
        "training": outcome.training,
        "history": {phase: [asdict(epoch) for epoch in epochs] for phase, epochs in outcome.history.items()},
        "retrieval": outcome.retrieval,
    }


def _scores(predicted: np.ndarray | None, manifest: Manifest) -> dict[str, Any]:
    labels = manifest.labels("test")
    if predicted is None:
        nothing = dict.fromkeys(("eta_p", "eta_w", "eta_total", "eta_w_precision", "correct"))
        return {**nothing, "tested": len(labels)}
    with jax.enable_x64(True):
        scores = kimia_scores(labels, predicted, manifest.num_scans)
    precision = float(scores.eta_w_precision)
    return {
        "eta_p": float(scores.eta_p),
        "eta_w": float(scores.eta_w),
        "eta_total": float(scores.eta_total),
        "eta_w_precision": None if math.isnan(precision) else precision,
        "correct": int(np.asarray(scores.correct).sum()),
        "tested": int(np.asarray(scores.tested).sum()),
    }
