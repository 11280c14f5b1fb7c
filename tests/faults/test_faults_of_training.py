"""Training that is killed, stopped, damaged, given other settings, or that learns nothing."""

import json
import random
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from support.python import HAS_TWO

from faults.harness import alone, ask, finish, nothing_changes, refused, start
from faults.striking import killing
from kimiajax.data.sources.synthetic import write_synthetic_scans
from kimiajax.experiments import runner
from kimiajax.io.json_records import is_sealed
from kimiajax.io.pytrees import load_tree
from kimiajax.models.checkpoint import Weights
from kimiajax.runs.layout import RunFolder
from kimiajax.training.checkpoints import Checkpoints
from kimiajax.weights.load import load_weights

TINY = ["--image-size", "32", "--patches-per-scan", "4", "--head-epochs", "3", "--batch-size", "4", "--epochs", "4"]
TRAINING = [*TINY, "--augmentation", "keras2017", "--checkpoint-seconds", "0", "--conv", "plain"]
LEFTOVERS = ("*kimiajax-partial*", "*orbax-checkpoint-tmp*", "unfinished")

CLEARING = "the row is finished and its states are not cleared"
# Where a run is killed: the function, which of its calls, before or after it, and what its arguments must hold.
POINTS = {
    "patches are read and not yet kept": ("kimiajax.io.cache:put_folder",),
    "the manifest's header is in place and the manifest is not": ("pathlib:Path.replace", 1, "before", "manifest.csv"),
    "nothing is saved yet": ("kimiajax.training.checkpoints:Checkpoints.save",),
    "a state is being saved": ("kimiajax.training.checkpoints:Checkpoints.save", 2, "after"),
    "an epoch ends": ("kimiajax.training.loop:epoch_of", 3),
    "the last state is saved": ("kimiajax.experiments.runner:_record",),
    "predictions are written and results are not": ("kimiajax.runs.layout:RunFolder.write_predictions", 1, "after"),
    "what was learnt is being saved": ("kimiajax.models.checkpoint:save_tree",),
    "what was learnt is written and not yet named": ("kimiajax.io.files:put_folder",),
    "pictures are to be written": ("kimiajax.runs.layout:RunFolder.write_pictures", 2),
    "results are written and not yet named": ("pathlib:Path.replace", 2, "before", "results.json"),
    # its second call: the first clears the folder before the run
    CLEARING: ("kimiajax.runs.layout:RunFolder.clear_state", 2, "before", "'cnn'"),
}


def command_of(scans, out, cache, *flags, rows=("cnn",)):
    weights = ["--weights", "random"]
    given = ["--scans", scans, "--out", out, "--cache", cache, "--rows", *rows]
    return ["table", "quick", *TRAINING, *weights, *given, *flags]


def rows_of(out):
    results = json.loads((out / "results.json").read_text())
    assert is_sealed(results)
    return {row["name"]: row for row in results["rows"]}


def result_of(out):
    """What of a run must not depend on whether it was stopped."""
    return {
        name: (
            row["learnt_sha256"],
            row["predictions_sha256"],
            {phase: [(e["epoch"], e["loss"]) for e in epochs] for phase, epochs in row["history"].items()},
        )
        for name, row in rows_of(out).items()
    }


def leftovers(out):
    return [path for pattern in LEFTOVERS for path in out.rglob(pattern)]


@pytest.fixture(scope="module")
def whole(scans, cache, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert ask(*command_of(scans, out, cache)).status == 0
    return out


@pytest.fixture(scope="module")
def stopped(scans, cache, whole, tmp_path_factory):
    """The folder of a run that was stopped after several states were saved."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    before = killing("kimiajax.training.loop:epoch_of", 3, "before", "", int(signal.SIGTERM))
    assert alone(*command_of(scans, out, cache), before=before).status == 143
    assert len(states_of(out)) == 2
    return out


def states_of(out):
    """The saved states of the one training, the newest first."""
    folder = out / "unfinished" / "cnn" / "training"
    found = [path for path in folder.iterdir() if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


@pytest.fixture
def again(stopped, scans, cache, tmp_path):
    """A copy of it, and the same command for that."""
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run", command_of(scans, tmp_path / "run", cache)


@pytest.mark.fault("kills")
@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_is_killed_at_a_named_point_ends_as_one_left_alone(point, scans, whole, cache, tmp_path):
    own_cache = tmp_path / "cache" if "patches" in point else cache
    command = command_of(scans, tmp_path / "run", own_cache)
    killed = alone(*command, before=killing(*POINTS[point]))
    assert killed.status == -signal.SIGKILL, killed
    if (tmp_path / "run" / "results.json").exists():
        rows_of(tmp_path / "run")  # whole, whatever it says so far
    if point == CLEARING:
        assert "cnn" in rows_of(tmp_path / "run")
        assert states_of(tmp_path / "run")
    resumed = ask(*command)
    assert resumed.status == 0, resumed
    assert "taken over from process" in resumed.said
    assert result_of(tmp_path / "run") == result_of(whole)
    assert leftovers(tmp_path / "run") == []
    assert ask("report", tmp_path / "run", "--format", "markdown").status == 0


@pytest.mark.fault("kills")
def test_a_run_that_is_killed_at_random_moments_of_both_its_phases_ends_as_one_left_alone(scans, tmp_path):
    kill_again_and_again(scans, tmp_path, ["cnn", "tl_two"], 3)


@pytest.mark.fault("kills")
@pytest.mark.slow
def test_so_does_one_that_is_killed_at_twenty_moments(scans, tmp_path):
    kill_again_and_again(scans, tmp_path, ["tl_vgg16", "tl_inception_v3"], 20)


def kill_again_and_again(scans, tmp_path, rows, kills):
    """Kills a run so often, at random moments, and resumes each time; then compares it with one left alone."""
    size = ["--image-size", "75"] if "tl_inception_v3" in rows else []
    out, moments, hits = tmp_path / "whole", random.Random(7), 0
    command = [*command_of(scans, out, tmp_path / "cache", *size, rows=rows)]
    assert alone(*command, before=HAS_TWO).status == 0  # compiles
    started = time.monotonic()
    assert alone(*command, "--fresh", before=HAS_TWO).status == 0
    seconds = time.monotonic() - started
    while hits < kills:
        out = tmp_path / f"killed-{hits}"
        command = command_of(scans, out, tmp_path / "cache", *size, rows=rows)
        while hits < kills:
            process = start(*command, before=HAS_TWO)
            try:
                process.communicate(timeout=moments.uniform(0.3, 1.0) * seconds)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                hits += 1
        assert alone(*command, before=HAS_TWO).status == 0
        assert result_of(out) == result_of(tmp_path / "whole")
        assert leftovers(out) == []
        for row in rows:
            lines = [json.loads(line) for line in (out / "history" / f"{row}.jsonl").read_text().splitlines()]
            expected = rows_of(tmp_path / "whole")[row]["history"]
            assert [line["loss"] for line in lines] == [e["loss"] for part in expected.values() for e in part]


@pytest.mark.fault("signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_saves_ends_with_its_own_status_and_the_same_command_goes_on(scans, cache, tmp_path, number, status):
    flags = ["--epochs", "40", "--checkpoint-seconds", "999"]
    command = command_of(scans, tmp_path / "run", cache, *flags)
    process = start(*command)
    while not (tmp_path / "run" / "history" / "cnn.jsonl").exists():  # the first epoch has ended
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    ended = finish(process)
    assert ended.status == status
    assert ended.said.splitlines()[-1].endswith("; the same command goes on from here")
    assert "Traceback" not in ended.said
    (kept,) = states_of(tmp_path / "run")
    resumed = ask(*command)
    done = int(kept.name) // 4
    said = f"cnn, seed 0: resumed after {done} epochs", f"resumed after {done - 1} epochs and 4 of 4"
    assert any(each in resumed.said for each in said)
    assert "taken over" not in resumed.said  # it had let go
    assert ask(*command_of(scans, tmp_path / "whole", cache, *flags)).status == 0
    assert result_of(tmp_path / "run") == result_of(tmp_path / "whole")


def _deletes_a_file(newest):
    max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size).unlink()


def _turns_a_bit(newest):
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _truncates_every_file(newest):
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.fault("checkpoints")
@pytest.mark.parametrize("damage", [_deletes_a_file, _turns_a_bit, _truncates_every_file])
def test_a_damaged_state_is_named_and_the_one_before_it_used(again, whole, damage):
    out, command = again
    newest, older = states_of(out)
    damage(newest)
    resumed = ask(*command)
    assert resumed.status == 0
    (line,) = [line for line in resumed.said.splitlines() if "a damaged checkpoint" in line]
    assert str(newest) in line
    assert line.endswith("the one before it is used")
    assert f"resumed after {int(older.name) // 4} epochs" in resumed.said
    assert result_of(out) == result_of(whole)
    assert leftovers(out) == []


@pytest.mark.fault("checkpoints")
def test_where_no_state_is_sound_training_begins_anew_and_says_so(again, whole):
    out, command = again
    for path in states_of(out):
        _turns_a_bit(path)
    resumed = ask(*command)
    assert "this training begins anew" in resumed.said
    assert "resumed after" not in resumed.said
    assert result_of(out) == result_of(whole)


@pytest.mark.fault("checkpoints")
def test_what_a_killed_save_left_is_no_state_and_goes(again, whole, monkeypatch):
    out, command = again
    newest, _ = states_of(out)
    stale, there = newest.with_name("16.orbax-checkpoint-tmp-1234567"), []
    shutil.copytree(newest, stale)
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda *given: (there.append(stale.exists()), save(*given)))
    assert ask(*command).status == 0
    assert result_of(out) == result_of(whole)
    assert there
    assert not any(there)


@pytest.mark.fault("checkpoints")
def test_a_living_runs_unfinished_state_is_not_touched(again):
    out, command = again
    process = start(
        *command,
        before="import time; from kimiajax.experiments import runner; runner._open = lambda *a: time.sleep(99)",
    )
    while not (out / ".lock").read_text().count(str(process.pid)):
        assert process.poll() is None
        time.sleep(0.05)
    stale = states_of(out)[0].with_name("16.orbax-checkpoint-tmp-1234567")
    stale.mkdir()
    with nothing_changes(out):
        refused(ask(*command), out, f"process {process.pid}", "choose another --out")
        refused(ask(*command, "--fresh"), out, "another run writes there")
    assert stale.exists()
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def finished(scans, cache, tmp_path_factory):
    """The folder of a finished run that trains nothing, and its command."""
    out = tmp_path_factory.mktemp("finished") / "run"
    command = command_of(scans, out, cache, rows=["floor_histogram", "floor_mean_sd"])
    assert ask(*command).status == 0
    return out, command


@pytest.mark.fault("settings")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seed", "1"], "config/seed was 0 and is 1"),
        (["--image-size", "40"], "config/image_size was 32 and is 40"),
        (["--rows", "floor_histogram"], 'config/rows was ["floor_mean_sd", "floor_histogram"]'),
        (["--homogeneity", "0.5"], "config/homogeneity was 0.99 and is 0.5"),
    ],
)
def test_other_settings_are_refused_with_the_difference(finished, flags, said):
    out, command = finished
    with nothing_changes(out):
        refused(ask(*command, *flags), out, said, "choose another --out, or begin anew with --fresh")
    assert ask(*command).status == 0


@pytest.mark.fault("settings")
def test_other_patches_are_refused_with_the_difference(finished, tmp_path):
    out, command = finished
    write_synthetic_scans(tmp_path / "other.h5", num_scans=4, patch_size=80, grid=(4, 4), test_patches=(2, 3), seed=6)
    with nothing_changes(out):
        refused(ask(*command, "--scans", tmp_path / "other.h5"), out, "pixels_sha256 was", "choose another --out")


@pytest.mark.fault("settings")
def test_another_order_of_classes_is_refused_with_the_difference(scans, cache, tmp_path):
    """The same images, in folders whose numbers are exchanged."""
    assert ask("data", "export", "--scans", scans, "--out", tmp_path / "images", "--patches-per-scan", "4").status == 0
    command = command_of(tmp_path / "images", tmp_path / "run", cache, rows=["floor_histogram"])
    assert ask(*command).status == 0
    for split in ("train", "test"):
        folder = tmp_path / "images" / split
        for old, new in (("s0", "aside"), ("s1", "s0"), ("aside", "s1")):
            (folder / old).rename(folder / new)
    with nothing_changes(tmp_path / "run"):
        refused(ask(*command), tmp_path / "run", "manifest_sha256 was", "choose another --out")


@pytest.mark.fault("settings")
def test_a_state_of_another_training_is_refused_with_the_difference(again, tmp_path):
    """States that were put there by hand, say, under a record that is the new run's."""
    out, command = again
    results = json.loads((out / "results.json").read_text())
    RunFolder(out).write_results({**results, "config": {**results["config"], "cnn_learning_rate": 0.5}})
    with nothing_changes(out / "unfinished"):
        refused(
            ask(*command, "--cnn-learning-rate", "0.5"), "a checkpoint of another training", "begin anew with --fresh"
        )


@pytest.mark.fault("infinities")
@pytest.mark.parametrize("rate", ["1e30", "nan"])
def test_a_loss_that_is_not_finite_ends_the_row_without_an_accuracy(scans, cache, tmp_path, rate):
    out = tmp_path / "run"
    ended = ask(*command_of(scans, out, cache, "--cnn-learning-rate", rate, rows=["cnn", "floor_histogram"]))
    if rate == "nan":
        refused(ended, "--cnn-learning-rate nan")
        return
    assert ended.status == table_status()
    rows = rows_of(out)
    assert rows["floor_histogram"]["eta_p"] is not None
    assert [rows["cnn"][score] for score in ("eta_p", "eta_w", "eta_total", "correct")] == [None] * 4
    failure = rows["cnn"]["failure"]
    assert "the loss is nan in epoch" in failure or "the loss is inf in epoch" in failure or "not finite" in failure
    for told in ("training patches", "key", "no accuracy is reported", "lower the learning rate"):
        assert told in failure
    assert not (out / "predictions" / "cnn.csv").exists()
    kept = load_tree(out / "checkpoints" / "cnn" / "arrays")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))
    assert failure.split(";")[0] in json.dumps(json.loads((out / "results.json").read_text())["notes"])


def table_status():
    from kimiajax.cli.main import ROW_FAILED

    return ROW_FAILED


@pytest.fixture
def blind(tmp_path):
    """Weights with which no unit of the last block ever wakes: features that are 0 for every patch."""
    weights = load_weights("vgg16", "random", image_size=32)
    params = jax.tree.map(np.asarray, weights.variables["params"])
    params["fc2"]["dense"]["bias"] = np.full_like(params["fc2"]["dense"]["bias"], -1e9)
    from kimiajax.io.pytrees import digest

    variables = {**weights.variables, "params": params}
    Weights(variables, {**weights.lineage, "digest": digest(variables)}).save(tmp_path / "blind")
    return tmp_path / "blind"


@pytest.mark.fault("constants")
def test_features_that_are_the_same_for_every_patch_give_no_accuracy(scans, cache, blind, tmp_path):
    command = command_of(scans, tmp_path / "run", cache, "--weights", f"vgg16={blind}", rows=["fe_vgg16"])
    refused(ask(*command), "the features are the same for every patch", "check the weights")
    assert not (tmp_path / "run" / "predictions").exists()


@pytest.mark.fault("constants")
def test_a_row_that_says_one_scan_for_everything_is_called_so(scans, cache, tmp_path, monkeypatch):
    predicted = runner._record

    def one_scan(row, run, outcome, seconds):
        outcome = type(outcome)(np.zeros_like(outcome.predicted), *tuple(vars(outcome).values())[1:])
        predicted(row, run, outcome, seconds)

    monkeypatch.setattr(runner, "_record", one_scan)
    ended = ask(*command_of(scans, tmp_path / "run", cache, rows=["floor_histogram"]))
    assert ended.status == 0
    assert "predicts one and the same scan for every patch." in " ".join(ended.shown.split())


@pytest.mark.fault("devices")
@pytest.mark.parametrize("platform", ["cuda", "tpu", "abacus"])
def test_an_accelerator_that_is_asked_for_and_absent_is_said_in_a_line(scans, cache, tmp_path, monkeypatch, platform):
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    ended = alone(*command_of(scans, tmp_path / "run", cache, rows=["floor_histogram"]))
    refused(ended, f"JAX_PLATFORMS={platform}", "no such device", "unset JAX_PLATFORMS")
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.fault("devices")
def test_memory_that_is_not_there_is_said_in_a_line(scans, cache, tmp_path):
    """Features of an image as large as memory, in a process that may take 6 GiB."""
    command = ["features", "inception_v3", "--scans", scans, "--weights", "random", "--cache", cache]
    command += ["--conv", "plain", "--image-size", "8000", "--patches-per-scan", "1", "--out", tmp_path / "out"]
    ended = alone(*command, limits=f"-v {6 * 2**20}")
    refused(ended, "out of memory", "use a smaller --image-size")
    assert not (tmp_path / "out").exists()
