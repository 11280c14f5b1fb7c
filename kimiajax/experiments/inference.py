"""What a finished row of a run predicts for patches from anywhere, and where it looks."""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from kimiajax.data.inference_inputs import Inputs, read_inputs
from kimiajax.data.manifest import Split
from kimiajax.data.patches import Rules
from kimiajax.data.sources.image_files import IMAGES
from kimiajax.errors import UsageError, UserError
from kimiajax.experiments.approach import Row
from kimiajax.experiments.artifacts import digest_of_learnt, load_learnt
from kimiajax.experiments.config import setting_of
from kimiajax.experiments.table1 import all_rows
from kimiajax.features.baselines import features_of
from kimiajax.features.export import check_new, outputs_of
from kimiajax.features.gradcam import grad_cam, overlay, path_of
from kimiajax.features.svm import LinearSVM
from kimiajax.io.files import new_folder
from kimiajax.models.backbone import Classifier
from kimiajax.models.checkpoint import Weights
from kimiajax.models.conv_autotune import choose_way
from kimiajax.models.registry import BACKBONES
from kimiajax.runs.predictions import Applied, Kind
from kimiajax.runs.reader import read_results
from kimiajax.runs.warnings import warnings_of
from kimiajax.runtime.precision import Precision, compute_dtype, products_in
from kimiajax.runtime.progress import Download, Silent
from kimiajax.shapes import Int, UInt8
from kimiajax.text import first_few
from kimiajax.weights.load import load_weights

EXPLAINED_AT_ONCE = 256  # images whose heat maps are held
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")  # in the name of a file, somewhere
LONGEST = 180  # characters of a file's name, before what stands behind it

Judge = Callable[[UInt8[np.ndarray, "n s s"]], tuple[np.ndarray, np.ndarray]]  # predicted scans [n], scores [n k]


def apply_row(
    row: str | Path,
    inputs: str | Path | Sequence[str | Path],
    *,
    weights: str | Path | None = None,
    split: Split | Literal["all"] = "all",
    patches_per_scan: int | Literal["all"] = "all",
    patch_size: int | None = None,
    mpp: float | None = None,
    pictures: str | Path | None = None,
    layer: str | None = None,
    cache: Path | None = None,
    progress: Silent | None = None,
) -> Applied:
    """What a finished row of a run predicts for patches from anywhere, computed as the run computed it.

    Args:
        row: RUN/ROW, a run's folder and the name of a row: "runs/demo/tl_vgg16", "runs/x/seed-0/tl_vgg16".
        inputs: what `read_inputs` reads, or several, one after another; patches come at the run's size, by its filter.
        weights: those that an SVM's features come from, where they are not any more where the run found them; their
            digest must be the same.
        split: of scans, only their training or test patches.
        patches_per_scan: training patches drawn from each scan, by the run's own rules.
        patch_size: side of a patch in pixels; by default the run's.
        mpp: microns per pixel at which slides are read; by default the run's.
        pictures: a new folder for each patch with a heat map over it, see `explain_row`; of a network only.
        layer: of these; see `grad_cam`.
        cache: a folder for what serves again.
        progress: shows what goes on.

    Raises:
        UserError: no such row, one that failed or learnt nothing, files that were changed since, weights of another
            digest, the folder for pictures exists already, or patches that cannot be read or are there twice.
    """
    progress, finished = progress or Silent(), _finished(Path(row))
    learnt, config = _learnt(finished), finished.results["config"]
    if pictures is not None:
        _check_explicable(finished, learnt, layer)
        check_new(Path(pictures), "--grad-cam")
    if weights is not None and finished.row.scheme != "features":
        raise UsageError(f"{row}: --weights is for rows of features; this one has no weights but those that it learnt")
    kind, judge_of = SCHEMES[finished.row.scheme]
    judge = judge_of(finished, learnt, weights, cache, progress)
    own = {field.name: config[field.name] for field in fields(Rules)}
    rules = Rules(**{**own, "patches_per_scan": patches_per_scan})
    with nullcontext() if pictures is None else new_folder(Path(pictures)) as aside:
        parts = _read_all(
            [inputs] if isinstance(inputs, str | Path) else inputs,
            rules,
            split,
            image_size=config["image_size"],
            filter=config["resize"],
            patch_size=finished.results["data"]["patch_size"] if patch_size is None else patch_size,
            mpp=config["mpp"] if mpp is None else mpp,
            cache=cache,
            track=progress.track,
        )
        judged = [judge(part.pixels) for part in parts]
        if aside is not None:
            assert isinstance(learnt, Weights)  # `_check_explicable` refuses all else
            classes = [predicted for predicted, _ in judged]
            explain_row(learnt, finished.num_scans, parts, classes, aside, layer=layer, progress=progress)
    scans = [part.scans for part in parts if part.scans is not None]
    return Applied(
        tuple(finished.results["data"]["names"]),
        tuple(patch_id for part in parts for patch_id in part.ids),
        None if len(scans) < len(parts) else np.concatenate(scans),
        np.concatenate([predicted for predicted, _ in judged]).astype(np.int32),
        np.concatenate([scores for _, scores in judged]),
        kind,
        tuple(warnings_of([finished.results])),
    )


def explain_row(
    learnt: Weights,
    num_classes: int,
    parts: Sequence[Inputs],
    classes: Sequence[np.ndarray],
    out: Path,
    *,
    layer: str | None = None,
    progress: Silent | None = None,
) -> list[Path]:
    """Writes each patch as the network sees it, with its Grad-CAM map over it, as `NAME-gradcam.png`.

    Args:
        learnt: a network with its head.
        num_classes: of the head.
        parts: the patches.
        classes: of each part, the class of each patch that is explained.
        out: a folder that is there.
        layer: see `grad_cam`.
        progress: shows what goes on.

    Returns:
        The files, in the order of the patches: an id with what is safe in a file's name, and a number where two would
        have one name.
    """
    from PIL import Image

    progress = progress or Silent()
    classifier = Classifier(learnt.backbone, learnt.backbone.trunk, num_classes)
    files = [out / f"{name}-gradcam.png" for name in file_names([each for part in parts for each in part.ids])]
    waiting = iter(files)
    for part, labels in zip(parts, classes):
        # Of about one length, each a batch or more, so that one program serves.
        rows = np.array_split(np.arange(len(labels)), max(1, len(labels) // EXPLAINED_AT_ONCE))
        for some in progress.track(rows, "Grad-CAM", len(labels), "patches", step=len(rows[0])):
            images = part.pixels[some[0] : some[-1] + 1]
            heat = grad_cam(classifier, learnt.variables, images, classes=labels[some], layer=layer).heat
            for image, each, file in zip(images, heat, waiting):
                Image.fromarray(overlay(image, each)).save(file, format="PNG", optimize=True)
    return files


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


class _Finished(NamedTuple):
    """A finished row: where it is, what it is, its entry in the results, and these."""

    path: Path
    row: Row
    entry: dict[str, Any]
    results: dict[str, Any]

    @property
    def num_scans(self) -> int:
        return self.results["data"]["scans"]


def _finished(path: Path) -> _Finished:
    folder, name = path.parent, path.name
    if (path / "results.json").exists():
        rows = [row["name"] for row in read_results(path)["rows"]]
        raise UserError(f"{path}: is a run; give one of its rows, as {path / rows[0] if rows else path / 'ROW'}")
    results = read_results(folder)
    if "runs" in results:
        raise UserError(
            f"{folder}: holds the runs of {len(results['runs'])} seeds; give a row of one, as "
            f"{folder / results['runs'][0] / name}"
        )
    entries = {row["name"]: row for row in results["rows"]}
    kinds = {row.name: row for row in all_rows()}
    if name not in entries or name not in kinds:
        raise UserError(f"{folder}: has no finished row {name!r}; it has {', '.join(entries) or 'none yet'}")
    entry, row = entries[name], kinds[name]
    if entry["failure"]:
        raise UserError(f"{path}: cannot be relied on, since it failed: {entry['failure']}")
    if row.scheme not in SCHEMES:
        raise UserError(
            f"{path}: {row.approach} learns nothing, it looks for the nearest training patch; use fe_{row.network}, or "
            f"`kimiajax features {row.network}` and a search of your own"
        )
    return _Finished(path, row, entry, results)


def _learnt(finished: _Finished) -> Weights | LinearSVM:
    """What a row learnt, which must be what its results speak of."""
    path = finished.path
    folder, remedy = path.parent / "checkpoints" / path.name, "the same `kimiajax table` computes it again"
    try:
        learnt = load_learnt(folder)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: is missing; {remedy}") from error
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes Orbax raise
        raise UserError(f"{folder}: cannot be read ({type(error).__name__}); {remedy}") from error
    if digest_of_learnt(learnt) != finished.entry["learnt_sha256"]:
        raise UserError(f"{folder}: was changed since {path.parent / 'results.json'} was written; {remedy}")
    return learnt if isinstance(learnt, Weights) else LinearSVM(**learnt)


def _by_network(finished: _Finished, learnt: Weights, weights: None, cache: Path | None, progress: Silent) -> Judge:
    """By a network and its head."""
    learnt = _convolving(finished, learnt, cache, progress)
    head = Classifier(learnt.backbone, (), finished.num_scans)
    variables = {"params": {"head": learnt.variables["params"]["head"]}}
    precision = finished.results["config"]["precision"]

    def judge(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = outputs_of(learnt, head.backbone.bottleneck, images, precision, cache, progress, finished.path.name)
        logits = np.concatenate([np.asarray(_logits(head, precision, variables, some)) for some in outputs])
        shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        return logits.argmax(axis=1), shares / shares.sum(axis=1, keepdims=True)

    return judge


def _by_features(
    finished: _Finished, learnt: LinearSVM, weights: str | Path | None, cache: Path | None, progress: Silent
) -> Judge:
    """By an SVM on a network's features."""
    loaded = _convolving(finished, _weights_of(finished, weights, cache, progress), cache, progress)
    tap, precision = loaded.backbone.features, finished.results["config"]["precision"]

    def judge(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = outputs_of(loaded, tap, images, precision, cache, progress, finished.path.name)
        return _counted(learnt, np.concatenate([learnt.votes(some) for some in outputs]), finished.num_scans)

    return judge


def _by_floor(finished: _Finished, learnt: LinearSVM, weights: None, cache: Path | None, progress: Silent) -> Judge:
    """By an SVM on features that know nothing of tissue."""
    background = finished.results["config"]["background"]

    def judge(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = features_of(finished.row.name, images, background)
        return _counted(learnt, learnt.votes(features), finished.num_scans)

    return judge


# scheme -> what its scores are, and what predicts by it; the others learn nothing
SCHEMES: dict[str, tuple[Kind, Callable[..., Judge]]] = {
    "scratch": ("softmax", _by_network),
    "fine-tuned": ("softmax", _by_network),
    "features": ("share of votes", _by_features),
    "floor": ("share of votes", _by_floor),
}


def _weights_of(finished: _Finished, weights: str | Path | None, cache: Path | None, progress: Silent) -> Weights:
    """The weights that a row's features were computed with, by their digest."""
    config, network = finished.results["config"], finished.row.network
    backbone, needed = BACKBONES[network], finished.results["weights"][network]
    source = setting_of(network, config["weights"], "imagenet") if weights is None else weights
    file = f" (SHA-256 {needed['source_sha256']})" if needed.get("source_sha256") else ""
    told = (
        f"{finished.path} needs the {network} weights that it was learnt with, from {needed['source']}{file}, whose "
        f"arrays have the digest {needed['digest'][:12]}; give them with --weights"
    )
    try:
        loaded = load_weights(
            network,
            source,
            blocks=backbone.up_to(backbone.features),
            image_size=config["image_size"],
            seed=config["seed"],
            cache=cache,
            progress=functools.partial(Download, progress),
        )
    except UserError as error:
        raise UserError(f"{error}; {told}") from error
    if loaded.lineage["digest"] != needed["digest"]:
        raise UserError(f"{source}: holds other weights, of digest {loaded.lineage['digest'][:12]}; {told}")
    return loaded


def _convolving(finished: _Finished, loaded: Weights, cache: Path | None, progress: Silent) -> Weights:
    """Weights whose network convolves as it did in the run, if it can here."""
    network, config = loaded.backbone.name, finished.results["config"]
    before = finished.results["conv"].get(network, {"way": "plain"})["way"]
    asked = "plain" if before == "plain" else "auto"
    options = {"precision": config["precision"], "cache": cache, "before": before}
    choice = choose_way(asked, BACKBONES[network], config["image_size"], config["batch_size"], **options)
    if choice.way != before:
        progress.say(f"{network}: {choice.way} convolutions, where the run had {before} ones ({choice.reason})")
    return replace(loaded, conv=choice.way)


def _counted(svm: LinearSVM, votes: Int[np.ndarray, "n c"], num_scans: int) -> tuple[np.ndarray, np.ndarray]:
    """The scan with most votes, and each scan's share of them; those that had no training patch have none."""
    scores = np.zeros((len(votes), num_scans))
    scores[:, svm.classes] = votes / votes.sum(axis=1, keepdims=True)
    return svm.classes[votes.argmax(axis=1)], scores


@functools.partial(jax.jit, static_argnames=("head", "precision"))
def _logits(head: Classifier, precision: Precision, variables: Any, x: Any) -> jax.Array:
    with products_in(precision):
        logits, _ = head.apply(variables, x, dtype=compute_dtype(precision))
    return logits


def _read_all(paths: Sequence[str | Path], rules: Rules, split: str, **options: Any) -> list[Inputs]:
    """The patches of several paths, each once, plain images that follow one another being one part."""
    parts = [(path, part) for path in paths for part in read_inputs(path, rules, **options)]
    unknown = [path for path, part in parts if part.split is None]
    if split != "all" and unknown:
        raise UsageError(f"{unknown[0]}: plain images are neither training nor test patches; leave --split out")
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


def _check_explicable(finished: _Finished, learnt: Weights | LinearSVM, layer: str | None) -> None:
    if not isinstance(learnt, Weights):
        networks = [row["name"] for row in finished.results["rows"] if row["scheme"] in ("scratch", "fine-tuned")]
        raise UserError(
            f"{finished.path}: an SVM, into which Grad-CAM cannot look; leave --grad-cam out, or choose a row that is "
            f"a network ({first_few(networks) or 'this run has none'})"
        )
    path_of(learnt.backbone, layer)
