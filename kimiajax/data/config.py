"""Where patches come from and which are used: settings that several commands share, and what is checked of any."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from kimiajax.checks import check_fields
from kimiajax.errors import UserError
from kimiajax.text import text_of

if TYPE_CHECKING:
    from kimiajax.data.patches import Rules
    from kimiajax.data.tfds.datasets import Dataset

OF_DATASETS = ("data_dir", "image_key", "label_key", "train_split", "test_split")  # settings that only --dataset has
OF_FOLDERS = ("groups", "group_column", "test_share")  # and those that folders of images have
READING = ("patch_size", "mpp", "slide_mpp", "skip_unreadable", *OF_FOLDERS)  # of how these are read, for `open_scans`
SOURCES = ("scans", "dataset", *OF_DATASETS, "groups", "group_column")  # what these are, their manifest says


@dataclass(frozen=True)
class ScansConfig:
    """Where patches come from."""

    scans: Path | None = None
    """A scan file in the layout of Kimia_Path24.h5, a folder of images (train/CLASS/*.png and test/CLASS/*.png, or
    CLASS/*.png), or one of whole slides."""
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
    slide_mpp: float | Path | None = None
    """Microns per pixel of slides whose files say none or a wrong one: a number, or a CSV file (columns slide, mpp)."""
    skip_unreadable: bool = False
    """Leave out slides that cannot be opened, are of no known resolution, too coarse or too small, and name them."""
    groups: Path | None = None
    """Of a folder of images, a CSV file with the columns patch and, say, patient: no group is in training and test."""
    group_column: str | None = None
    """Its column that holds the groups; by default the second."""
    test_share: float | None = None
    """The most of a class that is held out for testing, of a folder without test images; by default 0.2."""
    cache: Path | None = None
    """Folder for what serves again: surveys, patches, weights, features; by default the user's cache folder."""

    def __post_init__(self) -> None:
        as_paths(self)

    def needed(self, needs: str) -> "Path | Dataset":
        """Where patches come from: a path, or a prepared set.

        Args:
            needs: what is impossible without, for the message.

        Raises:
            UserError: both are given, or neither.
        """
        given = self.given()
        if given is None:
            raise UserError(f"{needs}, or --dataset NAME of a prepared data set")
        return given

    def given(self) -> "Path | Dataset | None":
        """The same where it need not be given."""
        if self.dataset is not None and self.scans is not None:
            raise UserError(f"--scans {self.scans} and --dataset {self.dataset}: give one of them")
        if self.dataset is None:
            return self.scans
        from kimiajax.data.tfds.datasets import Dataset

        splits = {"train": self.train_split, "test": self.test_split}
        return Dataset(self.dataset, self.data_dir, self.image_key, self.label_key, **splits)

    def reading(self) -> dict[str, Any]:
        """Returns the settings of reading, as `open_scans` takes them."""
        return {name: getattr(self, name) for name in READING}

    def check_scans(self) -> None:
        """Raises UserError for the first of these settings that is of another type or out of its range."""
        check_fields(self, flag)
        check_least(self, patch_size=1)
        for name in OF_DATASETS:
            if self.dataset is None and getattr(self, name) != getattr(ScansConfig, name):
                raise UserError(f"{flag(name)} {getattr(self, name)}: is for --dataset")
        check_resolutions(self.mpp, self.slide_mpp)
        for name in OF_FOLDERS:
            if self.scans is None and getattr(self, name) is not None:
                raise UserError(f"{flag(name)} {getattr(self, name)}: is for a folder of images, given by --scans")
        if self.group_column is not None and self.groups is None:
            raise UserError(f"--group-column {self.group_column}: is for --groups")
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise UserError(f"--test-share {self.test_share:g}: must be above 0 and below 1")


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
    dark: int | Literal["none"] | None = None
    """Gray value up to which all of a cell is for it to be dark, a cell being an eighth of a patch's side; by default
    40, and none of patches under 64 pixels or on Kimia Path24's own scans, which the paper's rule alone cuts."""
    darkness: float | None = None
    """Patches with at least this fraction of dark cells are left out: by default 0.03, and 0.1 under 128 pixels."""
    flat: int | Literal["none"] | None = None
    """Span of gray values up to which a cell is flat, and counts as background; by default 8, and none as above."""
    test_patches_per_scan: int = 50
    """Test patches held out of each whole slide, or of each class of a folder without test images (see --test-share);
    scan files, and folders with test images, hold out their own."""
    test_seed: int = 0
    """Of that draw: apart from --seed, so that runs of other seeds are tested on the same patches."""

    def rules(self) -> "Rules":
        """How patches are chosen."""
        from kimiajax.data.patches import Rules

        return Rules(**{field.name: getattr(self, field.name) for field in fields(Rules)})

    def check_patches(self) -> None:
        """Raises UserError for the first of these settings that is out of its range."""
        self.check_scans()
        check_least(self, patches_per_scan=1, test_patches_per_scan=1, seed=0, test_seed=0)
        if self.seed >= 2**32:
            raise UserError(f"--seed {self.seed}: must be under 2**32")
        check_cutting(self.homogeneity, self.background)
        for name in ("dark", "flat"):
            if getattr(self, name) not in ("none", None) and not 0 <= getattr(self, name) <= 255:
                raise UserError(f"{flag(name)} {getattr(self, name)}: must be 0 to 255, or none")
        if self.darkness is not None and not 0 < self.darkness <= 1:
            raise UserError(f"--darkness {self.darkness}: is a fraction, above 0 and at most 1")


def as_paths(settings: Any) -> None:
    """Makes paths of texts in the fields of settings that hold paths."""
    for field in fields(settings):
        if Path in get_args(field.type) and isinstance(value := getattr(settings, field.name), str):
            object.__setattr__(settings, field.name, Path(value))


def check_least(config: object, **least: int) -> None:
    """Raises UserError for the first of these settings that is a number below its bound."""
    for name, bound in least.items():
        value = getattr(config, name)
        if isinstance(value, int) and value < bound:
            raise UserError(f"{flag(name)} {value}: must be {bound} or more")


def check_resolutions(mpp: float | None, slide_mpp: float | Path | None) -> None:
    """Raises UserError for microns per pixel, of reading or of slides, that are given as a number that is none."""
    for name, value in (("--mpp", mpp), ("--slide-mpp", slide_mpp)):
        if not isinstance(value, Path | None) and not 0 < value < float("inf"):
            raise UserError(f"{name} {value}: must be above 0 and finite")


def check_share(config: object, name: str) -> None:
    """Raises UserError for a setting that is not in [0, 1)."""
    if not 0 <= getattr(config, name) < 1:
        raise UserError(f"{flag(name)} {getattr(config, name)}: must be in [0, 1)")


def check_cutting(homogeneity: float, background: int) -> None:
    """Raises UserError for what is no fraction, or no gray value."""
    if not 0 < homogeneity <= 1:
        raise UserError(f"--homogeneity {homogeneity}: is a fraction, above 0 and at most 1")
    if not 0 <= background <= 255:
        raise UserError(f"--background {background}: must be a gray value, 0 to 255")


def json_fields(config: Any) -> dict[str, object]:
    """All fields of settings, as JSON takes them."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: text_of(value) if isinstance(value, Path) else value for name, value in values.items()}


def flag(name: str) -> str:
    """A setting as it is given to a command."""
    return "--" + name.replace("_", "-")
