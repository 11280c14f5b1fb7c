"""Whatever a reader is given, it reads it or refuses it in a line: thousands of damaged inputs for each."""

import contextlib
import csv
import functools
import hashlib
import io
import json
import math
import shutil
import tempfile
import zipfile
from pathlib import Path
from zlib import crc32

import h5py
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file
from stored_runs import manifest_of, predictions_of, write_run

from faults.fuzzing import INPUTS, NASTY, anywhere, asked, damaged, fuzz
from kimiajax.analysis import analyse
from kimiajax.compare import compare_runs
from kimiajax.data.manifest import MOST_SCANS, header_of, read_manifest
from kimiajax.data.opening import open_scans
from kimiajax.data.patches import Rules, cut_patches
from kimiajax.data.source import PatchSource
from kimiajax.models.backbone import BACKBONES, Backbone
from kimiajax.models.cnn import CNN
from kimiajax.report.html import write_report
from kimiajax.report.marks import marks_of, warnings_of
from kimiajax.report.stored import read_run, rerun
from kimiajax.report.tables import render_table
from kimiajax.report.text import FORMATS
from kimiajax.scoring import join, read_predictions, read_truth
from kimiajax.seals import sealed
from weights_convert import keras, torch
from weights_convert.convert import convert
from weights_convert.tables import AS_IS, CONV_OIHW, Convention

MEMORY_DISK = Path("/dev/shm")  # where thousands of files are written in no time


def reader(name):
    """Marks a test of a reader, and lets those of one reader run in one process."""

    def mark(test):
        return pytest.mark.fault("readers")(pytest.mark.xdist_group(name)(test))

    return mark


@pytest.fixture
def folder(tmp_path):
    with tempfile.TemporaryDirectory(prefix="kimiajax-", dir=MEMORY_DISK if MEMORY_DISK.is_dir() else tmp_path) as path:
        yield Path(path)


@pytest.fixture
def tell(record_property):
    """Records how many inputs were read, of both kinds of a reader's test."""
    return lambda count: record_property("inputs", count)


NUMBERS = st.binary(min_size=16, max_size=16).map(lambda drawn: int.from_bytes(drawn, "little"))  # all as likely


def chooser(recipe):
    """What draws from a number, less and less of which is left."""

    def choose(count):
        nonlocal recipe
        recipe, chosen = divmod(recipe, count)
        return chosen

    return choose


# Scan files

STORED = {
    "contiguous": {},
    "gzip": {"chunks": (16, 16), "compression": "gzip"},
    "chunked": {"chunks": (16, 16), "shuffle": True},
}


def scan_file(path, stored):
    rng = np.random.default_rng(3)
    with h5py.File(path, "w") as file:
        for scan in range(2):
            file.create_dataset(f"scan{scan}/data", data=rng.integers(40, 180, (40, 40), dtype=np.uint8), **stored)
        stored = {**stored, "chunks": (1, 8, 8)} if "chunks" in stored else stored
        file.create_dataset("test_data/patches", data=rng.integers(40, 180, (3, 8, 8), dtype=np.uint8), **stored)
        file["test_data/targets"] = np.array([0, 1, 1])
    return path.read_bytes()


def see_scans(path, cut):
    """Reads everything that there is of a file of scans."""
    with open_scans(path) as scans:
        size = scans.patch_size
        for patch in scans.test_patches()[:8]:
            assert 0 <= patch.scan < len(scans)
            pixels = scans.read_patch(patch)
            assert (pixels.shape, pixels.dtype) == ((size, size), np.uint8)
        for scan in range(len(scans)):
            for tile in scans.tiles(scan)[:8]:
                pixels = scans.read(scan, *tile)
                assert (pixels.shape, pixels.dtype) == ((tile.height, tile.width), np.uint8)
        scans.unwritten()
        if cut and sum(math.prod(scans.shape(scan)) for scan in range(len(scans))) < 2**16:  # each takes its time
            manifest = cut_patches(scans, Rules(patches_per_scan=2, homogeneity=1.0))
            for patch in manifest.split("train"):
                assert scans.read_patch(patch).shape == (size, size)
    return True


def read_anew(path, content, see):
    """A file under an inode of its own: HDF5 takes files of one inode for one."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return asked(see, path)


@reader("damaged scans")
def test_scan_files_of_damaged_bytes_are_read_or_refused(folder, tell):
    whole = [scan_file(folder / "whole.h5", stored) for stored in STORED.values()]
    path = folder / "x.h5"

    def read(content):
        read_anew(path, content, lambda: see_scans(path, cut=crc32(content) % 16 == 0))

    tell(fuzz(read, damaged(whole)))


KINDS = ("u1", "u2", "i1", "f4", "S5", "?", "c8", "V3", "(2,)u1", "u1,f4")
KINDS = (
    *map(np.dtype, ("u1", "u1", "u1", "i8", "i8", "u2", "i1", "f4", "S5", "?", "c8", "V3", "(2,)u1", "u1,f4")),
    *(h5py.string_dtype(), h5py.vlen_dtype(np.uint8), h5py.ref_dtype, h5py.enum_dtype({"a": 1})),
)
SIDES = (0, 1, 2, 3, 7, 8, 40, 2**10, 2**20, 2**32, 2**40, 2**63)
NAMES = (
    *(f"{group}/data" for group in ("scan0", "scan1", "scan2", "scan00", "scan9", "scan1234567890123")),
    *("test_data/patches", "test_data/targets", "test_data", "scan0", "scan1", "scan\u0661", "synthetic"),
)
FILTERS = (
    *({}, {"compression": "gzip"}, {"compression": "lzf"}, {"fletcher32": True}, {"shuffle": True}),
    {"compression": 32015, "allow_unknown_filter": True},
)


def claim(file, name, choose):
    """An array of any size that was never written, or written in part."""
    shape = tuple(SIDES[choose(len(SIDES))] for _ in range(choose(5)))
    options, dtype = {}, KINDS[choose(len(KINDS))]
    if choose(2):
        options = {"chunks": tuple(1 + choose(2 ** choose(21)) for _ in shape), **FILTERS[choose(len(FILTERS))]}
        options["maxshape"] = (None, (None,) * len(shape))[choose(2)]
    plain = dtype in (np.uint8, np.int64)  # HDF5 itself takes others amiss
    if plain and choose(2):
        options["fillvalue"] = 7
    made = file.create_dataset(name, shape, dtype, **options)
    if plain and choose(2) and made.size < 10**5 and math.prod(made.chunks or (1,)) < 10**5:
        made[(slice(0, 9),) * len(shape)] = 3


def link(file, name, choose):
    """A link to anything, here or elsewhere."""
    there = ("/", "/scan1/data", "/scan0", "scan0/data", name, "/nowhere", "/test_data/patches", ".")[choose(8)]
    files = ("whole.h5", "x.h5", "/dev/null", ".", "nowhere.h5", "text.h5")
    file[name] = (h5py.SoftLink(there), h5py.ExternalLink(files[choose(6)], there))[choose(2)]


def elsewhere(file, name, choose):
    """An array whose values lie in other files."""
    shape = ((40, 40), (3, 8, 8), (3,))[choose(3)]
    source = ("whole.h5", "x.h5", ".", "nowhere.h5", "/dev/zero")[choose(5)]
    if choose(2):
        layout = h5py.VirtualLayout(shape, np.uint8)
        layout[...] = h5py.VirtualSource(source, "scan0/data", shape)
        file.create_virtual_dataset(name, layout)
    else:
        file.create_dataset(name, shape, np.uint8, external=[(source, 0, h5py.h5f.UNLIMITED)])


def put(file, name, choose):
    """Something else: a group, a type, an attribute, a reference, another shape."""
    what = choose(5)
    if what == 0:
        file.create_group(name)
    elif what == 1:
        file[name] = KINDS[choose(len(KINDS))]
    elif what == 2:
        file[name] = file.get("scan0", file)
    elif what == 3:
        file[name] = h5py.Empty(KINDS[choose(len(KINDS))])
    else:
        kind = KINDS[choose(len(KINDS))]
        file[name] = np.zeros(((3,), (1, 3), (3, 1), (40, 40), (3, 8, 8), (0, 8, 8), (3, 8, 9))[choose(7)], kind)


def drop(file, name):
    """Makes room for something else of a name."""
    with contextlib.suppress(KeyError, RuntimeError):
        del file[name]
    return name


def tag(file, attribute, choose):
    """Gives the file, or something in it, an attribute of any kind."""
    items = [file]
    file.visititems(lambda name, item: items.append(item))
    value = (True, 0, "no", b"", [1, 0], h5py.Empty("f"), file.ref, np.zeros((0, 3)), "{}", "[" * 5000, "a\nb")[
        choose(11)
    ]
    items[choose(len(items))].attrs[attribute] = value


def rebuild(path, recipe, names=NAMES, attributes=("synthetic",)):
    """Puts other things into an HDF5 file, under some of these names."""
    choose = chooser(recipe)
    with h5py.File(path, "r+") as file:
        for _ in range(choose(4)):
            name = drop(file, names[choose(len(names))])
            with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError):
                (claim, claim, elsewhere, put)[choose(4)](file, name, choose)
            if choose(4) == 0:
                tag(file, attributes[choose(len(attributes))], choose)
        if choose(4) == 0:  # last, as what is put beyond a link goes elsewhere
            with contextlib.suppress(OSError, RuntimeError):
                link(file, drop(file, names[choose(len(names))]), choose)


@reader("made scans")
def test_scan_files_that_hold_anything_else_are_read_or_refused(folder, tell):
    whole = [scan_file(folder / "whole.h5", stored) for stored in STORED.values()]
    (folder / "text.h5").write_text("no scans")
    path = folder / "x.h5"

    def read(recipe):
        path.unlink(missing_ok=True)
        path.write_bytes(whole[recipe % len(whole)])
        rebuild(path, recipe // len(whole))
        asked(lambda: see_scans(path, cut=recipe % 7 == 0), path)

    tell(fuzz(read, NUMBERS))


# Manifests

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
TEXTS = (
    *("", "0", "1", "2", "-1", "1e5", "1e999", "nan", "0x1", "1_0", "\u0663", " 1", "9" * 20, "9" * 5000, "9" * 10**5),
    *("train", "test", "a" * 64, "A" * 64, "a\nb", "\x1b[2J", "\0", '"', '""', ",", "\ud800", "\u202e", "x" * 301),
)


def table(columns, rows):
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([columns, *rows])
    return lines.getvalue()


def remake(text, choose):
    """A CSV file with a few other fields, rows and columns, and quotes where none need be."""
    columns, *rows = csv.reader(io.StringIO(text))
    for _ in range(1 + choose(4)):
        row = ([columns, *rows] if choose(8) == 0 else rows or [columns])[choose(len(rows) or 1)]
        what = choose(9)
        if what < 5 and row:
            row[choose(len(row))] = TEXTS[choose(len(TEXTS))]
        elif what == 5:
            row.insert(choose(len(row) + 1), TEXTS[choose(len(TEXTS))])
        elif what == 6 and row:
            del row[choose(len(row))]
        elif what == 7:
            rows.insert(choose(len(rows) + 1), list(rows[choose(len(rows))]) if rows else [])
        elif rows:
            del rows[choose(len(rows))]
    return table(columns, rows).encode("utf-8", "surrogatepass")


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
    marks_of(manifest.about)
    (manifest.about.get("rules") or {}).get("background", 220) + 1
    json.dumps(manifest.header, allow_nan=False, ensure_ascii=False).encode()
    again = path.with_name("again.csv")
    again.write_text(manifest.csv, encoding="utf-8", newline="")
    header_of(again).write_text(json.dumps(manifest.header))
    assert read_manifest(again).csv == manifest.csv  # what was read can be written and is the same again
    return True


@reader("manifests")
def test_manifests_are_read_or_refused(folder, tell):
    path = folder / "manifest.csv"
    seal = hashlib.sha256(LINES.encode()).hexdigest()
    headers = [json.dumps({**HEADER, "csv_sha256": vouched}, indent=2).encode() for vouched in (None, seal)]
    whole = LINES.encode()

    def see(lines, header):
        path.write_bytes(lines)
        header_of(path).write_bytes(header)
        asked(lambda: see_manifest(path), path, header_of(path))

    def made(recipe):
        choose = chooser(recipe)
        header = HEADER
        for _ in range(choose(3)):
            header = anywhere(header, choose(4096), NASTY[choose(len(NASTY))])
        text = json.dumps(header).encode()
        if choose(50) == 0:
            text = text.replace(b"8", (b"9" * 10**5, b"[" * 10**5, b"[" * 200 + b"]" * 200)[choose(3)], 1)
        see(remake(LINES, choose), text)

    tell(
        fuzz(lambda lines: see(lines, headers[crc32(lines) % 5 == 0]), damaged([whole, headers[0]]), INPUTS // 4)
        + fuzz(lambda header: see(whole, header), damaged([*headers, whole]), INPUTS // 4)
        + fuzz(made, NUMBERS, INPUTS // 2)
    )


# Predictions, and the truth

GUESSES = "patch_id,predicted,scan,note\n" + "".join(f"test/s{k % 3}/{k},{k % 2},{k % 3},é\n" for k in range(6))
TRUTH = "patch_id,scan\n" + "".join(f"test/s{k % 3}/{k},{k % 3}\n" for k in range(6))


@reader("predictions")
def test_predictions_are_read_or_refused(folder, tell):
    paths = folder / "guesses.csv", folder / "truth.csv"
    paths[1].write_text(TRUTH)
    truth = read_truth(paths[1])

    def see():
        predictions = read_predictions(paths[0])
        assert predictions.predicted.dtype == np.int64
        assert 0 <= predictions.predicted.min() <= predictions.predicted.max() < MOST_SCANS
        assert len(set(predictions.patch_ids)) == len(predictions.predicted)
        joined = join(predictions, truth)
        assert len(joined) == 6
        assert (joined < truth.num_scans).all()
        return True

    def read(content):
        paths[0].write_bytes(content)
        asked(see, paths[0])

    halves = fuzz(read, damaged([GUESSES.encode(), TRUTH.encode()]), INPUTS // 2)
    tell(halves + fuzz(lambda recipe: read(remake(GUESSES, chooser(recipe))), NUMBERS, INPUTS // 2))


@reader("truths")
def test_truths_are_read_or_refused(folder, tell):
    paths = folder / "guesses.csv", folder / "truth.csv"
    paths[0].write_text(GUESSES)
    guesses = read_predictions(paths[0])

    def see():
        truth = read_truth(paths[1])
        assert 0 <= truth.scans.min() <= truth.scans.max() < truth.num_scans <= MOST_SCANS
        asked(lambda: join(guesses, truth), paths[0])
        return True

    def read(content):
        paths[1].write_bytes(content)
        asked(see, paths[1], header_of(paths[1]))

    halves = fuzz(read, damaged([TRUTH.encode(), GUESSES.encode(), LINES.encode()]), INPUTS // 2)
    tell(halves + fuzz(lambda recipe: read(remake((TRUTH, LINES)[recipe % 2], chooser(recipe))), NUMBERS, INPUTS // 2))


# Results

ROWS = ("tl_vgg16", "floor_histogram", "nn_vgg16_cosine")
AUDIT = {"failed": ["leaks"], "verdict": "failed", "date": "2025-11-25", "kimiajax": "0.1.0"}


def runs(folder):
    """Runs of one seed and of two: by its folder, each `results.json` that a reader may be given."""
    rng = np.random.default_rng(3)
    manifest = manifest_of([2, 1, 3], trained=1)
    guesses = {row: predictions_of(rng, manifest.labels("test"), 3, 0.6) for row in ROWS}
    results = write_run(folder / "one", manifest, guesses, audit=AUDIT)
    patch = {**results["pictures"][0], "kind": "patch"}
    map_of = {**patch, "kind": "grad-cam", "layer": "conv", "cells": [2, 2], "evidence": True, "predicted": 1}
    results["rows"][0]["pictures"] = [patch, map_of]
    results["weights"]["vgg16"] = {
        **{"source": "runs/x", "digest": "1" * 64, "trained_blocks": ["head"], "run": {"unverified": "all"}},
        "parent": results["weights"]["vgg16"],
    }
    both = {row: np.stack([guess, guess]) for row, guess in guesses.items()}
    mean = write_run(folder / "two", manifest, both, seeds=2)
    seed = json.loads((folder / "two/seed-1/results.json").read_text())
    return {folder / "one": [results], folder / "two": [mean], folder / "two/seed-1": [seed]}


def see_run(folder, luck):
    """Reads a run, and shows it as `kimiajax report` does, with few draws: one of 8 as text, one of 128 as a page."""
    run = read_run(folder)
    assert all(guess.shape == (len(run.seeds), 6) for guess in run.predicted.values())
    assert render_table(run.results)
    warnings_of(run.seeds)
    rerun(run.results, {})
    if luck % 8 == 0:
        analysis = analyse(run, draws=20)
        for show in FORMATS.values():
            assert show(run, analysis).encode()
        compare_runs(run, run, draws=20)
        if luck % 128 == 0:
            write_report(run, analysis)
    return True


@reader("results")
def test_results_are_read_and_shown_or_refused(folder, tell):
    found = runs(folder)
    places = list(found)
    texts = [json.dumps({**results, "schema_version": 5}).encode() for (results,) in found.values()]

    def see(place, text):
        (place / "results.json").write_bytes(text)
        given = place.parent if place.name == "seed-1" else place
        asked(lambda: see_run(given, crc32(text)), given)
        (place / "results.json").write_bytes(texts[places.index(place)])

    def made(recipe):
        choose = chooser(recipe)
        place = places[max(0, choose(6) - 3)]
        results = {**found[place][0], "schema_version": (5, 5, 4, 6)[choose(4)]}
        for _ in range(1 + choose(2)):
            results = anywhere(results, choose(2**32), NASTY[choose(len(NASTY))])
        if isinstance(results, dict) and results.get("schema_version") == 6:
            results = sealed(results)
        see(place, json.dumps(results).encode())

    half = sum(
        fuzz(functools.partial(see, *each), damaged([text]), INPUTS // 6 + 1) for *each, text in zip(places, texts)
    )
    tell(half + fuzz(made, NUMBERS, INPUTS // 2))


# Weights

LEAVES = {  # of a network so small that ten thousand files of it are read in no time: where they go, and their shapes
    ("params", "block1", "conv", "kernel"): (3, 3, 1, 2),
    ("params", "block1", "conv", "bias"): (2,),
    ("params", "block1", "bn", "bias"): (2,),
    ("batch_stats", "block1", "bn", "mean"): (2,),
    ("batch_stats", "block1", "bn", "var"): (2,),
    ("params", "predictions", "kernel"): (2, 3),
    ("params", "predictions", "bias"): (3,),
}
KERAS_NAMES = (
    *("conv2d#0/kernel", "conv2d#0/bias", "batch_normalization#0/beta", "batch_normalization#0/moving_mean"),
    *("batch_normalization#0/moving_variance", "predictions/kernel", "predictions/bias"),
)
TORCH_NAMES = ("conv.weight", "conv.bias", "bn.bias", "bn.running_mean", "bn.running_var", "fc.weight", "fc.bias")


class Small(Backbone):
    """That network, as far as a conversion asks for it."""

    def shapes(self, size, blocks, *, num_classes):
        tree = {to: (*shape[:-1], num_classes) if "predictions" in to else shape for to, shape in LEAVES.items()}
        kept = {to: jax.ShapeDtypeStruct(shape, np.float32) for to, shape in tree.items() if to[1] in blocks}
        return unflatten_dict(kept)


@pytest.fixture
def small(monkeypatch):
    """Lets `convert` know that network, by the names and layouts of both frameworks."""
    blocks = ("block1", "predictions")
    made = Small("small", CNN, blocks, *blocks[:1] * 2, blocks[:1], hidden=None, dropout=0.0, smallest=8)
    monkeypatch.setitem(BACKBONES, "small", made)
    for module, names in ((keras, KERAS_NAMES), (torch, TORCH_NAMES)):
        kinds = [AS_IS if module is keras or len(shape) != 4 else CONV_OIHW for shape in LEAVES.values()]
        monkeypatch.setitem(module.TABLES, "small", (dict(zip(names, zip(LEAVES, kinds))),))
        monkeypatch.setitem(module.CONVENTIONS, "small", Convention({}, {"channels": "RGB"}, None))
    rng = np.random.default_rng(3)
    return [rng.random(shape, np.float32) for shape in LEAVES.values()]


def keras_files(folder, arrays):
    """The file that Keras saves in each of its four layouts."""
    layers = {}
    for name, array in zip(KERAS_NAMES, arrays):
        layer, leaf = name.replace("#0", "").split("/")
        layers.setdefault(layer, {})[leaf] = array
    kinds = ("old.h5", "new.h5", "x.weights.h5", "x.keras")
    with h5py.File(folder / kinds[0], "w") as old, h5py.File(folder / kinds[1], "w") as new:
        old.attrs["layer_names"] = [layer.encode() for layer in layers]
        old.attrs[keras.LINEAGE] = json.dumps({"format": 1, "network": "small", "digest": "0" * 64})
        for layer, leaves in layers.items():
            for leaf, array in leaves.items():
                old[f"{layer}/{layer}/{leaf}:0"] = array
                new[f"model_weights/{layer}/{leaf}"] = array
        del old.attrs[keras.LINEAGE]
    with h5py.File(folder / kinds[2], "w") as file:
        for layer, leaves in layers.items():
            group = file.create_group(f"layers/{layer}/vars")
            group.attrs["name"] = layer
            for number, array in enumerate(leaves.values()):
                group[str(number)] = array
    with zipfile.ZipFile(folder / kinds[3], "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.write(folder / kinds[2], "model.weights.h5")
    return [(folder / kind).read_bytes() for kind in kinds]


def see_weights(path):
    weights = convert("small", path)
    assert set(flatten_dict(weights.variables)) <= set(LEAVES)
    for to, array in flatten_dict(weights.variables).items():
        assert array.dtype == np.float32
        assert array.shape[:-1] == LEAVES[to][:-1]
        assert np.isfinite(array).all()
    assert json.dumps(weights.lineage, allow_nan=False)
    return True


@reader("keras weights")
def test_files_of_keras_are_read_or_refused(folder, small, tell):
    whole = keras_files(folder, small)
    path = folder / "x.h5"
    for content in whole:
        assert read_anew(path, content, lambda: see_weights(path))
    names = ["model_weights", "layers", "conv2d/conv2d/kernel:0", "predictions/predictions/bias:0", "conv2d_3/b"]
    names += ["model_weights/conv2d/kernel", "layers/conv2d/vars", "layers/conv2d/vars/0", "layers/x/vars", "a" * 400]

    def made(recipe):
        path.unlink(missing_ok=True)
        path.write_bytes(whole[recipe % 3])
        rebuild(path, recipe // 3, (*names, "conv2d\nb/x"), ("name", keras.LINEAGE))
        asked(lambda: see_weights(path), path)

    half = fuzz(lambda content: read_anew(path, content, lambda: see_weights(path)), damaged(whole), INPUTS // 2)
    tell(half + fuzz(made, NUMBERS, INPUTS // 2))


@reader("safetensors")
def test_safetensors_are_read_or_refused(folder, small, tell):
    path = folder / "x.safetensors"
    save_file(
        {
            name: array if array.ndim != 4 else array.transpose(3, 2, 0, 1).copy()
            for name, array in zip(TORCH_NAMES, small)
        },
        path,
    )
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    assert read_anew(path, whole, lambda: see_weights(path))

    def made(recipe):
        choose = chooser(recipe)
        changed = header
        for _ in range(1 + choose(2)):
            changed = anywhere(
                changed, choose(2**20), (NASTY + SIDES + KINDS_OF_TORCH)[choose(len(NASTY + SIDES + KINDS_OF_TORCH))]
            )
        text = json.dumps(changed).encode()
        claimed = (len(text), len(text), len(text), len(text) + choose(300), choose(2**40), 2**64 - 1 - choose(9))[
            choose(6)
        ]
        read_anew(path, claimed.to_bytes(8, "little") + text + body[: choose(2 * len(body))], lambda: see_weights(path))

    half = fuzz(lambda content: read_anew(path, content, lambda: see_weights(path)), damaged([whole]), INPUTS // 2)
    tell(half + fuzz(made, NUMBERS, INPUTS // 2))


KINDS_OF_TORCH = ("F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "F4", "U8", "C64", "f32")


# Folders of images

TOPS = ("train", "test", "Training", "testing set", "train_test", "s0", "S1", "0", "scan1", "s01", "\u0661", "more", "")
WITHIN = (
    "s0",
    "s1",
    "S0",
    "scan1",
    "1",
    "s2",
    "s" + "9" * 200,
    "x",
    "train",
    "test",
    ".hidden",
    "a\nb",
    "\udcff",
    "",
    "",
)
FILES = (
    *(
        "0.png",
        "1.png",
        "1.PNG",
        "1.jpg",
        "0.tif",
        "a.b.bmp",
        "\u00e9.png",
        "\u202e.png",
        "a\nb.png",
        "\udcff.png",
        ".png",
    ),
    *("x" * 251 + ".png", "0", "0.txt", "Thumbs.db", "manifest.json", "a.svs", "s0", "train"),
)


def images():
    """An image of 8 x 8 pixels as every kind of file that is read, and as some that are not."""
    pixels = np.random.default_rng(3).integers(40, 180, (8, 8), dtype=np.uint8)
    gray, colour = Image.fromarray(pixels), Image.fromarray(np.stack([pixels] * 3, axis=-1))
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = [
        *((gray, "PNG", {}), (colour, "PNG", {}), (gray.convert("P"), "PNG", {}), (gray.convert("1"), "PNG", {})),
        *(
            (gray, "JPEG", {}),
            (colour, "JPEG", {"exif": turned}),
            (gray, "JPEG", {"progressive": True}),
            (gray, "BMP", {}),
        ),
        *((colour, "TIFF", {"compression": kind}) for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        *(
            (gray, "TIFF", {}),
            (gray.convert("1"), "TIFF", {"compression": "group4"}),
            (gray.convert("I;16"), "TIFF", {}),
        ),
        *(
            (colour.convert("CMYK"), "JPEG", {}),
            (colour.convert("RGBA"), "PNG", {}),
            (gray, "GIF", {}),
            (gray, "WEBP", {}),
        ),
    ]
    files = []
    for image, kind, options in kinds:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        files.append(stream.getvalue())
    return files


def see_folder(path):
    """Reads every patch of a folder."""
    with open_scans(path) as source:
        manifest = cut_patches(source)
        assert len(source.names) == len(source) == manifest.num_scans
        patches = PatchSource(source, manifest.patches)
        for place, patch in enumerate(manifest.patches):
            pixels = patches[place].pixels
            assert 0 <= patch.scan < len(source)
            assert (pixels.shape, pixels.dtype) == ((source.patch_size,) * 2, np.uint8)
    return True


@reader("damaged images")
def test_damaged_images_are_read_or_refused(folder, tell):
    whole = images()
    places = [folder / f"{split}/s{scan}/0.png" for split in ("train", "test") for scan in range(2)]
    for place in places:
        place.parent.mkdir(parents=True)
        place.write_bytes(whole[0])

    def read(content):
        place = places[crc32(content) % len(places)]
        place.write_bytes(content)
        asked(lambda: see_folder(folder), folder)
        place.write_bytes(whole[0])

    tell(fuzz(read, damaged(whole)))


@reader("folders")
def test_folders_of_any_layout_are_read_or_refused(folder, tell):
    contents = [*images()[:2], *images()[:2], b"", b"no image", b'{"synthetic": 1}', b"[" * 10**4]

    def read(recipe):
        choose, path = chooser(recipe), folder / "x"
        for split in ("train", "test"):
            for scan in range(2):
                (path / split / f"s{scan}").mkdir(parents=True)
                (path / split / f"s{scan}" / "0.png").write_bytes(contents[0])
        for _ in range(choose(4)):
            put_entry(path, choose, contents)
        asked(lambda: see_folder(path), path)
        shutil.rmtree(path)

    tell(fuzz(read, NUMBERS))


def put_entry(path, choose, contents):
    """A file, a folder or a link somewhere in a folder, or one thing less."""
    above = path / TOPS[choose(len(TOPS))] / WITHIN[choose(len(WITHIN))]
    what, entry = choose(6), above / FILES[choose(len(FILES))]
    with contextlib.suppress(OSError):
        if what == 0:
            shutil.rmtree(above) if above != path else None
        elif what == 1:
            above.mkdir(parents=True)
        elif what == 2:
            above.mkdir(parents=True, exist_ok=True)
            entry.symlink_to(("..", ".", "nowhere", entry, path, "/dev/null", "../s0")[choose(7)])
        else:
            above.mkdir(parents=True, exist_ok=True)
            entry.write_bytes(contents[choose(len(contents))])
