"""Whether test patches are of the scans that they name, and the same way up: by their rims, and by what they show."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from kimiajax.data.audit.alignment import ORIENTATIONS, Fits
from kimiajax.data.audit.checks import FAILED, NOTE, PASSED, UNTOLD, Check, line, some
from kimiajax.data.manifest import SPLITS
from kimiajax.data.patch_arrays import Patches
from kimiajax.data.sources.scan_file import Scans
from kimiajax.data.sources.source import Source
from kimiajax.shapes import Float, Int, UInt8

FIT = 0.1  # by so much must a patch fit elsewhere better, in correlation, than where it is said to belong
SIGMAS = 5.0  # and by so many standard deviations better than patches of other scans fit
LEVELS = 64  # of the histograms that tell what a patch looks like
CHANCE = 1e-3  # a probability under which it is no chance that labels agree with looks
ASKED = 2000  # patches at most, where each is compared with all others
EXCHANGED = 0.05  # and one under which it is none that other labels agree better


def _threshold(fits: Fits) -> float:
    """What correlation the rims of strange patches do not reach.

    Strange are all fits but the best of each patch, to any scan and in any orientation: labels may be wrong.
    """
    rows = [np.sort(np.nan_to_num(each, nan=-1), axis=1)[:, :-1] for each in (fits.upright, fits.turned)]
    strange = np.concatenate([row[row > -1] for row in rows])
    if not len(strange):
        return 1.0
    middle = float(np.median(strange))
    return middle + SIGMAS * 1.4826 * float(np.median(np.abs(strange - middle)))


def check_targets(source: Scans, fits: Fits) -> Check:
    """Whether each test patch continues its own scan's tissue and no other's."""
    name, targets = "targets", source.targets
    upright = np.nan_to_num(fits.upright, nan=-1)
    own = np.maximum(upright[np.arange(len(targets)), targets], np.nan_to_num(fits.turned, nan=-1).max(axis=1))
    level, best = _threshold(fits), upright.argmax(axis=1)
    strays = np.flatnonzero((upright.max(axis=1) > np.maximum(own + FIT, level)) & (best != targets))
    findings = [
        {"test_patch": int(k), "target": source.names[targets[k]], "fits": source.names[best[k]]} for k in strays
    ]
    if findings:
        detail = f"{len(findings)} test patches continue another scan's tissue: {some([line(f) for f in findings])}"
        return Check(name, FAILED, detail, findings)
    return _told(name, own > level, "continue the tissue around a whitened place of the scan that they name")


def check_orientation(source: Scans, fits: Fits) -> Check:
    """Whether the test patches of each scan are the same way up as the scan is."""
    name, targets = "orientation", source.targets
    level, turned = _threshold(fits), np.nan_to_num(fits.turned, nan=-1)
    findings = []
    for scan in np.unique(targets).tolist():
        mean = turned[targets == scan].mean(axis=0)
        if mean.argmax() and mean.max() > mean[0] + FIT and mean.max() > level:
            findings.append({"scan": source.names[scan], "its patches are": ORIENTATIONS[int(mean.argmax())]})
    if findings:
        return Check(name, FAILED, f"scan and test patches differ: {some([line(f) for f in findings])}", findings)
    upright = turned[:, 0]
    return _told(name, (upright > level) & (upright >= turned.max(axis=1)), "are the same way up as their scan")


def _told(name: str, told: np.ndarray, what: str) -> Check:
    untold = [int(k) for k in np.flatnonzero(~told)]
    detail = f"{told.sum():,} of {len(told):,} test patches {what}"
    if untold:
        detail += f"; of {len(untold)} it cannot be told"
    return Check(name, PASSED if told.mean() > 0.5 else UNTOLD, detail, untold)


@dataclass(frozen=True)
class Looks:
    """How labels agree with what patches look like.

    Attributes:
        agree: patches whose nearest other, by gray values, is of their own class.
        asked: of how many.
        chance: the probability of as many where labels say nothing.
        exchanged: classes whose patches look like another's, each with that; none where that may be chance.
    """

    agree: int
    asked: int
    chance: float
    exchanged: list[tuple[int, int]]


def looks_of(patches: Patches, apart: bool) -> Looks:
    """Compares patches by the cumulative histograms of their gray values.

    Args:
        patches: small pictures of all.
        apart: compare test patches with training patches; else each patch with all others, as far as `ASKED` go.
    """
    train, test = (patches.manifest.labels(split) for split in SPLITS)
    if apart:
        nearest = KNeighborsClassifier(1, metric="manhattan").fit(_cumulative(patches.train), train)
        asked, looks = test, nearest.predict(_cumulative(patches.test))
    else:
        pictures, train = np.concatenate([patches.train, patches.test]), np.concatenate([train, test])
        some = np.arange(0, len(train), -(-len(train) // ASKED))
        nearest = NearestNeighbors(n_neighbors=2, metric="manhattan").fit(_cumulative(pictures))
        pairs = nearest.kneighbors(_cumulative(pictures[some]), return_distance=False)
        others = np.where(pairs[:, 0] == some, pairs[:, 1], pairs[:, 0])
        asked, looks = train[some], train[others]
    seen = np.zeros((patches.manifest.num_scans,) * 2, np.int64)
    np.add.at(seen, (asked, looks), 1)
    by_chance = float(np.bincount(train).max() / len(train))
    agree = int(np.trace(seen))
    return Looks(agree, len(asked), float(binom.sf(agree - 1, len(asked), by_chance)), _exchanged(seen))


def _exchanged(seen: Int[np.ndarray, "c c"]) -> list[tuple[int, int]]:
    """Classes to be named otherwise, so that as many patches as can be are of the class that they look like."""
    _, best = linear_sum_assignment(seen, maximize=True)
    moved = [(k, int(to)) for k, to in enumerate(best) if k != to]
    own, other = sum(int(seen[k, k]) for k, _ in moved), sum(int(seen[pair]) for pair in moved)
    return moved if other > own and binom.sf(other - 1, own + other, 0.5) < EXCHANGED else []


def _cumulative(pictures: UInt8[np.ndarray, "n s s"]) -> Float[np.ndarray, "n l"]:
    """The share of pixels up to each of `LEVELS` gray values."""
    flat = pictures.reshape(len(pictures), -1)
    counts = np.stack([np.bincount(row * LEVELS // 256, minlength=LEVELS) for row in flat.astype(np.int32)])
    return np.cumsum(counts, axis=1)[:, :-1] / flat.shape[1]


def check_labels(patches: Patches, source: Source, rims: Check | None) -> Check:
    """Whether patches look like others of their own class: that proves no label, but labels that were mixed up do not.

    Args:
        patches: small pictures of all.
        source: where they are from, which names the classes.
        rims: what the rims of the test patches tell, where that could be asked; they decide where they tell.
    """
    apart = source.test_patches() is not None
    name, looks = "labels", looks_of(patches, apart)
    asked, others = ("test patches", "a training patch") if apart else ("patches", "another")
    detail = f"{looks.agree:,} of {looks.asked:,} {asked} look most like {others} of their own class"
    if rims is not None and rims.verdict != UNTOLD:
        return Check(name, PASSED if rims.verdict == PASSED else NOTE, f"see {rims.name}; {detail}", of="patches")
    if looks.exchanged:
        findings = [{"those of": source.names[one], "look like": source.names[to]} for one, to in looks.exchanged]
        detail = f"{detail}; were classes exchanged? {some([line(f) for f in findings])}"
        return Check(name, UNTOLD, detail, findings, of="patches")
    if looks.chance >= CHANCE:
        return Check(name, UNTOLD, f"{detail}, which may be chance (p {looks.chance:.2g})", of="patches")
    return Check(name, PASSED, f"{detail}; a few wrong labels would not show", of="patches")
