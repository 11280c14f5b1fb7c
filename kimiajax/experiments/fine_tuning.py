"""The rows that fine-tune: a head trained on bottleneck features, and then the chosen blocks below it with it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from kimiajax.experiments.approach import Features, Outcome
from kimiajax.experiments.config import TableConfig
from kimiajax.experiments.network_rows import NetworkRow, described, modes_of, training_of, with_head
from kimiajax.experiments.study import Phase, Study
from kimiajax.features.gradcam import default_layer, grad_cam, overlay, spatial
from kimiajax.models.backbone import Backbone, Variables, of_blocks
from kimiajax.models.checkpoint import STATISTICS, Weights
from kimiajax.models.head import Classifier
from kimiajax.runs.classes import classes_of, is_kimia
from kimiajax.runs.pictures import Picture
from kimiajax.runtime import distributed
from kimiajax.training.augment import AUGMENTATIONS
from kimiajax.training.diagnosis import wrong_start
from kimiajax.training.freezing import TrainableBlocks, blocks_of
from kimiajax.training.head_cache import fit_heads_once
from kimiajax.training.heads import Result
from kimiajax.training.loop import Epoch, NonFiniteError
from kimiajax.training.optimizer import Optimization

PAPERS = "; the paper: 200 epochs by SGD at 0.0001, augmented"
SHOWN = (4, 8)  # the scans of the paper's Fig. 3
MOST_SHOWN = 6  # classes, where these have names
REASONS = {
    "inference": ": stored statistics, on which its head was trained",
    "keras2017": ", as in the paper's time: the mini-batch's statistics, while its head was trained on stored ones",
}
OF_RANDOM = ": the mini-batch's statistics, since stored ones of random weights say nothing of tissue"


class Head(NamedTuple):
    """A head trained on bottleneck features, or why it stopped; whether the cache had it; and for which row."""

    result: Result
    cached: bool
    row: str

    @property
    def trained(self) -> tuple[Variables, list[Epoch]]:
        """Its variables and its epochs; where it stopped, as of the last good one."""
        return (self.result.variables, self.result.history) if isinstance(self.result, NonFiniteError) else self.result

    @property
    def failure(self) -> str | None:
        """Why it stopped, where it did."""
        return str(self.result) if isinstance(self.result, NonFiniteError) else None


@dataclass(frozen=True)
class HeadedRow(NetworkRow):
    """A row that begins with a head on bottleneck features: one for each seed, which all such rows share."""

    def taps(self, config: TableConfig) -> set[str]:
        return {self.backbone.bottleneck}

    def prepare(self, studies: Sequence[Study], features: Sequence[Features]) -> list[Head]:
        """Trains the new head of each seed on its bottleneck features."""
        first = studies[0]
        config, backbone = first.config, first.weights[self.network].backbone
        inputs = [np.asarray(given.train[backbone.bottleneck]) for given in features]
        on_bottleneck = Classifier(backbone, (), first.manifest.num_scans)
        optimization = Optimization(config.optim.head_optimizer, config.optim.head_learning_rate)
        training = training_of(first, on_bottleneck, TrainableBlocks(("head",)), optimization, config.optim.head_epochs)
        seeds = [study.config.data.seed for study in studies]
        shape = inputs[0].shape[1:]
        heads, cached = fit_heads_once(
            training,
            optimization,
            [with_head({}, on_bottleneck.init_head(jax.random.key(seed), shape)) for seed in seeds],
            inputs,
            [study.labels for study in studies],
            cache=first.request.cache,
            epochs=config.optim.head_epochs,
            batch_size=config.optim.batch_size,
            seeds=seeds,
            checkpoints=first.checkpoints(self.name, "head"),
            progress=first.progress,
            description=f"{self.name}: head",
            records=[study.record(self.name, "head") for study in studies],
        )
        heads = distributed.of_first(lambda: heads)  # each process trained them, and all go on with the same bits
        return [Head(result, cached, self.name) for result in heads]

    def take(self, study: Study, head: Head) -> tuple[str, ...]:
        """Returns the notes on a head that the row begins with, and has its epochs among the row's own."""
        if head.row != self.name:  # of the head's own row they are on record
            for epoch in head.trained[1]:
                study.record(self.name, "head")(epoch)
        if not head.cached:
            return ()
        return (f"{self.network}: its head was found in the cache; the seconds leave its training out.",)

    def with_head_alone(self, study: Study, head: Head) -> Weights:
        """Returns the network as it was loaded, with this head."""
        variables, history = head.trained
        weights, blocks = study.weights[self.network], ("head",) if history else ()
        return self.artifact(study, weights, with_head({}, variables["params"]["head"]), blocks, head.failure)


@dataclass(frozen=True)
class HeadAlone(HeadedRow):
    """The head on bottleneck features, with which fine-tuning begins."""

    scheme: ClassVar[str] = "head"

    def fit(self, study: Study, features: Features, prepared: Head) -> Outcome:
        notes, optim = self.take(study, prepared), study.config.optim
        backbone, (variables, history) = study.weights[self.network].backbone, prepared.trained
        optimization = Optimization(optim.head_optimizer, optim.head_learning_rate)
        about = described(backbone, TrainableBlocks(("head",)), "none", backbone.bottleneck, optimization)
        learnt, predicted = self.with_head_alone(study, prepared), None
        if prepared.failure is None:
            on_bottleneck = Classifier(backbone, (), study.manifest.num_scans)
            predicted = study.predict(self.name, on_bottleneck, variables, features.test[backbone.bottleneck])
        return Outcome(predicted, learnt, {"head": history}, notes, prepared.failure, about)


@dataclass(frozen=True)
class FineTuning(HeadedRow):
    """A head that was trained on bottleneck features and the chosen blocks below it, together."""

    scheme: ClassVar[str] = "fine-tuned"
    varies_with: ClassVar[frozenset[str]] = frozenset({"patches_per_scan", "augmentation", "blocks"})

    @property
    def against(self) -> str | None:
        return f"hd_{self.network}"

    def check(self, config: TableConfig) -> None:
        super().check(config)
        config.blocks_of(self.backbone)

    def taps(self, config: TableConfig) -> set[str]:
        stored = stored_tap(self.backbone, config)
        return {*super().taps(config), *([stored] if stored else [])}

    def fit(self, study: Study, features: Features, prepared: Head) -> Outcome:
        config, weights = study.config, study.weights[self.network]
        backbone = weights.backbone
        blocks, moves = config.blocks_of(backbone), anything_moves(backbone, config)
        stored = stored_tap(backbone, config)
        optimization, epochs = config.fine_tuning(), config.optim.epochs if moves else 0
        about = described(backbone, blocks, config.optim.augmentation, stored, optimization) if moves else None
        notes = () if moves else (f"{self.title}: no more trains than a head on bottleneck features.",)
        notes = (*notes, *self.take(study, prepared))
        tuned, head_history = prepared.trained
        if prepared.failure is not None:
            learnt = self.with_head_alone(study, prepared)
            return Outcome(None, learnt, {"head": head_history}, notes, prepared.failure, about)

        span = backbone.trunk if stored is None else backbone.span(stored, backbone.bottleneck)[1:]
        variables = with_head(of_blocks(weights.variables, span), tuned["params"]["head"])
        classifier = Classifier(backbone, span, study.manifest.num_scans)
        own = {
            "augmentation": AUGMENTATIONS[config.optim.augmentation],
            "batch_norm_momentum": config.model.batch_norm_momentum,
        }
        training = training_of(study, classifier, blocks, optimization, epochs, **own)
        train, test = (study.train, study.test) if stored is None else (features.train[stored], features.test[stored])
        what = f"{self.name}: {', '.join(blocks.names) or 'batch statistics'}"
        phase = Phase(self.name, "fine_tuning", epochs, what)
        variables, history, failure = study.fit(training, variables, train, phase)
        predicted = None if failure else study.predict(self.name, classifier, variables, test)
        wrong = wrong_start(head_history, history, causes_of_wrong_start(backbone, config))
        notes = (*notes, f"{self.title}: {wrong}") if wrong else notes
        trained = (*(blocks.names if history else ()), *(("head",) if head_history else ()))
        if history and _adapts(backbone, blocks):
            trained = (*trained, STATISTICS)
        learnt = self.artifact(study, weights, variables, trained, failure)
        pictures = () if predicted is None else _explained(study, learnt, predicted)
        histories = {"head": head_history, "fine_tuning": history}
        return Outcome(predicted, learnt, histories, notes, failure, about, pictures=pictures)

    def notes(self, study: Study) -> list[str]:
        """Returns how it is fine-tuned, and where that departs from the paper."""
        config, backbone = study.config, study.weights[self.network].backbone
        if not anything_moves(backbone, config):
            return []
        how, blocks = config.fine_tuning(), config.blocks_of(backbone)
        augmented = (
            "no augmentation"
            if config.optim.augmentation == "none"
            else f"augmentation as of {config.optim.augmentation}"
        )
        extras = [
            f"{name.replace('_', ' ')} {value:g}"
            for name, value in asdict(how).items()
            if name in ("weight_decay", "warmup_epochs", "label_smoothing") and value
        ]
        notes = [
            f"Fine-tuned for {config.optim.epochs} epochs by {how.optimizer} at {how.learning_rate:g}, {how.schedule}"
            f"{''.join(', ' + extra for extra in extras)}, with {augmented}{PAPERS if is_kimia(study.data) else ''}."
        ]
        if blocks.names != blocks_of(backbone, ("paper",)).names:
            beside = "; the paper, its last blocks" if is_kimia(study.data) else ""
            notes.append(f"{self.title} trains {', '.join(blocks.names) or 'no weight'}{beside}.")
        if blocks.frozen_normalises(backbone):
            notes.append(f"{self.title}: frozen batch normalisation in mode {blocks.frozen_bn}.")
        if blocks.trained_normalises(backbone):
            of_random = blocks.trained_bn == "keras2017" and study.weights[self.network].lineage["source"] == "random"
            reason = OF_RANDOM if of_random else REASONS[blocks.trained_bn]
            notes.append(f"{self.title}: trained batch normalisation in mode {blocks.trained_bn}{reason}.")
        return notes


def causes_of_wrong_start(backbone: Backbone, config: TableConfig) -> list[str]:
    """Returns likely causes of fine-tuning that starts far above its head, the likeliest first, with their flags."""
    modes = modes_of(backbone, config.blocks_of(backbone))
    causes = [
        f"batch statistics in {which} blocks, while the head was trained on stored ones (--{which}-bn inference)"
        for which in ("trained", "frozen")
        if modes[f"{which}_bn"] not in (None, "inference")
    ]
    if config.optim.augmentation != "none":
        causes.append("augmented patches, which the head had not seen (--augmentation none)")
    if config.optim.label_smoothing:
        causes.append("smoothed labels, which the head was not trained on (--label-smoothing 0)")
    causes.append(f"too high a learning rate (--learning-rate, here {config.optim.learning_rate:g})")
    return causes


def anything_moves(backbone: Backbone, config: TableConfig) -> bool:
    """Returns whether fine-tuning moves anything, weights or statistics."""
    blocks = config.blocks_of(backbone)
    return bool(blocks.names) or _adapts(backbone, blocks)


def stored_tap(backbone: Backbone, config: TableConfig) -> str | None:
    """Returns the block whose outputs, computed once a patch, fine-tuning begins with; None where it needs the patches.

    It does where they are augmented, where frozen batch normalisation looks at the mini-batch, where the network's
    first block trains, and where `--no-cache-frozen` says so.
    """
    blocks = config.blocks_of(backbone)
    if not anything_moves(backbone, config):
        return backbone.bottleneck
    looks = blocks.frozen_bn != "inference" and backbone.statistics
    if not config.optim.cache_frozen or looks or config.optim.augmentation != "none":
        return None
    trained = blocks.within(backbone.trunk)
    return backbone.before(trained[0]) if trained else backbone.bottleneck


def _adapts(backbone: Backbone, blocks: TrainableBlocks) -> bool:
    """Whether running statistics move although their layers are frozen."""
    return blocks.frozen_bn == "keras2017" and bool(backbone.statistics)


def _explained(study: Study, learnt: Weights, predicted: np.ndarray) -> tuple[Picture, ...]:
    """A test patch of each scan that the paper's Fig. 3 shows, or of the first classes; and where the network looks
    for its own scan in it."""
    patches, scans = study.manifest.split("test"), study.manifest.labels("test")
    shown = range(MOST_SHOWN) if classes_of(study.data).word == "class" else SHOWN
    places = [int(np.argmax(scans == scan)) for scan in shown if (scans == scan).any()]
    if not places or not distributed.is_first():
        return ()
    classifier = Classifier(learnt.backbone, learnt.backbone.trunk, study.manifest.num_scans)
    images = study.test[places]
    size = images.shape[1]
    layer = default_layer(learnt.backbone, size)
    maps = grad_cam(classifier, learnt.variables, images, classes=scans[places], layer=layer)
    cells = spatial(learnt.backbone, size)[layer]
    pictures = []
    for place, image, heat, guess in zip(places, images, maps.heat, predicted[places].tolist()):
        patch = patches[place]
        about = {"patch_id": patch.patch_id, "scan": patch.scan, "predicted": guess}
        pictures.append(Picture(f"scan-{patch.scan}", image, {**about, "kind": "patch"}))
        about |= {"kind": "grad-cam", "layer": layer, "cells": list(cells), "evidence": bool(heat.any())}
        pictures.append(Picture(f"scan-{patch.scan}-gradcam", overlay(image, heat), about))
    return tuple(pictures)
