"""Which images belong together: a CSV file that names the patient of each, or the slide.

Its columns are `patch`, an image's path from the folder (or its name, where no other image has it), and the group.
"""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kimiajax.data.sources.folder_layout import folded
from kimiajax.errors import UserError
from kimiajax.io.tables import Table, read_table
from kimiajax.text import LONGEST_NAME, first_few, is_name, quoted

PATCH = "patch"
NAMED = "name the columns in its first line: patch, an image's path from the folder, and its group"
UNKNOWN = ("nan", "na", "n/a", "none", "null", "?", "-", "unknown")  # what tables hold where nothing is known


@dataclass(frozen=True)
class Groups:
    """Attributes:
    column: what the groups are: "patient".
    sha256: of the file that names them.
    of: the group of each image, by its patch's name.
    """

    column: str
    sha256: str
    of: Mapping[str, str]

    def about(self) -> dict[str, Any]:
        """What a record says of them, as JSON takes it."""
        return {"column": self.column, "sha256": self.sha256, "groups": len(set(self.of.values()))}


def read_groups(path: Path, column: str | None, images: Mapping[str, Path]) -> Groups:
    """Reads the group of each image of a folder.

    Args:
        path: the CSV file.
        column: which of its columns is the group; by default the second.
        images: the path of each image from the folder, by its patch's name.

    Raises:
        UserError: the file cannot be read or lacks a column, names no image of the folder or one of several, leaves one
            out, or gives an image no group or two.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"--groups {path}: {error.strerror}; give the CSV file that holds the groups") from error
    wanted = None if column is None else column.strip().lower()
    needed = {PATCH: NAMED} | ({} if wanted is None else {wanted: "choose one of its columns by --group-column"})
    table = read_table(path, "groups", needed, content=content)
    if wanted is None:
        wanted = _second(table)
    if wanted == PATCH:
        raise UserError(f"--group-column {PATCH}: names the images; choose the column of their groups")
    of = _by_image(table, wanted, images)
    left = [image.as_posix() for name, image in images.items() if name not in of]
    if left:
        raise UserError(
            f"{path}: {len(left)} of {len(images)} images have no line ({first_few(left)}); give each its {wanted}"
        )
    return Groups(wanted, hashlib.sha256(content).hexdigest(), {name: of[name] for name in images})


def _second(table: Table) -> str:
    """The column after the first; the first, where the images are named in the second."""
    others = [name for name in list(table.columns)[:2] if name != PATCH]
    if len(table.columns) < 2 or len(others) > 1:
        have = first_few(map(quoted, table.columns))
        raise UserError(f"{table.path}: has the columns {have}; say by --group-column which of them is the group")
    return others[0]


def _by_image(table: Table, column: str, images: Mapping[str, Path]) -> dict[str, str]:
    """The group of each image that the file names."""
    named = _names_of(images)
    of: dict[str, str] = {}
    lines: dict[str, int] = {}
    faults: dict[str, list[str]] = defaultdict(list)
    for line, text, group in zip(table.lines, table.columns[PATCH], table.columns[column]):
        group = unicodedata.normalize("NFC", group.strip())
        parts = _bare(text).split("/")  # of a path from elsewhere, the end may be the image's
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        found = [*next((named[end] for end in ends if end in named), ())]
        if len(found) != 1:
            what = f"are of no image ({NAMED})" if not found else "are names of several images (give their paths)"
            faults[what].append(f"line {line}: {quoted(text)}")
        elif not group or group.lower() in UNKNOWN or not is_name(group):
            faults[f"have no {column} of at most {LONGEST_NAME} characters"].append(f"line {line}: {quoted(group)}")
        elif of.setdefault(found[0], group) != group:
            before = f"{quoted(of[found[0]])} on line {lines[found[0]]}"
            faults[f"give an image another {column} than before"].append(f"line {line}: {quoted(group)}, and {before}")
        else:
            lines.setdefault(found[0], line)
    for what, where in faults.items():
        raise UserError(f"{table.path}: {len(where)} of {len(table.lines)} lines {what}: {first_few(where)}")
    _check_alike(table, column, of, lines)
    return of


def _check_alike(table: Table, column: str, of: Mapping[str, str], lines: Mapping[str, int]) -> None:
    """Raises UserError for two groups that are one but for case or spacing."""
    first: dict[str, str] = {}
    for name, group in of.items():
        other = first.setdefault(folded(group), name)
        if of[other] != group:
            raise UserError(
                f"{table.path}: the {column} {quoted(of[other])} on line {lines[other]} and {quoted(group)} on line "
                f"{lines[name]} differ by case or spacing alone; write them alike, or in two ways that differ more"
            )


def _names_of(images: Mapping[str, Path]) -> dict[str, set[str]]:
    """What images are called, each with the patches that are: path or name, with the extension or without."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, image in images.items():
        for called in (name, str(image), str(image.with_suffix("")), image.name, image.stem):
            found[_bare(called)].add(name)
    return found


def _bare(text: str) -> str:
    """A path without what systems change about it."""
    return unicodedata.normalize("NFC", text.strip().replace("\\", "/").removeprefix("./"))
