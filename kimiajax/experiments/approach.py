"""What one row of the table is, and what it works on."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kimiajax.data.manifest import Manifest
from kimiajax.experiments.config import TableConfig
from kimiajax.io.pytrees import Tree
from kimiajax.models.backbone import Backbone, Classifier, Variables
from kimiajax.models.checkpoint import Weights
from kimiajax.runs.pictures import Picture
from kimiajax.runtime.progress import Silent
from kimiajax.training.checkpoints import Checkpoints
from kimiajax.training.engines import Engine
from kimiajax.training.loop import Epoch, NonFiniteError, Record, fit, predict
from kimiajax.training.steps import Training


@dataclass(frozen=True)
class Study:
    """What the rows of one seed share: settings, weights, and the patches, at the networks' size.

    Attributes:
        record: row, phase -> what takes the epochs of that phase as they end.
        checkpoints: row, phase -> where its training is saved, and goes on from.
    """

    config: TableConfig
    data: dict[str, Any]
    manifest: Manifest
    train: np.ndarray
    test: np.ndarray
    weights: dict[str, Weights]
    engine: Engine
    progress: Silent
    record: Callable[[str, str], Record]
    checkpoints: Callable[[str, str], Checkpoints]

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The scan of each training patch."""
        return self.manifest.labels("train")

    def fit(
        self,
        training: Training,
        variables: Variables,
        inputs: np.ndarray,
        row: str,
        phase: str,
        *,
        what: str,
        epochs: int,
    ) -> tuple[Variables, list[Epoch], str | None]:
        """`fit` with the study's labels, settings and checkpoints; and why it stopped, where it did."""
        try:
            trained, history = fit(
                training,
                variables,
                inputs,
                self.labels,
                epochs=epochs,
                batch_size=self.config.batch_size,
                seed=self.config.seed,
                engine=self.engine,
                feed=self.config.feed,
                checkpoints=self.checkpoints(row, phase),
                progress=self.progress,
                description=f"{what}, seed {self.config.seed}",
                record=self.record(row, phase),
            )
        except NonFiniteError as error:
            return error.variables, error.history, str(error)
        return trained, history, None

    def predict(self, row: "Row", classifier: Classifier, variables: Variables, inputs: np.ndarray) -> np.ndarray:
        """`predict` with the study's batch size, precision and engine."""
        return predict(
            classifier,
            variables,
            inputs,
            batch_size=self.config.batch_size,
            precision=self.config.precision,
            engine=self.engine,
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
    """What an approach gives.

    Attributes:
        predicted: the scan of each test patch; None where training stopped before its end.
        learnt: a network's weights with a lineage, the SVM's arrays, or nothing.
        history: the epochs of each phase.
        notes: what a reader must know.
        failure: why training stopped; what was learnt is then as of the last good epoch.
        training: what trained and how, as JSON takes it.
        retrieval: what was found of the nearest patches beyond the first, as JSON takes it.
        pictures: for the report.
    """

    predicted: np.ndarray | None
    learnt: Weights | Tree | None
    history: dict[str, list[Epoch]]
    notes: tuple[str, ...] = ()
    failure: str | None = None
    training: dict[str, Any] | None = None
    retrieval: dict[str, Any] | None = None
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of Table 1, or of those that stand beside it.

    Attributes:
        name: as in `--rows`, and the key of the paper's figures.
        approach: how the table prints it.
        scheme: where its weights come from and what is done with them.
        network: a key of `BACKBONES`; empty where it has none.
        run: the approach itself, for one seed: of its study, its features and what `together` gave for it.
        taps: the blocks whose outputs it reads, if it reads any.
        together: what is done for all seeds at once before that, if anything is.
        family: the rows that it is compared with.
    """

    name: str
    approach: str
    scheme: str
    network: str
    run: Callable[..., Outcome]  # of row, study, features and that
    taps: Callable[[Backbone, TableConfig], set[str]] | None = None
    together: Callable[..., list[Any]] | None = None  # of row, studies and features
    family: Literal["table", "floor", "retrieval"] = "table"
