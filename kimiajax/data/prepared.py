"""Image-classification sets that TFDS has prepared as array_record, read without TensorFlow.

A class stands where a scan does in Kimia Path24. Sets that `kimiajax data prepare` made say which patch each record is,
so that the draw and the order of patches are those of the scan file or the folder that they came from; of any other set
a record's name is its place in its split. Images are decoded as those in folders are, with the same refusals.
"""

import contextlib
import io
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kimiajax.cache import keep_file, kept_file
from kimiajax.data.images import decode_gray
from kimiajax.data.manifest import SPLITS, Patch, Split
from kimiajax.data.patches import key_of
from kimiajax.data.source import Candidates, Precut, Track, identity_of, no_track
from kimiajax.data.survey import in_threads
from kimiajax.errors import UserError
from kimiajax.shapes import UInt8
from kimiajax.shown import first_few

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

CHUNK = 64  # records that a thread reads in one go, where only their labels are wanted
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
    """

    name: str
    data_dir: Path | None = None
    image: str = "image"
    label: str = "label"
    train: str = "train"
    test: str | None = None

    def __str__(self) -> str:
        return self.name


class Record(NamedTuple):
    """What a record says of its patch, but for the pixels: its label, and where one of our builders wrote it the rest.

    Attributes:
        label: its scan.
        patch_id: its name; None where it has none.
        place: its rank among the places of its scan, or among the test patches; None likewise.
        row: its top left pixel's, in the scan; None where that is unknown.
        col: the same.
    """

    label: int
    patch_id: str | None = None
    place: int | None = None
    row: int | None = None
    col: int | None = None


class Prepared(Precut):
    """An open prepared data set. Any number of threads may read from it.

    Args:
        dataset: which.
        cache: a folder in which the labels of all records are kept, since to read them is to read everything.
        track: called as `track(items, description, total, unit)` around that, to show progress.

    Attributes:
        full_name: NAME/CONFIG/VERSION.
        origin: what `kimiajax data prepare` recorded of the files; None of sets that it did not make.

    Raises:
        UserError: it is not prepared, not as array_record, or holds no labelled images.
    """

    kind = "prepared data set"

    def __init__(self, dataset: Dataset, cache: Path | None = None, track: Track = no_track):
        self._dataset, self._cache, self._track = dataset, cache, track
        builder = _builder_of(dataset)
        self.full_name = builder.info.full_name
        self.path = Path(builder.data_dir)
        self._about = _about(self.path)
        self.rules = self._about.get("rules", {})
        self.synthetic = self._about.get("synthetic") is True
        self.unverified = self._about.get("unverified")
        self.origin = self._about.get("origin")
        self._sources = _sources_of(builder, dataset, self.path)
        self._lock = threading.Lock()
        self._records: dict[Split, list[Record]] = {}
        self._places: dict[Split, dict[str, int]] = {}
        self._identity = self._identify()
        self._classes = _classes_of(builder, dataset, self.path)
        self.names = self._classes or tuple(map(str, range(1 + max(record.label for record in self._list("train")))))
        self.patch_size = self._read_size(builder.info.features[dataset.image].shape)

    def identity(self) -> str:
        return self._identity

    def describe(self) -> dict[str, Any]:
        counts = {split: len(source) for split, source in self._sources.items()}
        return {"path": str(self.path), "kind": self.kind, "dataset": self.full_name, "records": counts}

    @property
    def flags(self) -> str:
        root = str(self.path).removesuffix(f"/{self.full_name}")
        return f"--dataset {self.full_name} --data-dir {root}"

    def offered(self) -> list[Candidates]:
        """All training patches, by scan; held-out ones too, where the set has no test split.

        Raises:
            UserError: a class without an image, or labels that are no classes.
        """
        places = self._about.get("places")
        offered = []
        for scan, patches in enumerate(self._by_scan()):
            if not patches:
                raise UserError(
                    f"{self.path}: no record of {self.names[scan]} in {self._dataset.train}; every class needs a "
                    "training image"
                )
            offered.append(Candidates(patches, len(patches) if places is None else places[scan]))
        return offered

    def test_patches(self) -> list[Patch] | None:
        """The test split's; None where the set has none."""
        if "test" not in self._sources:
            return None
        records = self._list("test")
        patches = [self._patch("test", k, record) for k, record in enumerate(records)]
        order = sorted(range(len(records)), key=lambda k: k if records[k].place is None else records[k].place)
        return [patches[k] for k in order]

    def read_patch(self, patch: Patch) -> UInt8[np.ndarray, "s s"]:
        split, index = self._find(patch.patch_id)
        return decode_gray(self._read(split, index)[self._dataset.image], f"{self.path}: {patch.patch_id}")

    def _by_scan(self) -> list[dict[int, Patch]]:
        """Training patches by their ranks, by scan."""
        found: list[dict[int, Patch]] = [{} for _ in self.names]
        for k, record in enumerate(self._list("train")):
            of_scan = found[record.label]
            of_scan[len(of_scan) if record.place is None else record.place] = self._patch("train", k, record)
        return found

    def _patch(self, split: Split, index: int, record: Record) -> Patch:
        name = record.patch_id or f"{split}/s{record.label}/{index}"
        return Patch(name, record.label, split, record.row, record.col)

    def _find(self, patch_id: str) -> tuple[Split, int]:
        """Where a patch is: its split among the sources, and its place there."""
        split: Split = "test" if patch_id.startswith("test/") and "test" in self._sources else "train"
        with self._lock:
            if split not in self._places:
                names = (self._patch(split, k, record).patch_id for k, record in enumerate(self._list(split)))
                self._places[split] = {name: k for k, name in enumerate(names)}
        name = patch_id if split == "test" else f"train/{patch_id.partition('/')[2]}"  # held out from among these
        if name not in self._places[split]:
            raise UserError(f"{self.path}: holds no record of {patch_id}; is the manifest of another source?")
        return split, self._places[split][name]

    def _list(self, split: Split) -> list[Record]:
        """What the records of a split say, in their order."""
        if split not in self._records:
            name = f"{key_of('records', self._identity, split)}.json"
            kept = kept_file(self._cache, "records", name)
            try:
                listed = None if kept is None else [Record(*each) for each in json.loads(kept.read_text())]
            except (OSError, ValueError, TypeError):  # damaged, and made again
                listed = None
            if listed is None:
                listed = self._read_records(split)
                keep_file(self._cache, "records", name, json.dumps(listed).encode())
            self._records[split] = listed
        return self._records[split]

    def _read_records(self, split: Split) -> list[Record]:
        count = len(self._sources[split])

        def look(start: int) -> list[Record]:
            return [self._record(split, k) for k in range(start, min(start + CHUNK, count))]

        chunks = in_threads(look, range(0, count, CHUNK))
        chunks = self._track(chunks, f"reading labels of {split}", -(-count // CHUNK), f"x {CHUNK} records")
        return [record for chunk in chunks for record in chunk]

    def _record(self, split: Split, index: int) -> Record:
        example = self._read(split, index)
        label = int(example[self._dataset.label])
        if label < 0 or (self._classes and label >= len(self._classes)):
            raise UserError(
                f"{self.path}: record {index} of {split} has the label {label}, which is no class; choose a split "
                "that is labelled"
            )
        if "places" not in self._about:
            return Record(label)
        row, col = (int(example[name]) for name in ("row", "col"))
        known = row >= 0
        name = example["patch_id"].decode()
        return Record(label, name, int(example["place"]), row if known else None, col if known else None)

    def _read(self, split: Split, index: int) -> dict[str, Any]:
        try:
            return self._sources[split][index]
        except Exception as error:  # whatever a damaged file makes its reader raise
            raise UserError(
                f"{self.path}: record {index} of {split} cannot be read ({type(error).__name__}: {error}); prepare the "
                "set again"
            ) from error

    def _read_size(self, shape: Sequence[int | None]) -> int:
        """The side of the patches in pixels: what the set says, or that of its first image."""
        height, width = shape[:2]
        if height is None or width is None:
            split: Split = "test" if "test" in self._sources else "train"
            height, width = decode_gray(
                self._read(split, 0)[self._dataset.image], f"{self.path}: record 0 of {split}"
            ).shape
        if height != width:
            raise UserError(f"{self.path}: images of {height} x {width} pixels; patches are squares")
        return int(height)

    def _identify(self) -> str:
        from PIL import __version__ as decoder

        files = sorted(file for file in self.path.iterdir() if file.is_file())
        about = replace(self._dataset, data_dir=None)
        return identity_of([(file, file.stat()) for file in files], repr(about), decoder)


def _builder_of(dataset: Dataset) -> "tfds.core.DatasetBuilder":
    """A builder that reads files alone, whatever code there is for the set.

    Raises:
        UserError: no such set.
    """
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.utils import file_utils

    data_dir = dataset.data_dir and str(dataset.data_dir)
    roots = [Path(root) for root in file_utils.list_data_dirs(data_dir)]
    where = " or ".join(map(str, roots))
    try:
        with quiet_tfds():
            return read_only_builder.builder_from_files(dataset.name, data_dir=data_dir)
    except Exception as error:  # TFDS has an error of its own for each way that a name can be wrong
        there = first_few(name for root in roots for name in prepared_in(root)) or "nothing"
        raise UserError(
            f"{where}: holds no prepared {dataset.name!r}, but {there}; give NAME/CONFIG as the command that prepared "
            "it said, or its folder with --data-dir"
        ) from error


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
    """The prepared sets in a folder, NAME/VERSION or NAME/CONFIG/VERSION."""
    files = [file for depth in ("*/*", "*/*/*") for file in root.glob(f"{depth}/dataset_info.json")]
    names = [file.parent.relative_to(root) for file in files]
    return sorted(name.as_posix() for name in names if not name.name.startswith("incomplete."))


def _about(path: Path) -> dict[str, Any]:
    """What one of our builders wrote of a set; empty for others."""
    try:
        about = json.loads((path / "metadata.json").read_text())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) and "kimiajax" in about else {}


def _sources_of(builder: "tfds.core.DatasetBuilder", dataset: Dataset, path: Path) -> dict[Split, Any]:
    """Random access to the records of each split, images left as bytes."""
    import tensorflow_datasets as tfds

    _check_features(builder, dataset, path)
    known = ", ".join(builder.info.splits)
    wanted = {"train": dataset.train, "test": dataset.test or "test"}
    if dataset.test is None and "test" not in builder.info.splits:
        del wanted["test"]
    sources = {}
    for split, expression in wanted.items():
        try:
            decoders = {dataset.image: tfds.decode.SkipDecoding()}
            sources[split] = builder.as_data_source(expression, decoders=decoders)
        except NotImplementedError as error:
            raise UserError(
                f"{path}: is prepared as {builder.info.file_format.value}, which cannot be read without TensorFlow; "
                'prepare it with `tfds.builder(NAME, file_format="array_record").download_and_prepare()`, in another '
                "--data-dir or once this is removed"
            ) from error
        except Exception as error:
            raise UserError(
                f"{path}: --{split}-split {expression}: no such split; it has {known} ({type(error).__name__}: "
                f"{_first_line(error)})"
            ) from error
        if not len(sources[split]):
            raise UserError(f"{path}: --{split}-split {expression}: is empty")
    assert set(sources) <= set(SPLITS)
    return sources


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _check_features(builder: "tfds.core.DatasetBuilder", dataset: Dataset, path: Path) -> None:
    from tensorflow_datasets import features as kinds

    features = builder.info.features
    if not isinstance(features, kinds.FeaturesDict):
        raise UserError(f"{path}: its examples are no dictionaries; a set is needed that holds {LABELLED}")
    shown = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
    for key, name in ((dataset.image, "--image-key"), (dataset.label, "--label-key")):
        if key not in features:
            raise UserError(f"{path}: {name} {key}: no such feature; it has {shown}")
    image, label = features[dataset.image], features[dataset.label]
    if not isinstance(image, kinds.Image) or image.np_dtype != np.uint8:
        raise UserError(f"{path}: --image-key {dataset.image}: holds no 8-bit images; it has {shown}")
    if label.shape != () or not np.issubdtype(label.np_dtype, np.integer):
        raise UserError(f"{path}: --label-key {dataset.label}: holds no classes; it has {shown}")


def _classes_of(builder: "tfds.core.DatasetBuilder", dataset: Dataset, path: Path) -> tuple[str, ...] | None:
    """The names of the classes; None where the labels are bare numbers."""
    from tensorflow_datasets import features as kinds

    label = builder.info.features[dataset.label]
    if not isinstance(label, kinds.ClassLabel) or not label.num_classes:
        return None
    if label.num_classes < 2:
        raise UserError(f"{path}: --label-key {dataset.label}: has a single class")
    return tuple(label.names)
