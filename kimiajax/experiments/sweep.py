"""Curves around a table: training patches, augmentation, trained blocks, each varied through the table's own settings.

Every place that a curve passes is a run of `kimiajax table` in a folder of its own, of the rows that differ there: an
SVM on features knows nothing of augmentation, so one run serves that whole axis. Patches, features and heads come from
the cache that all runs share.
"""

import contextlib
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kimiajax.checks import kind_of
from kimiajax.errors import UserError
from kimiajax.evaluation import statistics
from kimiajax.evaluation.compare import check_same_test
from kimiajax.evaluation.stored import read_run
from kimiajax.experiments.approach import Approach
from kimiajax.experiments.runner import run_table
from kimiajax.experiments.selection import Selection, rows_of, select
from kimiajax.experiments.study import draw_scans
from kimiajax.experiments.sweep_config import AXES, SweepConfig
from kimiajax.io.cache import default_cache
from kimiajax.io.files import write_text
from kimiajax.io.json_records import sealed
from kimiajax.io.locks import only_writer
from kimiajax.runs.reader import StoredRun, read_results
from kimiajax.runs.sweep_file import SCHEMA_VERSION, SWEEP, TITLES
from kimiajax.runs.warnings import SCORES, headline, warnings_of
from kimiajax.runtime import distributed
from kimiajax.runtime.progress import Silent
from kimiajax.runtime.shell import standard_settings
from kimiajax.runtime.signals import Interruption
from kimiajax.training.augment import AUGMENTATIONS
from kimiajax.training.freezing import last_blocks, weighted_blocks


@dataclass(frozen=True)
class Place:
    """The settings that a sweep varies, at one of its places."""

    patches: int | Literal["all"]
    augmentation: str
    blocks: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the folder of its run."""
        blocks = re.sub(r"[^a-z0-9_=,.]", "+", " ".join(self.blocks))
        if len(blocks) > 80:  # a file system's names have a length
            blocks = f"{blocks[:60]}+{hashlib.sha256(' '.join(self.blocks).encode()).hexdigest()[:12]}"
        return f"patches-{self.patches}_augmentation-{self.augmentation}_blocks-{blocks}"

    @property
    def run(self) -> str:
        """That folder, in the sweep's."""
        return f"places/{self.name}"

    def settings(self) -> dict[str, Any]:
        """As fields of a table's settings."""
        return dict(zip(AXES.values(), (self.patches, self.augmentation, self.blocks)))


@standard_settings()
def run_sweep(
    preset: str | Any,
    config: SweepConfig | Any,
    progress: Silent | None = None,
    interruption: Interruption | None = None,
) -> dict[str, Any]:
    """Runs the table at every place of a sweep, and draws the curves together.

    Places that are finished stand, and an unfinished one goes on, as of `run_table`; so axes can be made longer later.

    Args:
        preset: its name, for the record and the default folder.
        config: all settings.
        progress, interruption: as of `run_table`.

    Returns:
        The content of `sweep.json`, which is written anew after each place.

    Raises:
        UserError: settings, scans or weights that cannot serve.
        Interrupted: as asked; the same call goes on from there.
    """
    kind_of("preset", preset, str, "give a name for the record")
    kind_of("config", config, SweepConfig, "take one of kimiajax.SWEEPS, or SweepConfig()")
    progress, interruption = progress or Silent(), interruption or Interruption()
    selection = select(rows_of(config), config, config.data.cache or default_cache(), progress)
    rows = selection.rows
    config = config.replace(rows=tuple(row.name for row in rows))
    plan = plan_of(config, rows)
    nowhere = [count for count in config.sweep.depths if not any(count <= _deepest(row) for row in rows)]
    if nowhere and any(_deepest(row) >= 0 for row in rows):
        raise UserError(f"--depths {nowhere[0]}: no network of these rows has so many blocks")
    out = config.folder(preset)
    first = distributed.is_first()
    loud = progress if first else Silent()
    with only_writer(out, say=progress.say) if first else contextlib.nullcontext():
        if first and config.output.fresh:  # once: what is computed anew is not computed anew after an interruption
            (out / SWEEP).unlink(missing_ok=True)
            for earlier in (out / "places").glob("patches-*_augmentation-*_blocks-*"):
                shutil.rmtree(earlier)
        given = config.replace(fresh=False)
        if config.data.given() is None and config.data.draw_synthetic:
            given = given.replace(scans=distributed.of_first(partial(draw_scans, out, config, loud)))
        trained = sum(row.trains for here in plan.values() for row in here)
        rows_in_all = sum(map(len, plan.values()))
        loud.say(f"{len(plan)} places, {rows_in_all} rows of which {trained} train, {config.output.seeds} seeds each")
        runs: dict[Place, StoredRun] = {}
        results: dict[str, Any] = {}
        for number, (place, here) in enumerate(plan.items(), start=1):
            loud.say(f"place {number} of {len(plan)}: {place.name}")
            folder = out / place.run
            own = given.centre(**place.settings(), rows=tuple(row.name for row in here), out=folder)
            before = _seal_in(folder)
            run_table(preset, own, progress, interruption)
            if first:
                runs[place] = read_run(folder)
                if runs[place].results["seal"] != before or number == len(plan):  # something new to be drawn
                    results = sealed(_results(preset, config, selection, plan, runs))
                    write_text(out / SWEEP, json.dumps(results, indent=2, allow_nan=False) + "\n")
        return distributed.of_first(lambda: results)


def _seal_in(folder: Path) -> str | None:
    """Of the results that a folder holds, if it holds any that can be read."""
    try:
        return read_results(folder).get("seal")
    except UserError:  # none, or what `run_table` will refuse
        return None


def plan_of(config: SweepConfig, rows: Sequence[Approach]) -> dict[Place, list[Approach]]:
    """The places of a sweep, its centre first, and the rows to compute at each: none of them twice."""
    centre = centre_of(config)
    plan: dict[Place, list[Approach]] = {centre: list(rows)}
    for place, row in itertools.product(_places(config), rows):
        own = place_of(row, place, centre, config)
        if own is not None and row not in (here := plan.setdefault(own, [])):
            here.append(row)
    return {place: here for place, here in plan.items() if here}


def centre_of(config: SweepConfig) -> Place:
    """The table's own settings."""
    return Place(config.data.patches_per_scan, config.optim.augmentation, config.model.blocks)


def place_of(row: Approach, place: Place, centre: Place, config: SweepConfig) -> Place | None:
    """Where a row is computed so as to stand at a place; None where its network has not so many blocks."""
    kept = {setting: value for setting, value in place.settings().items() if setting in row.varies_with}
    place = Place(*{**centre.settings(), **kept}.values())
    if place.blocks == centre.blocks:
        return place
    count = _count_of(place)
    if count > _deepest(row):
        return None
    return replace(place, blocks=centre.blocks) if count == _depth_of_centre(row, config) else place


def _deepest(row: Approach) -> int:
    """How many blocks of a row's network can train; -1 of rows that are not fine-tuned."""
    return len(weighted_blocks(row.backbone)) if "blocks" in row.varies_with else -1


def _count_of(place: Place) -> int:
    """How many last blocks train at a place that is not the centre's."""
    return int(place.blocks[0].removeprefix("last"))


def _depth_of_centre(row: Approach, config: SweepConfig) -> int | None:
    """How many last blocks train by the table's own settings, where that says it all."""
    backbone = row.backbone
    blocks = config.blocks_of(backbone)
    depths = {frozenset(last_blocks(backbone, n)): n for n in range(len(weighted_blocks(backbone)) + 1)}
    plain = blocks.frozen_bn == (config.model.frozen_bn or "inference")
    return depths.get(frozenset(blocks.names)) if plain else None


def _places(config: SweepConfig) -> list[Place]:
    lines = [_line(axis, config) for axis in AXES]
    if config.sweep.crossed:
        return [Place(one.patches, other.augmentation, third.blocks) for one, other, third in itertools.product(*lines)]
    return [*itertools.chain(*lines)]


def _line(axis: str, config: SweepConfig) -> list[Place]:
    """The places of one axis through the centre, which is one of them, in the order of their values."""
    centre = centre_of(config)
    if axis == "patches":
        values = {*config.sweep.patches, centre.patches}
        ordered = sorted(values, key=lambda value: np.inf if value == "all" else value)
        return [replace(centre, patches=value) for value in ordered]
    if axis == "augmentations":
        known = [name for name in AUGMENTATIONS if name in (*config.sweep.augmentations, centre.augmentation)]
        return [replace(centre, augmentation=name) for name in known]
    return [*(replace(centre, blocks=(f"last{count}",)) for count in sorted(config.sweep.depths)), centre]


def _results(
    preset: str,
    config: SweepConfig,
    selection: Selection,
    plan: dict[Place, list[Approach]],
    runs: dict[Place, StoredRun],
) -> dict[str, Any]:
    centre = runs[centre_of(config)]
    for run in runs.values():
        check_same_test(centre, run)
    notes = [*selection.notes, *(note for run in runs.values() for note in run.results["notes"])]
    return {
        "schema_version": SCHEMA_VERSION,
        "complete": len(runs) == len(plan),
        "preset": preset,
        "config": config.as_dict(),
        "seeds": [seed["config"]["seed"] for seed in centre.seeds],
        "environment": centre.results["environment"],
        "headline": headline({**centre.results, "data": centre.seeds[0]["data"]}),
        "warnings": list(dict.fromkeys(warning for run in runs.values() for warning in warnings_of(run.seeds))),
        "notes": list(dict.fromkeys(notes)),
        "tested": centre.manifest.counts("test"),
        "word": centre.classes.word,
        "labels": list(centre.classes.labels),
        "guess": 1 / centre.manifest.num_scans,
        "places": [
            {
                "run": place.run,
                **place.settings(),
                "rows": [_scores(run, row) for row in run.results["rows"]],
            }
            for place, run in runs.items()
        ],
        "axes": [
            axis for name in AXES if getattr(config.sweep, name) and (axis := _axis(name, config, selection.rows, runs))
        ],
    }


def _axis(
    name: str, config: SweepConfig, rows: Sequence[Approach], runs: dict[Place, StoredRun]
) -> dict[str, Any] | None:
    """One axis through the centre: of every row that it concerns the scores at each value, and what sets them apart
    from the row's own at the centre, corrected for all of the axis."""
    centre, curves = centre_of(config), []
    correct: dict[tuple[str, str], np.ndarray] = {}
    for row in rows:
        if AXES[name] not in row.varies_with:
            continue
        points: dict[Any, tuple[Place, dict[str, Any]]] = {}
        for place in _line(name, config):
            own = place_of(row, place, centre, config)
            if own in runs:
                value = _value(name, own if own == centre else place, row, config)
                points[value] = own, _scores(runs[own], runs[own].rows[row.name])
        for value, (own, _) in points.items():
            if row.name in runs[own].predicted:
                correct[row.name, str(value)] = runs[own].correct(row.name)
        curves.append((row, dict(sorted(points.items(), key=lambda each: _rank(name, each[0])))))
    if not any(points for _, points in curves):
        return None
    scans = runs[centre].scans
    keyed = {" ".join(key): each for key, each in correct.items()}
    intervals = statistics.intervals_of_rows(scans, keyed)
    at_centre = {row.name: str(_value(name, centre, row, config)) for row, _ in curves}
    pairs = [
        (f"{row} {value}", f"{row} {at_centre[row]}")
        for row, value in correct
        if value != at_centre[row] and (row, at_centre[row]) in correct
    ]
    against = {pair.first: pair for pair in statistics.compare_pairs(scans, keyed, pairs)}
    return {
        "name": name,
        "title": TITLES[name],
        "curves": [
            {
                "row": row.name,
                "approach": row.title,
                "centre": _value(name, centre, row, config),
                "points": [
                    {
                        "value": value,
                        "run": own.run,
                        **scores,
                        "intervals": intervals.get(key := f"{row.name} {value}"),
                        "against_centre": against[key]._asdict() if key in against else None,
                    }
                    for value, (own, scores) in points.items()
                ],
            }
            for row, points in curves
        ],
    }


def _value(axis: str, place: Place, row: Approach, config: SweepConfig) -> int | str:
    """Where a row's point lies on an axis."""
    if axis == "patches":
        return place.patches
    if axis == "augmentations":
        return place.augmentation
    if place.blocks != config.model.blocks:
        return _count_of(place)
    depth = _depth_of_centre(row, config)
    return " ".join(config.model.blocks) if depth is None else depth


def _rank(axis: str, value: int | str) -> tuple[float, str]:
    """Numbers in their order, then names; augmentations from none on."""
    if axis == "augmentations":
        return float(list(AUGMENTATIONS).index(str(value))), ""
    return (float(value), "") if isinstance(value, int) else (float("inf"), value)


def _scores(run: StoredRun, row: dict[str, Any]) -> dict[str, Any]:
    """A row's scores at one place: means, and of each seed; and on how many patches it trained."""
    data = [seed["data"]["train"] for seed in run.seeds]
    by_seed = {score: row.get(f"{score}_by_seed", [row[score]]) for score in SCORES}
    return {
        "name": row["name"],
        "family": row["family"],
        "train": float(np.mean(data)) / run.manifest.num_scans,
        **{score: row[score] for score in SCORES},
        "by_seed": by_seed,
        "seconds": row["seconds"],
        "failure": row["failure"],
    }
