"""What a row learnt, on disk: a network with its lineage, or an SVM's arrays."""

from pathlib import Path

from kimiajax.io.pytrees import Tree, digest, load_tree, save_tree
from kimiajax.models.checkpoint import Weights, load_converted


def save_learnt(folder: Path, learnt: Weights | Tree) -> None:
    """Saves it to a new folder."""
    if isinstance(learnt, Weights):
        learnt.save(folder)
    else:
        save_tree(folder, learnt)


def load_learnt(folder: Path) -> Weights | Tree:
    """Loads what `save_learnt` saved.

    Raises:
        FileNotFoundError: there is no such folder.
        Exception: whatever a damaged file makes Orbax raise.
    """
    if not folder.is_dir():
        raise FileNotFoundError(None, None, str(folder))
    network = (folder / "lineage.json").exists()
    return load_converted(folder) if network else load_tree(folder)


def digest_of_learnt(learnt: Weights | Tree) -> str:
    """The digest by which a row's results speak of it."""
    return learnt.lineage["digest"] if isinstance(learnt, Weights) else digest(learnt)
