"""What a result was computed with."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import jax

from kimiajax import __version__
from kimiajax.runtime import allocator, shell

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn", "pillow", "h5py")


def describe_environment() -> dict[str, object]:
    """Versions, devices, flags and revision, as JSON takes them."""
    said = shell.recorded()
    return {
        "kimiajax": __version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        **describe_machine(),
        **({"shell": said} if said else {}),
    }


def describe_machine() -> dict[str, object]:
    """What the speed of a program on the host depends on."""
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": processor_facts().get("model name") or platform.processor() or None,
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "malloc": allocator.settings(),
    }


def processor_facts() -> dict[str, str]:
    """What Linux says of the first core, by name; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, value in reversed(list(pairs))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The git revision of this source tree, with "+" where it has changes; None for an installed copy."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-c", "safe.directory=*", "-C", str(root)]  # another user's tree, which runs here anyway
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
