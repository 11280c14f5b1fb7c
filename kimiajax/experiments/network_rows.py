"""Rows that train a network: what all of them share, and the one that trains every block from random parameters."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from kimiajax.checks import check_finite
from kimiajax.experiments.approach import Approach, Outcome, Predictor
from kimiajax.experiments.finished import FinishedRow
from kimiajax.experiments.study import Phase, Study
from kimiajax.features.export import outputs_of
from kimiajax.models.backbone import Backbone, Variables, of_blocks
from kimiajax.models.checkpoint import Weights, fine_tuned
from kimiajax.models.head import Classifier
from kimiajax.runs.classes import is_kimia
from kimiajax.runs.predictions import Kind
from kimiajax.runtime.precision import Precision, compute_dtype, products_in
from kimiajax.training.freezing import TrainableBlocks, blocks_of
from kimiajax.training.optimizer import Optimization
from kimiajax.training.steps import Training
from kimiajax.weights.load import load_weights

OF_CNN1 = (
    " Beside it stands CNN1, which the paper quotes from another study; its printed factors multiply to 42.07, not "
    "41.80."
)


@dataclass(frozen=True)
class NetworkRow(Approach):
    """A row that leaves a network with its head."""

    trains: ClassVar[bool] = True
    scores: ClassVar[Kind | None] = "softmax"

    @property
    def block(self) -> str | None:
        return self.backbone.bottleneck

    def artifact(
        self, study: Study, start: Weights, variables: Variables, trained: Sequence[str], failure: str | None
    ) -> Weights:
        """Returns the whole network as it is after training, up to its bottleneck and with its head."""
        trunk = of_blocks(start.variables, start.backbone.trunk)
        whole = {kind: {**part, **variables.get(kind, {})} for kind, part in trunk.items()}
        run = {
            "row": self.name,
            "seed": study.config.data.seed,
            "scans": study.data["title"],
            **{key: study.data[key] for key in ("synthetic", "unverified", "manifest_sha256", "audit")},
            "failure": failure,
        }
        names = tuple(dict.fromkeys(trained))
        return fine_tuned(start, jax.tree.map(np.asarray, whole), names, "kimiajax table", run)

    def predictor(self, finished: FinishedRow) -> Predictor:
        learnt = finished.convolving(finished.network)
        head = Classifier(learnt.backbone, (), finished.num_scans)
        variables = {"params": {"head": learnt.variables["params"]["head"]}}
        precision, bottleneck = finished.config["precision"], learnt.backbone.bottleneck

        def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            outputs = outputs_of(learnt, bottleneck, images, precision, finished.cache, finished.progress, self.name)
            logits = np.concatenate([np.asarray(_logits(head, precision, variables, some)) for some in outputs])
            check_finite("scores", logits)
            shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
            return logits.argmax(axis=1), shares / shares.sum(axis=1, keepdims=True)

        return predict


@dataclass(frozen=True)
class FromScratch(NetworkRow):
    """Every block and the head of a network from random parameters, by Adam."""

    scheme: ClassVar[str] = "scratch"

    def fit(self, study: Study, features: None, prepared: None) -> Outcome:
        optim, backbone = study.config.optim, self.backbone
        classifier = Classifier(backbone, backbone.trunk, study.manifest.num_scans)
        blocks = blocks_of(backbone, ("all",))
        optimization = Optimization("adam", optim.cnn_learning_rate)
        training = training_of(study, classifier, blocks, optimization, optim.epochs)
        note = (
            f"{self.title}: this project's own network, four strided convolutions with batch normalisation, trained by "
            f"Adam at {optim.cnn_learning_rate:g} for {optim.epochs} epochs on the same training patches."
            f"{OF_CNN1 if is_kimia(study.data) else ''}"
        )
        seed, size = study.config.data.seed, study.config.data.image_size
        start = load_weights(backbone, "random", blocks=classifier.blocks, image_size=size, seed=seed)
        shapes = backbone.tap_shapes(start.variables, size, classifier.blocks)
        head = classifier.init_head(jax.random.key(seed), shapes[backbone.bottleneck])
        phase = Phase(self.name, "training", optim.epochs, self.name)
        variables, history, failure = study.fit(training, with_head(start.variables, head), study.train, phase)
        predicted = None if failure else study.predict(self.name, classifier, variables, study.test)
        learnt = self.artifact(study, start, variables, blocks.names if history else (), failure)
        about = described(backbone, blocks, "none", None, optimization)
        return Outcome(predicted, learnt, {"training": history}, (note,), failure, about)


def training_of(
    study: Study, classifier: Classifier, blocks: TrainableBlocks, optimization: Optimization, epochs: int, **own: Any
) -> Training:
    """Returns what the settings say of any training, on the study's patches, and what one phase has of its own."""
    config, count = study.config, len(study.train)
    local = config.model.bn_statistics == "local"
    optimizer, learning_rate = optimization.over(epochs, -(-count // min(config.optim.batch_size, count)))
    return Training(
        classifier,
        optimizer,
        blocks,
        label_smoothing=optimization.label_smoothing,
        statistic_groups=len(study.engine.devices) if local and classifier.blocks else 1,
        precision=config.model.precision,
        learning_rate=learning_rate,
        **own,
    )


def described(
    backbone: Backbone, blocks: TrainableBlocks, augmentation: str, stored: str | None, optimization: Optimization
) -> dict[str, Any]:
    """Returns what trained and how, as JSON takes it."""
    return {
        "blocks": list(blocks.names),
        **modes_of(backbone, blocks),
        "augmentation": augmentation,
        "inputs": "patches" if stored is None else f"stored outputs of {stored}",
        "optimization": asdict(optimization),
    }


def modes_of(backbone: Backbone, blocks: TrainableBlocks) -> dict[str, str | None]:
    """Returns the modes of batch normalisation; None where the network has none that is frozen, or trains."""
    return {
        "frozen_bn": blocks.frozen_bn if blocks.frozen_normalises(backbone) else None,
        "trained_bn": blocks.trained_bn if blocks.trained_normalises(backbone) else None,
    }


def with_head(variables: Variables, head: Variables) -> Variables:
    """Returns a network's variables with a head among them."""
    return {**variables, "params": {**variables.get("params", {}), "head": head}}


@functools.partial(jax.jit, static_argnames=("head", "precision"))
def _logits(head: Classifier, precision: Precision, variables: Any, x: Any) -> jax.Array:
    with products_in(precision):
        logits, _ = head.apply(variables, x, dtype=compute_dtype(precision))
    return logits
