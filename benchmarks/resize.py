"""Resizing patches: the filters' speed and how far their pictures lie apart.

    kimiajax bench resize [--patch 1000] [--size 224] [--count 64] [--rounds 7] [--out FILE]

Claim: `reduce_bilinear` is the fastest filter that averages, and another picture than `box`; so it has a name of its
own and is never taken silently.

Patches of synthetic tissue, in memory. One thread and every core, in turn, each configuration in a process of its own;
Pillow releases Python's lock while it resizes.
"""

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.data.resize import FILTERS, resize
from kimiajax.data.sources.synthetic import Tissue, draw_tissue

from .interleaved import measure_in_turn, quartiles, write_record


def draw(patch: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    tissue = draw_tissue(Tissue.draw(rng), 2 * patch, 2 * patch, rng)
    places = rng.integers(0, patch, (count, 2))
    return [np.ascontiguousarray(tissue[r : r + patch, c : c + patch]) for r, c in places]


def measure(filter: str, threads: int, patch: int, size: int, count: int) -> dict[str, Any]:
    """Seconds for all patches, and how far they are from `box`, in gray levels."""
    patches = draw(patch, count)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda picture: resize(picture, size, filter), patches[: 2 * threads]))
        started = time.perf_counter()
        resized = list(pool.map(lambda picture: resize(picture, size, filter), patches))
        seconds = time.perf_counter() - started
    apart = [np.abs(a.astype(int) - resize(b, size, "box")) for a, b in zip(resized, patches)]
    return {"seconds": seconds, "mean_from_box": float(np.mean(apart)), "max_from_box": int(np.max(apart))}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="kimiajax bench resize")
    parser.add_argument("--patch", type=int, default=1000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(measure(**options.one)))
        return
    shared = {"patch": options.patch, "size": options.size, "count": options.count}
    threads = sorted({1, os.cpu_count() or 1})
    configurations = [{"filter": name, "threads": n, **shared} for n in threads for name in FILTERS]
    samples = measure_in_turn(".resize", configurations, options.rounds)
    results = [{**configuration, "samples": found} for configuration, found in zip(configurations, samples)]
    for result in results:
        low, middle, high = quartiles([options.count / sample["seconds"] for sample in result["samples"]])
        first = result["samples"][0]
        print(
            f"{result['filter']:15} {result['threads']:2} threads: {middle:6.0f} patches/s (quartiles {low:.0f} to "
            f"{high:.0f}); from box: mean {first['mean_from_box']:.2f}, at most {first['max_from_box']} gray levels"
        )
    if options.out:
        write_record(options.out, results, claim=__doc__.split("\n\n")[2].removeprefix("Claim: "))


if __name__ == "__main__":
    main()
