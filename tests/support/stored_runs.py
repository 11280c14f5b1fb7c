"""Runs as `kimiajax table` leaves them, of predictions that a test makes up: nothing is trained."""

import hashlib
from dataclasses import asdict

import numpy as np

from kimiajax import paper
from kimiajax.data.manifest import Manifest, Patch
from kimiajax.evaluation.metrics import kimia_scores
from kimiajax.experiments.config import DEMO
from kimiajax.experiments.feature_rows import Retrieval
from kimiajax.experiments.table1 import all_rows
from kimiajax.io.files import sha256_file
from kimiajax.models.registry import BACKBONES
from kimiajax.runs.layout import SCANS, SCHEMA_VERSION, RunFolder
from kimiajax.runs.pictures import Picture, write_pictures
from kimiajax.runs.seeds import summarise

BLOCKS = {name: list(BACKBONES[name].up_to(BACKBONES[name].features)) for name in ("vgg16", "inception_v3")}
BY_NAME = {row.name: row for row in all_rows()}


def manifest_of(tested, trained=3, pixels="a"):
    """A manifest of so many test patches a scan."""

    def patch(split, scan, number):
        digest = hashlib.sha256(f"{pixels} {split} {scan} {number}".encode()).hexdigest()
        return Patch(f"{split}/s{scan}/{number}", scan, split, homogeneity=0.0, sha256=digest)

    train = [patch("train", scan, number) for scan in range(len(tested)) for number in range(trained)]
    test = [patch("test", scan, number) for scan, count in enumerate(tested) for number in range(count)]
    return Manifest((*train, *test), 8, len(tested), {"rules": {"grid": "full"}})


def predictions_of(rng, scans, num_scans, eta_p):
    """Right with a chance of eta_p, and of any other scan else."""
    other = (scans + rng.integers(1, num_scans, len(scans))) % num_scans
    return np.where(rng.random(len(scans)) < eta_p, scans, other).astype(np.int32)


def write_run(
    folder,
    manifest,
    rows,
    *,
    seed=0,
    seeds=1,
    synthetic=False,
    unverified=None,
    weights="imagenet",
    audit=None,
    **changes,
):
    """Writes a run.

    Args:
        folder: where to.
        manifest: its patches.
        rows: name -> predictions of the test patches, [n], of several seeds [seeds n]; None for a row that failed.
        seed: its first.
        seeds: how many it has.
        synthetic, unverified, weights, audit: what its results say of themselves.
        changes: of `results.json`.
    """
    if seeds == 1:
        return _write(folder, manifest, rows, seed, (synthetic, unverified), weights, audit, changes)
    runs = []
    for number in range(seeds):
        own = {name: guesses[number] for name, guesses in rows.items()}
        runs.append(
            _write(
                folder / f"seed-{seed + number}",
                manifest,
                own,
                seed + number,
                (synthetic, unverified),
                weights,
                audit,
                {},
            )
        )
    results = {**summarise(runs, {**runs[0]["config"], "seeds": seeds}), **changes}
    RunFolder(folder).write_results(results)
    return results


def _write(folder, manifest, rows, seed, marks, weights, audit, changes):
    manifest.write(folder / "manifest.csv")
    entries = [_entry(folder, manifest, BY_NAME[name], guess, weights) for name, guess in rows.items()]
    pixels = np.full((8, 8), 90, np.uint8)
    samples = [Picture(f"scan-{scan}", pixels, {"patch_id": "x", "scan": scan}) for scan in range(manifest.num_scans)]
    lineage = {"source": weights, "digest": hashlib.sha256(weights.encode()).hexdigest(), "parent": None}
    results = {
        "schema_version": SCHEMA_VERSION,
        "complete": True,
        "preset": "demo",
        "config": {**DEMO.as_dict(), "seed": seed, "rows": list(rows)},
        "environment": {"kimiajax": "0.1.0", "revision": "abc", "devices": ["cpu"], "packages": {"jax": "1"}},
        "data": {
            "source": "scans.h5",
            "kind": "scan file",
            "synthetic": marks[0],
            "unverified": marks[1],
            "scans": manifest.num_scans,
            "names": [f"s{scan}" for scan in range(manifest.num_scans)],
            "patch_size": 8,
            "train": len(manifest.split("train")),
            "test": len(manifest.split("test")),
            "train_per_scan": manifest.counts("train"),
            "test_per_scan": manifest.counts("test"),
            "manifest_sha256": manifest.sha256,
            "pixels_sha256": manifest.pixels_sha256,
            "rules": {"grid": "full"},
            "audit": audit,
        },
        "weights": dict.fromkeys(("vgg16", "inception_v3"), lineage),
        "blocks": BLOCKS,
        "conv": {},
        "notes": ["A note of <the run> & its own."],
        "general_notes": 1,
        "rows": entries,
        "pictures": write_pictures(folder, SCANS, samples, 8),
        **changes,
    }
    RunFolder(folder).write_results(results)
    return results


def _entry(folder, manifest, row, guess, weights):
    scores = dict.fromkeys(("eta_p", "eta_w", "eta_total", "eta_w_precision", "correct"))
    digest = None
    if guess is not None:
        found = kimia_scores(manifest.labels("test"), guess, manifest.num_scans)
        scores |= {name: float(getattr(found, name)) for name in ("eta_p", "eta_w")}
        scores["eta_total"] = scores["eta_p"] * scores["eta_w"]
        scores["correct"] = int(found.correct.sum())
        digest = sha256_file(RunFolder(folder).write_predictions(row.name, manifest, guess))
    published = paper.TABLE_1.get(row.name)
    epochs = [{"epoch": k, "loss": 1 / k, "accuracy": 0.5, "learning_rate": 0.1, "seconds": 1} for k in (1, 2, 3)]
    pictures = []
    if row.family == "retrieval":
        pixels = np.full((8, 8), 120, np.uint8)
        about = {"query": "test/s0/0", "distance": 0.5}
        ranks = [{"patch_id": f"p{rank}", "scan": rank % 2, "rank": rank} for rank in range(3)]
        pictures = write_pictures(folder, row.name, [Picture(f"{r['rank']}", pixels, {**about, **r}) for r in ranks], 8)
    about = {"distance": row.scheme, "features": "fc2", "gallery": 9}
    recall = {**about, "recall_at": {"1": 0.5}, "queries_per_second": 9.0}
    return {
        "name": row.name,
        "approach": row.title,
        "scheme": row.scheme,
        "family": row.family,
        "network": row.network or None,
        "block": row.block,
        "against": row.against,
        "weights": weights if row.network in ("vgg16", "inception_v3") else "none",
        **scores,
        "tested": len(manifest.split("test")),
        "failure": None if guess is not None else "the loss is nan",
        "seconds": 1.0,
        "paper": None if published is None else asdict(published),
        "training": None,
        "history": {"fine_tuning": epochs} if row.scheme == "fine-tuned" else {},
        "retrieval": recall if isinstance(row, Retrieval) else None,
        "predictions_sha256": digest,
        "learnt_sha256": None,
        "pictures": pictures,
    }
