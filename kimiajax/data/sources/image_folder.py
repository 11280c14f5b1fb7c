"""Patches as image files: `train/s{k}/*.png` and `test/s{k}/*.png`, by whatever names the copies of Path24C give them.

The two top folders are those whose names hold "train" and "test". In each, a folder per scan: `s0` to `s23`, or the
bare number, or `scan0`. Below that, files may lie at any depth. Where only the test folder is named so, training images
are those of the one other folder that holds scans' folders, or of scans' folders beside it; and where there is nothing
but scans' folders, each must hold folders for training and test. Scans come in the order of their numbers, and files in
that of the numbers in their names: s10 after s2, 200_0 before 1000_0.
"""

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.data.manifest import SPLITS, Patch, Split
from kimiajax.data.sources.image_files import IMAGES, read_gray
from kimiajax.data.sources.source import Candidates, Precut, first_missing, identity_of, is_ignored, walk
from kimiajax.errors import UserError
from kimiajax.io.json_records import parse_json
from kimiajax.shapes import UInt8
from kimiajax.text import LONGEST_NAME, first_few, is_name, shown, text_of

CLASS = re.compile(r"(?:s|scan)?(\d+)", re.IGNORECASE)
HEADER = "manifest.json"  # of an exported folder


class Folder(Precut):
    """An open folder of patches. Any number of threads may read from it.

    Raises:
        UserError: it is laid out otherwise, a scan has no images, or one name stands for two.
    """

    kind = "folder of images"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._files: dict[str, Path] = {}
        by_split = {split: self._find_split(split, entries) for split, entries in _layout_of(self.path).items()}
        numbers = sorted(by_split["train"].keys() | by_split["test"].keys())
        for split, scans in by_split.items():
            missing = first_missing(scans, numbers[-1])
            if missing:
                raise UserError(
                    f"{self.path}: {split} folder has no images of s{missing} (scans are s0 to s{numbers[-1]}); "
                    "add them, or number the scans without gaps in both folders"
                )
        self.names = tuple(f"s{number}" for number in numbers)
        self._patches = {split: [scans[number] for number in numbers] for split, scans in by_split.items()}
        self.patch_size = self._read_size()
        from PIL import __version__ as decoder

        files = ((file, file.stat()) for file in self._files.values())
        self.identity = identity_of(files, list(self._files), decoder)
        header = self._header()
        self.synthetic, self.unverified = header.get("synthetic") is True, header.get("unverified")

    @cached_property
    def listing_sha256(self) -> str:
        """A digest of the patches' names and their files' sizes, wherever the folder lies."""
        sizes = sorted((patch_id, file.stat().st_size) for patch_id, file in self._files.items())
        return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        return {"path": text_of(self.path), "kind": self.kind, "files": len(self._files)}

    def offered(self) -> list[Candidates]:
        """All training patches, by scan."""
        return [Candidates(dict(enumerate(patches)), len(patches)) for patches in self._patches["train"]]

    def test_patches(self) -> list[Patch]:
        """All of them, scan by scan."""
        return [patch for patches in self._patches["test"] for patch in patches]

    def read_patch(self, patch: Patch) -> UInt8[np.ndarray, "h w"]:
        """The gray values of a patch, 0 (black) to 255 (white), of whatever size its file has."""
        return read_gray(self.file_of(patch))

    def file_of(self, patch: Patch) -> Path:
        """The file of a patch.

        Raises:
            UserError: there is none.
        """
        if patch.patch_id not in self._files:
            raise UserError(f"{self.path}: holds no image of {patch.patch_id}; is the manifest of another source?")
        return self._files[patch.patch_id]

    def _find_split(self, split: Split, entries: list[tuple[Path, Path]]) -> dict[int, list[Patch]]:
        scans: dict[int, list[Patch]] = {}
        for entry, images in entries:
            match = CLASS.fullmatch(entry.name)
            if not match or not entry.is_dir():
                raise UserError(f"{shown(entry)}: is no scan's folder (s0, s1, ...); move it elsewhere")
            number = int(match[1])
            if number in scans:
                raise UserError(f"{shown(entry)}: a second folder of scan {number}; put their images together")
            scans[number] = self._find_patches(split, number, images)
        return scans

    def _find_patches(self, split: Split, scan: int, folder: Path) -> list[Patch]:
        patches = []
        for file in sorted(walk(folder), key=lambda file: natural(file.relative_to(folder))):
            name = f"{split}/s{scan}/{file.relative_to(folder).with_suffix('').as_posix()}"
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
            raise UserError(f"{shown(folder)}: holds no images; put the patches of scan {scan} there")
        return patches

    def _read_size(self) -> int:
        first = self._files[self._patches["test"][0][0].patch_id]
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


def holds_splits(path: Path) -> bool:
    """Whether a folder looks like one of images: it has folders for training and test."""
    tops = _tops_of(path)
    return all(tops.values()) or any(all(_named(scan, split) for split in SPLITS) for scan in scans_in(path))


def _layout_of(path: Path) -> dict[Split, list[tuple[Path, Path]]]:
    """By split, what should be scans' folders, and the folder of each one's images, which may lie in it."""
    tops, scans = _tops_of(path), scans_in(path)
    if scans and not any(tops.values()):
        _only(path, scans, "no scan's folder (s0, s1, ...)")
        return {split: [(scan, _one_folder(scan, split)) for scan in scans] for split in SPLITS}
    layout = {}
    for split, folders in tops.items():
        if len(folders) != 1:
            have = first_few(sorted(shown(Path(folder.name)) for folder in folders)) or "none"
            raise UserError(
                f"{path}: must hold one folder with {split!r} in its name, and has {have}; in it, a folder of images "
                "for each scan: s0, s1, ..."
            )
        (top,) = folders
        entries = [entry for entry in _entries_of(top) if [entry] != tops["test"] and (top != path or entry.is_dir())]
        if not entries:
            raise UserError(f"{shown(top)}: is empty; put a folder of images for each scan there: s0, s1, ...")
        layout[split] = [(entry, entry) for entry in entries]
    return layout


def _tops_of(path: Path) -> dict[Split, list[Path]]:
    """By split, the folders that may hold its scans' folders."""
    tops: dict[Split, list[Path]] = {split: _named(path, split) for split in SPLITS}
    if tops["test"] and not tops["train"] and all(map(scans_in, tops["test"])):
        others = [folder for folder in _entries_of(path) if folder not in tops["test"] and scans_in(folder)]
        tops["train"] = [path] if scans_in(path) else others
    return tops


def _one_folder(scan: Path, split: Split) -> Path:
    """The folder of a scan's images of a split."""
    folders = _named(scan, split)
    if len(folders) != 1:
        raise UserError(
            f"{scan}: must hold one folder with {split!r} in its name, as nothing else says which images are for "
            "training and which for test; or put train/s0, ... and test/s0, ... at the top"
        )
    _only(scan, [folder for each in SPLITS for folder in _named(scan, each)], "neither for training nor for test")
    return folders[0]


def _only(path: Path, known: list[Path], what: str) -> None:
    strange = [entry for entry in _entries_of(path) if entry not in known]
    if strange:
        raise UserError(f"{shown(strange[0])}: is {what}; move it elsewhere")


def scans_in(path: Path) -> list[Path]:
    """Folders in a folder that are named as scans."""
    if not path.is_dir():
        return []
    return [entry for entry in _entries_of(path) if CLASS.fullmatch(entry.name) and entry.is_dir()]


def split_of(name: str) -> Split | None:
    """The split that a folder's name says; None where it says none, or both."""
    said: list[Split] = [split for split in SPLITS if split in name.lower()]
    return said[0] if len(said) == 1 else None


def _named(path: Path, split: Split) -> list[Path]:
    return [entry for entry in _entries_of(path) if split_of(entry.name) == split and entry.is_dir()]


def _entries_of(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if not is_ignored(entry.name))


def natural(path: Path) -> list[tuple[int, int | str]]:
    """Sorts numbers within names as numbers."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path.as_posix()) if part]
