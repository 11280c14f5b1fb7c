"""Batch normalisation against a few lines of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kimiajax.models import batch_norm
from kimiajax.models.batch_norm import BatchNorm, Normalisation

MOMENTUM, EPSILON = 0.9, 1e-3
PATH = "block"


class Net(batch_norm.nn.Module):
    @batch_norm.nn.compact
    def __call__(self, x, how, mask):
        return BatchNorm(EPSILON, 0.99, name=PATH)(x, how, mask)


@pytest.fixture
def variables(rng):
    def arrays(*names):
        return {PATH: {name: rng.uniform(0.5, 2, 3).astype(np.float32) for name in names}}

    return {"params": arrays("scale", "bias"), "batch_stats": arrays("mean", "var")}


def apply(variables, x, how, mask=None):
    y, moved = Net().apply(variables, jnp.asarray(x), how, mask, mutable=["batch_stats"])
    return y, moved["batch_stats"][PATH]


def by_hand(variables, x, mode):
    """What the mode gives, in float64; `x` holds no padding."""
    x, params, stats = x.astype(np.float64), variables["params"][PATH], variables["batch_stats"][PATH]
    mean, var = (stats["mean"], stats["var"]) if mode == "inference" else (x.mean((0, 1, 2)), x.var((0, 1, 2)))
    y = (x - mean) / np.sqrt(var + EPSILON) * params["scale"] + params["bias"]
    if mode != "keras2017":
        return y, stats
    return y, {
        "mean": MOMENTUM * stats["mean"] + (1 - MOMENTUM) * mean,
        "var": MOMENTUM * stats["var"] + (1 - MOMENTUM) * var,
    }


@pytest.mark.parametrize("mode", ["inference", "batch", "keras2017"])
@pytest.mark.parametrize("padded", [False, True])
def test_each_mode_is_what_it_says_and_padding_counts_nowhere(rng, variables, mode, padded):
    x = 3 + rng.standard_normal((4, 5, 5, 3)).astype(np.float32)
    mask = jnp.arange(6) < 4 if padded else None
    given = np.concatenate([x, np.full((2, 5, 5, 3), 1e3, np.float32)]) if padded else x
    y, stats = apply(variables, given, Normalisation((), mode, momentum=MOMENTUM), mask)
    expected, expected_stats = by_hand(variables, x, mode)
    np.testing.assert_allclose(y[:4], expected, rtol=1e-4, atol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(stats[name], expected_stats[name], rtol=1e-4)


def test_statistics_of_padded_rows_would_be_noticed(rng, variables, monkeypatch):
    monkeypatch.setattr(batch_norm, "_statistics", lambda y, mask, axis: REAL_STATISTICS(y, None, axis))
    with pytest.raises(AssertionError):
        test_each_mode_is_what_it_says_and_padding_counts_nowhere(rng, variables, "batch", padded=True)


REAL_STATISTICS = batch_norm._statistics


@pytest.mark.parametrize(("frozen", "trained"), [("inference", "keras2017"), ("batch", "inference")])
def test_what_trains_has_a_mode_of_its_own_whatever_the_frozen_rest_does(rng, variables, frozen, trained):
    x = rng.standard_normal((4, 5, 5, 3)).astype(np.float32)
    for name in (PATH, "other"):
        y, stats = apply(variables, x, Normalisation((name,), frozen, trained, MOMENTUM))
        expected, expected_stats = by_hand(variables, x, trained if name == PATH else frozen)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stats["var"], expected_stats["var"], rtol=1e-4)


def test_the_networks_own_momentum_holds_where_none_is_asked_for(rng, variables):
    x = rng.standard_normal((4, 5, 5, 3)).astype(np.float32)
    _, stats = apply(variables, x, Normalisation((PATH,)))
    expected = 0.99 * variables["batch_stats"][PATH]["mean"] + 0.01 * x.mean((0, 1, 2))
    np.testing.assert_allclose(stats["mean"], expected, rtol=1e-5)


def test_groups_are_normalised_apart_and_one_of_padding_only_does_no_harm(rng, variables):
    x = rng.standard_normal((6, 5, 5, 3)).astype(np.float32)
    y, stats = apply(variables, x, Normalisation((PATH,), momentum=MOMENTUM, groups=3), jnp.arange(6) < 3)
    first, _ = by_hand(variables, x[:2], "batch")
    second, _ = by_hand(variables, x[2:3], "batch")
    np.testing.assert_allclose(y[:3], np.concatenate([first, second]), rtol=1e-4, atol=1e-5)
    assert np.isfinite(y).all()
    kept = MOMENTUM * variables["batch_stats"][PATH]["mean"]
    np.testing.assert_allclose(stats["mean"], kept + (1 - MOMENTUM) * x[:3].mean((0, 1, 2)), rtol=1e-4)


class Deep(batch_norm.nn.Module):
    """As many layers as Inception-v3 has in a row."""

    @batch_norm.nn.compact
    def __call__(self, x, how, mask):
        for layer in range(48):
            x = batch_norm.nn.relu(BatchNorm(EPSILON, 0.99, name=f"layer{layer}")(x, how, mask))
        return x


def test_a_group_of_padding_only_does_no_harm_in_a_deep_network_either(rng):
    """Divided by sqrt(epsilon) in each layer it would pass float32, and its gradient of 0 times infinity be NaN."""
    x, how = jnp.asarray(rng.standard_normal((4, 2, 2, 3)), jnp.float32), Normalisation((), "batch", groups=2)
    mask = jnp.arange(4) < 2
    variables = Deep().init(jax.random.key(0), x, how, mask)

    def loss(params):
        y, _ = Deep().apply({**variables, "params": params}, x, how, mask, mutable=["batch_stats"])
        return jnp.where(mask[:, None, None, None], y, 0).sum()

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(loss)(variables["params"])))


def test_a_small_variance_beside_a_large_mean_is_not_lost_once_the_running_mean_is_near(rng, variables):
    x = (30 + 0.03 * rng.standard_normal((16, 16, 16, 3))).astype(np.float32)
    variables["batch_stats"][PATH]["mean"] = np.full(3, 29, np.float32)
    _, stats = apply(variables, x, Normalisation((PATH,), momentum=0.0))
    np.testing.assert_allclose(stats["var"], x.astype(np.float64).var((0, 1, 2)), rtol=1e-3)
    np.testing.assert_allclose(stats["mean"], x.astype(np.float64).mean((0, 1, 2)), rtol=1e-6)


def test_no_gradient_flows_through_running_statistics_but_through_those_of_a_batch_it_does(rng, variables):
    x = rng.standard_normal((4, 5, 5, 3)).astype(np.float32)

    def gradient(mode):
        return jax.grad(lambda x: jnp.square(apply(variables, x, Normalisation((), mode))[0]).mean())(x)

    step = 1e-2 * np.ones_like(x)
    assert np.abs(gradient("inference").sum()) > 1e-3
    assert np.abs((gradient("batch") * step).sum()) < 1e-5, "a shift of all the batch is normalised away"
