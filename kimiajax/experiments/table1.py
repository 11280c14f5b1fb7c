"""The rows of Table 1, and those that stand beside it, as data."""

import functools

from kimiajax.errors import UserError
from kimiajax.experiments.approach import Row
from kimiajax.experiments.approaches import (
    classify_features,
    classify_trivially,
    find_nearest,
    fine_tune,
    stored_tap,
    train_from_scratch,
    train_heads,
)
from kimiajax.experiments.config import FLOORS, KINDS, TableConfig
from kimiajax.features.baselines import FLOORS as FLOOR_FEATURES
from kimiajax.models.backbone import Backbone
from kimiajax.models.registry import BACKBONES


def _svm_taps(backbone: Backbone, config: TableConfig) -> set[str]:
    return {backbone.features}


def _fine_tuning_taps(backbone: Backbone, config: TableConfig) -> set[str]:
    stored = stored_tap(backbone, config)
    return {backbone.bottleneck} | ({stored} if stored else set())


def all_rows() -> tuple[Row, ...]:
    """The rows that there are: Table 1's first, then those of other networks, floors, and retrieval."""
    titles = {name: _title(name) for name in BACKBONES if name != "cnn"}
    fine_tuning = (fine_tune, _fine_tuning_taps, train_heads)
    return (
        Row("cnn", BACKBONES["cnn"].title, "scratch", "cnn", train_from_scratch),
        *(
            row
            for name, title in titles.items()
            for row in (
                Row(f"fe_{name}", f"FE-{title}", "features", name, classify_features, _svm_taps),
                Row(f"tl_{name}", f"TL-{title}", "fine-tuned", name, *fine_tuning),
            )
        ),
        *(Row(name, FLOOR_FEATURES[name].title, "floor", "", classify_trivially, family="floor") for name in FLOORS),
        *(
            Row(
                f"nn_{name}_{kind}",
                f"NN-{title}",
                kind,
                name,
                functools.partial(find_nearest, kind=kind),
                _svm_taps,
                family="retrieval",
            )
            for name, title in titles.items()
            for kind in KINDS
        ),
    )


def _title(network: str) -> str:
    """A network's title; its name where its package cannot be loaded, which whoever asks for the row is told."""
    try:
        return BACKBONES[network].title
    except UserError:
        return network
