"""Trees of arrays on disk: Orbax behind a few functions, with digests that do not depend on Orbax.

Of Orbax the older interface: its V1 saves and loads with all processes of a distributed run together, and only so.
"""

import contextlib
import errno
import gc
import hashlib
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging  # which Orbax logs through

from kimiajax.errors import UserError
from kimiajax.text import first_line

Tree = dict[str, Any]
UNREADABLE = {errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO}
ORPHANED = 0.3  # seconds in which reads and writes end after another one failed


def digest(tree: Tree) -> str:
    """SHA-256 over the paths, types, shapes and bytes of all leaves."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        _add(total, jax.tree_util.keystr(path), leaf)
    return total.hexdigest()


def digest_of_leaf(name: str, leaf: Any) -> str:
    """SHA-256 over one leaf's name, type, shape and bytes."""
    total = hashlib.sha256()
    _add(total, name, leaf)
    return total.hexdigest()


def save_tree(path: Path, tree: Tree) -> None:
    """Saves a nested dict of arrays as an Orbax checkpoint: the new folder `path` appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with quietly(), ocp.Checkpointer(_handler(), multiprocessing_options=alone()) as checkpointer:
            checkpointer.save(path, args=ocp.args.StandardSave(jax.tree.map(np.asarray, tree)))
    except Exception as error:  # whatever a disk makes Orbax raise
        for left in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
            shutil.rmtree(left, ignore_errors=True)
        code = _code_of(error)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def load_tree(path: Path) -> Tree:
    """Loads what `save_tree` saved, as NumPy arrays."""
    path = path.absolute()
    inner = path / "state"  # where Orbax's V1 puts a tree
    with quietly(), ocp.Checkpointer(_handler(), multiprocessing_options=alone()) as checkpointer:
        return checkpointer.restore(inner if inner.is_dir() else path)


def background_saver() -> ocp.AsyncCheckpointer:
    """Saves flat dicts of arrays while the caller goes on: `save(path, args=StandardSave(tree), custom_metadata=)`."""
    return ocp.AsyncCheckpointer(_handler(), multiprocessing_options=alone())


def load_with_metadata(path: Path) -> tuple[Tree, dict[str, Any]]:
    """What a `background_saver` saved: the arrays, and the metadata beside them.

    Raises:
        Exception: whatever a damaged file makes Orbax raise.
    """
    path = path.absolute()
    with quietly(), ocp.Checkpointer(_handler(), multiprocessing_options=alone()) as checkpointer:
        return checkpointer.restore(path), checkpointer.metadata(path).custom_metadata


def alone() -> ocp.options.MultiprocessingOptions:
    """This process waits for no other: of several, only the first ever saves."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process {me}"
    )


def _handler() -> ocp.StandardCheckpointHandler:
    return ocp.StandardCheckpointHandler(multiprocessing_options=alone())


def short(error: Exception) -> str:
    """An error of Orbax's in a few words: the system's own, or its kind and how its text begins."""
    code = _code_of(error)
    return f"{type(error).__name__}: {first_line(error)[:120]}" if code is None else os.strerror(code)


def refuse_unreadable(path: Path, error: Exception) -> None:
    """Raises UserError where an error says that this process cannot read now, and nothing of what a file holds."""
    if isinstance(error, MemoryError) or _code_of(error) in UNREADABLE:
        raise UserError(f"{path}: cannot be read ({short(error)}); nothing of it was changed") from error


def _code_of(error: Exception) -> int | None:
    """The system's number for what went wrong, where that is why."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return int(code[1]) if code else None


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Within, Orbax prints nothing of its own: an error is raised, and told by whoever it concerns.

    Python would print what comes of reads and writes that end after another one failed, when nobody waits for them.
    """
    before, level = (sys.unraisablehook, sys.excepthook), absl_logging.get_verbosity()
    sys.unraisablehook = lambda found: None if _is_orphan(found.exc_value) else before[0](found)
    sys.excepthook = lambda kind, error, trace: None if _is_orphan(error) else before[1](kind, error, trace)
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").addFilter(_of_others)  # for good: what failed may be found as late as at the end
    try:
        yield
    except Exception:
        let_orphans_end()
        raise
    finally:
        sys.unraisablehook, sys.excepthook = before
        absl_logging.set_verbosity(level)


def let_orphans_end() -> None:
    """Waits for reads and writes that nobody waits for any more, after one failed, and for what they would print."""
    time.sleep(ORPHANED)
    gc.collect()


def _of_others(record: logging.LogRecord) -> bool:
    """Whether what asyncio tells is none of Orbax's tasks."""
    return "never retrieved" not in record.getMessage() or "orbax" not in record.getMessage()


def _is_orphan(error: BaseException | None) -> bool:
    return "Event loop is closed" in str(error)


def _add(total: Any, name: str, leaf: Any) -> None:
    array = np.ascontiguousarray(leaf)
    total.update(f"{name} {array.dtype} {array.shape}\n".encode())
    total.update(array.data)
