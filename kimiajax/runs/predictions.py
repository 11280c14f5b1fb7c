"""Predictions and the truth, in files from anywhere: read, joined by patch id, and written."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kimiajax.data.manifest import MOST_SCANS, Manifest, Patch, read_manifest
from kimiajax.data.open_scans import open_scans
from kimiajax.data.sources.image_files import IMAGES
from kimiajax.data.sources.image_folder import holds_splits
from kimiajax.data.sources.slide_folder import slides_in
from kimiajax.errors import UserError
from kimiajax.io.files import csv_text, write_text
from kimiajax.io.tables import SUFFIXES, Table, read_table
from kimiajax.runs.classes import Classes, classes_of
from kimiajax.runs.warnings import marks_of
from kimiajax.shapes import Float, Int
from kimiajax.text import LONGEST_NAME, first_few, is_name, quoted

MANIFEST = "manifest.csv"  # of a run, and of an exported folder
TRUTHS = "a manifest.csv, a run's folder, a CSV file with columns patch_id and scan, or the scans or images themselves"
NAMED = "name the columns in its first line"
JOINED = (
    "predictions are joined by it, since their order alone cannot be checked: add a first line of names and the id of "
    "each patch, separated by commas"
)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a file predicts.

    Attributes:
        path: the file.
        patch_ids: the patches, in the file's order, each once.
        predicted: the scan that each was taken for, from 0.
        scans: the scan that the file says each is of; None where it does not say.
        names: what the file calls the predicted scan of each; None likewise.
        notes: how the file departs from the project's own, in sentences, and what was read in its place.
    """

    path: Path
    patch_ids: tuple[str, ...]
    predicted: Int[np.ndarray, " n"]
    scans: Int[np.ndarray, " n"] | None = None
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Truth:
    """The test patches, and the scan that each is of.

    Attributes:
        path: where that stands.
        patch_ids: the patches, each once.
        scans: of each patch, 0 to num_scans - 1.
        classes: what the scans are called, with test patches or without.
        warnings: what marks these data.
    """

    path: Path
    patch_ids: tuple[str, ...]
    scans: Int[np.ndarray, " n"]
    classes: Classes
    warnings: tuple[str, ...] = ()

    @property
    def num_scans(self) -> int:
        """How many scans there are."""
        return len(self.classes.labels)


def read_predictions(path: str | Path) -> Predictions:
    """Reads a CSV file whose first line names its columns: patch_id and predicted, and scan, the true one, if it likes.

    Other columns are passed over. The project's own `predictions/ROW.csv` are such files, and what `read_table` reads
    of spreadsheets and pandas. "3.0" is scan 3.

    Raises:
        UserError: the file is missing, no text, empty or short of a column, or a line is broken: a patch without a
            name or named before, what is no scan's number, another number of fields; the message names the line.
    """
    table = read_table(Path(path), "predictions", {"patch_id": JOINED, "predicted": NAMED}, ("scan",))
    names = [name for name in ("predicted", "scan") if name != "scan" or name in table.columns]
    numbers = {name: _numbers(table, name) for name in names}
    scans = numbers.get("scan")
    called = table.columns.get("name") if "score_0" in table.columns else None  # of ours; another's may be anyone's
    return Predictions(table.path, _ids(table), numbers["predicted"], scans, called, _notes(table, *names))


def read_truth(path: str | Path) -> Truth:
    """Reads which test patches there are, and the scan of each.

    Args:
        path: a manifest with its header, of which the test patches count; a folder that holds a `manifest.csv`, as a
            run's does; a CSV file with columns patch_id and scan, whose largest scan is the last; or what `open_scans`
            opens, a scan file or a folder of images.

    Raises:
        UserError: it is none of these, or broken, or a source whose test patches are still to be chosen.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; the truth is {TRUTHS}")
    if path.is_dir() and (path / MANIFEST).exists():
        return truth_of(path, read_manifest(path / MANIFEST))
    if path.is_dir() and (seeds := sorted(path.glob(f"seed-*/{MANIFEST}"))):
        raise UserError(f"{path}: holds the runs of {len(seeds)} seeds; give the folder of one, {seeds[0].parent}")
    if path.suffix.lower() in SUFFIXES:
        table = read_table(path, "truth", {"patch_id": NAMED, "scan": NAMED}, ("split",))
        if "split" in table.columns:
            return truth_of(path, read_manifest(path))
        ids, scans = _ids(table), _numbers(table, "scan")
        return Truth(path, ids, scans, classes_of({"scans": int(scans.max()) + 1}), _notes(table, "scan"))
    if path.is_dir() and not holds_splits(path):
        if slides_in(path):
            raise UserError(
                f"{path}: a folder of whole slides holds out no test patches by itself; give the {MANIFEST} that says "
                "which were chosen"
            )
        raise UserError(f"{path}: holds neither {MANIFEST} nor training and test images; the truth is {TRUTHS}")
    with open_scans(path) as source:
        patches = source.test_patches()
        assert patches is not None  # slides, which hold out none, were refused
        about = {**source.marks, "names": list(source.names), "source": source.describe()}
        return _of_patches(path, patches, len(source), about)


def with_ids_of(predictions: Predictions, truth: Truth) -> Predictions:
    """The predictions under the ids of the truth, where theirs differ from those by backslashes for slashes, blanks
    around them or an image's extension alone, and no two ids become one by that; `notes` says so."""
    theirs, ours = ([_bare(patch_id) for patch_id in each.patch_ids] for each in (predictions, truth))
    if any(count > 1 for each in (theirs, ours) for count in Counter(each).values()):
        return predictions
    id_of = dict(zip(ours, truth.patch_ids))
    ids = tuple(id_of.get(bare, patch_id) for bare, patch_id in zip(theirs, predictions.patch_ids))
    changed = [(old, new) for old, new in zip(predictions.patch_ids, ids) if old != new]
    if not changed:
        return predictions
    old, new = map(quoted, changed[0])
    note = f"{predictions.path}: {len(changed)} of {len(ids)} patch ids are written otherwise ({old} is read as {new})."
    return replace(predictions, patch_ids=ids, notes=(*predictions.notes, note))


def _bare(patch_id: str) -> str:
    """An id without what programs change about it."""
    bare = patch_id.strip().replace("\\", "/")
    return next((bare[: -len(suffix)] for suffix in IMAGES if bare.lower().endswith(suffix)), bare)


def join(predictions: Predictions, truth: Truth) -> Int[np.ndarray, " n"]:
    """The predicted scan of each patch of the truth, in the truth's order, whatever that of the predictions.

    Raises:
        UserError: a patch without a prediction, a prediction without a patch, a scan that there is not, or predictions
            that say their patches are of other scans.
    """
    place = {patch_id: k for k, patch_id in enumerate(predictions.patch_ids)}
    missing = [patch_id for patch_id in truth.patch_ids if patch_id not in place]
    extra = sorted(place.keys() - set(truth.patch_ids), key=place.__getitem__)
    faults = [
        f"{len(missing)} of the {len(truth.patch_ids)} test patches have no prediction ({first_few(missing)})",
        f"{len(extra)} of the {len(place)} predictions are of no test patch ({first_few(extra)})",
    ]
    faults = [fault for fault, patches in zip(faults, (missing, extra)) if patches]
    if faults:
        raise UserError(
            f"{predictions.path}: {' and '.join(faults)}; give one line for each test patch of {truth.path}, under its "
            "id there, and no other"
        )
    order = np.array([place[patch_id] for patch_id in truth.patch_ids])
    predicted = predictions.predicted[order]
    outside = np.flatnonzero((predicted < 0) | (predicted >= truth.num_scans))
    if outside.size:
        which = first_few(f"{truth.patch_ids[k]}: {predicted[k]}" for k in outside)
        raise UserError(
            f"{predictions.path}: {outside.size} of {len(predicted)} predicted scans are out of range ({which}); "
            f"{truth.path} has scans 0 to {truth.num_scans - 1}: number them from 0"
        )
    said = truth.scans if predictions.scans is None else predictions.scans[order]
    other = np.flatnonzero(said != truth.scans)
    if other.size:
        which = first_few(f"{truth.patch_ids[k]}: {said[k]} and not {truth.scans[k]}" for k in other)
        raise UserError(
            f"{predictions.path}: its column scan is another than the truth for {other.size} of {len(predicted)} "
            f"patches ({which}); is {truth.path} the truth of other data? Give that of the data they were made from"
        )
    if predictions.names is not None and truth.classes.named:
        _check_names(predictions, truth, order, predicted)
    return predicted


def _check_names(
    predictions: Predictions, truth: Truth, order: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"]
) -> None:
    """Raises UserError where predictions number the classes otherwise than the truth."""
    assert predictions.names is not None
    labels = truth.classes.labels
    named = ((predictions.names[place], labels[guess]) for place, guess in zip(order, predicted.tolist()))
    other = [(theirs, ours) for theirs, ours in named if theirs != ours]
    if other:
        which = first_few(f"{quoted(theirs)} and not {quoted(ours)}" for theirs, ours in dict.fromkeys(other))
        raise UserError(
            f"{predictions.path}: {len(other)} of {len(predicted)} predicted classes have another name there "
            f"({which}), so they are numbered otherwise; is {truth.path} the truth of other data?"
        )


def truth_of(path: Path, manifest: Manifest) -> Truth:
    """The test patches of a manifest that stands at a path."""
    return _of_patches(path, manifest.split("test"), manifest.num_scans, manifest.about)


def _of_patches(path: Path, patches: list[Patch], num_scans: int, about: Mapping[str, Any]) -> Truth:
    ids, scans = tuple(p.patch_id for p in patches), np.array([p.scan for p in patches], np.int64)
    kind = about["source"].get("kind") if isinstance(about.get("source"), dict) else None
    classes = classes_of({"names": about.get("names"), "kind": kind, "scans": num_scans})
    return Truth(path, ids, scans, classes, tuple(marks_of(about)))


def _ids(table: Table) -> tuple[str, ...]:
    """The column patch_id, each value once."""
    lines: dict[str, int] = {}
    for line, patch_id in zip(table.lines, table.columns["patch_id"]):
        if not patch_id.strip():
            raise UserError(f"{table.path}, line {line}: has no patch_id; give the patch's, or remove the line")
        if not is_name(patch_id):
            raise UserError(
                f"{table.path}, line {line}: patch_id is {quoted(patch_id)}; it must be one line of {LONGEST_NAME} "
                "characters at most"
            )
        if patch_id in lines:
            raise UserError(
                f"{table.path}, line {line}: {patch_id} stands on line {lines[patch_id]} already; keep one of them"
            )
        lines[patch_id] = line
    return tuple(lines)


def _numbers(table: Table, name: str) -> Int[np.ndarray, " n"]:
    """A column of scans' numbers."""
    values = []
    for line, text in zip(table.lines, table.columns[name]):
        value = table.whole_number(text, MOST_SCANS - 1)
        if value is None:
            raise UserError(
                f"{table.path}, line {line}: {name} is {quoted(text)}; it must be a scan's number, whole and from 0 to "
                f"{MOST_SCANS - 1}; mend that line"
            )
        values.append(value)
    return np.array(values, np.int64)


def _notes(table: Table, *names: str) -> tuple[str, ...]:
    """What is to be said of how a file was read, in a sentence; none of a plain one."""
    notes = [*table.notes]
    if any(not text.strip().isdecimal() for name in names for text in table.columns[name]):
        notes.append("with whole numbers written like 3.0")
    return (f"{table.path}: read as CSV {', '.join(notes)}.",) if notes else ()


Kind = Literal["softmax", "share of votes"]


@dataclass(frozen=True, eq=False)
class Applied:
    """What a row predicts.

    Attributes:
        names: of the run's scans, which are the classes, [k].
        ids: of the patches.
        scans: the scan that each is of, as its own source numbers them, and where classes have names as the run does;
            None where that is not known of all.
        predicted: the scan that each was taken for, 0 to k - 1.
        scores: of each class, in [0, 1], 1 in all.
        kind: what they are: a network's softmax, or a class's share of the votes of an SVM's pairs.
        warnings: what marks the run that the row is of.
        word: what each of the names is of, a scan or a class.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]
    scans: Int[np.ndarray, " n"] | None
    predicted: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, "n k"]
    kind: Kind
    warnings: tuple[str, ...] = ()
    word: str = "scan"


def write_predictions_csv(path: str | Path, applied: Applied) -> None:
    """Writes patch_id, scan where it is known, predicted, its name, and a score for each class: `score_0`, ...

    It is a file that `kimiajax score` reads.
    """
    scans = [[]] * len(applied.ids) if applied.scans is None else applied.scans[:, None].tolist()
    head = ("patch_id", *([] if applied.scans is None else ["scan"]), "predicted", "name")
    rows = (
        (patch_id, *scan, guess, applied.names[guess], *(f"{score:.6g}" for score in scores))
        for patch_id, scan, guess, scores in zip(applied.ids, scans, applied.predicted.tolist(), applied.scores)
    )
    write_text(Path(path), csv_text((*head, *(f"score_{number}" for number in range(len(applied.names)))), rows))
