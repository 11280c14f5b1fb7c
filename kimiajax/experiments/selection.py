"""The rows that a run computes: those that settings name, as far as the weights hold the blocks that they read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kimiajax.errors import UserError
from kimiajax.experiments.approach import Approach
from kimiajax.experiments.config import TableConfig
from kimiajax.experiments.study import load_all
from kimiajax.experiments.table1 import ALL, named
from kimiajax.features.taps import blocks_to
from kimiajax.io.lineage import DRAWN
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


def select(rows: list[Approach], config: TableConfig, cache: Path, progress: Silent) -> Selection:
    """Returns those of the rows of `rows_of` that the weights can give.

    Weights in files may lack the blocks after the bottleneck. Default rows that read these are left out, and the same
    rows on the bottleneck stand for them; of `fe_NETWORK@all` the blocks that there are remain.

    Raises:
        UserError: as of `load_all`; or rows that were named and that the weights cannot give.
    """
    weights: dict[str, Weights] = {}
    lacking: list[Approach] = []
    why: list[str] = []
    for network, taps in taps_of(rows, config).items():
        if config.weights_of(network) in (*DRAWN, "imagenet"):  # which have every block
            continue
        try:
            weights |= load_all({network: taps}, config, {}, cache, progress)
        except MissingBlocksError as error:
            if not set(error.absent) <= {*BACKBONES[network].top}:
                raise
            lacking += [row for row in rows if row.network == network and _reads(row, config) & {*error.absent}]
            why.append(str(error))
    instead = {row.name: row.without_top() for row in lacking}
    _check_not_named(instead, config, why)
    names = [row.name for row in (*rows, *instead.values()) if row is not None and row not in lacking]
    if not names:
        raise UserError(f"none of the rows can run, since {'; '.join(why)}")
    rows = named(names)
    for network, taps in taps_of(rows, config).items():
        if network not in weights and network in {row.network for row in lacking}:
            weights |= load_all({network: taps}, config, {}, cache, progress)
    networks = dict.fromkeys(row.network for row in lacking)
    return Selection(rows, [_left_out(network, lacking, instead, config) for network in networks], weights)


def _reads(row: Approach, config: TableConfig) -> set[str]:
    """Returns the blocks that must run for a row."""
    taps = row.taps(config)
    return set(blocks_to(row.backbone, taps)) if taps else set()


def _check_not_named(instead: Mapping[str, Approach | None], config: TableConfig, why: Sequence[str]) -> None:
    """Raises UserError for rows that someone named and that cannot run, with the rows that would."""
    given = config.output.rows
    wrong = [name for name in given if name in instead]
    if not config.names_rows or not wrong:
        return
    able = [name if name not in instead else other.name if (other := instead[name]) else None for name in given]
    able = list(dict.fromkeys(name for name in able if name is not None))
    told = f"these would: --rows {' '.join(able)}" if able else f"fe_NETWORK@{ALL} takes the blocks that there are"
    raise UserError(f"--rows {' '.join(wrong)}: cannot run, since {'; '.join(why)}; {told}")


def _left_out(
    network: str, lacking: Sequence[Approach], instead: Mapping[str, Approach | None], config: TableConfig
) -> str:
    """The note on a network's rows that its weights cannot give."""
    own = [row for row in lacking if row.network == network]
    places = list(dict.fromkeys(other.title for row in own if (other := instead[row.name])))
    told = f"{', '.join(dict.fromkeys(row.title for row in own))}: left out, since "
    told += f"{Path(config.weights_of(network)).name} holds no top"
    return f"{told}; {', '.join(places)} stand in their place." if places else f"{told}."
