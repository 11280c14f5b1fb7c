"""Freed memory that is kept for the next use, where the C library is glibc.

XLA's programs for a CPU ask for their buffers at each call and give them back after it. glibc gives large ones back to
the system, which then hands them out anew page by page, each cleared: that took a third of the time of a large batched
matrix product. Kept, a process holds its largest amount of memory until it ends.
"""

import ctypes
import os

# As mallopt(3) names them: no buffers of their own from the system, nothing returned to it, one pool for all threads,
# since another thread's pool holds none as large. The variables say the same to a process before it starts.
_OPTIONS = {"MALLOC_MMAP_MAX_": (-4, 0), "MALLOC_TRIM_THRESHOLD_": (-1, -1), "MALLOC_ARENA_MAX": (-8, 1)}
VARIABLES = {name: str(value) for name, (_, value) in _OPTIONS.items()}

_kept = False


def keep_freed() -> bool:
    """Has this process keep what it frees; for a command to call, before JAX starts.

    Returns:
        Whether it does: not with another C library, nor where the environment says how glibc hands out memory.
    """
    global _kept
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and not settings():
        _kept = all(mallopt(*option) for option in _OPTIONS.values())
    return _kept


def settings() -> dict[str, str]:
    """How memory is handed out here, where it is not as the C library does by itself: environment variables."""
    given = {
        name: value for name, value in os.environ.items() if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"
    }
    return given or (VARIABLES if _kept else {})
