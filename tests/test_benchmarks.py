import json

import pytest

from benchmarks import cut, resize
from benchmarks.throughput import WORKLOADS, Configuration, main, measure


def test_a_step_is_timed_under_pmap_and_in_bfloat16_too():
    c = Configuration("finetune_step", "vgg16", batch=2, size=32, rounds=2, precision="bfloat16", engine="pmap")
    result = measure(c)
    assert (result["precision"], result["engine"]) == ("bfloat16", "pmap")
    assert result["images_per_second_iqr"][0] <= result["images_per_second"] <= result["images_per_second_iqr"][1]
    assert result["program_bytes"]["temp"] > 0


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_phase_is_timed_and_every_sample_kept(workload):
    result = measure(Configuration(workload, "vgg16", batch=2, size=32, rounds=3, augmentation="keras2017"))
    assert len(result["seconds"]["steady"]) == 3
    assert min(result["seconds"]["lower"], result["seconds"]["compile"], *result["seconds"]["steady"]) > 0
    assert result["images_per_second"] > 0
    assert result["xla_flops"] > 1e6


def test_the_command_writes_its_figures_with_the_environment(tmp_path, capsys):
    options = ["--networks", "vgg16", "--workloads", "features", "--batches", "2", "--sizes", "32", "--rounds", "2"]
    main([*options, "--out", str(tmp_path / "figures.json")])
    record = json.loads((tmp_path / "figures.json").read_text())
    assert record["environment"]["devices"]
    assert [result["batch"] for result in record["results"]] == [2]
    assert "images/s" in capsys.readouterr().out


def test_cutting_is_timed_beside_a_plain_read_of_the_same_file(tmp_path, capsys):
    options = ["--sides", "2500", "--layouts", "gzip", "--rounds", "2"]
    cut.main([*options, "--out", str(tmp_path / "cut.json")])
    (result,) = json.loads((tmp_path / "cut.json").read_text())["results"]
    assert [len(result[what]) for what in ("cut", "read")] == [2, 2]
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
