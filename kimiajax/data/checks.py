"""What is asked of data, one question a function; `audit.py` asks them."""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kimiajax import paper
from kimiajax.data import duplicates
from kimiajax.data.copies import Copy
from kimiajax.data.manifest import Manifest, Patch
from kimiajax.data.patches import WHITENED_TOLERANCE, Rules
from kimiajax.data.placing import ORIENTATIONS, Fits
from kimiajax.data.reading import Patches
from kimiajax.data.scans import Scans
from kimiajax.data.source import Gridded, Source
from kimiajax.data.survey import CELLS, WHITE, Survey
from kimiajax.errors import UserError
from kimiajax.progress import Silent

PASSED, FAILED, NOTE, UNTOLD, NOT_APPLICABLE = "passed", "FAILED", "note", "cannot be told", "not applicable"
FIT = 0.1  # by so much must a patch fit elsewhere better, in correlation, than where it is said to belong
SIGMAS = 5.0  # and by so many standard deviations better than patches of other scans fit
SHOWN = 5  # findings named in a line; the record holds them all


@dataclass(frozen=True)
class Check:
    """One question, its answer in a line, and what it rests on."""

    name: str
    verdict: str
    detail: str
    findings: list[Any] = field(default_factory=list)


def check_layout(source: Source) -> Check:
    """That it could be opened, which is a check of its own; what it is."""
    size = source.patch_size
    return Check("layout", PASSED, f"a {source.kind} with {len(source)} scans, patches of {size} x {size} pixels")


def _some(names: list[Any]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(map(str, names[:SHOWN])) + (f" and {rest} more" if rest > 0 else "")


def check_digest(source: Source, official: bool, progress: Silent) -> Check:
    """MD5 of the file, since that is what was published of the official one."""
    if not isinstance(source, Scans):
        verdict = FAILED if official else NOT_APPLICABLE
        return Check("official digest", verdict, f"a {source.kind} is not the official file, which is one .h5 file")
    total = source.path.stat().st_size
    digest, block = hashlib.md5(usedforsecurity=False), 2**24
    with source.path.open("rb") as stream:
        parts = iter(lambda: stream.read(block), b"")
        for part in progress.track(parts, "MD5", -(-total // block), "x 16 MiB"):
            digest.update(part)
    md5 = digest.hexdigest()
    if md5 == paper.OFFICIAL_MD5:
        return Check("official digest", PASSED, f"MD5 {md5}: Kimia_Path24.h5 as published", [md5])
    detail = f"MD5 {md5}, {total:,} bytes: not the official file, whose MD5 is {paper.OFFICIAL_MD5}"
    return Check("official digest", FAILED if official else NOTE, detail, [md5])


def check_counts(source: Source, official: bool) -> Check:
    """Test patches of each scan beside the published counts."""
    name = "test patches per scan"
    test = source.test_patches()
    if test is None:
        return Check(name, NOT_APPLICABLE, "slides hold no test patches out; a run draws them")
    counts = [sum(patch.scan == scan for patch in test) for scan in range(len(source))]
    without = [source.names[scan] for scan, count in enumerate(counts) if not count]
    if without:
        return Check(name, FAILED, f"{_some(without)} have no test patch", counts)
    if tuple(counts) == paper.TEST_PATCHES_PER_SCAN:
        return Check(name, PASSED, f"{sum(counts):,} in {len(counts)} scans, as published of Kimia Path24", counts)
    detail = f"{sum(counts):,} in {len(counts)} scans; Kimia Path24 has {paper.TEST_PATCHES:,} in {paper.NUM_SCANS}"
    return Check(name, FAILED if official else NOTE, detail, counts)


def check_training_counts(source: Source, manifest: Manifest) -> Check:
    """Training patches of each scan."""
    counts = manifest.counts("train")
    few = [source.names[scan] for scan, count in enumerate(counts) if count < 100]
    detail = f"{sum(counts):,}, {min(counts)} to {max(counts)} a scan"
    if few:
        detail += f"; {len(few)} scans have fewer than the 100 that the paper draws"
    return Check("training patches", NOTE if few else PASSED, detail, counts)


def check_constant(source: Gridded, surveys: list[Survey]) -> Check:
    """Cells of one gray value darker than background, and chunks that were never written: holes, not tissue."""
    findings: list[dict[str, Any]] = []
    if isinstance(source, Scans):
        findings += [{"dataset": name, "chunks never written": n} for name, n in source.unwritten().items()]
    for scan, survey in enumerate(surveys):
        flat = (survey.least == survey.greatest) & (survey.least < Rules.background)
        for value in np.unique(survey.least[flat]).tolist():
            at = np.argwhere(flat & (survey.least == value))
            row, col = (at[0] * survey.size // CELLS).tolist()
            where = {"scan": source.names[scan], "gray": value, "cells": len(at), "row": row, "col": col}
            findings.append(where)
    edge = source.patch_size // CELLS
    if not findings:
        detail = f"no {edge} x {edge} pixels of one gray value under {Rules.background}, no chunk left out"
        return Check("constant regions", PASSED, detail)
    return Check("constant regions", FAILED, f"holes in the data: {_some([_line(f) for f in findings])}", findings)


def _line(finding: dict[str, Any]) -> str:
    return " ".join(f"{key} {value}" for key, value in finding.items())


def _threshold(fits: Fits, targets: np.ndarray) -> float:
    """What correlation the rims of strange patches do not reach; a few that do belong there change it little."""
    others = np.ones_like(fits.upright, bool)
    others[np.arange(len(targets)), targets] = False
    strange = fits.upright[others & np.isfinite(fits.upright)]
    if not len(strange):
        return 1.0
    middle = float(np.median(strange))
    return middle + SIGMAS * 1.4826 * float(np.median(np.abs(strange - middle)))


def check_targets(source: Scans, fits: Fits) -> Check:
    """Whether each test patch continues its own scan's tissue and no other's."""
    name, targets = "targets", source.targets
    upright = np.nan_to_num(fits.upright, nan=-1)
    own = np.maximum(upright[np.arange(len(targets)), targets], np.nan_to_num(fits.turned, nan=-1).max(axis=1))
    level, best = _threshold(fits, targets), upright.argmax(axis=1)
    strays = np.flatnonzero((upright.max(axis=1) > np.maximum(own + FIT, level)) & (best != targets))
    findings = [
        {"test_patch": int(k), "target": source.names[targets[k]], "fits": source.names[best[k]]} for k in strays
    ]
    if findings:
        detail = f"{len(findings)} test patches continue another scan's tissue: {_some([_line(f) for f in findings])}"
        return Check(name, FAILED, detail, findings)
    return _told(name, source, own > level, "continue the tissue around a whitened place of the scan that they name")


def check_orientation(source: Scans, fits: Fits) -> Check:
    """Whether the test patches of each scan are the same way up as the scan is."""
    name, targets = "orientation", source.targets
    level, turned = _threshold(fits, targets), np.nan_to_num(fits.turned, nan=-1)
    findings = []
    for scan in range(len(source)):
        mean = turned[targets == scan].mean(axis=0)
        if mean.argmax() and mean.max() > mean[0] + FIT and mean.max() > level:
            findings.append({"scan": source.names[scan], "its patches are": ORIENTATIONS[int(mean.argmax())]})
    if findings:
        return Check(name, FAILED, f"scan and test patches differ: {_some([_line(f) for f in findings])}", findings)
    upright = turned[:, 0]
    return _told(name, source, (upright > level) & (upright >= turned.max(axis=1)), "are the same way up as their scan")


def _told(name: str, source: Scans, told: np.ndarray, what: str) -> Check:
    untold = [int(k) for k in np.flatnonzero(~told)]
    detail = f"{told.sum():,} of {len(told):,} test patches {what}"
    if untold:
        detail += f"; of {len(untold)} it cannot be told"
    return Check(name, PASSED if told.mean() > 0.5 else UNTOLD, detail, untold)


def check_whitened(source: Scans, surveys: list[Survey], fits: Fits) -> Check:
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
    white_glass = [_white_glass(survey) for survey in surveys]
    lacking = [
        scan for scan, (have, wanted) in enumerate(zip(found, counts)) if have < wanted and not white_glass[scan]
    ]
    if lacking:
        lines = [_line(f) for f in findings if f["scan"] in {source.names[scan] for scan in lacking}]
        return Check(name, FAILED, f"fewer than test patches: {_some(lines)}", findings)
    if any(white_glass):
        detail = f"glass is as white as the places are in {sum(white_glass)} scans; there the search for copies decides"
        return Check(name, UNTOLD, detail, findings)
    return Check(name, NOTE, f"more than test patches: {_some([_line(f) for f in findings])}", findings)


def _apart(survey: Survey) -> list[tuple[int, int]]:
    """Whitened places that share nothing: where several touch, as many as fit side by side."""
    chosen: list[tuple[int, int]] = []
    for row, col in survey.whitened.tolist():
        if all(abs(row - r) >= survey.size or abs(col - c) >= survey.size for r, c in chosen):
            chosen.append((row, col))
    return chosen


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
        return Check(name, FAILED, f"{len(findings)}: {_some([_line(f) for f in findings])}", findings)
    searched = len(source.targets) - len(blind)
    detail = f"none of {searched:,}, looked for at every pixel of every scan"
    if blind:
        detail += f"; test patches {_some(blind)} are too uniform to be looked for"
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
        return Check(name, FAILED, f"{len(findings)}: {_some([_line(f) for f in findings])}", findings)
    left_out = sum(int((survey.overlap() > WHITENED_TOLERANCE).sum()) for survey in surveys)
    return Check(name, PASSED, f"none; {left_out:,} places of the grid were left out for that")


def check_blank(patches: Patches) -> Check:
    """Patches that show nothing at all."""
    blank = []
    for split, pictures in (("train", patches.train), ("test", patches.test)):
        flat = np.ptp(pictures.reshape(len(pictures), -1), axis=1) == 0
        blank += [patch.patch_id for patch, is_flat in zip(patches.manifest.split(split), flat) if is_flat]
    if blank:
        return Check("blank patches", FAILED, f"{len(blank)} have one gray value only: {_some(blank)}", blank)
    return Check("blank patches", PASSED, "none")


def check_exact(manifest: Manifest) -> Check:
    """Patches with the same pixels in training and test, or under two scans."""
    train, test = manifest.split("train"), manifest.split("test")
    leaks = duplicates.exact_pairs(train, test)
    doubles = [pair for split in (train, test) for pair in duplicates.exact_pairs(split, split)]
    torn = [pair for pair in doubles if pair[0].scan != pair[1].scan]
    findings = [_names(pair) for pair in (*leaks, *torn)]
    if leaks:
        return Check("exact duplicates", FAILED, f"in training and test: {_some([_both(p) for p in leaks])}", findings)
    if torn:
        return Check("exact duplicates", FAILED, f"under two scans: {_some([_both(p) for p in torn])}", findings)
    detail = f"none among {len(train):,} training and {len(test):,} test patches, by SHA-256"
    if doubles:
        detail = f"none across training and test; {len(doubles) // 2} pairs within one scan and split"
    return Check("exact duplicates", NOTE if doubles else PASSED, detail, [_names(pair) for pair in doubles])


def check_near(patches: Patches) -> Check:
    """Patches of training and test that look the same."""
    train, test = patches.manifest.split("train"), patches.manifest.split("test")
    pairs = duplicates.near_pairs(patches.train, patches.test)
    found = [(train[pair.first], test[pair.second]) for pair in pairs]
    findings = [{**_names(names), "alike": round(pair.alike, 4)} for names, pair in zip(found, pairs)]
    if found:
        return Check("near duplicates", FAILED, f"in training and test: {_some([_both(p) for p in found])}", findings)
    return Check("near duplicates", PASSED, "none across training and test, also turned or mirrored")


def _names(pair: tuple[Patch, Patch]) -> dict[str, Any]:
    return {"first": pair[0].patch_id, "second": pair[1].patch_id}


def _both(pair: tuple[Patch, Patch]) -> str:
    return f"{pair[0].patch_id} = {pair[1].patch_id}"
