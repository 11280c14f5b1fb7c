"""Where thousands of files are written, and a network small enough to read as many of its weights."""

import tempfile
from pathlib import Path

import pytest

from faults.readers.weights import Small
from kimiajax.models.cnn import CNN
from kimiajax.models.registry import BACKBONES

MEMORY_DISK = Path("/dev/shm")  # where thousands of files are written in no time


@pytest.fixture
def folder(tmp_path):
    with tempfile.TemporaryDirectory(prefix="kimiajax-", dir=MEMORY_DISK if MEMORY_DISK.is_dir() else tmp_path) as path:
        yield Path(path)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Lets `convert` know a network of one block."""
    blocks = ("block1", "predictions")
    made = Small(
        *("small", "Small", CNN, blocks, *blocks[:1] * 2, blocks[:1]),
        hidden=None,
        dropout=0.0,
        smallest=8,
        mapping="faults.readers.weights",
    )
    monkeypatch.setitem(BACKBONES, "small", made)
