"""What a report of a bug needs to say."""

import importlib.metadata
import os
import platform

from kimiajax import __version__
from kimiajax.models.registry import BACKBONES, GROUP
from kimiajax.runtime.environment import PACKAGES, _revision, _version, describe_environment, describe_machine
from kimiajax.runtime.shell import check_xla_flags, recorded
from kimiajax.text import first_line

OPTIONAL = (  # beside these, what some commands need or are compared with
    *("grain", "jaxtyping", "tensorflow-datasets", "scipy", "tyro", "keras", "torch", "tensorflow", "apache-beam"),
    *("matplotlib", "jinja2", "openslide-python", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu"),
)


def for_an_issue() -> str:
    """What a report of a bug needs to say of the program and the machine, a line each; names no folder of the user's.

    A device that cannot be started is told like anything else: that may be what the report is of.
    """
    try:
        check_xla_flags(os.environ.get("XLA_FLAGS", ""))
        found = describe_environment()
    except Exception as error:  # whatever a driver makes JAX raise
        found = {"kimiajax": __version__, "revision": _revision(), "python": platform.python_version()}
        said = first_line(error, type(error).__name__)
        found |= {"platform": platform.platform(), "devices": f"cannot be started: {said}", **describe_machine()}
    flags = str(found["xla_flags"] or "").split()
    found["xla_flags"] = " ".join(flag.partition("=")[0] if "/" in flag else flag for flag in flags) or None
    found["shell"] = ", ".join(recorded())  # names: a value may be a path
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
