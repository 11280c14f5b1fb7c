"""Which rows a run computes: those that its settings name, as far as the weights hold the blocks that they read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kimiajax.errors import UserError
from kimiajax.experiments.approach import Approach
from kimiajax.experiments.config import TableConfig
from kimiajax.experiments.study import load_all
from kimiajax.experiments.table1 import ALL, named
from kimiajax.features.taps import blocks_to
from kimiajax.models.checkpoint import Weights
from kimiajax.models.registry import BACKBONES
from kimiajax.runtime.progress import Silent
from kimiajax.weights.load import MissingBlocksError


class Selection(NamedTuple):
    """Attributes:
    rows: what runs, in the order of the table.
    notes: what a reader must know of rows that were left out.
    weights: those that were loaded to find out.
    """

    rows: list[Approach]
    notes: list[str]
    weights: dict[str, Weights]


def rows_of(config: TableConfig) -> list[Approach]:
    """Returns the rows that settings ask for.

    Raises:
        UserError: settings that are out of range, or that a row cannot take.
    """
    config.validate()
    rows = named(config.output.rows)
    config.check_networks(BACKBONES)
    for network in config.networks_named():
        config.blocks_of(BACKBONES[network])  # names that there are, whether this run reads them or not
    for row in rows:
        row.check(config)
    return rows


def taps_of(rows: Sequence[Approach], config: TableConfig) -> dict[str, set[str]]:
    """Returns what the rows read of each network: one pass a patch gives it all."""
    taps: dict[str, set[str]] = {}
    for row in rows:
        if read := row.taps(config):
            taps.setdefault(row.network, set()).update(read)
    return taps


def select(config: TableConfig, cache: Path, progress: Silent) -> Selection:
    """Returns the rows that settings ask for and that their weights can give.

    Weights in files may lack the blocks after the bottleneck. Default rows that read these are left out, and the same
    rows on the bottleneck stand for them; of `fe_NETWORK@all` the blocks that there are remain.

    Raises:
        UserError: as of `rows_of` and `load_all`; or rows that were named and that the weights cannot give.
    """
    rows, notes, weights = rows_of(config), [], {}
    for network, taps in taps_of(rows, config).items():
        if config.weights_of(network) in ("random", "imagenet"):  # which have every block
            continue
        try:
            weights |= load_all({network: taps}, config, {}, cache, progress)
        except MissingBlocksError as error:
            if not set(error.absent) <= {*BACKBONES[network].top}:
                raise
            lacking = [row for row in rows if row.network == network and _reads(row, config) & {*error.absent}]
            instead = {row.name: row.without_top() for row in lacking}
            _check_not_named(lacking, instead, config, str(error))
            names = [row.name for row in (*rows, *instead.values()) if row is not None and row not in lacking]
            rows = named(names) if names else []
            notes.append(_left_out(lacking, instead, config.weights_of(network)))
            if left := taps_of([row for row in rows if row.network == network], config):
                weights |= load_all(left, config, {}, cache, progress)
    return Selection(rows, notes, weights)


def _reads(row: Approach, config: TableConfig) -> set[str]:
    """The last of the blocks that must run for a row, and all before it."""
    taps = row.taps(config)
    return set(blocks_to(row.backbone, taps)) if taps else set()


def _check_not_named(
    lacking: Sequence[Approach], instead: Mapping[str, Approach | None], config: TableConfig, why: str
) -> None:
    """Raises UserError for rows that someone named, with the rows that would run."""
    given = config.output.rows
    wrong = [row.name for row in lacking if row.name in given]
    if not config.names_rows or not wrong:
        return
    able = [name if name not in wrong else other and other.name for name in given for other in [instead.get(name)]]
    able = list(dict.fromkeys(name for name in able if name is not None)) or [f"fe_{lacking[0].network}@{ALL}"]
    raise UserError(f"--rows {' '.join(wrong)}: cannot run, since {why}; these would: --rows {' '.join(able)}")


def _left_out(lacking: Sequence[Approach], instead: Mapping[str, Approach | None], source: str) -> str:
    """The note on rows that weights cannot give."""
    places = list(dict.fromkeys(row.title for row in instead.values() if row is not None))
    told = f"{', '.join(dict.fromkeys(row.title for row in lacking))}: left out, since {source} holds no top"
    return f"{told}; {', '.join(places)} stand in their place." if places else f"{told}."
