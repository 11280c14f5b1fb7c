"""TFDS builders: to import this module registers `kimia_path24`, and `kimia_path24c`, its colour release.

Both are prepared from files that a user already has, and both are prepared and read without TensorFlow. TFDS's builders
of examples sort these by hash, through TensorFlow's files beyond 1 GB; here patches are put into a random order first
and written shard by shard, which needs neither, in this process or on the workers of Apache Beam.
"""

import itertools
import shlex
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kimiajax import paper
from kimiajax.data.patches import CUTTING, Rules
from kimiajax.data.sources.image_folder import Folder, holds_splits, scans_in, split_of
from kimiajax.data.sources.source import Source, is_ignored
from kimiajax.data.tfds.patch_set import GrayConfig, PatchSet, PatchSetConfig
from kimiajax.errors import UserError
from kimiajax.io.files import guess, md5_file
from kimiajax.io.hdf5_files import HDF5_SIGNATURE
from kimiajax.text import first_few, shown

FILE = "Kimia_Path24.h5"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".rar", ".7z")
ARCHIVE_SIGNATURES = (b"PK\x03\x04", b"Rar!", b"7z\xbc\xaf", b"\x1f\x8b")
DEEPEST = 8  # folders that lie alone in one another


class KimiaPath24(PatchSet):
    """Kimia Path24: gray patches of 24 whole-slide scans of tissue, whose task is to tell which scan a patch is of."""

    name = "kimia_path24"
    SCAN, CHANNELS, CUTS = "scan", 1, True
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Ask the authors of the data set for {FILE} (29 GB) and put it into manual_dir; it cannot be downloaded."
    )
    BUILDER_CONFIGS: ClassVar[list[GrayConfig]] = [
        GrayConfig(),
        GrayConfig(grid="readme"),
        *(GrayConfig(homogeneity=homogeneity) for homogeneity in (0.95, 0.9)),
    ]

    @classmethod
    def find(cls, manual_dir: Path) -> Path:
        if manual_dir.is_file() or (manual_dir / FILE).exists():
            return manual_dir if manual_dir.is_file() else manual_dir / FILE
        files = [path for depth in ("*", "*/*") for path in sorted(manual_dir.glob(depth)) if path.is_file()]
        named = [path for path in files if path.name.lower() == FILE.lower()]  # of another case, or one folder below
        if len(named) == 1:
            return named[0]
        if others := named or [path for path in files if path.suffix.lower() in (".h5", ".hdf5")]:
            there, one = first_few(map(shown, others)), shlex.join(["--manual-dir", str(others[0])])
            raise UserError(f"{manual_dir}: holds no {FILE}, but {there}; name the file itself, as {one} does")
        raise UserError(f"{manual_dir}: holds no {FILE}; {cls.MANUAL_DOWNLOAD_INSTRUCTIONS}")

    def problem_of(self, source: Source) -> str | None:
        origin = self.origin_of(source)
        if origin["md5"] == paper.OFFICIAL_MD5:
            return None
        return (
            f"is not the official file: MD5 {origin['md5']}, {origin['bytes']:,} bytes, where {paper.OFFICIAL_MD5} "
            "was published, of 29,409 MB"
        )

    def origin_of(self, source: Source) -> dict[str, Any]:
        if self._origin is None:  # the digest of 29 GB takes its time
            size, digest = source.path.stat().st_size, md5_file(source.path, self._track)
            self._origin = {"file": FILE, "bytes": size, "md5": digest}
        return self._origin

    def rules(self) -> Rules | None:
        assert isinstance(self.builder_config, GrayConfig)
        return self.builder_config.rules()

    @classmethod
    def _config(cls, source: Source, rules: Rules) -> PatchSetConfig:
        chosen = {name: getattr(rules, name) for name in CUTTING}
        return GrayConfig(patch_size=source.patch_size, scans=len(source), **chosen)


class KimiaPath24C(PatchSet):
    """Kimia Path24C, the colour release of Kimia Path24: patches in RGB, cut by its authors."""

    name = "kimia_path24c"
    SCAN, CHANNELS, CUTS = "s", 3, False
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Fetch the colour release, unpack its archives and put the folders into manual_dir: Training/s0 to s23, and "
        "RGBPatches-test, Test-patches or the like with a folder for each scan. A clone of its repository holds "
        "pointers in place of archives until `git lfs pull`."
    )
    BUILDER_CONFIGS: ClassVar[list[PatchSetConfig]] = [PatchSetConfig()]

    @classmethod
    def find(cls, manual_dir: Path) -> Path:
        if manual_dir.is_file():
            what = _in_place_of_folders(manual_dir) or "a file"
            raise UserError(f"{manual_dir}: {what}; --manual-dir is the folder that holds the release's folders")
        levels = [manual_dir]
        while not holds_splits(levels[-1]):
            entries = [entry for entry in levels[-1].iterdir() if not is_ignored(entry.name)]
            folders = [entry for entry in entries if entry.is_dir()]
            # a lone folder is what the release was unpacked into, unless it is a part of it
            if len(folders) != 1 or split_of(folders[0].name) or scans_in(levels[-1]) or len(levels) == DEEPEST:
                for file in (file for level in levels for file in sorted(level.iterdir()) if file.is_file()):
                    if what := _in_place_of_folders(file):
                        raise UserError(f"{file}: {what}")
                break  # the layout is refused where it is opened
            levels += folders
        return levels[-1]

    def problem_of(self, source: Source) -> str | None:
        train, test = self._counts(source)
        published = paper.TRAINING_PATCHES_PUBLISHED["Kimia Path24C"]
        if (train, test) == (published, paper.TEST_PATCHES_PER_SCAN):
            return None
        pairs = itertools.zip_longest(paper.TEST_PATCHES_PER_SCAN, test)
        others = first_few(f"s{scan}" for scan, (wanted, found) in enumerate(pairs) if wanted != found)
        return (
            f"has {train:,} training and {sum(test):,} test patches of {len(source)} scans, where {published:,} and "
            f"{paper.TEST_PATCHES:,} of {paper.NUM_SCANS} were published"
            + (f"; other numbers of test patches in {others}" if others else "")
        )

    def origin_of(self, source: Source) -> dict[str, Any]:
        assert isinstance(source, Folder)
        train, test = self._counts(source)
        return {"images": [train, sum(test)], "listing_sha256": source.listing_sha256}

    def _counts(self, source: Source) -> tuple[int, tuple[int, ...]]:
        """Training patches, and test patches of each scan."""
        assert isinstance(source, Folder)
        if source.word != "scan":
            named = ", ".join(map(repr, source.names[:3]))
            raise UserError(f"{source.path}: folders of classes ({named}), where {self.name} has scans: s0, s1, ...")
        test = np.bincount([patch.scan for patch in source.test_patches() or []], minlength=len(source))
        return sum(len(scan.patches) for scan in source.offered()), tuple(test.tolist())


def _in_place_of_folders(file: Path) -> str | None:
    """What a file is that lies where the folders should; None where it is nothing to speak of."""
    with file.open("rb") as stream:
        head = stream.read(512)
    if head.startswith(ARCHIVE_SIGNATURES):
        return "an archive; unpack it there"
    if head.startswith(HDF5_SIGNATURE):
        return f"a scan file and no folder of images; prepare {KimiaPath24.name} from it"
    archive = "".join(file.suffixes[-2:]).lower().endswith(ARCHIVES)
    return guess(head, file.stat().st_size, "the archive that it is named as") if archive else None


BUILDERS = {builder.name: builder for builder in (KimiaPath24, KimiaPath24C)}
