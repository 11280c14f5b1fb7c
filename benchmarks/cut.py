"""Cutting patches: time and memory as scans grow, beside a plain read of the same file.

    kimiajax bench cut [--sides 10000 20000 40000] [--layouts contiguous chunked gzip] [--rounds 5] [--out FILE]

Claim: a scan of 1, 4 and 16 times the area is cut in 1, 4 and 16 times the time at most, but for noise, and in the same
memory, which is under 300 MB.

Each scan is drawn once: synthetic tissue, repeated, with a place whitened for every 50 patches. The peer, in the same
run and in turn with it, reads the file from its first byte to its last into one buffer of 16 MiB. Both read from the
page cache. Linux only. Cutting is `cut_patches` of every patch of tissue: counting background, finding the whitened
places, choosing.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kimiajax.data.patches import cut_patches
from kimiajax.data.sources.scan_file import Scans
from kimiajax.data.sources.synthetic import Tissue, draw_tissue

from .contender import peak
from .interleaved import measure_in_turn, quartiles, write_record

PATCH, PERIOD = 1000, 2500
LAYOUTS = {
    "contiguous": {},
    "chunked": {"chunks": (256, 256)},
    "gzip": {"chunks": (256, 256), "compression": "gzip", "compression_opts": 4},
}


def write_scan(path: Path, side: int, layout: str) -> None:
    """A scan file with one square scan."""
    rng = np.random.default_rng(side)
    whitened = [(int(r), int(c)) for r, c in rng.integers(0, side - PATCH, (max(1, (side // PATCH) ** 2 // 50), 2))]
    period = draw_tissue(Tissue.draw(rng), PERIOD, PERIOD, rng)
    with h5py.File(path, "w") as file:
        scan = file.create_dataset("scan0/data", (side, side), np.uint8, **LAYOUTS[layout])
        for row in range(0, side, PERIOD):
            scan[row : row + PERIOD] = np.tile(np.roll(period, row // 7, axis=1), side // PERIOD)
        patches = file.create_dataset("test_data/patches", (len(whitened), PATCH, PATCH), np.uint8)
        for k, (row, col) in enumerate(whitened):
            patches[k] = scan[row : row + PATCH, col : col + PATCH]
        for row, col in whitened:
            scan[row : row + PATCH, col : col + PATCH] = 255
        file["test_data/targets"] = np.zeros(len(whitened), np.int64)


def measure(path: str, what: str) -> dict[str, Any]:
    """Seconds, and bytes by which the process grew at most."""
    before, started, found = peak(), time.perf_counter(), None
    if what == "cut":
        with Scans(path) as scans:
            found = len(cut_patches(scans).split("train"))
    else:
        buffer = bytearray(2**24)
        with Path(path).open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return {"seconds": time.perf_counter() - started, "grown_bytes": peak() - before, "patches": found}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="kimiajax bench cut")
    parser.add_argument("--sides", nargs="+", type=int, default=[10_000, 20_000, 40_000])
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(measure(**options.one)))
        return
    results = []
    for layout in options.layouts:
        with tempfile.TemporaryDirectory() as folder:
            files = {side: Path(folder) / f"{side}.h5" for side in options.sides}
            for side, path in files.items():
                write_scan(path, side, layout)
            work = [(side, what) for side in files for what in ("cut", "read")]
            configurations = [{"path": str(files[side]), "what": what} for side, what in work]
            samples = dict(zip(work, measure_in_turn(".cut", configurations, options.rounds)))
            for side, path in files.items():
                result = {"layout": layout, "side": side, "file_bytes": path.stat().st_size}
                for what in ("cut", "read"):
                    result[what] = samples[side, what]
                results.append(result)
                print(_line(result), flush=True)
    if options.out:
        write_record(options.out, results, claim=__doc__.split("\n\n")[2].removeprefix("Claim: "))


def _line(result: dict[str, Any]) -> str:
    low, seconds, high = quartiles([sample["seconds"] for sample in result["cut"]])
    plain = quartiles([sample["seconds"] for sample in result["read"]])[1]
    grown = max(sample["grown_bytes"] for sample in result["cut"])
    rate, plain_rate = result["side"] ** 2 / seconds / 1e6, result["file_bytes"] / plain / 1e6
    return (
        f"{result['layout']:10} {result['side']:6} px: cut in {seconds:6.2f} s (quartiles {low:.2f} to {high:.2f}), "
        f"{rate:6.0f} MB/s of pixels; plain read {plain_rate:6.0f} MB/s of file; "
        f"{grown / 2**20:4.0f} MiB grown; {result['cut'][0]['patches']} patches"
    )


if __name__ == "__main__":
    main()
