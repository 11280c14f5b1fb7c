import json

from benchmarks import cut, resize


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
