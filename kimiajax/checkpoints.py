"""Trees of arrays on disk: Orbax behind three functions, with a digest that does not depend on Orbax."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

Tree = dict[str, Any]


def digest(tree: Tree) -> str:
    """SHA-256 over the paths, types, shapes and bytes of all leaves."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        total.update(array.data)
    return total.hexdigest()


def save_tree(path: Path, tree: Tree) -> None:
    """Saves a nested dict of arrays as an Orbax checkpoint: the new folder `path` appears whole or not at all."""
    ocp.save(path.absolute(), jax.tree.map(np.asarray, tree))


def load_tree(path: Path) -> Tree:
    """Loads what `save_tree` saved, as NumPy arrays."""
    return ocp.load(path.absolute())
