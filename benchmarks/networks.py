"""What the networks' workloads share: random arrays under every framework's names, images, and this project's side.

Kernels are He-scaled, so that activations keep their size; all else is random as well, since a bias of 0 that is left
out, or two equal variances that are exchanged, would not show.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kimiajax import paper
from kimiajax.models.backbone import Backbone, Variables, of_blocks
from kimiajax.models.conv_autotune import choose_way
from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.runtime.environment import describe_environment
from kimiajax.runtime.precision import Precision
from kimiajax.training.steps import Batch
from weights_convert.convert import FRAMEWORKS
from weights_convert.mapping import Table
from weights_convert.mappings import all_files, files_of

from .race import Contender

# Relative to the largest output: float32 errs by some 1e-6 in features.
TOLERANCES: dict[Precision, float] = {"float32": 3e-5, "tf32": 1e-2, "bfloat16": 6e-2}
NETWORKS = ("vgg16", "inception_v3")
IN_FLOAT64 = (("JAX_ENABLE_X64", "1"), ("JAX_PLATFORMS", "cpu"))
E_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution,-individual_dot"
PEERS = (
    Contender("keras/jax", ".peers.on_keras", "keras_jax", (), (("KERAS_BACKEND", "jax"),)),
    Contender(
        "keras/jax, best flags",
        ".peers.on_keras",
        "keras_jax",
        (),
        (("KERAS_BACKEND", "jax"), ("XLA_FLAGS", E_FLAG)),
    ),
    Contender(
        "keras/tensorflow",
        ".peers.on_keras",
        "keras_tensorflow",
        (),
        (("KERAS_BACKEND", "tensorflow"), ("TF_CPP_MIN_LOG_LEVEL", "2")),
    ),
    Contender("torch", ".peers.on_torch", "torch"),
    Contender("torch.compile", ".peers.on_torch", "torch", (("compile", True),)),
)
SLOWER = ("keras/jax", "torch")  # on a CPU: the same framework in its other setting was as fast, to 2 %, or faster


def draw_variables(backbone: Backbone, size: int, blocks: tuple[str, ...], seed: int = 0) -> Variables:
    """Random parameters and running statistics, NumPy arrays."""
    rng = np.random.default_rng(seed)

    def filled(path: tuple, leaf: np.ndarray) -> np.ndarray:
        if path[-1].key == "kernel":
            return leaf
        drawn = rng.uniform(0.5, 2, leaf.shape) if path[-1].key == "var" else 0.1 * rng.standard_normal(leaf.shape)
        return drawn.astype(np.float32)

    return jax.tree_util.tree_map_with_path(filled, backbone.init(rng, size, blocks))


def write_inputs(
    folder: Path, network: str, size: int, batch: int, blocks: tuple[str, ...], head: bool = False
) -> None:
    """`images.npy`, float32 [b h w 3] in [0, 1], and the arrays: `ours.npz`, `keras.npz`, `torch.npz`, `labels.npy`."""
    backbone = BACKBONES[network]
    variables = draw_variables(backbone, size, blocks)
    rng = np.random.default_rng(1)
    if head:
        variables = with_head(backbone, variables, size)
    flat = flatten_dict(variables, sep="/")
    np.savez(folder / "ours.npz", **flat)
    for name, table in _tables(network).items():
        given = {key: flat["/".join(to)] for key, (to, _) in table.items() if "/".join(to) in flat}
        np.savez(folder / f"{name}.npz", **{key.replace("/", "|"): array for key, array in given.items()})
    np.save(folder / "images.npy", rng.uniform(0, 1, (batch, size, size, 3)).astype(np.float32))
    np.save(folder / "labels.npy", np.arange(batch, dtype=np.int32) % paper.NUM_SCANS)


def _tables(network: str) -> dict[str, Table]:
    """Where each framework's arrays of this network and its head go, by their names there."""
    return {
        name: files_of(network, name).tables[0] | module.HEAD_TABLE
        for name, module in FRAMEWORKS.items()
        if network in dict(all_files(name))
    }


def model_of(network: str) -> dict[str, Any]:
    """What the other frameworks' sides need to know of a network: see `kimiajax.parity.job.Job`."""
    backbone, model = BACKBONES[network], files_of(network, "keras").model
    return {
        "application": model.application,
        "layers": dict(model.layers),
        "features": backbone.features,
        "bottleneck": backbone.bottleneck,
        "pooled": backbone.before("pooled") if "pooled" in backbone.blocks else None,
        "top": backbone.features in backbone.top,
    }


def peers_of(network: str, peers: Sequence[Contender]) -> tuple[Contender, ...]:
    """Those that have the network: torch's are torchvision's, and so are those that run what torch exports."""
    known = _tables(network)
    return tuple(peer for peer in peers if ("keras" if peer.name.startswith("keras") else "torch") in known)


def names_of(network: str, paths: dict[str, str]) -> dict[str, dict[str, str]]:
    """Some parameters' names in every framework: framework -> what -> name."""
    names: dict[str, dict[str, str]] = {"ours": paths}
    for framework, table in _tables(network).items():
        to_name = {"/".join(to[1:]): name for name, (to, _) in table.items()}
        names[framework] = {what: to_name[path] for what, path in paths.items()}
    return names


def with_head(backbone: Backbone, variables: Variables, size: int) -> Variables:
    """Those of the blocks up to the bottleneck, and random ones of a head."""
    shape = backbone.tap_shapes(variables, size, backbone.trunk)[backbone.bottleneck]
    head = Classifier(backbone, (), paper.NUM_SCANS).init_head(jax.random.key(0), shape)
    trunk = of_blocks(variables, backbone.trunk)
    return {**trunk, "params": {**trunk["params"], "head": jax.tree.map(np.array, head)}}


def whole_batch(images: np.ndarray, labels: np.ndarray) -> Batch:
    """A batch without padding."""
    return Batch(images, labels, np.ones(len(labels), bool), np.arange(len(labels), dtype=np.int32))


def draw_batch(batch: int, size: int) -> Batch:
    """Random gray patches of all scans in turn."""
    images = np.random.default_rng(1).integers(0, 256, (batch, size, size), dtype=np.uint8)
    return whole_batch(images, np.arange(batch, dtype=np.int32) % paper.NUM_SCANS)


def read_variables(folder: str) -> Variables:
    """`ours.npz` as a tree."""
    with np.load(Path(folder) / "ours.npz") as arrays:
        return unflatten_dict(dict(arrays), sep="/")


def our_backbone(job: dict[str, Any], devices: Sequence[jax.Device]) -> Backbone:
    """The network without dropout, convolving on these devices as the job says, "auto" if it says nothing."""
    backbone = BACKBONES[job["network"]]
    options = {"precision": job["precision"], "devices": devices}
    choice = choose_way(job.get("conv", "auto"), backbone, job["size"], job["batch"], **options)
    return replace(backbone, conv=choice.way, dropout=0.0)


def compiled(function: Any, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """A jitted function as a program for these arguments, and the seconds of its phases."""
    started = time.perf_counter()
    lowered = function.lower(*arguments)
    lower = time.perf_counter()
    program = lowered.compile()
    return program, {"lower": lower - started, "compile": time.perf_counter() - lower}


def about_ours(backbone: Backbone, compiled: Any = None) -> dict[str, Any]:
    """What the record says of this project's side."""
    about = {"conv": backbone.conv, "environment": describe_environment()}
    if compiled is not None:
        memory = compiled.memory_analysis()
        about["xla_flops"] = (compiled.cost_analysis() or {}).get("flops")
        kinds = ("argument", "output", "temp")
        about["program_bytes"] = {kind: getattr(memory, f"{kind}_size_in_bytes", None) for kind in kinds}
    about["device_peak_bytes"] = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return about
