"""The data set's scores, vectorised: they run under jit, and vmap over rows, seeds or bootstrap draws."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from kimiajax.checks import array_of, is_traced, labels_of, whole, whole_numbers_of
from kimiajax.errors import UserError
from kimiajax.shapes import Bool, Float, Int, Shaped


class Scores(NamedTuple):
    """The data set's three scores in [0, 1], each of whatever shape: one, of rows, of draws."""

    eta_p: Float[np.ndarray | jax.Array, "..."]
    eta_w: Float[np.ndarray | jax.Array, "..."]
    eta_total: Float[np.ndarray | jax.Array, "..."]


def scores_from_counts(
    correct: Shaped[np.ndarray | jax.Array, "*rows s"], tested: Int[np.ndarray | jax.Array, " s"]
) -> Scores:
    """Returns the scores of counts, in the arrays' own library: eta_p = correct / tested over all patches, eta_w the
    mean over scans of correct / tested of the scan, eta_total their product (Babaie et al., arXiv:1705.07522).

    Args:
        correct: correct test patches of each scan, counts or means of them.
        tested: test patches of each scan. A scan without any counts in no mean; without any at all the scores are NaN.
    """
    eta_p = correct.sum(-1) / tested.sum()
    eta_w = _mean_ratio(correct, tested, present=tested > 0)
    return Scores(eta_p, eta_w, eta_p * eta_w)


class KimiaScores(NamedTuple):
    """Scores in [0, 1], and the counts behind them.

    Attributes:
        eta_p: correct test patches by all test patches.
        eta_w: mean over scans of (correct patches of the scan / test patches of the scan), that is macro recall.
        eta_total: eta_p times eta_w.
        eta_w_precision: the mean over scans of (correct / patches predicted as that scan), which the data set's Python
            script prints as eta_w; NaN, as there, if a scan with test patches is never predicted.
        correct: correct test patches per scan.
        tested: test patches per scan.
    """

    eta_p: Float[jax.Array, ""]
    eta_w: Float[jax.Array, ""]
    eta_total: Float[jax.Array, ""]
    eta_w_precision: Float[jax.Array, ""]
    correct: Int[jax.Array, " scans"]
    tested: Int[jax.Array, " scans"]


def kimia_scores(
    labels: Int[jax.Array | np.ndarray, " n"] | Any,
    predicted: Int[jax.Array | np.ndarray, " n"] | Any,
    num_scans: int | Any,
    mask: Bool[jax.Array | np.ndarray, " n"] | Any = None,
) -> KimiaScores:
    """Scores of predicted scans against true ones, by `scores_from_counts`.

    Args:
        labels: the true scan of each patch, 0 to num_scans - 1.
        predicted: the predicted scan; one outside that range is simply wrong.
        num_scans: how many scans there are; static under jit.
        mask: false for padded entries, which count nowhere.

    Scans without test patches are left out of eta_w's mean; without any test patch the scores are NaN.

    Raises:
        UserError: what is not [n], of other lengths, fractions or NaN, a mask of other than truth values, or a label
            that is no scan; under jit, where none can be refused, eta_p and eta_total are NaN.
    """
    num_scans = whole("num_scans", num_scans, 1)
    labels = whole_numbers_of("labels", labels, of="patches")
    predicted = whole_numbers_of("predictions", predicted, len(labels), "labels")
    counted = np.ones(len(labels), bool) if mask is None else array_of("mask", mask)
    if counted.dtype != bool or counted.shape != labels.shape:
        raise UserError(f"mask: {counted.dtype} {counted.shape}; give a truth value for each of {len(labels)} labels")
    if not (is_traced(labels) or is_traced(counted)):
        labels_of("labels", np.where(counted, labels, 0), classes=num_scans)
    # before JAX may cut off what 32 bits do not hold
    labels, predicted = (_inside(each, num_scans) for each in (labels, predicted))
    scans = jnp.arange(num_scans)
    outside = (counted & (labels < 0)).any()
    truth = (labels[:, None] == scans) & counted[:, None]  # [n scans]
    guess = (predicted[:, None] == scans) & counted[:, None]
    tested, guessed, correct = truth.sum(0), guess.sum(0), (truth & guess).sum(0)
    precision = _mean_ratio(correct, guessed, present=(tested > 0) | (guessed > 0))
    eta_p, eta_w, eta_total = cast("tuple[jax.Array, ...]", scores_from_counts(correct, tested))
    eta_p, eta_total = (jnp.where(outside, jnp.nan, score) for score in (eta_p, eta_total))
    return KimiaScores(eta_p, eta_w, eta_total, precision, correct, tested)


def _inside(scans: Any, num_scans: int) -> jax.Array:
    """Numbers of scans on the device, -1 for all that is none."""
    of = jnp if isinstance(scans, jax.Array) else np
    return jnp.asarray(of.where((scans >= 0) & (scans < num_scans), scans, -1))


def plain_scores(labels: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], num_scans: int) -> dict[str, Any]:
    """`kimia_scores` in double precision, by name, as Python's numbers and lists; a score that is NaN is None."""
    with jax.enable_x64(True):
        scores = jax.device_get(kimia_scores(labels, predicted, num_scans))
    return {name: None if np.isnan(each).any() else each.tolist() for name, each in scores._asdict().items()}


def _mean_ratio(part: Any, whole: Any, present: Any) -> Any:
    """Mean of part / whole over the present scans; of the others part is 0."""
    return (part / (whole + ~present)).sum(-1) / present.sum()
