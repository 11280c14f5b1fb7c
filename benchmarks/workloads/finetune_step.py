"""A step of fine-tuning: SGD with momentum on the paper's blocks and the head, frozen blocks forward only.

Claim: on a CPU at 32 images, VGG16's step is 2.3 times as fast as the best peer's and Inception-v3's 1.3 times; with
the frozen blocks' outputs stored, VGG16's tail is 1.8 times as fast.

Three scopes: "step", images in, the frozen prefix in each step, as with augmentation; "tail", on stored outputs of the
frozen blocks, as without; "whole", every block trained. The head drops nothing here, since no two frameworks drop the
same. Outputs are the loss and the change of two trained kernels after the first step; the judge takes the same step
with plain convolutions in float64.
"""

import itertools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from kimiajax import paper
from kimiajax.models.backbone import Backbone, Variables, of_blocks
from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.training.engines import engine_of
from kimiajax.training.freezing import blocks_of
from kimiajax.training.frozen_prefix import PrefixedStep
from kimiajax.training.optimizer import Optimization
from kimiajax.training.steps import Training

from .. import networks
from ..contender import Work, serve
from ..networks import NETWORKS, PEERS
from ..race import OURS, Case, Contender

SCOPES = ("step", "tail", "whole")
LEARNING_RATE, MOMENTUM = 1e-3, 0.9
# Gradients of Inception-v3 err by 7e-3 in float32, here and in PyTorch alike: a ReLU's input changes its sign.
TOLERANCES = {"float32": (1e-4, 2e-2), "tf32": (1e-2, 2e-1), "bfloat16": (6e-2, 4e-1)}  # of the loss, of gradients
TARGETS = {("vgg16", "step"): 2.3, ("inception_v3", "step"): 1.3, ("vgg16", "tail"): 1.8}


def cases(full: bool = False, **given: Any) -> list[Case]:
    """Each network's step, and VGG16's tail; in full Inception-v3's tail and both networks as a whole, too."""
    chosen_networks = given.get("networks", NETWORKS)
    scopes = {name: SCOPES if full else ("step", "tail") if name == "vgg16" else ("step",) for name in chosen_networks}
    chosen = {
        "size": given.get("sizes", (224,)),
        "batch": given.get("batches", (32,)),
        "precision": given.get("precisions", ("float32",)),
        "engine": given.get("engines", ("jit",)),
    }
    return [
        case(network, scope, **dict(zip(chosen, values)))
        for network in chosen_networks
        for scope in given.get("scopes", scopes[network])
        for values in itertools.product(*chosen.values())
    ]


def case(network: str, scope: str, size: int, batch: int, precision: str, engine: str) -> Case:
    backbone = BACKBONES[network]
    settings = {
        "network": network,
        "scope": scope,
        "size": size,
        "batch": batch,
        "precision": precision,
        "engine": engine,
    }
    of_loss, of_gradients = TOLERANCES[precision]
    boundary = None if scope == "whole" else backbone.before(backbone.fine_tuned[0])
    shared = {"boundary": boundary, "cached": scope == "tail", "classes": paper.NUM_SCANS, "hidden": backbone.hidden}
    shared |= networks.model_of(network)
    shared |= {
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "watched": networks.names_of(network, _watched(backbone)),
    }
    return Case(
        workload="finetune_step",
        settings=settings,
        shared=shared,
        amount=batch,
        unit="images",
        contenders=(Contender(OURS, ".workloads.finetune_step"), *networks.peers_of(network, PEERS)),
        tolerance={"loss": of_loss, "first": of_gradients, "last": of_gradients},
        write=lambda folder: networks.write_inputs(folder, network, size, batch, backbone.trunk, head=True),
        full_only=networks.SLOWER,
        judge=Contender("judge", ".workloads.finetune_step", None, (("judge", True),), networks.IN_FLOAT64),
        target=TARGETS.get((network, scope)) if (size, batch, precision) == (224, 32, "float32") else None,
    )


def _watched(backbone: Backbone) -> dict[str, str]:
    """A kernel of the first block that trains, the last one there to be made, and the one next to the loss."""
    shapes = backbone.shapes(backbone.smallest, backbone.trunk)["params"][backbone.fine_tuned[0]]
    kernels = ["/".join(path) for path in flatten_dict(shapes) if path[-1] == "kernel"]
    return {"first": f"{backbone.fine_tuned[0]}/{kernels[0]}", "last": "head/logits/kernel"}


def prepare(job: dict[str, Any]) -> Work:
    variables, folder = networks.read_variables(job["folder"]), Path(job["folder"])
    engine = engine_of("jit" if job.get("judge") else job["engine"])
    backbone = networks.our_backbone({"conv": "plain", **job} if job.get("judge") else job, engine.devices)
    if job.get("judge"):
        variables = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables)
    images, labels = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
    boundary, span = job["boundary"], backbone.trunk
    if job["cached"]:
        span = backbone.span(boundary, backbone.bottleneck)[1:]
        images = _stored(backbone, variables, images, boundary)
        variables = of_blocks(variables, (*span, "head"))
    training = Training(
        Classifier(backbone, span, job["classes"]),
        Optimization(learning_rate=job["learning_rate"], momentum=job["momentum"]).over(1, 1).optimizer,
        blocks_of(backbone, ("paper",) if boundary else ("all",)),
        precision=job["precision"],
    )
    watched, params = job["watched"]["ours"], flatten_dict(variables["params"], sep="/")
    start = {what: params[name] for what, name in watched.items()}
    batch = engine.spread(networks.whole_batch(images, labels))
    state = engine.place(training.start(variables, jax.random.key(0)))
    step, program = engine.placed_step(training), None
    if isinstance(step, PrefixedStep):  # several programs, which its first call compiles
        started = time.perf_counter()
        jax.block_until_ready(step(engine.place(training.start(variables, jax.random.key(0))), batch))
        phases = {"compile and first step": time.perf_counter() - started}
    else:
        step, phases = networks.compiled(engine.wrap_step(training), state, batch)
        program = step
    held = [state]

    def run() -> Any:
        held[0], metrics = jax.block_until_ready(step(held[0], batch))  # the state is donated
        return metrics

    def fetch(metrics: Any) -> dict[str, np.ndarray]:
        params = flatten_dict(held[0].params, sep="/")
        moved = {what: np.asarray(params[name]) - start[what] for what, name in watched.items()}
        return {"loss": np.atleast_1d(np.sum(metrics.loss) / np.sum(metrics.count)), **moved}

    return Work(run, fetch, phases, networks.about_ours(backbone, program))


def _stored(backbone: Backbone, variables: Variables, images: np.ndarray, boundary: str) -> np.ndarray:
    """The boundary's outputs."""
    blocks = backbone.up_to(boundary)
    forward = jax.jit(lambda variables, x: backbone.apply(variables, x, blocks)[0])
    return np.concatenate([forward(variables, images[start : start + 8]) for start in range(0, len(images), 8)])


if __name__ == "__main__":
    serve(prepare)
