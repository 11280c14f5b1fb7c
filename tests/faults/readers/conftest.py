"""Where thousands of files are written, and a network small enough to read as many of its weights."""

import tempfile
from pathlib import Path

import pytest

from faults.readers.weights import KERAS_NAMES, LEAVES, TORCH_NAMES, Small
from kimiajax.models.backbone import BACKBONES
from kimiajax.models.cnn import CNN
from weights_convert import keras, torch
from weights_convert.tables import AS_IS, CONV_OIHW, Convention

MEMORY_DISK = Path("/dev/shm")  # where thousands of files are written in no time


@pytest.fixture
def folder(tmp_path):
    with tempfile.TemporaryDirectory(prefix="kimiajax-", dir=MEMORY_DISK if MEMORY_DISK.is_dir() else tmp_path) as path:
        yield Path(path)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Lets `convert` know a network of one block, by the names and layouts of both frameworks."""
    blocks = ("block1", "predictions")
    made = Small("small", CNN, blocks, *blocks[:1] * 2, blocks[:1], hidden=None, dropout=0.0, smallest=8)
    monkeypatch.setitem(BACKBONES, "small", made)
    for module, names in ((keras, KERAS_NAMES), (torch, TORCH_NAMES)):
        kinds = [AS_IS if module is keras or len(shape) != 4 else CONV_OIHW for shape in LEAVES.values()]
        monkeypatch.setitem(module.TABLES, "small", (dict(zip(names, zip(LEAVES, kinds))),))
        monkeypatch.setitem(module.CONVENTIONS, "small", Convention({}, {"channels": "RGB"}, None))
