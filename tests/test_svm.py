import numpy as np
import pytest
from sklearn.svm import SVC

from kimiajax.errors import UserError
from kimiajax.svm import fit_linear_svm


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_saved_arrays_predict_as_scikit_learns_svc_does(rng, classes):
    labels = rng.integers(0, classes, 120) * 3 + 1  # scans need not be numbered from 0 without gaps
    centres = rng.standard_normal((22, 10))
    train, test = (centres[labels] + 1.5 * rng.standard_normal((120, 10)) for _ in range(2))
    svm = fit_linear_svm(train, labels)
    expected = SVC(kernel="linear", C=1.0).fit(train, labels).predict(test)
    assert len(np.unique(expected)) == classes
    np.testing.assert_array_equal(svm.predict(test), expected)


def test_features_that_are_constant_or_not_finite_are_refused():
    labels = np.array([0, 1])
    with pytest.raises(UserError, match="same for every patch"):
        fit_linear_svm(np.ones((2, 3)), labels)
    with pytest.raises(UserError, match="NaN"):
        fit_linear_svm(np.array([[np.nan], [1.0]]), labels)
    with pytest.raises(UserError, match="two scans at least"):
        fit_linear_svm(np.array([[0.0], [1.0]]), np.array([3, 3]))
