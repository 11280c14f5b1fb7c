"""Heads that were trained before, found again by the content of all that they come from."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kimiajax import __version__
from kimiajax.io.cache import load_arrays, load_text, mark_used, trim, vouch_for
from kimiajax.io.files import new_folder
from kimiajax.io.pytrees import digest, digest_of_leaf
from kimiajax.runtime import distributed
from kimiajax.runtime.progress import Silent
from kimiajax.training.heads import Result, fit_heads
from kimiajax.training.loop import Epoch, NonFiniteError, Record
from kimiajax.training.optimizer import Optimization
from kimiajax.training.steps import Training

Trained = tuple[dict[str, Any], list[Epoch]]
HISTORIES = "histories.json"
VERSION = 2  # rises with every change to what training a head computes


def fit_heads_once(
    training: Training,
    optimization: Optimization,
    starts: Sequence[dict[str, Any]],
    inputs: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    *,
    cache: Path,
    epochs: int,
    batch_size: int,
    seeds: Sequence[int],
    records: Sequence[Record],
    progress: Silent,
    description: str,
    **options: Any,
) -> tuple[list[Result], bool]:
    """`fit_heads`, unless the same heads were trained on the same features before; and whether they were.

    What augmentation and which blocks follow changes nothing of the head that fine-tuning begins with.

    Args:
        training, starts, inputs, labels, epochs, batch_size, seeds, records, progress, description, options: as of
            `fit_heads`.
        optimization: what `training`'s optimizer was made of.
        cache: the folder that they are kept in. Heads that a loss which is not finite stopped are not.
    """
    backbone = training.classifier.backbone
    about = {
        "optimization": asdict(optimization),
        "training": training.facts(),
        "head": [
            backbone.name,
            backbone.bottleneck,
            backbone.hidden,
            backbone.dropout,
            training.classifier.num_classes,
        ],
        "steps": [epochs, batch_size, list(seeds)],
        "starts": [digest(start) for start in starts],
        "inputs": [digest_of_leaf("inputs", each) for each in inputs],
        "labels": [digest_of_leaf("labels", each) for each in labels],
        "code": [VERSION, __version__, flax.__version__, jax.__version__],
        "platform": jax.default_backend(),
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache / "heads" / f"{backbone.name}-{key}"
    found = _load(folder, starts)
    if distributed.agree(found is not None):
        assert found is not None
        progress.say(f"{description}: found in {folder}")
        for (_, history), record in zip(found, records):
            for epoch in history:
                record(epoch)
        return list(found), True
    options |= {"epochs": epochs, "batch_size": batch_size, "seeds": seeds, "records": records}
    results = fit_heads(training, starts, inputs, labels, progress=progress, description=description, **options)
    trained = [result for result in results if not isinstance(result, NonFiniteError)]
    if len(trained) == len(results):
        _save(folder, trained)
    return results, False


def _load(folder: Path, starts: Sequence[dict[str, Any]]) -> list[Trained] | None:
    leaves = [_leaves(number, start) for number, start in enumerate(starts)]
    shapes = {name: np.shape(leaf) for named in leaves for name, leaf in named.items()}
    arrays = load_arrays(folder, shapes, np.float32)
    told = load_text(folder / HISTORIES)
    if arrays is None or told is None:
        return None
    histories = [[Epoch(**epoch) for epoch in history] for history in json.loads(told)]
    mark_used(folder)
    return [
        (_variables({name: np.array(arrays[name]) for name in named}), history)
        for named, history in zip(leaves, histories)
    ]


def _save(folder: Path, trained: Sequence[Trained]) -> None:
    """Keeps heads; warns where they cannot be written, since what was trained is still good."""
    try:
        with new_folder(folder) as aside:
            for number, (variables, _) in enumerate(trained):
                for name, leaf in _leaves(number, variables).items():
                    np.save(aside / f"{name}.npy", np.asarray(leaf))
            histories = [[asdict(epoch) for epoch in history] for _, history in trained]
            (aside / HISTORIES).write_text(json.dumps(histories))
            vouch_for(aside)
        trim(folder.parent, keep=folder)
    except OSError as error:
        warnings.warn(f"{folder}: cannot keep heads ({error.strerror}); later runs train them anew", stacklevel=2)


def _leaves(number: int, variables: dict[str, Any]) -> dict[str, Any]:
    """The arrays of one head, by a name for a file."""
    return {f"{number}.{'.'.join(path)}": leaf for path, leaf in flatten_dict(variables).items()}


def _variables(leaves: dict[str, np.ndarray]) -> dict[str, Any]:
    return {"batch_stats": {}, **unflatten_dict({tuple(name.split(".")[1:]): leaf for name, leaf in leaves.items()})}
