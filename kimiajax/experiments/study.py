"""A study: the table of one seed, opened. Scans, weights and folders are looked at before the long work begins."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kimiajax import paper
from kimiajax.data.audit.audit import record_of
from kimiajax.data.manifest import Manifest, read_manifest
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import check_of, prepare_patches
from kimiajax.data.sources.image_folder import Folder
from kimiajax.data.sources.source import Source
from kimiajax.data.sources.synthetic import write_synthetic_scans
from kimiajax.errors import UserError
from kimiajax.experiments.config import TableConfig
from kimiajax.experiments.resume import identity_of
from kimiajax.features.taps import blocks_to
from kimiajax.io.cache import default_cache
from kimiajax.models.backbone import Variables
from kimiajax.models.checkpoint import Weights, origin_of
from kimiajax.models.conv import Way
from kimiajax.models.conv_autotune import Choice, choose_way
from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.runs.history import History
from kimiajax.runs.layout import RunFolder
from kimiajax.runtime.progress import Download, Silent
from kimiajax.runtime.signals import Interruption
from kimiajax.text import text_of
from kimiajax.training.checkpoints import Checkpoints
from kimiajax.training.engines import Engine, engine_of
from kimiajax.training.loop import Epoch, NonFiniteError, Record, fit, predict
from kimiajax.training.steps import Training
from kimiajax.weights.load import load_weights

SYNTHETIC = {"num_scans": paper.NUM_SCANS, "patch_size": 96, "grid": (7, 8), "test_patches": (5, 9)}


@dataclass(frozen=True, eq=False)
class Request:
    """One call of `run_table`: what is asked for, where it goes, whom it tells and who may end it."""

    preset: str
    config: TableConfig
    folder: RunFolder
    progress: Silent
    interruption: Interruption

    @property
    def cache(self) -> Path:
        return self.config.data.cache or default_cache()


class Phase(NamedTuple):
    """A part of a row's training: "head", "fine_tuning", "training".

    Attributes:
        row: whose it is.
        name: its own.
        epochs: how many it takes.
        description: for whoever watches.
    """

    row: str
    name: str
    epochs: int
    description: str


@dataclass(frozen=True, eq=False)
class Study:
    """The table of one seed: what its rows share, where it goes, and the content of its `results.json` so far.

    Attributes:
        request: the call that it belongs to.
        config: its settings, which are of this one seed.
        folder: its own.
        data: what its results say of the patches.
        manifest: which patches.
        train, test: their gray values at the networks' size, uint8 [n s s], in the manifest's order.
        weights: of each network whose outputs are read.
        conv: how each of these convolves, and why.
        engine: what spreads a training over devices.
        history: takes epochs as they end.
        results: the content of `results.json`.
    """

    request: Request
    config: TableConfig
    folder: RunFolder
    data: dict[str, Any]
    manifest: Manifest
    train: np.ndarray
    test: np.ndarray
    weights: dict[str, Weights]
    conv: dict[str, Choice]
    engine: Engine
    history: History
    results: dict[str, Any]

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The scan of each training patch."""
        return self.manifest.labels("train")

    @property
    def progress(self) -> Silent:
        return self.request.progress

    @property
    def finished(self) -> list[str]:
        """The rows that are."""
        return [row["name"] for row in self.results["rows"]]

    def note(self, *notes: str) -> None:
        """Adds to what a reader must know, once."""
        self.results["notes"] = list(dict.fromkeys([*self.results["notes"], *notes]))

    def record(self, row: str, phase: str) -> Record:
        """Returns what takes the epochs of a row's phase. Those of a finished row, which another seed trains again, are
        known."""
        return (lambda epoch: None) if row in self.finished else self.history.of(row, phase)

    def checkpoints(self, row: str, phase: str) -> Checkpoints:
        """Returns where the training of a row's phase is saved, and goes on from."""
        return Checkpoints(
            self.folder.state(row) / phase,
            {"run": identity_of(self.results), "row": row, "phase": phase},
            every=self.config.output.checkpoint_seconds,
            say=self.progress.say,
            interruption=self.request.interruption,
        )

    def fit(
        self, training: Training, variables: Variables, inputs: np.ndarray, phase: Phase
    ) -> tuple[Variables, list[Epoch], str | None]:
        """`fit` with the study's labels, settings and checkpoints; and why it stopped, where it did."""
        try:
            trained, history = fit(
                training,
                variables,
                inputs,
                self.labels,
                epochs=phase.epochs,
                batch_size=self.config.optim.batch_size,
                seed=self.config.data.seed,
                engine=self.engine,
                feed=self.config.optim.feed,
                checkpoints=self.checkpoints(phase.row, phase.name),
                progress=self.progress,
                description=f"{phase.description}, seed {self.config.data.seed}",
                record=self.record(phase.row, phase.name),
            )
        except NonFiniteError as error:
            return error.variables, error.history, str(error)
        return trained, history, None

    def predict(self, row: str, classifier: Classifier, variables: Variables, inputs: np.ndarray) -> np.ndarray:
        """`predict` with the study's batch size, precision and engine."""
        return predict(
            classifier,
            variables,
            inputs,
            batch_size=self.config.optim.batch_size,
            precision=self.config.model.precision,
            engine=self.engine,
            progress=self.progress,
            description=f"{row}: test patches",
        )


def open_studies(
    request: Request, taps: dict[str, set[str]], before: dict[str, Way], weights: dict[str, Weights]
) -> list[Study]:
    """Opens the study of every seed: scans, weights and patches, and then, with nothing left to refuse, convolutions.

    Args:
        request: the call.
        taps: what is read of each network.
        before: how each network convolves in the run that goes on, if one does.
        weights: those that are loaded already.
    """
    config, cache, progress = request.config, request.cache, request.progress
    engine = engine_of(config.distributed.engine)
    History.check(config.output.tensorboard)
    manifest = None if config.data.manifest is None else read_manifest(config.data.manifest)
    cache.mkdir(parents=True, exist_ok=True)
    conv: dict[str, Choice] = {}
    studies = []
    with _open_scans(request) as source:
        if manifest is not None:
            check_of(source, manifest)
        for seed in range(config.data.seed, config.data.seed + config.output.seeds):
            own = config.replace(seed=seed, seeds=1)
            weights = load_all(taps, own, weights, cache, progress)
            size, options = config.data.image_size, {"manifest": manifest, "cache": cache, "track": progress.track}
            patches = prepare_patches(source, own.data.rules(), size, config.data.resize, **options)
            weights |= calibrate_all(taps, own, patches.train, progress)
            data = _describe(source, patches.manifest, record_of(source.identity, patches.manifest, cache))
            folder = request.folder if config.output.seeds == 1 else request.folder.of_seed(seed)
            history = History(folder, config.output.tensorboard)
            conv = conv or {network: _choice(network, request, engine, before.get(network)) for network in taps}
            weights = {network: replace(loaded, conv=conv[network].way) for network, loaded in weights.items()}
            studies.append(Study(request, own, folder, data, *patches, weights, conv, engine, history, {}))
    return studies


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
    write_synthetic_scans(path, seed=config.data.seed, track=progress.track, **SYNTHETIC)
    return path


def load_all(
    taps: dict[str, set[str]], config: TableConfig, earlier: dict[str, Weights], cache: Path, progress: Silent
) -> dict[str, Weights]:
    """Loads the weights of each network, up to the last block that is read; calibrated ones wait for their patches.

    Args:
        taps: what is read of each network.
        config: the settings, of one seed.
        earlier: weights that are loaded already, of another seed say; all but random ones serve again.
        cache, progress: as of `load_weights`.

    Raises:
        UserError: as of `load_weights`, or weights of different origin that settings do not allow.
    """
    loaded = {}
    for network, read in taps.items():
        if config.weights_of(network) == "calibrated":
            continue
        if network in earlier and config.weights_of(network) != "random":
            loaded[network] = earlier[network]
            continue
        progress.say(f"{network}: {config.weights_of(network)} weights")
        loaded[network] = load_weights(
            network,
            config.weights_of(network),
            blocks=blocks_to(BACKBONES[network], read),
            image_size=config.data.image_size,
            seed=config.data.seed,
            cache=cache,
            progress=functools.partial(Download, progress),
        )
    mixed = mixed_lineages(loaded)
    if mixed and not config.model.mixed_lineages:
        raise UserError(
            f"{mixed}, trained apart and on other inputs; choose weights of one origin, or allow these with "
            "--mixed-lineages, which the table will say"
        )
    return loaded


def calibrate_all(
    taps: dict[str, set[str]], config: TableConfig, patches: np.ndarray, progress: Silent
) -> dict[str, Weights]:
    """Returns calibrated weights, scaled on training patches, of the networks that have such."""
    calibrated = {}
    for network, read in taps.items():
        if config.weights_of(network) == "calibrated":
            progress.say(f"{network}: random weights, calibrated on training patches")
            blocks, size = blocks_to(BACKBONES[network], read), config.data.image_size
            options = {"blocks": blocks, "image_size": size, "seed": config.data.seed, "patches": patches}
            calibrated[network] = load_weights(network, "calibrated", **options)
    return calibrated


def mixed_lineages(weights: dict[str, Weights]) -> str | None:
    """Says so where the networks' weights were not trained by the same framework, or one's were fine-tuned since."""
    origins = {network: origin_of(loaded.lineage) for network, loaded in weights.items()}
    known = {network: origin for network, origin in origins.items() if origin}
    if len(set(known.values())) < 2:
        return None
    return " and ".join(f"{network}'s weights come from {origin}" for network, origin in known.items())


def _open_scans(request: Request) -> Source:
    """What is given, or a synthetic scan file drawn into the output folder."""
    config = request.config
    if config.data.given() is None and config.data.draw_synthetic:
        return open_scans(draw_scans(request.folder.path, config, request.progress), config.data.patch_size)
    needs = f"{request.preset} needs scans: --scans PATH, of a scan file in the layout of Kimia_Path24.h5 or a folder"
    options = {"cache": request.cache, "track": request.progress.track, "say": request.progress.say}
    return open_scans(config.data.needed(needs), **config.data.reading(), **options)


def _choice(network: str, request: Request, engine: Engine, before: Way | None) -> Choice:
    """How a network convolves in this run."""
    config = request.config
    options = {"precision": config.model.precision, "devices": engine.devices, "cache": request.cache, "before": before}
    choice = choose_way(
        config.model.conv, BACKBONES[network], config.data.image_size, config.optim.batch_size, **options
    )
    request.progress.say(f"{network}: {choice.way} convolutions ({choice.reason})")
    return choice


def _describe(source: Source, manifest: Manifest, audit: dict[str, Any] | None) -> dict[str, Any]:
    """What results say of the patches."""
    train, test = manifest.counts("train"), manifest.counts("test")
    return {
        "source": text_of(source.path),
        "title": source.title,
        "flags": source.flags,
        "held_out": source.test_patches() is None,
        "kind": source.kind,
        "opened": source.describe(),
        "remarks": list(source.remarks),
        **source.marks,
        "groups": source.groups_in(manifest.patches) if isinstance(source, Folder) else None,
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
        "left_out": manifest.about.get("left_out"),
        "identity": source.identity,
        "audit": audit,
    }
