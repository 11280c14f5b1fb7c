"""`kimiajax table` on a folder that holds a run: finished, changed, of other settings. tests/faults kills runs."""

import json
import shutil

import pytest
from support.runs import RANDOM, predictions, rows_of

from kimiajax.cli.main import main
from kimiajax.data.sources.synthetic import write_synthetic_scans
from kimiajax.runs.layout import RunFolder

SMALL = ["--image-size", "32", "--patches-per-scan", "4", "--head-epochs", "3", "--batch-size", "4", "--conv", "plain"]
QUICKEST = [*SMALL, "--epochs", "2", "--rows", "cnn", "fe_two", *RANDOM]


def result_of(out):
    """What of a run must not depend on whether it was stopped."""
    _, rows = rows_of(out)
    return {
        name: (
            row["learnt_sha256"],
            row["predictions_sha256"],
            {phase: [(e["epoch"], e["loss"]) for e in epochs] for phase, epochs in row["history"].items()},
        )
        for name, row in rows.items()
    }


@pytest.fixture(scope="module")
def finished(scans, tmp_path_factory):
    """The folder of a finished run of two rows, and its command."""
    out = tmp_path_factory.mktemp("finished")
    command = ["table", "quick", "--scans", str(scans), *QUICKEST, "--cache", str(out / "cache")]
    assert main([*command, "--out", str(out / "run")]) == 0
    return out / "run", command


@pytest.fixture
def again(finished, tmp_path):
    """A copy of it, and its command."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run", [*finished[1], "--out", str(tmp_path / "run")]


def test_a_finished_run_is_shown_again_and_nothing_computed(again, capsys):
    out, command = again
    before = {row: predictions(out, row) for row in ("cnn", "fe_two")}, (out / "checkpoints").stat().st_mtime_ns
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "all rows were finished before; --fresh computes them again" in shown.err
    assert "CNN (ours)" in shown.out
    assert "epochs in" not in shown.err
    assert "SVM" not in shown.err
    assert before == ({row: predictions(out, row) for row in before[0]}, (out / "checkpoints").stat().st_mtime_ns)


def test_a_finished_row_is_not_computed_again_and_an_unfinished_one_is(again, capsys):
    out, command = again
    results = json.loads((out / "results.json").read_text())
    results["rows"] = results["rows"][:1]
    RunFolder(out).write_results(results)
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "resumed; finished before: cnn" in said
    assert "fe_two: linear SVM" in said
    assert "cnn, seed 0" not in said
    assert list(rows_of(out)[1]) == ["cnn", "fe_two"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--epochs", "3"], "config/epochs was 2 and is 3"),
        (["--seed", "1"], "config/seed was 0 and is 1"),
        (["--seeds", "2"], "config/seeds was 1 and is 2"),
        (["--rows", "cnn"], 'config/rows was ["cnn", "fe_two"] and is ["cnn"]'),
        (["--svm-c", "2"], "config/svm_c was 1.0 and is 2.0"),
    ],
)
def test_other_settings_are_refused_with_the_difference(again, capsys, flags, said):
    out, command = again
    before = (out / "results.json").read_bytes()
    assert main([*command, *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "choose another --out, or begin anew with --fresh" in error
    assert (out / "results.json").read_bytes() == before


def test_settings_that_change_no_result_are_not_refused(again):
    _, command = again
    assert main([*command, "--feed", "stream", "--checkpoint-seconds", "1", "--tensorboard"]) == 0


def test_other_patches_and_another_order_of_classes_are_refused_with_the_difference(again, tmp_path, capsys):
    out, command = again
    other = tmp_path / "scans.h5"
    write_synthetic_scans(other, num_scans=4, patch_size=80, grid=(4, 4), test_patches=(2, 3), seed=6)
    assert main([*command, "--scans", str(other)]) == 2
    assert "pixels_sha256 was" in capsys.readouterr().err
    results = json.loads((out / "results.json").read_text())
    results["data"]["names"] = results["data"]["names"][::-1]
    RunFolder(out).write_results(results)
    assert main(command) == 2
    assert 'classes was ["' in capsys.readouterr().err


def test_other_weights_are_refused_with_the_difference(again, capsys):
    out, command = again
    results = json.loads((out / "results.json").read_text())
    results["weights"]["two"]["digest"] = "0" * 64
    RunFolder(out).write_results(results)
    assert main(command) == 2
    assert 'weights/two was "0000' in capsys.readouterr().err


def test_results_that_are_damaged_or_of_another_version_are_refused(again, capsys):
    out, command = again
    content = (out / "results.json").read_text()
    (out / "results.json").write_text(content[:-20])
    assert main(command) == 2
    assert "results.json: damaged" in capsys.readouterr().err
    (out / "results.json").write_text(content.replace('"epochs": 2', '"epochs": 3'))
    assert main(command) == 2
    assert "results.json: was changed after it was written" in capsys.readouterr().err
    RunFolder(out).write_results({**json.loads(content), "schema_version": 4})
    assert main(command) == 2
    assert "written by another version" in capsys.readouterr().err
    assert main([*command, "--fresh"]) == 0


def test_a_finished_row_whose_files_are_gone_or_changed_is_computed_again_and_that_is_said(again, capsys):
    out, command = again
    expected = {row: predictions(out, row) for row in ("cnn", "fe_two")}
    guesses = out / "predictions" / "fe_two.csv"
    guesses.write_text(guesses.read_text().replace(",0\n", ",1\n", 1).replace(",2\n", ",1\n", 1))
    shutil.rmtree(out / "checkpoints" / "cnn")
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "cnn is computed again, since" in said
    assert "is missing" in said
    assert "fe_two is computed again, since" in said
    assert "fe_two.csv was changed" in said
    assert {row: predictions(out, row) for row in expected} == expected


def test_several_seeds_go_on_where_they_were(scans, tmp_path, capsys):
    """The first seed has finished the row, the second has not: the heads of both are trained at once, as they were."""
    flags = [*SMALL, "--epochs", "2", *RANDOM, "--rows", "tl_two", "--seeds", "2", "--cache", str(tmp_path / "cache")]
    command = ["table", "quick", "--scans", str(scans), *flags]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    second = tmp_path / "run" / "seed-1" / "results.json"
    results = json.loads(second.read_text())
    results["rows"] = []
    RunFolder(second.parent).write_results(results)
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "two, head, seed 1" in said
    assert "two, head, seed 0" not in said
    for seed in ("seed-0", "seed-1"):
        assert result_of(tmp_path / "run" / seed) == result_of(tmp_path / "whole" / seed)
        histories = [(tmp_path / name / seed / "history" / "tl_two.jsonl").read_text() for name in ("run", "whole")]
        assert len(histories[0].splitlines()) == len(histories[1].splitlines()) == 5
