"""Configurations timed in turn, A B C A B C, each in a fresh process, every sample kept."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kimiajax.runtime import allocator


def module_named(name: str) -> str:
    """The full name of a module; one that begins with a dot is of this package, whatever that is called.

    That is `benchmarks` in the source tree. The wheel has it as `kimiajax.benchmarks`, since a package in site-packages
    called `benchmarks` would collide with those of other projects.
    """
    return importlib.util.resolve_name(name, __package__)


def measure_apart(module: str, configuration: dict[str, Any]) -> dict[str, Any]:
    """`python -m MODULE --one CONFIGURATION` in a fresh process: what one leaves in caches and pools does not reach the
    next. It prints its result as JSON in its last line."""
    command = [sys.executable, "-m", module_named(module), "--one", json.dumps(configuration)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **allocator.settings()})
    if done.returncode:
        raise SystemExit(f"{configuration} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_in_turn(module: str, configurations: Sequence[dict[str, Any]], rounds: int) -> list[list[dict[str, Any]]]:
    """The results of each configuration, [configurations rounds]."""
    results: list[list[dict[str, Any]]] = [[] for _ in configurations]
    for _ in range(rounds):
        for samples, configuration in zip(results, configurations):
            samples.append(measure_apart(module, configuration))
    return results


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
    return low, middle, high


def write_record(path: Path, results: Any, **about: Any) -> None:
    """Writes what was measured, with where and what else is said about it, as JSON."""
    # Here only: it brings jax along, seconds for each process.
    from kimiajax.runtime.environment import describe_environment

    path.parent.mkdir(parents=True, exist_ok=True)
    record = {**about, "environment": describe_environment(), "results": results}
    path.write_text(json.dumps(record, indent=1) + "\n")
