"""`kimiajax bench scaling`: how the cost of a patch goes with the number of patches, and of a step with devices.

Claim: from 1,000 to 27,055 patches, the features of a patch cost the same time, and the process's memory does not grow
with their number.

Patches are random gray values that are mapped from a file, as the cache has them, and features go to a file likewise.
Devices that a CPU plays share its cores: steps on them show that the work is divided rightly and what dividing costs,
and nothing about speed. Batch sizes, image sizes and precisions are flags of `kimiajax bench` itself.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.models.registry import BACKBONES

from .contender import peak
from .interleaved import measure_apart, quartiles, write_record

COUNTS, DEVICES = (1_000, 4_000, 27_055), (1, 2, 4, 8)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each number of patches and of devices."""
    parser = argparse.ArgumentParser(prog="kimiajax bench scaling", description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", default="cnn", choices=tuple(BACKBONES))
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, help="patches")
    parser.add_argument("--devices", nargs="*", type=int, default=DEVICES, help="that a CPU plays")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(measure(**options.one)))
        return 0
    shared = {"network": options.network, "size": options.size, "batch": options.batch}
    work = [{"patches": count, **shared} for count in options.counts]
    work += [{"devices": count, **shared} for count in options.devices]
    results = []
    for one in work:
        results.append({**one, "samples": [measure_apart(".scaling", one) for _ in range(options.rounds)]})
        print(line_of(results[-1]), flush=True)
    if options.out:
        write_record(options.out, results, claim=__doc__.split("\n\n")[1].removeprefix("Claim: "))
    return 0


def measure(**one: Any) -> dict[str, Any]:
    return features(**one) if "patches" in one else step(**one)


def features(patches: int, network: str, size: int, batch: int) -> dict[str, Any]:
    """Seconds of extracting the features of so many patches, compiled before, and the memory that it took."""
    import jax

    from kimiajax.features.extract import extract_features
    from kimiajax.models.registry import BACKBONES

    backbone = BACKBONES[network]
    variables = jax.device_put(backbone.init(np.random.default_rng(0), size, backbone.up_to(backbone.features)))
    with tempfile.TemporaryDirectory() as folder:
        images = np.lib.format.open_memmap(f"{folder}/patches.npy", "w+", np.uint8, (patches, size, size))
        rng = np.random.default_rng(0)
        for start in range(0, patches, 1000):
            images[start : start + 1000] = rng.integers(0, 256, images[start : start + 1000].shape, dtype=np.uint8)
        images.flush()
        extract_features(backbone, variables, images[: 2 * batch], batch_size=batch)
        before, started = peak(), time.perf_counter()
        extract_features(backbone, variables, images, batch_size=batch, cache=Path(folder))
        seconds = time.perf_counter() - started
        grown = None if before is None else peak() - before
        return {"seconds": seconds, "grown_bytes": grown, "mapped_bytes": images.nbytes}


def step(devices: int, network: str, size: int, batch: int, rounds: int = 10) -> dict[str, Any]:
    """Seconds of a step on so many devices that a CPU plays, after the first."""
    # More threads than devices: each waits for the others within a step.
    os.environ.update(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(devices), NPROC=str(2 * devices))
    import jax
    import optax

    from kimiajax import paper
    from kimiajax.models.head import Classifier
    from kimiajax.models.registry import BACKBONES
    from kimiajax.training.engines import engine_of
    from kimiajax.training.freezing import blocks_of
    from kimiajax.training.steps import Training

    from . import networks

    backbone, engine = BACKBONES[network], engine_of("jit")
    classifier = Classifier(backbone, backbone.trunk, paper.NUM_SCANS)
    variables = networks.with_head(backbone, backbone.init(np.random.default_rng(0), size, backbone.trunk), size)
    training = Training(classifier, optax.sgd(1e-3), blocks_of(backbone, ("all",)))
    given = engine.spread(networks.draw_batch(batch, size))
    state, run = engine.place(training.start(variables, jax.random.key(0))), engine.placed_step(training)
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(run(state, given))
        seconds.append(time.perf_counter() - started)
    return {"seconds": float(np.median(seconds[1:])), "loss": float(metrics.loss) / batch}


def line_of(result: dict[str, Any]) -> str:
    """What is printed of one number."""
    low, middle, high = quartiles([sample["seconds"] for sample in result["samples"]])
    if "devices" in result:
        return (
            f"{result['devices']:3} devices played by a CPU: {middle * 1e3:8.1f} ms a step of {result['batch']} "
            f"(quartiles {low * 1e3:.1f} to {high * 1e3:.1f}), loss {result['samples'][0]['loss']:.6f}"
        )
    each, count = [1e3 * seconds / result["patches"] for seconds in (low, middle, high)], result["patches"]
    grown = max(sample["grown_bytes"] or 0 for sample in result["samples"])
    mapped = result["samples"][0]["mapped_bytes"]
    return (
        f"{count:7,} patches: {each[1]:.3f} ms a patch (quartiles {each[0]:.3f} to {each[2]:.3f}); "
        f"{grown / 2**20:,.0f} MiB grown, {mapped / 2**20:,.0f} MiB of patches mapped"
    )


if __name__ == "__main__":
    main()
