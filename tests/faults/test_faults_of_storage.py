"""Disks that are full or read-only, folders that two write at once, clocks that jump, and what a cache holds."""

import contextlib
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from faults.harness import alone, ask, files_of, finish, nothing_changes, refused, start
from faults.striking import forbidding, killing
from kimiajax.data.manifest import header_of, read_manifest
from kimiajax.evaluation.stored import read_run
from kimiajax.features import extract
from kimiajax.io.locks import LOCK

ROWS = ["--rows", "floor_histogram", "floor_mean_sd"]
TABLE = ["table", "quick", "--image-size", "32", "--patches-per-scan", "4", "--conv", "plain"]
TRAINS = ["--rows", "cnn", "--epochs", "3", "--batch-size", "4", "--checkpoint-seconds", "0"]
NETWORK = ["features", "cnn", "--weights", "random", "--image-size", "32", "--conv", "plain"]
FULL = "OSError(28, 'No space left on device')"
# A process of root's that may write, as others may, only where the permissions say so.
AS_ANYBODY = """
import ctypes, os
if os.geteuid() == 0:
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    assert libc.capget(header, data) == 0
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, data) == 0
"""


@pytest.fixture(scope="module")
def run(scans, cache, tmp_path_factory):
    """The folder of a finished run with its report."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert ask(*TABLE, *ROWS, "--scans", scans, "--cache", cache, "--out", out).status == 0
    assert ask("report", out).status == 0
    return out


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


@contextlib.contextmanager
def read_only(folder):
    """A folder that nobody may write to, nor what lies below."""
    below = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in below:
        path.chmod(0o555)
    try:
        yield
    finally:
        for path in below:
            path.chmod(0o755)


def check_whole(out):
    """Whatever can be read in a run's folder is whole: its record, its manifest, its predictions."""
    assert not list(out.rglob("*kimiajax-partial*"))
    if (out / "results.json").exists():
        read_run(out)
    if header_of(out / "manifest.csv").exists():
        read_manifest(out / "manifest.csv")


@pytest.mark.fault("disks")
@pytest.mark.parametrize("kilobytes", [0, 1, 4, 6])
def test_a_table_on_a_full_disk_is_told_in_a_line_and_goes_on_later(scans, run, cache, tmp_path, kilobytes):
    command = [*TABLE, *ROWS, "--scans", scans, "--cache", cache, "--out", tmp_path / "run"]
    line = refused(alone(*command, limits=f"-f {kilobytes}"), "space")
    assert str(tmp_path / "run") in line or str(cache) in line
    assert "kimiajax-partial" not in line
    check_whole(tmp_path / "run")
    assert ask(*command).status == 0
    assert read_run(tmp_path / "run").predicted.keys() == read_run(run).predicted.keys()


NO_ROOM = forbidding("posix_fallocate", error=FULL)


@pytest.mark.fault("disks")
@pytest.mark.parametrize("full", [{"limits": "-f 10"}, {"before": NO_ROOM}], ids=["a limit", "space that is asked for"])
def test_patches_that_find_no_room_in_the_cache_are_told_before_they_are_read(scans, tmp_path, full):
    command = [*TABLE, *ROWS, "--scans", scans, "--cache", tmp_path / "cache", "--out", tmp_path / "run"]
    line = refused(alone(*command, **full), tmp_path / "cache", "too little space", "another folder with --cache")
    assert "GiB" in line
    assert not list((tmp_path / "cache").rglob("*.npy"))
    assert ask(*command).status == 0


@pytest.mark.fault("disks")
def test_training_goes_on_without_states_where_they_find_no_room_and_says_so(scans, cache, tmp_path):
    """The states take megabytes and what was learnt less than they do, so that one limit tells them apart."""
    command = [*TABLE, *TRAINS, "--scans", scans, "--cache", cache, "--out", tmp_path / "run"]
    limited = alone(*command, limits="-f 700")
    assert "no checkpoint could be written" in limited.said
    assert "training goes on without" in limited.said
    refused(limited, tmp_path / "run" / "checkpoints" / "cnn", "space")
    check_whole(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "cnn").exists()
    assert ask(*command).status == 0
    assert ask("report", tmp_path / "run", "--format", "markdown").status == 0


@pytest.mark.fault("disks")
def test_a_disk_that_is_full_when_a_file_is_settled_leaves_the_one_before(copy, scans, cache):
    """Some file systems tell only then."""
    before = (copy / "results.json").read_bytes()
    command = [*TABLE, *ROWS, "--scans", scans, "--cache", cache, "--out", copy]
    refused(alone(*command, before=forbidding("fsync", error=FULL)), copy, "No space left on device")
    assert (copy / "results.json").read_bytes() == before
    assert ask(*command).status == 0


COMMANDS = {
    "export": lambda scans, run, out: ["data", "export", "--scans", scans, "--patches-per-scan", 4, "--out", out],
    "features": lambda scans, run, out: [*NETWORK, "--scans", scans, "--out", out],
    "report": lambda scans, run, out: ["report", run, "--out", out / "report.html"],
    "score": lambda scans, run, out: [
        *("score", run / "predictions" / "floor_histogram.csv", "--truth", run, "--out", out / "score.json")
    ],
    "audit": lambda scans, run, out: ["data", "audit", "--scans", scans, "--out", out],
    "compare": lambda scans, run, out: ["compare", run, run, "--out", out / "compare.json"],
}


@pytest.mark.fault("disks")
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("how", ["full", "read-only", "no renaming"])
def test_a_command_that_cannot_write_says_where_and_leaves_nothing(scans, run, cache, tmp_path, name, how):
    (tmp_path / "folder").mkdir()
    folder = tmp_path / "folder" / ("out" if name in ("export", "features") else "")
    command = COMMANDS[name](scans, run, folder)
    if name not in ("report", "score", "compare"):
        command = [*command, "--cache", cache]
    options = {
        "full": {"limits": "-f 0"},
        "read-only": {"before": AS_ANYBODY},
        "no renaming": {"before": forbidding("rename", "replace")},
    }[how]
    with read_only(tmp_path / "folder") if how == "read-only" else contextlib.nullcontext():
        line = refused(alone(*command, **options), "space")
    assert str(tmp_path / "folder") in line or str(cache) in line
    assert "kimiajax-partial" not in line
    assert files_of(tmp_path / "folder") == {}
    assert ask(*command).status in (0, 3)  # an audit may find something
    assert files_of(tmp_path / "folder") != {}


@pytest.mark.fault("disks")
def test_a_run_in_a_read_only_folder_is_refused_before_any_work_and_stays_readable(copy, scans, cache):
    with read_only(copy), nothing_changes(copy):
        command = [*TABLE, *ROWS, "--scans", scans, "--cache", cache, "--out", copy, "--fresh"]
        ended = alone(*command, before=AS_ANYBODY)
        refused(ended, copy, "Permission denied", "check the path, its permissions")
        assert "reading" not in ended.said
        assert alone("report", copy, "--format", "markdown", before=AS_ANYBODY).status == 0


@pytest.mark.fault("disks")
def test_scans_and_a_run_on_a_read_only_medium_can_be_used(copy, scans, tmp_path):
    medium = tmp_path / "medium"
    medium.mkdir()
    shutil.copy(scans, medium / "scans.h5")
    shutil.copytree(copy, medium / "run")
    with read_only(medium):
        command = [*TABLE, *ROWS, "--scans", medium / "scans.h5", "--cache", tmp_path / "c", "--out", tmp_path / "out"]
        assert alone(*command, before=AS_ANYBODY).status == 0
        assert alone("compare", medium / "run", tmp_path / "out", before=AS_ANYBODY).status == 0


@pytest.mark.fault("writers")
def test_a_second_run_is_refused_with_who_holds_the_folder_and_a_dead_ones_is_taken_over(scans, cache, tmp_path):
    out = tmp_path / "run"
    command = [*TABLE, *TRAINS, "--epochs", 400, "--scans", scans, "--cache", cache, "--out", out]
    first = start(*command)
    while not (out / "history" / "cnn.jsonl").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    line = refused(ask(*command), out, f"process {first.pid} on ", "since 20", "wait for it, or choose another --out")
    assert line.count("\n") == 0
    refused(ask(*command, "--fresh"), out, f"process {first.pid} on ")
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    finish(first)
    assert json.loads((out / LOCK).read_text())["pid"] == first.pid
    again = alone(*command, before=killing("kimiajax.training.loop:fit"))
    assert f"taken over from process {first.pid} on " in again.said


@pytest.mark.fault("writers")
def test_a_run_on_another_machine_holds_the_folder_while_it_lives(copy, scans, cache):
    """A holder elsewhere, whom this machine's locks do not know: it touches the file, and then does not any more."""
    command = [*TABLE, *ROWS, "--scans", scans, "--cache", cache, "--out", copy]
    (copy / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "2031-01-01T00:00:00", "born": 1}))
    patient = "from kimiajax.io import locks; locks.PATIENCE = 3"
    waiting = start(*command, before=patient)
    while waiting.poll() is None:
        os.utime(copy / LOCK)
        time.sleep(0.1)
    refused(finish(waiting), copy, "process 7 on elsewhere", "choose another --out")
    taken = alone(*command, before=patient)
    assert taken.status == 0
    assert "watching for 3 seconds" in taken.said
    assert "taken over from process 7 on elsewhere" in taken.said


@pytest.mark.fault("writers")
def test_two_writers_of_one_cache_both_end_well_with_the_same_arrays(scans, tmp_path):
    commands = [[*NETWORK, "--scans", scans, "--cache", tmp_path / "cache", "--out", tmp_path / name] for name in "ab"]
    both = [start(*command) for command in commands]
    assert [finish(process).status for process in both] == [0, 0]
    a, b = (np.load(tmp_path / name / "features.npy") for name in "ab")
    np.testing.assert_array_equal(a, b)
    assert not list((tmp_path / "cache").rglob("*kimiajax-partial*"))
    third = ask(*NETWORK, "--scans", scans, "--cache", tmp_path / "cache", "--out", tmp_path / "c")
    assert "found in" in third.said
    np.testing.assert_array_equal(np.load(tmp_path / "c" / "features.npy"), a)


@pytest.mark.fault("writers")
@pytest.mark.parametrize("where", ["kimiajax.features.extract:_compute", "kimiajax.io.cache:put_folder"])
def test_a_killed_writer_of_a_cache_leaves_nothing_that_is_found_and_the_next_one_clears_up(scans, tmp_path, where):
    command = [*NETWORK, "--scans", scans, "--cache", tmp_path / "cache", "--out", tmp_path / "out"]
    assert (
        alone(*command, before=killing(where, 1, "after" if "compute" in where else "before")).status == -signal.SIGKILL
    )
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.rglob("*kimiajax-partial*"))
    ended = ask(*command)
    assert ended.status == 0
    assert "found in" not in ended.said
    assert not list(tmp_path.rglob("*kimiajax-partial*"))
    assert np.isfinite(np.load(tmp_path / "out" / "features.npy")).all()


@pytest.mark.fault("writers")
@pytest.mark.parametrize(
    "clock", ["lambda: 0.0", "lambda real=time.time: 2 * 1.8e9 - real()"], ids=["stopped in 1970", "running backwards"]
)
def test_a_clock_that_jumps_changes_no_result(scans, cache, tmp_path, clock):
    names = ("whole", "jumped")
    commands = [[*TABLE, *TRAINS, "--scans", scans, "--cache", cache, "--out", tmp_path / name] for name in names]
    wrong = f"import time; time.time = {clock}"
    assert ask(*commands[0]).status == 0
    killed = alone(*commands[1], before=f"{wrong}\n{killing('kimiajax.training.loop:epoch_of', 3)}")
    assert killed.status == -signal.SIGKILL
    assert alone(*commands[1], before=wrong).status == 0
    a, b = (read_run(tmp_path / name) for name in names)
    assert a.rows["cnn"]["learnt_sha256"] == b.rows["cnn"]["learnt_sha256"]
    np.testing.assert_array_equal(a.predicted["cnn"], b.predicted["cnn"])
    assert ask("compare", tmp_path / "whole", tmp_path / "jumped").status == 0


def _kept(cache, kind):
    return {path.name for path in (cache / kind).iterdir() if not path.name.startswith(".")}


@pytest.mark.fault("caches")
@pytest.mark.parametrize(
    "flags", [["--precision", "bfloat16"], ["--resize", "nearest"], ["--image-size", 40], ["--seed", 1]]
)
def test_features_of_another_precision_resize_size_or_weights_are_not_found(scans, tmp_path, flags):
    command = [*NETWORK, "--scans", scans, "--cache", tmp_path / "cache"]
    assert ask(*command, "--out", tmp_path / "a").status == 0
    other = ask(*command, *flags, "--out", tmp_path / "b")
    assert (other.status, "found in" in other.said) == (0, False)
    assert len(_kept(tmp_path / "cache", "features")) == 4  # of training and of test patches
    assert "found in" in ask(*command, "--out", tmp_path / "c").said


@pytest.mark.fault("caches")
def test_features_of_another_version_of_the_program_are_not_found(scans, tmp_path, monkeypatch):
    command = [*NETWORK, "--scans", scans, "--cache", tmp_path / "cache"]
    assert ask(*command, "--out", tmp_path / "a").status == 0
    for name in ("VERSION", "__version__"):
        monkeypatch.setattr(extract, name, f"{getattr(extract, name)}+")
        other = ask(*command, "--out", tmp_path / name)
        assert (other.status, "found in" in other.said) == (0, False)


def _turned(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _zeroed(file):
    file.write_bytes(file.read_bytes()[:128] + bytes(file.stat().st_size - 128))


def _truncated(file):
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.fault("caches")
@pytest.mark.parametrize("kind", ["features", "pixels"])
@pytest.mark.parametrize("damage", [_turned, _zeroed, _truncated])
@pytest.mark.filterwarnings("ignore:.*is not what was kept there:UserWarning")
def test_damaged_arrays_in_the_cache_are_computed_again(scans, tmp_path, kind, damage):
    command = [*NETWORK, "--scans", scans, "--cache", tmp_path / "cache"]
    assert ask(*command, "--out", tmp_path / "a").status == 0
    if kind == "pixels":  # or the features would be found, and pixels not looked at
        shutil.rmtree(tmp_path / "cache" / "features")
    files = list((tmp_path / "cache" / kind).glob("*/*.npy"))
    assert files
    for file in files:
        damage(file)
    assert ask(*command, "--out", tmp_path / "b").status == 0
    a, b = (np.load(tmp_path / name / "features.npy") for name in "ab")
    np.testing.assert_array_equal(a, b)


@pytest.mark.fault("caches")
def test_a_damaged_array_is_told_of(scans, tmp_path):
    command = [*NETWORK, "--scans", scans, "--cache", tmp_path / "cache"]
    assert ask(*command, "--out", tmp_path / "a").status == 0
    for file in (tmp_path / "cache" / "features").glob("*/*.npy"):
        _turned(file)
    with pytest.warns(UserWarning, match="is not what was kept there and is computed again; is the disk sound"):
        assert ask(*command, "--out", tmp_path / "b").status == 0
