"""Which blocks train: names to a label for every leaf, the tree split along it, and the study's choices by name.

A frozen block has no gradient, since `kimiajax.training.steps.gradients_of` differentiates the trainable part of
`split` alone; `labels` are for optimizers that are given the whole tree.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from kimiajax.checks import kind_of, names_of
from kimiajax.errors import UserError
from kimiajax.models.backbone import A_BACKBONE, Backbone
from kimiajax.models.batch_norm import Mode, TrainedMode, covers
from kimiajax.models.head import Classifier

Params = dict[str, Any]
MODES, TRAINED_MODES = Mode.__args__, TrainedMode.__args__


@dataclass(frozen=True)
class TrainableBlocks:
    """What trains; all the rest is frozen.

    Attributes:
        names: whole blocks ("mixed9", "head"), or parts of one ("mixed6/branch2_conv1/bn"). Batch normalisation trains
            where it is named as a whole; of a single array of it, its bias say, that array moves and it stays frozen.
        frozen_bn, trained_bn: modes of the batch normalisation of frozen and of trained blocks in training, as in
            `Normalisation`.

    Raises:
        UserError: an unknown mode, or names that are no sequence.
    """

    names: tuple[str, ...]
    frozen_bn: Mode = "inference"
    trained_bn: TrainedMode = "keras2017"

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "names", names_of("names of blocks", self.names)
        )  # a list would be no key of a program
        if self.frozen_bn not in MODES:
            valid = ", ".join(MODES)
            raise UserError(f"frozen batch normalisation: no mode {self.frozen_bn!r}; choose from {valid}")
        if self.trained_bn not in TRAINED_MODES:
            why = " (predictions would need the statistics that training used, and none are stored)"
            raise UserError(
                f"trained batch normalisation: no mode {self.trained_bn!r}{why if self.trained_bn == 'batch' else ''}; "
                f"choose from {', '.join(TRAINED_MODES)}"
            )

    def check(self, params: Params) -> None:
        """Raises UserError, with the valid names, for a name that is in no tree like this one."""
        for name in self.names:
            tree, passed = params, []
            for part in name.split("/"):
                if not isinstance(tree, Mapping) or part not in tree:
                    where = f"part {part!r} of {'/'.join(passed)}" if passed else f"block {name!r}"
                    valid = ", ".join(tree) if isinstance(tree, Mapping) else "nothing: it is an array"
                    raise UserError(f"unknown {where}; choose from {valid}")
                tree, passed = tree[part], [*passed, part]

    def trains(self, path: Sequence[str]) -> bool:
        """Whether the leaf at this path of names does."""
        return covers(self.names, path)

    def within(self, blocks: Sequence[str]) -> tuple[str, ...]:
        """Those of some blocks in which anything trains."""
        touched = {name.split("/")[0] for name in self.names}
        return tuple(block for block in blocks if block in touched)

    def frozen_normalises(self, backbone: Backbone) -> bool:
        """Whether a backbone has batch normalisation, up to its bottleneck, that does not train."""
        return any(not self.trains(path) for path in backbone.statistics)

    def trained_normalises(self, backbone: Backbone) -> bool:
        """Tells whether a backbone has batch normalisation, up to its bottleneck, that trains."""
        return any(self.trains(path) for path in backbone.statistics)

    def labels(self, params: Params) -> Params:
        """A tree like `params` (block name -> parameters) that says "train" or "freeze" at every leaf."""
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "train" if self.trains([key.key for key in path]) else "freeze", params
        )

    def split(self, params: Params) -> tuple[Params, Params]:
        """The trainable part of a tree and the frozen one; `merge` makes the whole again.

        Raises:
            UserError: a name that the tree has not.
        """
        self.check(params)
        leaves = flatten_dict(params)
        trainable = {path: leaf for path, leaf in leaves.items() if self.trains(path)}
        frozen = {path: leaf for path, leaf in leaves.items() if path not in trainable}
        return unflatten_dict(trainable), unflatten_dict(frozen)


def merge(left: Params, right: Params) -> Params:
    """The tree with the leaves of both."""
    return unflatten_dict({**flatten_dict(left), **flatten_dict(right)})


def weighted_blocks(backbone: Backbone) -> tuple[str, ...]:
    """The blocks below the head that have something to train."""
    return tuple(block for block in backbone.trunk if block != "pooled")


# What the study's variants train: name -> (what it is, the names of a network, what frozen batch normalisation does)
PRESETS: dict[str, tuple[str, Callable[[Backbone], tuple[str, ...]], Mode]] = {
    "paper": ("the paper's last blocks and the head", lambda b: (*b.fine_tuned, "head"), "inference"),
    "head_only": ("the head", lambda b: ("head",), "inference"),
    "nothing": ("nothing: what layers[:25] froze of Keras 2's VGG16", lambda b: (), "inference"),
    "all": ("every block and the head", lambda b: (*weighted_blocks(b), "head"), "inference"),
    "all_but_last": (
        "every block but the last, and the head: section IV-C of the paper, word for word",
        lambda b: (*(block for block in weighted_blocks(b) if block != b.fine_tuned[-1]), "head"),
        "inference",
    ),
    "adabn_only": ("no weight; batch statistics adapt to the new data", lambda b: (), "keras2017"),
}
LAST = re.compile(r"last(\d+)")  # last0 is the head alone


def last_blocks(backbone: Backbone, count: int) -> tuple[str, ...]:
    """The last so many blocks that have weights, and the head.

    Raises:
        UserError: the network has fewer.
    """
    trunk = weighted_blocks(backbone)
    if count > len(trunk):
        raise UserError(f"last{count}: {backbone.name} has {len(trunk)} blocks ({', '.join(trunk)})")
    return (*trunk[len(trunk) - count :], "head")


def blocks_of(
    backbone: Backbone | Any,
    names: Sequence[str] | Any,
    frozen_bn: Mode | Any = None,
    trained_bn: TrainedMode | Any = "keras2017",
) -> TrainableBlocks:
    """What trains, by names of blocks or by the name of one of `PRESETS` or of the network's own cuts.

    Args:
        backbone: the network.
        names: one such name, `last2` for the last two blocks, or blocks, parts of blocks, and "head".
        frozen_bn: mode of frozen batch normalisation; by default what the preset says, else "inference".
        trained_bn: mode of trained batch normalisation.

    Raises:
        UserError: a name that is neither, or that is another network's.
    """
    kind_of("backbone", backbone, Backbone, A_BACKBONE)
    names = names_of("names of blocks", names)
    if not names:
        raise UserError(f"no block of {backbone.name} is named; name some, or a preset: `nothing` trains none")
    cuts = dict(backbone.cuts)
    chosen, mode = names, "inference"
    if len(names) == 1 and names[0] in PRESETS:
        _, choose, mode = PRESETS[names[0]]
        chosen = choose(backbone)
    elif len(names) == 1 and names[0] in cuts:
        chosen = cuts[names[0]]
    elif len(names) == 1 and (last := LAST.fullmatch(names[0])):
        chosen = last_blocks(backbone, int(last[1]))
    else:
        _check_names(backbone, names)
    blocks = TrainableBlocks(chosen, frozen_bn or mode, trained_bn)
    if any("/" in name for name in names):
        params = backbone.shapes(backbone.smallest, backbone.trunk)["params"]
        head = jax.eval_shape(lambda: Classifier(backbone, (), 2).init_head(jax.random.key(0), (1,)))
        blocks.check({**params, "head": head})
    return blocks


def _check_names(backbone: Backbone, names: Sequence[str]) -> None:
    """Raises UserError for a name that is no block of the network."""
    known = (*weighted_blocks(backbone), "head")
    unknown = [name for name in names if name.split("/")[0] not in known]
    if unknown:
        raise UserError(
            f"unknown block {unknown[0]!r} of {backbone.name}; choose from {', '.join(known)}, or one preset "
            f"alone: {', '.join((*PRESETS, *dict(backbone.cuts)))}, or last2 for the last two blocks; a part of a "
            "block is BLOCK/PART"
        )
