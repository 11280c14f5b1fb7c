"""Patches as image files, in a folder for each class or scan; `folder_layout` says how these may lie.

Below a class's folder, files may lie at any depth. They come in the order of the numbers in their names: 200_0 before
1000_0.
"""

import hashlib
import json
import shlex
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from kimiajax.data.manifest import SPLITS, Patch, Split
from kimiajax.data.sources.folder_layout import holds_splits, layout_of, natural, scans_in, split_of
from kimiajax.data.sources.groups import Groups, read_groups
from kimiajax.data.sources.image_files import IMAGES, read_gray
from kimiajax.data.sources.source import Candidates, Precut, identity_of, walk
from kimiajax.errors import UsageError, UserError
from kimiajax.io.json_records import parse_json
from kimiajax.shapes import UInt8
from kimiajax.text import LONGEST_NAME, is_name, shown, text_of

__all__ = ["Folder", "holds_splits", "natural", "scans_in", "split_of"]

HEADER = "manifest.json"  # of an exported folder
ESCAPED = "escaped"  # there, that names of files stand for others, in which some system takes a letter for more
TEST_SHARE = 0.2


class Folder(Precut):
    """An open folder of patches. Any number of threads may read from it.

    Args:
        path: the folder.
        groups: a CSV file with the patient, say, of each image.
        group_column: its column of that name; by default the second.
        test_share: the most of a class that is held out for testing, where the folder does not say which images are;
            by default a fifth.

    Raises:
        UserError: it is laid out otherwise, a class has no images, one name stands for two, or the groups are not
            those of its images; UsageError: a share for a folder that has test images.
    """

    kind = "folder of images"

    def __init__(
        self,
        path: str | Path,
        groups: Path | None = None,
        group_column: str | None = None,
        test_share: float | None = None,
    ):
        self.path = Path(path)
        header = self._header()
        self._escaped = header.get(ESCAPED) is True
        layout = layout_of(self.path, self._escaped)
        self.names, self.word, self._files = layout.names, layout.word, dict[str, Path]()
        self._patches: dict[Split, list[list[Patch]]] = {
            split: [self._find_patches(split, scan, folder) for scan, folder in enumerate(folders)]
            for split, folders in layout.folders.items()
        }
        self._groups_file, self.groups = groups, None
        if groups is not None:
            images = {name: file.relative_to(self.path) for name, file in self._files.items()}
            self.groups: Groups | None = read_groups(groups, group_column, images)
        if "test" in self._patches and test_share is not None:
            raise UsageError(f"--test-share {test_share:g}: {self.path} has test images of its own; leave it out")
        self.test_share = None if "test" in self._patches else TEST_SHARE if test_share is None else test_share
        self.patch_size = self._read_size()
        from PIL import __version__ as decoder

        files = ((file, file.stat()) for file in self._files.values())
        about = [self.groups.about()] if self.groups else []
        about += [{"test_share": self.test_share}] if self.test_share else []
        self.identity = identity_of(files, list(self._files), decoder, *about)
        self.synthetic, self.unverified = header.get("synthetic") is True, header.get("unverified")

    @cached_property
    def listing_sha256(self) -> str:
        """A digest of the patches' names and their files' sizes, wherever the folder lies."""
        sizes = sorted((patch_id, file.stat().st_size) for patch_id, file in self._files.items())
        return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()

    @property
    def marks(self) -> dict[str, Any]:
        return {**super().marks, **({"groups": self.groups.about()} if self.groups else {})}

    @property
    def flags(self) -> str:
        given: list[str] = [] if self.groups is None else ["--groups", text_of(self._groups_file)]
        given += [] if self.groups is None else ["--group-column", self.groups.column]
        given += [] if self.test_share in (None, TEST_SHARE) else ["--test-share", f"{self.test_share:g}"]
        return shlex.join(["--scans", text_of(self.path), *given])

    def describe(self) -> dict[str, Any]:
        share = {} if self.test_share is None else {"test_share": self.test_share}
        return {"path": text_of(self.path), "kind": self.kind, "files": len(self._files), **share}

    def offered(self) -> list[Candidates]:
        """All training patches, by scan; held-out ones too, where the folder has no test images of its own."""
        return [Candidates(dict(enumerate(patches)), len(patches)) for patches in self._patches["train"]]

    def test_patches(self) -> list[Patch] | None:
        """All of them, scan by scan; None where they are still to be held out."""
        return [patch for patches in self._patches["test"] for patch in patches] if "test" in self._patches else None

    def read_patch(self, patch: Patch) -> UInt8[np.ndarray, "h w"]:
        """The gray values of a patch, 0 (black) to 255 (white), of whatever size its file has."""
        return read_gray(self.file_of(patch))

    def file_of(self, patch: Patch) -> Path:
        """The file of a patch.

        Raises:
            UserError: there is none.
        """
        return self._files[self._listed(patch)]

    def group_of(self, patch: Patch) -> str | None:
        """The group of a patch; None where none are known."""
        return None if self.groups is None else self.groups.of[self._listed(patch)]

    def groups_in(self, patches: Iterable[Patch]) -> dict[str, Any] | None:
        """What a record says of the groups of patches: how many each split has, and those that both have."""
        if self.groups is None:
            return None
        found: dict[Split, set[str]] = {split: set() for split in SPLITS}
        for patch in patches:
            found[patch.split].add(self.groups.of[self._listed(patch)])
        counts = {split: len(groups) for split, groups in found.items()}
        return {**self.groups.about(), **counts, "shared": sorted(found["train"] & found["test"])}

    def _listed(self, patch: Patch) -> str:
        """A patch's name among the files; one that was held out is listed among the others."""
        name = patch.patch_id
        if self.test_share is not None and name.startswith("test/"):
            name = f"train/{name.removeprefix('test/')}"
        if name not in self._files:
            raise UserError(f"{self.path}: holds no image of {patch.patch_id}; is the manifest of another source?")
        return name

    def _find_patches(self, split: Split, scan: int, folder: Path) -> list[Patch]:
        patches = []
        for file in sorted(walk(folder), key=lambda file: natural(file.relative_to(folder))):
            below = file.relative_to(folder).with_suffix("").as_posix()
            name = f"{split}/{self.names[scan]}/{unquote(below) if self._escaped else below}"
            if file.suffix.lower() not in IMAGES:
                raise UserError(f"{shown(file)}: is no image ({', '.join(IMAGES)}); move it elsewhere")
            if not is_name(name):
                raise UserError(
                    f"{shown(file)}: its name is no text; rename it, in one line of {LONGEST_NAME} characters at most"
                )
            if name in self._files:
                raise UserError(f"{shown(file)}: has the name of {self._files[name].name}; keep one of them")
            self._files[name] = file
            patches.append(Patch(name, scan, split))
        if not patches:
            whose = f"scan {scan}" if self.word == "scan" else "the class"
            raise UserError(f"{shown(folder)}: holds no images; put the patches of {whose} there")
        return patches

    def _read_size(self) -> int:
        first = self._files[self._patches["test" if "test" in self._patches else "train"][0][0].patch_id]
        height, width = read_gray(first).shape
        if height != width:
            raise UserError(f"{shown(first)}: is {height} x {width} pixels; patches are squares")
        return height

    def _header(self) -> dict[str, Any]:
        try:
            header = parse_json((self.path / HEADER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return header if isinstance(header, dict) else {}
