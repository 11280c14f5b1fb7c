"""Table 1 as data, one entry a row, and the runner over it: scans -> patches -> approaches -> scores."""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from kimiajax import paper
from kimiajax.checkpoints import Tree, save_tree
from kimiajax.config import TableConfig
from kimiajax.data.audit import record_of
from kimiajax.data.manifest import Manifest, read_manifest
from kimiajax.data.opening import open_scans
from kimiajax.data.reading import Patches, check_of, prepare_patches, read_patches
from kimiajax.data.source import Source
from kimiajax.data.synthetic import write_synthetic_scans
from kimiajax.environment import describe_environment
from kimiajax.errors import UserError
from kimiajax.features import extract_taps
from kimiajax.files import only_run
from kimiajax.finetune.blocks import TrainableBlocks
from kimiajax.finetune.loop import Epoch, fit, predict
from kimiajax.finetune.optimizer import fine_tuning_sgd, head_rmsprop
from kimiajax.metrics import kimia_scores
from kimiajax.models.backbone import BACKBONES, Backbone, Classifier, Variables
from kimiajax.models.weights import Weights, default_cache, fine_tuned, load_weights, origin_of
from kimiajax.progress import Download, Silent
from kimiajax.report.results import SCHEMA_VERSION, begin_run, write_predictions, write_results
from kimiajax.svm import fit_linear_svm

SYNTHETIC = {"num_scans": paper.NUM_SCANS, "patch_size": 112, "grid": (6, 7), "test_patches": (3, 8)}


@dataclass(frozen=True)
class Study:
    """What the rows share: settings, weights, and the patches, at the networks' size."""

    config: TableConfig
    data: dict[str, Any]
    manifest: Manifest
    train: np.ndarray
    test: np.ndarray
    weights: dict[str, Weights]
    progress: Silent

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The scan of each training patch."""
        return self.manifest.labels("train")

    def fit(self, classifier: Classifier, variables: Variables, inputs: np.ndarray, **options: Any) -> tuple:
        """`fit` with the study's labels, batch size and seed."""
        size, seed = self.config.batch_size, self.config.seed
        return fit(
            classifier, variables, inputs, self.labels, batch_size=size, seed=seed, progress=self.progress, **options
        )

    def predict(self, row: "Row", classifier: Classifier, variables: Variables, inputs: np.ndarray) -> np.ndarray:
        """`predict` with the study's batch size."""
        return predict(
            classifier,
            variables,
            inputs,
            batch_size=self.config.batch_size,
            progress=self.progress,
            description=f"{row.name}: test patches",
        )


@dataclass(frozen=True)
class Features:
    """A network's outputs on both splits, by block, and the seconds that they took in this run."""

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    seconds: float
    cached: bool


@dataclass(frozen=True)
class Outcome:
    """What an approach gives: the predicted scan of each test patch, what it learnt, and how that went.

    What it learnt is a network's weights, with a lineage, or the SVM's arrays.
    """

    predicted: np.ndarray
    learnt: Weights | Tree
    history: dict[str, list[Epoch]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of Table 1.

    Attributes:
        name: as in `--rows`, and the key of the paper's figures.
        approach: how the table prints it.
        scheme: where its weights come from and what is done with them.
        network: a key of `BACKBONES`.
        run: the approach itself.
        taps: the blocks whose outputs it reads, if it reads any.
    """

    name: str
    approach: str
    scheme: str
    network: str
    run: Callable[["Row", Study, Features | None], Outcome]
    taps: Callable[[Backbone, TableConfig], set[str]] | None = None


def train_from_scratch(row: Row, study: Study, features: None) -> Outcome:
    """Every block and the head of a network from random parameters, by Adam."""
    config, backbone = study.config, BACKBONES[row.network]
    classifier = Classifier(backbone, backbone.up_to(backbone.bottleneck), study.manifest.num_scans)
    start = load_weights(backbone, "random", blocks=classifier.blocks, image_size=config.image_size, seed=config.seed)
    variables = dict(start.variables)
    shapes = backbone.tap_shapes(variables, config.image_size, classifier.blocks)
    head = classifier.init_head(jax.random.key(config.seed), shapes[backbone.bottleneck])
    variables["params"] = {**variables["params"], "head": head}
    blocks = TrainableBlocks(tuple(variables["params"]))
    variables, history = study.fit(
        classifier,
        variables,
        study.train,
        optimizer=optax.adam(config.cnn_learning_rate),
        blocks=blocks,
        epochs=config.epochs,
        description=row.name,
    )
    note = (
        f"{row.approach}: this project's own network, four strided convolutions with batch normalisation, trained by "
        f"Adam at {config.cnn_learning_rate:g} for {config.epochs} epochs on the same training patches. Beside it "
        "stands CNN1, which the paper quotes from another study; its printed factors multiply to 42.07, not 41.80."
    )
    predicted = study.predict(row, classifier, variables, study.test)
    return Outcome(predicted, _learnt(row, study, start, variables, blocks), {"training": history}, (note,))


def classify_features(row: Row, study: Study, features: Features) -> Outcome:
    """A linear SVM on the network's features."""
    tap = BACKBONES[row.network].features
    train, test = np.asarray(features.train[tap]), np.asarray(features.test[tap])
    study.progress.say(f"{row.name}: linear SVM on {train.shape[1]:,} features of {len(train):,} patches")
    svm = fit_linear_svm(train, study.labels, study.config.svm_c)
    predicted = svm.predict(test)
    return Outcome(predicted, asdict(svm), {})


def fine_tune(row: Row, study: Study, features: Features) -> Outcome:
    """A new head on bottleneck features, then that head and the chosen blocks together, by SGD."""
    config, weights = study.config, study.weights[row.network]
    backbone = weights.backbone
    bottleneck = features.train[backbone.bottleneck]
    on_bottleneck = Classifier(backbone, (), study.manifest.num_scans)
    head = on_bottleneck.init_head(jax.random.key(config.seed), bottleneck.shape[1:])
    head, head_history = study.fit(
        on_bottleneck,
        {"params": {"head": head}},
        bottleneck,
        optimizer=head_rmsprop(config.head_learning_rate),
        blocks=TrainableBlocks(("head",)),
        epochs=config.head_epochs,
        description=f"{row.name}: head",
    )

    if config.cache_frozen:
        first, train, test = backbone.fine_tuned[0], features.train[backbone.boundary], features.test[backbone.boundary]
    else:
        first, train, test = backbone.blocks[0], study.train, study.test
    span = backbone.span(first, backbone.bottleneck)
    classifier = Classifier(backbone, span, study.manifest.num_scans, config.batch_norm_momentum)
    variables = {
        kind: {block: part[block] for block in span if block in part} for kind, part in weights.variables.items()
    }
    variables["params"]["head"] = head["params"]["head"]
    blocks = TrainableBlocks((*backbone.fine_tuned, "head"))
    variables, history = study.fit(
        classifier,
        variables,
        train,
        optimizer=fine_tuning_sgd(config.learning_rate, config.momentum),
        blocks=blocks,
        epochs=config.epochs,
        description=f"{row.name}: {', '.join(backbone.fine_tuned)} and head",
    )
    predicted = study.predict(row, classifier, variables, test)
    histories = {"head": head_history, "fine_tuning": history}
    return Outcome(predicted, _learnt(row, study, weights, variables, blocks), histories)


def _svm_taps(backbone: Backbone, config: TableConfig) -> set[str]:
    return {backbone.features}


def _fine_tuning_taps(backbone: Backbone, config: TableConfig) -> set[str]:
    return {backbone.bottleneck} | ({backbone.boundary} if config.cache_frozen else set())


ROWS = (
    Row("cnn", "CNN (ours)", "scratch", "cnn", train_from_scratch),
    Row("fe_vgg16", "FE-VGG16", "features", "vgg16", classify_features, _svm_taps),
    Row("tl_vgg16", "TL-VGG16", "fine-tuned", "vgg16", fine_tune, _fine_tuning_taps),
    Row("fe_inception_v3", "FE-Inception-v3", "features", "inception_v3", classify_features, _svm_taps),
    Row("tl_inception_v3", "TL-Inception-v3", "fine-tuned", "inception_v3", fine_tune, _fine_tuning_taps),
)


@jax.default_matmul_precision("float32")  # the protocol's; by itself jax computes in TF32 on a GPU
def run_table(preset: str, config: TableConfig, progress: Silent | None = None) -> dict[str, Any]:
    """Computes the table's rows and writes them, with all that they rest on, to the output folder.

    Args:
        preset: its name, for the record and the default folder.
        config: all settings.
        progress: shows what goes on.

    Returns:
        The content of `results.json`, which is written anew after each row, "complete" being true after the last.

    Raises:
        UserError: settings, scans or weights that cannot serve; all are looked at before the long work begins.
    """
    progress = progress or Silent()
    config.validate(tuple(row.name for row in ROWS))
    rows = [row for row in ROWS if row.name in config.rows]
    out, cache = config.folder(preset), config.cache or default_cache()
    with only_run(out):
        return _run(preset, config, rows, out, cache, progress)


def _run(preset: str, config: TableConfig, rows: list[Row], out: Path, cache: Path, progress: Silent) -> dict[str, Any]:
    taps = _taps(rows, config)
    study = _prepare(preset, config, rows, taps, out, cache, progress)
    results = {
        "schema_version": SCHEMA_VERSION,
        "complete": False,
        "preset": preset,
        "config": config.as_dict(),
        "environment": describe_environment(),
        "data": study.data,
        "weights": {network: loaded.lineage for network, loaded in study.weights.items()},
        "notes": _notes(study),
        "rows": [],
    }
    features: dict[str, Features] = {}
    for row in rows:
        if row.network in taps and row.network not in features:
            features = {row.network: _extract(row.network, study, taps[row.network], cache)}  # one network's at a time
            if features[row.network].cached:
                results["notes"].append(f"{row.network}: features found in the cache; the seconds leave them out.")
        started = time.perf_counter()
        outcome = row.run(row, study, features.get(row.network))
        seconds = time.perf_counter() - started
        if row.network in features:
            seconds += features[row.network].seconds
        if row is rows[0]:  # not earlier: until now the folder holds a whole earlier run, if any
            begin_run(out, study.manifest, (row.name for row in ROWS))
        write_predictions(out, row.name, study.manifest, outcome.predicted)
        _save(out / "checkpoints" / row.name, outcome.learnt)
        results["rows"].append(_describe_row(row, outcome, study, seconds))
        results["notes"] += outcome.notes
        if np.ptp(outcome.predicted) == 0 < np.ptp(study.manifest.labels("test")):
            results["notes"].append(
                f"{row.approach} predicts one and the same scan for every patch: it learnt nothing."
            )
        results["complete"] = len(results["rows"]) == len(rows)
        write_results(out, results)
    return results


def _save(folder: Path, learnt: Weights | Tree) -> None:
    if isinstance(learnt, Weights):
        learnt.save(folder)
    else:
        save_tree(folder, learnt)


def _prepare(
    preset: str,
    config: TableConfig,
    rows: list[Row],
    taps: dict[str, set[str]],
    out: Path,
    cache: Path,
    progress: Silent,
) -> Study:
    """Scans, weights and folders, each looked at before the long work, and then the patches."""
    for row in rows:
        BACKBONES[row.network].check_size(config.image_size)
    manifest = None if config.manifest is None else read_manifest(config.manifest)
    with _open_scans(preset, config, out, progress) as source:
        if manifest is not None:
            check_of(source, manifest)
        weights = _load_weights(taps, config, cache, progress)
        cache.mkdir(parents=True, exist_ok=True)
        patches = _read_patches(source, manifest, config, cache, progress)
        audit = record_of(source, patches.manifest, cache)
        return Study(config, _describe_data(source, patches.manifest, audit), *patches, weights, progress)


def _read_patches(
    source: Source, manifest: Manifest | None, config: TableConfig, cache: Path, progress: Silent
) -> Patches:
    options = {"cache": cache, "track": progress.track}
    if manifest is not None:
        return read_patches(source, manifest, config.image_size, config.resize, **options)
    return prepare_patches(source, config.rules(), config.image_size, config.resize, **options)


def _open_scans(preset: str, config: TableConfig, out: Path, progress: Silent) -> Source:
    """What is given, or a synthetic scan file drawn into the output folder."""
    if config.scans is not None:
        return open_scans(config.scans, config.patch_size, config.mpp)
    if not config.draw_synthetic:
        raise UserError(
            f"{preset} needs scans: --scans PATH, of a scan file in the layout of Kimia_Path24.h5 or a folder"
        )
    path = out / "scans.h5"
    if path.exists():
        with open_scans(path) as earlier:
            if not earlier.synthetic:
                raise UserError(f"{path}: is no synthetic scan file and would be overwritten; choose another --out")
    write_synthetic_scans(path, seed=config.seed, track=progress.track, **SYNTHETIC)
    return open_scans(path, config.patch_size)


def _taps(rows: list[Row], config: TableConfig) -> dict[str, set[str]]:
    """The blocks whose outputs the rows read, by network: one pass a patch gives them all."""
    taps: dict[str, set[str]] = {}
    for row in rows:
        if row.taps:
            taps.setdefault(row.network, set()).update(row.taps(BACKBONES[row.network], config))
    return taps


def _load_weights(taps: dict[str, set[str]], config: TableConfig, cache: Path, progress: Silent) -> dict[str, Weights]:
    """The weights of each network, up to the last block that is read."""
    loaded = {}
    for network, blocks in taps.items():
        backbone = BACKBONES[network]
        progress.say(f"{network}: {config.weights(network)} weights")
        loaded[network] = load_weights(
            network,
            config.weights(network),
            blocks=backbone.up_to(backbone.last_of(blocks)),
            image_size=config.image_size,
            seed=config.seed,
            cache=cache,
            progress=functools.partial(Download, progress),
        )
    mixed = _mixed_lineages(loaded)
    if mixed and not config.mixed_lineages:
        raise UserError(
            f"{mixed}, trained apart and on other inputs; choose weights of one origin, or allow these with "
            "--mixed-lineages, which the table will say"
        )
    return loaded


def _mixed_lineages(weights: dict[str, Weights]) -> str | None:
    """Says so where the networks' weights were not trained by the same framework, or one's were fine-tuned since."""
    origins = {network: origin_of(loaded.lineage) for network, loaded in weights.items()}
    known = {network: origin for network, origin in origins.items() if origin}
    if len(set(known.values())) < 2:
        return None
    return " and ".join(f"{network}'s weights come from {origin}" for network, origin in known.items())


def _extract(network: str, study: Study, taps: set[str], cache: Path) -> Features:
    started = time.perf_counter()
    train, test = (
        extract_taps(
            study.weights[network].backbone,
            study.weights[network].variables,
            images,
            sorted(taps),
            cache=cache,
            progress=study.progress,
            description=f"{network} on {split} patches",
        )
        for split, images in (("training", study.train), ("test", study.test))
    )
    return Features(train.arrays, test.arrays, time.perf_counter() - started, train.cached or test.cached)


def _learnt(row: Row, study: Study, start: Weights, variables: Variables, blocks: TrainableBlocks) -> Weights:
    """The whole network as it is after training, up to its bottleneck and with its head: it can be used elsewhere."""
    backbone = start.backbone
    whole = {
        kind: {
            **{block: part[block] for block in backbone.up_to(backbone.bottleneck) if block in part},
            **variables.get(kind, {}),
        }
        for kind, part in start.variables.items()
    }
    run = {
        "row": row.name,
        "seed": study.config.seed,
        "scans": Path(study.data["source"]).name,
        "synthetic": study.data["synthetic"],
        "manifest_sha256": study.data["manifest_sha256"],
        "audit": study.data["audit"],
    }
    return fine_tuned(start, jax.tree.map(np.asarray, whole), blocks.names, "kimiajax table", run)


def _describe_data(source: Source, manifest: Manifest, audit: dict[str, Any] | None) -> dict[str, Any]:
    train, test = manifest.counts("train"), manifest.counts("test")
    return {
        "source": str(source.path),
        "kind": source.kind,
        "synthetic": source.synthetic,
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
    """A row of `results.json`. Double precision, so that the scores are those of a plain count."""
    with jax.enable_x64(True):
        scores = kimia_scores(study.manifest.labels("test"), outcome.predicted, study.manifest.num_scans)
    source = study.config.weights(row.network) if row.network in study.weights else "none"
    precision = float(scores.eta_w_precision)
    return {
        "name": row.name,
        "approach": row.approach,
        "scheme": row.scheme,
        "weights": source if source in ("random", "imagenet", "none") else Path(source).name,
        "eta_p": float(scores.eta_p),
        "eta_w": float(scores.eta_w),
        "eta_total": float(scores.eta_total),
        "eta_w_precision": None if math.isnan(precision) else precision,
        "correct": int(np.asarray(scores.correct).sum()),
        "tested": int(np.asarray(scores.tested).sum()),
        "seconds": seconds,
        "paper": asdict(paper.TABLE_1[row.name]),
        "history": {phase: [asdict(epoch) for epoch in epochs] for phase, epochs in outcome.history.items()},
    }


def _notes(study: Study) -> list[str]:
    """What a reader must know of the run as a whole."""
    config, data, notes = study.config, study.data, []
    if data["synthetic"]:
        notes.append("The scans are drawn by a program: these figures say nothing about tissue, nor about the paper.")
    elif (data["scans"], data["test"]) != (paper.NUM_SCANS, paper.TEST_PATCHES):
        notes.append(
            f"Not Kimia Path24, which has {paper.NUM_SCANS} scans and {paper.TEST_PATCHES:,} test patches: the paper's "
            "figures stand beside for orientation only."
        )
    if config.manifest is not None:
        notes.append(f"The patches are those of {config.manifest}, chosen by what its header says and not by this run.")
    audit = data["audit"]
    if audit is None and not data["synthetic"]:
        notes.append(f"Not audited: `kimiajax data audit --scans {data['source']}` tells whether to trust these data.")
    elif audit is not None and audit["failed"]:
        notes.append(f"The audit of these data FAILED ({', '.join(audit['failed'])}): no figure here can be relied on.")
    random = [network for network, loaded in study.weights.items() if loaded.lineage["source"] == "random"]
    if random:
        notes.append(f"{' and '.join(random)}: random weights, so their rows say nothing about pre-training.")
    tuned = [network for network, loaded in study.weights.items() if "trained_blocks" in loaded.lineage]
    if tuned:
        notes.append(f"{' and '.join(tuned)}: weights that an earlier run fine-tuned, so not pre-trained ones alone.")
    mixed = _mixed_lineages(study.weights)
    if mixed:
        notes.append(f"{mixed}, trained apart and on other inputs: these rows do not compare the networks alone.")
    notes.append("Trained with no augmentation; the paper augments.")
    if config.patches_per_scan == "all":
        published = ", ".join(f"{count:,} ({who})" for who, count in paper.TRAINING_PATCHES_PUBLISHED.items())
        notes.append(f"All {data['train']:,} training patches; published counts of Kimia Path24 are {published}.")
    asked = 0 if config.patches_per_scan == "all" else config.patches_per_scan
    short = [scan for scan, count in enumerate(data["train_per_scan"]) if count < asked]
    if short:
        notes.append(
            f"Scans {', '.join(map(str, short))} have fewer than the {asked} training patches asked for, and give all."
        )
    return notes
