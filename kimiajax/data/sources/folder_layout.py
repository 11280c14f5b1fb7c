"""How folders of images are laid out: which folder is a class, or a scan, and which of its images are test patches.

Four layouts are known: `train/CLASS/*.png` and `test/CLASS/*.png`; the same where copies of Path24C name the folder of
training images otherwise, or not at all; `CLASS/train/*.png` and `CLASS/test/*.png`; and `CLASS/*.png`, from which test
patches are still to be held out.

Classes that are numbers in all (`s0`, `scan0`, `0`) are scans, in the order of their numbers. Any others are classes by
their names, in natural order, the same in training and test.
"""

import itertools
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from kimiajax.data.manifest import SPLITS, Split
from kimiajax.data.sources.image_files import IMAGES
from kimiajax.data.sources.source import first_missing, is_ignored
from kimiajax.errors import UserError
from kimiajax.text import LONGEST_NAME, first_few, is_name, quoted, shown

SCAN = re.compile(r"(?:s|scan)?(\d+)", re.IGNORECASE)
NO_SCAN = "no scan's folder (s0, s1, ...)"
IN_IT = "in it, a folder of images for each class, or for each scan: s0, s1, ..."

# "intestine" and "strain" hold a split's name, too: so a word of its own counts, or what holds scans' folders.
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
SPLIT_WORDS = re.compile(r"(?:train|test)(?:ing|s)?(?:set|data|images|patches)?")
VALIDATION = re.compile(r"val(?:id)?(?:ation)?(?:set|data|images|patches)?")

UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"\\|?*%]|^\.|[. ]$')  # in a file's name, on some system; and what escapes it
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no names of files on Windows


@dataclass(frozen=True)
class Layout:
    """Which folders hold whose images.

    Attributes:
        names: of the classes; s0, s1, ... where they are scans.
        folders: by split, the folder of each class's images; no test folders where patches are to be held out.
        word: what each of them is: a scan where they are numbered, and else a class.
    """

    names: tuple[str, ...]
    folders: dict[Split, list[Path]]
    word: str


def layout_of(path: Path, escaped: bool = False) -> Layout:
    """Finds the classes of a folder.

    Args:
        path: the folder.
        escaped: its names are those of an export, which wrote some letters as their codes.

    Raises:
        UserError: it is laid out otherwise, or training and test are not of the same classes.
    """
    found = _by_split(path)
    strange = {split: [e for e, _ in entries if not SCAN.fullmatch(e.name)] for split, entries in found.items()}
    scans = any(SCAN.fullmatch(entry.name) for entries in found.values() for entry, _ in entries)
    if scans and any(not any(map(Path.is_dir, entries)) for entries in strange.values()):
        return _scans(path, found)
    return _classes(path, found, escaped)


def _scans(path: Path, found: Mapping[Split, list[tuple[Path, Path]]]) -> Layout:
    """The layout of folders that are scans by their numbers, each there once in training and once in test."""
    by_split: dict[Split, dict[int, Path]] = {}
    for split, entries in found.items():
        by_number = by_split[split] = {}
        for entry, images in entries:
            match = SCAN.fullmatch(entry.name)
            if not match or not entry.is_dir():
                raise UserError(
                    f"{shown(entry)}: is {NO_SCAN}; move it elsewhere, or where folders are classes, have the same "
                    "ones for training and test"
                )
            number = int(match[1])
            if number in by_number:
                raise UserError(f"{shown(entry)}: a second folder of scan {number}; put their images together")
            by_number[number] = images
    numbers = sorted({number for by_number in by_split.values() for number in by_number})
    for split, by_number in by_split.items():
        missing = first_missing(by_number, numbers[-1])
        if missing:
            raise UserError(
                f"{path}: {split} folder has no images of s{missing} (scans are s0 to s{numbers[-1]}); add them, or "
                "number the scans without gaps in both folders"
            )
    folders: dict[Split, list[Path]] = {split: [own[number] for number in numbers] for split, own in by_split.items()}
    return Layout(tuple(f"s{number}" for number in numbers), folders, "scan")


def _classes(path: Path, found: Mapping[Split, list[tuple[Path, Path]]], escaped: bool) -> Layout:
    """The layout of folders that are classes by their names, the same ones in training and in test."""
    by_split: dict[Split, dict[str, Path]] = {
        split: _named_folders(entries, escaped) for split, entries in found.items()
    }
    names = sorted({*itertools.chain(*by_split.values())}, key=lambda name: (natural(Path(name.casefold())), name))
    for split, by_name in by_split.items():
        absent = [name for name in names if name not in by_name]
        for name in absent:
            alike = next((other for other in by_name if folded(other) == folded(name)), None)
            if alike is not None:
                first, second = (alike, name) if split == "train" else (name, alike)
                raise UserError(
                    f"{path}: train has {quoted(first)} and test {quoted(second)}; give the class one name in both"
                )
        if absent:
            raise UserError(
                f"{path}: {split} folder has no images of {first_few(map(quoted, absent))}; add them, or move the "
                "class's other folder elsewhere"
            )
    if len(names) < 2:
        raise UserError(
            f"{path}: holds one class alone, {quoted(names[0])}; give the folder in which each class has a folder"
        )
    folders: dict[Split, list[Path]] = {split: [own[name] for name in names] for split, own in by_split.items()}
    return Layout(tuple(names), folders, "class")


def _named_folders(entries: list[tuple[Path, Path]], escaped: bool) -> dict[str, Path]:
    """The folder of each class's images by the class's name, of one split."""
    found: dict[str, Path] = {}
    of: dict[str, Path] = {}
    for entry, images in entries:
        if not entry.is_dir():
            raise UserError(f"{shown(entry)}: is no class's folder; move it elsewhere")
        name = class_name(entry.name, escaped)
        if not is_name(name) or not name.strip():
            raise UserError(
                f"{shown(entry)}: its name is no text; rename it, in one line of {LONGEST_NAME} characters at most"
            )
        other = of.setdefault(folded(name), entry)
        if other is not entry:
            raise UserError(
                f"{shown(entry)}: is called as {shown(other)} is, but for case or spacing; put their images together, "
                "or give them names that differ"
            )
        found[name] = images
    return found


def class_name(name: str, escaped: bool = False) -> str:
    """What a folder's class is called: one text, however its file system writes accents."""
    return unicodedata.normalize("NFC", unquote(name) if escaped else name)


def folded(name: str) -> str:
    """A name without what people write now one way and now another: case, and spacing but for that of numbers."""
    apart = re.sub(r"(?<=\d)[\s_]+(?=\d)", "-", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"[\s_]+", "", apart)


def portable(name: str) -> str:
    """A path's part as a name of a file that every system takes: `%3A` for a colon."""
    safe = UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", name)
    return f"%{ord(safe[0]):02X}{safe[1:]}" if DEVICES.fullmatch(safe) else safe


def natural(path: Path) -> list[tuple[int, int | str]]:
    """Sorts numbers within names as numbers."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path.as_posix()) if part]


def holds_splits(path: Path) -> bool:
    """Whether a folder says of its images which are for training and which for test, at the top or in each class."""
    held = [_splits_in(folder) for folder in _folders_in(path)]
    in_scans = any(len(_splits_in(scan)) > 1 for scan in scans_in(path))
    in_classes = len(held) > 1 and all(held) and any(len(splits) > 1 for splits in held)
    return all(_tops_of(path).values()) or in_scans or in_classes


def scans_in(path: Path) -> list[Path]:
    """Folders in a folder that are named as scans."""
    return [folder for folder in _folders_in(path) if SCAN.fullmatch(folder.name)] if path.is_dir() else []


def split_of(name: str) -> Split | None:
    """The split whose name a folder's name holds; None where it holds none, or both."""
    said: list[Split] = [split for split in SPLITS if split in name.lower()]
    return said[0] if len(said) == 1 else None


def _by_split(path: Path) -> dict[Split, list[tuple[Path, Path]]]:
    """By split, what should be classes' folders, and the folder of each one's images, which may lie in it."""
    tops, scans, folders = _tops_of(path), scans_in(path), _folders_in(path)
    if folders and not any(tops.values()) and not _speaks_of_splits(path):
        for within, what in ((scans, NO_SCAN), (folders, "no class's folder")):
            if any(_splits_in(folder) or _speaks_of_splits(folder) for folder in within):
                _only(path, within, what)
                return {split: [(folder, _one_folder(folder, split)) for folder in within] for split in SPLITS}
        images = [entry for entry in _entries_of(path) if entry.suffix.lower() in IMAGES and entry not in folders]
        if images:
            raise UserError(f"{shown(images[0])}: lies beside the classes' folders; move it into one of them")
        return {"train": [(folder, folder) for folder in folders]}
    layout: dict[Split, list[tuple[Path, Path]]] = {}
    third = [folder for folder in folders if _has_word(folder.name, VALIDATION)]
    for split, found in tops.items():
        if len(found) != 1:
            have = first_few(sorted(shown(Path(folder.name)) for folder in found)) or "none"
            serves = f"; to test on {shown(third[0])}, rename it" if third and split == "test" and not found else ""
            raise UserError(f"{path}: must hold one folder with {split!r} in its name, and has {have}; {IN_IT}{serves}")
        (top,) = found
        entries = [entry for entry in _entries_of(top) if [entry] != tops["test"] and (top != path or entry.is_dir())]
        if not entries:
            raise UserError(f"{shown(top)}: is empty; put a folder of images for each class there, or for each scan")
        layout[split] = [(entry, entry) for entry in entries]
    if third and path not in tops["train"]:
        raise UserError(
            f"{shown(third[0])}: lies beside folders for training and test, and nothing is chosen by validation here; "
            "put its images into one of these, or move it elsewhere"
        )
    return layout


def _tops_of(path: Path) -> dict[Split, list[Path]]:
    """By split, the folders that may hold its classes' folders."""
    tops: dict[Split, list[Path]] = {split: _named(path, split) for split in SPLITS}
    if tops["test"] and not tops["train"] and all(map(scans_in, tops["test"])):
        others = [folder for folder in _folders_in(path) if folder not in tops["test"] and scans_in(folder)]
        tops["train"] = [path] if scans_in(path) else others
    return tops


def _one_folder(of_class: Path, split: Split) -> Path:
    """The folder of a class's images of a split."""
    folders = _named(of_class, split)
    if len(folders) != 1:
        raise UserError(
            f"{shown(of_class)}: must hold one folder with {split!r} in its name, as nothing else says which images "
            "are for training and which for test; or put train/s0, ... and test/s0, ... at the top"
        )
    _only(
        of_class, [folder for each in SPLITS for folder in _named(of_class, each)], "neither for training nor for test"
    )
    return folders[0]


def _only(path: Path, known: list[Path], what: str) -> None:
    strange = [entry for entry in _entries_of(path) if entry not in known]
    if strange:
        raise UserError(f"{shown(strange[0])}: is {what}; move it elsewhere")


def _splits_in(path: Path) -> list[Split]:
    return [split for split in SPLITS if _named(path, split)]


def _named(path: Path, split: Split) -> list[Path]:
    """Folders in a folder that are named as those of a split."""
    named = [folder for folder in _folders_in(path) if split_of(folder.name) == split]
    sure = bool(SCAN.fullmatch(path.name))
    return [folder for folder in named if sure or _has_word(folder.name, SPLIT_WORDS) or scans_in(folder)]


def _speaks_of_splits(path: Path) -> bool:
    """Whether a folder in a folder is named as those of a split, or of both at once."""
    return any(_has_word(folder.name, SPLIT_WORDS) for folder in _folders_in(path))


def _has_word(name: str, pattern: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(word.lower()) for word in WORD.findall(name))


def _folders_in(path: Path) -> list[Path]:
    return [entry for entry in _entries_of(path) if entry.is_dir()]


def _entries_of(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if not is_ignored(entry.name))
