import numpy as np
import pytest
from sklearn.svm import SVC

from kimiajax.errors import UserError
from kimiajax.features.svm import fit_linear_svm


@pytest.mark.parametrize("gram_bytes", [2**30, 8 * 90**2, 0])  # one matrix, one a pair of scans, none
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_saved_arrays_predict_as_scikit_learns_svc_does(rng, classes, gram_bytes):
    labels = rng.integers(0, classes, 120) * 3 + 1  # scans need not be numbered from 0 without gaps
    centres = rng.standard_normal((22, 10))
    train, test = (centres[labels] + 1.5 * rng.standard_normal((120, 10)) for _ in range(2))
    svm = fit_linear_svm(train, labels, gram_bytes=gram_bytes)
    svc = SVC(kernel="linear", C=1.0).fit(train, labels)
    assert len(np.unique(svc.predict(test))) == classes
    np.testing.assert_array_equal(svm.predict(test), svc.predict(test))
    votes = svm.votes(test)
    np.testing.assert_array_equal(votes.sum(axis=1), classes * (classes - 1) // 2)
    np.testing.assert_array_equal(svm.classes[votes.argmax(axis=1)], svm.predict(test))
    sign = -1 if classes == 2 else 1
    np.testing.assert_allclose(svm.coef, sign * svc.coef_, atol=1e-2 * np.abs(svc.coef_).max())  # LIBSVM's tolerance


def test_a_multiplier_of_another_pair_would_show(rng, monkeypatch):
    labels = np.arange(60) % 3
    train = rng.standard_normal((60, 10)) + 2 * rng.standard_normal((3, 10))[labels]
    real = SVC.fit

    def exchanged(self, *given):
        fitted = real(self, *given)
        monkeypatch.setattr(type(fitted), "dual_coef_", fitted.dual_coef_[::-1], raising=False)
        del fitted.__dict__["dual_coef_"]
        return fitted

    expected = real(SVC(kernel="linear"), train, labels).coef_
    monkeypatch.setattr(SVC, "fit", exchanged)
    assert np.abs(fit_linear_svm(train, labels).coef - expected).max() > 0.1 * np.abs(expected).max()


def test_features_that_are_constant_or_not_finite_are_refused():
    labels = np.array([0, 1])
    with pytest.raises(UserError, match="same for every patch"):
        fit_linear_svm(np.ones((2, 3)), labels)
    with pytest.raises(UserError, match="NaN"):
        fit_linear_svm(np.array([[np.nan], [1.0]]), labels)
    with pytest.raises(UserError, match="two scans at least"):
        fit_linear_svm(np.array([[0.0], [1.0]]), np.array([3, 3]))
