"""Networks of other packages: found by their entry point, loaded when they are asked for, and refused by name."""

import importlib
import os
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from kimiajax.errors import UserError
from kimiajax.experiments.table1 import all_rows
from kimiajax.models import registry
from kimiajax.models.registry import BACKBONES, Registry

OWN = ["vgg16", "inception_v3", "cnn"]
NETWORK = '''"""A network of two blocks."""

import flax.linen as nn

from kimiajax.models.backbone import Backbone
from kimiajax.models.batch_norm import INFERENCE


class Two(nn.Module):
    @nn.compact
    def __call__(self, x, blocks=("conv", "pooled"), how=INFERENCE, mask=None):
        taps = {}
        for name in blocks:
            x = x.mean(axis=(1, 2)) if name == "pooled" else nn.relu(nn.Conv(8, (4, 4), 4, name=name)(x))
            taps[name] = x
        return x, taps


TWO = Backbone(
    "two", "Two", Two, ("conv", "pooled"), features="pooled", bottleneck="pooled", fine_tuned=("conv",), hidden=None,
    dropout=0.0, smallest=8,
)
OTHER = 7
'''


@pytest.fixture
def package(tmp_path):
    """A folder on the path with an installed package that brings a network, and one that breaks."""
    (tmp_path / "two_blocks.py").write_text(NETWORK)
    (tmp_path / "broken.py").write_text("1 / 0")
    about = tmp_path / "two_blocks-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: two-blocks\nVersion: 1.0")
    points = "[kimiajax.backbones]\ntwo = two_blocks:TWO\nbroken = broken:NETWORK\n"
    (about / "entry_points.txt").write_text(points)
    return tmp_path


@pytest.fixture
def installed(package, monkeypatch):
    monkeypatch.syspath_prepend(str(package))
    importlib.invalidate_caches()
    found = Registry(*(BACKBONES[name] for name in OWN))
    yield found
    for name in ("two_blocks", "broken"):
        sys.modules.pop(name, None)


def test_a_packages_network_is_one_of_the_names_and_loaded_only_when_it_is_asked_for(installed):
    assert installed["vgg16"].name == "vgg16"
    assert "two" in installed
    assert list(installed) == [*OWN, "two", "broken"]
    assert len(installed) == 5
    assert "two_blocks" not in sys.modules
    assert installed["two"].title == "Two"
    assert installed["two"] is installed["two"]


def test_a_name_that_nobody_has_is_none(installed):
    assert "three" not in installed
    with pytest.raises(KeyError):
        installed["three"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("two = broken:NETWORK", r"broken:NETWORK \(backbone 'two'\): cannot be loaded \(ZeroDivisionError: .*mend"),
        ("two = two_blocks:MISSING", "cannot be loaded .AttributeError"),
        ("two = nowhere:TWO", "cannot be loaded .ModuleNotFoundError"),
        ("two = two_blocks:OTHER", "is a int, and must be a Backbone of that name"),
        ("three = two_blocks:TWO", "is 'two', and must be a Backbone of that name"),
    ],
)
def test_a_package_that_does_not_keep_its_word_is_named(installed, monkeypatch, entry, message):
    name, _, value = entry.partition(" = ")
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint(name, value, group)])
    with pytest.raises(UserError, match=message):
        Registry()[name]


def test_a_packages_rows_stand_in_the_table_and_a_broken_one_breaks_no_other(package, scans):
    """In a process of its own, as a user's: the package is found, and used by its entry point alone."""
    command = [sys.executable, "-m", "kimiajax", "table", "quick", "--rows", "fe_two", "tl_two", "--epochs", "1"]
    command += ["--head-epochs", "1", "--patches-per-scan", "3", "--image-size", "32", "--out", str(package / "run")]
    command += ["--weights", "random", "--conv", "plain", "--scans", str(scans)]
    done = subprocess.run(command, env=_environment(package), capture_output=True, text=True, timeout=300, cwd=package)
    assert done.returncode == 0, done.stderr
    assert "FE-Two" in done.stdout
    assert "TL-Two" in done.stdout
    done = subprocess.run(
        [*command[:6], "fe_broken"], env=_environment(package), capture_output=True, text=True, timeout=100, cwd=package
    )
    assert done.returncode == 2
    assert "broken:NETWORK (backbone 'broken' of two-blocks): cannot be loaded (ZeroDivisionError" in done.stderr


def _environment(folder):
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_every_network_but_the_one_from_scratch_has_its_rows():
    names = {row.name for row in all_rows()}
    for network in BACKBONES:
        if network != "cnn":
            assert {f"fe_{network}", f"tl_{network}", f"nn_{network}_cosine"} <= names


def test_a_package_that_takes_a_name_that_exists_is_told_and_changes_nothing(installed, package):
    (package / "two_blocks-1.0.dist-info/entry_points.txt").write_text("[kimiajax.backbones]\nvgg16 = two_blocks:TWO\n")
    with pytest.warns(UserWarning, match="there is a backbone 'vgg16' already, which stays"):
        assert list(installed) == OWN
    assert installed["vgg16"] is BACKBONES["vgg16"]
