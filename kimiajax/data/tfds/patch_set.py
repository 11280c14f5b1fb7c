"""The builder of a data set of patches: what both releases of Kimia Path24 share."""

import dataclasses
import functools
import itertools
import json
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants

from kimiajax import __version__, paper
from kimiajax.data.manifest import SPLITS, Split
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patches import CUTTING, Rules, offered_by
from kimiajax.data.sources.source import Source, Track, no_track
from kimiajax.data.survey import in_threads
from kimiajax.data.tfds.examples import PlainWriter, Ranked, check_state, example_of, examples_of, in_shards, state_of
from kimiajax.data.tfds.source import RECORDS, Record
from kimiajax.errors import UserError
from kimiajax.io.locks import only_writer

CITATION = r"""
@inproceedings{babaie2017classification,
  title = {Classification and Retrieval of Digital Pathology Scans: A New Dataset},
  author = {Babaie, Morteza and Kalra, Shivam and Sriram, Aditya and Mitcheltree, Christopher and Zhu, Shujin and
            Khatami, Amin and Rahnamayan, Shahryar and Tizhoosh, Hamid R.},
  booktitle = {CVPR Workshops}, year = {2017}, eprint = {1705.07522}, archiveprefix = {arXiv}
}
@inproceedings{kieffer2017convolutional,
  title = {Convolutional Neural Networks for Histopathology Image Classification: Training vs. Using Pre-Trained
           Networks},
  author = {Kieffer, Brady and Babaie, Morteza and Kalra, Shivam and Tizhoosh, Hamid R.},
  booktitle = {IPTA}, year = {2017}
}
"""
SAMPLE = 8  # patches encoded to tell how much space all of them take
COUNTS = ", ".join(map(str, paper.TEST_PATCHES_PER_SCAN))
LICENCE = "The data set has terms of its own, by agreement with its authors; it may not be passed on from here."
FEATURES = (
    "`image`: the patch; `label`: its scan; `patch_id`: its name in manifests of kimiajax; `row`, `col`: its top left "
    f"pixel in the scan, -1 where unknown; `place`: its rank among all places of its scan's grid, or among the "
    f"test patches. Test patches of scans 0 to 23: {COUNTS}, {paper.TEST_PATCHES:,} in all. The classes are scans, and "
    "training and test patches come from the same ones."
)


@dataclasses.dataclass(eq=False)
class PatchSetConfig(tfds.core.BuilderConfig):
    """Which patches, and of how many scans. The name says it all, and is given by itself.

    Attributes:
        patch_size: side of a patch, in pixels; that of the test patches.
        scans: how many there are, 24 in the official files.
    """

    name: str = ""
    patch_size: int = 1000
    scans: int = paper.NUM_SCANS

    def __post_init__(self) -> None:
        self.name = "_".join(self.parts())
        self.description = f"Patches of {self.patch_size} x {self.patch_size} pixels of {self.scans} scans."

    def parts(self) -> list[str]:
        """Of the name."""
        others = [] if self.scans == paper.NUM_SCANS else [f"scans{self.scans}"]
        return [f"patch{self.patch_size}", *others]


@dataclasses.dataclass(eq=False)
class GrayConfig(PatchSetConfig):
    """Which patches of the gray scans.

    Attributes:
        grid: where training patches lie, one of `kimiajax.data.patches.GRIDS`.
        homogeneity: patches with at least this fraction of background are left out.
        background: the gray value, 0 to 255, from which a pixel counts as background.
    """

    grid: str = "full"
    homogeneity: float = Rules.homogeneity
    background: int = Rules.background

    def parts(self) -> list[str]:
        first, *others = super().parts()
        return [first, self.grid, f"h{float(self.homogeneity)!r}", f"bg{self.background}", *others]

    def rules(self) -> Rules:
        """How patches are chosen: all that the grid and the background leave."""
        return Rules(**{name: getattr(self, name) for name in CUTTING})


class PatchSet(tfds.core.ShardBasedBuilder, skip_registration=True):
    """What both builders share.

    Args:
        found: the file or the folder that holds the patches; by default what `find` finds in TFDS's manual folder.
        allow_unverified: go on where the files are not the official ones; every result will say so.
        cache: a folder for what reading the scans told, see `survey`.
        say: is told of a preparation that died and is done anew.
        **options: as of any builder; records are written as array_record unless `file_format` says otherwise.

    Raises:
        UserError: in preparing: files that are missing, damaged, laid out otherwise or not the official ones.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    SCAN: ClassVar[str]  # before a scan's number, in the names of classes
    CHANNELS: ClassVar[int]
    CUTS: ClassVar[bool]  # whether patches are cut from scans here

    def __init__(
        self,
        *,
        found: Path | None = None,
        allow_unverified: bool = False,
        cache: Path | None = None,
        track: Track = no_track,
        say: Callable[[str], None] = lambda text: None,
        **options: Any,
    ):
        self._found, self._allow_unverified = found, allow_unverified
        self._cache, self._track, self._say = cache, track, say
        self._in_workers, self._origin = False, None
        self._shards: dict[Split, list[list[Ranked]]] = {}
        options["file_format"] = options.get("file_format") or "array_record"
        super().__init__(**options)

    @property
    def builder_config(self) -> PatchSetConfig:
        """Which patches, and of how many scans."""
        assert isinstance(self._builder_config, PatchSetConfig)
        return self._builder_config

    @classmethod
    @abstractmethod
    def find(cls, manual_dir: Path) -> Path:
        """The file or the folder in the user's folder.

        Raises:
            UserError: it is not there, or something else is in its place.
        """

    @abstractmethod
    def origin_of(self, source: Source) -> dict[str, Any]:
        """What is recorded of the files."""

    @abstractmethod
    def problem_of(self, source: Source) -> str | None:
        """What about the files is not what was published; None where nothing is."""

    def rules(self) -> Rules | None:
        """How training patches are chosen; None where all that there are are taken."""
        return None

    @classmethod
    def config_of(cls, source: Source, rules: Rules) -> PatchSetConfig:
        """The config of a user's files, which need not be of the official size."""
        config = cls._config(source, rules)
        known = cls.builder_configs.get(config.name, config)  # TFDS takes no second one of the same name
        return cast(PatchSetConfig, known)

    @classmethod
    def _config(cls, source: Source, rules: Rules) -> PatchSetConfig:
        return PatchSetConfig(patch_size=source.patch_size, scans=len(source))

    def check(self, source: Source) -> str | None:
        """What is wrong with the files, where that is allowed.

        Raises:
            UserError: it is not allowed.
        """
        problem = self.problem_of(source)
        if problem is not None and not self._allow_unverified:
            raise UserError(
                f"{source.path}: {problem}; fetch it again, or go on with --allow-unverified, which marks every result"
            )
        return problem

    def download_and_prepare(self, **options: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]  # TFDS decorates its own
        """Prepares the set, once; one process at a time. What an interrupted one left half-written goes."""
        above = Path(self.data_dir).parent
        if "://" in str(self.data_dir):
            return super().download_and_prepare(**options)
        if self.is_prepared():
            return self._take_up()
        with only_writer(above, "another --data-dir", self._say):
            if self.is_prepared():
                return self._take_up()
            for left in above.glob(f"{constants.INCOMPLETE_PREFIX}*_{self.version}"):
                shutil.rmtree(left, ignore_errors=True)
            super().download_and_prepare(**options)

    def _take_up(self) -> None:
        """Reads what another process has prepared since this builder was made."""
        if not self.info.splits:
            self.info.read_from_directory(self.data_dir)

    @property
    def wrote(self) -> bool:
        """Whether this builder prepared the set, and no other before."""
        return bool(self._shards)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.patch_size
        names = [f"{self.SCAN}{number}" for number in range(self.builder_config.scans)]
        features = {
            "image": tfds.features.Image(shape=(size, size, self.CHANNELS)),
            "label": tfds.features.ClassLabel(names=names),
            "patch_id": tfds.features.Text(),
            **dict.fromkeys(("row", "col", "place"), np.int64),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{type(self).__doc__}\n\n{FEATURES}\n\n{LICENCE}",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://kimialab.uwaterloo.ca/kimia/index.php/pathology-images-kimia-path24/",
            citation=CITATION,
            license=LICENCE,
            metadata=tfds.core.MetadataDict(),
        )

    def _example_writer(self) -> Any:
        is_plain = self.info.file_format == tfds.core.FileFormat(PlainWriter.file_format)
        return PlainWriter() if is_plain else super()._example_writer()

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        self._in_workers = getattr(download_config, "beam_runner", None) is not None
        super()._download_and_prepare(dl_manager, download_config)
        # Of shards that workers wrote TFDS takes the lengths in the order of "0", "1", "10", "11", "2".
        lengths = {split: [len(shard) for shard in shards] for split, shards in self._shards.items()}
        infos = [info.replace(shard_lengths=lengths[split]) for split, info in self.info.splits.items()]
        self.info.set_splits(tfds.core.SplitDict(infos))
        for left in self.data_path.glob("*.shard_infos.json"):
            left.unlink()
        records = {
            split: [
                Record(patch.scan, patch.patch_id, place, patch.row, patch.col) for patch, place in itertools.chain(*of)
            ]
            for split, of in self._shards.items()
        }
        # So that nobody has to read images for their labels.
        (self.data_path / RECORDS).write_text(json.dumps(records), encoding="utf-8")

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[Split, list[Any]]:
        found, rules = self._found or self.find(Path(dl_manager.manual_dir)), self.rules()
        path = found.resolve()  # workers may start elsewhere
        with open_scans(path) as source:
            if source.test_patches() is None:
                raise UserError(f"{path}: a {source.kind}, and no {self.name}, which holds test patches of its own")
            self._check_config(source)
            state = state_of(source)
            unverified = self.check(source)
            check_state(source, state)
            offered = offered_by(source, rules or Rules(), cache=self._cache, track=self._track)
            train = [Ranked(patch, rank) for scan in offered for rank, patch in scan.patches.items()]
            held_out = source.test_patches()
            assert held_out is not None
            test = [Ranked(patch, rank) for rank, patch in enumerate(held_out)]
            self._check_space(source, [*train, *test])
            about = {
                "kimiajax": __version__,
                "origin": self.origin_of(source),
                "unverified": unverified,
                "synthetic": source.synthetic,
                "places": [scan.places for scan in offered],
                "rules": {} if rules is None else {name: getattr(rules, name) for name in CUTTING},
            }
        assert self.info.metadata is not None
        self.info.metadata.update(about)
        size = self.builder_config.patch_size
        shards: dict[Split, list[list[Ranked]]] = {
            split: in_shards(of, size) for split, of in zip(SPLITS, (train, test))
        }
        self._shards = shards
        if self._in_workers:
            work = functools.partial(examples_of, path, state)
            return {split: [functools.partial(work, shard) for shard in of] for split, of in shards.items()}
        return {split: self._in_turn(path, state, split, of_split) for split, of_split in shards.items()}

    def _in_turn(self, path: Path, state: str, split: Split, shards: list[list[Ranked]]) -> list[Any]:
        """Callables that give each shard's examples, to be called one after the other."""
        examples = self._examples(path, state, split, [ranked for shard in shards for ranked in shard])
        counts = [*(len(shard) for shard in shards[:-1]), None]  # the last takes what is left, so that all is at an end
        return [functools.partial(itertools.islice, examples, count) for count in counts]

    def _examples(
        self, path: Path, state: str, split: Split, patches: list[Ranked]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """All examples of a split, encoded on every core."""
        with open_scans(path) as source:
            check_state(source, state)
            examples = in_threads(functools.partial(example_of, source), patches)
            yield from self._track(examples, f"writing {split} patches", len(patches), "patches")
            check_state(source, state)

    def _check_config(self, source: Source) -> None:
        config = self.builder_config
        for name, ours, theirs in (
            ("scans", config.scans, len(source)),
            ("pixels along a patch", config.patch_size, source.patch_size),
        ):
            if ours != theirs:
                raise UserError(f"{source.path}: has {theirs} {name}, and {self.info.full_name} is of {ours}")

    def _check_space(self, source: Source, patches: list[Ranked]) -> None:
        """Raises UserError where the disk has too little room, as far as a few patches tell."""
        some = patches[:: -(-len(patches) // SAMPLE)]
        sizes = [len(example_of(source, ranked)[1]["image"]) for ranked in some]
        needed = len(patches) * sum(sizes) // len(sizes)
        if "://" not in str(self.data_dir) and needed > (free := shutil.disk_usage(self.data_dir).free):
            raise UserError(
                f"{Path(self.data_dir).parent}: {len(patches):,} patches take about {needed / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} are free; make room, or choose another --data-dir"
            )
