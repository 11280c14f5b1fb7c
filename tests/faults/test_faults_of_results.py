"""Predictions, stored results and reports that are damaged, edited or missing, and names that a page might obey."""

import base64
import csv
import errno
import functools
import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import foreign_sets
import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from stored_runs import manifest_of, predictions_of, write_run
from test_slides import draw, write_slide

from faults.harness import ask, files_of, nothing_changes, refused
from kimiajax.apply import file_names
from kimiajax.data.synthetic import write_synthetic_scans
from kimiajax.report import figures
from kimiajax.report.results import write_results
from kimiajax.report.schema import LABEL

FLOORS = ("floor_histogram", "floor_mean_sd")
ROW = "floor_mean_sd"
PREDICTIONS = f"predictions/{ROW}.csv"
MENDS = "the same `kimiajax table` mends it"


# What commands are asked for.


def table(out, scans, *flags, rows=FLOORS, source="--scans"):
    asked = ("table", "quick", source, scans, "--rows", *rows, "--image-size", 32, "--patches-per-scan", 4)
    return ask(*asked, "--cache", out.parent / "cache", "--out", out, *flags)


@pytest.fixture(scope="module")
def run(scans, tmp_path_factory):
    """A finished run of a real table; tests copy it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert table(out, scans).status == 0
    return out


@pytest.fixture
def copy(run, tmp_path):
    """A copy of that run, to be damaged."""
    return shutil.copytree(run, tmp_path / "run")


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def without_times(folder):
    """What a run found, but for how long it took."""
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in results_of(folder)["rows"]]
    return rows, *((folder / name).read_text() for name in ("manifest.csv", "manifest.json", PREDICTIONS))


def reseal(folder, change):
    """Changes what a run's results say as if the program had written it."""
    results = results_of(folder)
    results.pop("seal", None)
    change(results)
    write_results(folder, results)


# How files are damaged: each takes the lines or the content, and gives what is there instead.


def lines_of(path):
    return path.read_text().splitlines(keepends=True)


def damage(path, change):
    """Puts what a change makes of a file's lines in its place; None removes the file."""
    content = change(lines_of(path))
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else "".join(content).encode())


def folder_instead(path):
    path.unlink()
    path.mkdir()


def renamed(old, new):
    """Changes the first line."""
    return lambda lines: [lines[0].replace(old, new), *lines[1:]]


def guessing(guess):
    """Changes the last field of the second line, which is a prediction."""
    return lambda lines: [lines[0], f"{lines[1].rsplit(',', 1)[0]},{guess}\n", *lines[2:]]


def of_another_scan(line):
    """A line that says its patch is of another scan."""
    patch_id, scan, rest = line.split(",", 2)
    return f"{patch_id},{(int(scan) + 1) % 4},{rest}"


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
    "a fraction": (guessing(1.0), "line 2", "predicted is '1.0'", "must be a scan's number"),
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
    "semicolons": (lambda lines: [line.replace(",", ";") for line in lines], "has no column patch_id"),
    "binary": (lambda lines: b"\x89HDF\r\n\x1a\n\xff\x00", "is no UTF-8 text", "save the predictions as CSV in UTF-8"),
    "UTF-16": (lambda lines: "".join(lines).encode("utf-16"), "is no UTF-8 text", "save the predictions as CSV"),
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


def header(**changes):
    """Changes a manifest's header."""
    return lambda lines: [json.dumps({**json.loads("".join(lines)), **changes})]


def unvouched(change):
    """Changes a manifest whose header says that this is meant."""

    def changed(folder):
        damage(folder / "manifest.csv", change)
        damage(folder / "manifest.json", header(csv_sha256=None))

    return changed


def of(name, change):
    return lambda folder: damage(folder / name, change)


def moved(lines):
    """The last test patch, of another scan."""
    return [*lines[:-1], of_another_scan(lines[-1])]


EDITED = "was edited since manifest.json was written"
MANIFESTS = {  # damage -> how, and what the line says beside the manifest's name
    "a scan edited": (of("manifest.csv", moved), EDITED, "set csv_sha256 to null"),
    "a line less": (of("manifest.csv", lambda lines: lines[:-1]), EDITED),
    "two lines swapped": (of("manifest.csv", lambda lines: [*lines[:-2], lines[-1], lines[-2]]), EDITED),
    "half of it": (of("manifest.csv", lambda lines: "".join(lines)[: len("".join(lines)) // 2]), EDITED),
    "empty": (of("manifest.csv", lambda lines: []), EDITED),
    "binary": (of("manifest.csv", lambda lines: b"\xff\xfe\x00"), EDITED),
    "missing": (of("manifest.csv", lambda lines: None), "the truth is a manifest.csv"),
    "a folder": (lambda folder: folder_instead(folder / "manifest.csv"), "is", "manifest.csv"),
    "no header": (of("manifest.json", lambda lines: None), "manifest.json: ", "No such file"),
    "half a header": (of("manifest.json", lambda lines: lines[:3]), "manifest.json: is no JSON", "write the manifest"),
    "a list for a header": (of("manifest.json", lambda lines: ["[]"]), "manifest.json: is no manifest's header"),
    "a web page for a header": (of("manifest.json", lambda lines: ["<!doctype html>"]), "manifest.json: is no JSON"),
    "another format": (of("manifest.json", header(format=9)), "manifest.json: format 9", "reads format 1"),
    "fewer scans": (of("manifest.json", header(scans=2)), "scan is '2'", "a number from 0 to 1"),
    "no scans": (of("manifest.json", header(scans="4")), "manifest.json: is no manifest's header"),
    "a patch twice": (unvouched(lambda lines: [*lines, lines[-1]]), "line 29", "is there twice"),
    "a scan that is not": (
        unvouched(lambda lines: [*lines[:-1], re.sub(r",\d,", ",9,", lines[-1], count=1)]),
        "line 28: scan is '9'",
        "from 0 to 3",
    ),
    "cut in a line": (unvouched(lambda lines: [*lines[:-1], lines[-1][:12]]), "line 28", "write the manifest again"),
    "no test patch": (unvouched(lambda lines: [line for line in lines if "test" not in line]), "holds no test patch"),
    "test before training": (unvouched(lambda lines: [lines[0], *lines[:0:-1]]), "put those first"),
}


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
    "a fraction": ("t.csv", lambda lines: [*lines[:-1], "x,1.0\n"], "line 12: scan is '1.0'"),
    "a patch twice": ("t.csv", lambda lines: [*lines, lines[1]], "line 13", "line 2 already", "keep one"),
    "no column of scans": ("t.csv", renamed("scan", "class"), "has no column scan", "name the columns"),
    "no column of patches": ("t.csv", renamed("patch_id", "id"), "has no column patch_id"),
    "nothing below the first line": ("t.csv", lambda lines: lines[:1], "holds nothing below its first line"),
    "empty": ("t.csv", lambda lines: [], "an empty file", "give the CSV file that holds the truth"),
    "missing": ("t.csv", lambda lines: None, "no such file or folder", "the truth is a manifest.csv"),
    "UTF-16": ("t.csv", lambda lines: "".join(lines).encode("utf-16"), "is no UTF-8 text", "save the truth as CSV"),
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
    write_synthetic_scans(root / "scans.h5", num_scans=4, patch_size=80, grid=(4, 4), test_patches=(2, 3), seed=10)
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


# Stored results.


def results(change):
    """Changes `results.json`, and not its seal."""

    def changed(folder):
        found = results_of(folder)
        change(found)
        (folder / "results.json").write_text(json.dumps(found, indent=2) + "\n")

    return changed


def row_of(found, **changes):
    found["rows"][0].update(changes)


def eta_p(value):
    """A number in the text that JSON does not know, or that is too large."""

    def changed(folder):
        path = folder / "results.json"
        text = re.sub(r'"eta_p": [\d.]+', f'"eta_p": {value}', path.read_text(), count=1)
        assert value in text
        path.write_text(text)

    return changed


DAMAGED = {
    "half of it": of("results.json", lambda lines: lines[: len(lines) // 2]),
    "empty": of("results.json", lambda lines: []),
    "no JSON": of("results.json", lambda lines: ["rows: 2\n"]),
    "binary": of("results.json", lambda lines: b"\xff\xfe\x00"),
    "a web page": of("results.json", lambda lines: ["<!doctype html>\n"]),
    "a Git-LFS pointer": of("results.json", lambda lines: ["version https://git-lfs.github.com/spec/v1\n"]),
    "a list": of("results.json", lambda lines: ["[]\n"]),
    "null": of("results.json", lambda lines: ["null\n"]),
    "a list around it": of("results.json", lambda lines: ["[", *lines, "]"]),
    "a folder": lambda folder: folder_instead(folder / "results.json"),
    "without rows": results(lambda found: found.pop("rows")),
    "rows of text": results(lambda found: found.update(rows=["cnn"])),
    "rows of nothing": results(lambda found: found.update(rows=None)),
    "another version": results(lambda found: found.update(schema_version=99)),
    "no version": results(lambda found: found.pop("schema_version")),
    "a version before": results(lambda found: found.update(schema_version=3)),
    "eta_p raised": results(lambda found: row_of(found, eta_p=1.0)),
    "eta_p not a number": eta_p("NaN"),
    "eta_p infinite": eta_p("-Infinity"),
    "eta_p beyond numbers": eta_p("1e999"),
    "eta_p gone": results(lambda found: row_of(found, eta_p=None)),
    "another seed": results(lambda found: found["config"].update(seed=7)),
    "another rule": results(lambda found: found["data"]["rules"].update(homogeneity=0.5)),
    "no mark of synthetic scans": results(lambda found: found["data"].update(synthetic=False)),
    "another digest of predictions": results(lambda found: row_of(found, predictions_sha256="0" * 64)),
    "a row twice": results(lambda found: found["rows"].append(found["rows"][0])),
    "a row less": results(lambda found: found["rows"].pop()),
    "a note less": results(lambda found: found["notes"].pop()),
    "pictures elsewhere": results(lambda found: found["pictures"][0].update(file="../../secret.png")),
}


def command(name, folder, run, scans, out):
    """One that reads a run, with an earlier result of its own to keep."""
    match name:
        case "report":
            return ask("report", folder)
        case "report as text":
            return ask("report", folder, "--format", "csv", "--out", out / "table.csv")
        case "compare":
            return ask("compare", run, folder, "--out", out / "comparison.json")
        case "compare with":
            return ask("compare", folder, run, "--out", out / "comparison.json")
        case "predict":
            return ask("predict", folder / ROW, scans, "--cache", out / "cache", "--out", out / "predicted.csv")
        case "table":
            return table(folder, scans)


READERS = ("report", "report as text", "compare", "compare with", "predict", "table")


@pytest.mark.fault("records")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_or_edited_results_are_refused_by_name(run, copy, scans, tmp_path, kind, reader):
    for name in ("report.html", "report.analysis.json"):
        (copy / name).write_text("the one before")
    for name in ("table.csv", "comparison.json", "predicted.csv"):
        (tmp_path / name).write_text("the one before")
    DAMAGED[kind](copy)
    with nothing_changes(tmp_path, run):
        ended = command(reader, copy, run, scans, tmp_path)
    line = refused(ended, copy / "results.json")
    assert re.search("anew|again|newer|--fresh|check the path", line)
    assert ended.shown == ""


@pytest.mark.fault("records")
@pytest.mark.parametrize("reader", ["report", "compare", "predict"])
def test_without_results_there_is_no_run(run, copy, scans, tmp_path, reader):
    (copy / "results.json").unlink()
    with nothing_changes(tmp_path, run):
        refused(command(reader, copy, run, scans, tmp_path), copy / "results.json", "no such file", "kimiajax table")


@pytest.mark.fault("records")
@pytest.mark.parametrize("way", ["without its results", "--fresh over edited ones", "--fresh over half of them"])
def test_the_table_is_the_same_when_it_is_computed_again(run, copy, scans, way):
    flags = () if way == "without its results" else ("--fresh",)
    damages = {
        "without its results": lambda folder: (folder / "results.json").unlink(),
        "--fresh over edited ones": DAMAGED["eta_p raised"],
        "--fresh over half of them": DAMAGED["half of it"],
    }
    damages[way](copy)
    assert table(copy, scans, *flags).status == 0
    assert without_times(copy) == without_times(run)


PARTS = {  # damage of another of a run's files -> how, and what the line says beside the run's folder
    "predictions edited": (of(PREDICTIONS, guessing(3)), f"{PREDICTIONS}: was changed since results.json", MENDS),
    "predictions swapped": (
        of(PREDICTIONS, lambda lines: [lines[0], lines[2], lines[1], *lines[3:]]),
        f"{PREDICTIONS}: was changed since results.json",
        MENDS,
    ),
    "a prediction less": (of(PREDICTIONS, lambda lines: lines[:-1]), f"{PREDICTIONS}: was changed since", MENDS),
    "predictions in other lines": (
        of(PREDICTIONS, lambda lines: [line.replace("\n", "\r\n") for line in lines]),
        f"{PREDICTIONS}: was changed since",
        MENDS,
    ),
    "no predictions": (of(PREDICTIONS, lambda lines: None), f"{PREDICTIONS}: "),
    "empty predictions": (of(PREDICTIONS, lambda lines: []), f"{PREDICTIONS}: "),
    "predictions of another row": (
        lambda folder: shutil.copy(folder / "predictions/floor_histogram.csv", folder / PREDICTIONS),
        f"{PREDICTIONS}: was changed since",
        MENDS,
    ),
    **{f"manifest: {kind}": MANIFESTS[kind] for kind in MANIFESTS if kind not in ("missing", "a folder")},
    "manifest: edited as meant": (unvouched(lambda lines: lines[:2] + lines[3:]), "manifest.csv is not the one"),
    "manifest: missing": (of("manifest.csv", lambda lines: None), "manifest.csv: No such file", "a manifest is"),
}


@pytest.mark.fault("records")
@pytest.mark.parametrize("reader", ["report", "compare"])
@pytest.mark.parametrize("kind", PARTS)
def test_a_damaged_part_of_a_run_is_refused_by_name(run, copy, scans, tmp_path, kind, reader):
    change, *words = PARTS[kind]
    (copy / "report.html").write_text("the one before")
    change(copy)
    with nothing_changes(tmp_path, run):
        refused(command(reader, copy, run, scans, tmp_path), copy, *words)


@pytest.mark.fault("records")
@pytest.mark.parametrize("kind", list(PARTS))
def test_the_same_table_mends_a_damaged_part(run, copy, scans, kind):
    change, *_ = PARTS[kind]
    change(copy)
    assert table(copy, scans).status == 0
    assert without_times(copy) == without_times(run)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    """A made-up run of three seeds."""
    folder = tmp_path_factory.mktemp("seeded") / "run"
    manifest, rng = manifest_of([6, 5, 7]), np.random.default_rng(2)
    labels = manifest.labels("test")
    rows = {row: np.stack([predictions_of(rng, labels, 3, 0.6) for _ in range(3)]) for row in ("cnn", "floor_lbp")}
    write_run(folder, manifest, rows, seeds=3)
    assert ask("report", folder, "--format", "csv").status == 0
    return folder


def another_seed(folder):
    """The middle seed, of other predictions than its summary is of."""
    manifest = manifest_of([6, 5, 7])
    guess = (manifest.labels("test") + 1) % 3
    shutil.rmtree(folder / "seed-1")
    write_run(folder / "seed-1", manifest, {"cnn": guess, "floor_lbp": guess}, seed=1)


def other_patches(folder):
    manifest = manifest_of([6, 5, 8])
    guess = manifest.labels("test")
    shutil.rmtree(folder / "seed-1")
    write_run(folder / "seed-1", manifest, {"cnn": guess, "floor_lbp": guess}, seed=1)


def fewer_rows(folder):
    manifest = manifest_of([6, 5, 7])
    shutil.rmtree(folder / "seed-1")
    write_run(folder / "seed-1", manifest, {"floor_lbp": manifest.labels("test")}, seed=1)


SEEDS = {
    "a seed is missing": (lambda folder: shutil.rmtree(folder / "seed-1"), "seed-1/results.json: no such file"),
    "a seed without results": (of("seed-1/results.json", lambda lines: None), "seed-1/results.json: no such file"),
    "half of a seed's results": (
        of("seed-1/results.json", lambda lines: lines[:20]),
        "seed-1/results.json: no results",
    ),
    "a seed's results edited": (
        lambda folder: results(lambda found: row_of(found, eta_p=1.0))(folder / "seed-1"),
        "seed-1/results.json",
    ),
    "a seed without its manifest": (of("seed-1/manifest.csv", lambda lines: None), "seed-1/manifest.csv: No such"),
    "a seed's manifest edited": (
        of("seed-1/manifest.csv", lambda lines: lines[:-1]),
        "seed-1/manifest.csv: was edited",
    ),
    "a seed without predictions": (
        of("seed-1/predictions/cnn.csv", lambda lines: None),
        "seed-1/predictions/cnn.csv: No",
    ),
    "a seed's predictions edited": (
        of("seed-2/predictions/cnn.csv", lambda lines: lines[:-1]),
        "seed-2/predictions/cnn",
    ),
    "a seed computed again otherwise": (another_seed, "results.json: eta_p of cnn is", MENDS),
    "a seed of other patches": (other_patches, "seed-0 and seed-1 were tested on other patches", "give one of them"),
    "a seed of fewer rows": (fewer_rows, "seed-1: lacks the row cnn", MENDS),
    "the summary edited": (results(lambda found: row_of(found, eta_p_sd=0.0)), "results.json: was changed"),
    "the summary missing": (of("results.json", lambda lines: None), "results.json: no such file"),
}


@pytest.mark.fault("records")
@pytest.mark.parametrize("reader", ["report", "compare"])
@pytest.mark.parametrize("kind", SEEDS)
def test_a_run_of_several_seeds_is_refused_where_one_is_damaged(seeded, scans, tmp_path, kind, reader):
    change, *words = SEEDS[kind]
    folder = shutil.copytree(seeded, tmp_path / "run")
    (folder / "report.html").write_text("the one before")
    change(folder)
    with nothing_changes(tmp_path, seeded):
        refused(command(reader, folder, seeded, scans, tmp_path), folder, *words)


@pytest.mark.fault("records")
@pytest.mark.parametrize(
    "what",
    ["the run", "a row of no kind", "a row that is not", "a damaged row", "a missing row", "another row's arrays"],
)
def test_what_a_row_cannot_be_predicted_with_is_named(copy, scans, tmp_path, what):
    row, *words = {
        "the run": (copy, "is a run; give one of its rows"),
        "a row of no kind": (copy / "rows", "has no finished row 'rows'", "it has floor_mean_sd"),
        "a row that is not": (copy / "cnn", "has no finished row 'cnn'"),
        "a damaged row": (copy / ROW, f"checkpoints/{ROW}", "computes it again"),
        "a missing row": (copy / ROW, f"checkpoints/{ROW}: is missing", "computes it again"),
        "another row's arrays": (copy / ROW, f"checkpoints/{ROW}: was changed since", "computes it again"),
    }[what]
    learnt = copy / "checkpoints" / ROW
    if what in ("a missing row", "another row's arrays"):
        shutil.rmtree(learnt)
    if what == "another row's arrays":
        shutil.copytree(copy / "checkpoints/floor_histogram", learnt)
    if what == "a damaged row":
        for path in learnt.rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:-1])
    out = tmp_path / "predicted.csv"
    out.write_text("the one before")
    with nothing_changes(tmp_path):
        refused(ask("predict", row, scans, "--cache", tmp_path / "cache", "--out", out), *words)


# Pictures of a run.


@pytest.fixture
def undrawn(monkeypatch):
    """Figures without their drawings, which take most of a report's time."""
    monkeypatch.setattr(figures, "_svg", lambda canvas: b"<svg/>")


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """A made-up run with pictures of scans and of nearest patches, which are two of one query."""
    folder = tmp_path_factory.mktemp("pictured") / "run"
    manifest, rng = manifest_of([6, 5, 7]), np.random.default_rng(2)
    write_run(folder, manifest, {"nn_vgg16_cosine": predictions_of(rng, manifest.labels("test"), 3, 0.6)})
    Image.new("L", (9, 9), 7).save(folder / "pictures/scans/scan-1.png")  # unlike the others
    return folder


def rewritten(path, change):
    path.write_bytes(change(path.read_bytes()))


def flipped(content):
    """A byte of the pixels, flipped."""
    place = content.index(b"IDAT") + 6
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def linked_out(path):
    """Puts the picture elsewhere, and a link to it in its place."""
    path.rename(path.parents[3] / "elsewhere.png")
    path.symlink_to("../../../elsewhere.png")


LOST = {
    "missing": lambda path: path.unlink(),
    "a folder": folder_instead,
    "empty": lambda path: rewritten(path, lambda content: b""),
    "half of it": lambda path: rewritten(path, lambda content: content[: len(content) // 2]),
    "without its end": lambda path: rewritten(path, lambda content: content[:-12]),
    "a bit flipped": lambda path: rewritten(path, flipped),
    "a web page": lambda path: path.write_text("<!doctype html><script>alert(1)</script>"),
    "an SVG": lambda path: path.write_text('<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'),
    "a Git-LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "a JPEG": lambda path: Image.new("L", (8, 8)).save(path, format="JPEG"),
    "a bomb": lambda path: Image.new("1", (10_000, 10_000)).save(path, format="PNG"),
    "a link out of the run": linked_out,
}


@pytest.mark.fault("records")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", LOST)
def test_a_lost_picture_is_left_out_and_named_in_the_report(pictured, tmp_path, undrawn, kind):
    folder = shutil.copytree(pictured, tmp_path / "run")
    lost = folder / "pictures/scans/scan-1.png"
    LOST[kind](lost)
    ended = ask("report", folder)
    assert (ended.status, ended.said) == (0, "")
    page = Page((folder / "report.html").read_text())
    assert page.says("Missing or damaged pictures are left out: pictures/scans/scan-1.png.")
    assert [image["alt"] for image in page.pictures("Training patch")] == [
        f"Training patch x of scan {k}" for k in (0, 2)
    ]
    if lost.is_file() and kind != "empty":
        assert base64.b64encode(lost.read_bytes()).decode() not in (folder / "report.html").read_text()


@pytest.mark.fault("records")
@pytest.mark.parametrize("rank", [0, 1])
def test_neighbours_are_shown_with_their_query_or_not_at_all(pictured, tmp_path, undrawn, rank):
    folder = shutil.copytree(pictured, tmp_path / "run")
    assert ask("report", folder).status == 0
    whole = Page((folder / "report.html").read_text())
    assert len(whole.pictures("Query")) == 1
    assert len(whole.pictures("Neighbour")) == 2
    assert not whole.says("Missing or damaged")
    (folder / f"pictures/nn_vgg16_cosine/{rank}.png").unlink()
    assert ask("report", folder).status == 0
    page = Page((folder / "report.html").read_text())
    assert len(page.pictures("Query")) == len(page.pictures("Neighbour")) == rank
    assert page.says(f"left out: pictures/nn_vgg16_cosine/{rank}.png.")


@pytest.mark.fault("records")
@pytest.mark.parametrize("file", ["../secret.png", "pictures/../../secret.png", "{tmp}/secret.png", "pictures/.x.png"])
def test_a_picture_from_outside_the_run_is_refused_even_where_the_program_wrote_so(pictured, tmp_path, file):
    folder = shutil.copytree(pictured, tmp_path / "run")
    shutil.copy(folder / "pictures/scans/scan-1.png", tmp_path / "secret.png")
    reseal(folder, lambda found: found["pictures"][1].update(file=file.format(tmp=tmp_path)))
    with nothing_changes(tmp_path):
        refused(ask("report", folder), folder / "results.json", "pictures[1].file", "run it anew")


# Where reports and records go.


def writing(name, run, out):
    """A command that writes a file, and the files that it writes."""
    match name:
        case "report":
            return ("report", run, "--out", out / "r.html"), ("r.html", "r.analysis.json")
        case "report as text":
            return ("report", run, "--format", "latex", "--out", out / "r.tex"), ("r.tex",)
        case "score":
            return ("score", run / PREDICTIONS, "--truth", run, "--out", out / "s.json"), ("s.json",)
        case "compare":
            return ("compare", run, run, "--out", out / "c.json"), ("c.json",)


WRITERS = ("report", "report as text", "score", "compare")


@pytest.mark.fault("records")
@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_in_the_place_of_a_file_is_named_before_any_work(run, tmp_path, name):
    arguments, (file, *_) = writing(name, run, tmp_path)
    (tmp_path / file).mkdir()
    with nothing_changes(tmp_path, run):
        ended = ask(*arguments)
    refused(ended, f"--out {tmp_path / file}: is a folder; name the file")
    assert ended.shown == ""


@pytest.mark.fault("records")
def test_a_folder_in_the_place_of_the_runs_own_report_is_named(copy):
    (copy / "report.html").mkdir()
    with nothing_changes(copy):
        refused(ask("report", copy), copy / "report.html", "is a folder; name the file")


@pytest.mark.fault("records")
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_in_the_place_of_a_folder_is_named(run, tmp_path, undrawn, name):
    (tmp_path / "file").write_text("x")
    arguments, _ = writing(name, run, tmp_path / "file")
    with nothing_changes(tmp_path, run):
        refused(ask(*arguments), tmp_path / "file", "check the path")


@pytest.mark.fault("records")
@pytest.mark.parametrize("name", WRITERS)
def test_missing_folders_are_made(run, tmp_path, undrawn, name):
    arguments, files = writing(name, run, tmp_path / "a" / "b")
    assert ask(*arguments).status == 0
    assert sorted(files_of(tmp_path)) == sorted(f"a/b/{file}" for file in files)


def failing(code, before=""):
    """A method of paths that fails as a disk does, after it wrote this."""

    def fail(self, *arguments, **options):
        if before:
            with self.open("w") as file:
                file.write(before)
        raise OSError(code, os.strerror(code), str(self))

    return fail


@pytest.mark.fault("records")
@pytest.mark.parametrize("fault", ["a full disk", "no room for a rename", "a read-only disk", "a read-only folder"])
@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_leaves_the_one_before(run, tmp_path, undrawn, monkeypatch, name, fault):
    arguments, files = writing(name, run, tmp_path)
    for file in files:
        (tmp_path / file).write_text("the one before")
    method, fails = {
        "a full disk": ("write_text", failing(errno.ENOSPC, "half")),
        "no room for a rename": ("replace", failing(errno.ENOSPC)),
        "a read-only disk": ("write_text", failing(errno.EROFS)),
        "a read-only folder": ("write_text", failing(errno.EACCES)),
    }[fault]
    with nothing_changes(tmp_path, run):
        with monkeypatch.context() as patched:
            patched.setattr(Path, method, fails)
            ended = ask(*arguments)
        refused(ended, tmp_path, "check the path, its permissions and space")
    assert ask(*arguments).status == 0
    assert all((tmp_path / file).read_text() != "the one before" for file in files)


@pytest.mark.fault("records")
def test_a_report_and_its_figures_are_written_both_or_neither(run, tmp_path, undrawn, monkeypatch):
    arguments, files = writing("report", run, tmp_path)
    for file in files:
        (tmp_path / file).write_text("the one before")
    write_text, written = Path.write_text, []

    def second_fails(self, *arguments, **options):
        written.append(self)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write_text(self, *arguments, **options)

    with nothing_changes(tmp_path), monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", second_fails)
        refused(ask(*arguments), tmp_path, "check the path")
    assert len(written) == 2


# Names that a page, a terminal or a paper might obey.


class Page(HTMLParser):
    """A page: its elements with the names of their attributes, what stands in them, and what a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.values, self.images, self.words = [], [], [], []
        self.feed(text)
        self.close()
        self.text = " ".join(" ".join([*self.words, *(image["alt"] for image in self.images)]).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, tuple(name for name, _ in attributes)))
        self.values += attributes
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data):
        self.words.append(data)

    def handle_comment(self, data):
        self.elements.append(("comment", data))

    def says(self, words):
        return " ".join(words.split()) in self.text

    def pictures(self, called):
        return [image for image in self.images if image["alt"].startswith(called)]


def assert_harmless(page):
    """No script, no address but those of the page and of what it holds, and no event."""
    assert not {"script", "iframe", "object", "embed", "form", "base", "svg", "link"} & {
        tag for tag, *_ in page.elements
    }
    for name, value in page.values:
        assert not name.startswith("on")
        if name in ("src", "href", "action", "formaction", "srcset", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,", "data:image/svg+xml;base64,"))


LINK = "{http://www.w3.org/1999/xlink}href"
DRAWN = {"svg", "g", "use", "path", "defs", "clipPath", "rect", "image", "style", "metadata"}
DRAWN |= {"RDF", "Work", "type", "format", "creator", "Agent", "title"}  # of what the metadata say


def drawings(page):
    """The page's figures, as XML."""
    sources = [image["src"].partition(",")[2] for image in page.images if "svg" in image["src"][:20]]
    return [ElementTree.fromstring(base64.b64decode(source)) for source in sources]


HOSTILE = {
    "a script": "<script>alert(1)</script>",
    "an attribute": '"><img src=x onerror=alert(1)>',
    "an apostrophe": "' onmouseover='alert(1)",
    "a template": "{{ 7*7 }}{% raw %}{# x #}",
    "an address": "javascript:alert(1)",
    "an end": "</style></title></p><!--",
    "entities": "&lt;b&gt;&amp;&#60;i&#62;",
    "a formula": r"$\frac{1}{0$ ^_{x}",
    "markup": "[red]x[/red] :smile: `*a*` |",
}
UNSEEN = {  # what steers a terminal, or turns the reading around -> how it is shown
    "an escape": ("\x1b[31m\x1b]0;x\x07", r"\x1b[31m\x1b]0;x\x07"),
    "a reading turned around": ("a\u202eb\u2066", r"a\u202eb\u2066"),
    "a control of eight bits": ("\x9b31m", r"\x9b31m"),
    "nothing": ("a\x00b", r"a\x00b"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A made-up run with a row of each kind, one of which failed."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    manifest, rng = manifest_of([6, 5, 7]), np.random.default_rng(2)
    names = ("fe_vgg16", "floor_lbp", "nn_vgg16_cosine")
    rows = {name: predictions_of(rng, manifest.labels("test"), 3, 0.6) for name in names}
    audit = {"verdict": "FAILED", "failed": ["x"], "date": "2026-01-01", "kimiajax": "0.1.0"}
    write_run(folder, manifest, {**rows, "tl_vgg16": None}, audit=audit)
    return folder


def say_everywhere(results, text):
    """Puts a text, and behind it where it stands, wherever a stored run holds text; returns what then stands there."""
    said = []

    def say(place):
        said.append(f"{text} {place}")
        return said[-1]

    results["preset"] = say("preset")
    results["notes"] = [say("note")]
    results["environment"][say("fact")] = say("environment")
    results["config"] |= {"scans": say("scans"), say("setting"): say("config")}
    lineage = {
        "source": say("source of weights"),
        "digest": say("digest"),
        "parent": {"source": say("parent"), "digest": say("first")},
    }
    results["weights"] = {say("network"): lineage}
    data = results["data"]
    data |= {"source": say("source"), "kind": say("kind"), "names": [say(f"scan {k}") for k in range(data["scans"])]}
    data["rules"] = {say("rule"): say("its value")}
    data["audit"] |= {"verdict": say("verdict"), "failed": [say("check")], "date": say("date")}
    for picture in results["pictures"]:
        picture["patch_id"] = say(f"sample {picture['scan']}")
    for row in results["rows"]:
        row["weights"] = say(f"weights of {row['name']}")
        if LABEL(text) and row["family"] != "retrieval":  # which are called by their distance, too
            row["approach"] = say(row["name"])
        if row["family"] == "retrieval":
            row["scheme"] = say("distance") if LABEL(text) else row["scheme"]
            row["retrieval"]["recall_at"] = {say("k"): 0.5}
            for picture in row["pictures"]:
                picture |= {"patch_id": say(f"neighbour {picture['rank']}"), "query": text}
        if row["name"] == "fe_vgg16":
            about = {"file": results["pictures"][0]["file"], "scan": 0}
            heat = {"kind": "grad-cam", "layer": say("layer"), "cells": [3, 3], "evidence": False, "predicted": 1}
            row["pictures"] = [
                {**about, "kind": "patch", "patch_id": say("explained")},
                {**about, **heat, "patch_id": say("heat")},
            ]
    return said


def told(plain, folder, text):
    """A run that says a text everywhere, and what it then says."""
    shutil.copytree(plain, folder)
    said = []
    reseal(folder, lambda results: said.extend(say_everywhere(results, text)))
    return said


@functools.cache
def harmless(plain):
    """The elements of a page of the same run that says nothing unusual."""
    folder = plain.parent / "harmless"
    told(plain, folder, "harmless")
    assert ask("report", folder).status == 0
    return Page((folder / "report.html").read_text()).elements


@pytest.mark.fault("markup")
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_a_run_says_is_text_in_its_report(plain, tmp_path, undrawn, kind):
    said = told(plain, tmp_path / "run", HOSTILE[kind])
    ended = ask("report", tmp_path / "run")
    assert (ended.status, ended.said) == (0, "")
    page = Page((tmp_path / "run/report.html").read_text(encoding="utf-8"))
    assert [words for words in said if not page.says(words)] == []
    assert page.elements == harmless(plain)
    assert_harmless(page)


@pytest.mark.fault("markup")
@pytest.mark.parametrize(
    "kinds", [("a script", "an address", "an end"), ("an apostrophe", "entities", "a script")], ids="-".join
)
def test_names_of_rows_are_text_in_figures(plain, tmp_path, kinds):
    def change(results):
        for row, kind in zip(results["rows"], kinds):
            row["approach"] = HOSTILE[kind]

    folder = shutil.copytree(plain, tmp_path / "run")
    reseal(folder, change)
    ended = ask("report", folder)
    assert (ended.status, ended.said) == (0, "")
    page = Page((folder / "report.html").read_text())
    assert all(page.pictures(f"Confusion matrix of {HOSTILE[kind]}") for kind in kinds[:2])
    drawn = [element for drawing in drawings(page) for element in drawing.iter()]
    assert len(drawn) > 1000
    assert {element.tag.partition("}")[2] for element in drawn} <= DRAWN
    for element in drawn:
        assert not any(name.startswith("on") for name in element.attrib)
        assert element.get(LINK, "#").startswith(("#", "data:image/png;base64,"))


@pytest.mark.fault("markup")
@pytest.mark.parametrize(
    "name", ["$x^$", "{{ 7 }}", '"><b>', "`a`", "a\nb", "\x1b[31m", "\u202e", "\udcff", "a" * 99, ""]
)
def test_a_rows_name_that_no_figure_can_show_is_refused(plain, tmp_path, name):
    folder = shutil.copytree(plain, tmp_path / "run")
    reseal(folder, lambda results: results["rows"][0].update(approach=name))
    with nothing_changes(tmp_path):
        refused(ask("report", folder), folder / "results.json", "run it anew")


@pytest.mark.fault("markup")
@pytest.mark.parametrize("kind", ["a script", "an attribute", "a template", "entities"])
def test_why_a_row_failed_is_text_in_the_report(plain, tmp_path, undrawn, kind):
    def change(results):
        results["data"]["audit"] = None  # which would be the stronger reason
        next(row for row in results["rows"] if row["failure"])["failure"] = HOSTILE[kind]

    folder = shutil.copytree(plain, tmp_path / "run")
    reseal(folder, change)
    assert ask("report", folder).status == 0
    page = Page((folder / "report.html").read_text())
    assert page.says(f"TL-VGG16 has no accuracy: {HOSTILE[kind]}")
    assert_harmless(page)


@pytest.mark.fault("markup")
@pytest.mark.parametrize("kind", UNSEEN)
def test_what_steers_a_terminal_or_turns_text_around_is_shown_as_its_escape(plain, tmp_path, undrawn, kind):
    text, shown = UNSEEN[kind]
    said = told(plain, tmp_path / "run", text)
    ended = ask("report", tmp_path / "run")
    assert (ended.status, ended.said) == (0, "")
    content = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    page = Page(content)
    assert [words for words in said if not page.says(words.replace(text, shown))] == []
    assert page.elements == harmless(plain)
    assert text not in content
    assert ask("report", tmp_path / "run", "--format", "csv", "--out", tmp_path / "out").status == 0
    written = [(tmp_path / "out").read_text(encoding="utf-8")]
    written += [ask("report", tmp_path / "run", "--format", format).shown for format in ("csv", "markdown", "latex")]
    assert all(shown in content for content in written[:2])
    for content in written:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", content)


@pytest.mark.fault("markup")
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_a_run_says_is_text_in_markdown(plain, tmp_path, kind):
    said = told(plain, tmp_path / "run", HOSTILE[kind] + "\n\n# x")
    ended = ask("report", tmp_path / "run", "--format", "markdown")
    assert ended.status == 0
    page = Page(MarkdownIt("commonmark").enable("table").render(ended.shown))
    tags = ["p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ol", "li"]
    assert {tag for tag, *_ in page.elements} <= set(tags)
    for place in (" check", " preset", " note", " weights of floor_lbp"):
        words = next(words for words in said if words.endswith(place))
        assert page.says(words)


@pytest.mark.fault("markup")
@pytest.mark.parametrize(
    "text", [r"\input{/etc/passwd}", "a\x1bb", "x\n\\input{/etc/passwd}", "100 % & {$x^2$ ~ #_}", "x\r\\end{tabular}"]
)
def test_what_a_run_says_is_text_in_latex(plain, tmp_path, text):
    told(plain, tmp_path / "run", text)
    ended = ask("report", tmp_path / "run", "--format", "latex")
    assert ended.status == 0
    comments = [line for line in ended.shown.splitlines() if line.startswith("% ")]
    lines = [line for line in ended.shown.splitlines() if not line.startswith("% ")]
    assert any("note" in line for line in comments)
    assert lines[0] == r"\begin{tabular}{lrrrr}"
    commands = set(re.findall(r"\\([A-Za-z]+|.)", "\n".join(lines)))
    ours = {"begin", "end", "toprule", "midrule", "bottomrule", "multicolumn", "emph", "eta", "mathrm", "\\"}
    assert commands <= {*ours, *"&%$#_{}", "textbackslash", "textasciicircum", "textasciitilde"}
    assert sum(line.startswith(r"\end{tabular}") for line in lines) == 1
    assert any(line.startswith(r"\multicolumn") and "AUDIT FAILED" in line and "check" in line for line in lines)


@pytest.mark.fault("markup")
@pytest.mark.parametrize("kind", ["markup", "a script"])
def test_names_of_folders_are_text_on_a_terminal(pictured, tmp_path, undrawn, kind):
    text = HOSTILE[kind].replace("/", "") + "\x1b[31m\udcff"
    seen = text.replace("\x1b", r"\x1b").replace("\udcff", r"\udcff")
    folder = shutil.copytree(pictured, tmp_path / text)
    for arguments in (
        ("compare", folder, folder),
        ("score", folder / "predictions/nn_vgg16_cosine.csv", "--truth", folder),
    ):
        ended = ask(*arguments)
        assert ended.status == 0
        assert "\x1b" not in ended.shown
        assert seen in "".join(ended.shown.splitlines())
    assert ask("report", folder).status == 0
    page = Page((folder / "report.html").read_text())
    assert page.says(seen)
    assert_harmless(page)


NAME = "<img src=x onerror=alert(1)> {{ 7*7 }} [red] $x^$ :x:"
STEERING = f"{NAME} \x1b[31m \u202e"
SEEN = NAME + r" \x1b[31m \u202e"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images by scan, with names that a page, a formula or a terminal might obey."""
    root, rng = tmp_path_factory.mktemp("images") / "[red] :x: \x1b[31m", np.random.default_rng(4)
    for split, count in (("train", 3), ("test", 2)):
        for scan in range(2):
            folder = root / split / f"s{scan}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(20 + 100 * scan, 90 + 100 * scan, (32, 32), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{NAME} {number}.png")
    return root


@pytest.mark.fault("markup")
def test_names_of_images_are_text_in_the_report_of_a_real_run(images, tmp_path):
    run = tmp_path / "run"
    ended = table(run, images, rows=[ROW])
    assert ended.status == 0
    assert r"[red] :x: \x1b[31m" in ended.shown
    assert "\x1b" not in ended.shown
    assert ask("report", run).status == 0
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert_harmless(page)
    found = [image["alt"] for image in page.pictures("Training patch")]
    assert found == [f"Training patch train/s{scan}/{NAME} 1 of scan {scan}" for scan in range(2)]
    out = tmp_path / "predicted.csv"
    ended = ask("predict", run / ROW, images, "--split", "test", "--cache", tmp_path / "cache", "--out", out)
    assert ended.status == 0
    assert f"test/s0/{NAME} 0" in " ".join(ended.shown.split())
    scored = ask("score", out, "--truth", run)
    assert scored.status == 0, scored


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A prepared data set whose classes have such names."""
    root, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(3)
    kinds = {**foreign_sets.COLOUR, "label": foreign_sets.kinds.ClassLabel(names=[f"{STEERING} {k}" for k in range(3)])}
    examples = foreign_sets.colours(rng, count=5)
    foreign_sets.prepare(root, {"train": examples}, features=kinds)
    return root


@pytest.mark.fault("markup")
def test_names_of_classes_are_text_in_the_report_of_a_real_run(labelled, tmp_path):
    run, flags = tmp_path / "run", ("--data-dir", labelled, "--test-patches-per-scan", 2)
    assert table(run, "foreign", *flags, rows=[ROW], source="--dataset").status == 0
    assert results_of(run)["data"]["names"] == [f"{STEERING} {k}" for k in range(3)]
    assert ask("report", run).status == 0
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert_harmless(page)
    assert page.says(", ".join(f"{SEEN} {k}" for k in range(3)))
    Image.new("L", (8, 8), 120).save(tmp_path / "x.png")
    ended = ask("predict", run / ROW, tmp_path / "x.png", "--cache", tmp_path / "cache")
    assert ended.status == 0
    assert not set("\x1b\u202e") & set(ended.shown)
    assert all(word in ended.shown for word in SEEN.split()), ended.shown


@pytest.mark.fault("markup")
def test_names_of_slides_are_text_on_a_terminal(tmp_path):
    (tmp_path / "slides").mkdir()
    write_slide(tmp_path / "slides" / "[red]a\x1b[31m.tif", draw(0))
    ended = ask("data", "explain", "--scans", tmp_path / "slides", "--patch-size", 64, "--cache", tmp_path / "cache")
    assert ended.status == 0, ended
    assert r"[red]a\x1b[31m" in ended.shown
    assert "\x1b" not in ended.shown


@pytest.mark.fault("markup")
@pytest.mark.parametrize("name", ["../../../../evil", "x/../../../../evil", "../s1/evil"])
def test_a_patchs_name_never_leads_out_of_a_folder_that_is_written(scans, run, tmp_path, name):
    """Through a manifest by hand, whose patches are cut at their places whatever they are called."""
    for file in ("manifest.csv", "manifest.json"):
        shutil.copy(run / file, tmp_path / file)
    unvouched(lambda lines: [lines[0], f"train/s0/{name}{lines[1][lines[1].index(',') :]}", *lines[2:]])(tmp_path)
    asked = ("data", "export", "--scans", scans, "--manifest", tmp_path / "manifest.csv", "--cache", tmp_path / "cache")
    out = tmp_path / "a" / "b"
    with nothing_changes(tmp_path):
        ended = ask(*asked, "--out", out)
    refused(ended, "cannot be exported: names have to begin with train/s0/")
    assert not out.exists()


@pytest.mark.fault("markup")
def test_names_of_pictures_are_names_of_files():
    ids = [
        "../../evil.png",
        "/etc/passwd",
        "..",
        "a/../b.PNG",
        "A/../b.png",
        "\x1b[31m",
        "<script>",
        "C:\\x",
        "",
        "a" * 999,
    ]
    names = file_names(ids)
    assert len({name.lower() for name in names}) == len(ids)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9-][A-Za-z0-9._-]{0,199}", name)
