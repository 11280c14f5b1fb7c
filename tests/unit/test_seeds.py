import copy

import numpy as np
import pytest

from kimiajax import paper
from kimiajax.report.table import render_table
from kimiajax.runs.seeds import summarise


def run_of(seed, eta_p, failure=None, note="one"):
    row = {"name": "cnn", "approach": "CNN", "scheme": "scratch", "weights": "none", "tested": 9, "training": None}
    row |= {"family": "table", "retrieval": None}
    row |= {"paper": {"eta_p": 0.6498, "eta_w": 0.6475, "eta_total": 0.4180}, "seconds": 2.0, "failure": failure}
    row |= dict.fromkeys(("eta_p", "eta_w", "eta_total"), eta_p) | {"correct": 1}
    data = {"synthetic": True, "audit": None, "scans": 2, "train": 4, "test": 9, "patch_size": 8, "source": "x"}
    head = {
        "schema_version": 1,
        "preset": "quick",
        "environment": {},
        "data": data,
        "weights": {},
        "blocks": {},
        "conv": {},
    }
    return {**head, "complete": True, "config": {"seed": seed, "image_size": 8}, "notes": [note], "rows": [row]}


CONFIG = {"seed": 4, "image_size": 8}


def test_the_summary_is_the_mean_and_the_standard_deviation_over_seeds():
    values = [0.2, 0.5, 0.35]
    summary = summarise([run_of(4 + k, value) for k, value in enumerate(values)], CONFIG)
    (row,) = summary["rows"]
    assert row["eta_p"] == pytest.approx(np.mean(values))
    assert row["eta_p_sd"] == pytest.approx(np.std(values, ddof=1))
    assert row["eta_total_by_seed"] == values
    assert (summary["seeds"], summary["runs"]) == ([4, 5, 6], ["seed-4", "seed-5", "seed-6"])
    assert row["seconds"] == 6
    shown = render_table(summary)
    assert "35.00 ± 15.00" in shown
    assert "paper total" not in shown, "these data are drawn"
    kimia = {"synthetic": False, "scans": paper.NUM_SCANS, "test_per_scan": list(paper.TEST_PATCHES_PER_SCAN)}
    of_kimia = render_table({**summary, "data": {**summary["data"], **kimia}})
    assert "paper total" in of_kimia, "nothing is cut off"
    assert "41.80" in of_kimia
    assert "holds nothing of what other test patches would change" in " ".join(shown.split())


def test_a_row_that_one_seed_has_not_has_no_mean_and_says_why():
    summary = summarise([run_of(0, 0.2), run_of(1, None, failure="the loss is nan")], CONFIG)
    (row,) = summary["rows"]
    assert (row["eta_p"], row["eta_p_sd"], row["failure"]) == (None, None, "the loss is nan")
    assert row["eta_p_by_seed"] == [0.2, None]
    assert "nan" not in render_table({**summary, "notes": []})


def test_notes_say_whose_they_are_and_the_runs_stay_as_they_are():
    runs = [run_of(0, 0.2), run_of(1, 0.3), run_of(2, 0.3, note="two")]
    before = copy.deepcopy(runs)
    summary = summarise(runs, CONFIG)
    assert summary["notes"][1:] == ["Seed 0: one", "Seed 1: one", "Seed 2: two"]
    assert runs == before
    assert summarise([run_of(0, 0.2), run_of(1, 0.3)], CONFIG)["notes"][1:] == ["one"]


def test_what_the_runs_do_not_share_is_not_told_of_all():
    runs = [run_of(0, 0.2), run_of(1, 0.3)]
    for seed, run in enumerate(runs):
        run["data"] = {**run["data"], "manifest_sha256": str(seed)}
        run["weights"] = {"vgg16": {"source": "random", "seed": seed}, "inception_v3": {"source": "imagenet"}}
    summary = summarise(runs, CONFIG)
    assert summary["weights"] == {"inception_v3": {"source": "imagenet"}}
    assert "manifest_sha256" not in summary["data"]
    assert summary["data"]["scans"] == 2


def test_recalls_of_several_seeds_are_their_mean():
    runs = [run_of(seed, 0.2) for seed in range(2)]
    for seed, run in enumerate(runs):
        recall = {"recall_at": {"1": 0.2 + 0.2 * seed, "5": 1.0}, "queries_per_second": 10.0, "distance": "cosine"}
        run["rows"][0] |= {"family": "retrieval", "paper": None, "retrieval": recall}
    (row,) = summarise(runs, CONFIG)["rows"]
    assert row["retrieval"]["recall_at"] == pytest.approx({"1": 0.3, "5": 1.0})
    assert row["retrieval"]["distance"] == "cosine"
