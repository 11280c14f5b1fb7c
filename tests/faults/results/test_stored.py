"""Stored results that are damaged, edited or missing."""

import re
import shutil

import numpy as np
import pytest
from support.stored_runs import manifest_of, predictions_of, write_run

from faults.harness import ask, nothing_changes, refused
from faults.results.planting import (
    MANIFESTS,
    PREDICTIONS,
    ROW,
    folder_instead,
    guessing_otherwise,
    of,
    results,
    results_of,
    table,
    unvouched,
)

MENDS = "the same `kimiajax table` mends it"


def without_times(folder):
    """What a run found, but for how long it took."""
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in results_of(folder)["rows"]]
    return rows, *((folder / name).read_text() for name in ("manifest.csv", "manifest.json", PREDICTIONS))


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
    "predictions edited": (
        of(PREDICTIONS, guessing_otherwise),
        f"{PREDICTIONS}: was changed since results.json",
        MENDS,
    ),
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
