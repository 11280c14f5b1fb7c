"""Runs of two processes of which one, or both, are stopped."""

import os
import signal
from pathlib import Path

import pytest
from support.processes import command_of, ends, start_two, wait_for
from support.runs import rows_of

from kimiajax.cli.main import main
from kimiajax.runtime.distributed import LOST

pytestmark = pytest.mark.usefixtures("two")


def child_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


@pytest.mark.fault("signals")
def test_a_run_of_two_processes_that_sigterm_ends_goes_on_in_one(scans, tmp_path):
    flags = ("--epochs", "60", "--checkpoint-seconds", "999")
    started = start_two(command_of(scans, tmp_path, "run", *flags))
    wait_for((tmp_path / "run" / "history" / "cnn.jsonl").exists, started)
    for process in started:
        process.send_signal(signal.SIGTERM)
    assert [status for status, _ in ends(started)] == [143, 143]
    (kept,) = (tmp_path / "run" / "unfinished" / "cnn" / "training").iterdir()
    assert main(command_of(scans, tmp_path, "run", *flags)) == 0
    results, rows = rows_of(tmp_path / "run")
    assert [epoch["epoch"] for epoch in rows["cnn"]["history"]["training"]] == [*range(1, 61)]
    assert int(kept.name) > 0
    assert any("CNN (ours) was resumed" in note for note in results["notes"])
    assert any("environment" in note or "not the same any more" in note for note in results["notes"])


@pytest.mark.fault("kills")
def test_a_lost_peer_ends_the_run_with_a_clear_line_and_a_checkpoint_that_serves(scans, tmp_path):
    flags = ("--epochs", "60", "--checkpoint-seconds", "0.1")
    started = start_two(command_of(scans, tmp_path, "run", *flags), "--peer-timeout", "5")
    checkpoints = tmp_path / "run" / "unfinished" / "cnn" / "training"
    wait_for(lambda: checkpoints.exists() and any(path.name.isdecimal() for path in checkpoints.iterdir()), started)
    os.kill(child_of(started[1]), signal.SIGKILL)
    (first, said), (second, _) = ends(started)
    assert (first, second) == (LOST, 137)
    assert said.splitlines()[-1].startswith("kimiajax: another process of this run was lost; start it again")
    assert any(path.name.isdecimal() for path in checkpoints.iterdir())
    assert main(command_of(scans, tmp_path, "run", *flags)) == 0
    assert "CNN (ours) was resumed" in " ".join(rows_of(tmp_path / "run")[0]["notes"])
