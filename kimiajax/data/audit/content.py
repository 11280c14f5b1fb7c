"""Whether patches show tissue: what is dark or flat, and what is unlike the rest."""

import numpy as np

from kimiajax.data.audit.checks import FAILED, NOT_APPLICABLE, NOTE, PASSED, UNTOLD, Check, line, some
from kimiajax.data.manifest import SPLITS, left_out_of
from kimiajax.data.patch_arrays import Patches
from kimiajax.data.patches import Rules
from kimiajax.data.sources.source import BACKGROUND, DARK, SMALLEST_HOLE
from kimiajax.data.survey import CELLS
from kimiajax.shapes import Float, UInt8

UNLIKE = 8.0  # robust standard deviations from the median: of tissue of 24 organs, none is beyond 6
MANY = 0.05  # a share of patches unlike the rest that wants to be looked at
GLASS = 0.5  # of a patch, from which its gray values are glass's and not compared
JUDGED = 50  # patches, from which medians say something
SPREADS = {"brightness": 8.0, "entropy": 0.2, "sharpness": 0.1}  # the least that a standard deviation is taken for
GRAYS = 32  # levels of the histogram whose entropy is taken


def check_dark(patches: Patches) -> Check:
    """Patches that are dark in part, as padding is, and the places that were left out for it."""
    name, manifest, findings = "dark and flat patches", patches.manifest, []
    if manifest.patch_size < SMALLEST_HOLE:
        detail = f"cells of patches of {manifest.patch_size} pixels are too small to tell"
        return Check(name, NOT_APPLICABLE, detail, of="patches")
    for split, pictures in zip(SPLITS, (patches.train, patches.test)):
        for patch, share in zip(manifest.split(split), dark_shares(pictures)):
            if share >= Rules.darkness:
                findings.append({"patch": patch.patch_id, "dark": round(float(share), 3)})
    left_out = left_out_of(manifest.about)
    if findings:
        detail = f"{len(findings):,} patches are dark in part, as padding is: {some([line(f) for f in findings])}"
        return Check(name, FAILED, detail, findings, of="patches")
    if left_out:
        counts = [{"left out": kind, "by scan": counts} for kind, counts in manifest.about["left_out"].items()]
        return Check(name, NOTE, f"none; left out: {left_out}", counts, of="patches")
    return Check(name, PASSED, "none, and no place was left out for it", of="patches")


def dark_shares(pictures: UInt8[np.ndarray, "n s s"]) -> Float[np.ndarray, " n"]:
    """The share of each picture's cells, in [0, 1], that hold no pixel above `DARK`."""
    step = pictures.shape[1] // CELLS
    cells = pictures[:, : step * CELLS, : step * CELLS].reshape(-1, CELLS, step, CELLS, step)
    return (cells.max(axis=(2, 4)) <= DARK).mean(axis=(1, 2))


def check_unlike(patches: Patches) -> Check:
    """Patches whose brightness, entropy or sharpness is far from all others': blurred, washed out, no tissue."""
    name, pictures = "patches unlike the rest", np.concatenate([patches.train, patches.test])
    ids = [patch.patch_id for split in SPLITS for patch in patches.manifest.split(split)]
    judged = np.flatnonzero((pictures >= BACKGROUND).mean(axis=(1, 2)) < GLASS)
    if len(judged) < JUDGED:
        return Check(name, NOTE, f"{len(judged)} patches of tissue are too few to tell", of="patches")
    findings: dict[str, str] = {}
    for what, values in measures(pictures[judged]).items():
        scores = robust_scores(values, SPREADS[what])
        for k in np.flatnonzero(np.abs(scores) > UNLIKE):
            findings.setdefault(ids[judged[k]], f"{ids[judged[k]]} ({what} {scores[k]:+.0f} sigma)")
    share = len(findings) / len(judged)
    detail = f"{len(findings):,} of {len(judged):,} patches of tissue ({100 * share:.1f} %)"
    if not findings:
        return Check(name, PASSED, f"none of {len(judged):,} patches of tissue", of="patches")
    told = f"{detail}: {some(list(findings.values()))}"
    return Check(name, UNTOLD if share > MANY else NOTE, told, list(findings), of="patches")


def measures(pictures: UInt8[np.ndarray, "n s s"]) -> dict[str, Float[np.ndarray, " n"]]:
    """Mean gray value, entropy of the gray values in bits, and log of the Laplacian's standard deviation."""
    gray = pictures.astype(np.float32)
    edges = 4 * gray[:, 1:-1, 1:-1] - gray[:, :-2, 1:-1] - gray[:, 2:, 1:-1] - gray[:, 1:-1, :-2] - gray[:, 1:-1, 2:]
    return {
        "brightness": gray.mean(axis=(1, 2)),
        "entropy": np.array([_entropy(picture) for picture in pictures]),
        "sharpness": np.log(edges.std(axis=(1, 2)) + 1),
    }


def _entropy(picture: UInt8[np.ndarray, "s s"]) -> float:
    shares = np.bincount(picture.ravel() // (256 // GRAYS), minlength=GRAYS) / picture.size
    return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())


def robust_scores(values: Float[np.ndarray, " n"], least: float) -> Float[np.ndarray, " n"]:
    """Distances from the median in standard deviations, these as the median of absolute distances tells them.

    Args:
        values: one a patch.
        least: what a standard deviation is at least: among patches that are all alike, a small distance says nothing.
    """
    away = values - np.median(values)
    return away / max(1.4826 * float(np.median(np.abs(away))), least)
