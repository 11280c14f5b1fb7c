"""The settings of `kimiajax table`, and its presets. A field is a flag, of `table` and of `sweep`.

A new field is recorded in `results.json`, and another value of it makes another run. One that changes no result stands
in `NO_RESULT` of `kimiajax.runs.layout` as well.
"""

import difflib
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from kimiajax.checks import check_fields
from kimiajax.data.config import PatchConfig, as_paths, check_least, check_share, flag, json_fields
from kimiajax.errors import UserError

if TYPE_CHECKING:
    from kimiajax.models.backbone import Backbone
    from kimiajax.training.freezing import TrainableBlocks
    from kimiajax.training.optimizer import Optimization

TABLE = ("cnn", "fe_vgg16", "hd_vgg16", "tl_vgg16", "fe_inception_v3", "hd_inception_v3", "tl_inception_v3")
FLOORS = ("floor_mean_sd", "floor_bright", "floor_histogram", "floor_lbp")
Table = TypeVar("Table", bound="TableConfig")
PER_NETWORK = ("weights", "blocks")  # settings that take NETWORK=VALUE as well
KINDS = ("euclidean", "cosine", "barcode")  # of distances between features
RETRIEVAL = tuple(f"nn_{network}_{kind}" for network in ("vgg16", "inception_v3") for kind in KINDS)


@dataclass(frozen=True)
class DataSettings(PatchConfig):
    """The source of the patches, the choice among them, and their size."""

    draw_synthetic: bool = False
    """Draw synthetic scans where no scan file is given."""
    image_size: int = 224
    """Side of the networks' input in pixels."""
    resize: Literal["nearest", "bilinear", "box", "reduce_bilinear"] = "box"
    """Filter from patch to input, as Pillow defines it; reduce_bilinear, in two of its steps, is the fastest."""

    def validate(self) -> None:
        """Raises UserError for the first setting that is out of its range."""
        self.check_patches()
        check_least(self, image_size=1)


@dataclass(frozen=True)
class OutputSettings:
    """The rows to compute, and the folder for the results."""

    rows: tuple[str, ...] = (*TABLE, *FLOORS, *RETRIEVAL)
    """Rows to compute: those of the table, floors of trivial features, retrieval of the nearest training patch; and of
    any block, or all, fe_NETWORK@BLOCK, fe_NETWORK@BLOCK.flat, fe_NETWORK@all, and nn_NETWORK@BLOCK_KIND likewise."""
    seeds: int = 1
    """Run the whole table for so many seeds, from --seed on, and report mean and spread."""
    out: Path | None = None
    """Folder for the results; by default runs/PRESET."""
    checkpoint_seconds: float = 120.0
    """Seconds between two checkpoints of a training: what a crash may cost."""
    fresh: bool = False
    """Begin anew where the output folder holds an earlier run, which goes; else that run is resumed."""
    tensorboard: bool = False
    """Write the history for TensorBoard as well; needs the extra `track`."""

    def __post_init__(self) -> None:
        as_paths(self)

    def validate(self) -> None:
        """Raises UserError for the first setting that is of another type or out of its range."""
        check_fields(self, flag)
        if not self.rows:
            raise UserError(f"--rows: name at least one, {', '.join(TABLE)} say")
        check_least(self, seeds=1)
        if not self.checkpoint_seconds >= 0:
            raise UserError(f"--checkpoint-seconds {self.checkpoint_seconds}: must be 0 or more")


@dataclass(frozen=True)
class ModelSettings:
    """The networks: their weights, what of them trains, how they compute."""

    weights: tuple[str, ...] = ("imagenet",)
    """`imagenet`, `random`, `calibrated` (random, scaled on training patches), or a path (converted, saved by Keras,
    .safetensors): of all networks, or NETWORK=... ."""
    mixed_lineages: bool = False
    """Allow networks weights that different frameworks trained."""
    blocks: tuple[str, ...] = ("paper",)
    """What is fine-tuned: a preset, or blocks joined by commas; `kimiajax blocks NETWORK` shows them. As --weights."""
    frozen_bn: Literal["inference", "batch", "keras2017"] | None = None
    """Frozen batch normalisation uses its stored statistics (the default), the mini-batch's, or moves them as well."""
    trained_bn: Literal["inference", "keras2017"] = "keras2017"
    """Batch normalisation of fine-tuned blocks uses its stored statistics, or the mini-batch's and moves the stored."""
    bn_statistics: Literal["synchronised", "local"] = "synchronised"
    """Mini-batch statistics over all devices, or of each device's own patches."""
    batch_norm_momentum: float = 0.99
    """Of running statistics in fine-tuning: new = momentum * old + (1 - momentum) * batch."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of convolutions and matrix products; parameters, statistics and losses are float32 always."""
    conv: Literal["auto", "plain", "fast"] = "auto"
    """How the networks convolve: as XLA does, or on a CPU by Winograd's algorithm; auto measures which is faster."""

    def validate(self) -> None:
        """Raises UserError for the first setting that is of another type or out of its range."""
        check_fields(self, flag)
        for name in PER_NETWORK:
            if not getattr(self, name) or "" in [_setting(text)[1] for text in getattr(self, name)]:
                raise UserError(f"{flag(name)}: says nothing; leave it out, or give what is to be used")
        check_share(self, "batch_norm_momentum")


@dataclass(frozen=True)
class OptimSettings:
    """How the SVM, the heads and the networks are trained."""

    svm_c: float = 1.0
    """Penalty of the linear SVM."""
    head_epochs: int = 50
    """Epochs of the new head on bottleneck features."""
    head_optimizer: Literal["rmsprop", "rmsprop2017"] = "rmsprop2017"
    """Optimizer of the head: RMSprop of Keras 3, or of 2017, which moves the weights of features that hardly fire."""
    head_learning_rate: float = 1e-3
    """Learning rate of the head."""
    epochs: int = 200
    """Epochs of fine-tuning, and of training from scratch."""
    learning_rate: float = 1e-4
    """Of fine-tuning, by SGD."""
    momentum: float = 0.9
    """Of fine-tuning's SGD."""
    optimizer: Literal["sgd", "rmsprop", "rmsprop2017", "adam", "adamw"] = "sgd"
    """Of fine-tuning."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Of fine-tuning's learning rate; the last two fall towards 0."""
    warmup_epochs: float = 0.0
    """Over which fine-tuning's learning rate rises from 0."""
    weight_decay: float = 0.0
    """Of fine-tuning, on what trains only."""
    label_smoothing: float = 0.0
    """Of fine-tuning: the share of a label that is spread over all scans."""
    augmentation: Literal["none", "keras2017", "keras", "strong"] = "keras2017"
    """Of fine-tuning: shear, zoom and mirroring as Keras did it in 2017, or as it does it now; strong turns as well."""
    cnn_learning_rate: float = 1e-3
    """Of training from scratch, by Adam."""
    batch_size: int = 32
    """Patches in a training step."""
    cache_frozen: bool = True
    """Where patches are not augmented, compute the frozen blocks once a patch and train on their stored outputs."""
    feed: Literal["auto", "resident", "stream"] = "auto"
    """Training patches lie on the device, all of them, or come batch by batch; auto: the first where they fit."""

    def validate(self) -> None:
        """Raises UserError for the first setting that is of another type or out of its range."""
        check_fields(self, flag)
        check_least(self, head_epochs=0, epochs=0, batch_size=1)
        for name in ("svm_c", "learning_rate", "head_learning_rate", "cnn_learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{flag(name)} {getattr(self, name)}: must be above 0 and finite")
        for name in ("momentum", "label_smoothing"):
            check_share(self, name)
        if self.warmup_epochs > self.epochs:
            raise UserError(f"--warmup-epochs {self.warmup_epochs}: must not be more than --epochs {self.epochs}")
        for name in ("warmup_epochs", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{flag(name)} {getattr(self, name)}: must be 0 or more, and finite")


@dataclass(frozen=True)
class DistributedSettings:
    """The devices and processes that share the work."""

    engine: Literal["jit", "pmap"] = "jit"
    """How training spreads over the devices; the results are the same."""
    distributed: bool = False
    """One of several processes that share the run; all are given the same flags. A cluster says which is which."""
    coordinator: str | None = None
    """HOST:PORT where the first process listens, if no cluster says it."""
    processes: int | None = None
    """How many processes there are, likewise."""
    process: int | None = None
    """Which one this is, from 0, likewise."""
    peer_timeout: int = 100
    """Seconds without a sign of life after which another process counts as lost."""

    def validate(self) -> None:
        """Raises UserError for the first setting that is of another type or out of its range."""
        check_fields(self, flag)
        check_least(self, processes=1, process=0, peer_timeout=1)
        given = [name for name in ("coordinator", "processes", "process") if getattr(self, name) is not None]
        if given and not self.distributed:
            raise UserError(f"{flag(given[0])}: is for --distributed")
        if self.distributed and self.engine == "pmap":
            raise UserError("--engine pmap is for the devices of one process; leave --engine out with --distributed")


class UnknownSettingError(UserError, TypeError):
    """No group of settings has this name; a TypeError too, as of any function that is given such an argument."""


@dataclass(frozen=True)
class TableConfig:
    """Settings of a comparison table, in groups. The defaults are the paper's protocol, where it states one."""

    data: DataSettings = DataSettings()
    output: OutputSettings = OutputSettings()
    model: ModelSettings = ModelSettings()
    optim: OptimSettings = OptimSettings()
    distributed: DistributedSettings = DistributedSettings()

    def replace(self: Table, **settings: Any) -> Table:
        """Returns these settings with some changed, each under the name of its flag: `config.replace(epochs=3)`.

        Raises:
            UnknownSettingError: a name that no group has.
        """
        groups = {}
        for group, own in self._groups():
            names = [field.name for field in fields(own) if field.name in settings]
            groups[group] = replace(own, **{name: settings.pop(name) for name in names})
        if settings:
            near = difflib.get_close_matches(next(iter(settings)), self.as_dict(), 1)
            what = f"did you mean {near[0]}?" if near else "`as_dict` names those that there are"
            raise UnknownSettingError(f"no settings of a table: {', '.join(settings)}; {what}")
        return replace(self, **groups)

    def as_dict(self) -> dict[str, object]:
        """Returns all settings by the names of their flags, as JSON takes them."""
        return {name: value for _, own in self._groups() for name, value in json_fields(own).items()}

    def validate(self) -> None:
        """Raises UserError for the first setting that is out of its range."""
        self.output.validate()
        self.model.validate()
        self.data.validate()
        if self.data.seed + self.output.seeds > 2**32:
            last = self.data.seed + self.output.seeds - 1
            raise UserError(f"--seeds {self.output.seeds}: the last seed would be {last}, over 2**32 - 1")
        self.optim.validate()
        self.distributed.validate()

    @property
    def names_rows(self) -> bool:
        """True where the rows are not the default ones, so that someone has named them."""
        return self.output.rows != type(self)().output.rows

    def folder(self, preset: str) -> Path:
        """Where the results go."""
        return self.output.out or Path("runs") / preset

    def check_networks(self, known: Container[str]) -> None:
        """Raises UserError for settings of a network that there is not, or that are none's."""
        for name in PER_NETWORK:
            for text in getattr(self.model, name):
                network, _ = _setting(text)
                if network is not None and network not in known:
                    raise UserError(f"{flag(name)} {text}: no such network; `kimiajax blocks` lists them")

    def weights_of(self, network: str) -> str:
        """The weights asked for of a network."""
        return setting_of(network, self.model.weights, "imagenet")

    def blocks_of(self, backbone: "Backbone") -> "TrainableBlocks":
        """What of a network is fine-tuned.

        Raises:
            UserError: a name that the network has not.
        """
        from kimiajax.training.freezing import blocks_of

        names = setting_of(backbone.name, self.model.blocks, "paper")
        return blocks_of(backbone, tuple(names.split(",")), self.model.frozen_bn, self.model.trained_bn)

    def networks_named(self) -> list[str]:
        """The networks that settings are given for by name."""
        named = [_setting(text)[0] for name in PER_NETWORK for text in getattr(self.model, name)]
        return list(dict.fromkeys(network for network in named if network is not None))

    def fine_tuning(self) -> "Optimization":
        """The optimizer of fine-tuning, its schedule and its loss."""
        from kimiajax.training.optimizer import Optimization

        return Optimization(**{field.name: getattr(self.optim, field.name) for field in fields(Optimization)})

    def _groups(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def _setting(text: str) -> tuple[str | None, str]:
    """NETWORK=VALUE, or VALUE alone, which is for every network."""
    match = re.fullmatch(r"([a-z][a-z0-9_]*)=(.*)", text)
    return (match[1], match[2]) if match else (None, text)


def setting_of(network: str, given: Sequence[str], default: str) -> str:
    """A network's own setting, else the one for all; of two the later."""
    values = dict(map(_setting, given))
    return values.get(network, values.get(None, default))


PAPER = TableConfig()

# At the paper's learning rate both networks improve on their heads, on training patches that were held out
# (docs/real_weights.md). Few epochs, so running statistics that move follow sooner than the paper's.
QUICK = PAPER.replace(
    patches_per_scan=20,
    head_optimizer="rmsprop",
    epochs=10,
    augmentation="none",
    trained_bn="inference",
    batch_norm_momentum=0.9,
)

# Eight epochs of the head, since one that is trained to its end on calibrated weights leaves fine-tuning nothing to
# improve. Plain convolutions, since compiling the fast ones takes longer here than they save.
DEMO = QUICK.replace(
    draw_synthetic=True,
    patches_per_scan=16,
    image_size=96,
    head_epochs=8,
    epochs=6,
    conv="plain",
    weights=("calibrated",),
)

PRESETS = {
    "demo": ("Synthetic scans and calibrated weights, small: shows the way, reproduces nothing.", DEMO),
    "quick": ("A real scan file on a CPU: the protocol without augmentation, few epochs.", QUICK),
    "paper": ("The paper's protocol in full; meant for a GPU.", PAPER),
}


def as_dicts(presets: Mapping[str, tuple[str, TableConfig]]) -> dict[str, dict[str, object]]:
    """Returns the settings of each preset as `results.json` records them, by the preset's name."""
    return {name: default.as_dict() for name, (_, default) in presets.items()}
