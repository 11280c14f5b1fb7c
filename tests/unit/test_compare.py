"""Two stored runs against each other: what is refused, what is told, and verdicts that respect noise."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.stored_runs import manifest_of, predictions_of, write_run

from kimiajax.cli.main import main
from kimiajax.errors import UserError
from kimiajax.evaluation.compare import BETTER, OPEN, SAME, WORSE, compare_runs
from kimiajax.evaluation.stored import read_run

TESTED = [30] * 6


def guesses(seed, **eta_p):
    rng, scans = np.random.default_rng(seed), manifest_of(TESTED).labels("test")
    return {row: predictions_of(rng, scans, len(TESTED), share) for row, share in eta_p.items()}


def two(tmp_path, a, b, **options):
    write_run(tmp_path / "a", manifest_of(TESTED), a)
    write_run(tmp_path / "b", options.pop("manifest", manifest_of(TESTED)), b, **options)
    return compare_runs(read_run(tmp_path / "a"), read_run(tmp_path / "b"), draws=500)


def test_rows_of_two_seeds_that_differ_by_chance_are_not_told_apart(tmp_path):
    found = two(tmp_path, guesses(0, cnn=0.6, fe_vgg16=0.6), guesses(1, cnn=0.6, fe_vgg16=0.6), seed=1)
    assert found.verdicts == {"cnn": OPEN, "fe_vgg16": OPEN}
    assert found.differences == ["settings/seed: 0 in A, 1 in B"]


def test_rows_that_differ_are_told_from_either_side(tmp_path):
    same = guesses(0, fe_vgg16=0.5)
    found = two(tmp_path, {**guesses(0, cnn=0.9, tl_vgg16=0.3), **same}, {**guesses(1, cnn=0.5, tl_vgg16=0.7), **same})
    assert found.verdicts == {"cnn": BETTER, "tl_vgg16": WORSE, "fe_vgg16": SAME}
    assert found.pairs["cnn"].difference["eta_p"] > 0.2


def test_each_family_of_rows_is_corrected_for_by_itself(tmp_path):
    table = dict.fromkeys(("cnn", "fe_vgg16", "tl_vgg16", "fe_inception_v3", "tl_inception_v3"), 0.5)
    together = two(tmp_path, guesses(0, **table, floor_lbp=0.5), guesses(1, **table, floor_lbp=0.62))
    alone = two(tmp_path, guesses(0, **table), guesses(1, **table))
    assert together.families["floor_lbp"] == "floor"
    assert together.pairs["floor_lbp"].adjusted == together.pairs["floor_lbp"].p_values
    assert together.pairs["cnn"].adjusted["eta_w"] > together.pairs["cnn"].p_values["eta_w"]
    for row in table:
        assert together.pairs[row].adjusted == alone.pairs[row].adjusted


def test_rows_of_one_run_alone_are_named(tmp_path):
    found = two(tmp_path, {**guesses(0, cnn=0.5), "tl_vgg16": None}, guesses(0, cnn=0.5, fe_vgg16=0.5))
    assert found.only == {str(tmp_path / "a"): ["tl_vgg16"], str(tmp_path / "b"): ["fe_vgg16"]}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (manifest_of(TESTED, pixels="b"), "180 of 180 test patches have other pixels or scans in"),
        (manifest_of([30] * 5 + [29]), r"1 test patches are .*a's alone \(test/s5/29\)"),
        (manifest_of([30] * 7), "is of 6 scans and"),
    ],
)
def test_other_data_are_refused_with_what_differs(tmp_path, manifest, message):
    rng = np.random.default_rng(0)
    other = {"cnn": predictions_of(rng, manifest.labels("test"), manifest.num_scans, 0.5)}
    with pytest.raises(UserError, match=message):
        two(tmp_path, guesses(0, cnn=0.5), other, manifest=manifest)


def test_patches_are_paired_by_their_ids_whatever_their_order(tmp_path):
    """A folder of images gives a scan file's patches scan by scan."""
    uneven = manifest_of([40, 9, 22])
    scans, rng = uneven.labels("test"), np.random.default_rng(0)
    rows = {"cnn": predictions_of(rng, scans, 3, 0.6), "fe_vgg16": predictions_of(rng, scans, 3, 0.6)}
    train, test = uneven.split("train"), uneven.split("test")
    order = rng.permutation(len(test))
    other = replace(uneven, patches=(*train[::-1], *(test[place] for place in order)))
    write_run(tmp_path / "a", uneven, rows)
    write_run(tmp_path / "b", other, {row: guess[order] for row, guess in rows.items()})
    found = compare_runs(read_run(tmp_path / "a"), read_run(tmp_path / "b"), draws=200)
    assert found.verdicts == {"cnn": SAME, "fe_vgg16": SAME}
    assert found.differences == []
    swapped = {"cnn": rows["fe_vgg16"][order], "fe_vgg16": rows["cnn"][order]}
    write_run(tmp_path / "b", other, swapped)
    found = compare_runs(read_run(tmp_path / "a"), read_run(tmp_path / "b"), draws=200)
    right = {row: guess == scans for row, guess in rows.items()}
    assert found.pairs["cnn"].only_first == (right["cnn"] & ~right["fe_vgg16"]).sum()
    difference = right["cnn"].mean() - right["fe_vgg16"].mean()
    assert found.pairs["cnn"].difference["eta_p"] == pytest.approx(difference)


def test_another_draw_of_training_patches_is_told_and_not_refused(tmp_path):
    found = two(tmp_path, guesses(0, cnn=0.5), guesses(1, cnn=0.5), manifest=manifest_of(TESTED, trained=4))
    assert any(line.startswith("training patches: ") for line in found.differences)


def test_runs_of_other_numbers_of_seeds_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a has 1 seed and .*b has 2 seeds"):
        two(tmp_path, guesses(0, cnn=0.5), {"cnn": np.stack([g["cnn"] for g in (guesses(0, cnn=0.5),) * 2])}, seeds=2)


def test_the_command_prints_a_verdict_and_writes_what_it_found(tmp_path, capsys):
    two(tmp_path, guesses(0, cnn=0.6), guesses(1, cnn=0.6))
    command = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c.json")]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "no difference shown" in shown
    assert "No difference shown in any of 1 rows." in shown
    record = json.loads((tmp_path / "c.json").read_text())
    assert record["verdicts"] == {"cnn": OPEN}
    assert record["pairs"]["cnn"]["adjusted"]["eta_total"] > 0.05
    assert main(["compare", str(tmp_path / "a")]) == 2
    assert "needs RUN RUN before any flag" in capsys.readouterr().err
