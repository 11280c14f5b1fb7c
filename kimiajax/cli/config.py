"""The settings of every command but `table`, `sweep` and `parity`, a field being a flag."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kimiajax.data.config import READING, PatchConfig, ScansConfig, check_cutting, check_least, check_resolutions
from kimiajax.errors import UserError


@dataclass(frozen=True)
class BlocksConfig:
    """Settings of a list of blocks."""

    blocks: tuple[str, ...] = ("paper",)
    """What trains: names of blocks, parts of blocks and "head", or a preset."""
    frozen_bn: Literal["inference", "batch", "keras2017"] | None = None
    """What frozen batch normalisation does; by default what the preset says."""
    trained_bn: Literal["inference", "keras2017"] = "keras2017"
    """Mode of trained batch normalisation; `table quick` uses inference."""
    image_size: int = 224
    """Side of the network's input in pixels."""
    classes: int = 24
    """Of the head."""


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
        check_least(self, patch_size=1)
        check_cutting(self.homogeneity, self.background)


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
    """A scan file, a folder of images (train/CLASS/*.png), one of whole slides, an image, or any folder of images."""
    seed: int = 0
    """Of the draw of patches, and of random weights."""
    patches_per_scan: int | Literal["all"] = "all"
    """Training patches drawn from each scan."""
    tap: str | None = None
    """The block whose outputs are written, as they are (mixed8, [h w c]), as their mean over space (mixed8.mean) or in
    one row (mixed8.flat); by default that of the paper's features, VGG16's fc2."""
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
        check_least(self, image_size=1)


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
    slide_mpp: float | Path | None = None
    """Microns per pixel of slides whose files say none or a wrong one: a number, or a CSV file (columns slide, mpp)."""
    skip_unreadable: bool = False
    """Leave out slides that cannot be opened, are of no known resolution, too coarse or too small, and name them."""
    weights: str | None = None
    """The weights that an SVM's features come from, where they are not any more where the run found them."""
    out: Path | None = None
    """A .csv file to write the predictions to, with every scan's score."""
    grad_cam: Path | None = None
    """A folder to write, with a picture of each patch and where the network looks in it; it must not exist yet."""
    layer: str | None = None
    """Of these pictures: a block, or `keras-vis`; by default the last block with more than 2 x 2 cells."""
    cache: Path | None = None
    """Folder for what serves again: surveys, patches, weights, features; by default the user's cache folder."""

    def reading(self) -> dict[str, Any]:
        """Returns the settings of reading that depart from the run's."""
        return {name: value for name in READING if (value := getattr(self, name, None)) is not None}

    def validate(self) -> None:
        """Raises UserError for the first setting that is out of its range."""
        check_least(self, patches_per_scan=1, patch_size=1)
        check_resolutions(self.mpp, self.slide_mpp)
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
    cache: Path | None = None
    """Folder in which audits made since the run are looked for; by default the user's cache folder."""


@dataclass(frozen=True)
class CompareConfig:
    """Settings of a comparison of two runs."""

    out: Path | None = None
    """A .json file to write the comparison to."""
