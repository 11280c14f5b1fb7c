"""Errors that nobody foresaw, and a reader of the output that goes away."""

import subprocess
import sys

import pytest

from faults.harness import ask, refused
from kimiajax.cli import commands
from weights_convert.__main__ import main as converter

BUG = 1


@pytest.mark.fault("bugs")
def test_an_error_that_nobody_foresaw_is_called_a_bug_with_what_to_report(monkeypatch):
    def broken(arguments):
        raise ZeroDivisionError("division by zero\nof two lines")

    monkeypatch.setattr(commands, "score", broken)
    line = refused(ask("score", "x.csv"), "this is a bug", "ZeroDivisionError: division by zero", "--debug", status=BUG)
    assert "report" in line
    assert "of two lines" not in line.split("division")[0]
    debugged = ask("score", "x.csv", "--debug")
    assert debugged.status == BUG
    assert "Traceback" in debugged.said
    assert "in broken" in debugged.said


@pytest.mark.fault("bugs")
@pytest.mark.parametrize("place", [0, 4])
def test_the_converter_shows_where_an_error_comes_from_wherever_that_is_asked(tmp_path, capsys, place):
    command = ["keras", "vgg16", str(tmp_path / "x.h5"), str(tmp_path / "out")]
    assert converter([*command[:place], "--debug", *command[place:]]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.fault("bugs")
def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m kimiajax blocks inception_v3 | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.fault("markup")
def test_a_name_that_steers_a_terminal_or_fakes_a_line_is_shown_in_the_one_line(tmp_path):
    line = refused(ask("score", tmp_path / "a\nkimiajax: all is well\x1b[2K.csv", "--truth", tmp_path), "No such file")
    assert "\x1b" not in line
    assert r"\x1b[2K" in line
