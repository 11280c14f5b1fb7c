"""Rows that train no network: a linear SVM on features, one on trivial features, and the nearest training patch."""

from abc import abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np

from kimiajax.errors import UserError
from kimiajax.experiments.approach import Approach, Family, Features, Outcome, Predictor
from kimiajax.experiments.config import TableConfig
from kimiajax.experiments.finished import FinishedRow
from kimiajax.experiments.study import Study
from kimiajax.features import retrieval
from kimiajax.features.baselines import features_of, fit_standardised
from kimiajax.features.export import outputs_of
from kimiajax.features.svm import LinearSVM, fit_linear_svm
from kimiajax.runs.pictures import Picture
from kimiajax.runs.predictions import Kind
from kimiajax.runtime import distributed
from kimiajax.shapes import Int

NEAREST, QUERIES_SHOWN, NEIGHBOURS_SHOWN = 10, 4, 5


@dataclass(frozen=True)
class FeatureRow(Approach):
    """A row that reads the network's features, or another block's.

    Attributes:
        at: the block; empty for the paper's features.
        flat: whether a block's output is read in one row, and not as its mean over height and width.
    """

    at: str = ""
    flat: bool = False

    @property
    def block(self) -> str:
        return f"{self.at}.{'flat' if self.flat else 'mean'}" if self.at else self.backbone.features

    def taps(self, config: TableConfig) -> set[str]:
        return {self.block}

    def read(self, features: Features) -> tuple[np.ndarray, np.ndarray]:
        """Returns the features of both splits, [n d] and [t d]."""
        return features.train[self.block], features.test[self.block]

    @property
    def against(self) -> str | None:
        return f"fe_{self.network}" if self.at else None

    @property
    def source(self) -> str:
        """The features that it reads, as names of rows have it: NETWORK, NETWORK@BLOCK or NETWORK@BLOCK.flat."""
        return f"{self.network}@{self.at}{'.flat' * self.flat}" if self.at else self.network

    @abstractmethod
    def named(self) -> str:
        """Returns the name of such a row by its source."""

    def of_block(self, at: str, flat: bool = False) -> "FeatureRow":
        """Returns the same row on another block's output."""
        title = f"{self.title} {at}{', flat' * flat}"
        row = replace(self, title=title, family="blocks", at=at, flat=flat)
        return replace(row, name=row.named())

    def without_top(self) -> "FeatureRow | None":
        return None if self.at else self.of_block(self.backbone.bottleneck)


@dataclass(frozen=True)
class FeatureSVM(FeatureRow):
    """A linear SVM on the network's features."""

    scheme: ClassVar[str] = "features"
    reads_weights: ClassVar[bool] = True
    scores: ClassVar[Kind | None] = "share of votes"

    def named(self) -> str:
        return f"fe_{self.source}"

    def fit(self, study: Study, features: Features, prepared: None) -> Outcome:
        train, test = self.read(features)
        study.progress.say(f"{self.name}: linear SVM on {train.shape[1]:,} features of {len(train):,} patches")
        svm = fit_linear_svm(train, study.labels, study.config.optim.svm_c)
        return Outcome(svm.predict(test), asdict(svm), {})

    def predictor(self, finished: FinishedRow) -> Predictor:
        svm, loaded = finished.svm, finished.weights_of(self.backbone)
        tap, precision = self.block, finished.config["precision"]

        def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            outputs = outputs_of(loaded, tap, images, precision, finished.cache, finished.progress, self.name)
            return _counted(svm, np.concatenate([svm.votes(some) for some in outputs]), finished.num_scans)

        return predict


@dataclass(frozen=True)
class Baseline(Approach):
    """The same SVM on features that know nothing of tissue."""

    family: Family = "floor"
    scheme: ClassVar[str] = "floor"
    scores: ClassVar[Kind | None] = "share of votes"

    def fit(self, study: Study, features: None, prepared: None) -> Outcome:
        study.progress.say(f"{self.name}: linear SVM on {self.title}")
        train, test = (
            features_of(self.name, images, study.config.data.background) for images in (study.train, study.test)
        )
        try:
            svm = fit_standardised(train, study.labels, study.config.optim.svm_c)
        except UserError as error:
            return Outcome(None, None, {}, failure=str(error))
        return Outcome(svm.predict(test), asdict(svm), {})

    def predictor(self, finished: FinishedRow) -> Predictor:
        svm, background = finished.svm, finished.config["background"]
        return lambda images: _counted(svm, svm.votes(features_of(self.name, images, background)), finished.num_scans)


@dataclass(frozen=True)
class Retrieval(FeatureRow):
    """The scan of the training patch whose features are nearest to a test patch's.

    Attributes:
        distance: a key of `kimiajax.features.retrieval`: euclidean, cosine, barcode.
    """

    family: Family = "retrieval"
    distance: str = "euclidean"

    @property
    def scheme(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  # one of each distance
        return self.distance

    def named(self) -> str:
        return f"nn_{self.source}_{self.distance}"

    def fit(self, study: Study, features: Features, prepared: None) -> Outcome:
        train, test = self.read(features)
        study.progress.say(f"{self.name}: {len(test):,} queries among {len(train):,} patches")
        scans = study.manifest.labels("test")
        try:
            found = retrieval.retrieve(train, study.labels, test, scans, self.distance, min(NEAREST, len(train)))
        except UserError as error:  # a zero vector has no cosine
            return Outcome(None, None, {}, failure=str(error))
        about = {
            "distance": self.distance,
            "features": self.block,
            "gallery": len(train),
            "recall_at": {str(k): share for k, share in found.recall_at.items()},
            "queries_per_second": found.queries_per_second,
        }
        pictures = () if self.at else _neighbours(study, found)
        return Outcome(found.predicted, None, {}, retrieval=about, pictures=pictures)

    def predictor(self, finished: FinishedRow) -> Predictor:
        raise UserError(
            f"{finished.path}: {self.title} learns nothing, it looks for the nearest training patch; use "
            f"fe_{self.source}, or `kimiajax features {self.source}` and a search of your own"
        )


def _counted(svm: LinearSVM, votes: Int[np.ndarray, "n c"], num_scans: int) -> tuple[np.ndarray, np.ndarray]:
    """The scan with most votes, and each scan's share of them; those that had no training patch have none."""
    scores = np.zeros((len(votes), num_scans))
    scores[:, svm.classes] = votes / votes.sum(axis=1, keepdims=True)
    return svm.classes[votes.argmax(axis=1)], scores


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
