"""Test patches held out by whole groups, so that no patient, say, has patches in training and in test.

scikit-learn's StratifiedGroupKFold divides all groups into folds of one share. Here the number asked for differs from
class to class, and each class must keep patches on both sides, which folds do not promise; so groups are drawn one by
one.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kimiajax.data.manifest import Patch
from kimiajax.data.sources.source import Source
from kimiajax.errors import UserError
from kimiajax.shapes import Int
from kimiajax.text import first_few, quoted

ATTEMPTS = 16  # orders of the groups that are tried; the draw that comes nearest to the numbers asked for is taken


def draw_groups(
    source: Source, patches: Sequence[Patch], groups: Mapping[str, str | None], wanted: Sequence[int], seed: int
) -> list[Patch]:
    """Draws groups whose patches come near to the numbers wanted of each class.

    Args:
        source: of the patches, for messages.
        patches: to draw from, class by class.
        groups: the group of each, by its name.
        wanted: the number of test patches of each class, 1 or more.
        seed: of the order in which groups are tried.

    Raises:
        UserError: no choice of groups that was found leaves every class patches for training and for test.
    """
    names = sorted({str(group) for group in groups.values()})
    place = {name: k for k, name in enumerate(names)}
    counts = np.zeros((len(names), len(wanted)), np.int64)
    for patch in patches:
        counts[place[str(groups[patch.patch_id])], patch.scan] += 1
    rng, target = np.random.default_rng([seed, len(wanted), 2]), np.array(wanted)
    orders = [rng.permutation(len(names)) for _ in range(ATTEMPTS)]
    drawn = [chosen for order in orders if (chosen := _draw(counts, target, order)) is not None]
    if not drawn:
        raise UserError(
            f"{source.path}: no choice of whole groups leaves each class patches for training and for test: "
            f"{_told(source, names, counts)}; add images of other groups, or move a class elsewhere"
        )
    chosen = min(drawn, key=lambda chosen: _distance(counts[chosen].sum(axis=0), target))
    held_out = {names[k] for k in chosen}
    return [patch for patch in patches if groups[patch.patch_id] in held_out]


def _draw(
    counts: Int[np.ndarray, "g c"], target: Int[np.ndarray, " c"], order: Int[np.ndarray, " g"]
) -> list[int] | None:
    """Takes groups in an order, as long as each brings the numbers nearer; then those that a class still lacks.

    Args:
        counts: patches of each group and class.
        target: the number wanted of each class.
        order: of the groups.

    Returns:
        Places of groups; None where a class is left without patches for training or for test.
    """
    most = counts.sum(axis=0) - 1  # one is left for training
    held_out, chosen = np.zeros_like(target), list[int]()
    for k in order.tolist():
        after = held_out + counts[k]
        if (after <= most).all() and _distance(after, target) < _distance(held_out, target):
            held_out, chosen = after, [*chosen, k]
    while not held_out.all():
        lacking = counts[:, int(held_out.argmin())] > 0
        able = [k for k in order.tolist() if lacking[k] and (held_out + counts[k] <= most).all()]
        if not able:
            return None
        best = min(able, key=lambda k: _distance(held_out + counts[k], target))
        held_out, chosen = held_out + counts[best], [*chosen, best]
    return chosen


def _distance(held_out: Int[np.ndarray, " c"], target: Int[np.ndarray, " c"]) -> float:
    """How far numbers are from those wanted, as shares of these."""
    return float((np.abs(held_out - target) / target).sum())


def _told(source: Source, names: Sequence[str], counts: Int[np.ndarray, "g c"]) -> str:
    """The groups of each class, those of the classes with the fewest first."""
    order = np.argsort((counts > 0).sum(axis=0), kind="stable").tolist()
    told = []
    for scan in order:
        own = [f"{quoted(names[k])}: {counts[k, scan]}" for k in np.flatnonzero(counts[:, scan]).tolist()]
        told.append(f"{source.names[scan]} has {counts[:, scan].sum()} patches of {len(own)} groups ({first_few(own)})")
    return first_few(told)
