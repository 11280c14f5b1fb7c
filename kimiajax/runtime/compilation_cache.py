"""Compiled programs kept between runs: JAX's persistent compilation cache, in this program's cache folder."""

import contextlib
import hashlib
import json
import platform
from pathlib import Path
from typing import NamedTuple

import jax
import jaxlib.version

from kimiajax.runtime.environment import processor_facts

LEAST_SECONDS = 0.3  # of compiling, for a program to be kept
LIMIT = 4 * 2**30  # bytes; beyond it the oldest go


class Kept(NamedTuple):
    """Where programs are kept, and how many were there."""

    folder: Path
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  # nobody asks for the tuple's


def keep_programs(cache: Path) -> Kept | None:
    """Lets this process find the programs that earlier ones compiled, and keep its own; for a command to call, once.

    Programs of a CPU run on processors of its kind only, so each kind has a folder of its own.

    Returns:
        None where the user has a cache of his own (JAX_COMPILATION_CACHE_DIR) or wants none
        (JAX_ENABLE_COMPILATION_CACHE=false), and where the folder cannot be written.
    """
    own = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
    enabled = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]  # likewise
    if own is not None or not enabled:
        return None
    folder = cache / "programs" / _kind()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # the command itself will say so, if it matters
        return None
    files = _bounded(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return Kept(folder, len(files))


def _kind() -> str:
    """Names this kind of processor and this compiler."""
    facts = processor_facts()
    about = [facts.get(name) for name in ("model name", "flags", "Features")]
    kind = [jaxlib.version.__version__, platform.machine(), platform.processor(), *about]
    return hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:16]


def _bounded(folder: Path) -> list[Path]:
    """The folder's programs, after the oldest beyond the limit are removed."""
    programs = {}
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process is at it
            programs[path] = path.stat()
    total = sum(stat.st_size for stat in programs.values())
    for path in sorted(programs, key=lambda path: programs[path].st_mtime):
        if total <= LIMIT:
            break
        total -= programs.pop(path).st_size
        path.unlink(missing_ok=True)
    return list(programs)
