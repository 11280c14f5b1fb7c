"""The linear support vector machine on a network's features, kept as plain arrays."""

import functools
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kimiajax.checks import features_of, labels_of, on_host, positive
from kimiajax.errors import UserError
from kimiajax.shapes import Float, Int

if TYPE_CHECKING:
    from sklearn.svm import SVC

AT_ONCE, COLUMNS = 1024, 4096  # patches that are looked at, and features that are multiplied, at a time
DOUBLES = 2**24  # values that are converted at a time for predictions
PAIRS_AT_ONCE, PAIRS_BYTES = 8, 2**30  # pairs of scans that are fitted side by side, and what their features may take


@dataclass(frozen=True)
class LinearSVM:
    """One-vs-one linear classifiers: the sign of `coef[p] @ x + intercept[p]` votes for one scan of pair p.

    Attributes:
        classes: the scans, ascending, [k].
        coef: [k (k - 1) / 2, d], pairs in the order (0, 1), (0, 2), ..., (k - 2, k - 1).
        intercept: [k (k - 1) / 2]; a positive value votes for the pair's first scan.
    """

    classes: Int[np.ndarray, " k"]
    coef: Float[np.ndarray, "p d"]
    intercept: Float[np.ndarray, " p"]

    def predict(self, features: Float[np.ndarray, "n d"] | Any) -> Int[np.ndarray, " n"]:
        """The scan with most votes; of several, the first.

        Raises:
            UserError: as `votes`.
        """
        return self.classes[self.votes(features).argmax(axis=1)]

    def votes(self, features: Float[np.ndarray, "n d"] | Any) -> Int[np.ndarray, "n k"]:
        """How many pairs vote for each of `classes`; together, all k (k - 1) / 2 of them.

        Raises:
            UserError: features of another shape or width than those that were learnt from, or that are not finite.
        """
        features = features_of("features", features, self.coef.shape[1])
        first, second = np.triu_indices(len(self.classes), k=1)
        rows = max(1, DOUBLES // max(1, features.shape[1]))
        parts = [features[start : start + rows] for start in range(0, max(1, len(features)), rows)]
        for_first = np.concatenate(
            [np.asarray(part, np.float64) @ self.coef.T + self.intercept > 0 for part in parts]
        )  # [n p]
        votes = np.zeros((len(features), len(self.classes)), np.int64)
        rows = np.arange(len(features))[:, None]
        np.add.at(votes, (rows, np.where(for_first, first, second)), 1)
        return votes


def fit_linear_svm(
    features: Float[np.ndarray, "n d"] | Any,
    labels: Int[np.ndarray, " n"] | Any,
    c: float | Any = 1.0,
    *,
    gram_bytes: int = 2**30,
) -> LinearSVM:
    """scikit-learn's (LIBSVM's) `SVC(kernel="linear")` on features as they are: unscaled, hinge loss, one-vs-one.

    The products of all pairs of patches are computed once, as one matrix, where LIBSVM would compute them again for
    each pair of scans: 7 times as fast at [2400 2048], the same problem. Where that matrix would be too large, each
    pair of scans has its own, and memory holds the patches of two scans at a time.

    Args:
        features: one row a patch; they may be mapped from a file.
        labels: the scan of each.
        c: the penalty, > 0.
        gram_bytes: what one matrix, 8 n^2 bytes, may take; LIBSVM computes products itself where two scans' would take
            more.

    Raises:
        UserError: features that are not [n d], not finite or the same for every patch, labels that are not one whole
            number from 0 for each or are of one scan only, or a penalty that is not above 0.
    """
    features, c = on_host(features_of("features", features)), positive("c", c)
    features = features if features.dtype.kind == "f" else features.astype(np.float64)
    labels = np.asarray(labels_of("labels", labels, len(features), of="rows of features"))
    parts = [features[start : start + AT_ONCE] for start in range(0, len(features), AT_ONCE)]
    if len(np.unique(labels)) < 2:
        raise UserError("a linear SVM needs patches of two scans at least")
    if all((part == features[:1]).all() for part in parts):
        raise UserError("the features are the same for every patch, nothing can be learnt from them; check the weights")
    return _fit(features, labels, c, gram_bytes)


def _fit(features: np.ndarray, labels: np.ndarray, c: float, gram_bytes: int) -> LinearSVM:
    from sklearn.svm import SVC  # here only: importing it takes seconds

    classes, fits = np.unique(labels), 8 * len(features) ** 2 <= gram_bytes
    if len(classes) > 2 and not fits:
        of_pair = (np.flatnonzero(np.isin(labels, pair)) for pair in itertools.combinations(classes, 2))
        largest = 8 * features.shape[1] * np.sort(np.unique(labels, return_counts=True)[1])[-2:].sum()
        at_once = int(min(os.cpu_count() or 1, PAIRS_AT_ONCE, max(1, PAIRS_BYTES // largest)))
        with ThreadPoolExecutor(at_once) as pool:  # LIBSVM lets go of the interpreter
            svms = list(pool.map(lambda rows: _fit(features[rows], labels[rows], c, gram_bytes), of_pair))
        coef, intercept = (np.concatenate([getattr(svm, name) for svm in svms]) for name in ("coef", "intercept"))
        return LinearSVM(classes.astype(np.int32), coef, intercept)
    if fits:
        svc = SVC(kernel="precomputed", C=c).fit(_products(features), labels)
    else:
        svc = SVC(kernel="linear", C=c).fit(features, labels)
    # Of two classes LIBSVM's sign is turned: scikit-learn's decision is positive for the second.
    sign = -1.0 if len(svc.classes_) == 2 else 1.0
    return LinearSVM(svc.classes_.astype(np.int32), sign * _coefficients(svc, features), sign * svc.intercept_)


def _products(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """The inner products of all patches in double precision, of whose features some columns are converted at a time."""
    columns = (features[:, start : start + COLUMNS] for start in range(0, features.shape[1], COLUMNS))
    doubles = (some.astype(np.float64) for some in columns)
    return functools.reduce(lambda gram, product: np.add(gram, product, out=gram), (some @ some.T for some in doubles))


def _coefficients(svc: "SVC", features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "p d"]:
    """Each pair's normal vector, from the multipliers of its support vectors.

    LIBSVM keeps, of a patch of scan i, its multiplier against scan j in row j of `dual_coef_`, or j - 1 where i < j.
    """
    ends = np.cumsum(svc.n_support_)
    of_scan = [slice(end - count, end) for end, count in zip(ends, svc.n_support_)]
    multipliers, parts = svc.dual_coef_, []
    for start in range(0, features.shape[1], COLUMNS):
        vectors = features[svc.support_, start : start + COLUMNS].astype(np.float64)
        parts.append(
            [
                multipliers[j - 1, of_scan[i]] @ vectors[of_scan[i]] + multipliers[i, of_scan[j]] @ vectors[of_scan[j]]
                for i, j in zip(*np.triu_indices(len(of_scan), k=1))
            ]
        )
    return np.concatenate(parts, axis=1)
