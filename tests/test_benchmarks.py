import json

import pytest

from benchmarks.throughput import WORKLOADS, main, measure


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_phase_is_timed_and_every_sample_kept(workload):
    result = measure(workload, "vgg16", batch=2, size=32, rounds=3)
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
