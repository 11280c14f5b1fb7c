"""An approach: everything that one row of the table is. `table1.py` lists them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from kimiajax.errors import UserError
from kimiajax.experiments.config import TableConfig
from kimiajax.experiments.finished import FinishedRow
from kimiajax.experiments.study import Study
from kimiajax.io.pytrees import Tree
from kimiajax.models.backbone import Backbone
from kimiajax.models.checkpoint import Weights
from kimiajax.models.registry import BACKBONES
from kimiajax.runs.pictures import Picture
from kimiajax.runs.predictions import Kind
from kimiajax.shapes import UInt8
from kimiajax.training.loop import Epoch

Predictor = Callable[[UInt8[np.ndarray, "n s s"]], tuple[np.ndarray, np.ndarray]]  # scans [n], scores [n k]


Family = Literal["table", "floor", "retrieval", "blocks"]


@dataclass(frozen=True)
class Features:
    """A network's outputs on both splits, by tap, and the seconds that they took in this run."""

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """The result of a row.

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
class Approach(ABC):
    """One row of the table: what it reads, how it is computed, and what it predicts afterwards.

    Attributes:
        name: as in `--rows`, and the key of the paper's figures.
        title: as the table prints it.
        network: a key of `BACKBONES`; empty where it has none.
        family: the rows that it is compared with; those of "blocks" with their network's features alone.
        scheme: where its weights come from and what is done with them, as the table prints it.
        varies_with: the settings among those that a sweep varies that change it.
        trains: whether it trains a network, which it leaves with its head.
        reads_weights: whether its predictions need the weights again that its features came from.
        scores: what the scores of its predictor are; None where it learns nothing.
    """

    name: str
    title: str
    network: str = ""
    family: Family = "table"
    scheme: ClassVar[str]
    varies_with: ClassVar[frozenset[str]] = frozenset({"patches_per_scan"})
    trains: ClassVar[bool] = False
    reads_weights: ClassVar[bool] = False
    scores: ClassVar[Kind | None] = None

    @property
    def backbone(self) -> Backbone:
        return BACKBONES[self.network]

    @property
    def block(self) -> str | None:
        """The tap that the row classifies; None where it has no network."""
        return None

    @property
    def against(self) -> str | None:
        """The row that a reader holds it against: a network's features, the head that fine-tuning began with."""
        return None

    def check(self, config: TableConfig) -> None:
        """Raises UserError for settings that its network cannot take."""
        if self.network:
            self.backbone.check_size(config.data.image_size)

    def taps(self, config: TableConfig) -> set[str]:
        """Returns the taps that it reads."""
        return set()

    def prepare(self, studies: Sequence[Study], features: Sequence[Any]) -> Sequence[Any]:
        """Does what is done for all seeds at once, and returns what `fit` is given for each.

        Rows of one network that prepare by the same method share what it returns.
        """
        return [None] * len(studies)

    def without_top(self) -> "Approach | None":
        """Returns the row that stands for it where the weights hold no block after the bottleneck, if one does."""
        return None

    @abstractmethod
    def fit(self, study: Study, features: Any, prepared: Any) -> Outcome:
        """Computes the row for one seed, of its features and what `prepare` gave for it."""

    def notes(self, study: Study) -> list[str]:
        """Returns what a reader must know before the row is computed."""
        return []

    def predictor(self, finished: FinishedRow) -> Predictor:
        """Returns what predicts as the finished row does.

        Raises:
            UserError: it learns nothing.
        """
        raise UserError(f"{finished.path}: {self.title} learns nothing")
