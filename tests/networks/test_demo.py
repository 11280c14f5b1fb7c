"""The demo's promise, on half of its scans and one of its networks: what a new user sees first is worth seeing."""

import json

import pytest

from kimiajax.cli.main import main
from kimiajax.experiments import study

SCANS = 12
GRAY = ("floor_mean_sd", "floor_bright", "floor_histogram")
NETWORK = ("fe_inception_v3", "hd_inception_v3", "tl_inception_v3")


def broken(eta):
    """The promises that shares of correct patches, by row, do not keep."""
    guess, gray = 1 / SCANS, max(eta[row] for row in GRAY)
    kept = {
        "every network is above 3 times chance": min(eta[row] for row in NETWORK) > 3 * guess,
        "gray levels stay under twice chance": gray < 2 * guess,
        "the best network is above LBP": max(eta[row] for row in NETWORK) > eta["floor_lbp"],
        "fine-tuning is above its head": eta["tl_inception_v3"] > eta["hd_inception_v3"],
        "no row is perfect": max(eta.values()) < 1,
    }
    return [promise for promise, is_kept in kept.items() if not is_kept]


@pytest.mark.parity
@pytest.mark.optimised
def test_networks_beat_gray_levels_and_fine_tuning_beats_its_head(tmp_path, monkeypatch):
    smaller = {**study.SYNTHETIC, "num_scans": SCANS, "grid": (6, 7), "test_patches": (8, 10)}
    monkeypatch.setattr(study, "SYNTHETIC", smaller)
    rows = [*NETWORK, *GRAY, "floor_lbp"]
    assert main(["table", "demo", "--rows", *rows, "--out", str(tmp_path / "demo")]) == 0
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert broken({row["name"]: row["eta_p"] for row in results["rows"]}) == []


def test_each_promise_can_be_broken():
    sound = dict(zip((*NETWORK, *GRAY, "floor_lbp"), (0.6, 0.4, 0.5, 0.1, 0.1, 0.1, 0.2)))
    assert broken(sound) == []
    for change, promise in (
        ({"hd_inception_v3": 0.24}, "every network is above 3 times chance"),
        ({"floor_histogram": 0.17}, "gray levels stay under twice chance"),
        ({"floor_lbp": 0.7}, "the best network is above LBP"),
        ({"hd_inception_v3": 0.5}, "fine-tuning is above its head"),
        ({"fe_inception_v3": 1.0}, "no row is perfect"),
    ):
        assert broken({**sound, **change}) == [promise]
