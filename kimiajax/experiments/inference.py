"""What a finished row of a run predicts for patches from anywhere, and where it looks."""

import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kimiajax.checks import kind_of
from kimiajax.checks import path_of as path_from
from kimiajax.data.inference_inputs import Inputs, read_inputs
from kimiajax.data.manifest import Split
from kimiajax.data.patches import Rules
from kimiajax.data.sources.image_files import IMAGES
from kimiajax.errors import UsageError, UserError, check_known
from kimiajax.experiments.approach import Approach
from kimiajax.experiments.finished import FinishedRow, read_finished
from kimiajax.experiments.table1 import all_rows
from kimiajax.features.export import check_new
from kimiajax.features.gradcam import grad_cam, overlay, path_of
from kimiajax.io.files import new_folder
from kimiajax.models.checkpoint import Weights
from kimiajax.models.head import Classifier
from kimiajax.runs.classes import Classes, classes_of
from kimiajax.runs.predictions import Applied
from kimiajax.runs.warnings import warnings_of
from kimiajax.runtime.progress import Silent
from kimiajax.runtime.shell import standard_settings
from kimiajax.text import first_few

EXPLAINED_AT_ONCE = 256  # images whose heat maps are held
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")  # in the name of a file, somewhere
LONGEST = 180  # characters of a file's name, before what stands behind it


@standard_settings()
def apply_row(
    row: str | Path | Any,
    inputs: str | Path | Sequence[str | Path] | Any,
    *,
    weights: str | Path | None = None,
    split: Split | Literal["all"] | Any = "all",
    patches_per_scan: int | Literal["all"] | Any = "all",
    pictures: str | Path | None = None,
    layer: str | Any = None,
    cache: str | Path | None = None,
    progress: Silent | None = None,
    **reading: Any,
) -> Applied:
    """What a finished row of a run predicts for patches from anywhere, computed as the run computed it.

    Args:
        row: RUN/ROW, a run's folder and the name of a row: "runs/demo/tl_vgg16", "runs/x/seed-0/tl_vgg16".
        inputs: what `read_inputs` reads, or several, one after another; patches come at the run's size, by its filter.
        weights: those that an SVM's features come from, where they are not any more where the run found them; their
            digest must be the same.
        split: of scans, only their training or test patches.
        patches_per_scan: training patches drawn from each scan, by the run's own rules.
        pictures: a new folder for each patch with a heat map over it, `NAME-gradcam.png`; of a network only.
        layer: of these; see `grad_cam`.
        cache: a folder for what serves again.
        progress: shows what goes on.
        reading: how they are read, as of `read_inputs`; patch_size and mpp are by default the run's, all else is not.

    Raises:
        UserError: no such row, one that failed or learnt nothing, files that were changed since, weights of another
            digest, the folder for pictures exists already, or patches that cannot be read or are there twice.
    """
    check_known("split", split, ("train", "test", "all"))
    if not isinstance(inputs, str | Path):
        kind_of("inputs", inputs, Sequence, "give a path, or several")
    row, cache = path_from("row", row), None if cache is None else path_from("cache", cache)
    progress, known = progress or Silent(), {each.name: each for each in all_rows()}
    finished = read_finished(
        row, set(known), {name for name, each in known.items() if each.scores}, weights, cache, progress
    )
    approach, config = known[finished.path.name], finished.config
    if pictures is not None:
        _check_explicable(finished, known, layer)
        check_new(Path(pictures), "--grad-cam")
    if weights is not None and approach.scores and not approach.reads_weights:
        raise UsageError(f"{row}: --weights is for rows of features; this one has no weights but those that it learnt")
    predict = approach.predictor(finished)
    assert approach.scores is not None  # else it has no predictor
    own = {field.name: config[field.name] for field in fields(Rules)}
    rules = Rules(**{**own, "patches_per_scan": patches_per_scan})
    with nullcontext() if pictures is None else new_folder(Path(pictures)) as aside:
        parts = _read_all(
            [inputs] if isinstance(inputs, str | Path) else inputs,
            rules,
            split,
            image_size=config["image_size"],
            filter=config["resize"],
            **{"patch_size": finished.results["data"]["patch_size"], "mpp": config["mpp"], **reading},
            cache=cache,
            track=progress.track,
            say=progress.say,
            names=finished.results["data"]["names"],
        )
        predictions = [predict(part.pixels) for part in parts]
        if aside is not None:
            _explain(finished, parts, [predicted for predicted, _ in predictions], aside, layer)
    classes = classes_of(finished.results["data"])
    scans = [known for part in parts if (known := _as_the_run_numbers(part, classes)) is not None]
    return Applied(
        tuple(finished.results["data"]["names"]),
        tuple(patch_id for part in parts for patch_id in part.ids),
        None if len(scans) < len(parts) else np.concatenate(scans),
        np.concatenate([predicted for predicted, _ in predictions]).astype(np.int32),
        np.concatenate([scores for _, scores in predictions]),
        approach.scores,
        tuple(warnings_of([finished.results])),
        classes.word,
    )


def _as_the_run_numbers(part: Inputs, classes: Classes) -> np.ndarray | None:
    """The class of each patch by the run's numbers, where classes have names; None where the run lacks one of them."""
    names = [] if part.manifest is None else part.manifest.about.get("names") or []
    if not classes.named or part.scans is None or not names or tuple(names) == classes.labels:
        return part.scans
    place = {name: number for number, name in enumerate(classes.labels)}
    if not place.keys() >= set(names):
        return None
    return np.array([place[name] for name in names], np.int32)[part.scans]


def _explain(
    finished: FinishedRow,
    parts: Sequence[Inputs],
    classes: Sequence[np.ndarray],
    out: Path,
    layer: str | None,
) -> None:
    """Writes each patch as the network sees it, with the Grad-CAM map of its class over it, as `NAME-gradcam.png`."""
    from PIL import Image

    learnt = finished.network
    classifier = Classifier(learnt.backbone, learnt.backbone.trunk, finished.num_scans)
    names = iter(file_names([each for part in parts for each in part.ids]))
    for part, labels in zip(parts, classes):
        # Of about one length, each a batch or more, so that one program serves.
        rows = np.array_split(np.arange(len(labels)), max(1, len(labels) // EXPLAINED_AT_ONCE))
        for some in finished.progress.track(rows, "Grad-CAM", len(labels), "patches", step=len(rows[0])):
            images = part.pixels[some[0] : some[-1] + 1]
            heat = grad_cam(classifier, learnt.variables, images, classes=labels[some], layer=layer).heat
            for image, each, name in zip(images, heat, names):
                Image.fromarray(overlay(image, each)).save(out / f"{name}-gradcam.png", format="PNG", optimize=True)


def file_names(ids: Sequence[str]) -> list[str]:
    """A name of a file for each id, without its ending: safe anywhere, and no two the same where case is ignored."""
    names, taken = [], set()
    for patch_id in ids:
        bare = patch_id[: -len(Path(patch_id).suffix)] if patch_id.lower().endswith(IMAGES) else patch_id
        safe = UNSAFE.sub("_", bare)[-LONGEST:].strip("._") or "patch"
        numbered = (f"{safe}-{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([safe], numbered) if name.lower() not in taken)
        taken.add(name.lower())
        names.append(name)
    return names


def _read_all(paths: Sequence[str | Path], rules: Rules, split: str, **options: Any) -> list[Inputs]:
    """The patches of several paths, each once, plain images that follow one another being one part."""
    parts = [(path, part) for path in paths for part in read_inputs(path, rules, **options)]
    unknown = [path for path, part in parts if part.split is None]
    if split != "all" and unknown:
        raise UsageError(
            f"{unknown[0]}: plain images and other slides are neither for training nor for test; leave --split out"
        )
    parts = [(path, part) for path, part in parts if split in ("all", part.split)]
    if not parts:
        raise UsageError("no images are given; name files or folders")
    places: dict[str, Path] = {}
    for path, part in parts:
        for patch_id in part.ids:
            if patch_id in places:
                raise UserError(
                    f"{path}: holds {patch_id}, as {places[patch_id]} does; give a folder above both, or one at a time"
                )
            places[patch_id] = Path(path)
    joined: list[Inputs] = []
    for plain, group in itertools.groupby((part for _, part in parts), key=lambda part: part.manifest is None):
        some = list(group)
        if plain and len(some) > 1:
            ids = tuple(patch_id for part in some for patch_id in part.ids)
            some = [Inputs(ids, None, None, np.concatenate([part.pixels for part in some]), None)]
        joined += some
    return joined


def _check_explicable(finished: FinishedRow, known: Mapping[str, Approach], layer: str | None) -> None:
    learnt = finished.learnt
    if learnt is not None and not isinstance(learnt, Weights):
        rows = [row["name"] for row in finished.results["rows"]]
        networks = [name for name in rows if name in known and known[name].trains]
        raise UserError(
            f"{finished.path}: an SVM, into which Grad-CAM cannot look; leave --grad-cam out, or choose a row that is "
            f"a network ({first_few(networks) or 'this run has none'})"
        )
    if learnt is not None:
        path_of(learnt.backbone, layer, finished.results["config"]["image_size"])
