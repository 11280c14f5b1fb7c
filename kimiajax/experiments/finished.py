"""A finished row of a run: its entry in the results, what it learnt, and the weights that it was learnt with."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from kimiajax.errors import UserError
from kimiajax.experiments.artifacts import digest_of_learnt, load_learnt
from kimiajax.experiments.config import setting_of
from kimiajax.features.svm import LinearSVM
from kimiajax.io.lineage import identity_of
from kimiajax.models.backbone import Backbone
from kimiajax.models.checkpoint import Weights
from kimiajax.models.conv_autotune import choose_way
from kimiajax.models.registry import BACKBONES
from kimiajax.runs.layout import RunFolder
from kimiajax.runs.reader import read_results
from kimiajax.runtime.progress import Download, Silent
from kimiajax.weights.load import load_weights

AGAIN = "the same `kimiajax table` computes it again"


class FinishedRow(NamedTuple):
    """A finished row.

    Attributes:
        path: RUN/ROW.
        results: the content of `results.json`.
        learnt: a network with its head, or an SVM; None of a row that learns nothing.
        weights: those that its features come from, where they lie elsewhere now.
        cache: a folder for what serves again.
        progress: shows what goes on.
    """

    path: Path
    results: dict[str, Any]
    learnt: Weights | LinearSVM | None
    weights: str | Path | None
    cache: Path | None
    progress: Silent

    @property
    def num_scans(self) -> int:
        return self.results["data"]["scans"]

    @property
    def config(self) -> dict[str, Any]:
        return self.results["config"]

    @property
    def network(self) -> Weights:
        assert isinstance(self.learnt, Weights)
        return self.learnt

    @property
    def svm(self) -> LinearSVM:
        assert isinstance(self.learnt, LinearSVM)
        return self.learnt

    def weights_of(self, backbone: Backbone) -> Weights:
        """Returns the weights that the row's features were computed with, by their digest, convolving as then."""
        config, needed = self.config, self.results["weights"][backbone.name]
        blocks = self.results["blocks"].get(backbone.name, backbone.up_to(backbone.features))  # as far as the run did
        source = setting_of(backbone.name, config["weights"], "imagenet") if self.weights is None else self.weights
        if source == "calibrated":
            source = RunFolder(self.path.parent).weights(backbone.name)
        file = f" (SHA-256 {needed['source_sha256']})" if needed.get("source_sha256") else ""
        told = (
            f"{self.path} needs the {backbone.name} weights that it was learnt with, from {needed['source']}{file}, "
            f"whose arrays have the digest {needed['digest'][:12]}; give them with --weights"
        )
        try:
            loaded = load_weights(
                backbone.name,
                source,
                blocks=blocks,
                image_size=config["image_size"],
                seed=config["seed"],
                cache=self.cache,
                progress=functools.partial(Download, self.progress),
            )
        except UserError as error:
            raise UserError(f"{error}; {told}") from error
        if identity_of(loaded.lineage) != identity_of(needed):
            raise UserError(f"{source}: holds other weights, of digest {identity_of(loaded.lineage, 12)}; {told}")
        return self.convolving(loaded)

    def convolving(self, loaded: Weights) -> Weights:
        """Returns weights whose network convolves as it did in the run, if it can here."""
        network, config = loaded.backbone.name, self.config
        before = self.results["conv"].get(network, {"way": "plain"})["way"]
        asked = "plain" if before == "plain" else "auto"
        options = {"precision": config["precision"], "cache": self.cache, "before": before}
        choice = choose_way(asked, BACKBONES[network], config["image_size"], config["batch_size"], **options)
        if choice.way != before:
            self.progress.say(
                f"{network}: {choice.way} convolutions, where the run had {before} ones ({choice.reason})"
            )
        return replace(loaded, conv=choice.way)


def read_finished(
    path: Path, known: set[str], learns: set[str], weights: str | Path | None, cache: Path | None, progress: Silent
) -> FinishedRow:
    """Reads a finished row, and checks that what it learnt is what its results speak of.

    Args:
        path: RUN/ROW.
        known: the rows that there are.
        learns: those of them that learn something.
        weights, cache, progress: as of `FinishedRow`.

    Raises:
        UserError: no such row, one that failed, or files that are missing, damaged or changed since.
    """
    folder, name = RunFolder(path.parent), path.name
    if RunFolder(path).results.exists():
        rows = [row["name"] for row in read_results(path)["rows"]]
        raise UserError(f"{path}: is a run; give one of its rows, as {path / rows[0] if rows else path / 'ROW'}")
    results = read_results(folder.path)
    if "runs" in results:
        raise UserError(
            f"{folder.path}: holds the runs of {len(results['runs'])} seeds; give a row of one, as "
            f"{folder.path / results['runs'][0] / name}"
        )
    entries = {row["name"]: row for row in results["rows"]}
    if name not in entries or name not in known:
        raise UserError(f"{folder.path}: has no finished row {name!r}; it has {', '.join(entries) or 'none yet'}")
    if entries[name]["failure"]:
        raise UserError(f"{path}: cannot be relied on, since it failed: {entries[name]['failure']}")
    learnt = _learnt(folder, entries[name]) if name in learns else None
    return FinishedRow(path, results, learnt, weights, cache, progress)


def _learnt(folder: RunFolder, entry: dict[str, Any]) -> Weights | LinearSVM:
    path = folder.artifact(entry["name"])
    try:
        learnt = load_learnt(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing; {AGAIN}") from error
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes Orbax raise
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); {AGAIN}") from error
    if digest_of_learnt(learnt) != entry["learnt_sha256"]:
        raise UserError(f"{path}: was changed since {folder.results} was written; {AGAIN}")
    return learnt if isinstance(learnt, Weights) else LinearSVM(**learnt)
