"""Images per second of feature extraction and of the fine-tuning step, for both networks.

    python -m benchmarks.throughput [--networks vgg16 inception_v3] [--workloads features finetune_step]
                                    [--batches 8 32] [--sizes 224] [--precisions float32] [--engines jit]
                                    [--convs plain] [--augmentation none] [--rounds 10] [--out FILE]

Claims nothing by itself: no peer runs beside it. It answers how fast this project runs on this machine, phase by phase,
with every sample kept. Inputs are random gray patches on the device, weights are He-scaled random ones, the fine-tuning
step is the paper's (augmentation, if any, and frozen blocks forward; its blocks and the head forward and backward), its
state donated. Each configuration runs in a process of its own; needs the core packages only.
"""

import argparse
import itertools
import json
import resource
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.interleaved import measure_apart, quartiles, write_record
from kimiajax import paper
from kimiajax.data.augment import AUGMENTATIONS
from kimiajax.data.pixels import gray_to_unit_rgb
from kimiajax.finetune.blocks import blocks_of
from kimiajax.finetune.engines import ENGINES, engine_of
from kimiajax.finetune.optimizer import Optimization
from kimiajax.finetune.steps import Batch, Training
from kimiajax.models.backbone import BACKBONES, Backbone, Classifier
from kimiajax.models.ways import choose_way
from kimiajax.precision import compute_dtype, products_in


@dataclass(frozen=True)
class Configuration:
    """What is timed; `engine` and `augmentation` are the fine-tuning step's, and "fast" convolutions a CPU's."""

    workload: str
    network: str
    batch: int
    size: int
    rounds: int
    precision: str = "float32"
    engine: str = "jit"
    augmentation: str = "none"
    conv: str = "plain"

    @property
    def backbone(self) -> Backbone:
        choose_way(self.conv, BACKBONES[self.network], self.size, self.batch, precision=self.precision)
        return replace(BACKBONES[self.network], conv=self.conv)


def features(c: Configuration) -> tuple[Any, tuple]:
    """The function and its arguments: gray patches to the paper's feature vectors."""
    backbone = c.backbone
    blocks = backbone.up_to(backbone.features)
    variables = jax.device_put(backbone.init(np.random.default_rng(0), c.size, blocks))
    variables = backbone.fold_for_inference(variables, c.size, blocks)
    images = jnp.asarray(np.random.default_rng(1).integers(0, 255, (c.batch, c.size, c.size), dtype=np.uint8))

    def forward(variables: Any, images: jax.Array) -> jax.Array:
        with products_in(c.precision):
            return backbone.apply(variables, gray_to_unit_rgb(images), blocks, dtype=compute_dtype(c.precision))[0]

    return jax.jit(forward), (variables, images)


def finetune_step(c: Configuration) -> tuple[Any, tuple]:
    """The function and its arguments: one step of SGD on the paper's blocks and the head, under an engine."""
    backbone, engine = c.backbone, engine_of(c.engine)
    classifier = Classifier(backbone, backbone.trunk, paper.NUM_SCANS)
    variables = backbone.init(np.random.default_rng(0), c.size, classifier.blocks)
    images = np.random.default_rng(1).integers(0, 255, (c.batch, c.size, c.size), dtype=np.uint8)
    shapes = backbone.tap_shapes(variables, c.size, classifier.blocks)
    variables["params"]["head"] = classifier.init_head(jax.random.key(0), shapes[backbone.bottleneck])
    training = Training(
        classifier,
        Optimization().over(1, 1).optimizer,
        blocks_of(backbone, ("paper",)),
        augmentation=AUGMENTATIONS[c.augmentation],
        precision=c.precision,
    )
    labels = np.arange(c.batch, dtype=np.int32) % paper.NUM_SCANS
    batch = Batch(images, labels, np.ones(c.batch, bool), np.arange(c.batch, dtype=np.int32))
    state = engine.place(training.start(variables, jax.random.key(0)))
    return engine.wrap_step(training), (state, engine.spread(batch))


WORKLOADS = {"features": features, "finetune_step": finetune_step}


def measure(c: Configuration) -> dict[str, Any]:
    """Times the phases of one configuration; seconds, bytes, and images per second of the median round."""
    function, (carried, given) = WORKLOADS[c.workload](c)
    clock = [time.perf_counter()]

    def lap() -> float:
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    def run(carried: Any) -> Any:
        """A step's state goes into the next, since it is donated."""
        output = jax.block_until_ready(compiled(carried, given))
        return output[0] if c.workload == "finetune_step" else carried

    lowered = function.lower(carried, given)
    lowering = lap()
    compiled = lowered.compile()
    compiling = lap()
    carried = run(carried)
    first = lap()
    samples = []
    for _ in range(c.rounds):
        carried = run(carried)
        samples.append(lap())
    slow, middle, fast = (c.batch / seconds for seconds in reversed(quartiles(samples)))
    device, memory = jax.devices()[0].memory_stats() or {}, compiled.memory_analysis()
    return {
        **asdict(c),
        "devices": len(jax.devices()),
        "seconds": {"lower": lowering, "compile": compiling, "first_run": first, "steady": samples},
        "images_per_second": middle,
        "images_per_second_iqr": [slow, fast],
        "xla_flops": (compiled.cost_analysis() or {}).get("flops"),
        "program_bytes": {
            name: getattr(memory, f"{name}_size_in_bytes", None) for name in ("argument", "output", "temp")
        },
        "device_peak_bytes": device.get("peak_bytes_in_use"),
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput")
    parser.add_argument("--networks", nargs="+", default=["vgg16", "inception_v3"], choices=("vgg16", "inception_v3"))
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224])
    parser.add_argument("--precisions", nargs="+", default=["float32"], choices=("float32", "tf32", "bfloat16"))
    parser.add_argument("--engines", nargs="+", default=["jit"], choices=list(ENGINES))
    parser.add_argument("--convs", nargs="+", default=["plain"], choices=("plain", "fast"))
    parser.add_argument("--augmentation", default="none", choices=list(AUGMENTATIONS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(measure(Configuration(**options.one))))
        return
    results = []
    for network, workload, size, batch, precision, conv in itertools.product(
        options.networks, options.workloads, options.sizes, options.batches, options.precisions, options.convs
    ):
        for engine in options.engines if workload == "finetune_step" else ["jit"]:
            augmentation = options.augmentation if workload == "finetune_step" else "none"
            c = Configuration(workload, network, batch, size, options.rounds, precision, engine, augmentation, conv)
            result = measure_apart("benchmarks.throughput", asdict(c))
            results.append(result)
            slow, fast = result["images_per_second_iqr"]
            print(
                f"{workload:14} {network:13} {size} px, batch {batch:3}, {precision:8} {engine:4} {conv:5}: "
                f"{result['images_per_second']:8.1f} images/s (quartiles {slow:.1f} to {fast:.1f}), compile "
                f"{result['seconds']['compile']:.1f} s",
                flush=True,
            )
    if options.out:
        write_record(options.out, "none: no peer runs beside it", results)


if __name__ == "__main__":
    main()
