"""Checks of test patches' labels and orientation, by their rims and by what they show."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from sklearn.neighbors import NearestNeighbors

from kimiajax.data.audit.alignment import ORIENTATIONS, Fits
from kimiajax.data.audit.checks import FAILED, NOT_APPLICABLE, NOTE, PASSED, UNTOLD, Check, line, some
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
LESS = 0.01  # and one under which it is none that test patches agree less often than training patches
TOLERATED = 0.75  # of the latter's agreement, since neighbours in a scan are more alike than others
EXCHANGED = 0.05  # and one under which it is none that other labels agree better


def _threshold(fits: Fits) -> float:
    """Returns the correlation that the rims of strange patches do not reach.

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
        doubtful: classes whose test patches agree less often than their training patches do among themselves.
    """

    agree: int
    asked: int
    chance: float
    exchanged: list[tuple[int, int]]
    doubtful: list[int]


def looks_of(patches: Patches, apart: bool) -> Looks:
    """Compares patches by the cumulative histograms of their gray values.

    Args:
        patches: small pictures of all.
        apart: compare test patches with training patches; else each patch with all others, as far as `ASKED` go.
    """
    labels, pictures = [patches.manifest.labels(split) for split in SPLITS], [patches.train, patches.test]
    if not apart:
        labels, pictures = [np.concatenate(labels)], [np.concatenate(pictures)]
    count, train = patches.manifest.num_scans, labels[0]
    nearest = NearestNeighbors(n_neighbors=2, metric="manhattan").fit(_cumulative(pictures[0]))
    some = np.arange(0, len(train), -(-len(train) // ASKED))
    pairs = nearest.kneighbors(_cumulative(pictures[0][some]), return_distance=False)
    seen = among = _counted(train[some], train[np.where(pairs[:, 0] == some, pairs[:, 1], pairs[:, 0])], count)
    if apart:
        closest = nearest.kneighbors(_cumulative(pictures[1]), 1, return_distance=False)[:, 0]
        seen = _counted(labels[1], train[closest], count)
    agree, asked = int(np.trace(seen)), int(seen.sum())
    chance = float(binom.sf(agree - 1, asked, np.bincount(train).max() / len(train)))
    return Looks(agree, asked, chance, _exchanged(seen), _doubtful(seen, among) if apart else [])


def _counted(labels: Int[np.ndarray, " n"], looked_like: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, "c c"]:
    """How many patches of each class look like each."""
    seen = np.zeros((count, count), np.int64)
    np.add.at(seen, (labels, looked_like), 1)
    return seen


def _doubtful(seen: Int[np.ndarray, "c c"], among: Int[np.ndarray, "c c"]) -> list[int]:
    """Classes whose rows of test patches agree less often than those of training patches, by Holm's test; all of them
    where the sums do, which single ones need not show."""
    usual = (np.diag(among) + 1) / (among.sum(axis=1) + 2)
    tested = seen.sum(axis=1)
    p = binom.cdf(np.diag(seen), tested, usual)
    order = np.argsort(p)
    passed = np.cumsum(p[order] > LESS / np.arange(len(p), 0, -1)) == 0
    if passed.any():
        return sorted(order[passed].tolist())
    expected = float((usual * tested).sum() / max(tested.sum(), 1))
    fewer = binom.cdf(np.trace(seen), tested.sum(), TOLERATED * expected) < LESS
    return list(range(len(p))) if fewer else []


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
    if len(source) < 2:
        return Check("labels", NOT_APPLICABLE, "there is one class", of="patches")
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
    if looks.doubtful:
        named = some([source.names[k] for k in looks.doubtful])
        detail = f"{detail}, fewer than training patches among themselves: of {named} labels, or looks, are others"
        return Check(name, UNTOLD, detail, [source.names[k] for k in looks.doubtful], of="patches")
    if looks.chance >= CHANCE:
        return Check(name, UNTOLD, f"{detail}, which may be chance (p {looks.chance:.2g})", of="patches")
    return Check(name, PASSED, f"{detail}; a few wrong labels would not show", of="patches")
