"""Files out of all proportion, damaged ones, and ones that read others."""

import errno
import json
import mmap
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from faults.harness import Ended, refused
from faults.weights.planting import MIB, ONE, ones, place, refused_whole, safetensors
from weights_convert.arrays import KERAS_MEMBER, LARGEST_HEADER
from weights_convert.convert import convert
from weights_convert.mappings import inception_v3


def crowded(path):
    entry = b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return safetensors(path, b"{" + b",".join(entry % number for number in range(400_000)) + b"}")


def bomb(path, member=KERAS_MEMBER):
    """400 MiB of zeros in 400 kB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(member, "w") as file:
            for _ in range(400):
                file.write(bytes(MIB))
        if member != KERAS_MEMBER:
            archive.writestr(KERAS_MEMBER, b"none", zipfile.ZIP_STORED)
    return path


def crowded_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in (KERAS_MEMBER, *map(str, range(30_000))):
            archive.writestr(name, b"")
    return path


def hidden_crowd(path):
    """The same, with its list where an archive of more than 4 GiB has it, and none where others have it."""
    content = crowded_archive(path).read_bytes()
    end = content.rindex(b"PK\x05\x06")
    size, start = struct.unpack("<2I", content[end + 12 : end + 20])
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 30_001, 30_001, size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    path.write_bytes(content[:end] + record + locator + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 0, 0, 0))
    return path


def claiming(path):
    """A file of a few kilobytes that claims arrays of 4 GiB, all of them zeros."""
    with h5py.File(path, "w") as file:
        for name in ("kernel", "bias"):
            file.create_dataset(place(f"block1_conv1/{name}"), (2**30,), np.float32)
    return path


HUGE = {
    "a header of 100 MB and a byte": (
        lambda path: safetensors(path, b'{"a":', claimed=100_000_001),
        "a header of 100,000,001 bytes",
    ),
    "a header of a tebibyte": (
        lambda path: safetensors(path, b'{"a":', claimed=2**40),
        "a header of 1,099,511,627,776",
    ),
    "a header of 400,000 arrays": (crowded, "not a whole safetensors file (a header of "),
    "an array of four tebibytes": (
        lambda path: safetensors(path, {"a": {**ONE, "shape": [2**40]}}, bytes(4)),
        "not a whole safetensors file",
    ),
    "a zip bomb": (bomb, f"{KERAS_MEMBER} would unfold to "),
    "a zip bomb beside the arrays": (lambda path: bomb(path, "config.json"), "config.json is out of all proportion"),
    "an archive of 30,001 members": (crowded_archive, "an archive of too many members"),
    "an archive that hides how many": (hidden_crowd, "an archive of too many members"),
    "arrays that were never written": (claiming, "was never written"),
}
MEASURE = """
import json, resource, sys
from faults.harness import ask
resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 2**20, 100 * 2**20))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
command = json.loads(sys.argv[1])
ended = {}
for path in [command[0], *command]:
    start = peak()
    given = ["--weights", path, "--scans", "scans.h5", "--image-size", "32", "--out", "out"]
    ended[path] = (*ask("features", "vgg16", *given), peak() - start)
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What is said of each of these files, and by how many MiB memory grew, in a process that may write 100 MiB."""
    folder = tmp_path_factory.mktemp("huge")
    for number, (write, _) in enumerate(HUGE.values()):
        write(folder / f"{number}.keras")
    names = [f"{number}.keras" for number in range(len(HUGE))]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(folder)}
    command = [sys.executable, "-c", MEASURE, json.dumps(names)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done
    assert sorted(path.name for path in folder.iterdir()) == sorted(names), "nothing is left of them"
    ended = json.loads(done.stdout.splitlines()[-1])
    return {each: ended[name] for each, name in zip(HUGE, names)}


@pytest.mark.fault("pickles")
@pytest.mark.parametrize("name", HUGE)
def test_what_is_out_of_all_proportion_is_refused_in_little_memory(measured, name):
    *ended, grown = measured[name]
    refused(Ended(*ended), ".keras", HUGE[name][1])
    assert grown < 300


@pytest.mark.fault("pickles")
def test_the_largest_header_that_a_network_has_is_far_from_the_bound(tmp_path):
    """timm's Inception-v3 with its auxiliary classifier and counters has some 600 arrays."""
    names = [*inception_v3.TORCH, *(f"AuxLogits.{n}.num_batches_tracked" for n in range(120))]
    save_file(dict.fromkeys(names, ones(1)), tmp_path / "x.safetensors")
    (size,) = struct.unpack("<Q", (tmp_path / "x.safetensors").read_bytes()[:8])
    assert 8 * size < LARGEST_HEADER


DAMAGED = {
    "a header that is not JSON": b'{"a": nonsense}',
    "a header without end": b'{"a":' + b"[" * 100_000,
    "offsets outside": {"a": {**ONE, "data_offsets": [0, 2**50]}},
    "offsets that leave a gap": {"a": {**ONE, "data_offsets": [2, 6]}},
    "a shape below zero": {"a": {**ONE, "shape": [-1]}},
    "a type that nobody knows": {"a": {**ONE, "dtype": "Q8"}},
}


@pytest.mark.fault("pickles")
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_refused(scans, tmp_path, name):
    file = safetensors(tmp_path / "x.safetensors", DAMAGED[name], bytes(6))
    refused_whole(scans, tmp_path, file, "not a whole safetensors file", "fetch or save it again")


def in_another_file(file):
    outside = Path(file.filename).with_name("outside")
    outside.write_bytes(ones(64).tobytes())
    del file[place("block1_conv1/bias")]
    file.create_dataset(place("block1_conv1/bias"), (64,), np.float32, external=[(str(outside), 0, 256)])


def linked(file):
    with h5py.File(Path(file.filename).with_name("outside"), "w") as outside:
        outside["bias"] = ones(64)
    file["model_weights"] = h5py.ExternalLink("outside", "/")


@pytest.mark.fault("pickles")
@pytest.mark.parametrize(
    ("change", "word"), [(in_another_file, "lies in another file"), (linked, "'model_weights' is a link")]
)
def test_a_file_that_reads_another_one_is_refused(scans, tmp_path, changed, change, word):
    """Its digest would say nothing of what is read."""
    refused_whole(scans, tmp_path, changed(change), word, "give a file that Keras saved")


@pytest.mark.fault("pickles")
def test_a_file_system_that_maps_no_files_is_read_from_as_well(monkeypatch, vgg16):
    def refuse(*arguments, **options):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert convert("vgg16", vgg16).lineage["framework"] == "keras"
