"""The import law of the house, read from the source and tried in a bare process.

A room is a module that lies directly in `kimiajax/`, a folder there, or one of the packages beside it. It stands one
floor above the highest that it imports from.
"""

import ast
from collections import defaultdict
from pathlib import Path

import pytest
from support.python import run

ROOT = Path(__file__).parents[2]
PACKAGES = ("kimiajax", "weights_convert", "benchmarks")
LAYERS = (  # a room imports from its own layer and those before it
    ("checks", "errors", "shapes", "text", "paper"),
    ("io", "runtime"),
    ("data", "models"),
    ("runs", "weights_convert"),
    ("weights", "evaluation", "features", "training", "report"),
    ("experiments", "parity"),
    ("cli", "benchmarks"),
)
LAYER_OF = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
MOST_ROOMS, MOST_FLOORS = 26, 10
MOST_MODULES, MOST_LINES, MOST_PARAMETERS = 16, 400, 6  # in a folder, of a module, of a function in experiments/

FOREIGN = ("torch", "keras", "tensorflow")
SETS = ("tensorflow_datasets", "apache_beam")
MAY_LOAD_SETS = tuple(f"kimiajax.data.tfds.{name}" for name in ("datasets", "patch_set", "prepare"))
REGISTER = ("kimiajax.data.tfds.builders", "kimiajax.data.tfds.patch_set")  # both load TFDS when they are imported
MAY_REGISTER = "kimiajax.data.tfds.prepare"
MAY_CONVERT = ("kimiajax.cli", "kimiajax.parity", "weights_convert")  # and, inside a function, the loader of weights
NETWORKS = ("flax", "kimiajax.models", "kimiajax.training", "kimiajax.features")

# The judge knows nothing of this project: a fault shared by both sides would not show.
PARITY = "kimiajax.parity."
SIDES = tuple(f"{PARITY}{side}_{what}" for side in ("keras", "torch") for what in ("networks", "reference"))
JUDGE = (*SIDES, "kimiajax.parity.job", "kimiajax.parity.reference")

# module prefix -> what nothing under it may import, whether at the top or inside a function
LAW = {
    **dict.fromkeys(("weights_convert", "kimiajax"), FOREIGN),
    "kimiajax.data": ("jax", *NETWORKS, *FOREIGN),
    "kimiajax.runs": ("jax", *NETWORKS, *FOREIGN),
    "kimiajax.report": ("jax", *NETWORKS, *FOREIGN),
    "kimiajax.evaluation": (*NETWORKS, *FOREIGN),
    "kimiajax.models": ("kimiajax.data", *FOREIGN),
    "kimiajax.training": (*(f"kimiajax.models.{name}" for name in ("vgg16", "inception_v3", "cnn")), *FOREIGN),
}


def sources_of(root):
    """Returns the text of each module by its dotted name; a package's own is its `__init__.py`."""
    files = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
        for path in files
    }


def imported(module, source, everywhere=True):
    """Yields what a module imports, at its top or anywhere: modules, and names in them."""
    tree = ast.parse(source)
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # What lies in a folder of modules alone is never imported relatively from its __init__.
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def graph_of(sources):
    """Returns the modules of these sources that each of them imports."""
    found = {module: set(imported(module, source)) & sources.keys() for module, source in sources.items()}
    # `from package import module` names the package as well, which alone is no import of it
    return {
        module: {name for name in names if name != module and not any(each.startswith(f"{name}.") for each in names)}
        for module, names in found.items()
    }


def room_of(module):
    package, *rest = module.split(".")
    return rest[0] if package == "kimiajax" and rest else package


def rooms_of(graph):
    """Returns the rooms that each room imports. The package's face, whose names are looked up when used, is none."""
    rooms = {room_of(module): set() for module in graph if module != "kimiajax"}
    for module, names in graph.items():
        if module != "kimiajax":
            rooms[room_of(module)] |= {room_of(name) for name in names if name != "kimiajax"} - {room_of(module)}
    rooms["cli"] |= rooms.pop("__main__", set()) - {"cli"}  # two lines that call it
    return rooms


def circle_in(graph):
    """Returns a circle of imports as a list, or None."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return None
        path.append(name)
        circle = next(filter(None, map(visit, sorted(graph[name]))), None)
        if circle is None:
            done.add(path.pop())
        return circle

    return next(filter(None, map(visit, graph)), None)


def floors_of(rooms):
    """Returns the floor of each room, from 1."""
    floors = {}

    def floor(room):
        if room not in floors:
            floors[room] = 1 + max(map(floor, rooms[room]), default=0)
        return floors[room]

    for room in rooms:
        floor(room)
    return floors


def drawing(rooms):
    """Returns the house as text, the top floor first."""
    by_floor = defaultdict(list)
    for room, floor in floors_of(rooms).items():
        by_floor[floor].append(room)
    return "\n".join(f"{floor:2}  {'  '.join(sorted(by_floor[floor]))}" for floor in sorted(by_floor, reverse=True))


def breaches(sources):
    """Returns each import that the law forbids, as a sentence."""
    found = []
    for module, source in sources.items():
        names = list(imported(module, source))
        prefixes = [prefix for prefix in LAW if module == prefix or module.startswith(f"{prefix}.")]
        forbidden = [f for prefix in prefixes for f in LAW[prefix] if module not in SIDES and not prefix.startswith(f)]
        found += [
            f"{module} imports {name}" for name in names for f in forbidden if name == f or name.startswith(f"{f}.")
        ]
        own = LAYER_OF.get(room_of(module), len(LAYERS))
        rooms = {name: room_of(name) for name in names if name.split(".")[0] in PACKAGES}
        found += [
            f"{module} imports {name}, which runs up" for name, room in rooms.items() if LAYER_OF.get(room, 0) > own
        ]
        at_the_top = list(imported(module, source, everywhere=False))
        converting = at_the_top if module == "kimiajax.weights.load" else names
        if not module.startswith((*MAY_CONVERT, "benchmarks")):
            found += [f"{module} imports {name}" for name in converting if name.startswith("weights_convert")]
        if module not in MAY_LOAD_SETS and not module.startswith("benchmarks"):
            found += [f"{module} imports {name}" for name in names if name.split(".")[0] in SETS]
        if module not in REGISTER:
            registering = at_the_top if module == MAY_REGISTER else names
            found += [f"{module} imports {name}" for name in registering if name in REGISTER]
        if module in JUDGE:
            ours = [name for name in names if name.split(".")[0] in PACKAGES]
            found += [
                f"{module} imports {name}" for name in ours if name + "." != PARITY and not name.startswith(JUDGE)
            ]
        # `kimiajax bench` finds it by name, as it lies elsewhere in the wheel.
        if not module.startswith("benchmarks"):
            found += [f"{module} imports {name}" for name in names if name.split(".")[0] == "benchmarks"]
    return found


@pytest.fixture(scope="module")
def sources():
    return sources_of(ROOT)


def test_no_room_imports_what_it_must_not(sources):
    assert breaches(sources) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("kimiajax.data.sources.scan_file", "import jax.numpy as jnp"),
        ("kimiajax.runs.reader", "import jax"),
        ("kimiajax.models.cnn", "from kimiajax.data import resize"),
        ("kimiajax.training.loop", "from kimiajax.models import vgg16"),
        ("kimiajax.evaluation.analysis", "from kimiajax.models.checkpoint import Weights"),
        ("kimiajax.features.extract", "def f():\n    import torch"),
        ("kimiajax.features.export", "def f():\n    from kimiajax.experiments.config import PRESETS"),
        ("kimiajax.io.cache", "from kimiajax.data import manifest"),
        ("kimiajax.data.sources.scan_file", "def f():\n    import tensorflow_datasets as tfds"),
        ("kimiajax.cli.commands", "def f():\n    from kimiajax.data.tfds.builders import KimiaPath24"),
        ("kimiajax.data.tfds.prepare", "from kimiajax.data.tfds import builders"),
        ("kimiajax.data.tfds.examples", "import apache_beam"),
        ("kimiajax.weights.load", "from weights_convert.keras_h5 import convert_keras"),
        ("kimiajax.experiments.runner", "def f():\n    from weights_convert.keras_h5 import convert_keras"),
        ("kimiajax.parity.run", "def f():\n    import keras"),
        ("kimiajax.features.extract", "def f():\n    from benchmarks import race"),
        ("weights_convert.export", "import benchmarks.race"),
        ("kimiajax.cli.main", "from benchmarks.suite import main"),
        ("kimiajax.parity.keras_reference", "from kimiajax.models import vgg16"),
        ("kimiajax.parity.torch_networks", "from kimiajax.models.inception_v3 import MIXED"),
        ("kimiajax.parity.keras_reference", "import kimiajax as kj"),
        ("kimiajax.parity.keras_reference", "from weights_convert.convert import convert"),
        ("kimiajax.parity.job", "from kimiajax.parity.ours import outputs"),
        ("kimiajax.parity.certificate_text", "import keras"),
        ("kimiajax", "import torch"),
        ("kimiajax.__main__", "import torch"),
        ("kimiajax.cli.commands", "def f():\n    from kimiajax.data.tfds.patch_set import PatchSet"),
    ],
)
def test_the_law_catches_a_breach(module, line):
    assert breaches({module: line})


def test_no_files_import_each_other_in_a_circle(sources):
    assert circle_in(graph_of(sources)) is None


def test_a_circle_through_a_function_and_a_third_file_is_found(sources):
    changed = {**sources, "kimiajax.io.files": "def f():\n    from kimiajax.io import locks"}
    changed["kimiajax.io.locks"] = "from kimiajax.io.cache import mark_used"
    changed["kimiajax.io.cache"] = "import kimiajax.io.files"
    assert sorted(circle_in(graph_of(changed))) == [f"kimiajax.io.{name}" for name in ("cache", "files", "locks")]


def test_the_house_has_at_most_26_rooms_on_10_floors_and_the_page_draws_it(sources):
    rooms = rooms_of(graph_of(sources))
    assert len(rooms) <= MOST_ROOMS
    assert max(floors_of(rooms).values()) <= MOST_FLOORS
    assert set(rooms) == set(LAYER_OF)
    drawn = drawing(rooms)
    assert drawn in (ROOT / "docs" / "architecture.md").read_text(), f"docs/architecture.md must show:\n{drawn}"


def too_large(sources):
    """Returns each folder, module and function of experiments/ that is too large, as a sentence."""
    folders = defaultdict(list)
    for module in sources:
        folders[module.rpartition(".")[0]].append(module)
    inner = {folder: [m for m in modules if m not in folders] for folder, modules in folders.items()}
    found = [f"{folder} has {len(each)} modules" for folder, each in inner.items() if len(each) > MOST_MODULES]
    for module, source in sources.items():
        if (lines := source.count("\n")) > MOST_LINES:
            found.append(f"{module} has {lines} lines")
        if module.startswith("kimiajax.experiments."):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef):
                    count = len([*node.args.posonlyargs, *node.args.args])
                    if count > MOST_PARAMETERS:
                        found.append(f"{module}.{node.name} has {count} parameters")
    return found


def test_no_folder_module_or_function_is_too_large(sources):
    assert too_large(sources) == []


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"kimiajax.io.long": "x = 1\n" * 401}, "kimiajax.io.long has 401 lines"),
        ({f"kimiajax.io.m{k}": "" for k in range(17)}, "kimiajax.io has 17 modules"),
        ({"kimiajax.experiments.x": "def f(a, b, c, d, e, f, g): ..."}, "kimiajax.experiments.x.f has 7 parameters"),
    ],
)
def test_what_is_too_large_is_told(planted, said):
    assert too_large(planted) == [said]


def test_a_room_that_imports_another_stands_above_it():
    graph = graph_of(
        {"kimiajax.a": "", "kimiajax.b.x": "import kimiajax.a", "kimiajax.cli": "from kimiajax.b import x"}
    )
    assert floors_of(rooms_of(graph)) == {"a": 1, "b": 2, "cli": 3}
    assert drawing(rooms_of(graph)) == " 3  cli\n 2  b\n 1  a"


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
import benchmarks.workloads.features, benchmarks.workloads.finetune_step, benchmarks.roofline, benchmarks.suite

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
import kimiajax.evaluation.analysis, kimiajax.evaluation.compare, kimiajax.evaluation.scoring
import kimiajax.report.comparison, kimiajax.report.figures, kimiajax.report.html, kimiajax.report.formats
print([name for name in ("flax", "optax", "orbax", "kimiajax.models", "kimiajax.features") if name in sys.modules])
""")
    assert done.stdout.strip() == "[]", done.stderr
