"""Frozen features: float32 images in memory to the paper's feature vectors, by the compiled pass that the table uses.

Claim: on a CPU, VGG16's features come 1.7 times as fast as the best peer's, Inception-v3's as fast at 8 images and 1.1
times as fast at 32.

Every contender has the same arrays and images, and awaits its result. The judge is this project's plain convolutions in
float64, for the first two images.
"""

import itertools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kimiajax.features.extract import Extractor
from kimiajax.models.registry import BACKBONES

from .. import networks
from ..contender import Work, serve
from ..networks import NETWORKS, TOLERANCES
from ..race import OURS, Case, Contender, prepare_apart

JUDGED = 2
TARGETS = {("vgg16", 8): 1.7, ("vgg16", 32): 1.7, ("inception_v3", 8): 1.0, ("inception_v3", 32): 1.1}
PEERS = (
    *networks.PEERS,
    Contender("onnxruntime", ".peers.on_onnxruntime", "onnxruntime"),
    Contender("openvino", ".peers.on_openvino", "openvino"),
)


def cases(full: bool = False, **given: Any) -> list[Case]:
    """Both networks at 8 and 32 images of 224 pixels; in full at 1 and 128, and at 299 pixels, as well."""
    chosen = {
        "network": given.get("networks", NETWORKS),
        "size": given.get("sizes", (224, 299) if full else (224,)),
        "batch": given.get("batches", (1, 8, 32, 128) if full else (8, 32)),
        "precision": given.get("precisions", ("float32",)),
    }
    return [case(**dict(zip(chosen, values))) for values in itertools.product(*chosen.values())]


def case(network: str, size: int, batch: int, precision: str) -> Case:
    settings = {"network": network, "size": size, "batch": batch, "precision": precision}
    judge = Contender("judge", ".workloads.features", None, (("judge", True),), networks.IN_FLOAT64)
    return Case(
        workload="features",
        settings=settings,
        amount=batch,
        unit="images",
        shared=networks.model_of(network),
        contenders=(Contender(OURS, ".workloads.features"), *networks.peers_of(network, PEERS)),
        tolerance={"features": TOLERANCES[precision]},
        write=lambda folder: write(folder, network, size, batch),
        full_only=networks.SLOWER,
        judge=judge,
        target=TARGETS.get((network, batch)) if size == 224 and precision == "float32" else None,
    )


def blocks_of(network: str) -> tuple[str, ...]:
    backbone = BACKBONES[network]
    return backbone.up_to(backbone.features)


def write(folder: Path, network: str, size: int, batch: int) -> None:
    """The inputs; and where PyTorch is there, the ONNX file that two of the peers run."""
    networks.write_inputs(folder, network, size, batch, blocks_of(network))
    exporter = Contender("export", ".peers.on_torch", "torch", (("do", "export"),))
    if exporter.present:
        prepare_apart(exporter, case(network, size, batch, "float32"), folder)


def prepare(job: dict[str, Any]) -> Work:
    variables, images = networks.read_variables(job["folder"]), np.load(Path(job["folder"]) / "images.npy")
    if job.get("judge"):
        return _judge(job, variables, images)
    backbone = networks.our_backbone(job, jax.local_devices()[:1])
    tap, size = backbone.features, job["size"]
    started = time.perf_counter()
    extractor = Extractor(backbone, variables, size, (tap,), precision=job["precision"])
    x = jax.block_until_ready(jnp.asarray(images))
    folded = time.perf_counter()
    program = extractor.program(extractor.parts(x))
    phases = {"fold": folded - started, "compile": time.perf_counter() - folded}
    about = networks.about_ours(backbone, program) | {"threads": extractor.threads}

    def fetch(parts: list[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
        return {"features": np.concatenate([np.asarray(part[tap]) for part in parts])}

    return Work(lambda: jax.block_until_ready(extractor(x)), fetch, phases, about)


def _judge(job: dict[str, Any], variables: Any, images: np.ndarray) -> Work:
    backbone = BACKBONES[job["network"]]
    variables = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables)
    x = images[:JUDGED].astype(np.float64)

    def run() -> jax.Array:
        return jax.block_until_ready(backbone.apply(variables, x, blocks_of(job["network"]))[0])

    return Work(run, lambda y: {"features": np.asarray(y)})


if __name__ == "__main__":
    serve(prepare)
