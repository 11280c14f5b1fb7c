"""Two processes of four devices each, over loopback, against one process of eight."""

import time
from pathlib import Path

import numpy as np
import pytest
from support.processes import command_of, ends, free_port, start, start_two, wait_for
from support.python import WITH_TWO
from support.runs import rows_of

from kimiajax.cli.main import main
from kimiajax.runtime.distributed import LOST

pytestmark = pytest.mark.usefixtures("two")
FAULTS = (
    "each process streams the same part",
    "each process in an order of its own",
)


@pytest.fixture(scope="module")
def found(shared):
    """The findings of one process and of two."""

    def make(folder):
        for count in (1, 2):
            given = [str(Path(__file__).parent / "two_processes.py"), str(count)]
            port, out = free_port(), str(folder / f"{count}.npz")
            done = ends([start([*given, str(number), port, out]) for number in range(count)])
            assert [status for status, _ in done] == [0] * count, done

    folder = shared("processes", make)
    return {count: dict(np.load(folder / f"{count}.npz")) for count in (1, 2)}


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


def test_the_table_of_two_processes_is_that_of_one(scans, tmp_path):
    flags = ("--epochs", "2")
    (first, said), (second, others) = ends(start_two(command_of(scans, tmp_path, "two", *flags)))
    assert (first, second) == (0, 0), said + others
    assert "CNN (ours)" in said
    assert "CNN (ours)" not in others
    assert main(command_of(scans, tmp_path, "one", *flags)) == 0
    one, two = (rows_of(tmp_path / name)[1] for name in ("one", "two"))
    assert list(one) == list(two)
    assert one["fe_two"]["learnt_sha256"] == two["fe_two"]["learnt_sha256"]
    losses = [[epoch["loss"] for epoch in rows["cnn"]["history"]["training"]] for rows in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)  # Adam divides by the size of a gradient, be it rounding
    assert len(rows_of(tmp_path / "two")[0]["environment"]["devices"]) == 8


def test_flags_of_several_processes_are_refused_where_they_cannot_serve(scans, tmp_path, capfd):
    command = command_of(scans, tmp_path, "run")
    assert main([*command, "--processes", "2"]) == 2
    assert "--processes: is for --distributed" in capfd.readouterr().err
    done = ends([start(["-c", WITH_TWO, *command, "--distributed"])])
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
    program = f"import os\nfrom kimiajax.runtime.distributed import supervised\nos._exit(supervised(lambda: {ends_by}))"
    ((ended, said),) = ends([start(["-c", program])])
    assert ended == status
    assert ("another process of this run was lost" in said) == (status == LOST)


def test_a_child_does_not_outlive_its_supervisor(tmp_path):
    program = (
        "import os, time\nfrom kimiajax.runtime.distributed import supervised\n"
        f"def work():\n    open({str(tmp_path / 'pid')!r} + 'x', 'w').write(str(os.getpid()))\n"
        f"    os.rename({str(tmp_path / 'pid')!r} + 'x', {str(tmp_path / 'pid')!r})\n    time.sleep(60)\n    return 0\n"
        "supervised(work)"
    )
    process = start(["-c", program])
    wait_for((tmp_path / "pid").exists, [process])
    child = int((tmp_path / "pid").read_text())
    process.kill()
    process.communicate()
    until = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < until
        time.sleep(0.05)
