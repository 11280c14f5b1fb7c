"""What is asked of data, one question a function; `audit.py` asks them."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from kimiajax import paper
from kimiajax.data.audit import near_duplicates
from kimiajax.data.audit.copy_detection import Copy
from kimiajax.data.manifest import SPLITS, Manifest, Patch
from kimiajax.data.patch_arrays import Patches
from kimiajax.data.patches import WHITENED_TOLERANCE, Rules
from kimiajax.data.sources.scan_file import Scans
from kimiajax.data.sources.source import DARK, SMALLEST_HOLE, Gridded, Source
from kimiajax.data.survey import CELLS, WHITE, Survey, cell_edges, in_threads
from kimiajax.data.tfds.source import Prepared
from kimiajax.errors import UserError
from kimiajax.io.files import md5_file
from kimiajax.runtime.progress import Silent
from kimiajax.text import PLURALS, first_of

PASSED, FAILED, NOTE, UNTOLD, NOT_APPLICABLE = "passed", "FAILED", "note", "cannot be told", "not applicable"
DRAWN = 100  # training patches of each scan, as the paper and a table draw by default
GROUP = 20  # patches named of a group with the same pixels
SHOWN = 5  # findings named in a line; the record holds them all


@dataclass(frozen=True)
class Check:
    """One question, its answer in a line, what it rests on; and whether it is of the data or of some patches."""

    name: str
    verdict: str
    detail: str
    findings: list[Any] = field(default_factory=list)
    of: Literal["data", "patches"] = "data"


def check_layout(source: Source) -> Check:
    """That it could be opened, which is a check of its own; what it is."""
    size = source.patch_size
    detail = f"a {source.kind} with {_count_of(source)}, patches of {size} x {size} pixels"
    return Check("layout", PASSED, detail)


def _count_of(source: Source) -> str:
    """Returns the number of scans or classes, with the word."""
    return f"{len(source)} {PLURALS[source.word]}"


def check_remarks(source: Source) -> list[Check]:
    """Returns a note for each remark on the opening, such as slides that were left out."""
    return [Check("opening", NOTE, remark) for remark in source.remarks]


def some(names: list[Any]) -> str:
    return first_of(names, SHOWN)


def check_digest(source: Source, official: bool, progress: Silent) -> Check:
    """MD5 of the file, since that is what was published of the official one."""
    if isinstance(source, Prepared) and source.origin is not None:
        if source.origin.get("md5") == paper.OFFICIAL_MD5:
            detail = f"prepared from Kimia_Path24.h5 as published, MD5 {paper.OFFICIAL_MD5}"
            return Check("official digest", PASSED, detail, [source.origin])
        few = "prepared from as many images as were published, of which no digest was"
        detail = few if source.unverified is None else f"prepared from what {source.unverified}"
        return Check("official digest", FAILED if official else NOTE, detail, [source.origin])
    if not isinstance(source, Scans):
        verdict = FAILED if official else NOT_APPLICABLE
        return Check("official digest", verdict, f"a {source.kind} is not the official file, which is one .h5 file")
    total, md5 = source.path.stat().st_size, md5_file(source.path, progress.track)
    if md5 == paper.OFFICIAL_MD5:
        return Check("official digest", PASSED, f"MD5 {md5}: Kimia_Path24.h5 as published", [md5])
    detail = f"MD5 {md5}, {total:,} bytes: not the official file, whose MD5 is {paper.OFFICIAL_MD5}"
    return Check("official digest", FAILED if official else NOTE, detail, [md5])


def check_counts(source: Source, official: bool) -> Check:
    """Test patches of each scan, or class: some in each, and of the official file as many as were published."""
    name = "test patches"
    test = source.test_patches()
    if test is None:
        return Check(name, NOT_APPLICABLE, f"a {source.kind} that holds no test patches out; a run draws them")
    counts = [sum(patch.scan == scan for patch in test) for scan in range(len(source))]
    without = [source.names[scan] for scan, count in enumerate(counts) if not count]
    if without:
        return Check(name, FAILED, f"{some(without)} have no test patch", counts)
    if paper.is_kimia(counts):
        return Check(name, PASSED, f"{sum(counts):,} in {len(counts)} scans, as published of Kimia Path24", counts)
    detail = f"{sum(counts):,} in {_count_of(source)}, {min(counts)} to {max(counts)} in each"
    if official:
        published = f"{paper.TEST_PATCHES:,} in {paper.NUM_SCANS} scans"
        return Check(name, FAILED, f"{detail}; Kimia Path24 has {published}", counts)
    return Check(name, PASSED, detail, counts)


def check_training_counts(source: Source, manifest: Manifest) -> Check:
    """Training patches of each scan."""
    counts = manifest.counts("train")
    few = sum(count < DRAWN for count in counts)
    detail = f"{sum(counts):,}, {min(counts)} to {max(counts)} of each {source.word}"
    if few:
        detail += f"; {few} of {_count_of(source)} have fewer than the {DRAWN} that a table draws by default"
    return Check("training patches", NOTE if few else PASSED, detail, counts, of="patches")


def check_constant(source: Gridded, surveys: list[Survey]) -> Check:
    """Cells of one gray value darker than background, and chunks that were never written: holes, not tissue."""
    findings: list[dict[str, Any]] = []
    if isinstance(source, Scans):
        findings += [{"dataset": name, "chunks never written": n} for name, n in source.unwritten().items()]
    edge, large = source.patch_size // CELLS, source.patch_size >= SMALLEST_HOLE
    least = 0 if isinstance(source, Scans) else DARK + 1  # what a scanner leaves dark, rules leave out
    for scan, survey in enumerate(surveys if large else []):
        whole = [np.diff(cell_edges(length, survey.size)) >= edge for length in survey.shape]
        flat = (survey.least == survey.greatest) & (survey.least < Rules.background) & np.outer(*whole)
        flat &= survey.least >= least
        for value in np.unique(survey.least[flat]).tolist():
            at = np.argwhere(flat & (survey.least == value))
            row, col = (at[0] * survey.size // CELLS).tolist()
            where = {"scan": source.names[scan], "gray": value, "cells": len(at), "row": row, "col": col}
            findings.append(where)
    if isinstance(source, Scans) and large:
        holes = in_threads(lambda k: _holes(source.read_test_patch(k), edge), range(len(source.targets)))
        findings += [{"test patch": k, "cells": count} for k, count in enumerate(holes) if count]
    if not findings and not large:
        detail = f"patches of {source.patch_size} pixels are too small: a few equal pixels are no hole"
        return Check("constant regions", NOT_APPLICABLE, detail)
    if not findings:
        grays = f"from {least} to {Rules.background - 1}"
        detail = f"no cell of {edge} x {edge} pixels has one gray value {grays}, no chunk is left out"
        return Check("constant regions", PASSED, detail)
    return Check("constant regions", FAILED, f"holes in the data: {some([line(f) for f in findings])}", findings)


def _holes(patch: np.ndarray, edge: int) -> int:
    """Cells of a patch that have one gray value darker than background."""
    count = len(patch) // edge
    cells = patch[: count * edge, : count * edge].reshape(count, edge, count, edge)
    least = cells.min(axis=(1, 3))
    return int(np.count_nonzero((least == cells.max(axis=(1, 3))) & (least < Rules.background)))


def line(finding: dict[str, Any]) -> str:
    return " ".join(f"{key} {value}" for key, value in finding.items())


def check_whitened(source: Scans, surveys: list[Survey]) -> Check:
    """Whether each scan has as many whitened places as it has test patches."""
    name = "whitened places"
    counts = np.bincount(source.targets, minlength=len(source)).tolist()
    found = [len(_apart(survey)) for survey in surveys]
    findings = [
        {"scan": scan, "test patches": wanted, "whitened places": have}
        for scan, wanted, have in zip(source.names, counts, found)
        if have != wanted
    ]
    if not findings:
        return Check(name, PASSED, f"{sum(found):,}, one for each test patch, each in its scan", found)
    white_glass = [_white_glass(survey) or _overlapping(survey) for survey in surveys]
    lacking = [
        scan for scan, (have, wanted) in enumerate(zip(found, counts)) if have < wanted and not white_glass[scan]
    ]
    if lacking:
        lines = [line(f) for f in findings if f["scan"] in {source.names[scan] for scan in lacking}]
        return Check(name, FAILED, f"fewer than test patches: {some(lines)}", findings)
    if any(white_glass):
        detail = f"places overlap, or glass is as white, in {sum(white_glass)} scans; there copies decide"
        return Check(name, NOTE, detail, findings)
    return Check(name, NOTE, f"more than test patches: {some([line(f) for f in findings])}", findings)


def _apart(survey: Survey) -> list[tuple[int, int]]:
    """Whitened places that share nothing: where several touch, as many as fit side by side."""
    chosen: list[tuple[int, int]] = []
    for row, col in survey.whitened.tolist():
        if all(abs(row - r) >= survey.size or abs(col - c) >= survey.size for r, c in chosen):
            chosen.append((row, col))
    return chosen


def _overlapping(survey: Survey) -> bool:
    """Whether there is a whitened place that those which share nothing do not cover: some must overlap."""
    chosen = np.array(_apart(survey)).reshape(-1, 2)
    for place in survey.whitened:
        covered = np.clip(survey.size - np.abs(chosen - place), 0, None).prod(axis=1).sum()
        if covered < (1 - WHITENED_TOLERANCE) * survey.size**2:
            return True
    return False


def _white_glass(survey: Survey) -> bool:
    """Whether more of a scan is white than whitened places could be."""
    whole = survey.least == WHITE
    covered = np.zeros_like(whole)
    step = survey.size // CELLS
    for row, col in _apart(survey):
        covered[row // step : (row + survey.size) // step + 1, col // step : (col + survey.size) // step + 1] = True
    return bool((whole & ~covered).sum() >= CELLS**2)


def check_copies(source: Scans, copies: list[Copy], blind: list[int]) -> Check:
    """Whether any test patch's pixels stand in a scan, where training patches could be cut from them."""
    name = "copies of test patches in the scans"
    findings = [{**asdict(copy), "scan": source.names[copy.scan], "share": round(copy.share, 4)} for copy in copies]
    if findings:
        return Check(name, FAILED, f"{len(findings)}: {some([line(f) for f in findings])}", findings)
    searched = len(source.targets) - len(blind)
    detail = f"none of {searched:,}, looked for at every pixel of every scan"
    if blind:
        detail += f"; {len(blind)} are too uniform to be looked for: {some(blind)}"
    return Check(name, PASSED if searched else UNTOLD, detail, blind)


def check_overlap(source: Gridded, manifest: Manifest, surveys: list[Survey]) -> Check:
    """Whether a training patch lies over a whitened place: asked of the manifest, place by place."""
    findings = []
    for patch in manifest.split("train"):
        if patch.row is None:
            raise UserError(f"{source.path}: holds no patch {patch.patch_id}; is the manifest of another source?")
        survey = surveys[patch.scan]
        offsets = np.abs(survey.whitened - (patch.row, patch.col)) if len(survey.whitened) else np.empty((0, 2))
        shared = np.clip(survey.size - offsets, 0, None).prod(axis=1).max(initial=0) / survey.size**2
        if shared > WHITENED_TOLERANCE:
            findings.append({"patch": patch.patch_id, "share": round(float(shared), 4)})
    name = "training patches over whitened places"
    if findings:
        detail = f"{len(findings)}: {some([line(f) for f in findings])}"
        return Check(name, FAILED, detail, findings, of="patches")
    left_out = sum(int((survey.overlap() > WHITENED_TOLERANCE).sum()) for survey in surveys)
    return Check(name, PASSED, f"none; {left_out:,} places of the grid were left out for that", of="patches")


def check_blank(source: Source, patches: Patches) -> Check:
    """Patches that show nothing at all. Small pictures tell which may be such; those are looked at as they are."""
    blank = []
    for split, pictures in zip(SPLITS, (patches.train, patches.test)):
        flat = np.ptp(pictures.reshape(len(pictures), -1), axis=1) == 0
        doubtful = (patch for patch, is_flat in zip(patches.manifest.split(split), flat) if is_flat)
        blank += [patch.patch_id for patch in doubtful if np.ptp(source.read_patch(patch)) == 0]
    if blank:
        detail = f"{len(blank)} have one gray value only: {some(blank)}"
        return Check("blank patches", FAILED, detail, blank, of="patches")
    return Check("blank patches", PASSED, "none", of="patches")


def check_exact(manifest: Manifest) -> Check:
    """Patches with the same pixels in training and test, or under two scans."""
    name, groups = "exact duplicates", near_duplicates.same_pixels(manifest.patches)
    findings = [{"patches": [patch.patch_id for patch in group[:GROUP]], "count": len(group)} for group in groups]
    for what, severed in (
        ("in training and test", [group for group in groups if len({patch.split for patch in group}) > 1]),
        ("under two scans", [group for group in groups if len({patch.scan for patch in group}) > 1]),
    ):
        if severed:
            told = [" = ".join(patch.patch_id for patch in _ends(group)) for group in severed]
            return Check(name, FAILED, f"{what}: {some(told)}", findings, of="patches")
    if groups:
        detail = f"none across training and test; {len(groups)} groups within one scan and split"
        return Check(name, NOTE, detail, findings, of="patches")
    train, test = (len(manifest.split(split)) for split in ("train", "test"))
    detail = f"none among {train:,} training and {test:,} test patches, by SHA-256"
    return Check(name, PASSED, detail, of="patches")


def _ends(group: list[Patch]) -> tuple[Patch, Patch]:
    """Two of a group that differ most: of another split, or else another scan, than the first."""
    other = max(group, key=lambda patch: (patch.split != group[0].split, patch.scan != group[0].scan))
    return group[0], other


def check_near(patches: Patches) -> Check:
    """Patches of training and test that look the same."""
    name = "near duplicates"
    train, test = patches.manifest.split("train"), patches.manifest.split("test")
    findings = [
        {"first": train[pair.first].patch_id, "second": test[pair.second].patch_id, "alike": round(pair.alike, 4)}
        for pair in near_duplicates.near_pairs(patches.train, patches.test)
    ]
    if findings:
        told = [f"{finding['first']} = {finding['second']}" for finding in findings]
        return Check(name, FAILED, f"in training and test: {some(told)}", findings, of="patches")
    return Check(name, PASSED, "none across training and test, also turned or mirrored", of="patches")
