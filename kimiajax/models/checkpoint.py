"""The saved form of a backbone's weights: `arrays/`, and `lineage.json`, which says where they came from."""

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from kimiajax import __version__
from kimiajax.checks import check_finite, kind_of, names_of
from kimiajax.errors import UserError
from kimiajax.io.files import new_folder
from kimiajax.io.json_records import SEAL, is_sealed, sealed
from kimiajax.io.lineage import ancestry, is_random, root_of
from kimiajax.io.pytrees import digest, load_tree, refuse_unreadable, save_tree
from kimiajax.models.backbone import Backbone, Variables
from kimiajax.models.conv import Way
from kimiajax.models.inputs import params_of
from kimiajax.models.registry import BACKBONES

LINEAGE_FORMAT = 1
STATISTICS = "batch statistics"  # what a lineage says was trained where running statistics moved


@dataclass(frozen=True)
class Weights:
    """A backbone's variables and where they came from.

    Attributes:
        variables: `{"params": {block: ...}, "batch_stats": {block: ...}}`.
        lineage: network and its options, framework, source file and its SHA-256, class count, the input that the
            weights were trained on, and the SHA-256 of the arrays (`digest`).
        conv: how their backbone convolves.
    """

    variables: Variables
    lineage: dict[str, Any]
    conv: Way = "plain"

    @property
    def backbone(self) -> Backbone:
        """The network in the variant that these weights are of."""
        backbone = BACKBONES[self.lineage["network"]].variant(**self.lineage["options"])
        return replace(backbone, conv=self.conv)

    @property
    def random(self) -> bool:
        """They began random, whatever scaled or trained them since."""
        return is_random(self.lineage)

    def save(self, folder: str | Path) -> None:
        """Writes a converted checkpoint; the folder appears whole or not at all.

        Raises:
            UserError: other arrays than those that the lineage speaks of.
        """
        if digest(self.variables) != self.lineage.get("digest"):
            raise UserError(
                f"{folder}: the lineage speaks of other arrays, so nothing is written; of arrays that were trained "
                "`kimiajax.fine_tuned(weights, variables, blocks, source)` makes weights"
            )
        with new_folder(Path(folder)) as aside:
            save_tree(aside / "arrays", self.variables)
            (aside / "lineage.json").write_text(json.dumps(sealed(self.lineage), indent=2) + "\n", encoding="utf-8")


def load_converted(folder: Path) -> Weights:
    """Loads a converted checkpoint, or a fine-tuned network's, and checks its arrays against its lineage.

    Raises:
        UserError: not such a checkpoint, one of another version of this program, or arrays that are not those that the
            lineage speaks of.
    """
    try:
        lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
        whole, written = is_sealed(lineage), lineage.get("format")
        lineage.pop(SEAL, None)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        remedy = "make one with `python -m weights_convert keras NETWORK FILE OUT`"
        if (folder / "results.json").is_file():
            remedy = f"the networks of this run's rows are {folder / 'checkpoints'}/ROW"
        raise UserError(f"{folder}: not a converted checkpoint ({type(error).__name__}); {remedy}") from error
    if written != LINEAGE_FORMAT:
        raise UserError(f"{folder}: written by another version of this program; convert the weights again")
    if not whole:
        raise UserError(f"{folder}/lineage.json: was changed after it was written; convert the weights again")
    try:
        variables = load_tree(folder / "arrays")
    except Exception as error:  # whatever a damaged file makes Orbax raise
        refuse_unreadable(folder / "arrays", error)
        raise UserError(
            f"{folder}/arrays: damaged ({type(error).__name__}); remove {folder} and convert again"
        ) from error
    if digest(variables) != lineage["digest"]:
        raise UserError(
            f"{folder}: its arrays are not those that were written (digest differs); remove that folder and "
            "convert again"
        )
    return Weights(variables, lineage)


def fine_tuned(
    parent: Weights | Any,
    variables: Variables | Any,
    blocks: Sequence[str] | Any,
    source: str,
    run: dict[str, Any] | None = None,
) -> Weights:
    """Weights whose lineage says what they were trained from.

    Args:
        parent: the weights that training began with.
        variables: the whole network's after it, the head's among them.
        blocks: what was trained: names of blocks or parts, and `STATISTICS` where these moved.
        source: who trained them, for a reader.
        run: what names the run: data, seed.

    Raises:
        UserError: variables without parameters, or of a block that was trained, or that are not finite.
    """
    kind_of("parent", parent, Weights, "give what `load_weights` returns")
    params = params_of(variables)
    known = (*params, STATISTICS)
    lacking = [name for name in names_of("blocks", blocks) if name.split("/")[0] not in known]
    if lacking:
        raise UserError(f"blocks: the variables hold no {lacking[0]!r}; they hold {', '.join(params)}")
    for path, leaf in flatten_dict(variables, sep="/").items():
        check_finite(path, np.asarray(leaf)[None], "what was learnt says nothing; lower the learning rate")
    kept = ("format", "network", "options", "label_offset", "expected_input", "batch_norm_epsilon")
    lineage = {
        **{key: parent.lineage[key] for key in kept},
        "framework": "kimiajax",
        "source": source,
        "trained_blocks": list(blocks),
        "run": run or {},
        "converter": f"kimiajax {__version__}",
        "converted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "parent": parent.lineage,
        **top_of(variables),
        "digest": digest(variables),
    }
    return Weights(variables, lineage)


def origin_of(lineage: dict[str, Any]) -> str | None:
    """Where weights were trained: "keras", "torch", and what was fine-tuned since; None for random ones."""
    framework = root_of(lineage)["framework"]
    tuned = any(each.get("trained_blocks") for each in ancestry(lineage))
    return f"{framework or 'random weights'}, fine-tuned since" if tuned else framework


def top_of(variables: Variables) -> dict[str, Any]:
    """A lineage's words on the ImageNet classes: whether they are there, and how many."""
    predictions = variables["params"].get("predictions")
    return {"top": predictions is not None, "classes": predictions and predictions["kernel"].shape[-1]}


def published_lineage(backbone: Backbone, path: Path) -> str | None:
    """The published file's name if this file has its size and checksum, and None for any other file."""
    for file in backbone.published:
        if path.stat().st_size == file.size:
            import pooch

            algorithm, checksum = file.checksum.split(":")
            if pooch.file_hash(str(path), algorithm) == checksum:
                return file.name
    return None
