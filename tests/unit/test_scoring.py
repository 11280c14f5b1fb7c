"""Predictions from files: both official scorers' figures, joined by patch id, or refused by line."""

import contextlib
import csv
import functools
import json
import math
import re
import shutil
from dataclasses import replace
from unittest import mock

import jax
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from kimiajax.data.export import export_patches
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patches import Rules, cut_patches
from kimiajax.errors import UserError
from kimiajax.evaluation import metrics, scoring
from kimiajax.evaluation.scoring import Scored, score
from kimiajax.evaluation.statistics import wilson
from kimiajax.report.scores import render_score
from kimiajax.runs.layout import RunFolder
from kimiajax.runs.predictions import join, read_predictions, read_truth

EXACT = 1e-12  # double precision, and sums in another order


def matlab_script(labels, predicted):
    """eta_p and eta_w as the data set's MATLAB script computes them, in plain loops."""
    shares = []
    for scan in sorted(set(labels)):
        right = [guess == scan for label, guess in zip(labels, predicted) if label == scan]
        shares.append(sum(right) / len(right))
    return sum(map(int.__eq__, labels, predicted)) / len(labels), sum(shares) / len(shares)


def python_script(labels, predicted):
    """eta_w as its Python script computes it: rows of the matrix are the truth, and NaN spreads to the mean."""
    matrix = confusion_matrix(labels, predicted)
    with np.errstate(invalid="ignore"):
        return float((matrix.diagonal() / matrix.sum(axis=0)).mean())


def write_csv(path, **columns):
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))
    return path


def score_lists(folder, labels, predicted, order=None, **more):
    """Through files, as the command does; the lines of the predictions in some order."""
    ids = [f"p{k}" for k in range(len(labels))]
    order = range(len(labels)) if order is None else order
    columns = {"patch_id": ids, "predicted": predicted, **more}
    predictions = write_csv(folder / "p.csv", **{name: [column[k] for k in order] for name, column in columns.items()})
    return score(predictions, write_csv(folder / "t.csv", patch_id=ids, scan=labels))


def compare(scored, labels, predicted):
    """Demands that every figure is the official scorers'."""
    eta_p, recall = matlab_script(labels, predicted)
    precision = python_script(labels, predicted)
    approx = functools.partial(pytest.approx, rel=0, abs=EXACT)
    assert scored.eta_p == approx(eta_p)
    assert scored.eta_w_recall == approx(recall)
    assert scored.eta_total == approx(eta_p * recall)
    if math.isnan(precision):
        assert scored.never_predicted
        assert (scored.eta_w_precision, scored.eta_total_precision) == (None, None)
    else:
        assert not scored.never_predicted
        assert scored.eta_w_precision == approx(precision)
        assert scored.eta_total_precision == approx(eta_p * precision)
    scans = range(scored.num_scans)
    assert scored.n == len(labels)
    assert scored.correct == sum(scored.correct_per_scan) == sum(map(int.__eq__, labels, predicted))
    assert scored.tested_per_scan == tuple(labels.count(scan) for scan in scans)
    assert scored.guessed_per_scan == tuple(predicted.count(scan) for scan in scans)
    assert scored.without_patches == [scan for scan in scans if scan not in labels]


def draw(rng, num_scans=6, n=40, tested=None, guessed=None, skill=0.6):
    """Labels and predictions; the last scan has a patch, so that a plain file tells of it."""
    labels = np.append(rng.choice(num_scans if tested is None else tested, n - 1), num_scans - 1)
    guesses = rng.choice(num_scans if guessed is None else guessed, n)
    return labels.tolist(), np.where(rng.random(n) < skill, labels, guesses).tolist()


CASES = {
    "every scan tested": {},
    "nothing learnt": {"skill": 0.0},
    "nearly all right": {"skill": 0.95},
    "scans without test patches": {"tested": [0, 2, 3], "skill": 0.3},
    "scans never predicted": {"guessed": [1, 4], "skill": 0.0},
    "both": {"tested": [0, 2, 3], "guessed": [1, 2], "skill": 0.0},
    "one scan for everything": {"guessed": [2], "skill": 0.0},
}


@pytest.mark.parametrize("case", CASES)
def test_both_official_scorers_figures_come_out(tmp_path, rng, case):
    undefined = 0
    for _ in range(40):
        labels, predicted = draw(rng, **CASES[case])
        scored = score_lists(tmp_path, labels, predicted, rng.permutation(len(labels)))
        compare(scored, labels, predicted)
        undefined += scored.eta_w_precision is None
        values = (scored.eta_p, scored.eta_w_recall, scored.eta_w_precision, scored.eta_total)
        assert all(0 <= value <= 1 for value in (*values, scored.eta_total_precision) if value is not None)
    assert undefined == 40 or "guessed" not in CASES[case], "the case is what its name says"


def test_precision_is_defined_where_a_scan_is_neither_tested_nor_predicted(tmp_path):
    scored = score_lists(tmp_path, [0, 0, 2], [0, 2, 2])
    assert (scored.without_patches, scored.never_predicted) == ([1], [])
    assert scored.eta_w_precision == pytest.approx((1 + 1 / 2) / 2, abs=EXACT)


def test_the_predictions_own_scans_and_other_columns_change_nothing(tmp_path, rng):
    labels, predicted = draw(rng)
    plain = score_lists(tmp_path, labels, predicted)
    assert score_lists(tmp_path, labels, predicted, scan=labels, score=rng.random(40).tolist()) == plain


@pytest.mark.parametrize("case", ["every scan tested", "scans without test patches", "scans never predicted"])
def test_other_numbers_for_the_scans_change_no_score(tmp_path, rng, case):
    names = ("eta_p", "eta_w_recall", "eta_w_precision", "eta_total", "eta_total_precision", "correct")
    for _ in range(10):
        labels, predicted = draw(rng, **CASES[case])
        other = rng.permutation(6)
        before = score_lists(tmp_path, labels, predicted)
        truth = read_truth(tmp_path / "t.csv")
        renamed = replace(truth, scans=other[truth.scans])  # of which the largest need not have a patch any more
        with mock.patch.object(scoring, "read_truth", return_value=renamed):
            after = score_lists(tmp_path, labels, other[predicted].tolist())
        for name in names:
            assert getattr(after, name) == pytest.approx(getattr(before, name), abs=EXACT)
        assert [after.correct_per_scan[scan] for scan in other] == list(before.correct_per_scan)


def test_eta_w_is_eta_p_where_every_scan_has_as_many_patches(tmp_path, rng):
    for _ in range(10):
        labels = rng.permutation(np.repeat(np.arange(6), 5)).tolist()
        scored = score_lists(tmp_path, labels, rng.integers(0, 6, 30).tolist())
        assert scored.eta_w_recall == pytest.approx(scored.eta_p, abs=EXACT)


def by_order(predictions, truth):
    return predictions.predicted


def changed(**fields):
    """A fault in the scores: a field is computed from the others."""
    right = metrics.kimia_scores
    return lambda *given: (lambda s: s._replace(**{name: of(s) for name, of in fields.items()}))(right(*given))


@pytest.mark.parametrize(
    ("module", "name", "fault"),
    [
        (scoring, "join", by_order),
        (metrics, "kimia_scores", changed(eta_w_precision=lambda s: (s.correct / s.tested).mean())),  # row sums
        (metrics, "kimia_scores", changed(eta_w=lambda s: s.eta_w_precision)),
        (metrics, "kimia_scores", changed(eta_w=lambda s: s.eta_p)),
        (metrics, "kimia_scores", changed(eta_total=lambda s: s.eta_p * s.eta_w_precision)),
        (metrics, "kimia_scores", lambda t, p, n, right=metrics.kimia_scores: right(p, t, n)),
        (jax, "enable_x64", lambda on: contextlib.nullcontext()),
    ],
    ids=["order", "row sums", "forms exchanged", "not by scan", "product", "truth and guess exchanged", "float32"],
)
def test_the_comparison_catches_a_fault(tmp_path, rng, monkeypatch, module, name, fault):
    labels, predicted = draw(rng)
    order = rng.permutation(len(labels))
    compare(score_lists(tmp_path, labels, predicted, order), labels, predicted)
    monkeypatch.setattr(module, name, fault)
    with pytest.raises(AssertionError):
        compare(score_lists(tmp_path, labels, predicted, order), labels, predicted)


@pytest.fixture
def truths(tmp_path, scans):
    """One truth in every form that it has, by name."""
    with open_scans(scans) as source:
        manifest = cut_patches(source, Rules(2))
        manifest.write(tmp_path / "run" / "manifest.csv")
        export_patches(source, manifest, tmp_path / "exported")
    images = shutil.copytree(tmp_path / "exported", tmp_path / "images")
    for name in ("manifest.csv", "manifest.json"):
        (images / name).unlink()
    tested = manifest.split("test")
    ids, labels = [patch.patch_id for patch in tested], [patch.scan for patch in tested]
    plain = write_csv(tmp_path / "plain.csv", note=["x"] * len(ids), scan=labels, patch_id=ids)
    paths = {"manifest": tmp_path / "run" / "manifest.csv", "run": tmp_path / "run", "plain": plain, "scans": scans}
    return manifest, {**paths, "exported": tmp_path / "exported", "images": images}


def test_every_form_of_the_truth_scores_alike(tmp_path, rng, truths):
    manifest, paths = truths
    labels = manifest.labels("test").tolist()
    predicted = np.where(rng.random(len(labels)) < 0.6, labels, rng.integers(0, 4, len(labels)))
    predictions = RunFolder(tmp_path).write_predictions("row", manifest, predicted)
    wanted = dict(zip((patch.patch_id for patch in manifest.split("test")), labels))
    for path in paths.values():
        truth = read_truth(path)
        assert dict(zip(truth.patch_ids, truth.scans.tolist())) == wanted
        assert truth.num_scans == 4
        scored = score(predictions, path)
        compare(scored, labels, predicted.tolist())
        assert (scored.predictions, scored.truth) == (str(predictions), str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "p.csv: No such file or directory; give the CSV file that holds the predictions"),
        (b"patch_id,predicted\n\xe4,0\n", "p.csv: is no UTF-8 text .*save the predictions as CSV in UTF-8"),
        ("", "p.csv: an empty file; give the CSV file"),
        ("\n\n", "an empty file"),
        ("patch_id,predicted\n", "holds nothing below its first line; write the predictions again"),
        ("predicted\n0\n1\n", r"no column patch_id \(it has 'predicted'\).*order alone cannot be checked: add a first"),
        ("a,0\nb,1\n", r"no column patch_id \(it has 'a', '0'\)"),
        ("patch_id,scan\na,0\n", r"no column predicted \(it has 'patch_id', 'scan'\); name the columns in its first"),
        ("patch_id,predicted,predicted\na,0,0\n", "has 2 columns predicted; keep one"),
        ("patch_id,predicted\na,0\nb,1.5\n", "line 3: predicted is '1.5'; it must be a scan's number, whole"),
        ("patch_id,predicted\na,nan\n", "line 2: predicted is 'nan'"),
        ("patch_id,predicted\na,\n", "line 2: predicted is ''"),
        ("patch_id,predicted\na,1_0\n", "line 2: predicted is '1_0'"),
        ("patch_id,predicted\na,²\n", "line 2: predicted is '²'"),
        ("patch_id,predicted\na,-1\n", "line 2: predicted is '-1'; .* from 0 to 9999"),
        ("patch_id,predicted\na,10000\n", "line 2: predicted is '10000'"),
        (f"patch_id,predicted\na,{'9' * 5000}\n", "line 2: predicted is '999"),
        ("patch_id,scan,predicted\na,x,0\n", "line 2: scan is 'x'"),
        ("patch_id,predicted\na,0\n\nb\n", "line 4: holds 1 fields and the first line 2; write the predictions again"),
        ("patch_id,predicted\na,0,1\n", "line 2: holds 3 fields and the first line 2"),
        ("patch_id,predicted\na,0\nb,1\na,0\n", "line 4: a stands on line 2 already; keep one of them"),
        ("patch_id,predicted\na,0\n,1\n", "line 3: has no patch_id; give the patch's, or remove the line"),
        ('patch_id,predicted\na,0\n"b,1\nc,1\n', "line 4: is no CSV .*; write the predictions again"),
    ],
)
def test_broken_predictions_are_refused_by_line(tmp_path, text, message):
    path = tmp_path / "p.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_predictions_are_read_as_spreadsheets_write_them(tmp_path):
    (tmp_path / "p.csv").write_bytes(b'\xef\xbb\xbfscore, predicted,patch_id,\r\n0.5, 1,"a,b",\r\n\r\nnan,0,c,x\r\n')
    read = read_predictions(tmp_path / "p.csv")
    assert (read.patch_ids, read.predicted.tolist(), read.scans) == (("a,b", "c"), [1, 0], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "t.csv: no such file or folder; the truth is a manifest.csv, a run's folder, a CSV file with"),
        ("", "t.csv: an empty file; give the CSV file that holds the truth"),
        ("scan,predicted\n0,1\n", "t.csv: has no column patch_id"),
        ("patch_id,predicted\na,1\n", "t.csv: has no column scan"),
        ("patch_id,scan\na,0\nb,1.5\n", "line 3: scan is '1.5'"),
        ("patch_id,scan\na,0\na,0\n", "line 3: a stands on line 2 already"),
        ("patch_id,scan,split\na,0,test\n", "t.json: No such file or directory; a manifest is a .csv file and its"),
    ],
)
def test_a_broken_truth_is_refused_by_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_truth(tmp_path / "t.csv")
    assert str(tmp_path) in str(caught.value)


def test_an_edited_manifest_and_the_folder_of_several_seeds_are_refused(tmp_path, truths):
    manifest, paths = truths
    manifest.write(tmp_path / "seeds" / "seed-3" / "manifest.csv")
    with pytest.raises(UserError, match=r"seeds: holds the runs of 1 seeds; give the folder of one, .*seed-3"):
        read_truth(tmp_path / "seeds")
    assert read_truth(tmp_path / "seeds" / "seed-3").num_scans == 4
    paths["manifest"].write_text(manifest.csv.replace("test/s0/", "test/s0/1", 1))
    with pytest.raises(UserError, match="was edited since"):
        read_truth(paths["run"])


def test_slides_are_refused_unopened_since_their_test_patches_are_still_to_be_chosen(tmp_path):
    (tmp_path / "slide.svs").write_bytes(b"")
    with pytest.raises(UserError, match=r"slides holds out no test patches by itself; give the manifest\.csv that"):
        read_truth(tmp_path)


def test_a_folder_without_patches_is_refused_with_what_the_truth_may_be(tmp_path):
    with pytest.raises(UserError, match=r"holds neither manifest\.csv nor .*; the truth is a manifest\.csv, a run's"):
        read_truth(tmp_path)


A, B = ["a", "b", "c", "d", "e"], [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"patch_id": A[:3], "predicted": B[:3]},
            r"p.csv: 2 of the 5 test patches have no prediction \(d, e\); give one line for each test patch of .*t.csv",
        ),
        ({"patch_id": A[4:], "predicted": [2]}, r"4 of the 5 test patches have no prediction \(a, b, c, \.\.\.\)"),
        (
            {"patch_id": [*A, "f"], "predicted": [*B, 0]},
            r"p.csv: 1 of the 6 predictions are of no test patch \(f\); give one line .* and no other",
        ),
        (
            {"patch_id": [*A[:4], "E"], "predicted": B},
            r"1 of the 5 test patches have no prediction \(e\) and 1 of the 5 predictions are of no test patch \(E\)",
        ),
        (
            {"patch_id": A, "predicted": [1, 1, 2, 2, 3]},
            r"p.csv: 1 of 5 predicted scans are out of range \(e: 3\); .*t.csv has scans 0 to 2: number them from 0",
        ),
        (
            {"patch_id": A, "predicted": B, "scan": [0, 1, 1, 1, 0]},
            r"column scan is another than the truth for 2 of 5 patches \(b: 1 and not 0, e: 0 and not 2\); is .*t.csv",
        ),
    ],
    ids=["short", "shorter", "extra", "both", "out of range", "other scans"],
)
def test_predictions_of_other_patches_are_refused_by_count_and_name(tmp_path, columns, message):
    truth = write_csv(tmp_path / "t.csv", patch_id=A, scan=B)
    with pytest.raises(UserError, match=message):
        score(write_csv(tmp_path / "p.csv", **columns), truth)


def test_the_join_follows_the_truths_order(tmp_path):
    truth = read_truth(write_csv(tmp_path / "t.csv", patch_id=A, scan=B))
    read = read_predictions(write_csv(tmp_path / "p.csv", patch_id=A[::-1], predicted=[2, 1, 0, 2, 1]))
    assert join(read, truth).tolist() == [1, 2, 0, 1, 2]
    with pytest.raises(UserError, match=r"1 of 5 predicted scans are out of range \(e: -1\)"):
        join(replace(read, predicted=np.array([-1, 1, 0, 2, 1])), truth)


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (
            lambda name: name.replace("/", "\\"),
            r"5 of 5 patch ids are written otherwise \('s\\\\0' is read as 's/0'",
        ),
        (lambda name: f"{name}.PNG", r"'s/0\.PNG' is read as 's/0'"),
        (lambda name: f" {name} ", "' s/0 ' is read as 's/0'"),
        (lambda name: name.replace("/0", "\\0"), "1 of 5 patch ids"),
    ],
    ids=["backslashes", "extension", "blanks", "one of them"],
)
def test_ids_that_differ_as_programs_write_them_are_taken_for_the_truths_and_the_record_says_so(tmp_path, write, why):
    ids = [f"s/{k}" for k in range(5)]
    truth = write_csv(tmp_path / "t.csv", patch_id=ids, scan=B)
    plain = score(write_csv(tmp_path / "p.csv", patch_id=ids, predicted=[0, 1, 1, 1, 2]), truth)
    other = score(write_csv(tmp_path / "p.csv", patch_id=map(write, ids), predicted=[0, 1, 1, 1, 2]), truth)
    assert replace(other, warnings=()) == plain
    assert plain.warnings == ()
    assert re.search(why, other.warnings[0]), other.warnings


@pytest.mark.parametrize(
    ("ids", "truth", "message"),
    [
        (
            ["a.png", "a.jpg"],
            ["a.png", "a.tif"],
            r"1 of the 2 test patches have no prediction \(a\.tif\) and 1 of the 2",
        ),
        (["a", "a.png"], ["a", "b"], r"no prediction \(b\) and 1 of the 2 predictions are of no test patch \(a\.png\)"),
        (["s\\a", "s\\c"], ["s/a", "s/b"], r"1 of the 2 test patches have no prediction \(s/b\)"),
        (["A", "B"], ["a", "b"], r"2 of the 2 test patches have no prediction"),
    ],
)
def test_ids_that_could_be_two_patches_or_none_are_refused(tmp_path, ids, truth, message):
    paths = (
        write_csv(tmp_path / "p.csv", patch_id=ids, predicted=[0, 1]),
        write_csv(tmp_path / "t.csv", patch_id=truth, scan=[0, 1]),
    )
    with pytest.raises(UserError, match=message):
        score(*paths)


def test_the_record_says_how_files_were_read_that_are_not_the_projects_own(tmp_path):
    (tmp_path / "p.csv").write_text("patch_id;predicted\na;0.0\nb;1.0\n", encoding="utf-16")
    (tmp_path / "t.tsv").write_text("patch_id\tscan\na\t0\nb\t1\n")
    scored = score(tmp_path / "p.csv", tmp_path / "t.tsv")
    assert scored.eta_total == 1
    assert scored.warnings == (
        f"{tmp_path / 't.tsv'}: read as CSV separated by tabs.",
        f"{tmp_path / 'p.csv'}: read as CSV in UTF-16, separated by semicolons, with whole numbers written like 3.0.",
    )
    assert all(each in " ".join(render_score(scored).split()) for each in ("separated by tabs.", "written like 3.0."))


def test_the_record_is_json_and_says_all(tmp_path):
    scored = score_lists(tmp_path, [0, 0, 1, 3], [0, 2, 0, 3])
    record = json.loads(json.dumps(scored.as_dict(), allow_nan=False))
    intervals = record.pop("intervals")
    assert record == {
        "predictions": str(tmp_path / "p.csv"),
        "truth": str(tmp_path / "t.csv"),
        "warnings": [],
        "n": 4,
        "correct": 2,
        "num_scans": 4,
        "eta_p": 0.5,
        "eta_w_recall": 0.5,
        "eta_w_precision": None,
        "eta_total": 0.25,
        "eta_total_precision": None,
        "tested_per_scan": [2, 1, 0, 1],
        "guessed_per_scan": [2, 0, 1, 1],
        "correct_per_scan": [1, 0, 0, 1],
        "never_predicted": [1],
        "without_patches": [2],
    }
    assert intervals["eta_p"] == pytest.approx(wilson(2, 4))
    assert all(0 <= low < high <= 1 for low, high in intervals.values())


def scored_of(precision, tested, guessed, correct):
    total = None if precision is None else precision / 2
    intervals = {"eta_p": (0.21, 0.79), "eta_w": (0.375, 0.875), "eta_total": (0.1, 0.6)}
    return Scored(
        "p.csv", "t.csv", (), 8, 4, 3, 0.5, 0.625, precision, 0.3125, total, intervals, tested, guessed, correct
    )


def test_the_screen_shows_both_forms_by_name_and_how_they_differ():
    lines = render_score(scored_of(0.71428, (4, 2, 2), (2, 3, 3), (2, 1, 1))).splitlines()
    assert lines[0] == "p.csv, scored against t.csv: 4 of 8 test patches of 3 scans are correct. Figures in per cent."
    rows = [" ".join(line.split()) for line in lines]
    for row in (
        "eta_p: correct test patches by all test patches 50.00 21.00 to 79.00",
        "eta_w, recall: the definition, and the data set's MATLAB script 62.50 37.50 to 87.50",
        "eta_w, precision: what its Python script prints under the same name 71.43",
        "eta_total: eta_p x eta_w, recall 31.25 10.00 to 60.00",
        "eta_total, precision: eta_p x eta_w, precision 35.71",
        "scan test patches correct recall predicted as it precision",
        "1 2 1 50.00 3 33.33",
    ):
        assert row in rows
    assert "compare a figure with others of its own form only" in " ".join(rows)
    assert not any(line.startswith(("Never", "Without")) for line in lines)


def test_the_screen_names_scans_that_were_never_predicted_and_those_without_test_patches():
    lines = render_score(scored_of(None, (6, 2, 0), (6, 0, 2), (4, 0, 0))).splitlines()
    rows = [" ".join(line.split()) for line in lines]
    assert "eta_w, precision: what its Python script prints under the same name -" in rows
    assert "Never predicted, so that precision is undefined: scan 1." in rows
    assert any(row.startswith("Without test patches: scan 2. Recall leaves them out") for row in rows)
    assert "1 2 0 0.00 0 -" in rows
    assert "2 0 0 - 2 0.00" in rows
    assert "nan" not in "".join(rows)


def test_the_screen_says_where_intervals_say_little(tmp_path):
    one_each = " ".join(render_score(score_lists(tmp_path, [0, 1, 2], [0, 1, 1])).split())
    assert "Fewer than 15 test patches are of each scan" in one_each
    assert "An interval without width" in one_each
    enough = [scan for scan in range(3) for _ in range(20)]
    guesses = [scan if place % 3 else (scan + 1) % 3 for place, scan in enumerate(enough)]
    shown = render_score(score_lists(tmp_path, enough, guesses))
    assert "Fewer than" not in shown
    assert "without width" not in shown
