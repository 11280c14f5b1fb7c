"""The main job, through the command line: five rows on a small synthetic scan file."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from support.networks import TWO
from support.runs import RANDOM, SMALL, predictions, rows_of
from support.scan_files import write_scans
from support.scores import counted_by_hand

from kimiajax.cli.main import main
from kimiajax.data.sources.synthetic import write_synthetic_scans
from kimiajax.experiments.config import FLOORS, RETRIEVAL, TABLE
from kimiajax.io.pytrees import load_tree
from kimiajax.models.checkpoint import Weights, load_converted
from kimiajax.models.registry import BACKBONES
from kimiajax.weights.load import load_weights
from weights_convert.__main__ import main as weights_convert

ROWS = [*TABLE, *FLOORS, *RETRIEVAL]


def test_five_rows_are_printed_without_the_papers_figures_where_the_data_are_others(real_run):
    _, shown, said = real_run
    for text in ("CNN (ours)", "FE-VGG16", "TL-VGG16", "FE-Inception-v3", "TL-Inception-v3"):
        assert text in shown
    assert not any(text in shown for text in ("64.98", "56.98", "paper"))
    assert "SYNTHETIC" in shown
    assert shown.count("random") >= 4
    assert "patches" in said, "progress goes to stderr"


def test_accuracies_are_those_of_a_plain_count_over_the_predictions(real_run):
    out = real_run[0]
    results, rows = rows_of(out)
    assert list(rows) == ROWS
    assert results["complete"] is True
    for name, row in rows.items():
        lines = predictions(out, name)
        truth, guess = ([int(line[column]) for line in lines] for column in ("scan", "predicted"))
        eta_p, eta_w, eta_total, precision = counted_by_hand(truth, guess, results["data"]["scans"])
        assert (row["eta_p"], row["eta_w"], row["eta_total"]) == pytest.approx((eta_p, eta_w, eta_total), rel=1e-12)
        assert row["eta_w_precision"] == (None if np.isnan(precision) else pytest.approx(precision, rel=1e-12))
        assert row["correct"] == sum(t == g for t, g in zip(truth, guess))
        assert row["tested"] == len(lines) == results["data"]["test"]
        assert row["weights"] == ("random" if name.endswith(("vgg16", "inception_v3")) or name in RETRIEVAL else "none")


def test_predictions_name_the_files_test_patches(real_run, scans):
    out = real_run[0]
    with h5py.File(scans) as file:
        targets = file["test_data/targets"][...]
    for row in ROWS:
        lines = predictions(out, row)
        assert [line["patch_id"] for line in lines] == [f"test/s{scan}/{k}" for k, scan in enumerate(targets)]
        assert [int(line["scan"]) for line in lines] == targets.tolist()


def test_the_results_say_what_they_rest_on(real_run, scans):
    out = real_run[0]
    results, rows = rows_of(out)
    assert results["schema_version"] == 10
    assert results["preset"] == "quick"
    assert results["config"]["epochs"] == 1
    assert results["environment"]["packages"]["jax"] == jax.__version__
    data = results["data"]
    assert (data["source"], data["synthetic"], data["scans"]) == (str(scans), True, 4)
    assert data["train"] == 16
    assert data["manifest_sha256"] == hashlib.sha256((out / "manifest.csv").read_bytes()).hexdigest()
    assert results["weights"]["vgg16"]["source"] == "random"
    assert len(results["weights"]["inception_v3"]["digest"]) == 64
    tuned = "for 1 epochs by sgd at 0.0001, constant, with no augmentation."
    assert any(tuned in note for note in results["notes"])
    assert {row["paper"] for row in rows.values()} == {None}
    assert len(rows["tl_vgg16"]["history"]["head"]) == 2
    assert all(row["seconds"] > 0 for row in rows.values())


def test_checkpoints_hold_the_whole_network_and_where_it_came_from(real_run):
    out = real_run[0]
    results, _ = rows_of(out)
    tl_vgg16 = load_converted(out / "checkpoints" / "tl_vgg16")
    assert set(tl_vgg16.variables["params"]) == {"block1", "block2", "block3", "block4", "block5", "head"}
    assert tl_vgg16.lineage["trained_blocks"] == ["block5", "head"]
    assert tl_vgg16.lineage["parent"] == results["weights"]["vgg16"]
    inception = load_converted(out / "checkpoints" / "tl_inception_v3").variables
    assert set(inception["params"]) == set(inception["batch_stats"]) | {"head"}
    assert load_tree(out / "checkpoints" / "fe_vgg16")["coef"].shape == (6, 4096)


def test_only_the_trained_blocks_of_a_checkpoint_differ_from_the_weights_that_training_began_with(real_run):
    out = real_run[0]
    backbone = BACKBONES["inception_v3"]
    start = load_weights(backbone, "random", image_size=75, blocks=backbone.up_to("pooled")).variables
    trained = load_converted(out / "checkpoints" / "tl_inception_v3").variables
    changed = {
        block
        for kind, part in start.items()
        for block, arrays in part.items()
        if not jax.tree.all(jax.tree.map(np.array_equal, arrays, trained[kind][block]))
    }
    assert changed == {"mixed9", "mixed10"}


def test_a_fine_tuned_network_serves_as_weights(small_run, scans, tmp_path):
    """Its features, here of one row; the lineage of the new run tells of both."""
    command = ["table", "quick", "--scans", str(scans), *SMALL, "--rows", "fe_two", "--out", str(tmp_path)]
    assert main([*command, "--weights", "random", f"two={small_run / 'checkpoints' / 'tl_two'}"]) == 0
    results, _ = rows_of(tmp_path)
    assert any("weights that an earlier run fine-tuned" in note for note in results["notes"])
    lineage = results["weights"]["two"]
    assert lineage["run"]["row"] == "tl_two"
    assert lineage["trained_blocks"] == ["two", "head"]
    assert lineage["parent"]["source"] == "random"
    assert any("two: random weights" in note for note in results["notes"]), "where all of it began"


def test_of_rows_only_networks_are_exported(real_run, tmp_path, capsys):
    out = real_run[0]
    assert weights_convert(["export", str(out / "checkpoints" / "tl_vgg16"), str(tmp_path / "x.h5")]) == 0
    for row, name, message in (
        ("fe_vgg16", "y.h5", "holds an SVM and no network"),
        ("cnn", "y.h5", "no network of Keras'"),
        ("tl_vgg16", "y.weights.h5", "choose such a name"),
        ("tl_vgg16", "x.h5", "exists already"),
    ):
        assert weights_convert(["export", str(out / "checkpoints" / row), str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def saved_as(framework, network, folder):
    """A checkpoint whose lineage speaks of a framework."""
    backbone = BACKBONES[network]
    random = load_weights(backbone, "random", image_size=32, blocks=backbone.trunk)
    Weights(random.variables, {**random.lineage, "framework": framework, "source": f"{framework}.file"}).save(folder)
    return str(folder)


def test_weights_of_two_frameworks_are_not_mixed_unless_that_is_asked_for_and_said(
    scans, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(BACKBONES, "other", replace(TWO, name="other"))
    command = ["table", "quick", "--scans", str(scans), *SMALL, "--rows", "tl_two", "tl_other"]
    command += ["--out", str(tmp_path / "out"), "--head-epochs", "0", "--epochs", "0"]
    one, other = saved_as("torch", "two", tmp_path / "a"), saved_as("keras", "other", tmp_path / "b")
    command += ["--weights", f"two={one}", f"other={other}"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "two's weights come from torch and other's weights come from keras" in error
    assert "--mixed-lineages" in error
    assert main([*command, "--mixed-lineages"]) == 0
    assert any("these rows do not compare the networks alone" in note for note in rows_of(tmp_path / "out")[0]["notes"])


def test_the_same_command_gives_the_same_predictions_and_another_seed_another_draw(small_run, scans, tmp_path):
    """Anew, without the first run's cache."""
    rows = ["--rows", "cnn", "fe_two", "tl_two"]
    command = ["table", "quick", "--scans", str(scans), *SMALL, *RANDOM, "--cache", str(tmp_path / "cache"), *rows]
    assert main([*command, "--out", str(tmp_path / "again")]) == 0
    for row in rows[1:]:
        assert predictions(tmp_path / "again", row) == predictions(small_run, row)
    assert (tmp_path / "again" / "manifest.csv").read_text() == (small_run / "manifest.csv").read_text()
    assert main([*command, "--out", str(tmp_path / "other"), "--seed", "1", "--rows", "cnn", "--epochs", "0"]) == 0
    assert (tmp_path / "other" / "manifest.csv").read_text() != (small_run / "manifest.csv").read_text()


def test_stored_outputs_of_the_frozen_blocks_train_as_the_whole_network_does(small_run, scans, tmp_path):
    """Same loss to float32's last digits, through two programs."""
    command = ["table", "quick", "--scans", str(scans), *SMALL, *RANDOM, "--out", str(tmp_path / "whole")]
    rows = ["--rows", "tl_two"]
    assert main([*command, "--no-cache-frozen", *rows]) == 0
    stored, whole = rows_of(small_run)[1], rows_of(tmp_path / "whole")[1]
    for row in rows[1:]:
        losses = [rows_[row]["history"]["fine_tuning"][0]["loss"] for rows_ in (stored, whole)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_history_is_on_disk_line_by_line(real_run):
    out = real_run[0]
    row = rows_of(out)[1]["tl_inception_v3"]
    lines = [json.loads(line) for line in (out / "history" / "tl_inception_v3.jsonl").read_text().splitlines()]
    told = [{"phase": phase, **epoch} for phase in ("head", "fine_tuning") for epoch in row["history"][phase]]
    assert lines == told
    assert {"epoch", "loss", "accuracy", "learning_rate", "images_per_second", "seconds"} < set(lines[0])
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3, 1e-3, 1e-4])
    assert row["training"]["inputs"] == "stored outputs of mixed8"
    assert row["training"]["frozen_bn"] == "inference"


def test_several_seeds_are_several_runs_and_their_mean(small_run, scans, tmp_path, capsys):
    rows = ["cnn", "tl_two"]
    command = ["table", "quick", "--scans", str(scans), *SMALL, *RANDOM, "--rows", *rows, "--seeds", "2"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert "±" in capsys.readouterr().out
    summary, means = rows_of(tmp_path)
    singles = [rows_of(tmp_path / name)[1] for name in summary["runs"]]
    assert summary["runs"] == ["seed-0", "seed-1"]
    for row in rows:
        assert predictions(tmp_path / "seed-0", row) == predictions(small_run, row), "as if it ran alone"
        assert means[row]["eta_p"] == pytest.approx(np.mean([single[row]["eta_p"] for single in singles]))
    manifests = [(tmp_path / name / "manifest.csv").read_text() for name in summary["runs"]]
    assert manifests[0] == (small_run / "manifest.csv").read_text() != manifests[1]
    (tmp_path / "seed-1" / "mine.txt").write_text("kept")
    assert main([*command[:-2], "--rows", "cnn", "--epochs", "0", "--out", str(tmp_path), "--fresh"]) == 0
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("seed-*/**/*") if path.is_file()}
    assert left == {"seed-1/mine.txt"}, "nothing of the earlier run stands beside the new one"


def test_a_run_begun_afresh_in_the_same_folder_leaves_nothing_of_the_first(scans, tmp_path):
    command = ["table", "quick", "--scans", str(scans), *SMALL, "--out", str(tmp_path / "run"), "--epochs", "0"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("kept")
    assert main([*command, "--rows", "cnn", "fe_two", "--weights", "random"]) == 0
    assert main(["report", str(tmp_path / "run")]) == 0
    assert main([*command, "--rows", "cnn", "--fresh"]) == 0
    assert [path.name for path in (tmp_path / "run" / "predictions").iterdir()] == ["cnn.csv"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["cnn"]
    assert (tmp_path / "run" / "mine.txt").exists()
    assert not list((tmp_path / "run").glob("report.*")), "it would stand beside other results"


def test_settings_that_are_refused_leave_an_earlier_run_whole(scans, tmp_path, capsys):
    command = ["table", "quick", "--scans", str(scans), *SMALL, "--out", str(tmp_path / "run"), "--rows", "cnn"]
    assert main(command) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert main([*command, "--image-size", "20"]) == 2
    tuned = [*command, "--rows", "tl_vgg16", "--weights", "random", "--blocks"]
    for blocks, message in (
        (["mixed9"], "unknown block 'mixed9' of vgg16"),
        (["block5/nope,head"], "unknown part 'nope' of block5; choose from conv1"),
        ([], "--blocks: says nothing"),
        (["vgg19=head"], "--blocks vgg19=head: no such network"),
    ):
        assert main([*tuned, *blocks]) == 2
        assert message in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_the_demo_overwrites_no_scan_file_of_the_users(scans, tmp_path, capsys):
    real = tmp_path / "scans.h5"
    real.write_bytes(scans.read_bytes())
    with h5py.File(real, "r+") as file:
        del file.attrs["synthetic"]
    assert main(["table", "demo", "--out", str(tmp_path), "--conv", "plain"]) == 2
    assert "would be overwritten" in capsys.readouterr().err


def bad(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda scans, tmp: ["--scans", str(tmp / "absent.h5")], "no such file"),
        (lambda scans, tmp: ["--scans", bad(tmp, "s.h5", b"not hdf5 at all")], "not an HDF5 file"),
        (lambda scans, tmp: ["--scans", str(without_test_data(scans, tmp))], "holds no /test_data/patches"),
        (lambda scans, tmp: [], "quick needs scans: --scans PATH"),
        (lambda scans, tmp: ["--scans", scans, "--rows", "nonsense"], "--rows nonsense: no such row; choose from cnn,"),
        (lambda scans, tmp: ["--scans", scans, "--weights", bad(tmp, "w.h5", b"<html>")], "a web page"),
        (
            lambda scans, tmp: ["--scans", scans, "--weights", bad(tmp, "w.h5", b"version https://git-lfs")],
            "Git-LFS pointer",
        ),
        (lambda scans, tmp: ["--scans", scans, "--weights", "nowhere.h5"], "nowhere.h5: no such file"),
        (lambda scans, tmp: ["--scans", scans, "--patch-size", "40"], "use --patch-size 80"),
        (lambda scans, tmp: ["--scans", scans, "--epochs", "-1"], "--epochs -1: must be 0 or more"),
        (lambda scans, tmp: ["--scans", scans, "--patches-per-scan", "0"], "--patches-per-scan 0"),
        (lambda scans, tmp: ["--scans", scans, "--image-size", "20"], "20 is too small"),
        (lambda scans, tmp: ["--scans", scans, "--learning-rate", "nan"], "--learning-rate nan"),
        (lambda scans, tmp: ["--scans", scans, "--seed", str(2**32)], "must be under 2**32"),
        (lambda scans, tmp: ["--scans", scans, "--blocks", "inception_v3=mixed12"], "unknown block 'mixed12'"),
        (lambda scans, tmp: ["--scans", scans, "--seeds", "0"], "--seeds 0: must be 1 or more"),
        (lambda scans, tmp: ["--scans", scans, "--label-smoothing", "1"], "--label-smoothing 1.0: must be in [0, 1)"),
        (lambda scans, tmp: ["--scans", scans, "--warmup-epochs", "-1"], "--warmup-epochs -1.0: must be 0 or more"),
        (lambda scans, tmp: ["--scans", scans, "--warmup-epochs", "11"], "must not be more than --epochs 10"),
        (lambda scans, tmp: ["--scans", scans, "--weights", scans], "holds weights of no network known here"),
        (lambda scans, tmp: ["--scans", scans, "--weights", str(tmp)], "not a converted checkpoint"),
        (lambda scans, tmp: ["--scans", scans, "--cache", bad(tmp, "file", b"")], "File exists"),
    ],
)
def test_bad_input_is_one_line_and_a_status(scans, tmp_path, capsys, arguments, message):
    given = [str(argument) for argument in arguments(scans, tmp_path)]
    weights = [] if "--weights" in given else ["--weights", "random"]
    out = tmp_path / "out"
    rows = [] if "--rows" in given else ["--rows", "cnn", "fe_vgg16"]
    assert main(["table", "quick", *given, *weights, *rows, "--conv", "plain", "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert sum(line.startswith("kimiajax:") for line in error) == 1
    assert not any("Traceback" in line for line in error)
    assert not (out / "results.json").exists()


def without_test_data(scans, tmp):
    target = tmp / "no-tests.h5"
    target.write_bytes(scans.read_bytes())
    with h5py.File(target, "r+") as file:
        del file["test_data"]
    return target


@pytest.mark.parametrize(
    ("command", "message"),
    [(["table", "huge"], "no such preset; choose from demo, quick, paper"), (["tabel"], "no command 'tabel'")],
)
def test_a_word_that_is_no_command_or_preset_is_named(capsys, command, message):
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_an_unexpected_error_says_that_it_is_a_bug(capsys, monkeypatch, scans, tmp_path):
    monkeypatch.setattr("kimiajax.experiments.study.prepare_patches", lambda *_, **__: 1 / 0)
    assert main(["table", "quick", "--scans", str(scans), "--rows", "cnn", "--out", str(tmp_path)]) == 1
    assert "this is a bug, not your input: ZeroDivisionError" in capsys.readouterr().err


def test_help_and_version_are_told(capsys):
    assert main(["--version"]) == main(["--help"]) == main(["table", "-h"]) == 0
    assert "kimiajax 0." in capsys.readouterr().out


def test_what_a_report_of_a_bug_needs_is_told_even_where_no_device_starts(capsys, monkeypatch):
    assert main(["--version", "--verbose"]) == 0
    told = capsys.readouterr().out
    for line in (f"  jax: {jax.__version__}", "devices: 1 x cpu", "networks: vgg16, inception_v3, cnn", "  torch: "):
        assert line in told
    revision = re.search(r"^revision: (.*)$", told, re.M)[1]
    assert (re.fullmatch(r"[0-9a-f]{40}\+?", revision) is not None) == (Path(__file__).parents[2] / ".git").exists()
    assert str(Path.home()) not in told

    def broken():
        raise RuntimeError("no driver\nat all")

    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/home/alice/secret --xla_cpu_enable_fast_math=false")

    monkeypatch.setattr("jax.devices", broken)
    assert main(["--version", "--verbose"]) == 0
    told = capsys.readouterr().out
    assert "devices: cannot be started: no driver\n" in told
    assert "xla_flags: --xla_dump_to --xla_cpu_enable_fast_math=false\n" in told


@pytest.fixture(scope="module")
def exported(small_run, scans, tmp_path_factory):
    """The patches of the finished run as a folder of images."""
    out = tmp_path_factory.mktemp("exported") / "folder"
    manifest = str(small_run / "manifest.csv")
    assert main(["data", "export", "--scans", str(scans), "--manifest", manifest, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("through", ["manifest", "folder", "folder and manifest"])
def test_the_same_patches_give_the_same_predictions_through_whatever_source(
    small_run, scans, exported, tmp_path, through
):
    source = {"manifest": scans}.get(through, exported)
    command = ["table", "quick", "--scans", str(source), *SMALL, *RANDOM, "--out", str(tmp_path / "out")]
    if "manifest" in through:
        command += ["--manifest", str(small_run / "manifest.csv"), "--patches-per-scan", "1"]
    rows = ["cnn", "fe_two", "tl_two"]
    assert main([*command, "--cache", str(tmp_path / "cache"), "--rows", *rows]) == 0
    for row in rows:
        by_id = {line["patch_id"]: line for line in predictions(tmp_path / "out", row)}
        assert by_id == {line["patch_id"]: line for line in predictions(small_run, row)}
    results, _ = rows_of(tmp_path / "out")
    first = rows_of(small_run)[0]["data"]
    assert results["data"]["synthetic"], "the export says so too"
    if "manifest" in through:
        assert (results["data"]["pixels_sha256"], results["data"]["train"]) == (first["pixels_sha256"], first["train"])
        assert any("The patches are those of" in note for note in results["notes"])


def test_a_manifest_of_other_data_is_refused_before_weights_are_loaded(small_run, scans, tmp_path, capsys):
    other = tmp_path / "other.h5"
    write_synthetic_scans(other, num_scans=4, patch_size=80, grid=(4, 4), test_patches=(2, 3), seed=6)
    command = ["table", "quick", *SMALL, *RANDOM, "--out", str(tmp_path / "out"), "--rows", "cnn"]
    assert main([*command, "--scans", str(other), "--manifest", str(small_run / "manifest.csv")]) == 2
    error = capsys.readouterr().err
    assert "has other pixels than the manifest says" in error or "holds no test patch" in error
    assert main([*command, "--scans", str(scans), "--manifest", str(small_run / "predictions" / "cnn.csv")]) == 2
    assert "cnn.json: No such file" in capsys.readouterr().err


def test_floors_and_retrieval_stand_beside_the_table_without_the_papers_figures(real_run):
    out, shown, _ = real_run
    _, rows = rows_of(out)
    for name in (*FLOORS, *RETRIEVAL):
        assert rows[name]["paper"] is None
        assert rows[name]["family"] == ("floor" if name in FLOORS else "retrieval")
    assert load_tree(out / "checkpoints" / "floor_histogram")["coef"].shape == (6, 256)
    for name in RETRIEVAL:
        found = rows[name]["retrieval"]
        assert found["recall_at"]["1"] == rows[name]["eta_p"] <= found["recall_at"]["3"] <= found["recall_at"]["10"]
        assert found["queries_per_second"] > 0
        assert not (out / "checkpoints" / name).exists()
    assert "gray histogram" in shown
    assert "NN-Inception-v3" in shown


def test_a_run_leaves_the_pictures_that_its_report_shows(real_run, tmp_path):
    out = real_run[0]
    results, rows = rows_of(out)
    assert [picture["scan"] for picture in results["pictures"]] == [0, 1, 2, 3]
    shown = results["pictures"] + [picture for row in rows.values() for picture in row["pictures"]]
    assert {str(path.relative_to(out)) for path in out.glob("pictures/**/*.png")} == {each["file"] for each in shown}
    neighbours = rows["nn_vgg16_cosine"]["pictures"]
    assert [picture["rank"] for picture in neighbours] == [0, 1, 2, 3, 4, 5] * 4
    assert main(["report", str(out), "--out", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").read_text().count("data:image/png") == len(shown)


def test_fine_tuned_rows_leave_a_map_of_where_they_look(scans, tmp_path, monkeypatch):
    monkeypatch.setattr("kimiajax.experiments.fine_tuning.SHOWN", (1, 3, 9))
    command = ["table", "quick", "--scans", str(scans), *SMALL, *RANDOM, "--rows", "tl_two", "--epochs", "0"]
    assert main([*command, "--head-epochs", "0", "--out", str(tmp_path)]) == 0
    pictures = rows_of(tmp_path)[1]["tl_two"]["pictures"]
    assert [(each["scan"], each["kind"]) for each in pictures] == [
        (s, k) for s in (1, 3) for k in ("patch", "grad-cam")
    ]
    guesses = {line["patch_id"]: int(line["predicted"]) for line in predictions(tmp_path, "tl_two")}
    assert all(guesses[each["patch_id"]] == each["predicted"] for each in pictures)
    assert main(["report", str(tmp_path)]) == 0
    assert "TL-Two: Grad-CAM" in (tmp_path / "report.html").read_text()


def test_features_that_are_the_same_everywhere_leave_a_floor_without_accuracy_and_the_table_whole(tmp_path, rng):
    patches = rng.integers(30, 120, (4, 40, 40), dtype=np.uint8)
    scan = [rng.integers(30, 120, (160, 160), dtype=np.uint8) for _ in range(2)]
    path = write_scans(tmp_path / "dark.h5", scan, patches, np.array([0, 0, 1, 1]))
    command = ["table", "quick", "--scans", str(path), *SMALL, "--rows", "cnn", "floor_bright", "--epochs", "0"]
    assert main([*command, "--image-size", "32", "--out", str(tmp_path / "out")]) == 0
    results, rows = rows_of(tmp_path / "out")
    assert rows["floor_bright"]["eta_p"] is None
    assert "the same for every patch" in rows["floor_bright"]["failure"]
    assert any(note.startswith("white share has no accuracy") for note in results["notes"])
    assert main(["report", str(tmp_path / "out")]) == 0
