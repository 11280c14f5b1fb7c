"""Predictions, manifests and truths that are damaged, and scans that are never predicted."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from faults.harness import ask, nothing_changes, refused
from faults.results.pages import Page
from faults.results.planting import MANIFESTS, PREDICTIONS, ROW, damage, guessing, lines_of, of_another_scan, table
from kimiajax.data.sources.synthetic import write_synthetic_scans


def renamed(old, new):
    """Changes the first line."""
    return lambda lines: [lines[0].replace(old, new), *lines[1:]]


WHOLE_LINES = "write the predictions again"
ONE_EACH = "give one line for each test patch"
WRONG = {  # damage -> how, and what the line says beside the file's name
    "missing": (lambda lines: None, "No such file", "give the CSV file"),
    "empty": (lambda lines: [], "an empty file", "give the CSV file"),
    "nothing below the first line": (lambda lines: lines[:1], "holds nothing below", WHOLE_LINES),
    "a line short": (lambda lines: lines[:-1], "1 of the 11 test patches have no prediction", ONE_EACH),
    "half of it": (lambda lines: lines[:6], "6 of the 11 test patches have no prediction", ONE_EACH),
    "cut in a line": (lambda lines: "".join(lines)[:-14], "line 12", WHOLE_LINES),
    "cut before a guess": (lambda lines: "".join(lines)[:-2], "line 12", "predicted is ''", "must be a scan's number"),
    "a patch more": (lambda lines: [*lines, "test/s9/9,0,0\n"], "1 of the 12 predictions", "test/s9/9", ONE_EACH),
    "a patch twice": (lambda lines: [*lines, lines[1]], "line 13", "stands on line 2 already", "keep one"),
    "a patch twice, otherwise": (lambda lines: [*lines, *guessing(3)(lines)[1:2]], "line 13", "line 2 already"),
    "a scan that is not": (guessing(4), "out of range", "number them from 0"),
    "scans from 1": (
        lambda lines: [
            lines[0],
            *(f"{line.rsplit(',', 1)[0]},{int(line.rsplit(',', 1)[1]) + 1}\n" for line in lines[1:]),
        ],
        "out of range",
        "number them from 0",
    ),
    "below 0": (guessing(-1), "line 2", "predicted is '-1'", "must be a scan's number"),
    "a huge number": (guessing(10**30), "line 2", "must be a scan's number"),
    "a fraction": (guessing(1.5), "line 2", "predicted is '1.5'", "must be a scan's number"),
    "not a number": (guessing("nan"), "line 2", "predicted is 'nan'", "must be a scan's number"),
    "infinite": (guessing("inf"), "line 2", "predicted is 'inf'", "must be a scan's number"),
    "a name": (guessing("scan1"), "line 2", "predicted is 'scan1'", "must be a scan's number"),
    "no guess": (guessing(""), "line 2", "predicted is ''", "must be a scan's number"),
    "no name": (lambda lines: [lines[0], ",0,0\n", *lines[2:]], "line 2", "has no patch_id", "remove the line"),
    "other names": (
        lambda lines: [lines[0], *(line.replace("test/", "", 1) for line in lines[1:])],
        "11 of the 11 test patches have no prediction",
        "11 of the 11 predictions are of no test patch",
        ONE_EACH,
    ),
    "a name in capitals": (lambda lines: [lines[0], lines[1].upper(), *lines[2:]], "1 of the 11 predictions", ONE_EACH),
    "of other scans": (
        lambda lines: [lines[0], *map(of_another_scan, lines[1:])],
        "its column scan is another than the truth for 11 of 11",
        "Give that of the data they were made from",
    ),
    "no first line": (lambda lines: lines[1:], "has no column patch_id", "add a first line of names"),
    "no column of patches": (renamed("patch_id", "id"), "has no column patch_id", "add a first line of names"),
    "no column of guesses": (renamed("predicted", "guess"), "has no column predicted", "name the columns"),
    "two columns of guesses": (renamed("scan", "predicted"), "has 2 columns predicted", "keep one"),
    "a field too many": (lambda lines: [*lines[:-1], lines[-1].strip() + ",0\n"], "line 12", WHOLE_LINES),
    "an open quote": (lambda lines: [*lines[:-1], '"' + lines[-1]], "line 12", WHOLE_LINES),
    "colons": (lambda lines: [line.replace(",", ":") for line in lines], "has no column patch_id", "by commas"),
    "a title above the names": (lambda lines: ["Mine\n", *lines], "line 2", "names the columns", "lines above"),
    "the names twice": (lambda lines: [lines[0], *lines], "line 2", "names the columns again", "keep the first"),
    "a workbook": (lambda lines: b"PK\x03\x04", "an .xlsx", "save the predictions as CSV in UTF-8"),
    "JSON": (lambda lines: ['{"patch_id": ["a"]}\n'], "is JSON", "save the predictions as CSV in UTF-8"),
    "binary": (lambda lines: b"\x89HDF\r\n\x1a\n\xff\x00", "is no UTF-8 text", "save the predictions as CSV in UTF-8"),
    "UTF-32": (lambda lines: "".join(lines).encode("utf-32"), "is no UTF-8 text", "save the predictions as CSV"),
    "Latin-1": (lambda lines: "".join(lines).replace("s0", "sä").encode("latin-1"), "is no UTF-8 text"),
    "a web page": (lambda lines: ["<!doctype html>\n", "<html>no such page</html>\n"], "has no column patch_id"),
    "a Git-LFS pointer": (
        lambda lines: ["version https://git-lfs.github.com/spec/v1\n", "oid\n"],
        "no column patch_id",
    ),
}


@pytest.mark.fault("predictions")
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_predictions_are_refused_by_line_or_count_and_leave_the_earlier_record(run, tmp_path, kind):
    change, *words = WRONG[kind]
    path = Path(shutil.copy(run / PREDICTIONS, tmp_path / "mine.csv"))
    record = tmp_path / "score.json"
    record.write_text("{}")
    damage(path, change)
    with nothing_changes(tmp_path, run):
        ended = ask("score", path, "--truth", run, "--out", record)
    refused(ended, path, *words)
    assert ended.shown == ""


@pytest.mark.fault("predictions")
@pytest.mark.parametrize("out", ["none", "folder"])
def test_a_folder_of_predictions_is_no_file_of_them(run, tmp_path, out):
    record = () if out == "none" else ("--out", tmp_path / "score.json")
    with nothing_changes(tmp_path, run):
        refused(ask("score", run / "predictions", "--truth", run, *record), run / "predictions", "give the CSV file")


@pytest.mark.fault("predictions")
@pytest.mark.parametrize("order", ["backwards", "shuffled", "with other columns", "as spreadsheets write them"])
def test_predictions_in_any_order_score_the_same(run, tmp_path, rng, order):
    first, *lines = lines_of(run / PREDICTIONS)
    written = {
        "backwards": [first, *lines[::-1]],
        "shuffled": [first, *rng.permutation(lines)],
        "with other columns": [f"note,{first}", *(f"x,{line}" for line in lines[::-1])],
        "as spreadsheets write them": ["\ufeff", *(line.replace("\n", "\r\n") for line in (first, *lines[::-1]))],
    }[order]
    (tmp_path / "mine.csv").write_text("".join(written), encoding="utf-8", newline="")
    records = []
    for path in (run / PREDICTIONS, tmp_path / "mine.csv"):
        ended = ask("score", path, "--truth", run, "--out", tmp_path / "score.json")
        assert (ended.status, ended.said) == (0, "")
        records.append(json.loads((tmp_path / "score.json").read_text()))
        assert records[-1].pop("predictions") == str(path)
    assert 0 < records[0]["eta_p"] < 1
    assert records[0] == records[1]


@pytest.mark.fault("predictions")
@pytest.mark.parametrize("form", ["the run", "its manifest"])
@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_damaged_manifest_is_no_truth(copy, tmp_path, kind, form):
    change, *words = MANIFESTS[kind]
    truth = copy if form == "the run" else copy / "manifest.csv"
    record = tmp_path / "score.json"
    assert ask("score", copy / PREDICTIONS, "--truth", truth, "--out", record).status == 0
    change(copy)
    with nothing_changes(tmp_path):
        line = refused(ask("score", copy / PREDICTIONS, "--truth", truth, "--out", record), copy)
    if form == "the run" or kind not in ("empty", "binary", "cut in a line"):  # which a list of patches would be, too
        assert all(word in line for word in words), line


def plain_truth(path):
    """The truth as a CSV file of two columns."""
    lines = [line.split(",") for line in lines_of(path.parent / "run" / PREDICTIONS)]
    path.write_text("".join(f"{patch_id},{scan}\n" for patch_id, scan, _ in lines))


TRUTHS = {  # damage -> the file, how it comes to be, and what the line says beside its name
    "a fraction": ("t.csv", lambda lines: [*lines[:-1], "x,1.5\n"], "line 12: scan is '1.5'"),
    "a patch twice": ("t.csv", lambda lines: [*lines, lines[1]], "line 13", "line 2 already", "keep one"),
    "no column of scans": ("t.csv", renamed("scan", "class"), "has no column scan", "name the columns"),
    "no column of patches": ("t.csv", renamed("patch_id", "id"), "has no column patch_id"),
    "nothing below the first line": ("t.csv", lambda lines: lines[:1], "holds nothing below its first line"),
    "empty": ("t.csv", lambda lines: [], "an empty file", "give the CSV file that holds the truth"),
    "missing": ("t.csv", lambda lines: None, "no such file or folder", "the truth is a manifest.csv"),
    "UTF-32": ("t.csv", lambda lines: "".join(lines).encode("utf-32"), "is no UTF-8 text", "save the truth as CSV"),
    "fewer scans": (
        "t.csv",
        lambda lines: [line for line in lines if not line.endswith(",3\n")],
        "predictions are of no test patch",
        "and no other",
    ),
    "other numbers of scans": (
        "t.csv",
        lambda lines: [lines[0], *(line.replace(",0\n", ",1\n") for line in lines[1:])],
        "its column scan is another than the truth",
        "Give that of the data",
    ),
    "half a scan file": (
        "t.h5",
        lambda lines: b"\x89HDF\r\n\x1a\n" + bytes(90),
        "t.h5: a damaged HDF5 file of 98 bytes",
    ),
    "a pointer to a scan file": ("t.h5", lambda lines: b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
}


@pytest.mark.fault("predictions")
@pytest.mark.parametrize("kind", TRUTHS)
def test_a_damaged_truth_is_named(copy, tmp_path, kind):
    name, change, *words = TRUTHS[kind]
    truth, record = tmp_path / name, tmp_path / "score.json"
    plain_truth(truth)
    if truth.suffix == ".csv":
        assert ask("score", copy / PREDICTIONS, "--truth", truth, "--out", record).status == 0
    damage(truth, change)
    with nothing_changes(tmp_path):
        refused(ask("score", copy / PREDICTIONS, "--truth", truth, "--out", record), truth, *words)


@pytest.mark.fault("predictions")
@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ("nothing", ("holds neither manifest.csv nor", "the truth is a manifest.csv")),
        ("slides", ("holds out no test patches by itself", "give the manifest.csv")),
        ("seeds", ("holds the runs of 1 seeds", "give the folder of one", "seed-0")),
    ],
)
def test_a_folder_without_one_truth_is_refused(copy, tmp_path, inside, words):
    truth = tmp_path / "truth"
    truth.mkdir()
    if inside == "slides":
        (truth / "slide.svs").touch()
    elif inside == "seeds":
        shutil.copytree(copy, truth / "seed-0")
    with nothing_changes(tmp_path):
        refused(ask("score", copy / PREDICTIONS, "--truth", truth, "--out", tmp_path / "score.json"), truth, *words)


# A scan that is never predicted.


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """A finished run one of whose rows never predicts one of the scans, that scan, and the recall of each."""
    root = tmp_path_factory.mktemp("silent")
    write_synthetic_scans(root / "scans.h5", num_scans=4, patch_size=80, grid=(4, 4), test_patches=(2, 3), seed=12)
    assert table(root / "run", root / "scans.h5", rows=[ROW]).status == 0
    with (root / "run" / PREDICTIONS).open() as file:
        guesses = [(int(line["scan"]), int(line["predicted"])) for line in csv.DictReader(file)]
    recalls = [np.mean([guess == scan for of, guess in guesses if of == scan]) for scan in range(4)]
    never = set(range(4)) - {guess for _, guess in guesses}
    assert len(never) == 1
    return root / "run", *never, recalls


@pytest.mark.fault("silence")
def test_a_score_has_recall_of_a_scan_that_is_never_predicted_and_names_it_for_want_of_precision(silent, tmp_path):
    run, never, recalls = silent
    ended = ask("score", run / PREDICTIONS, "--truth", run, "--out", tmp_path / "score.json")
    assert (ended.status, ended.said) == (0, "")
    record = json.loads((tmp_path / "score.json").read_text(), parse_constant=pytest.fail)
    assert record["eta_w_recall"] == pytest.approx(np.mean(recalls), abs=1e-12)
    assert record["eta_total"] == pytest.approx(record["eta_p"] * np.mean(recalls), abs=1e-12)
    assert record["eta_w_precision"] is record["eta_total_precision"] is None
    assert record["never_predicted"] == [never]
    assert f"Never predicted, so that precision is undefined: scan {never}." in ended.shown
    shown = [" ".join(line.split()) for line in ended.shown.splitlines()]
    assert "eta_w, precision: what its Python script prints under the same name -" in shown
    assert any(line.startswith(f"{never} ") and line.endswith(" 0.00 0 -") for line in shown)
    assert "nan" not in ended.shown.lower()


@pytest.mark.fault("silence")
@pytest.mark.parametrize("format", ["html", "markdown", "csv", "latex"])
def test_a_report_has_a_finite_eta_w_where_a_scan_is_never_predicted(silent, tmp_path, format):
    run, never, recalls = silent
    row = json.loads((run / "results.json").read_text(), parse_constant=pytest.fail)["rows"][0]
    assert row["eta_w"] == pytest.approx(np.mean(recalls), abs=1e-12)
    assert row["eta_w_precision"] is None
    ended = ask("report", run, "--format", format, "--out", tmp_path / "report.txt")
    assert (ended.status, ended.said) == (0, "")
    text = (tmp_path / "report.txt").read_text()
    assert (f"{100 * np.mean(recalls):.2f}" if format != "csv" else str(row["eta_w"])) in text
    page = Page(text).text if format == "html" else text
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)
    if format == "html":
        found = json.loads((tmp_path / "report.analysis.json").read_text(), parse_constant=pytest.fail)
        assert sum(line[never] for line in found["confusion"][ROW]) == 0


@pytest.mark.fault("silence")
@pytest.mark.parametrize(
    ("guesses", "recall", "never"),
    [((0, 0, 0, 0, 0), 1 / 3, [1, 2]), ((0, 1, 1, 1, 1), 1.5 / 3, [2]), ((1, 1, 2, 2, 2), 1 / 3, [0])],
    ids=["one scan for all", "one silent", "the first silent"],
)
def test_recall_is_finite_however_many_scans_are_never_predicted(tmp_path, guesses, recall, never):
    truth = (0, 0, 1, 1, 2)
    (tmp_path / "t.csv").write_text("patch_id,scan\n" + "".join(f"p{k},{scan}\n" for k, scan in enumerate(truth)))
    (tmp_path / "p.csv").write_text("patch_id,predicted\n" + "".join(f"p{k},{g}\n" for k, g in enumerate(guesses)))
    ended = ask("score", tmp_path / "p.csv", "--truth", tmp_path / "t.csv", "--out", tmp_path / "score.json")
    assert (ended.status, ended.said) == (0, "")
    record = json.loads((tmp_path / "score.json").read_text(), parse_constant=pytest.fail)
    assert record["eta_w_recall"] == pytest.approx(recall, abs=1e-12)
    assert record["eta_w_precision"] is record["eta_total_precision"] is None
    assert record["never_predicted"] == never
    assert f"undefined: scan{'s' if len(never) > 1 else ''} {', '.join(map(str, never))}." in ended.shown
