"""Images per second of feature extraction and of the fine-tuning step, for both networks.

    python -m benchmarks.throughput [--networks vgg16 inception_v3] [--workloads features finetune_step]
                                    [--batches 8 32] [--sizes 224] [--precision float32] [--rounds 10]
                                    [--out FILE]

Claims nothing by itself: no peer runs beside it. It answers how fast this project runs on this machine, phase by phase,
with every sample kept. Inputs are random gray patches on the device, weights are He-scaled random ones, the fine-tuning
step is the paper's (frozen blocks forward, its blocks and the head forward and backward). Each configuration runs in a
process of its own; needs the core packages only.
"""

import argparse
import functools
import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.interleaved import measure_apart, write_record
from kimiajax import paper
from kimiajax.data.pixels import gray_to_unit_rgb
from kimiajax.finetune.blocks import TrainableBlocks
from kimiajax.finetune.optimizer import fine_tuning_sgd, for_blocks
from kimiajax.finetune.state import new_state
from kimiajax.finetune.steps import Batch, train_step
from kimiajax.models.backbone import BACKBONES, Classifier


def features(network: str, batch: int, size: int) -> tuple[Any, tuple]:
    """The function and its arguments: gray patches to the paper's feature vectors."""
    backbone = BACKBONES[network]
    blocks = backbone.up_to(backbone.features)
    variables = jax.device_put(backbone.init(np.random.default_rng(0), size, blocks))
    images = jnp.asarray(np.random.default_rng(1).integers(0, 255, (batch, size, size), dtype=np.uint8))
    return jax.jit(lambda v, x: backbone.apply(v, gray_to_unit_rgb(x), blocks)[0]), (variables, images)


def finetune_step(network: str, batch: int, size: int) -> tuple[Any, tuple]:
    """The function and its arguments: one step of SGD on the paper's blocks and the head."""
    backbone = BACKBONES[network]
    classifier = Classifier(backbone, backbone.up_to(backbone.bottleneck), paper.NUM_SCANS)
    variables = backbone.init(np.random.default_rng(0), size, classifier.blocks)
    images = np.random.default_rng(1).integers(0, 255, (batch, size, size), dtype=np.uint8)
    shapes = backbone.tap_shapes(variables, size, classifier.blocks)
    variables["params"]["head"] = classifier.init_head(jax.random.key(0), shapes[backbone.bottleneck])
    blocks = TrainableBlocks((*backbone.fine_tuned, "head"))
    optimizer = for_blocks(fine_tuning_sgd(1e-4, 0.9), blocks)
    state = new_state(variables, optimizer, blocks, jax.random.key(0))
    labels = jnp.arange(batch, dtype=jnp.int32) % paper.NUM_SCANS
    step = functools.partial(train_step, classifier, optimizer, blocks)
    return jax.jit(step), (state, Batch(jnp.asarray(images), labels, jnp.ones(batch, bool)))


WORKLOADS = {"features": features, "finetune_step": finetune_step}


def measure(
    workload: str, network: str, batch: int, size: int, rounds: int, precision: str = "float32"
) -> dict[str, Any]:
    """Times the phases of one configuration; seconds, bytes, and images per second of the median round.

    `precision` is that of matrix products and convolutions, as `jax.default_matmul_precision` takes it.
    """
    with jax.default_matmul_precision(precision):
        return {"precision": precision, **_measure(workload, network, batch, size, rounds)}


def _measure(workload: str, network: str, batch: int, size: int, rounds: int) -> dict[str, Any]:
    function, arguments = WORKLOADS[workload](network, batch, size)
    clock = [time.perf_counter()]

    def lap() -> float:
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    lowered = function.lower(*arguments)
    lowering = lap()
    compiled = lowered.compile()
    compiling = lap()
    jax.block_until_ready(compiled(*arguments))
    first = lap()
    samples = []
    for _ in range(rounds):
        jax.block_until_ready(compiled(*arguments))
        samples.append(lap())
    quartiles = statistics.quantiles(samples, n=4) if rounds > 1 else samples * 3
    device = jax.devices()[0].memory_stats() or {}
    return {
        "workload": workload,
        "network": network,
        "batch": batch,
        "size": size,
        "seconds": {"lower": lowering, "compile": compiling, "first_run": first, "steady": samples},
        "images_per_second": batch / statistics.median(samples),
        "images_per_second_iqr": [batch / quartiles[2], batch / quartiles[0]],
        "xla_flops": (compiled.cost_analysis() or {}).get("flops"),
        "device_peak_bytes": device.get("peak_bytes_in_use"),
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput")
    parser.add_argument("--networks", nargs="+", default=["vgg16", "inception_v3"], choices=("vgg16", "inception_v3"))
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224])
    parser.add_argument("--precision", default="float32", choices=("float32", "tensorfloat32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(measure(**options.one)))
        return
    results = []
    for network in options.networks:
        for workload in options.workloads:
            for size in options.sizes:
                for batch in options.batches:
                    configuration = {"workload": workload, "network": network, "batch": batch, "size": size}
                    configuration |= {"rounds": options.rounds, "precision": options.precision}
                    result = measure_apart("benchmarks.throughput", configuration)
                    results.append(result)
                    low, high = result["images_per_second_iqr"]
                    print(
                        f"{workload:14} {network:13} {size} px, batch {batch:3}: {result['images_per_second']:8.1f} "
                        f"images/s (quartiles {low:.1f} to {high:.1f}), compile {result['seconds']['compile']:.1f} s",
                        flush=True,
                    )
    if options.out:
        write_record(options.out, "none: no peer runs beside it", results)


if __name__ == "__main__":
    main()
