"""Good data and a good run, which each test may damage."""

import shutil

import pytest

from faults.data.planting import COMMANDS
from faults.harness import ask, nothing_changes, refused


@pytest.fixture(scope="package")
def run(scans, tmp_path_factory):
    """The folder of a good run, which whatever is refused must leave as it is."""
    folder = tmp_path_factory.mktemp("runs")
    ended = ask(*COMMANDS["table"](scans, folder / "run", None), "--cache", folder / "cache")
    assert ended.status == 0, ended
    return folder / "run"


@pytest.fixture(scope="package")
def exported(scans, tmp_path_factory):
    """All patches of those scans as images."""
    folder = tmp_path_factory.mktemp("exported") / "folder"
    assert ask("data", "export", "--scans", scans, "--out", folder, "--cache", folder.parent / "cache").status == 0
    return folder


@pytest.fixture
def images(exported, tmp_path):
    """A folder of two images a scan and split, p0.png and p1.png."""
    for split in ("train", "test"):
        for scan in ("s0", "s1"):
            (tmp_path / "images" / split / scan).mkdir(parents=True)
            for number, file in enumerate(sorted((exported / split / scan).iterdir())[:2]):
                shutil.copy(file, tmp_path / "images" / split / scan / f"p{number}.png")
    return tmp_path / "images"


@pytest.fixture
def file(scans, tmp_path):
    """A copy of the scan file, to be damaged."""
    return shutil.copy(scans, tmp_path / "scans.h5")


@pytest.fixture
def refuses(run, tmp_path):
    """Asserts that a command refuses a path, in a line of these words, and that it changes no file."""

    def ask_for(command, given, *words):
        with nothing_changes(run, tmp_path):
            ended = ask(*COMMANDS[command](given, run, tmp_path / "new"))
        return refused(ended, *words)

    return ask_for


@pytest.fixture
def manual(scans, tmp_path):
    (tmp_path / "manual").mkdir()
    shutil.copy(scans, tmp_path / "manual" / "Kimia_Path24.h5")
    return tmp_path / "manual"
