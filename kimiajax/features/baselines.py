"""Features that know nothing of tissue: how far they get is the floor under every network's row.

They are taken of the same pixels as the networks see, and standardised, since some are shares of 1 / 256, at which a
linear SVM with C = 1 is blind.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kimiajax.features.svm import LinearSVM, fit_linear_svm
from kimiajax.shapes import Float, Int, UInt8

Gray = UInt8[np.ndarray, "h w"]
RING = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))  # neighbours of (1, 1), one after another


def mean_and_deviation(image: Gray) -> Float[np.ndarray, "2"]:
    """Of gray values, 0 to 255."""
    return np.array([image.mean(), image.std()])


def histogram(image: Gray) -> Float[np.ndarray, "256"]:
    """The share of pixels of each gray value."""
    return np.bincount(image.ravel(), minlength=256) / image.size


def bright_share(image: Gray, background: int = 220) -> Float[np.ndarray, "1"]:
    """The share of pixels of gray `background` and above, as the rule for background has it."""
    return np.array([(image >= background).mean()])


def local_binary_patterns(image: Gray) -> Float[np.ndarray, "59"]:
    """The share of inner pixels of each of 58 uniform patterns, and of all others (Ojala et al., TPAMI 24, 2002).

    A pattern is which of a pixel's eight neighbours, those that touch it, are as bright as it is or brighter; it is
    uniform where they change at most twice around it.
    """
    height, width = (side - 2 for side in image.shape)
    center = image[1:-1, 1:-1]
    code = np.zeros((height, width), np.uint8)
    for bit, (row, col) in enumerate(RING):
        code |= (image[row : row + height, col : col + width] >= center).astype(np.uint8) << np.uint8(bit)
    return np.bincount(BINS[code.ravel()], minlength=UNIFORM + 1) / code.size


def _bins() -> Int[np.ndarray, "256"]:
    """The bin of each pattern: uniform ones in the order of their numbers, and the last for the others."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    uniform = (bits != np.roll(bits, 1, axis=1)).sum(1) <= 2
    return np.where(uniform, np.cumsum(uniform) - 1, uniform.sum())


BINS = _bins()
UNIFORM = int(BINS.max())


# name -> (what the table calls it, the feature of one image)
FLOORS: dict[str, tuple[str, Callable[..., Float[np.ndarray, " d"]]]] = {
    "floor_mean_sd": ("gray mean, sd", mean_and_deviation),
    "floor_bright": ("white share", bright_share),
    "floor_histogram": ("gray histogram", histogram),
    "floor_lbp": ("LBP", local_binary_patterns),
}


def features_of(name: str, images: UInt8[np.ndarray, "n s s"], background: int = 220) -> Float[np.ndarray, "n d"]:
    """The features of a floor, one row an image.

    Args:
        name: a key of `FLOORS`.
        images: gray values, at least 3 x 3 of them.
        background: the gray value from which a pixel counts as white.
    """
    _, feature = FLOORS[name]
    options = {"background": background} if feature is bright_share else {}
    return np.stack([feature(image, **options) for image in images])


def fit_standardised(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], c: float = 1.0) -> LinearSVM:
    """`fit_linear_svm` on features of mean 0 and deviation 1, as an SVM on the features as they are.

    What is the same for every patch stays out of it.

    Raises:
        UserError: as `fit_linear_svm`.
    """
    features = features.astype(np.float64)
    mean, deviation = features.mean(0), features.std(0)
    varies = deviation > 1e-12 * np.abs(features).max(0, initial=0)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    svm = fit_linear_svm((features - mean) * scale, labels, c)
    coef = svm.coef * scale
    return replace(svm, coef=coef, intercept=svm.intercept - coef @ mean)
