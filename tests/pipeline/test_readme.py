"""What the README and the documentation show is what happens."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from support.networks import randomise
from support.scan_files import write_scans

from benchmarks.show import table_of
from benchmarks.suite import main as bench
from kimiajax.cli.main import main
from kimiajax.data.config import flag
from kimiajax.data.sources.synthetic import write_synthetic_scans
from kimiajax.experiments import study
from kimiajax.models.checkpoint import fine_tuned
from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.weights.load import load_weights
from weights_convert.export import export

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
}
ALL = "\n".join(PAGES.values())


def examples_of(page):
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.S)


def run(page, *names_of_example, names=None):
    """Runs a page's examples that hold these words, one after the other."""
    names = {} if names is None else names
    found = [block for block in examples_of(page) if all(word in block for word in names_of_example)]
    assert found
    for block in found:
        exec(compile(block, page, "exec"), names)
    return names


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A folder with the scan file that the demo leaves, but smaller."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    write_synthetic_scans(
        tmp_path / "runs/demo/scans.h5", num_scans=3, patch_size=80, grid=(4, 4), test_patches=(2, 3), seed=5
    )


def test_the_readmes_examples_run(demo, capsys):
    names = run("README.md", "print(kj.kimia_scores")
    assert 0 <= float(capsys.readouterr().out) <= 1
    run("README.md", "TWO", names=names)
    assert "'padding'" in capsys.readouterr().out


@pytest.mark.examples
def test_the_guides_examples_run_in_their_order(demo, capsys):
    first, *rest = examples_of("docs/extending.md")
    names: dict = {}
    exec(compile(first, "docs/extending.md", "exec"), names)
    assert 0 <= float(capsys.readouterr().out) <= 1
    for block in rest:
        exec(compile(block, "docs/extending.md", "exec"), names)
    assert np.isfinite(names["history"][-1].loss)
    assert names["again"].lineage["trained_blocks"] == ["mixed10", "head"]
    assert "'padding', 'frozen statistics', 'bfloat16'" in capsys.readouterr().out


@pytest.fixture
def my_package(tmp_path):
    """The guide's package, installed in a folder: its network, its mapping and its network of Keras'."""
    blocks = examples_of("docs/extending.md")
    network, mapping, keras_net = (
        next(block for block in blocks if word in block) for word in ("THREE = ", "KERAS: Table", "import keras")
    )
    (tmp_path / "my_package").mkdir()
    named = network.replace("    smallest=16,\n", '    smallest=16,\n    mapping="my_package.mapping",\n')
    (tmp_path / "my_package/__init__.py").write_text(named[: named.index("print(")])
    (tmp_path / "my_package/mapping.py").write_text(mapping)
    (tmp_path / "my_package/keras_net.py").write_text(keras_net)
    about = tmp_path / "my_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0")
    entry = re.search(r"```toml\n\[project.entry-points.\"(.*?)\"\]\n(.*?)\n```", PAGES["docs/extending.md"], re.S)
    (about / "entry_points.txt").write_text(f"[{entry[1]}]\n{entry[2].replace(chr(34), '')}\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def call(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.mark.examples
def test_the_guides_package_is_checked_and_takes_what_keras_saves(my_package):
    saving = "from my_package.keras_net import build; build(input_shape=(64, 64, 3)).save('three.h5')"
    checked = my_package("-c", f"import kimiajax as kj; print(kj.check_backbone(kj.BACKBONES['three'])); {saving}")
    assert "'mapping'" in checked
    my_package("-m", "weights_convert", "keras", "three", "three.h5", "weights/three")
    assert "block3" in my_package("-m", "kimiajax", "blocks", "three")


@pytest.mark.parity
def test_the_guides_package_is_verified_against_its_keras(my_package):
    command = ["parity", "three", "--reference", "keras", "--weights", "random", "--image-size", "64"]
    assert "VERIFIED: three computes what keras computes" in my_package("-m", "kimiajax", *command)


@pytest.mark.examples
def test_the_tutorials_commands_and_its_example_run_as_they_stand(tmp_path, monkeypatch, capsys):
    """But for the clone and the setup; on fewer scans, and fewer and smaller patches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "SYNTHETIC", {**study.SYNTHETIC, "num_scans": 4})
    blocks = re.findall(r"```sh\n(.*?)```", PAGES["docs/tutorial.md"], re.S)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith(".venv/bin/")]
    assert [command[1] for command in commands] == ["--version", "table", "report", "data", "predict"]
    small = [
        "--patches-per-scan",
        "2",
        "--image-size",
        "75",
        "--epochs",
        "1",
        "--head-epochs",
        "1",
        "--batch-size",
        "16",
        "--conv",
        "plain",
    ]
    for command in commands:
        assert main([*command[1:], *(small if command[1] == "table" else [])]) == 0, command
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"demo", "patches", "predicted.csv", "maps"}
    capsys.readouterr()
    run("docs/tutorial.md", "kj.analyse")
    assert "floor_histogram  eta_total 0." in capsys.readouterr().out


def test_the_example_of_tfds_reads_what_the_command_prepares(tmp_path, monkeypatch, capsys):
    from tensorflow_datasets.core import constants

    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path / "tensorflow_datasets"))
    patch = np.tile(np.arange(200, dtype=np.uint8), (1000, 5))
    write_scans(tmp_path / "Kimia_Path24.h5", [patch] * 24, np.stack([patch] * 24))
    assert main(["data", "prepare", "kimia_path24", "--manual-dir", str(tmp_path), "--allow-unverified"]) == 0
    assert "kimiajax table quick --dataset kimia_path24/patch1000_full_h0.99_bg220\n" in capsys.readouterr().out
    run("docs/data.md", "tfds")
    assert capsys.readouterr().out.startswith("24 (1000, 1000, 1) ")


def test_the_list_of_blocks_is_what_the_command_prints(capsys):
    assert main(["blocks", "inception_v3"]) == 0
    assert capsys.readouterr().out.strip() in PAGES["docs/training.md"]


@pytest.mark.examples
def test_the_keras_example_loads_a_fine_tuned_network(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    backbone = BACKBONES["vgg16"]
    parent = load_weights(backbone, "random", blocks=backbone.up_to("block5"))
    classifier = Classifier(backbone, backbone.up_to("block5"), 24)
    head = randomise(classifier.init_head(jax.random.key(0), (7, 7, 512)), rng)
    variables = {"params": {**parent.variables["params"], "head": head}}
    fine_tuned(parent, variables, ("block5", "head"), "a test").save(tmp_path / "tl_vgg16")
    export(tmp_path / "tl_vgg16", tmp_path / "tl_vgg16.h5")
    names = run("docs/weights.md", "import keras")
    images = rng.random((1, 224, 224, 3), np.float32)
    np.testing.assert_allclose(names["model"](images), classifier.apply(variables, images)[0], rtol=1e-3, atol=1e-4)


def test_the_package_carries_the_readmes_picture():
    spec = importlib.util.spec_from_file_location("readme_hook", ROOT / "docs/readme_hook.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    shown = hook.embedded(PAGES["README.md"], ROOT)
    assert shown.count("](data:image/png;base64,iVBOR") == PAGES["README.md"].count("![") > 0
    assert "](docs/pictures" not in shown


def test_no_placeholder_is_left():
    assert not re.findall(r"```\n@?[A-Z]+@?\n```", ALL)


def test_flags_that_are_shown_exist(capsys):
    from dataclasses import fields, is_dataclass

    from kimiajax.cli import config as of_commands
    from kimiajax.experiments import config as of_tables
    from kimiajax.experiments import sweep_config as of_sweeps
    from kimiajax.parity import config as of_parity
    from weights_convert.__main__ import main as weights_convert

    named = [value for module in (of_commands, of_tables, of_sweeps, of_parity) for value in vars(module).values()]
    kinds = [kind for kind in named if isinstance(kind, type) and is_dataclass(kind)]
    known = {flag(field.name) for kind in kinds for field in fields(kind)}
    for framework in ("torch", "keras"):
        with pytest.raises(SystemExit):
            weights_convert([framework, "--help"])
    with pytest.raises(SystemExit):
        bench(["--help"])
    assert main(["--help"]) == 0
    known |= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    shown = set(re.findall(r"(?<=[ `])--[a-z][a-z0-9-]*", ALL))
    shown -= {"--nodes", "--ntasks-per-node", "--gpus-per-node"}  # of srun
    assert {"--rows", "--require", "--fold-scale"} <= shown
    assert shown <= known


def test_the_benchmarks_tables_are_those_of_the_committed_records():
    for path in (ROOT / "benchmarks/results").glob("bench-*.json"):
        record = json.loads(path.read_text())
        assert all(line in PAGES["docs/benchmarks.md"] for line in table_of(record)), path
        assert record["environment"]["processor"] in PAGES["docs/benchmarks.md"]
    pictures = re.findall(r"benchmarks/results/\S+?\.svg", PAGES["docs/benchmarks.md"])
    assert len(pictures) == 2
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_every_example_in_python_is_run_by_a_test_and_every_page_is_linked_to():
    tried = {"README.md", *(f"docs/{page}.md" for page in ("extending", "tutorial", "data", "weights"))}
    assert {page for page in PAGES if examples_of(page)} == tried
    linked = set(re.findall(r"^(\w+)$", PAGES["docs/index.md"], re.M))
    assert linked == {Path(page).stem for page in PAGES} - {"README", "index"}


def test_the_api_page_names_all_that_is_public():
    import kimiajax

    page = PAGES["docs/api.md"]
    shown = set(re.findall(r"auto\w+:: \S+\.(\w+)", page)) | set(re.findall(r"`kj\.(\w+)`", page))
    assert shown == set(kimiajax.__all__) - {"__version__"}


def test_links_between_pages_lead_somewhere():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+)", text):
            if not target.startswith("http"):
                assert ((ROOT / page).parent / target).exists(), (page, target)


def test_the_readmes_figures_of_speed_are_those_of_the_records():
    shown = " ".join(PAGES["README.md"].split())
    lines = [line for line in PAGES["docs/benchmarks.md"].splitlines() if line.startswith("| ")]
    ratios = {
        line.split("|")[1].strip(): float(line.split("|")[4].split()[0])
        for line in lines
        if line.split("|")[5].strip().replace(".", "").isdigit() or "no target" in line
    }
    features = [ratio for work, ratio in ratios.items() if work.startswith("features")]
    steps = [ratio for work, ratio in ratios.items() if work.startswith("finetune_step")]
    assert (
        f"features {min(features)} to {max(features)} times as fast, fine-tuning steps {min(steps)} to {max(steps)}"
        in shown
    )
    assert f"({ratios['table patches a scan 2 epochs 3']})" in shown
    assert f"({ratios['table patches a scan 10 epochs 3']})" in shown
