"""Which way of convolving is faster on this machine: asked of the platform and, on a CPU, of a short measurement."""

import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kimiajax.errors import UserError, check_known
from kimiajax.io.cache import keep_file, kept_file
from kimiajax.models.backbone import Backbone
from kimiajax.models.conv import KEPT, Conv, Way, convolving, tile_of
from kimiajax.runtime.environment import describe_machine
from kimiajax.runtime.precision import Precision

ROUNDS, IMAGES = 5, 2
CLEARLY = 1.1  # times as fast as plain, for compiling longer


@dataclass(frozen=True)
class Choice:
    """A way of convolving, and why it is taken."""

    way: Way
    reason: str


def choose_way(
    asked: Literal["auto", "plain", "fast"] | Any,
    backbone: Backbone,
    size: int,
    batch_size: int,
    *,
    precision: Precision = "float32",
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    cache: Path | None = None,
    before: Way | None = None,
) -> Choice:
    """How a network should convolve here.

    Args:
        asked: "auto" takes the faster way; the others are themselves.
        backbone: the network.
        size: side of its images.
        batch_size: of its batches.
        precision: of convolutions.
        devices: that run it; by default this process's.
        cache: where the measurement is kept, by processor, cores, versions, flags, network, size and images.
        before: the way in which the work began, which "auto" goes on in where it can be had.

    Raises:
        UserError: "fast" is asked for, and cannot be had; or a way that there is not.
    """
    check_known("way to convolve", asked, ("auto", "plain", "fast"))
    if asked == "plain":
        return Choice("plain", "asked for")
    devices = jax.local_devices() if devices is None else devices
    obstacle = _obstacle(precision, devices)
    if asked == "fast":
        if obstacle:
            raise UserError(f"--conv fast: {obstacle}; leave --conv out")
        return Choice("fast", "asked for")
    layer = None if obstacle else _costliest(backbone, size)
    if layer is None:
        return Choice("plain", obstacle or f"no convolution of {backbone.name} has a faster way")
    if before:
        return Choice(before, "as the run began")
    seconds = _kept_or_measured(layer, backbone, size, min(batch_size, IMAGES), cache)
    times = seconds["plain"] / seconds["fast"]
    what = f"measured on {backbone.name}'s costliest convolution: fast takes 1/{times:.2f} of plain's time"
    return Choice("fast" if times > CLEARLY else "plain", what)


def _obstacle(precision: Precision, devices: Sequence[jax.Device]) -> str | None:  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
    """Why the fast way cannot be taken."""
    if devices[0].platform != "cpu":
        return f"it is for a CPU, and this is a {devices[0].platform.upper()}"
    if len(devices) > 1:
        return f"it is for one device, and there are {len(devices)}"
    return None if precision == "float32" else f"it computes in float32, not in {precision}"


def _costliest(backbone: Backbone, size: int) -> tuple[Conv, tuple[int, ...]] | None:
    """The convolution with most multiplications of those with a fast way, of equal ones the deepest; and its input."""
    found: list[tuple[int, Conv, tuple[int, ...]]] = []

    def note(call, arguments, options, context):
        output, module, (x, *_) = call(*arguments, **options), context.module, arguments
        if isinstance(module, Conv) and tile_of(module, x.shape[-1]):
            found.append((output.size * x.shape[-1] * module.size[0] * module.size[1], module, x.shape))
        return output

    with nn.intercept_methods(note):
        backbone.shapes(size, backbone.trunk)
    if not found:
        return None
    _, module, shape = max(reversed(found), key=lambda each: each[0])
    return module.clone(parent=None, name=None), shape


def _kept_or_measured(
    layer: tuple[Conv, tuple[int, ...]], backbone: Backbone, size: int, images: int, cache: Path | None
) -> dict[str, float]:
    key = json.dumps([describe_machine(), backbone.name, size, images], sort_keys=True)
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    path = kept_file(cache, "ways", name)
    if path is not None:
        with contextlib.suppress(ValueError):  # damaged: measured again
            return json.loads(path.read_text(encoding="utf-8"))
    seconds = _measured(*layer, images)
    keep_file(cache, "ways", name, json.dumps(seconds).encode())
    return seconds


def _measured(layer: Conv, shape: tuple[int, ...], images: int) -> dict[str, float]:
    """Seconds of one convolution in each way, in turn: the medians."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0, 1, (images, *shape[1:])), jnp.float32)
    kernel = (*layer.size, shape[-1], layer.features)
    params = {"kernel": jnp.asarray(rng.standard_normal(kernel), jnp.float32)}
    params |= {"bias": jnp.zeros(layer.features)} if layer.use_bias else {}
    runs = {}
    samples: dict[Way, list[float]] = {"plain": [], "fast": []}
    for way in samples:
        with convolving(way):
            _, kept = layer.apply({"params": params}, x, mutable=[KEPT])
            variables = {"params": params, **kept}
            runs[way] = jax.jit(layer.apply).lower(variables, x).compile(), variables
    for turn in range(ROUNDS + 1):
        for way, (run, variables) in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run(variables, x))
            if turn:
                samples[way].append(time.perf_counter() - started)
    return {way: statistics.median(each) for way, each in samples.items()}
