"""Commands from end to end, on a network of two blocks wherever any network would do."""

import subprocess
import sys

import pytest
from support.runs import RANDOM, SMALL

from kimiajax.cli.main import main

SMALL_ROWS = ("cnn", "fe_two", "tl_two")


@pytest.fixture(scope="session", autouse=True)
def rows_of_two(two):
    """Every test here has the rows of the network of two blocks."""


@pytest.fixture(scope="session")
def real_run(scans, shared):
    """The folder of a finished run of all rows of the paper's networks, and what it wrote to stdout and to stderr."""

    def make(folder):
        flags = [*SMALL, "--image-size", "75", *RANDOM, "--out", folder / "run", "--cache", folder / "cache"]
        command = [sys.executable, "-m", "kimiajax", "table", "quick", "--scans", scans, *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        for name in ("stdout", "stderr"):
            (folder / name).write_text(getattr(done, name))

    folder = shared("real run", make)
    return folder / "run", *((folder / name).read_text() for name in ("stdout", "stderr"))


@pytest.fixture(scope="session")
def small_run(scans, shared):
    """The folder of a finished run of rows that train and rows that do not, of the network of two blocks."""

    def make(folder):
        command = ["table", "quick", "--scans", str(scans), *SMALL, *RANDOM, "--rows", *SMALL_ROWS]
        assert main([*command, "--out", str(folder / "run"), "--cache", str(folder / "cache")]) == 0

    return shared("small run", make) / "run"
