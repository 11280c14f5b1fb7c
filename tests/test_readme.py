"""What the README shows is what happens."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import randomise, write_scans

from benchmarks.show import table_of
from benchmarks.suite import main as bench
from kimiajax.cli import main
from kimiajax.data.synthetic import write_synthetic_scans
from kimiajax.models.backbone import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.models.weights import fine_tuned, load_weights
from weights_convert.export import export

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_python_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    write_synthetic_scans(
        tmp_path / "runs/demo/scans.h5", num_scans=3, patch_size=80, grid=(4, 4), test_patches=(2, 3), seed=5
    )
    names: dict = {}
    first, second, third = (block for block in EXAMPLES if "kj." in block)
    exec(compile(first, "README.md", "exec"), names)
    assert 0 <= float(capsys.readouterr().out) <= 1
    exec(compile(second, "README.md", "exec"), names)
    assert np.isfinite(names["history"][-1].loss)
    capsys.readouterr()
    exec(compile(third, "README.md", "exec"), names)
    assert "'padding', 'frozen statistics', 'bfloat16'" in capsys.readouterr().out


def test_the_example_of_tfds_reads_what_the_command_prepares(tmp_path, monkeypatch, capsys):
    from tensorflow_datasets.core import constants

    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path / "tensorflow_datasets"))
    patch = np.tile(np.arange(200, dtype=np.uint8), (1000, 5))
    write_scans(tmp_path / "Kimia_Path24.h5", [patch] * 24, np.stack([patch] * 24))
    assert main(["data", "prepare", "kimia_path24", "--manual-dir", str(tmp_path), "--allow-unverified"]) == 0
    assert "kimiajax table quick --dataset kimia_path24/patch1000_full_h0.99_bg220\n" in capsys.readouterr().out
    (example,) = (block for block in EXAMPLES if "tfds" in block)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("24 (1000, 1000, 1) ")


def test_the_list_of_blocks_is_what_the_command_prints(capsys):
    assert main(["blocks", "inception_v3"]) == 0
    assert capsys.readouterr().out.strip() in README


def test_the_keras_example_loads_a_fine_tuned_network(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    backbone = BACKBONES["vgg16"]
    parent = load_weights(backbone, "random", blocks=backbone.up_to("block5"))
    classifier = Classifier(backbone, backbone.up_to("block5"), 24)
    head = randomise(classifier.init_head(jax.random.key(0), (7, 7, 512)), rng)
    variables = {"params": {**parent.variables["params"], "head": head}}
    fine_tuned(parent, variables, ("block5", "head"), "a test").save(tmp_path / "tl_vgg16")
    export(tmp_path / "tl_vgg16", tmp_path / "tl_vgg16.h5")
    (example,) = (block for block in EXAMPLES if "import keras" in block)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    images = rng.random((1, 224, 224, 3), np.float32)
    np.testing.assert_allclose(names["model"](images), classifier.apply(variables, images)[0], rtol=1e-3, atol=1e-4)


def test_no_placeholder_is_left():
    assert not re.findall(r"```\n[A-Z]+\n```", README)


def test_flags_of_the_readme_exist(capsys):
    from dataclasses import fields, is_dataclass

    from kimiajax import config
    from weights_convert.__main__ import main as weights_convert

    kinds = [kind for kind in vars(config).values() if isinstance(kind, type) and is_dataclass(kind)]
    known = {config.flag(field.name) for kind in kinds for field in fields(kind)}
    with pytest.raises(SystemExit):
        weights_convert(["torch", "--help"])
    with pytest.raises(SystemExit):
        bench(["--help"])
    assert main(["--help"]) == 0
    known |= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    shown = set(re.findall(r"(?<=[ `])--[a-z0-9-]+", README))
    shown -= {"--nodes", "--ntasks-per-node", "--gpus-per-node"}  # of srun
    assert {"--rows", "--require", "--fold-scale"} <= shown
    assert shown <= known


def test_the_benchmarks_tables_are_those_of_the_committed_records():
    for path in (ROOT / "benchmarks/results").glob("bench-*.json"):
        record = json.loads(path.read_text())
        assert all(line in README for line in table_of(record)), path
        assert record["environment"]["processor"] in README
    pictures = re.findall(r"benchmarks/results/\S+?\.svg", README)
    assert len(pictures) == 2
    assert all((ROOT / picture).is_file() for picture in pictures)
