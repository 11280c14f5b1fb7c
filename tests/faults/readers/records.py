"""Manifests, predictions, truths and the records of runs."""

import hashlib
import json
from zlib import crc32

import numpy as np
from support.stored_runs import manifest_of, predictions_of, write_run

from faults.readers.fuzzing import BLOWS, NUMBERS, VALUES, anywhere, as_text, asked, chooser, damaged, fuzz, remake
from kimiajax.data.manifest import MOST_SCANS, header_of, read_manifest
from kimiajax.evaluation.analysis import analyse
from kimiajax.evaluation.compare import compare_runs
from kimiajax.evaluation.stored import read_run
from kimiajax.io.json_records import sealed
from kimiajax.report.formats import FORMATS
from kimiajax.report.html import write_report
from kimiajax.report.table import render_table
from kimiajax.runs.predictions import join, read_predictions, read_truth
from kimiajax.runs.reader import rerun
from kimiajax.runs.warnings import marks_of, warnings_of

LINES = """patch_id,scan,row,col,split,homogeneity,sha256
train/s0/0_0,0,0,0,train,0.250000,{0}
train/s1/8_0,1,8,0,train,,
"train/s1/8,8",1,8,8,train,1,
test/s0/0,0,,,test,0.000001,{0}
test/s1/1,1,,,test,,
""".format("0123456789abcdef" * 4)
HEADER = {
    "format": 1,
    "patch_size": 8,
    "scans": 2,
    "patches": {"train": 3, "test": 2},
    "csv_sha256": None,
    "source": {"path": "scans.h5", "bytes": 9},
    "synthetic": False,
    "unverified": None,
    "names": ["s0", "s1"],
    "rules": {"background": 220, "grid": "full"},
}


def see_manifest(path):
    """Reads a manifest and all that is made of one, which must hold together."""
    manifest = read_manifest(path)
    assert 1 <= manifest.num_scans <= MOST_SCANS
    assert manifest.patch_size >= 1
    for split in ("train", "test"):
        counts = manifest.counts(split)
        assert len(counts) == manifest.num_scans
        assert sum(counts) == len(manifest.split(split)) > 0
        assert all(0 <= patch.scan < manifest.num_scans for patch in manifest.split(split))
    assert len({patch.patch_id for patch in manifest.patches}) == len(manifest.patches)
    assert all(0 <= (patch.homogeneity or 0) <= 1 and (patch.row or 0) >= 0 for patch in manifest.patches)
    assert isinstance(marks_of(manifest.about), list)
    assert (manifest.about.get("rules") or {}).get("background", 220) >= -1
    again = path.with_name("again.csv")
    again.write_text(manifest.csv, encoding="utf-8", newline="")
    header_of(again).write_text(json.dumps(manifest.header, allow_nan=False, ensure_ascii=False), encoding="utf-8")
    assert read_manifest(again).csv == manifest.csv
    return True


def manifests(folder):
    path = folder / "manifest.csv"
    whole = LINES.encode()
    vouched = hashlib.sha256(whole).hexdigest()
    headers = [json.dumps({**HEADER, "csv_sha256": digest}, indent=2).encode() for digest in (None, vouched)]

    def read(lines, header):
        path.write_bytes(lines)
        header_of(path).write_bytes(header)
        asked(lambda: see_manifest(path), path, header_of(path))

    def made(number):
        choose, header = chooser(number), HEADER
        for _ in range(choose(3)):
            header = anywhere(header, choose, VALUES[choose(len(VALUES))])
        read(remake(LINES, choose), as_text(header, choose))

    return (
        fuzz(lambda blows: read(damaged(blows, [whole, headers[0]]), headers[blows[-1] % 5 == 0]), BLOWS, 4)
        + fuzz(lambda blows: read(whole, damaged(blows, [*headers, whole])), BLOWS, 4)
        + fuzz(made, NUMBERS, 2)
    )


# Predictions, and the truth

GUESSES = "patch_id,predicted,scan,note\n" + "".join(f"test/s{k % 3}/{k},{k % 2},{k % 3},\u00e9\n" for k in range(6))
TRUTH = "patch_id,scan\n" + "".join(f"test/s{k % 3}/{k},{k % 3}\n" for k in range(6))


def predictions(folder):
    path, beside = folder / "guesses.csv", folder / "truth.csv"
    beside.write_text(TRUTH)
    truth = read_truth(beside)

    def see():
        found = read_predictions(path)
        assert found.predicted.dtype == np.int64
        assert 0 <= found.predicted.min() <= found.predicted.max() < MOST_SCANS
        assert len(set(found.patch_ids)) == len(found.predicted)
        joined = join(found, truth)
        assert len(joined) == 6
        assert (joined < truth.num_scans).all()
        return True

    def read(content):
        path.write_bytes(content)
        asked(see, path)

    half = fuzz(lambda blows: read(damaged(blows, [GUESSES.encode(), TRUTH.encode()])), BLOWS, 2)
    return half + fuzz(lambda number: read(remake(GUESSES, chooser(number))), NUMBERS, 2)


def truths(folder):
    path, beside = folder / "truth.csv", folder / "guesses.csv"
    beside.write_text(GUESSES)
    guesses = read_predictions(beside)
    header_of(path).write_text(json.dumps(HEADER))  # which a truth needs that is a manifest

    def see():
        truth = read_truth(path)
        assert 0 <= truth.scans.min() <= truth.scans.max() < truth.num_scans <= MOST_SCANS
        asked(lambda: join(guesses, truth), beside)
        return True

    def read(content):
        path.write_bytes(content)
        asked(see, path, header_of(path))

    whole = [each.encode() for each in (TRUTH, LINES, GUESSES)]
    half = fuzz(lambda blows: read(damaged(blows, whole)), BLOWS, 2)
    return half + fuzz(lambda number: read(remake((TRUTH, LINES)[number % 2], chooser(number // 2))), NUMBERS, 2)


# Results

ROWS = (
    "fe_vgg16",
    "hd_vgg16",
    "tl_vgg16",
    "floor_histogram",
    "nn_vgg16_cosine",
    "fe_vgg16@block3",
    "fe_vgg16@fc1.flat",
)
AUDIT = {"failed": ["leaks"], "verdict": "failed", "date": "2025-11-25", "kimiajax": "0.1.0"}


def runs(folder):
    """Runs of one seed and of two: the content of each `results.json` that a reader is given, by its folder."""
    rng = np.random.default_rng(3)
    manifest = manifest_of([2, 1, 3], trained=1)
    guesses = {row: predictions_of(rng, manifest.labels("test"), 3, 0.6) for row in ROWS}
    results = write_run(folder / "one", manifest, guesses, audit=AUDIT)
    patch = {**results["pictures"][0], "kind": "patch"}
    heat = {**patch, "kind": "grad-cam", "layer": "conv", "cells": [2, 2], "evidence": True, "predicted": 1}
    results["rows"][0]["pictures"] = [patch, heat]
    about = {"source": "runs/x", "digest": "1" * 64, "trained_blocks": ["head"], "run": {"unverified": "all"}}
    results["weights"]["vgg16"] = {**about, "parent": results["weights"]["vgg16"]}
    both = {row: np.stack([guess, guess]) for row, guess in guesses.items()}
    mean = write_run(folder / "two", manifest, both, seeds=2)
    seed = json.loads((folder / "two/seed-1/results.json").read_text())
    return {folder / "one": results, folder / "two": mean, folder / "two/seed-1": seed}


def see_run(folder, luck):
    """Reads a run, and shows it as `kimiajax report` does, with few draws: one of 8 as text, one of 128 as a page."""
    run = read_run(folder)
    assert all(guess.shape == (len(run.seeds), 6) for guess in run.predicted.values())
    assert render_table(run.results)
    assert isinstance(warnings_of(run.seeds), list)
    assert rerun(run.results, {}).startswith("kimiajax table")
    if luck % 8 == 0:
        analysis = analyse(run, draws=20)
        for show in FORMATS.values():
            assert show(run, analysis).encode()
        compare_runs(run, run, draws=20)
        if luck % 128 == 0:
            write_report(run, analysis)
    return True


def results(folder):
    found = runs(folder)
    places = list(found)
    texts = {place: json.dumps({**each, "schema_version": 5}).encode() for place, each in found.items()}

    def read(place, text):
        (place / "results.json").write_bytes(text)
        given = place.parent if place.name == "seed-1" else place
        try:
            asked(lambda: see_run(given, crc32(text)), given)
        finally:
            (place / "results.json").write_bytes(texts[place])

    def made(number):
        choose = chooser(number)
        place = places[max(0, choose(6) - 3)]
        changed = {**found[place], "schema_version": (5, 5, 4, 9)[choose(4)]}  # versions before 6 had no seal
        for _ in range(1 + choose(2)):
            changed = anywhere(changed, choose, VALUES[choose(len(VALUES))])
        if isinstance(changed, dict) and changed.get("schema_version") == 8:
            changed = sealed(changed)
        read(place, as_text(changed, choose))

    for place, text in texts.items():
        (place / "results.json").write_bytes(text)
    half = [fuzz(lambda blows, at=place: read(at, damaged(blows, [texts[at]])), BLOWS, 6) for place in places]
    return sum(half) + fuzz(made, NUMBERS, 2)
