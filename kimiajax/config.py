"""The settings of each command, a field being a flag, and the presets of `kimiajax table`."""

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kimiajax.errors import UserError
from kimiajax.parsing import text_of

if TYPE_CHECKING:
    from kimiajax.data.patches import Rules
    from kimiajax.data.sets import Dataset
    from kimiajax.finetune.blocks import TrainableBlocks
    from kimiajax.finetune.optimizer import Optimization
    from kimiajax.models.backbone import Backbone


OF_DATASETS = ("data_dir", "image_key", "label_key", "train_split", "test_split")  # settings that only --dataset has
SOURCES = ("scans", "dataset", *OF_DATASETS)  # where patches come from; what they are, their manifest says


@dataclass(frozen=True)
class ScansConfig:
    """Where patches come from."""

    scans: Path | None = None
    """A scan file in the layout of Kimia_Path24.h5, a folder of images (train/s0/*.png), or one of whole slides."""
    dataset: str | None = None
    """In their place, an image-classification set that TFDS has prepared as array_record: NAME/CONFIG:VERSION."""
    data_dir: Path | None = None
    """The folder of prepared sets; by default TFDS's own, ~/tensorflow_datasets."""
    image_key: str = "image"
    """Of a prepared set, the feature that is the image."""
    label_key: str = "label"
    """The feature that is the class, which stands where a scan does."""
    train_split: str = "train"
    """The split to train on, in TFDS's notation: train, or train[:80%]."""
    test_split: str | None = None
    """The split to test on; by default test, or where there is none patches that are drawn and held out."""
    patch_size: int | None = None
    """Side of a patch in pixels; of scan files and images, checked to be that of the test patches; of slides, 1000."""
    mpp: float = 0.5
    """Microns per pixel at which whole slides are read."""
    cache: Path | None = None
    """Folder for what serves again: surveys, patches, weights, features; by default the user's cache folder."""

    def given(self, needs: str | None = None) -> "Path | Dataset | None":
        """Where patches come from: a path, or a prepared set.

        Args:
            needs: what is impossible without, for the message; None where nothing need be given.

        Raises:
            UserError: both are given, or neither.
        """
        if self.dataset is not None and self.scans is not None:
            raise UserError(f"--scans {self.scans} and --dataset {self.dataset}: give one of them")
        if self.dataset is None and self.scans is None and needs is not None:
            raise UserError(f"{needs}, or --dataset NAME of a prepared data set")
        if self.dataset is None:
            return self.scans
        from kimiajax.data.sets import Dataset

        splits = {"train": self.train_split, "test": self.test_split}
        return Dataset(self.dataset, self.data_dir, self.image_key, self.label_key, **splits)

    def check_scans(self) -> None:
        """Raises UserError for the first of these settings that is out of its range."""
        _check_least(self, patch_size=1)
        for name in OF_DATASETS:
            if self.dataset is None and getattr(self, name) != getattr(ScansConfig, name):
                raise UserError(f"{flag(name)} {getattr(self, name)}: is for --dataset")
        if not 0 < self.mpp < float("inf"):
            raise UserError(f"--mpp {self.mpp}: must be above 0 and finite")

    def as_dict(self) -> dict[str, object]:
        """All fields, as JSON takes them."""
        return _json_fields(self)


@dataclass(frozen=True)
class PatchConfig(ScansConfig):
    """Where patches come from, and which of them are used. The defaults are the paper's, where it states one."""

    manifest: Path | None = None
    """Use exactly the patches of this manifest.csv, of an earlier run or an export; the pixels are checked."""
    seed: int = 0
    """Of the draw of patches and, in a table, of random weights and of training."""
    patches_per_scan: int | Literal["all"] = 100
    """Training patches drawn from each scan."""
    grid: Literal["full", "readme"] = "full"
    """Where training patches lie: every whole patch, or the data set's README loop, without the last row and column."""
    homogeneity: float = 0.99
    """Patches with at least this fraction of background are left out."""
    background: int = 220
    """Gray value, 0 to 255, from which a pixel counts as background."""
    test_patches_per_scan: int = 50
    """Test patches held out from each whole slide; scan files and images hold out their own."""
    test_seed: int = 0
    """Of that draw: apart from --seed, so that runs of other seeds are tested on the same patches."""

    def rules(self) -> "Rules":
        """How patches are chosen."""
        from kimiajax.data.patches import Rules

        return Rules(**{field.name: getattr(self, field.name) for field in fields(Rules)})

    def check_patches(self) -> None:
        """Raises UserError for the first of these settings that is out of its range."""
        self.check_scans()
        _check_least(self, patches_per_scan=1, test_patches_per_scan=1, seed=0, test_seed=0)
        if self.seed >= 2**32:
            raise UserError(f"--seed {self.seed}: must be under 2**32")
        _check_cutting(self)


TABLE = ("cnn", "fe_vgg16", "tl_vgg16", "fe_inception_v3", "tl_inception_v3")
FLOORS = ("floor_mean_sd", "floor_bright", "floor_histogram", "floor_lbp")
KINDS = ("euclidean", "cosine", "barcode")  # of distances between features
RETRIEVAL = tuple(f"nn_{network}_{kind}" for network in ("vgg16", "inception_v3") for kind in KINDS)


@dataclass(frozen=True)
class TableConfig(PatchConfig):
    """Settings of a comparison table. The defaults are the paper's protocol, where it states one."""

    draw_synthetic: bool = False
    """Draw synthetic scans where no scan file is given."""
    out: Path | None = None
    """Folder for the results; by default runs/PRESET."""
    rows: tuple[str, ...] = (*TABLE, *FLOORS, *RETRIEVAL)
    """What to compute: the table's rows, floors of trivial features, and retrieval of the nearest training patch."""

    image_size: int = 224
    """Side of the networks' input in pixels."""
    resize: Literal["nearest", "bilinear", "box", "reduce_bilinear"] = "box"
    """Filter from patch to input, as Pillow defines it; reduce_bilinear, in two of its steps, is the fastest."""

    weights: tuple[str, ...] = ("imagenet",)
    """`imagenet`, `random`, or a path (converted, saved by Keras, .safetensors): of all networks, or NETWORK=... ."""
    mixed_lineages: bool = False
    """Allow networks weights that different frameworks trained."""

    svm_c: float = 1.0
    """Penalty of the linear SVM."""
    head_epochs: int = 50
    """Epochs of the new head on bottleneck features."""
    head_learning_rate: float = 1e-3
    """Of the head's RMSprop."""
    epochs: int = 200
    """Epochs of fine-tuning, and of training from scratch."""
    learning_rate: float = 1e-4
    """Of fine-tuning, by SGD."""
    momentum: float = 0.9
    """Of fine-tuning's SGD."""
    optimizer: Literal["sgd", "rmsprop", "adam", "adamw"] = "sgd"
    """Of fine-tuning."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Of fine-tuning's learning rate; the last two fall towards 0."""
    warmup_epochs: float = 0.0
    """Over which fine-tuning's learning rate rises from 0."""
    weight_decay: float = 0.0
    """Of fine-tuning, on what trains only."""
    label_smoothing: float = 0.0
    """Of fine-tuning: the share of a label that is spread over all scans."""
    augmentation: Literal["none", "keras2017", "keras"] = "keras2017"
    """Of fine-tuning: shear, zoom and mirroring as Keras did it in 2017, or as it does it now."""
    blocks: tuple[str, ...] = ("paper",)
    """What is fine-tuned: a preset, or blocks joined by commas; `kimiajax blocks NETWORK` shows them. As --weights."""
    frozen_bn: Literal["inference", "batch", "keras2017"] | None = None
    """Frozen batch normalisation uses its stored statistics (the default), the mini-batch's, or moves them as well."""
    bn_statistics: Literal["synchronised", "local"] = "synchronised"
    """Mini-batch statistics over all devices, or of each device's own patches."""
    batch_norm_momentum: float = 0.99
    """Of running statistics in fine-tuning: new = momentum * old + (1 - momentum) * batch."""
    cnn_learning_rate: float = 1e-3
    """Of training from scratch, by Adam."""
    batch_size: int = 32
    """Patches in a training step."""

    engine: Literal["jit", "pmap"] = "jit"
    """How training spreads over the devices; the results are the same."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of convolutions and matrix products; parameters, statistics and losses are float32 always."""
    conv: Literal["auto", "plain", "fast"] = "auto"
    """How the networks convolve: as XLA does, or on a CPU by Winograd's algorithm; auto measures which is faster."""
    seeds: int = 1
    """Run the whole table for so many seeds, from --seed on, and report mean and spread."""
    cache_frozen: bool = True
    """Where patches are not augmented, compute the frozen blocks once a patch and train on their stored outputs."""
    feed: Literal["auto", "resident", "stream"] = "auto"
    """Training patches lie on the device, all of them, or come batch by batch; auto: the first where they fit."""
    checkpoint_seconds: float = 120.0
    """Seconds between two checkpoints of a training: what a crash may cost."""
    fresh: bool = False
    """Begin anew where the output folder holds an earlier run, which goes; else that run is resumed."""
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
    tensorboard: bool = False
    """Write the history for TensorBoard as well; needs the extra `track`."""

    def validate(self, known_rows: tuple[str, ...]) -> None:
        """Raises UserError for the first setting that is out of its range."""
        unknown = [row for row in self.rows if row not in known_rows]
        if unknown:
            raise UserError(f"--rows {unknown[0]}: no such row; choose from {', '.join(known_rows)}")
        if not self.rows:
            raise UserError(f"--rows: name at least one of {', '.join(known_rows)}")
        for name in ("weights", "blocks"):
            if not getattr(self, name) or "" in [_setting(text)[1] for text in getattr(self, name)]:
                raise UserError(f"{flag(name)}: says nothing; leave it out, or give what is to be used")
        self.check_patches()
        _check_least(self, image_size=1, head_epochs=0, epochs=0, batch_size=1, seeds=1)
        if self.seed + self.seeds > 2**32:
            raise UserError(
                f"--seeds {self.seeds}: the last seed would be {self.seed + self.seeds - 1}, over 2**32 - 1"
            )
        for name in ("svm_c", "learning_rate", "head_learning_rate", "cnn_learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{flag(name)} {getattr(self, name)}: must be above 0 and finite")
        for name in ("momentum", "batch_norm_momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{flag(name)} {getattr(self, name)}: must be in [0, 1)")
        _check_least(self, processes=1, process=0, peer_timeout=1)
        given = [name for name in ("coordinator", "processes", "process") if getattr(self, name) is not None]
        if given and not self.distributed:
            raise UserError(f"{flag(given[0])}: is for --distributed")
        if self.distributed and self.engine == "pmap":
            raise UserError("--engine pmap is for the devices of one process; leave --engine out with --distributed")
        if not self.checkpoint_seconds >= 0:
            raise UserError(f"--checkpoint-seconds {self.checkpoint_seconds}: must be 0 or more")
        if self.warmup_epochs > self.epochs:
            raise UserError(f"--warmup-epochs {self.warmup_epochs}: must not be more than --epochs {self.epochs}")
        for name in ("warmup_epochs", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{flag(name)} {getattr(self, name)}: must be 0 or more, and finite")

    def folder(self, preset: str) -> Path:
        """Where the results go."""
        return self.out or Path("runs") / preset

    def check_networks(self, known: Container[str]) -> None:
        """Raises UserError for settings of a network that there is not, or that are none's."""
        for name in ("weights", "blocks"):
            for text in getattr(self, name):
                network, _ = _setting(text)
                if network is not None and network not in known:
                    raise UserError(f"{flag(name)} {text}: no such network; `kimiajax blocks` lists them")

    def weights_of(self, network: str) -> str:
        """The weights asked for of a network."""
        return setting_of(network, self.weights, "imagenet")

    def blocks_of(self, backbone: "Backbone") -> "TrainableBlocks":
        """What of a network is fine-tuned.

        Raises:
            UserError: a name that the network has not.
        """
        from kimiajax.finetune.blocks import blocks_of

        names = setting_of(backbone.name, self.blocks, "paper")
        return blocks_of(backbone, tuple(names.split(",")), self.frozen_bn)

    def networks_named(self) -> list[str]:
        """The networks that settings are given for by name."""
        named = [_setting(text)[0] for text in (*self.weights, *self.blocks)]
        return list(dict.fromkeys(network for network in named if network is not None))

    def fine_tuning(self) -> "Optimization":
        """The optimizer of fine-tuning, its schedule and its loss."""
        from kimiajax.finetune.optimizer import Optimization

        return Optimization(**{field.name: getattr(self, field.name) for field in fields(Optimization)})


@dataclass(frozen=True)
class BlocksConfig:
    """Settings of a list of blocks."""

    blocks: tuple[str, ...] = ("paper",)
    """What trains: names of blocks, parts of blocks and "head", or a preset."""
    frozen_bn: Literal["inference", "batch", "keras2017"] | None = None
    """What frozen batch normalisation does; by default what the preset says."""
    image_size: int = 224
    """Side of the network's input in pixels."""
    classes: int = 24
    """Of the head."""

    def validate(self) -> None:
        """Raises UserError for the first setting that is out of its range."""
        _check_least(self, image_size=1, classes=1)


@dataclass(frozen=True)
class ParityConfig:
    """Settings of a comparison with a reference framework."""

    reference: Literal["keras", "torch"]
    """The framework whose network, in double precision, is the judge."""
    weights: str
    """A weight file of that framework, or `random`: every array random, saved by the framework itself."""
    scans: Path | None = None
    """A scan file to take images from; by default one drawn by a program."""
    image_size: int = 224
    """Side of the networks' input in pixels."""
    input: Literal["unit", "native"] = "unit"
    """What images are mapped onto: [0, 1], as in the study, or the input that the weights were trained on."""
    resize: Literal["nearest", "bilinear", "box"] = "box"
    """Filter from patch to input, as Pillow defines it."""
    steps: int = 3
    """Training steps; the first and the last are compared."""
    conv: Literal["plain", "fast"] = "plain"
    """How this project's side convolves: as XLA does, or by Winograd's algorithm, for a CPU."""
    seed: int = 0
    """Of random weights, of the head, and of drawn scans."""
    require: bool = False
    """End with an exit status that is not 0 where the reference is not installed."""
    out: Path | None = None
    """Folder for parity.json; by default runs/parity/NETWORK-REFERENCE."""

    def validate(self) -> None:
        """Raises UserError for the first setting that is out of its range."""
        _check_least(self, steps=1, seed=0)

    def folder(self, network: str) -> Path:
        """Where the certificate goes."""
        return self.out or Path("runs") / "parity" / f"{network}-{self.reference}"

    def as_dict(self) -> dict[str, object]:
        """All fields, as JSON takes them."""
        return _json_fields(self)


@dataclass(frozen=True)
class ExportConfig(PatchConfig):
    """Settings of an export."""

    patches_per_scan: int | Literal["all"] = "all"
    """Training patches drawn from each scan."""
    out: Path | None = None
    """The folder to write; it must not exist yet."""


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of a preparation."""

    manual_dir: Path | None = None
    """The folder that holds Kimia_Path24.h5, or the folders of the colour release."""
    data_dir: Path | None = None
    """The folder to prepare into; by default TFDS's own, ~/tensorflow_datasets."""
    patch_size: int | None = None
    """Side of a patch in pixels; checked to be that of the test patches."""
    grid: Literal["full", "readme"] = "full"
    """Of the scan file, where training patches lie; readme leaves out the last row and column."""
    homogeneity: float = 0.99
    """Patches with at least this fraction of background are left out."""
    background: int = 220
    """Gray value, 0 to 255, from which a pixel counts as background."""
    allow_unverified: bool = False
    """Go on where the files are not the published ones: every result will say so."""
    beam: tuple[str, ...] | None = None
    """Prepare through Apache Beam with these options of its pipeline: runner=FlinkRunner flink_master=HOST:8081 ..."""
    cache: Path | None = None
    """Folder for what reading the scans told; by default the user's cache folder."""

    def validate(self) -> None:
        """Raises UserError for the first setting that is out of its range."""
        _check_least(self, patch_size=1)
        _check_cutting(self)


@dataclass(frozen=True)
class ExplainConfig(ScansConfig):
    """Settings of an explanation of counts."""

    background: Literal[180, 190, 200, 210, 220, 230, 240, 250] = 220
    """Gray value from which a pixel counts as background in the table by scan."""


@dataclass(frozen=True)
class AuditConfig(ScansConfig):
    """Settings of an audit."""

    manifest: Path | None = None
    """Ask of the patches of this manifest.csv, and not of all that the rules leave."""
    official: bool = False
    """The file is given as the official one: another digest, or other counts of test patches, fail the audit."""
    out: Path | None = None
    """Folder for audit.json; by default runs/audit/NAME."""


@dataclass(frozen=True)
class FeaturesConfig(PatchConfig):
    """Settings of an export of features."""

    scans: Path | None = None
    """A scan file, a folder of images laid out train/s0/*.png, one of whole slides, an image, or any folder of them."""
    seed: int = 0
    """Of the draw of patches, and of random weights."""
    patches_per_scan: int | Literal["all"] = "all"
    """Training patches drawn from each scan."""
    tap: str | None = None
    """The block whose outputs are written; by default that of the paper's features, VGG16's fc2."""
    weights: str = "imagenet"
    """`imagenet`, `random`, or the path of a converted checkpoint, a file that Keras saved, or a .safetensors file."""
    image_size: int = 224
    """Side of the network's input in pixels."""
    resize: Literal["nearest", "bilinear", "box", "reduce_bilinear"] = "box"
    """Filter from patch to input, as Pillow defines it; reduce_bilinear, in two of its steps, is the fastest."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of convolutions and matrix products; features are written as float32 always."""
    conv: Literal["auto", "plain", "fast"] = "auto"
    """How the network convolves: as XLA does, or on a CPU by Winograd's algorithm; auto measures which is faster."""
    out: Path | None = None
    """The folder to write; it must not exist yet."""

    def validate(self) -> None:
        """Raises UserError for the first setting that is out of its range."""
        self.check_patches()
        _check_least(self, image_size=1)


@dataclass(frozen=True)
class PredictConfig:
    """Settings of predictions by a finished row."""

    split: Literal["all", "train", "test"] = "all"
    """Of scans, both kinds of patches, or those of one."""
    patches_per_scan: int | Literal["all"] = "all"
    """Training patches drawn from each scan, by the run's own rules."""
    patch_size: int | None = None
    """Side of a patch in pixels, of slides cut, of images checked; by default that of the run's patches."""
    mpp: float | None = None
    """Microns per pixel at which whole slides are read; by default the run's."""
    weights: str | None = None
    """The weights that an SVM's features come from, where they are not any more where the run found them."""
    out: Path | None = None
    """A .csv file to write the predictions to, with every scan's score."""
    grad_cam: Path | None = None
    """A folder to write, with a picture of each patch and where the network looks in it; it must not exist yet."""
    layer: str | None = None
    """Of these pictures: a block, or `keras-vis`; by default the last block that has a height and a width."""
    cache: Path | None = None
    """Folder for what serves again: surveys, patches, weights, features; by default the user's cache folder."""

    def validate(self) -> None:
        """Raises UserError for the first setting that is out of its range."""
        _check_least(self, patches_per_scan=1, patch_size=1)
        if self.mpp is not None and not 0 < self.mpp < float("inf"):
            raise UserError(f"--mpp {self.mpp}: must be above 0 and finite")
        if self.layer is not None and self.grad_cam is None:
            raise UserError(f"--layer {self.layer}: is for --grad-cam")
        if self.out is not None and (self.out.suffix != ".csv" or self.out.is_dir()):
            raise UserError(f"--out {self.out}: must be a .csv file")


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of a score."""

    truth: Path
    """Which scan each test patch is of: a manifest.csv, a run, a CSV file with patch_id and scan, scans or images."""
    out: Path | None = None
    """A .json file to write the scores to."""


@dataclass(frozen=True)
class ReportConfig:
    """Settings of a report."""

    format: Literal["html", "markdown", "csv", "latex"] = "html"
    """One file with everything, or the table alone, as text."""
    out: Path | None = None
    """The file to write; by default report.html in the run's folder, and text is printed."""


@dataclass(frozen=True)
class CompareConfig:
    """Settings of a comparison of two runs."""

    out: Path | None = None
    """A .json file to write the comparison to."""


def _check_least(config: object, **least: int) -> None:
    for name, bound in least.items():
        value = getattr(config, name)
        if isinstance(value, int) and value < bound:
            raise UserError(f"{flag(name)} {value}: must be {bound} or more")


def _check_cutting(config: PatchConfig | PrepareConfig) -> None:
    if not 0 < config.homogeneity <= 1:
        raise UserError(f"--homogeneity {config.homogeneity}: is a fraction, above 0 and at most 1")
    if not 0 <= config.background <= 255:
        raise UserError(f"--background {config.background}: must be a gray value, 0 to 255")


def _json_fields(config: ScansConfig | ParityConfig) -> dict[str, object]:
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: text_of(value) if isinstance(value, Path) else value for name, value in values.items()}


def _setting(text: str) -> tuple[str | None, str]:
    """NETWORK=VALUE, or VALUE alone, which is for every network."""
    match = re.fullmatch(r"([a-z][a-z0-9_]*)=(.*)", text)
    return (match[1], match[2]) if match else (None, text)


def setting_of(network: str, given: Sequence[str], default: str) -> str:
    """A network's own setting, else the one for all; of two the later."""
    values = dict(map(_setting, given))
    return values.get(network, values.get(None, default))


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


PAPER = TableConfig()

# Few epochs, so fine-tuning steps are larger and the running statistics follow sooner than the paper's.
QUICK = replace(PAPER, patches_per_scan=20, epochs=10, learning_rate=1e-3, batch_norm_momentum=0.9, augmentation="none")

DEMO = replace(
    QUICK,
    draw_synthetic=True,
    patches_per_scan=16,
    image_size=96,
    epochs=12,
    weights=("random",),
)

PRESETS = {
    "demo": ("Synthetic scans and random weights, small: shows the way, reproduces nothing.", DEMO),
    "quick": ("A real scan file on a CPU: the protocol without augmentation, few epochs.", QUICK),
    "paper": ("The paper's protocol in full; meant for a GPU.", PAPER),
}
