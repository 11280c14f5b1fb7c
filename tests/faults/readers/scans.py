"""Files of scans: damaged, or of other content."""

import math
from zlib import crc32

import h5py
import numpy as np

from faults.readers.fuzzing import BLOWS, NUMBERS, asked, chooser, damaged, fuzz, read_anew, rebuild
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patches import Rules, cut_patches

STORED = (
    {},
    {"chunks": (16, 16), "compression": "gzip"},
    {"chunks": (16, 16), "shuffle": True},
)
SCANS = (
    *(f"{group}/data" for group in ("scan0", "scan1", "scan2", "scan00", "scan9", "scan1234567890123")),
    *("test_data/patches", "test_data/targets", "test_data", "scan0", "scan1", "scan\u0661", "synthetic"),
)


def scan_files(folder):
    """Files of two scans, in each way of storing them."""
    rng, files = np.random.default_rng(3), []
    for stored in STORED:
        with h5py.File(folder / "whole.h5", "w") as file:
            for scan in range(2):
                file.create_dataset(f"scan{scan}/data", data=rng.integers(40, 180, (40, 40), dtype=np.uint8), **stored)
            stored = {**stored, "chunks": (1, 8, 8)} if "chunks" in stored else stored
            file.create_dataset("test_data/patches", data=rng.integers(40, 180, (3, 8, 8), dtype=np.uint8), **stored)
            file["test_data/targets"] = np.array([0, 1, 1])
        files.append((folder / "whole.h5").read_bytes())
    return files


def see_scans(path, luck):
    """Reads everything that there is of a file of scans; one of 16 is cut into patches."""
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
        small = sum(math.prod(scans.shape(scan)) for scan in range(len(scans))) < 2**16  # each pixel takes its time
        if small and luck % 16 == 0:
            manifest = cut_patches(scans, Rules(patches_per_scan=2, homogeneity=1.0))
            for patch in manifest.split("train"):
                assert scans.read_patch(patch).shape == (size, size)
    return True


def scans_of_damaged_bytes(folder):
    path, whole = folder / "x.h5", scan_files(folder)

    def read(blows):
        content = damaged(blows, whole)
        read_anew(path, content, lambda: see_scans(path, crc32(content)))

    return fuzz(read, BLOWS)


def scans_of_other_things(folder):
    path, whole = folder / "x.h5", scan_files(folder)
    (folder / "text.h5").write_text("no scans")

    def read(number):
        choose = chooser(number)
        path.unlink(missing_ok=True)
        path.write_bytes(whole[choose(len(whole))])
        rebuild(path, choose, SCANS, ["synthetic"])
        asked(lambda: see_scans(path, number), path)

    return fuzz(read, NUMBERS)
