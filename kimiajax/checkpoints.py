"""Trees of arrays on disk: Orbax behind a few functions, with digests that do not depend on Orbax.

Of Orbax the older interface: its V1 saves and loads with all processes of a distributed run together, and only so.
"""

import contextlib
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

Tree = dict[str, Any]


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
    """Saves a nested dict of arrays as an Orbax checkpoint: the new folder `path` appears whole or not at all."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with ocp.Checkpointer(_handler(), multiprocessing_options=alone()) as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.StandardSave(jax.tree.map(np.asarray, tree)))


def load_tree(path: Path) -> Tree:
    """Loads what `save_tree` saved, as NumPy arrays."""
    path = path.absolute()
    inner = path / "state"  # where Orbax's V1 puts a tree
    with ocp.Checkpointer(_handler(), multiprocessing_options=alone()) as checkpointer:
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
    with _without_orphans(), ocp.Checkpointer(_handler(), multiprocessing_options=alone()) as checkpointer:
        return checkpointer.restore(path), checkpointer.metadata(path).custom_metadata


def alone() -> ocp.options.MultiprocessingOptions:
    """This process waits for no other: of several, only the first ever saves."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process {me}"
    )


def _handler() -> ocp.StandardCheckpointHandler:
    return ocp.StandardCheckpointHandler(multiprocessing_options=alone())


@contextlib.contextmanager
def _without_orphans() -> Iterator[None]:
    """Drops what Python would print of reads that end after another one failed, when nobody waits for them any more."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda found: None if "Event loop is closed" in str(found.exc_value) else before(found)
    try:
        yield
    except Exception:
        time.sleep(0.3)
        raise
    finally:
        sys.unraisablehook = before


def _add(total: Any, name: str, leaf: Any) -> None:
    array = np.ascontiguousarray(leaf)
    total.update(f"{name} {array.dtype} {array.shape}\n".encode())
    total.update(array.data)
