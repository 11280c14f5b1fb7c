"""Runs to be damaged, and what is asked of commands that are given them."""

import json
import re

from faults.harness import ask
from kimiajax.runs.layout import RunFolder

FLOORS = ("floor_histogram", "floor_mean_sd")
ROW = "floor_mean_sd"
PREDICTIONS = f"predictions/{ROW}.csv"


def table(out, scans, *flags, rows=FLOORS, source="--scans"):
    asked = ("table", "quick", source, scans, "--rows", *rows, "--image-size", 32, "--patches-per-scan", 4)
    return ask(*asked, "--cache", out.parent / "cache", "--out", out, *flags)


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def reseal(folder, change):
    """Changes what a run's results say as if the program had written it."""
    results = results_of(folder)
    results.pop("seal", None)
    change(results)
    RunFolder(folder).write_results(results)


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


def guessing(guess):
    """Changes the last field of the second line, which is a prediction."""
    return lambda lines: [lines[0], f"{lines[1].rsplit(',', 1)[0]},{guess}\n", *lines[2:]]


def guessing_otherwise(lines):
    """Changes the prediction in the second line to another scan."""
    start, guess = lines[1].rsplit(",", 1)
    return [lines[0], f"{start},{(int(guess) + 1) % 4}\n", *lines[2:]]


def of_another_scan(line):
    """A line that says its patch is of another scan."""
    patch_id, scan, rest = line.split(",", 2)
    return f"{patch_id},{(int(scan) + 1) % 4},{rest}"


def edited(**changes):
    """Changes a manifest's header."""
    return lambda lines: [json.dumps({**json.loads("".join(lines)), **changes})]


def header(**changes):
    """The same, as a program may write it that knows no seals."""
    return edited(seal=None, **changes)


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
    "a header edited": (of("manifest.json", edited(synthetic=False)), "manifest.json: was edited since it was written"),
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


def results(change):
    """Changes `results.json`, and not its seal."""

    def changed(folder):
        found = results_of(folder)
        change(found)
        (folder / "results.json").write_text(json.dumps(found, indent=2) + "\n")

    return changed
