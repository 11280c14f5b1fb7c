"""Where reports and records go, and what is left when they cannot be written."""

import errno
import os
from pathlib import Path

import pytest

from faults.harness import ask, files_of, nothing_changes, refused
from faults.results.planting import PREDICTIONS


def writing(name, run, out):
    """A command that writes a file, and the files that it writes."""
    match name:
        case "report":
            return ("report", run, "--out", out / "r.html"), ("r.html", "r.analysis.json")
        case "report as text":
            return ("report", run, "--format", "latex", "--out", out / "r.tex"), ("r.tex",)
        case "score":
            return ("score", run / PREDICTIONS, "--truth", run, "--out", out / "s.json"), ("s.json",)
        case "compare":
            return ("compare", run, run, "--out", out / "c.json"), ("c.json",)


WRITERS = ("report", "report as text", "score", "compare")


@pytest.mark.fault("records")
@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_in_the_place_of_a_file_is_named_before_any_work(run, tmp_path, name):
    arguments, (file, *_) = writing(name, run, tmp_path)
    (tmp_path / file).mkdir()
    with nothing_changes(tmp_path, run):
        ended = ask(*arguments)
    refused(ended, f"--out {tmp_path / file}: is a folder; name the file")
    assert ended.shown == ""


@pytest.mark.fault("records")
def test_a_folder_in_the_place_of_the_runs_own_report_is_named(copy):
    (copy / "report.html").mkdir()
    with nothing_changes(copy):
        refused(ask("report", copy), copy / "report.html", "is a folder; name the file")


@pytest.mark.fault("records")
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_in_the_place_of_a_folder_is_named(run, tmp_path, undrawn, name):
    (tmp_path / "file").write_text("x")
    arguments, _ = writing(name, run, tmp_path / "file")
    with nothing_changes(tmp_path, run):
        refused(ask(*arguments), tmp_path / "file", "check the path")


@pytest.mark.fault("records")
@pytest.mark.parametrize("name", WRITERS)
def test_missing_folders_are_made(run, tmp_path, undrawn, name):
    arguments, files = writing(name, run, tmp_path / "a" / "b")
    assert ask(*arguments).status == 0
    assert sorted(files_of(tmp_path)) == sorted(f"a/b/{file}" for file in files)


def failing(code, before=""):
    """A method of paths that fails as a disk does, after it wrote this."""

    def fail(self, *arguments, **options):
        if before:
            with self.open("w") as file:
                file.write(before)
        raise OSError(code, os.strerror(code), str(self))

    return fail


@pytest.mark.fault("records")
@pytest.mark.parametrize("fault", ["a full disk", "no room for a rename", "a read-only disk", "a read-only folder"])
@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_leaves_the_one_before(run, tmp_path, undrawn, monkeypatch, name, fault):
    arguments, files = writing(name, run, tmp_path)
    for file in files:
        (tmp_path / file).write_text("the one before")
    method, fails = {
        "a full disk": ("write_text", failing(errno.ENOSPC, "half")),
        "no room for a rename": ("replace", failing(errno.ENOSPC)),
        "a read-only disk": ("write_text", failing(errno.EROFS)),
        "a read-only folder": ("write_text", failing(errno.EACCES)),
    }[fault]
    with nothing_changes(tmp_path, run):
        with monkeypatch.context() as patched:
            patched.setattr(Path, method, fails)
            ended = ask(*arguments)
        refused(ended, tmp_path, "check the path, its permissions and space")
    assert ask(*arguments).status == 0
    assert all((tmp_path / file).read_text() != "the one before" for file in files)


@pytest.mark.fault("records")
def test_a_report_and_its_figures_are_written_both_or_neither(run, tmp_path, undrawn, monkeypatch):
    arguments, files = writing("report", run, tmp_path)
    for file in files:
        (tmp_path / file).write_text("the one before")
    write_text, written = Path.write_text, []

    def second_fails(self, *arguments, **options):
        written.append(self)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write_text(self, *arguments, **options)

    with nothing_changes(tmp_path), monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", second_fails)
        refused(ask(*arguments), tmp_path, "check the path")
    assert len(written) == 2
