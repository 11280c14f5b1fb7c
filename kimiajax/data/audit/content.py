"""Checks of whether patches show tissue: none is dark in part, and few are unlike the rest."""

import numpy as np
from PIL import Image

from kimiajax.data.audit.checks import FAILED, NOT_APPLICABLE, NOTE, PASSED, UNTOLD, Check, line, some
from kimiajax.data.manifest import SPLITS, Manifest, Split, left_out_of
from kimiajax.data.patches import darkness_for
from kimiajax.data.sources.source import BACKGROUND, DARK, SMALLEST_HOLE
from kimiajax.data.survey import CELLS
from kimiajax.shapes import Bool, Float, UInt8

UNLIKE = 8.0  # robust standard deviations from the median: of tissue of 24 organs, none is beyond 6
ORDINARY = 4.0  # within which values tell the standard deviation, so that many strange ones do not hide each other
ROUNDS = 5  # in which these are found
MANY = 0.05  # a share of all patches unlike the rest that wants to be looked at
MOST_OF = 0.5  # and one of a class
SHIFTED = 3.0  # standard deviations between the medians of training and test patches
GLASS = 0.5  # of a patch, from which its gray values are glass's and not compared
JUDGED = 50  # patches, from which medians say something
GRAYS = 32  # levels of the histogram whose entropy is taken
SPREADS = {"brightness": 8.0, "entropy": 0.2, "sharpness": 0.1}  # the least that a standard deviation is taken for
RIM, RIM_FROM = 0.05, 200  # a share of cells of half the size, and the patches, in pixels, of which it is asked


class Measures:
    """Measures of each patch at its own size, taken as it is read.

    Args:
        manifest: the patches.

    Attributes:
        ids: of the patches, training patches first.
        dark: the share of cells without a pixel above `DARK`, [n], in [0, 1].
        rim: the same of cells of half the size.
        glass: the share of pixels as bright as background.
        values: by the names of `SPREADS`: mean gray value, entropy of the gray values in bits, and log of the
            Laplacian's standard deviation.
    """

    def __init__(self, manifest: Manifest):
        self._first = {"train": 0, "test": len(manifest.split("train"))}
        self.ids = [patch.patch_id for split in SPLITS for patch in manifest.split(split)]
        self.dark, self.rim, self.glass = np.zeros((3, len(self.ids)))
        self.values = {name: np.zeros(len(self.ids)) for name in SPREADS}

    def take(self, split: Split, index: int, pixels: UInt8[np.ndarray, "h w"]) -> None:
        """Measures a patch, the one at an index of its split."""
        k = self._first[split] + index
        self.dark[k], self.rim[k] = _dark_share(pixels, CELLS), _dark_share(pixels, 2 * CELLS)
        shares = np.array(Image.fromarray(pixels).histogram()) / pixels.size
        self.glass[k] = shares[BACKGROUND:].sum()
        measured = shares @ np.arange(256), _entropy(shares), _sharpness(pixels)
        for values, value in zip(self.values.values(), measured, strict=True):
            values[k] = value


def _dark_share(pixels: UInt8[np.ndarray, "h w"], count: int) -> float:
    step = min(pixels.shape) // count
    if not step:
        return 0.0
    rows = pixels[: step * count, : step * count].reshape(count, step, -1).max(axis=1)
    return float((rows.reshape(count, count, step).max(axis=2) <= DARK).mean())


def _entropy(shares: Float[np.ndarray, "256"]) -> float:
    coarse = shares.reshape(GRAYS, -1).sum(axis=1)
    return float(-(coarse[coarse > 0] * np.log2(coarse[coarse > 0])).sum())


def _sharpness(pixels: UInt8[np.ndarray, "h w"]) -> float:
    gray = pixels.astype(np.int16)
    edges = 4 * gray[1:-1, 1:-1]
    for beside in (gray[:-2, 1:-1], gray[2:, 1:-1], gray[1:-1, :-2], gray[1:-1, 2:]):
        edges -= beside
    edges = edges.ravel().astype(np.float32)
    variance = edges @ edges / edges.size - edges.mean() ** 2 if edges.size else 0.0
    return float(np.log(np.sqrt(max(variance, 0.0)) + 1))


def check_dark(manifest: Manifest, measures: Measures) -> Check:
    """Patches that are dark in part, as padding is, and the places that were left out for it."""
    name, size = "dark and flat patches", manifest.patch_size
    if size < SMALLEST_HOLE:
        return Check(name, NOT_APPLICABLE, f"cells of patches of {size} pixels are too small to tell", of="patches")
    findings = _shares(measures, measures.dark >= darkness_for(size), measures.dark)
    if findings:
        detail = f"{len(findings):,} patches are dark in part, as padding is: {some([line(f) for f in findings])}"
        return Check(name, FAILED, detail, findings, of="patches")
    left_out = left_out_of(manifest.about)
    told = f"left out: {left_out}" if left_out else "no place was left out for it"
    rims = _shares(measures, measures.rim >= RIM, measures.rim) if size >= RIM_FROM else []
    if rims:
        detail = f"{len(rims):,} patches have a dark strip: {some([line(f) for f in rims])}; {told}"
        return Check(name, UNTOLD, detail, rims, of="patches")
    return Check(name, NOTE if left_out else PASSED, f"none; {told}", of="patches")


def _shares(measures: Measures, which: Bool[np.ndarray, " n"], shares: Float[np.ndarray, " n"]) -> list[dict]:
    return [{"patch": measures.ids[k], "dark": round(float(shares[k]), 3)} for k in np.flatnonzero(which)]


def check_unlike(manifest: Manifest, measures: Measures) -> Check:
    """Patches whose brightness, entropy or sharpness is far from all others': blurred, washed out, no tissue."""
    name, judged = "patches unlike the rest", measures.glass < GLASS
    count, glass = int(judged.sum()), int((~judged).sum())
    beside = f"; {glass:,} are mostly glass" if glass else ""
    if count < JUDGED:
        verdict = UNTOLD if len(judged) >= JUDGED else NOTE
        return Check(name, verdict, f"{count} patches of tissue are too few to tell{beside}", of="patches")
    labels = np.concatenate([manifest.labels(split) for split in SPLITS])
    test = np.arange(len(labels)) >= len(manifest.split("train"))
    told, shifts = dict[int, str](), []
    for what, values in measures.values.items():
        scores = robust_scores(values[judged], SPREADS[what])
        of_all = np.zeros(len(labels))
        of_all[judged] = scores
        for k in np.flatnonzero(np.abs(of_all) > UNLIKE).tolist():
            told.setdefault(k, f"{measures.ids[k]} ({what} {of_all[k]:+.0f} sigma)")
        if (judged & test).any() and (judged & ~test).any():
            shift = float(np.median(of_all[judged & test]) - np.median(of_all[judged & ~test]))
            shifts += [f"{what} {shift:+.1f} sigma"] if abs(shift) > SHIFTED else []
    findings = [measures.ids[k] for k in told]
    if shifts:
        detail = f"test patches are all unlike training patches: {', '.join(shifts)}{beside}"
        return Check(name, UNTOLD, detail, findings, of="patches")
    if not told:
        return Check(name, PASSED, f"none of {count:,} patches of tissue{beside}", of="patches")
    of_class = np.bincount(labels[list(told)], minlength=manifest.num_scans) / np.maximum(np.bincount(labels), 1)
    many = len(told) > MANY * count or of_class.max() > MOST_OF
    detail = f"{len(told):,} of {count:,} patches of tissue: {some(list(told.values()))}{beside}"
    return Check(name, UNTOLD if many else NOTE, detail, findings, of="patches")


def robust_scores(values: Float[np.ndarray, " n"], least: float) -> Float[np.ndarray, " n"]:
    """Distances from the median in standard deviations, as the median of absolute distances of ordinary values tells.

    Args:
        values: one a patch.
        least: what a standard deviation is at least: among patches that are all alike, a small distance says nothing.
    """
    ordinary, middle, spread = values, 0.0, least
    for _ in range(ROUNDS):
        middle = np.median(ordinary)
        spread = max(1.4826 * float(np.median(np.abs(ordinary - middle))), least)
        ordinary = values[np.abs(values - middle) <= ORDINARY * spread]
    return (values - middle) / spread
