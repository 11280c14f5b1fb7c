"""Two processes of four devices each, over loopback, against one process of eight."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_table import rows_of

from kimiajax.cli import main
from kimiajax.processes import LOST

FAULTS = (
    "each process streams the same part",
    "each process in an order of its own",
)


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def start(program, environment=None):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    return subprocess.Popen([sys.executable, *program], env={**os.environ, **(environment or {})}, **pipes)


def ends(started, within=300):
    """Of each process the exit status and what it said; none is left behind."""
    until = time.monotonic() + within
    try:
        said = [process.communicate(timeout=max(1, until - time.monotonic()))[0] for process in started]
        return [(process.returncode, text) for process, text in zip(started, said)]
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process and what two found, and the folder."""
    folder, program = tmp_path_factory.mktemp("processes"), str(Path(__file__).parent / "two_processes.py")
    found = {}
    for count in (1, 2):
        port, out = free_port(), str(folder / f"{count}.npz")
        done = ends([start([program, str(count), str(number), port, out]) for number in range(count)])
        assert [status for status, _ in done] == [0] * count, done
        found[count] = dict(np.load(out))
    return found


def apart(left, right):
    return float(np.abs(left - right).max())


@pytest.mark.parametrize("feed", ["resident", "stream"])
def test_two_processes_train_as_one_does(found, feed):
    """Momentum, dropout, augmentation, mini-batch statistics, batches that do not divide; float64's own rounding."""
    one, two = found[1], found[2]
    assert (one["devices"], one["processes"], two["devices"], two["processes"]) == (8, 1, 8, 2)
    assert apart(one[feed], two[feed]) < 1e-12


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_in_training_shows(found, fault):
    assert apart(found[1]["stream"], found[2][f"fault: {fault}"]) > 1e-4


def test_two_processes_predict_as_one_does(found):
    assert len(set(found[1]["predicted"].tolist())) > 1
    np.testing.assert_array_equal(found[1]["predicted"], found[2]["predicted"])


def test_two_processes_extract_the_features_that_one_does(found):
    """Kept in one cache by both, or in memory."""
    for name in ("features", "features kept", "features found"):
        np.testing.assert_array_equal(found[1]["features"], found[2][name])
    assert apart(found[1]["features"], found[2]["fault: each process takes the first batches"]) > 1e-3


def test_processes_that_see_other_data_are_refused_and_an_error_of_the_first_is_everyones(found):
    assert str(found[2]["other data"]).startswith("processes 1 see other data than process 0")
    assert str(found[2]["same data"]) == ""
    assert str(found[2]["an error of the first"]) == "only here"


def test_a_loss_that_is_not_finite_ends_all_processes_alike_whichever_of_them_saves(found):
    assert "in epoch 1, step 2 (training patches" in str(found[2]["diverged"])


def test_the_first_process_chooses_the_feed_for_all(found):
    assert found[2]["feeds chosen"].tolist() == ["Resident", "Resident"]
    assert found[2]["fault: each process chooses its feed"].tolist() == ["Resident", "Stream"]


TABLE = ["--image-size", "75", "--patches-per-scan", "4", "--head-epochs", "2", "--batch-size", "8"]


def command_of(scans, tmp_path, out, *flags):
    given = ["--scans", str(scans), *TABLE, "--weights", "random", "--cache", str(tmp_path / "cache")]
    return ["table", "quick", *given, "--rows", "cnn", "fe_vgg16", "--out", str(tmp_path / out), *flags]


def start_two(command, *flags):
    port = free_port()
    shared = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--processes", "2", *flags]
    devices = {"JAX_NUM_CPU_DEVICES": "4", "NPROC": "16"}
    return [start(["-m", "kimiajax", *command, *shared, "--process", str(k)], devices) for k in (0, 1)]


def wait_for(path, started):
    """Until a file is there, or a process has ended before."""
    while not path.exists():
        assert all(process.poll() is None for process in started), ends(started)
        time.sleep(0.05)


def child_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


def test_the_table_of_two_processes_is_that_of_one(scans, tmp_path):
    flags = ("--epochs", "2", "--conv", "plain")
    (first, said), (second, others) = ends(start_two(command_of(scans, tmp_path, "two", *flags)))
    assert (first, second) == (0, 0), said + others
    assert "CNN (ours)" in said
    assert "CNN (ours)" not in others
    assert main(command_of(scans, tmp_path, "one", *flags)) == 0
    one, two = (rows_of(tmp_path / name)[1] for name in ("one", "two"))
    assert list(one) == list(two)
    assert one["fe_vgg16"]["learnt_sha256"] == two["fe_vgg16"]["learnt_sha256"]
    losses = [[epoch["loss"] for epoch in rows["cnn"]["history"]["training"]] for rows in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)  # Adam divides by the size of a gradient, be it rounding
    assert len(rows_of(tmp_path / "two")[0]["environment"]["devices"]) == 8


def test_a_run_of_two_processes_that_sigterm_ends_goes_on_in_one(scans, tmp_path):
    flags = ("--epochs", "300", "--checkpoint-seconds", "999")
    started = start_two(command_of(scans, tmp_path, "run", *flags))
    wait_for(tmp_path / "run" / "history" / "cnn.jsonl", started)
    for process in started:
        process.send_signal(signal.SIGTERM)
    assert [status for status, _ in ends(started)] == [143, 143]
    (kept,) = (tmp_path / "run" / "unfinished" / "cnn" / "training").iterdir()
    assert main(command_of(scans, tmp_path, "run", *flags)) == 0
    results, rows = rows_of(tmp_path / "run")
    assert [epoch["epoch"] for epoch in rows["cnn"]["history"]["training"]] == [*range(1, 301)]
    assert int(kept.name) > 0
    assert any("CNN (ours) was resumed" in note for note in results["notes"])
    assert any("environment" in note or "not the same any more" in note for note in results["notes"])


def test_a_lost_peer_ends_the_run_with_a_clear_line_and_a_checkpoint_that_serves(scans, tmp_path):
    flags = ("--epochs", "300", "--checkpoint-seconds", "0.1")
    started = start_two(command_of(scans, tmp_path, "run", *flags), "--peer-timeout", "10")
    checkpoints = tmp_path / "run" / "unfinished" / "cnn" / "training"
    wait_for(checkpoints, started)
    time.sleep(1)
    os.kill(child_of(started[1]), signal.SIGKILL)
    (first, said), (second, _) = ends(started)
    assert (first, second) == (LOST, 137)
    assert said.splitlines()[-1].startswith("kimiajax: another process of this run was lost; start it again")
    assert any(path.name.isdecimal() for path in checkpoints.iterdir())
    assert main(command_of(scans, tmp_path, "run", *flags)) == 0
    assert "CNN (ours) was resumed" in " ".join(rows_of(tmp_path / "run")[0]["notes"])


def test_flags_of_several_processes_are_refused_where_they_cannot_serve(scans, tmp_path, capfd):
    command = command_of(scans, tmp_path, "run")
    assert main([*command, "--processes", "2"]) == 2
    assert "--processes: is for --distributed" in capfd.readouterr().err
    done = ends([start(["-m", "kimiajax", *command, "--distributed"])])
    assert done[0][0] == 2
    assert "give --coordinator HOST:PORT, --processes N and --process K" in done[0][1]


def test_pmap_is_refused_for_several_processes(scans, tmp_path):
    for status, said in ends(start_two(command_of(scans, tmp_path, "run", "--engine", "pmap"))):
        assert status == 2, said
        assert "--engine pmap is for the devices of one process" in said


@pytest.mark.parametrize(
    ("ends_by", "status"),
    [("os._exit(0)", 0), ("os._exit(3)", 3), ("os.abort()", LOST), ("os.kill(os.getpid(), 9)", 137)],
)
def test_a_supervised_child_gives_its_status_and_an_abort_is_a_lost_peer(ends_by, status):
    program = f"import os\nfrom kimiajax.processes import supervised\nos._exit(supervised(lambda: {ends_by}))"
    ((ended, said),) = ends([start(["-c", program])])
    assert ended == status
    assert ("another process of this run was lost" in said) == (status == LOST)


def test_a_child_does_not_outlive_its_supervisor(tmp_path):
    program = (
        "import os, time\nfrom kimiajax.processes import supervised\n"
        f"def work():\n    open({str(tmp_path / 'pid')!r} + 'x', 'w').write(str(os.getpid()))\n"
        f"    os.rename({str(tmp_path / 'pid')!r} + 'x', {str(tmp_path / 'pid')!r})\n    time.sleep(60)\n    return 0\n"
        "supervised(work)"
    )
    process = start(["-c", program])
    wait_for(tmp_path / "pid", [process])
    child = int((tmp_path / "pid").read_text())
    process.kill()
    process.communicate()
    until = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < until
        time.sleep(0.05)
