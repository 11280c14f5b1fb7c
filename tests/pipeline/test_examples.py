"""The examples keep to their form, and what they compute by a transform is what the definition says."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.name != "scans.py")


@pytest.fixture
def load(monkeypatch):
    """Imports an example as its own folder sees it."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("scans", None)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_asks_how_it_runs_and_what_was_seen(path):
    source = path.read_text()
    assert len(source.splitlines()) < 80
    tree = ast.parse(source)
    doc = ast.get_docstring(tree)
    assert "?" in doc.splitlines()[0]
    assert f"python examples/{path.name}" in doc
    assert "synthetic scans and random weights, which say nothing of tissue" in " ".join(doc.split())
    assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    assert source.endswith('if __name__ == "__main__":\n    main()\n')


def test_the_table_of_examples_lists_each_of_them_once():
    listed = re.findall(r"^\| `(\w+\.py)`", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [path.name for path in SCRIPTS]
    shown = re.findall(r"literalinclude} \.\./examples/(\w+\.py)", (EXAMPLES.parent / "docs/examples.md").read_text())
    assert shown == [*listed, "scans.py"]


def test_the_product_with_the_hessian_and_the_sharpness_are_those_of_a_quadratic(load):
    sharpness, rng = load("sharpness"), np.random.default_rng(0)
    root = rng.standard_normal((5, 5)).astype(np.float32)
    at = {"a": jnp.zeros(2), "b": jnp.zeros(3)}

    def loss(at):
        x = jnp.concatenate([at["a"], at["b"]])
        return jnp.sum((root @ x) ** 2) / 2

    hessian = root.T @ root
    along = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([0.0, -1.0, 0.5])}
    product = sharpness.hessian_vector_product(loss, at, along)
    expected = hessian @ np.concatenate([along["a"], along["b"]])
    np.testing.assert_allclose(np.concatenate([product["a"], product["b"]]), expected, rtol=1e-5, atol=1e-5)
    found = sharpness.sharpness_of(loss, at, jax.random.key(0), iterations=200)[-1]
    np.testing.assert_allclose(found, np.linalg.eigvalsh(hessian)[-1], rtol=1e-4)  # float32, 200 iterations


def test_influences_are_inner_products_that_sum_to_that_of_the_batch_gradient(load):
    influential, rng = load("influential_patches"), np.random.default_rng(0)
    features, labels = rng.standard_normal((6, 4)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2])
    params = {"kernel": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32), "bias": jnp.zeros(3)}

    def loss(params, feature, label):
        return -jax.nn.log_softmax(feature @ params["kernel"] + params["bias"])[label]

    train, test = (features[:5], labels[:5]), (features[5], labels[5])
    found = influential.influences(loss, params, train, test)
    np.testing.assert_allclose(found, influential.influences_by_jvp(loss, params, train, test), rtol=1e-5, atol=1e-5)
    batch = jax.grad(lambda params: sum(loss(params, *one) for one in zip(*train)))(params)
    whole = jax.tree.map(jnp.vdot, batch, jax.grad(loss)(params, *test))
    np.testing.assert_allclose(found.sum(), sum(jax.tree.leaves(whole)), rtol=1e-5)  # float32, five patches


def test_the_other_scanner_is_darker_and_a_moved_array_is_noticed(load):
    adabn = load("adabn_only")
    shifted = adabn.as_another_scanner(np.array([[0, 255]], np.uint8))
    assert shifted.tolist() == [[20, 147]]
    assert shifted.dtype == np.uint8
    assert adabn.differ({"a": np.zeros(2), "b": np.ones(2)}, {"a": np.zeros(2), "b": np.array([1, 2])}) == [False, True]
