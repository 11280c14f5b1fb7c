"""Data sets that TFDS has prepared: where they are, what they must hold, and random access to their records.

TFDS is imported in functions only, for whoever has such a set, and without TensorFlow.
"""

import contextlib
import importlib.util
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kimiajax.checks import check_fields
from kimiajax.data.manifest import Split
from kimiajax.errors import UserError
from kimiajax.text import first_few, first_line

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

OURS = {"patch_id", "row", "col", "place"}  # features that only our builders write
ABOUT = {"kimiajax", "origin", "unverified", "synthetic", "places", "rules"}  # what they write in metadata.json
LABELLED = "an image and an integer label, one for each example"


@dataclass(frozen=True)
class Dataset:
    """Which prepared data set, and what of it.

    Attributes:
        name: NAME, NAME/CONFIG or NAME/CONFIG:VERSION.
        data_dir: the folder that holds prepared sets; None for TFDS's own, `~/tensorflow_datasets` or TFDS_DATA_DIR.
        image: the key of the images.
        label: the key of the labels.
        train: the training split, in TFDS's notation: "train", "train[:80%]".
        test: the test split; None for "test" where there is one, and else test patches are drawn and held out.

    Raises:
        UserError: a field that is no text, or no path.
    """

    name: str
    data_dir: Path | None = None
    image: str = "image"
    label: str = "label"
    train: str = "train"
    test: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.data_dir, str):
            object.__setattr__(self, "data_dir", Path(self.data_dir))
        check_fields(self)

    def __str__(self) -> str:
        return self.name

    def flags(self) -> list[str]:
        """What the command line must say beside name and folder."""
        named = {"--image-key": "image", "--label-key": "label", "--train-split": "train", "--test-split": "test"}
        changed = {flag: name for flag, name in named.items() if getattr(self, name) != getattr(Dataset, name)}
        return [part for flag, name in changed.items() for part in (flag, getattr(self, name))]


def builder_of(dataset: Dataset) -> "tfds.core.DatasetBuilder":
    """A builder that reads files alone, whatever code there is for the set.

    Raises:
        UserError: no such set.
    """
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.utils import file_utils

    data_dir, name = dataset.data_dir and str(dataset.data_dir), re.sub(r"/(\d+\.\d+\.\d+)$", r":\1", dataset.name)
    roots = [Path(root) for root in file_utils.list_data_dirs(data_dir)]
    where = " or ".join(map(str, roots))
    if not set(name) & {"/", ":"}:  # without its config, which need not be said where there is one alone
        configs = [each for root in roots for each in prepared_in(root) if each.partition("/")[0] == name]
        name = configs[0] if len(configs) == 1 else name
    try:
        with quiet_tfds():
            return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except Exception as error:  # TFDS has an error of its own for each way that a name can be wrong
        if damaged := [folder for root in roots for folder in _meant(name, root)]:
            raise UserError(
                f"{damaged[0]}: is prepared, but cannot be read ({type(error).__name__}: {first_line(error)}); "
                "prepare it again"
            ) from error
        there = first_few(name for root in roots for name in prepared_in(root)) or "nothing"
        raise UserError(
            f"{where}: holds no prepared {dataset.name!r}, but {there}; give NAME/CONFIG as the command that prepared "
            "it said, or its folder with --data-dir"
        ) from error


def check_home(data_dir: Path | None) -> None:
    """Raises UserError where sets would go to TFDS's own folder, and the user has no home that it could lie in."""
    from tensorflow_datasets.core import constants

    if data_dir is None and str(constants.DATA_DIR).startswith("~"):
        raise UserError("this user has no home folder for prepared data sets; name a folder with --data-dir")


@contextlib.contextmanager
def owners_by_number() -> Iterator[None]:
    """Within, owners of files whom the system has no name for go by their numbers: TFDS asks for names, and fails."""
    if importlib.util.find_spec("pwd") is None:  # the system names no owners
        yield
        return
    import grp
    import pwd

    def or_number(lookup: Callable[[int], Any]) -> Callable[[int], Any]:
        def named(number: int) -> Any:
            try:
                return lookup(number)
            except KeyError:
                return SimpleNamespace(pw_name=str(number), gr_name=str(number))

        return named

    before = pwd.getpwuid, grp.getgrgid
    pwd.getpwuid, grp.getgrgid = map(or_number, before)
    try:
        yield
    finally:
        pwd.getpwuid, grp.getgrgid = before


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keeps to itself what TFDS says by the way: that sizes are unknown, that a config is not one of its list."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


def prepared_in(root: Path) -> list[str]:
    """The prepared sets in a folder, NAME:VERSION or NAME/CONFIG:VERSION."""
    files = [file for depth in ("*/*", "*/*/*") for file in root.glob(f"{depth}/dataset_info.json")]
    names = [file.parent.relative_to(root) for file in files]
    return sorted(f"{name.parent.as_posix()}:{name.name}" for name in names if not name.name.startswith("incomplete."))


def _meant(name: str, root: Path) -> list[Path]:
    """The folders of prepared sets that a name is of, whole or with a part left out."""
    names = [each for each in prepared_in(root) if name in (each, each.partition(":")[0])]
    return [root / each.replace(":", "/") for each in names]


def name_of(builder: "tfds.core.DatasetBuilder") -> str:
    """The whole name of a set, NAME/CONFIG:VERSION."""
    return ":".join(builder.info.full_name.rsplit("/", 1))


def is_ours(builder: "tfds.core.DatasetBuilder") -> bool:
    """Whether one of our builders wrote a set, which nothing but its records' features need say."""
    return OURS.issubset(getattr(builder.info.features, "keys", tuple)())


def about_of(path: Path, ours: bool) -> dict[str, Any]:
    """What one of our builders wrote of a set, the marks of its results among it; empty for sets of others.

    Raises:
        UserError: it is ours, and that is lost.
    """
    if not ours:
        return {}
    try:
        about = json.loads((path / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        about = None
    if not isinstance(about, dict) or not ABOUT.issubset(about):
        raise UserError(f"{path}: metadata.json is missing or damaged, which says what the set is; prepare it again")
    return about


def sources_of(builder: "tfds.core.DatasetBuilder", dataset: Dataset, path: Path) -> dict[Split, Any]:
    """Random access to the records of each split, images left as bytes.

    Raises:
        UserError: no labelled images, splits that there are not or that share records, or another format.
    """
    import tensorflow_datasets as tfds

    _check_features(builder, dataset, path)
    images = [key for key, feature in features_of(builder).items() if isinstance(feature, tfds.features.Image)]
    decoders = dict.fromkeys(images, tfds.decode.SkipDecoding())
    sources = {}
    for split, expression in _splits_of(builder, dataset, path).items():
        try:
            sources[split] = builder.as_data_source(
                expression,  # pyright: ignore[reportCallIssue]  # TFDS's decorator hides its arguments
                decoders=decoders,
            )
        except NotImplementedError as error:
            assert builder.info.file_format is not None
            raise UserError(
                f"{path}: is prepared as {builder.info.file_format.value}, which cannot be read without TensorFlow; "
                'prepare it with `tfds.builder(NAME, file_format="array_record").download_and_prepare()`, in another '
                "--data-dir or once this is removed"
            ) from error
        except Exception as error:
            raise UserError(
                f"{path}: cannot be read ({type(error).__name__}: {first_line(error)}); prepare the set again"
            ) from error
    return sources


def _splits_of(builder: "tfds.core.DatasetBuilder", dataset: Dataset, path: Path) -> dict[Split, str]:
    """Which split serves for what, in TFDS's notation; none to test where the set has none and none was asked for."""
    known = ", ".join(sorted(builder.info.splits))
    wanted: dict[Split, str] = {"train": dataset.train, "test": "test" if dataset.test is None else dataset.test}
    if dataset.test is None and "test" not in builder.info.splits:
        del wanted["test"]
    parts: dict[str, set[tuple[str, int]]] = {}
    for split, expression in wanted.items():
        try:
            parts[split] = _records_of(builder, expression)
        except Exception as error:  # whatever TFDS makes of an expression that is none
            raise UserError(
                f"{path}: --{split}-split {expression}: no such split; it has {known} ({first_line(error)})"
            ) from error
        if not parts[split]:
            raise UserError(f"{path}: --{split}-split {expression}: is empty; it has {known}")
    shared = len(parts["train"] & parts.get("test", set()))
    if shared:
        raise UserError(
            f"{path}: --train-split {wanted['train']} and --test-split {wanted['test']} share {shared:,} records; no "
            "test image may be one of training"
        )
    return wanted


def _records_of(builder: "tfds.core.DatasetBuilder", expression: str) -> set[tuple[str, int]]:
    """Which records an expression means, each once: their shards, and their places there.

    Raises:
        Exception: of TFDS, where it means none; ValueError: where it means one twice.
    """
    found: list[tuple[str, int]] = []
    for part in builder.info.splits[expression].file_instructions:
        found += [(str(part.filename), place) for place in range(part.skip, part.skip + part.take)]
    if len(set(found)) < len(found):
        raise ValueError("it names records twice")
    return set(found)


def _check_features(builder: "tfds.core.DatasetBuilder", dataset: Dataset, path: Path) -> None:
    from tensorflow_datasets import features as kinds

    features = builder.info.features
    if not isinstance(features, kinds.FeaturesDict):
        raise UserError(f"{path}: its examples are no dictionaries; a set is needed that holds {LABELLED}")
    shown = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in sorted(features.items()))
    for key, name in ((dataset.image, "--image-key"), (dataset.label, "--label-key")):
        if key not in features:
            raise UserError(f"{path}: {name} {key}: no such feature; it has {shown}")
    image, label = features[dataset.image], features[dataset.label]
    if not isinstance(image, kinds.Image) or image.np_dtype != np.uint8:
        raise UserError(f"{path}: --image-key {dataset.image}: holds no 8-bit images; it has {shown}")
    if label.shape != () or not np.issubdtype(cast(np.dtype, label.np_dtype), np.integer):
        raise UserError(f"{path}: --label-key {dataset.label}: holds no classes; it has {shown}")


def features_of(builder: "tfds.core.DatasetBuilder") -> "tfds.features.FeaturesDict":
    """What each example of a set that `sources_of` takes holds, by its key."""
    from tensorflow_datasets import features as kinds

    assert isinstance(builder.info.features, kinds.FeaturesDict)
    return builder.info.features


def classes_of(builder: "tfds.core.DatasetBuilder", dataset: Dataset, path: Path) -> tuple[str, ...] | None:
    """The names of the classes; None where the labels are bare numbers."""
    from tensorflow_datasets import features as kinds

    label = features_of(builder)[dataset.label]
    if not isinstance(label, kinds.ClassLabel) or not label.num_classes:
        return None
    if label.num_classes < 2:
        raise UserError(f"{path}: --label-key {dataset.label}: has a single class")
    return tuple(label.names)
