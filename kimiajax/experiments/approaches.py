"""Table 1's rows as data, and the approaches behind them: from scratch, features and an SVM, fine-tuning.

Beside them two other families: floors, of trivial features, and retrieval of the nearest training patch.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import numpy as np

from kimiajax.errors import UserError
from kimiajax.experiments.approach import Features, Outcome, Row, Study
from kimiajax.experiments.config import TableConfig
from kimiajax.features import retrieval
from kimiajax.features.baselines import features_of, fit_standardised
from kimiajax.features.gradcam import default_layer, grad_cam, overlay
from kimiajax.features.svm import fit_linear_svm
from kimiajax.io.cache import default_cache
from kimiajax.models.backbone import Backbone, Classifier, Variables
from kimiajax.models.checkpoint import Weights, fine_tuned
from kimiajax.models.registry import BACKBONES
from kimiajax.runs.pictures import Picture
from kimiajax.runtime import distributed
from kimiajax.training.augment import AUGMENTATIONS
from kimiajax.training.diagnosis import wrong_start
from kimiajax.training.freezing import TrainableBlocks, blocks_of
from kimiajax.training.head_cache import fit_heads_once
from kimiajax.training.heads import Result
from kimiajax.training.loop import NonFiniteError
from kimiajax.training.optimizer import Optimization
from kimiajax.training.steps import Training
from kimiajax.weights.load import load_weights


def train_from_scratch(row: Row, study: Study, features: None, together: None) -> Outcome:
    """Every block and the head of a network from random parameters, by Adam."""
    config, backbone = study.config, BACKBONES[row.network]
    classifier = Classifier(backbone, backbone.trunk, study.manifest.num_scans)
    blocks = blocks_of(backbone, ("all",))
    optimization = Optimization("adam", config.cnn_learning_rate)
    training = _training(study, classifier, blocks, optimization, config.epochs)
    note = (
        f"{row.approach}: this project's own network, four strided convolutions with batch normalisation, trained by "
        f"Adam at {config.cnn_learning_rate:g} for {config.epochs} epochs on the same training patches. Beside it "
        "stands CNN1, which the paper quotes from another study; its printed factors multiply to 42.07, not 41.80."
    )
    seed, size = config.seed, config.image_size
    start = load_weights(backbone, "random", blocks=classifier.blocks, image_size=size, seed=seed)
    shapes = backbone.tap_shapes(start.variables, size, classifier.blocks)
    variables = _with_head(start.variables, classifier.init_head(jax.random.key(seed), shapes[backbone.bottleneck]))
    options = {"what": row.name, "epochs": config.epochs}
    variables, history, failure = study.fit(training, variables, study.train, row.name, "training", **options)
    predicted = None if failure else study.predict(row, classifier, variables, study.test)
    learnt = _learnt(row, study, start, variables, blocks.names if history else (), failure)
    about = _about(backbone, blocks, "none", None, optimization)
    return Outcome(predicted, learnt, {"training": history}, (note,), failure, about)


def classify_features(row: Row, study: Study, features: Features, together: None) -> Outcome:
    """A linear SVM on the network's features."""
    tap = BACKBONES[row.network].features
    train, test = np.asarray(features.train[tap]), np.asarray(features.test[tap])
    study.progress.say(f"{row.name}: linear SVM on {train.shape[1]:,} features of {len(train):,} patches")
    svm = fit_linear_svm(train, study.labels, study.config.svm_c)
    return Outcome(svm.predict(test), asdict(svm), {})


def classify_trivially(row: Row, study: Study, features: None, together: None) -> Outcome:
    """The same SVM on features that know nothing of tissue."""
    study.progress.say(f"{row.name}: linear SVM on {row.approach}")
    train, test = (features_of(row.name, images, study.config.background) for images in (study.train, study.test))
    try:
        svm = fit_standardised(train, study.labels, study.config.svm_c)
    except UserError as error:
        return Outcome(None, None, {}, failure=str(error))
    return Outcome(svm.predict(test), asdict(svm), {})


def find_nearest(row: Row, study: Study, features: Features, together: None, *, kind: str) -> Outcome:
    """The scan of the training patch whose features are nearest to a test patch's."""
    tap = BACKBONES[row.network].features
    train, test = np.asarray(features.train[tap]), np.asarray(features.test[tap])
    study.progress.say(f"{row.name}: {len(test):,} queries among {len(train):,} patches")
    scans = study.manifest.labels("test")
    try:
        found = retrieval.retrieve(train, study.labels, test, scans, kind, min(NEAREST, len(train)))
    except UserError as error:  # a zero vector has no cosine
        return Outcome(None, None, {}, failure=str(error))
    about = {
        "distance": kind,
        "features": tap,
        "gallery": len(train),
        "recall_at": {str(k): share for k, share in found.recall_at.items()},
        "queries_per_second": found.queries_per_second,
    }
    return Outcome(found.predicted, None, {}, retrieval=about, pictures=_neighbours(study, found))


class Head(NamedTuple):
    """A head trained on bottleneck features, or why it stopped; and whether the cache had it."""

    result: Result
    cached: bool


def fine_tune(row: Row, study: Study, features: Features, start: Head) -> Outcome:
    """A head that was trained on bottleneck features and the chosen blocks below it, together."""
    config, weights = study.config, study.weights[row.network]
    backbone = weights.backbone
    blocks, moves = config.blocks_of(backbone), anything_moves(backbone, config)
    stored = stored_tap(backbone, config)
    optimization, epochs = config.fine_tuning(), config.epochs if moves else 0
    about = _about(backbone, blocks, config.augmentation, stored, optimization) if moves else None
    notes = () if moves else (f"{row.approach}: no more trains than a head on bottleneck features.",)
    if start.cached:
        notes = (*notes, f"{row.approach}: its head was found in the cache; the seconds leave its training out.")
    head = start.result
    if isinstance(head, NonFiniteError):
        variables = _with_head({}, head.variables["params"]["head"])
        learnt = _learnt(row, study, weights, variables, ("head",) if head.history else (), str(head))
        return Outcome(None, learnt, {"head": head.history}, notes, str(head), about)

    tuned, head_history = head
    span = backbone.trunk if stored is None else backbone.span(stored, backbone.bottleneck)[1:]
    variables = {
        kind: {block: part[block] for block in span if block in part} for kind, part in weights.variables.items()
    }
    variables = _with_head(variables, tuned["params"]["head"])
    classifier = Classifier(backbone, span, study.manifest.num_scans)
    own = {"augmentation": AUGMENTATIONS[config.augmentation], "batch_norm_momentum": config.batch_norm_momentum}
    training = _training(study, classifier, blocks, optimization, epochs, **own)
    train, test = (study.train, study.test) if stored is None else (features.train[stored], features.test[stored])
    options = {"what": f"{row.name}: {', '.join(blocks.names) or 'batch statistics'}", "epochs": epochs}
    variables, history, failure = study.fit(training, variables, train, row.name, "fine_tuning", **options)
    predicted = None if failure else study.predict(row, classifier, variables, test)
    wrong = wrong_start(head_history, history, causes_of_wrong_start(backbone, config))
    notes = (*notes, f"{row.approach}: {wrong}") if wrong else notes
    trained = (*(blocks.names if history else ()), *(("head",) if head_history else ()))
    if history and _adapts(backbone, blocks):
        trained = (*trained, "batch statistics")
    learnt = _learnt(row, study, weights, variables, trained, failure)
    pictures = () if predicted is None else _explained(study, learnt, predicted)
    histories = {"head": head_history, "fine_tuning": history}
    return Outcome(predicted, learnt, histories, notes, failure, about, pictures=pictures)


def causes_of_wrong_start(backbone: Backbone, config: TableConfig) -> list[str]:
    """Returns likely causes of fine-tuning that starts far above its head, the likeliest first, with their flags."""
    modes = _modes(backbone, config.blocks_of(backbone))
    causes = [
        f"batch statistics in {which} blocks, while the head was trained on stored ones (--{which}-bn inference)"
        for which in ("trained", "frozen")
        if modes[f"{which}_bn"] not in (None, "inference")
    ]
    if config.augmentation != "none":
        causes.append("augmented patches, which the head had not seen (--augmentation none)")
    if config.label_smoothing:
        causes.append("smoothed labels, which the head was not trained on (--label-smoothing 0)")
    causes.append(f"too high a learning rate (--learning-rate, here {config.learning_rate:g})")
    return causes


def anything_moves(backbone: Backbone, config: TableConfig) -> bool:
    """Whether fine-tuning moves anything, weights or statistics."""
    blocks = config.blocks_of(backbone)
    return bool(blocks.names) or _adapts(backbone, blocks)


def _adapts(backbone: Backbone, blocks: TrainableBlocks) -> bool:
    """Whether running statistics move although their layers are frozen."""
    return blocks.frozen_bn == "keras2017" and bool(backbone.statistics)


def train_heads(row: Row, studies: Sequence[Study], features: Sequence[Features]) -> list[Head]:
    """The new head of each seed on its bottleneck features, by `fit_heads`."""
    first = studies[0]
    config, backbone = first.config, first.weights[row.network].backbone
    inputs = [np.asarray(given.train[backbone.bottleneck]) for given in features]
    on_bottleneck = Classifier(backbone, (), first.manifest.num_scans)
    optimization = Optimization(config.head_optimizer, config.head_learning_rate)
    blocks = TrainableBlocks(("head",))
    training = _training(first, on_bottleneck, blocks, optimization, config.head_epochs)
    seeds = [study.config.seed for study in studies]
    shape = inputs[0].shape[1:]
    heads, cached = fit_heads_once(
        training,
        optimization,
        [_with_head({}, on_bottleneck.init_head(jax.random.key(seed), shape)) for seed in seeds],
        inputs,
        [study.labels for study in studies],
        cache=config.cache or default_cache(),
        epochs=config.head_epochs,
        batch_size=config.batch_size,
        seeds=seeds,
        checkpoints=first.checkpoints(row.name, "head"),
        progress=first.progress,
        description=f"{row.name}: head",
        records=[study.record(row.name, "head") for study in studies],
    )
    heads = distributed.of_first(lambda: heads)  # each process trained them; what goes on must be the same to the bit
    return [Head(result, cached) for result in heads]


def stored_tap(backbone: Backbone, config: TableConfig) -> str | None:
    """The block whose outputs, computed once a patch, fine-tuning begins with; None where it needs the patches.

    It does where they are augmented, where frozen batch normalisation looks at the mini-batch, where the network's
    first block trains, and where `--no-cache-frozen` says so.
    """
    blocks = config.blocks_of(backbone)
    if not anything_moves(backbone, config):
        return backbone.bottleneck
    looks = blocks.frozen_bn != "inference" and backbone.statistics
    if not config.cache_frozen or looks or config.augmentation != "none":
        return None
    trained = blocks.within(backbone.trunk)
    return backbone.before(trained[0]) if trained else backbone.bottleneck


def _training(
    study: Study, classifier: Classifier, blocks: TrainableBlocks, optimization: Optimization, epochs: int, **own: Any
) -> Training:
    """What the settings say of any training, on the study's patches, and what one phase has of its own."""
    config, count = study.config, len(study.train)
    optimizer, learning_rate = optimization.over(epochs, -(-count // min(config.batch_size, count)))
    return Training(
        classifier,
        optimizer,
        blocks,
        label_smoothing=optimization.label_smoothing,
        statistic_groups=len(study.engine.devices) if config.bn_statistics == "local" and classifier.blocks else 1,
        precision=config.precision,
        learning_rate=learning_rate,
        **own,
    )


def _about(
    backbone: Backbone, blocks: TrainableBlocks, augmentation: str, stored: str | None, optimization: Optimization
) -> dict[str, Any]:
    """What trained and how, as JSON takes it."""
    return {
        "blocks": list(blocks.names),
        **_modes(backbone, blocks),
        "augmentation": augmentation,
        "inputs": "patches" if stored is None else f"stored outputs of {stored}",
        "optimization": asdict(optimization),
    }


def _modes(backbone: Backbone, blocks: TrainableBlocks) -> dict[str, str | None]:
    """The modes of batch normalisation; None where the network has none that is frozen, or trains."""
    return {
        "frozen_bn": blocks.frozen_bn if blocks.frozen_normalises(backbone) else None,
        "trained_bn": blocks.trained_bn if blocks.trained_normalises(backbone) else None,
    }


def _with_head(variables: Variables, head: Variables) -> Variables:
    return {**variables, "params": {**variables.get("params", {}), "head": head}}


def _learnt(
    row: Row, study: Study, start: Weights, variables: Variables, trained: Sequence[str], failure: str | None
) -> Weights:
    """The whole network as it is after training, up to its bottleneck and with its head: it can be used elsewhere."""
    trunk = start.backbone.trunk
    whole = {
        kind: {**{block: part[block] for block in trunk if block in part}, **variables.get(kind, {})}
        for kind, part in start.variables.items()
    }
    run = {
        "row": row.name,
        "seed": study.config.seed,
        "scans": study.data["title"],
        "synthetic": study.data["synthetic"],
        "unverified": study.data["unverified"],
        "manifest_sha256": study.data["manifest_sha256"],
        "audit": study.data["audit"],
        "failure": failure,
    }
    names = tuple(dict.fromkeys(trained))
    return fine_tuned(start, jax.tree.map(np.asarray, whole), names, "kimiajax table", run)


def _explained(study: Study, learnt: Weights, predicted: np.ndarray) -> tuple[Picture, ...]:
    """A test patch of each scan that the paper's Fig. 3 shows, and where the network looks for its own scan in it."""
    patches, scans = study.manifest.split("test"), study.manifest.labels("test")
    places = [int(np.argmax(scans == scan)) for scan in SHOWN if (scans == scan).any()]
    if not places or not distributed.is_first():
        return ()
    classifier = Classifier(learnt.backbone, learnt.backbone.trunk, study.manifest.num_scans)
    images = study.test[places]
    maps = grad_cam(classifier, learnt.variables, images, classes=scans[places])
    layer = default_layer(learnt.backbone)
    cells = learnt.backbone.tap_shapes(learnt.variables, images.shape[1], learnt.backbone.trunk)[layer][:2]
    pictures = []
    for place, image, heat, guess in zip(places, images, maps.heat, predicted[places].tolist()):
        patch = patches[place]
        about = {"patch_id": patch.patch_id, "scan": patch.scan, "predicted": guess}
        pictures.append(Picture(f"scan-{patch.scan}", image, {**about, "kind": "patch"}))
        about |= {"kind": "grad-cam", "layer": layer, "cells": list(cells), "evidence": bool(heat.any())}
        pictures.append(Picture(f"scan-{patch.scan}-gradcam", overlay(image, heat), about))
    return tuple(pictures)


def _neighbours(study: Study, found: "retrieval.Retrieved") -> tuple[Picture, ...]:
    """A few test patches, and the nearest training patches of each."""
    if not distributed.is_first():
        return ()
    queries, gallery = study.manifest.split("test"), study.manifest.split("train")
    scans = np.unique(study.manifest.labels("test"))
    shown = scans[np.linspace(0, len(scans) - 1, min(QUERIES_SHOWN, len(scans))).astype(int)]
    pictures = []
    for scan in shown:
        query = int(np.argmax(study.manifest.labels("test") == scan))
        about = {"query": queries[query].patch_id}
        own = {"patch_id": queries[query].patch_id, "scan": int(scan), "rank": 0, "distance": None}
        pictures.append(Picture(f"query-{scan}", study.test[query], {**about, **own}))
        nearest = zip(found.places[query][:NEIGHBOURS_SHOWN].tolist(), found.distances[query].tolist())
        for rank, (place, distance) in enumerate(nearest, start=1):
            patch = gallery[place]
            own = {"patch_id": patch.patch_id, "scan": patch.scan, "rank": rank, "distance": distance}
            pictures.append(Picture(f"query-{scan}-{rank}", study.train[place], {**about, **own}))
    return tuple(pictures)


SHOWN = (4, 8)  # the scans of the paper's Fig. 3
NEAREST, QUERIES_SHOWN, NEIGHBOURS_SHOWN = 10, 4, 5
