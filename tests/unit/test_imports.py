"""The import law of the house, read from the source and tried in a bare process."""

import ast
from pathlib import Path

import pytest
from support.python import run

ROOT = Path(__file__).parents[2]
FOREIGN = ("torch", "keras", "tensorflow")
SETS = ("tensorflow_datasets", "apache_beam")
MAY_LOAD_SETS = ("kimiajax.data.kimia_path24", "kimiajax.data.sets", "kimiajax.data.preparing")
MAY_REGISTER = "kimiajax.data.preparing"

# module prefix -> what nothing under it may import, whether at the top or inside a function
LAW = {
    "kimiajax": FOREIGN,
    "kimiajax.data": ("jax", "flax", "kimiajax.models", "kimiajax.finetune", "kimiajax.features"),
    "kimiajax.data.augment": ("flax", "kimiajax.models", "kimiajax.finetune", "kimiajax.features"),
    **{
        f"kimiajax.{name}": ("flax", "kimiajax.models", "kimiajax.finetune", "kimiajax.features")
        for name in ("metrics", "statistics", "claims", "analysis", "compare", "scoring", "retrieval", "floors")
    },
    "kimiajax.report": ("jax", "flax", "kimiajax.models", "kimiajax.finetune", "kimiajax.features"),
    "kimiajax.models": ("kimiajax.data", "kimiajax.finetune"),
    "kimiajax.finetune": tuple(f"kimiajax.models.{name}" for name in ("vgg16", "inception_v3", "cnn")),
    **{f"weights_convert.{name}": FOREIGN for name in ("arrays", "tables", "keras", "torch", "convert", "export")},
    **{f"weights_convert.parity.{name}": FOREIGN for name in ("job", "ours", "certificate", "run")},
    # The judge knows nothing of this project: a fault shared by both sides would not show.
    **{
        f"weights_convert.parity.{name}": ("kimiajax",)
        for name in ("job", "reference", "torch_networks", "keras_networks")
    },
    **{
        f"weights_convert.parity.{name}_reference": ("kimiajax", "weights_convert.convert")
        for name in ("keras", "torch")
    },
}
MAY_CONVERT = ("kimiajax.cli", "weights_convert")


def modules():
    files = [p for package in ("kimiajax", "weights_convert") for p in (ROOT / package).rglob("*.py")]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in files}


def imported(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_the_top(source):
    return imported(
        "\n".join(ast.unparse(n) for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom))
    )


def breaches(sources):
    found = []
    for module, source in sources.items():
        for prefix, forbidden in LAW.items():
            if module in LAW and prefix == "kimiajax.data":
                continue  # a law of its own
            if module == prefix or module.startswith(prefix + "."):
                names = [n for n in imported(source) for f in forbidden if n == f or n.startswith(f + ".")]
                found += [f"{module} imports {name}" for name in names]
        names = imported_at_the_top(source) if module == "kimiajax.models.weights" else imported(source)
        if not module.startswith(MAY_CONVERT):
            found += [f"{module} imports {name}" for name in names if name.startswith("weights_convert")]
        if module not in MAY_LOAD_SETS:
            found += [f"{module} imports {name}" for name in imported(source) if name.split(".")[0] in SETS]
        registering = imported_at_the_top(source) if module == MAY_REGISTER else imported(source)
        found += [f"{module} imports {name}" for name in registering if name == "kimiajax.data.kimia_path24"]
        # `kimiajax bench` finds it by name, as it lies elsewhere in the wheel.
        found += [f"{module} imports {name}" for name in imported(source) if name.split(".")[0] == "benchmarks"]
    return found


def test_no_room_imports_what_it_must_not():
    assert breaches({name: path.read_text() for name, path in modules().items()}) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("kimiajax.data.scans", "import jax.numpy as jnp"),
        ("kimiajax.models.cnn", "from kimiajax.data import pixels"),
        ("kimiajax.finetune.loop", "from kimiajax.models import vgg16"),
        ("kimiajax.analysis", "from kimiajax.models.weights import root_of"),
        ("kimiajax.features", "def f():\n    import torch"),
        ("kimiajax.data.scans", "def f():\n    import tensorflow_datasets as tfds"),
        ("kimiajax.commands", "def f():\n    from kimiajax.data.kimia_path24 import KimiaPath24"),
        ("kimiajax.data.preparing", "from kimiajax.data import kimia_path24"),
        ("kimiajax.data.examples", "import apache_beam"),
        ("kimiajax.models.weights", "from weights_convert.keras import convert_keras"),
        ("kimiajax.table", "from weights_convert.keras import convert_keras"),
        ("weights_convert.parity.run", "def f():\n    import keras"),
        ("kimiajax.features", "def f():\n    from benchmarks import race"),
        ("weights_convert.export", "import benchmarks.race"),
        ("kimiajax.cli", "from benchmarks.suite import main"),
        ("weights_convert.parity.keras_reference", "from kimiajax.models import vgg16"),
        ("weights_convert.parity.torch_networks", "from kimiajax.models.inception_v3 import MIXED"),
    ],
)
def test_the_law_catches_a_breach(module, line):
    assert breaches({module: line})


def test_importing_the_package_imports_no_library():
    libraries = ("jax", "numpy", "sklearn", "tensorflow_datasets")
    done = run(f"import sys, kimiajax; print([m for m in {libraries} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_the_core_packages_suffice_for_models_training_features_metrics_and_benchmarks():
    """A GPU image may hold no more. What core packages themselves need may come along; the rest is barred."""
    done = run("""
import sys

class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"PIL", "sklearn", "tyro", "pooch", "jaxtyping", "beartype", "keras"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Bar())
import numpy as np, optax, jax
import kimiajax as kj
import benchmarks.features, benchmarks.finetune_step, benchmarks.roofline, benchmarks.suite

cnn = kj.BACKBONES["cnn"]
weights = kj.load_weights(cnn, "random", image_size=32)
images = np.random.default_rng(0).integers(0, 255, (4, 32, 32), dtype=np.uint8)
print(kj.extract_features(cnn, weights.variables, images).shape)
head = kj.Classifier(cnn, (), 2)
start = {"params": {"head": head.init_head(jax.random.key(0), (256,))}}
training = kj.Training(head, optax.sgd(1e-3), kj.TrainableBlocks(("head",)))
inputs, labels = np.ones((4, 256), np.float32), np.array([0, 1, 0, 1], np.int32)
kj.fit(training, start, inputs, labels, epochs=1, batch_size=2, seed=0)
print(float(kj.kimia_scores(np.array([0, 1]), np.array([0, 1]), 2).eta_total))
""")
    assert done.stdout.split("\n")[:2] == ["(4, 256)", "1.0"], done.stderr


def test_reports_comparisons_and_scores_load_no_model():
    done = run("""
import sys
import kimiajax.analysis, kimiajax.compare, kimiajax.scoring
import kimiajax.report.compared, kimiajax.report.figures, kimiajax.report.html, kimiajax.report.text
print([name for name in ("flax", "optax", "orbax", "kimiajax.models", "kimiajax.features") if name in sys.modules])
""")
    assert done.stdout.strip() == "[]", done.stderr
