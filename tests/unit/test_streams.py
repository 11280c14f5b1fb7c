"""A command whose streams are closed, full, cut off or of few letters, and commands that are copied from its output."""

import os
import shlex
import subprocess
import sys

import pytest

from kimiajax.cli.main import main
from kimiajax.data.open_scans import open_scans

KIMIAJAX = f"{shlex.quote(sys.executable)} -m kimiajax"
NAMES = ("a folder", "it's", "$HOME", "Präparat;`x`")


def bash(line, **variables):
    own = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
        env={**own, **variables},
    )


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("command", "status"), [("--version", 0), ("nothing", 2)])
def test_closed_streams_change_no_status(closed, command, status):
    done = bash(f"{KIMIAJAX} {command} {closed}")
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stdout == ("kimiajax 0.1.0\n" if command == "--version" and ">&-" not in closed.split() else "")


def test_a_file_that_is_opened_later_takes_no_number_of_a_closed_stream(tmp_path):
    code = """
import os, subprocess, sys
from kimiajax.runtime import streams
streams.settle()
with open(sys.argv[1], "w") as file:
    os.write(2, b"told by a C library")
    subprocess.run([sys.executable, "-c", "import os; os.write(2, b'told by a child')"], check=True)
    print("and by Python", file=sys.stderr, flush=True)
    sys.exit(file.fileno() < 3)
"""
    line = shlex.join([sys.executable, "-c", code, str(tmp_path / "file")])
    assert bash(f"{line} <&- >&- 2>&-").returncode == 0
    assert (tmp_path / "file").read_text() == ""
    planted = code.replace("streams.settle()", "")
    line = shlex.join([sys.executable, "-c", planted, str(tmp_path / "file")])
    assert bash(f"{line} <&- >&- 2>&-").returncode != 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        (f"{KIMIAJAX} --help > /dev/full", 2, "No space left on device"),
        (f"{KIMIAJAX} --help 2> /dev/full", 0, ""),
        (f"{KIMIAJAX} nothing 2> /dev/full", 2, ""),
        (f"{KIMIAJAX} --help > /dev/full 2>&1", 2, ""),
        (f"set -o pipefail; {KIMIAJAX} --help | true", 0, ""),
        (f"set -o pipefail; {KIMIAJAX} nothing 2>&1 | true", 2, ""),
    ],
)
def test_a_full_or_cut_off_stream_is_a_line_or_nothing(line, status, said, unbuffered):
    done = bash(line, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == status, done
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == bool(said), done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
    ],
)
def test_letters_that_a_locale_lacks_end_nothing(variables, tmp_path):
    (tmp_path / "ä.csv").write_text("patch_id,predicted\n\N{BOX DRAWINGS LIGHT HORIZONTAL},0\n", encoding="utf-8")
    (tmp_path / "ö.csv").write_text("patch_id,scan\n\N{BOX DRAWINGS LIGHT HORIZONTAL},0\n", encoding="utf-8")
    command = f"{KIMIAJAX} score {tmp_path}/ä.csv --truth {tmp_path}/ö.csv --out {tmp_path}/ü.json"
    done = bash(command, **variables)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ü.json").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_note_names_the_scans_so_that_its_command_can_be_copied(name, scans, tmp_path):
    (tmp_path / name).mkdir()
    path = tmp_path / name / "scans.h5"
    path.symlink_to(scans)
    with open_scans(path) as source:
        done = bash(f"printf '%s|' {source.flags}")
    assert done.stdout == f"--scans|{path}|"


@pytest.mark.parametrize("name", NAMES)
def test_what_prepares_a_set_says_a_command_that_can_be_copied(name, scans, tmp_path, capsys):
    (tmp_path / name).mkdir()
    (tmp_path / name / "kimia_path24.h5").symlink_to(scans)
    folders = ["--manual-dir", str(tmp_path / name), "--data-dir", str(tmp_path / f"to {name}")]
    assert main(["data", "prepare", "kimia_path24", *folders, "--allow-unverified"]) == 0
    command, *flags = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert (command, flags[-2:]) == ("kimiajax", ["--data-dir", str(tmp_path / f"to {name}")])
