"""`kimiajax bench roofline NETWORK`: which limit binds each block of a network on this device.

Per block of the frozen pass: operations counted from the layers and by XLA, the bytes that must move at least (input,
output and arrays, once), the time, and the share of what a large matrix product reaches in the same run. A block's
least time is the larger of operations over that peak and bytes over the bandwidth of a copy; the larger one is its
limit. Winograd's algorithm multiplies less than is counted, so its share can pass 100 %.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kimiajax import paper
from kimiajax.models.backbone import Backbone
from kimiajax.models.conv_autotune import choose_way
from kimiajax.models.flops import flops_of
from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.runtime.environment import describe_environment
from kimiajax.runtime.precision import Precision, compute_dtype, products_in
from kimiajax.training.engines import JitEngine
from kimiajax.training.freezing import blocks_of
from kimiajax.training.steps import Training, train_step

from . import networks

ROUNDS, SIDE, COPIED = 7, {"cpu": 2048, "gpu": 8192, "tpu": 8192}, {"cpu": 2**26, "gpu": 2**28, "tpu": 2**28}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the blocks, and writes them as JSON and as a picture where asked to."""
    parser = argparse.ArgumentParser(prog="kimiajax bench roofline", description=__doc__.split("\n\n")[0])
    parser.add_argument("network", choices=tuple(BACKBONES))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", default="float32", choices=("float32", "tf32", "bfloat16"))
    parser.add_argument("--conv", default="auto", choices=("auto", "plain", "fast"))
    parser.add_argument("--out", type=Path, help="JSON file to write; a picture goes beside it, as .svg")
    options = parser.parse_args(argv)
    record = measure(options.network, options.batch, options.size, options.precision, options.conv)
    print("\n".join(lines_of(record)))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        from .plots import draw_roofline

        draw_roofline(record, options.out.with_suffix(".svg"))
    return 0


def measure(network: str, batch: int, size: int, precision: Precision, conv: str = "auto") -> dict[str, Any]:
    """Peaks of this device and what each block takes, with all samples."""
    backbone = BACKBONES[network]
    choice = choose_way(conv, backbone, size, batch, precision=precision, devices=jax.local_devices()[:1])
    backbone = replace(backbone, conv=choice.way)
    blocks = backbone.up_to(backbone.features)
    variables = jax.device_put(backbone.init(np.random.default_rng(0), size, blocks))
    kept = backbone.fold_for_inference(variables, size, blocks)
    peak, bandwidth = matrix_peak(precision), copy_bandwidth()
    x = jnp.asarray(
        np.random.default_rng(1).uniform(0, 1, (batch, size, size, 3)), compute_dtype(precision) or "float32"
    )
    rows = []
    for block in blocks:
        row, x = _block(backbone, kept, variables, x, block, precision)
        row["least_seconds"] = {"operations": row["flops"] / peak, "bytes": row["bytes"] / bandwidth}
        row["limit"] = max(row["least_seconds"], key=row["least_seconds"].__getitem__)
        row["share_of_peak"] = row["flops"] / statistics.median(row["seconds"]) / peak
        rows.append(row)
    return {
        "network": network,
        "batch": batch,
        "size": size,
        "precision": precision,
        "conv": choice.way,
        "peak_flops_per_second": peak,
        "bytes_per_second": bandwidth,
        "blocks": rows,
        "step": _step(backbone, variables, batch, size, precision),
        "environment": describe_environment(),
    }


def _step(backbone: Backbone, variables: Any, batch: int, size: int, precision: Precision) -> dict[str, Any]:
    """A fine-tuning step of the paper's blocks and the head: operations of what it must compute, and its seconds."""
    classifier = Classifier(backbone, backbone.trunk, paper.NUM_SCANS)
    training = Training(classifier, optax.sgd(1e-4, 0.9), blocks_of(backbone, ("paper",)), precision=precision)
    given = jax.device_put(networks.draw_batch(batch, size))
    state = training.start(networks.with_head(backbone, variables, size), jax.random.key(0))
    plain = replace(training, classifier=replace(classifier, backbone=replace(backbone, conv="plain")))
    flops = flops_of(lambda state, given: train_step(plain, state, given), state, given)
    step, held = JitEngine(tuple(jax.local_devices()[:1])).placed_step(training), [state]

    def run() -> Any:
        held[0], metrics = step(held[0], given)
        return metrics

    return {"flops": flops, "seconds": timed(run)[0]}


def _block(
    backbone: Backbone, kept: Any, variables: Any, x: jax.Array, block: str, precision: Precision
) -> tuple[dict[str, Any], jax.Array]:
    """One block's row, and its output."""

    def forward(variables: Any, x: jax.Array) -> jax.Array:
        with products_in(precision):
            return backbone.apply(variables, x, (block,), dtype=compute_dtype(precision))[0]

    def plain(variables: Any, x: jax.Array) -> jax.Array:
        return replace(backbone, conv="plain").apply(variables, x, (block,))[0]

    compiled = jax.jit(forward).lower(kept, x).compile()
    seconds, output = timed(lambda: compiled(kept, x))
    arrays = [leaf for part in variables.values() for leaf in jax.tree.leaves(part.get(block, {}))]
    row = {
        "block": block,
        "flops": flops_of(plain, variables, x),
        "xla_flops": (compiled.cost_analysis() or {}).get("flops"),
        "bytes": x.nbytes + output.nbytes + sum(leaf.size * x.dtype.itemsize for leaf in arrays),
        "seconds": seconds,
    }
    return row, output


def timed(run: Callable[[], Any]) -> tuple[list[float], Any]:
    """Seconds of some runs after the first, and what the last gave."""
    output, seconds = jax.block_until_ready(run()), []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        output = jax.block_until_ready(run())
        seconds.append(time.perf_counter() - started)
    return seconds, output


def matrix_peak(precision: Precision) -> float:
    """Operations per second of a large square matrix product in this precision: the best of some."""
    side = SIDE[jax.default_backend()]
    a = jnp.asarray(np.random.default_rng(0).standard_normal((side, side)), compute_dtype(precision) or "float32")

    @jax.jit
    def product(a: jax.Array) -> jax.Array:
        with products_in(precision):
            return a @ a

    return 2 * side**3 / min(timed(lambda: product(a))[0])


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of adding 1 to a large array in place: the best of some."""
    held = [jnp.zeros(COPIED[jax.default_backend()], jnp.float32)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def run() -> jax.Array:
        held[0] = add(held[0])
        return held[0]

    return 2 * held[0].nbytes / min(timed(run)[0])


def lines_of(record: dict[str, Any]) -> list[str]:
    """The table that is printed."""
    label = ", Winograd: fewer multiplications than counted" if record["conv"] == "fast" else ""
    head = (
        f"{record['network']}, {record['batch']} images of {record['size']} pixels, {record['precision']}, "
        f"{record['conv']} convolutions{label}\npeak {record['peak_flops_per_second'] / 1e9:,.0f} GFLOP/s by a matrix "
        f"product, {record['bytes_per_second'] / 1e9:,.0f} GB/s by a copy\n"
    )
    columns = f"{'block':8} {'GFLOP':>8} {'XLA says':>9} {'MB':>8} {'ms':>9} {'GFLOP/s':>9} {'of peak':>8}  limit"
    lines = [head, columns]
    for row in record["blocks"]:
        seconds = statistics.median(row["seconds"])
        said = "-" if row["xla_flops"] is None else f"{row['xla_flops'] / 1e9:.2f}"
        lines.append(
            f"{row['block']:8} {row['flops'] / 1e9:8.2f} {said:>9} {row['bytes'] / 1e6:8.1f} {seconds * 1e3:9.2f} "
            f"{row['flops'] / seconds / 1e9:9.1f} {row['share_of_peak']:8.0%}  {row['limit']}"
        )
    total, flops = (
        sum(statistics.median(row["seconds"]) for row in record["blocks"]),
        sum(row["flops"] for row in record["blocks"]),
    )
    share = flops / total / record["peak_flops_per_second"]
    lines.append(
        f"{'sum':8} {flops / 1e9:8.2f} {'':9} {'':8} {total * 1e3:9.2f} {flops / total / 1e9:9.1f} {share:8.0%}"
        f"  ({record['batch'] / total:,.1f} images/s)"
    )
    seconds, flops = statistics.median(record["step"]["seconds"]), record["step"]["flops"]
    lines.append(
        f"fine-tuning step, backward where it trains: {flops / 1e9:,.1f} GFLOP in {seconds * 1e3:,.1f} ms, "
        f"{record['batch'] / seconds:,.1f} images/s, MFU {flops / seconds / record['peak_flops_per_second']:.0%}"
    )
    return lines
