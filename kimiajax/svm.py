"""The linear support vector machine on a network's features, kept as plain arrays."""

from dataclasses import dataclass

import numpy as np

from kimiajax.errors import UserError
from kimiajax.shapes import Float, Int


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

    def predict(self, features: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
        """The scan with most votes; of several, the first."""
        first, second = np.triu_indices(len(self.classes), k=1)
        for_first = features.astype(np.float64) @ self.coef.T + self.intercept > 0  # [n p]
        votes = np.zeros((len(features), len(self.classes)), np.int64)
        rows = np.arange(len(features))[:, None]
        np.add.at(votes, (rows, np.where(for_first, first, second)), 1)
        return self.classes[votes.argmax(axis=1)]


def fit_linear_svm(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], c: float = 1.0) -> LinearSVM:
    """scikit-learn's (LIBSVM's) `SVC(kernel="linear")` on features as they are: unscaled, hinge loss, one-vs-one.

    Args:
        features: one row a patch.
        labels: the scan of each.
        c: the penalty, > 0.

    Raises:
        UserError: features that are not finite or that are the same for every patch, or labels of one scan only.
    """
    from sklearn.svm import SVC  # here only: importing it takes seconds

    if not np.isfinite(features).all():
        raise UserError("the features hold NaN or infinity; check the weights")
    if (features == features[:1]).all():
        raise UserError("the features are the same for every patch, nothing can be learnt from them; check the weights")
    if len(np.unique(labels)) < 2:
        raise UserError("a linear SVM needs patches of two scans at least")
    svc = SVC(kernel="linear", C=c).fit(features, labels)
    # Of two classes LIBSVM's sign is turned: scikit-learn's decision is positive for the second.
    sign = -1.0 if len(svc.classes_) == 2 else 1.0
    return LinearSVM(svc.classes_.astype(np.int32), sign * np.asarray(svc.coef_), sign * svc.intercept_)
