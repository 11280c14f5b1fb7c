"""Image-classification sets that TFDS has prepared as array_record, read without TensorFlow.

A class stands where a scan does in Kimia Path24. Sets that `kimiajax data prepare` made say which patch each record is,
so that the draw and the order of patches are those of the scan file or the folder that they came from; of any other set
a record's name is its place in its split. Images are decoded as those in folders are, with the same refusals.
"""

import contextlib
import json
import operator
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from kimiajax.data.manifest import Patch, Split
from kimiajax.data.patches import key_of
from kimiajax.data.sources.image_files import decode_gray
from kimiajax.data.sources.source import Candidates, Precut, Track, identity_of, no_track
from kimiajax.data.survey import in_threads
from kimiajax.data.tfds import datasets
from kimiajax.errors import UserError
from kimiajax.io.cache import keep_file, kept_file
from kimiajax.shapes import UInt8
from kimiajax.text import first_few, text_of

RECORDS = "records.json"  # of our own sets: what their records say, in their order
CHUNK = 64  # records that a thread reads in one go, where only their labels are wanted


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

    Attributes:
        full_name: NAME/CONFIG:VERSION.
        origin: what `kimiajax data prepare` recorded of the files; None of sets that it did not make.

    Raises:
        UserError: it is not prepared, not as array_record, or holds no labelled images.
    """

    kind = "prepared data set"

    def __init__(self, dataset: datasets.Dataset, cache: Path | None = None, track: Track = no_track):
        self._dataset, self._cache, self._track = dataset, cache, track
        builder = datasets.builder_of(dataset)
        self.full_name, self.path = datasets.name_of(builder), Path(builder.data_dir)
        self._about = datasets.about_of(self.path, datasets.is_ours(builder))
        self._named = bool(self._about) and (dataset.image, dataset.label) == ("image", "label")
        self.rules = self._about.get("rules", {})
        self.synthetic = self._about.get("synthetic") is True
        self.unverified = self._about.get("unverified")
        self.origin = self._about.get("origin")
        self._sources = datasets.sources_of(builder, dataset, self.path)
        self._lock = threading.Lock()
        self._records: dict[Split, list[Record]] = {}
        self._places: dict[Split, dict[str, int]] = {}
        self.identity = self._identify()
        self._classes = datasets.classes_of(builder, dataset, self.path)
        self.names = self._classes or self._numbers()
        shape: Any = datasets.features_of(builder)[dataset.image].shape
        self.patch_size = self._read_size(shape)

    def describe(self) -> dict[str, Any]:
        counts = {split: len(source) for split, source in self._sources.items()}
        return {"path": text_of(self.path), "kind": self.kind, "dataset": self.full_name, "records": counts}

    @property
    def title(self) -> str:
        return self.full_name

    @property
    def flags(self) -> str:
        root = self.path.parents[self.full_name.count("/") + 1]
        return shlex.join(["--dataset", self.full_name, "--data-dir", str(root), *self._dataset.flags()])

    def offered(self) -> list[Candidates]:
        """All training patches, by scan; held-out ones too, where the set has no test split.

        Raises:
            UserError: a class without an image, or labels that are no classes.
        """
        places = self._about["places"] if self._ranked("train") else None
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
        records, ranked = self._list("test"), self._ranked("test")
        order = sorted(range(len(records)), key=lambda k: cast(int, records[k].place) if ranked else k)
        return [self._patch("test", k, records[k]) for k in order]

    def read_patch(self, patch: Patch) -> UInt8[np.ndarray, "s s"]:
        split, index = self._find(patch)
        example, listed = self._read(split, index), self._list(split)[index]
        if self._record(split, index, example) != listed or listed.label != patch.scan:
            raise UserError(
                f"{self.path}: record {index} of {split} is not the one that was listed as {patch.patch_id} of "
                f"{self.names[patch.scan]}; prepare the set again"
            )
        return decode_gray(example[self._dataset.image], f"{self.path}: {patch.patch_id}")

    def close(self) -> None:
        for source in self._sources.values():
            if hasattr(source.data_source, "__exit__"):  # which opens a file a shard
                with contextlib.suppress(RuntimeError):  # of a damaged one, which reading has told
                    source.data_source.__exit__(None, None, None)

    def _numbers(self) -> tuple[str, ...]:
        """Names of classes that have none: their numbers, each of which is the label of a training image."""
        labels = {record.label for record in self._list("train")}
        count = len(labels)
        if max(labels) != count - 1 or count < 2:
            raise UserError(
                f"{self.path}: --label-key {self._dataset.label}: goes up to {max(labels)} and has {count} different "
                "labels in training; classes are numbered from 0, without gaps"
            )
        if "test" in self._sources and (others := {record.label for record in self._list("test")} - labels):
            raise UserError(
                f"{self.path}: no record of {first_few(map(str, sorted(others)))} in {self._dataset.train}, but among "
                "those to test; every class needs a training image"
            )
        return tuple(map(str, range(count)))

    def _by_scan(self) -> list[dict[int, Patch]]:
        """Training patches by their ranks, by scan."""
        found: list[dict[int, Patch]] = [{} for _ in self.names]
        ranked = self._ranked("train")
        for k, record in enumerate(self._list("train")):
            of_scan = found[record.label]
            of_scan[cast(int, record.place) if ranked else len(of_scan)] = self._patch("train", k, record)
        return found

    def _ranked(self, split: Split) -> bool:
        """Whether the records' own ranks are those of a split: not where others of ours serve for it."""
        return self._named and all(
            record.patch_id is not None and record.patch_id.startswith(f"{split}/") for record in self._list(split)
        )

    def _patch(self, split: Split, index: int, record: Record) -> Patch:
        name = f"s{record.label}/{index}" if record.patch_id is None else record.patch_id.partition("/")[2]
        return Patch(f"{split}/{name}", record.label, split, record.row, record.col)

    def _find(self, patch: Patch) -> tuple[Split, int]:
        """Where a patch is: its split among the sources, and its place there."""
        split: Split = patch.split if patch.split in self._sources else "train"  # which it was held out from
        with self._lock:
            if split not in self._places:
                names = (self._patch(split, k, record).patch_id for k, record in enumerate(self._list(split)))
                self._places[split] = {name: k for k, name in enumerate(names)}
        name = f"{split}/{patch.patch_id.partition('/')[2]}"
        if name not in self._places[split]:
            raise UserError(f"{self.path}: holds no record of {patch.patch_id}; is the manifest of another source?")
        return split, self._places[split][name]

    def _list(self, split: Split) -> list[Record]:
        """What the records of a split say, in their order."""
        if split not in self._records:
            name = f"{key_of('records', self.identity, split)}.json"
            expression = {"train": self._dataset.train, "test": self._dataset.test or "test"}[split]
            written = self._kept(self.path / RECORDS, split, expression) if self._named else None
            kept = kept_file(self._cache, "records", name)
            listed = written or (None if kept is None else self._kept(kept, split))
            if listed is None:  # none there, or damaged
                listed = self._read_records(split)
                keep_file(self._cache, "records", name, json.dumps(listed).encode())
            self._records[split] = listed
        return self._records[split]

    def _kept(self, file: Path, split: Split, key: str | None = None) -> list[Record] | None:
        """The records of a split as they were written down; None where that is not so, or damaged."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            listed = [Record(*each) for each in (content if key is None else content[key])]
            whole = all(
                isinstance(record.label, int)
                and 0 <= record.label < len(self._classes or listed)
                and isinstance(record.patch_id, str) is isinstance(record.place, int) is self._named
                for record in listed
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return listed if whole and len(listed) == len(self._sources[split]) else None

    def _read_records(self, split: Split) -> list[Record]:
        count = len(self._sources[split])

        def look(start: int) -> list[Record]:
            return [self._record(split, k, self._read(split, k)) for k in range(start, min(start + CHUNK, count))]

        chunks = in_threads(look, range(0, count, CHUNK))
        chunks = self._track(chunks, f"reading labels of {split}", -(-count // CHUNK), f"x {CHUNK} records")
        return [record for chunk in chunks for record in chunk]

    def _record(self, split: Split, index: int, example: Mapping[str, Any]) -> Record:
        label = operator.index(example[self._dataset.label])
        if label < 0 or (self._classes and label >= len(self._classes)):
            raise UserError(
                f"{self.path}: record {index} of {split} has the label {label}, which is no class; choose a split "
                "that is labelled, or prepare the set again"
            )
        if not self._named:
            return Record(label)
        row, col = (int(example[name]) for name in ("row", "col"))
        known = row >= 0
        name = example["patch_id"].decode()
        return Record(label, name, int(example["place"]), row if known else None, col if known else None)

    def _read(self, split: Split, index: int) -> dict[str, Any]:
        try:
            example = self._sources[split][index]
            if example[self._dataset.image] is None or example[self._dataset.label] is None:  # of a shard that was cut
                raise ValueError("an empty record")
            return example
        except MemoryError:
            raise
        except Exception as error:  # whatever a damaged file makes its reader raise
            if "Too many open files" in str(error):
                raise UserError(f"{self.path}: too many files are open; allow more with `ulimit -n 4096`") from error
            raise UserError(
                f"{self.path}: record {index} of {split} cannot be read ({type(error).__name__}: {error}); prepare the "
                "set again"
            ) from error

    def _read_size(self, shape: Sequence[int | None]) -> int:
        """The side of the patches in pixels: what the set says, or that of its first image."""
        height, width = shape[:2]
        if height is None or width is None:
            split: Split = "test" if "test" in self._sources else "train"
            first = self._read(split, 0)[self._dataset.image]
            height, width = decode_gray(first, f"{self.path}: record 0 of {split}").shape
        if height != width:
            raise UserError(f"{self.path}: images of {height} x {width} pixels; patches are squares")
        return int(height)

    def _identify(self) -> str:
        from PIL import __version__ as decoder

        files = sorted(file for file in self.path.iterdir() if file.is_file())
        about = replace(self._dataset, name=self.full_name, data_dir=None)
        return identity_of([(file, file.stat()) for file in files], repr(about), decoder)
