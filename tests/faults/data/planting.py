"""Data to be damaged, and what is asked of commands that are given it."""

import io
import json

import numpy as np
from PIL import Image

from faults.harness import ask, files_of
from kimiajax.data.manifest import read_manifest
from kimiajax.data.tfds.datasets import prepared_in

SIZE = 80
FLOORS = ("--rows", "floor_histogram", "floor_mean_sd", "--image-size", 32, "--patches-per-scan", 3)
NETWORK = ("--weights", "random", "--image-size", 32, "--conv", "plain")
AUDIT_FAILED = 3

# What each command is asked of a path, by the folder of an earlier run and by one that is not there yet.
COMMANDS = {
    "table": lambda given, run, new: ("table", "quick", "--scans", given, "--out", run, *FLOORS, "--fresh"),
    "data explain": lambda given, run, new: ("data", "explain", "--scans", given),
    "data export": lambda given, run, new: ("data", "export", "--scans", given, "--out", new),
    "features": lambda given, run, new: ("features", "cnn", "--scans", given, "--out", new, *NETWORK),
    "predict": lambda given, run, new: ("predict", run / "floor_histogram", given, "--out", f"{new}.csv"),
}
READERS = ("table", "data export", "features", "predict")  # of patches, one by one


def audited(given, out, *failed, flags=()):
    """Asserts that an audit fails these checks, on the screen, in its record and by its status; the record."""
    ended = ask("data", "audit", "--scans", given, "--out", out, *flags)
    record = json.loads((out / "audit.json").read_text())
    assert ended.status == AUDIT_FAILED, ended
    assert record["verdict"] == "FAILED"
    assert set(failed) <= set(record["failed"])
    assert f"FAILED: {', '.join(record['failed'])}." in ended.shown
    return {check["name"]: check for check in record["checks"]}


def marked(given, out, *failed, flags=()):
    """Asserts that a table of audited data says in its record, on the screen and in its report what failed."""
    ended = ask("table", "quick", "--scans", given, "--out", out, *FLOORS, *flags)
    assert ended.status == 0, ended
    data = json.loads((out / "results.json").read_text())["data"]
    assert data["audit"]["verdict"] == "FAILED"
    assert set(failed) <= set(data["audit"]["failed"])
    assert "AUDIT FAILED" in ended.shown
    assert f"AUDIT FAILED ({', '.join(data['audit']['failed'])})" in ask("report", out, "--format", "markdown").shown


def trained(run, scan):
    """A training patch of the run."""
    return next(patch for patch in read_manifest(run / "manifest.csv").split("train") if patch.scan == scan)


def preparation(manual, data, *flags, name="kimia_path24"):
    return ask("data", "prepare", name, "--manual-dir", manual, "--data-dir", data, *flags)


def nothing_prepared(data):
    """Whether a folder holds no set, whole or in part; TFDS notes beforehand what it is about to prepare."""
    return prepared_in(data) == [] and {name.rpartition("/")[2] for name in files_of(data)} <= {"metadata.json"}


def encoded(pixels, kind="PNG", **options):
    content = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(content, kind, **options)
    return content.getvalue()


GRAY = np.random.default_rng(1).integers(40, 180, (SIZE, SIZE), dtype=np.uint8)
JPEG = encoded(GRAY, "JPEG")
