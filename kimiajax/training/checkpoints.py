"""The last states of a training on disk: whole, checked leaf by leaf, written while training goes on."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from kimiajax.errors import UserError
from kimiajax.io import pytrees
from kimiajax.io.json_records import differences, is_sealed, sealed
from kimiajax.runtime import distributed
from kimiajax.runtime.signals import Interruption

EVERY = 120.0  # seconds of training that a crash may cost
KEPT = 2


class Checkpoints:
    """Of one training, each a folder named after the steps taken.

    Attributes:
        folder: theirs alone; one process at a time may use it.
        say: is told what is resumed, and what is damaged.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        *,
        every: float = EVERY,
        say: Callable[[str], None] = lambda text: None,
        interruption: Interruption | None = None,
    ):
        """Args:
        folder: made where it is needed.
        identity: what the training rests on, as JSON takes it: a checkpoint of another is refused.
        every: seconds between two of them.
        say: is told what is resumed, and what is damaged.
        interruption: where one is asked for, the state is saved and the training ends.
        """
        self.folder = folder
        self._identity, self._every, self.say = _plain(identity), every, say
        self._interruption = interruption or Interruption()
        self._saver: ocp.AsyncCheckpointer | None = None
        self._saved = time.monotonic()

    def part(self, name: str) -> "Checkpoints":
        """Checkpoints of a part of this training, in a folder within."""
        options = {"every": self._every, "say": self.say, "interruption": self._interruption}
        return Checkpoints(self.folder / name, self._identity, **options)

    def restore(self, like: Any, facts: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """The newest state that is sound, and what was said of it; None where training begins.

        Args:
            like: a tree with the state's structure, shapes and types.
            facts: what else the training rests on, to be the same too.

        Raises:
            UserError: a checkpoint of another training.
        """
        self._identity |= _plain(facts)
        found = distributed.of_first(self._newest)
        if found is None:
            return None
        arrays, about = found
        return _unflatten(like, arrays), about

    def _newest(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        for path in self._found():
            try:
                arrays, metadata = pytrees.load_with_metadata(path)
                if not is_sealed(metadata):
                    raise ValueError("its metadata was changed")
            except Exception as error:  # whatever a damaged file makes Orbax raise
                pytrees.refuse_unreadable(path, error)
                self._discard(path, pytrees.short(error))
                continue
            changes = differences(metadata["identity"], self._identity)
            if changes:
                raise UserError(
                    f"{path}: a checkpoint of another training ({'; '.join(changes)}); choose another --out, or begin "
                    "anew with --fresh"
                )
            wrong = [
                name
                for name, sha in metadata["leaves"].items()
                if pytrees.digest_of_leaf(name, arrays.get(name)) != sha
            ]
            if wrong:
                self._discard(path, f"its digest does not fit {', '.join(wrong[:3])}")
                continue
            return arrays, metadata["about"]
        return None

    def save(self, steps: int, tree: Any, about: dict[str, Any]) -> None:
        """Begins to save; the arrays are copied first, so that training may go on.

        Args:
            steps: that were taken so far; where they were saved already, nothing is done.
            tree: the state.
            about: what else training goes on from, as JSON takes it.
        """
        self._saved = time.monotonic()
        if not distributed.is_first():
            return
        self.finish()
        path = self.folder.absolute() / str(steps)
        if path.exists():
            return
        for old in self._found()[KEPT - 1 :]:
            shutil.rmtree(old, ignore_errors=True)
        arrays = {name: np.array(leaf) for name, leaf in _flatten(tree).items()}
        metadata = {
            "identity": self._identity,
            "about": _plain(about),
            "leaves": {name: pytrees.digest_of_leaf(name, array) for name, array in arrays.items()},
        }
        with self._surviving():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._saver = self._saver or pytrees.background_saver()
            self._saver.save(path, args=ocp.args.StandardSave(arrays), custom_metadata=sealed(metadata))

    def due(self) -> bool:
        """Whether it is time to save: enough of it has passed, or the run is asked to end.

        Several processes call it equally often, and learn of a request to end at the same call.
        """
        return self._interruption.poll() or time.monotonic() - self._saved >= self._every

    def stop_if_asked(self) -> None:
        """Raises Interrupted where the run is asked to end, once what was saved is on the disk."""
        if self._interruption.asked:
            self.finish()
            self._interruption.raise_if_asked()

    def finish(self) -> None:
        """Waits until what was saved is on the disk."""
        with self._surviving():
            if self._saver is not None:
                self._saver.wait_until_finished()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Within, signals wait for `stop_if_asked`; at the end nothing is left in the air."""
        with pytrees.quietly():
            try:
                with self._interruption.deferred():
                    yield
            finally:
                self.finish()
                if self._saver is not None:
                    self._saver.close()
                    self._saver = None

    def _found(self) -> list[Path]:
        """The newest first. What was never finished goes: its writer is dead, or the folder would be locked."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name.isdecimal():
                found.append(path)
            elif "orbax-checkpoint-tmp" in path.name:
                shutil.rmtree(path, ignore_errors=True)
        return sorted(found, key=lambda path: int(path.name), reverse=True)

    def _discard(self, path: Path, reason: str) -> None:
        older = len(self._found()) > 1
        aside = path.with_name(f"{path.name}.damaged")  # it may be the disk, for a moment, and not the file
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        then = "the one before it is used" if older else "this training begins anew"
        self.say(f"{path}: a damaged checkpoint ({reason}); {then}")

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """A checkpoint that cannot be written, on a full disk say, is no reason to end a training."""
        try:
            yield
        except Exception as error:
            pytrees.let_orphans_end()
            self.say(
                f"{self.folder}: no checkpoint could be written ({pytrees.short(error)}); training goes on without"
            )


def _flatten(tree: Any) -> dict[str, Any]:
    """Leaf by name; keys as their data."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): jax.random.key_data(leaf) if _is_key(leaf) else leaf for path, leaf in leaves}


def _unflatten(like: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A tree like another, of these arrays; which are of the same training, so that names and shapes are the same."""

    def leaf(path: tuple, leaf: Any) -> Any:
        array = arrays[_name(path)]
        return jax.random.wrap_key_data(jnp.asarray(array)) if _is_key(leaf) else array

    return jax.tree_util.tree_map_with_path(leaf, like)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))
