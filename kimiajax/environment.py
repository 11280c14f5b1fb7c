"""What a result was computed with."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import jax

from kimiajax import __version__, memory
from kimiajax.models.registry import BACKBONES, GROUP

OPTIONAL = (  # beside these, what some commands need or are compared with
    *("grain", "jaxtyping", "tensorflow-datasets", "scipy", "tyro", "keras", "torch", "tensorflow", "apache-beam"),
    *("matplotlib", "jinja2", "openslide-python", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu"),
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn", "pillow", "h5py")


def describe_environment() -> dict[str, object]:
    """Versions, devices, flags and revision, as JSON takes them."""
    return {
        "kimiajax": __version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        **describe_machine(),
    }


def for_an_issue() -> str:
    """What a report of a bug needs to say of the program and the machine, a line each; names no folder of the user's.

    A device that cannot be started is told like anything else: that may be what the report is of.
    """
    try:
        found = describe_environment()
    except Exception as error:  # whatever a driver makes JAX raise
        found = {"kimiajax": __version__, "revision": _revision(), "python": platform.python_version()}
        said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        found |= {"platform": platform.platform(), "devices": f"cannot be started: {said}", **describe_machine()}
    flags = str(found["xla_flags"] or "").split()
    found["xla_flags"] = " ".join(flag.partition("=")[0] if "/" in flag else flag for flag in flags) or None
    for told_elsewhere in ("kimiajax", "packages"):
        del found[told_elsewhere]
    added = {entry.name: entry.dist for entry in importlib.metadata.entry_points(group=GROUP)}
    networks = [f"{name} of {dist.name} {dist.version}" if (dist := added.get(name)) else name for name in BACKBONES]
    lines = [f"{name}: {_plain(value)}" for name, value in found.items()]
    lines += [f"memory: {_memory()}", f"networks: {', '.join(networks)}", "packages:"]
    lines += [f"  {name}: {_version(name) or '-'}" for name in sorted((*PACKAGES, *OPTIONAL))]
    return "\n".join(lines)


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{value.count(each)} x {each}" for each in dict.fromkeys(value))
    return "-" if value is None else str(value)


def _memory() -> str:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return "-"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"


def describe_machine() -> dict[str, object]:
    """What the speed of a program on the host depends on."""
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "processor": processor_facts().get("model name") or platform.processor() or None,
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "malloc": memory.settings(),
    }


def processor_facts() -> dict[str, str]:
    """What Linux says of the first core, by name; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, value in reversed(list(pairs))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The git revision of this source tree, with "+" where it has changes; None for an installed copy."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
