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
from kimiajax.errors import UserError
from kimiajax.io.cache import ArrayCache, load_text
from kimiajax.io.pytrees import digest, digest_of_leaf
from kimiajax.runtime import distributed
from kimiajax.runtime.progress import Silent
from kimiajax.runtime.shell import recorded
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
    classifier, backbone = training.classifier, training.classifier.backbone
    about = {
        "optimization": asdict(optimization),
        "training": training.facts(),
        "head": [backbone.name, backbone.bottleneck, backbone.hidden, backbone.dropout, classifier.num_classes],
        "steps": [epochs, batch_size, list(seeds)],
        "starts": [digest(start) for start in starts],
        "inputs": [digest_of_leaf("inputs", each) for each in inputs],
        "labels": [digest_of_leaf("labels", each) for each in labels],
        "code": [VERSION, __version__, flax.__version__, jax.__version__],
        "platform": jax.default_backend(),
        **({"shell": said} if (said := recorded()) else {}),
    }
    kept = ArrayCache(cache, "heads", np.float32)
    key = f"{backbone.name}-{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]}"
    found = _load(kept, key, starts)
    if distributed.agree(found is not None):
        assert found is not None
        progress.say(f"{description}: found in {kept.folder / key}")
        for (_, history), record in zip(found, records):
            for epoch in history:
                record(epoch)
        return list(found), True
    options |= {"epochs": epochs, "batch_size": batch_size, "seeds": seeds, "records": records}
    results = fit_heads(training, starts, inputs, labels, progress=progress, description=description, **options)
    trained = [result for result in results if not isinstance(result, NonFiniteError)]
    if len(trained) == len(results):
        _save(kept, key, trained)
    return results, False


def _load(kept: ArrayCache, key: str, starts: Sequence[dict[str, Any]]) -> list[Trained] | None:
    named = [_leaves(number, start) for number, start in enumerate(starts)]
    arrays, told = kept.get(key, _shapes(named)), load_text(kept.folder / key / HISTORIES)
    if arrays is None or told is None:
        return None
    histories = [[Epoch(**epoch) for epoch in history] for history in json.loads(told)]
    return [
        (_variables({name: np.array(arrays[name]) for name in names}), history)
        for names, history in zip(named, histories)
    ]


def _save(kept: ArrayCache, key: str, trained: Sequence[Trained]) -> None:
    """Keeps heads; warns where they cannot be written, since what was trained is still good."""
    named = [_leaves(number, variables) for number, (variables, _) in enumerate(trained)]
    try:
        with kept.making(_shapes(named), key) as entry:
            for name, leaf in (item for names in named for item in names.items()):
                entry.arrays[name][...] = leaf
            histories = [[asdict(epoch) for epoch in history] for _, history in trained]
            (entry.folder / HISTORIES).write_text(json.dumps(histories), encoding="utf-8")
    except (OSError, UserError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        warnings.warn(f"{kept.folder / key}: cannot keep heads ({why}); later runs train them anew", stacklevel=2)


def _shapes(named: Sequence[dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(leaf) for names in named for name, leaf in names.items()}


def _leaves(number: int, variables: dict[str, Any]) -> dict[str, Any]:
    """The arrays of one head, by a name for a file."""
    return {f"{number}.{'.'.join(path)}": leaf for path, leaf in flatten_dict(variables).items()}


def _variables(leaves: dict[str, np.ndarray]) -> dict[str, Any]:
    return {"batch_stats": {}, **unflatten_dict({tuple(name.split(".")[1:]): leaf for name, leaf in leaves.items()})}
