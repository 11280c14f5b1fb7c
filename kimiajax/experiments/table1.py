"""The rows of Table 1, and those that stand beside it, as data, in the order in which they are printed.

A new row is a line here, and is computed where `--rows` names it. What is computed by default stands in
`kimiajax.experiments.config`, and the paper's figures, by the row's name, in `kimiajax.paper`.
"""

from collections.abc import Mapping, Sequence

from kimiajax.errors import UserError
from kimiajax.experiments.approach import Approach
from kimiajax.experiments.config import KINDS
from kimiajax.experiments.feature_rows import Baseline, FeatureRow, FeatureSVM, Retrieval
from kimiajax.experiments.fine_tuning import FineTuning, HeadAlone
from kimiajax.experiments.network_rows import FromScratch
from kimiajax.features.baselines import FLOORS
from kimiajax.models.registry import BACKBONES

SCRATCH = ("cnn",)  # networks without published weights: they are trained from scratch, and nothing else


ALL = "all"  # in the place of a block: a row for every block


def all_rows() -> tuple[Approach, ...]:
    """The rows that there are: Table 1's first, then those of other networks, baselines, retrieval, and of blocks."""
    titles = {name: _title(name) for name in BACKBONES if name not in SCRATCH}
    retrieval = [
        Retrieval(f"nn_{name}_{kind}", f"NN-{title}", name, distance=kind)
        for name, title in titles.items()
        for kind in KINDS
    ]
    return (
        *(FromScratch(name, BACKBONES[name].title, name) for name in SCRATCH),
        *(
            row
            for name, title in titles.items()
            for row in (
                FeatureSVM(f"fe_{name}", f"FE-{title}", name),
                HeadAlone(f"hd_{name}", f"HD-{title}", name),
                FineTuning(f"tl_{name}", f"TL-{title}", name),
            )
        ),
        *(Baseline(name, title) for name, (title, _) in FLOORS.items()),
        *retrieval,
        *(
            row.of_block(block, flat)
            for name, title in titles.items()
            for row in (FeatureSVM(f"fe_{name}", f"FE-{title}", name), *(r for r in retrieval if r.network == name))
            for block in _blocks(name)
            for flat in (False, True)
        ),
    )


def named(names: Sequence[str]) -> list[Approach]:
    """Returns the rows of these names, in the order of `all_rows`.

    NETWORK@all in a name is every block up to the paper's features, but for the pool, whose output is the mean of the
    block before it.

    Raises:
        UserError: a row that there is not.
    """
    known = {row.name: row for row in all_rows()}
    wanted = {name for given in names for name in _expanded(given, known)}
    return [row for name, row in known.items() if name in wanted]


def _expanded(name: str, known: Mapping[str, Approach]) -> list[str]:
    if name in known:
        return [name]
    every = [
        row.name
        for row in known.values()
        if isinstance(row, FeatureRow)
        and row.at not in ("", "pooled")
        and row.name.replace(f"@{row.at}", f"@{ALL}") == name
        and row.at in row.backbone.up_to(row.backbone.features)
    ]
    if every:
        return every
    row, at, _ = name.partition("@")
    _, _, network = row.partition("_")
    if at and network in BACKBONES:
        blocks = ", ".join(BACKBONES[network].blocks)
        raise UserError(
            f"--rows {name}: no such row; write fe_{network}@BLOCK or nn_{network}@BLOCK_{'|'.join(KINDS)}, where "
            f"BLOCK is {ALL} or one of {blocks}, of which BLOCK.flat takes all values and BLOCK their mean over space"
        )
    plain = [row.name for row in known.values() if row.family != "blocks"]
    raise UserError(f"--rows {name}: no such row; choose from {', '.join(plain)}; of blocks, fe_NETWORK@BLOCK")


def _blocks(network: str) -> tuple[str, ...]:
    try:
        return BACKBONES[network].blocks
    except UserError:  # as of `_title`
        return ()


def _title(network: str) -> str:
    """A network's title; its name where its package cannot be loaded, which whoever asks for the row is told."""
    try:
        return BACKBONES[network].title
    except UserError:
        return network
