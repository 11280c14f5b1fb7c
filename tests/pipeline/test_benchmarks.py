import importlib
import json

import numpy as np
import pytest
from support.runs import RANDOM, rows_of
from support.runs import SMALL as SMALL_TABLE

from benchmarks import choices, curves, cut, resize, suite
from benchmarks.workloads import features
from kimiajax.cli.main import main
from kimiajax.data.manifest import read_manifest
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patch_arrays import prepare_patches
from kimiajax.data.patches import Rules
from kimiajax.errors import UserError
from kimiajax.evaluation.metrics import kimia_scores
from kimiajax.models.registry import BACKBONES
from kimiajax.training.freezing import TrainableBlocks
from kimiajax.training.summary import list_blocks


def test_cutting_is_timed_beside_a_plain_read_of_the_same_file(tmp_path, capsys):
    options = ["--sides", "2500", "--layouts", "gzip", "--rounds", "1"]
    cut.main([*options, "--out", str(tmp_path / "cut.json")])
    (result,) = json.loads((tmp_path / "cut.json").read_text())["results"]
    assert [len(result[what]) for what in ("cut", "read")] == [1, 1]
    assert all(sample["seconds"] > 0 and sample["grown_bytes"] > 0 for sample in result["cut"])
    assert 0 < result["cut"][0]["patches"] <= 4
    assert "plain read" in capsys.readouterr().out


def test_filters_are_timed_and_compared_with_box(tmp_path, capsys):
    options = ["--patch", "100", "--size", "24", "--count", "4", "--rounds", "1"]
    resize.main([*options, "--out", str(tmp_path / "resize.json")])
    results = json.loads((tmp_path / "resize.json").read_text())["results"]
    apart = {result["filter"]: result["samples"][0]["mean_from_box"] for result in results}
    assert apart["box"] == 0 < apart["bilinear"]
    assert "patches/s" in capsys.readouterr().out


SMALL = ["--networks", "vgg16", "--sizes", "32", "--batches", "2", "--rounds", "1", "--conv", "plain"]


@pytest.mark.parity
@pytest.mark.parametrize("scopes", [["step"], pytest.param(["step", "tail", "whole"], marks=pytest.mark.slow)])
def test_features_and_steps_of_every_scope_are_the_judges_and_keras_agrees(tmp_path, scopes):
    out = tmp_path / "record.json"
    command = ["bench", "features", "finetune_step", *SMALL, "--scopes", *scopes, "--out", str(out)]
    assert main([*command, "--in-place", "--peers", "keras/jax"]) == 0
    record = json.loads(out.read_text())
    assert record["environment"]["devices"]
    names = [result["name"] for result in record["results"]]
    assert names[0] == "features vgg16 size 32 batch 2 float32"
    assert [name.split()[2] for name in names[1:]] == scopes
    for result in record["results"]:
        ours, keras = result["contenders"]
        assert (ours["state"], keras["state"]) == ("valid", "valid"), result
        if "compile and first step" in ours["phases"]:  # of several programs, where fast convolutions measured faster
            assert ours["about"]["conv"] == "fast"
            continue
        assert {"lower", "compile"} <= {*ours["phases"]} or "fold" in ours["phases"]
        assert ours["about"]["xla_flops"] > 1e6
        assert ours["about"]["program_bytes"]["temp"] > 0
    assert main(["bench", "plots", str(out), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "record-features.svg").stat().st_size > 1000
    assert (tmp_path / "record-finetune_step.svg").stat().st_size > 1000


@pytest.mark.parity
def test_a_step_is_timed_under_pmap_and_in_bfloat16_too(tmp_path):
    out = tmp_path / "record.json"
    options = ["--precisions", "bfloat16", "--engines", "pmap", "--scopes", "step", "--out", str(out)]
    assert main(["bench", "finetune_step", *SMALL, *options]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert result["contenders"][0]["state"] == "valid"
    assert result["name"].endswith("bfloat16 pmap")


def test_a_roofline_counts_what_the_list_of_blocks_counts_and_names_each_limit(tmp_path, capsys):
    out = tmp_path / "roofline.json"
    assert (
        main(["bench", "roofline", "vgg16", "--batch", "2", "--size", "32", "--conv", "plain", "--out", str(out)]) == 0
    )
    record = json.loads(out.read_text())
    listed = {entry.name: entry.flops for entry in list_blocks(BACKBONES["vgg16"], TrainableBlocks(()), 32, 24)}
    counted = {row["block"]: row["flops"] for row in record["blocks"]}
    assert {block: counted[block] for block in BACKBONES["vgg16"].trunk} == {
        block: 2 * listed[block] for block in BACKBONES["vgg16"].trunk
    }
    # Backward through block5 to its kernels and, but for its first layer, to its inputs.
    forward = sum(2 * listed[block] for block in (*BACKBONES["vgg16"].trunk, "head"))
    backward = 2 * (2 * listed["block5"] - listed["block5"] / 3 + 2 * listed["head"])
    assert record["step"]["flops"] == pytest.approx(forward + backward, rel=0.01)
    assert all(row["limit"] in ("operations", "bytes") and len(row["seconds"]) == 7 for row in record["blocks"])
    said = capsys.readouterr().out
    assert "of peak" in said
    assert ("fewer multiplications" in said) == (record["conv"] == "fast")
    assert (tmp_path / "roofline.svg").stat().st_size > 1000


def test_patches_and_devices_are_scaled_each_in_a_process(tmp_path, capsys):
    out = tmp_path / "scaling.json"
    options = ["--size", "32", "--batch", "4", "--counts", "40", "--devices", "2", "--rounds", "1"]
    assert main(["bench", "scaling", *options, "--out", str(out)]) == 0
    patches, devices = json.loads(out.read_text())["results"]
    assert patches["samples"][0]["seconds"] > 0
    assert devices["samples"][0]["loss"] > 0
    assert "played by a CPU" in capsys.readouterr().out


def test_an_unknown_workload_is_refused_with_those_that_there_are(capsys):
    assert main(["bench", "speed"]) == 2
    assert "bench speed: no such workload; choose from features, finetune_step" in capsys.readouterr().err


def test_all_peers_are_in_the_short_form_those_that_can_be_the_best_and_any_that_is_named():
    case = features.case("vgg16", 224, 8, "float32")

    def names(*peers, full):
        return {each.name for each in suite._with_peers(case, peers, in_place=False, full=full).contenders}

    assert names("all", full=True) - names("all", full=False) == {"keras/jax", "torch"}
    assert names("torch", full=False) == {"kimiajax", "torch"}


def test_choices_are_run_one_at_a_time_and_compared_with_the_protocol(scans, two, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(choices, "NETWORKS", ("two",))
    variants = {"quick": (), "the head alone": ("--blocks", "head_only"), "of 2017": ("--trained-bn", "keras2017")}
    monkeypatch.setattr(choices, "VARIANTS", variants)
    command = ["bench", "choices", "--out", str(tmp_path), "--scans", str(scans), *RANDOM, *SMALL_TABLE, "--seeds", "2"]
    assert main(command) == 0
    results = json.loads((tmp_path / "choices.json").read_text())["results"]
    assert [told["variant"] for told in results] == list(variants)
    for told in results:
        assert told["eta_p"] == [
            row["eta_p"]
            for seed in (0, 1)
            for row in rows_of(tmp_path / told["variant"].replace(" ", "-") / f"seed-{seed}")[1].values()
        ]
    assert results[0]["difference"] is None
    expected = np.mean(results[1]["eta_p"]) - np.mean(results[0]["eta_p"])
    assert results[1]["difference"] == pytest.approx(expected)
    assert "the head alone" in capsys.readouterr().out


def test_curves_of_runs_are_their_histories_and_scores(small_run, tmp_path):
    record = tmp_path / "curves.json"
    assert main(["bench", "curves", str(small_run), "--out", str(record)]) == 0
    results, rows = json.loads(record.read_text()), rows_of(small_run)[1]
    assert [told["row"] for told in results["results"]] == list(rows)
    for told in results["results"]:
        row = rows[told["row"]]
        assert told["correct"] / told["tested"] == row["eta_p"]
        for phase in ("head", "fine_tuning"):
            losses = [epoch["loss"] for epoch in (row["history"] or {}).get(phase, ())]
            assert told[phase] == pytest.approx(losses, abs=1e-4)
    assert record.with_suffix(".svg").read_text().count("<svg") == 1
    assert str(small_run.parent) not in record.read_text()


def test_curves_of_runs_without_fine_tuning_are_refused(tmp_path, scans):
    out = tmp_path / "run"
    command = ["table", "quick", "--rows", "floor_mean_sd", *SMALL_TABLE, "--scans", str(scans), "--out", str(out)]
    assert main(command) == 0
    with pytest.raises(UserError, match="no row was fine-tuned"):
        curves.main([str(out), "--out", str(tmp_path / "curves.json")])


@pytest.mark.parity
def test_the_keras_script_cuts_the_patches_of_a_manifest_and_writes_losses_and_eta(
    small_run, scans, tmp_path, monkeypatch
):
    import keras

    from benchmarks.peers import keras_protocol

    manifest = read_manifest(small_run / "manifest.csv")
    found = keras_protocol.read_patches(scans, small_run / "manifest.csv", 32, "box")
    with open_scans(scans) as source:
        ours = prepare_patches(source, Rules(), 32, manifest=manifest)
    for split, pixels in (("train", ours.train), ("test", ours.test)):
        images, labels = found[split]
        np.testing.assert_array_equal(images, np.repeat(pixels[..., None], 3, axis=-1).astype("float32") / 255)
        np.testing.assert_array_equal(labels, manifest.labels(split))

    weights, out = tmp_path / "vgg16.weights.h5", tmp_path / "out.json"
    keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3)).save_weights(weights)
    flags = ["--scans", scans, "--manifest", small_run / "manifest.csv", "--weights", weights, "--out", out]
    short = ["--image-size", 32, "--seeds", 3, "--head-epochs", 2, "--epochs", 1]
    monkeypatch.setattr("sys.argv", ["keras_protocol.py", "vgg16", *map(str, [*flags, *short])])
    keras_protocol.main()
    written = json.loads(out.read_text())
    assert [(each["row"], each["head_optimizer"], len(each["losses"])) for each in written["results"]] == [
        ("HD", "rmsprop", 2),
        ("TL", "rmsprop", 1),
        ("HD", "rmsprop2017", 2),
        ("TL", "rmsprop2017", 1),
    ]
    for each in written["results"]:
        scores = kimia_scores(manifest.labels("test"), np.array(each["predicted"], np.int32), 4)
        assert each["eta_total"] == pytest.approx(scores.eta_total)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["keras_protocol", "keras_table"])
def test_the_keras_scripts_keep_batch_normalisation_on_stored_statistics_where_they_say_so(name):
    """Which calling the model with `training=False` does not."""
    import keras

    peer = importlib.import_module(f"benchmarks.peers.{name}")

    def mean_after_training(around):
        inside, outside = keras.Input((4,)), keras.Input((4,))
        model = keras.Model(inside, keras.layers.BatchNormalization(name="bn")(inside))
        whole = keras.Model(outside, keras.layers.Dense(1)(around(model)(outside)))
        whole.compile(keras.optimizers.SGD(0.0), "mse")
        whole.fit(np.full((8, 4), 5.0), np.zeros((8, 1)), verbose="0")
        return model.get_layer("bn").get_weights()[2]

    assert not mean_after_training(peer.Inference).any()
    assert mean_after_training(lambda model: lambda x: model(x, training=False)).all()
