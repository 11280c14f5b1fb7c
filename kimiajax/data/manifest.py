"""Which patches a study uses, as a file: `manifest.csv`, one line a patch, and beside it a header, `manifest.json`."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from kimiajax.checks import path_of
from kimiajax.errors import UserError, check_known
from kimiajax.io.files import csv_text, new_file
from kimiajax.io.json_records import SEAL, is_sealed, parse_json, sealed
from kimiajax.io.tables import Table, read_table
from kimiajax.shapes import Int
from kimiajax.text import LONGEST_NAME, first_few, is_name, quoted

FORMAT = 1
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
MOST_SCANS = 10_000  # a number beyond is no scan's, and would cost its memory for each patch
LARGEST_PATCH = 2**20  # pixels along its side


@dataclass(frozen=True)
class Patch:
    """One patch.

    Attributes:
        patch_id: its name, the same through whatever source it comes.
        scan: the scan that it belongs to.
        split: what it serves for.
        row: its top left pixel's, in the scan; None where that is unknown.
        col: the same.
        homogeneity: the share of background in it, in [0, 1]; None until it was counted.
        sha256: of its gray values, row by row, hexadecimal; None until they were read.
    """

    patch_id: str
    scan: int
    split: Split
    row: int | None = None
    col: int | None = None
    homogeneity: float | None = None
    sha256: str | None = None


FIELDS = ("patch_id", "scan", "row", "col", "split", "homogeneity", "sha256")


@dataclass(frozen=True)
class Manifest:
    """The patches of a study, training patches first, each split in a fixed order.

    Attributes:
        patches: all of them.
        patch_size: side of a patch, in pixels.
        num_scans: how many scans they come from.
        about: where they come from and how they were chosen, as JSON takes it.
    """

    patches: tuple[Patch, ...]
    patch_size: int
    num_scans: int
    about: dict[str, Any] = field(default_factory=dict)

    def split(self, name: Split | Any) -> list[Patch]:
        """The patches of a split.

        Raises:
            UserError: no such split.
        """
        check_known("split", name, SPLITS)
        return [patch for patch in self.patches if patch.split == name]

    def labels(self, name: Split | Any) -> Int[np.ndarray, " n"]:
        """The scan of each patch of a split."""
        return np.array([patch.scan for patch in self.split(name)], np.int32)

    def counts(self, name: Split | Any) -> list[int]:
        """Patches per scan of a split, [num_scans]."""
        return np.bincount(self.labels(name), minlength=self.num_scans).tolist()

    @cached_property
    def csv(self) -> str:
        """The text of `manifest.csv`; what is unknown is empty."""
        shares = ("" if p.homogeneity is None else f"{p.homogeneity:.6f}" for p in self.patches)
        rows = ((p.patch_id, p.scan, p.row, p.col, p.split, share, p.sha256) for p, share in zip(self.patches, shares))
        return csv_text(FIELDS, rows)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of `manifest.csv`."""
        return hashlib.sha256(self.csv.encode()).hexdigest()

    @cached_property
    def pixels_sha256(self) -> str | None:
        """A digest of the pixels of all patches in their order, from whatever source; None until all were read."""
        digests = [patch.sha256 for patch in self.patches]
        splits = [len(self.split(name)) for name in SPLITS]
        return None if None in digests else hashlib.sha256(json.dumps([splits, digests]).encode()).hexdigest()

    @property
    def header(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        return {
            "format": FORMAT,
            "patch_size": self.patch_size,
            "scans": self.num_scans,
            "patches": {name: len(self.split(name)) for name in SPLITS},
            "csv_sha256": self.sha256,
            **self.about,
        }

    def write(self, path: str | Path) -> None:
        """Writes the file and its header, both or neither, where they are not there already."""
        path = Path(path)
        texts = {path: self.csv, header_of(path): json.dumps(sealed(self.header), indent=2) + "\n"}
        with contextlib.ExitStack() as stack:
            for file, text in texts.items():
                if not file.is_file() or file.read_bytes() != text.encode():
                    stack.enter_context(new_file(file)).write_bytes(text.encode())


def left_out_of(about: Mapping[str, Any]) -> str:
    """The places that were left out as dark or flat, by scan: "93 dark (slide0 31, slide1 62)"; empty where none.

    Args:
        about: of a manifest, or what results say of the data.
    """
    told = []
    for kind, counts in (about.get("left_out") or {}).items():
        by_scan = first_few(f"{name} {count:,}" for name, count in zip(about["names"], counts) if count)
        if by_scan:
            told.append(f"{sum(counts):,} {kind} ({by_scan})")
    return " and ".join(told)


def header_of(path: Path) -> Path:
    """Where the header of a manifest lies: `manifest.json` beside `manifest.csv`."""
    return path.with_suffix(".json")


def read_manifest(path: str | Path | Any) -> Manifest:
    """Reads a manifest and its header.

    Raises:
        UserError: either is missing, broken or edited; the message names the line.
    """
    path = path_of("manifest", path)
    if path.suffix != ".csv":
        raise UserError(f"{path}: a manifest is a .csv file with its header, a .json file of the same name, beside it")
    header = _read_header(path)
    content = _read(path)
    if header["csv_sha256"] not in (None, hashlib.sha256(content).hexdigest()):
        raise UserError(
            f"{path}: was edited since {header_of(path).name} was written; if you mean it, set csv_sha256 to null there"
        )
    wanted = f"they must be {', '.join(FIELDS)}"
    table = read_table(path, "manifest", dict.fromkeys(FIELDS, wanted), content=content)
    if other := [name for name in table.columns if name not in FIELDS]:
        raise UserError(f"{path}: has a column {quoted(other[0])}; {wanted}")
    rows = zip(table.lines, zip(*(table.columns[name] for name in FIELDS)))
    patches = tuple(
        _parse(table, dict(zip(FIELDS, row)), header["scans"], f"{path}, line {line}") for line, row in rows
    )
    _check_whole(path, patches)
    about = {key: value for key, value in header.items() if key not in ("format", "patch_size", "scans", "patches")}
    del about["csv_sha256"]
    return Manifest(patches, header["patch_size"], header["scans"], about)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a manifest is a .csv file and its header a .json file") from error


def _read_header(path: Path) -> dict[str, Any]:
    header_path = header_of(path)
    try:
        header = parse_json(_read(header_path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{header_path}: is no JSON ({error}); write the manifest again") from error
    wanted = {"format": int, "patch_size": int, "scans": int, "csv_sha256": str | None}
    if not isinstance(header, dict) or any(not isinstance(header.get(key, ...), kind) for key, kind in wanted.items()):
        raise UserError(f"{header_path}: is no manifest's header, which holds {', '.join(wanted)}")
    if header["format"] != FORMAT:
        raise UserError(f"{header_path}: format {header['format']}; this version of kimiajax reads format {FORMAT}")
    if header["csv_sha256"] is not None and header.get(SEAL) and not is_sealed(header):
        raise UserError(f"{header_path}: was edited since it was written; if you mean it, set csv_sha256 to null there")
    header.pop(SEAL, None)
    for key, most in (("scans", MOST_SCANS), ("patch_size", LARGEST_PATCH)):
        if not 1 <= header[key] <= most:
            raise UserError(f"{header_path}: {key} is {header[key]}; it must be from 1 to {most:,}")
    rules = header.get("rules")
    if rules is not None and not (isinstance(rules, dict) and isinstance(rules.get("background", 0), int)):
        raise UserError(f"{header_path}: rules must name the settings of the draw, background as a gray value")
    return header


def _parse(table: Table, row: dict[str, str], scans: int, where: str) -> Patch:
    if row["split"] not in SPLITS:
        raise UserError(f"{where}: split is {quoted(row['split'])}; it must be train or test")
    if not row["patch_id"]:
        raise UserError(f"{where}: has no patch_id")
    if not is_name(row["patch_id"]):
        raise UserError(
            f"{where}: patch_id is {quoted(row['patch_id'])}; it must be one line of {LONGEST_NAME} characters at most"
        )
    digest = row["sha256"]
    if digest and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
        raise UserError(f"{where}: sha256 is {quoted(digest)}; it must be 64 hexadecimal digits, or empty")
    if bool(row["row"]) != bool(row["col"]):
        raise UserError(f"{where}: has a row or a column but not both")

    def number(name: str, most: int) -> int | None:
        """A field's whole number; None of an empty one, where a patch may have none."""
        value = table.whole_number(row[name], most)
        if value is None and (row[name] or name == "scan"):
            raise UserError(f"{where}: {name} is {quoted(row[name])}; it must be a number from 0 to {most}")
        return value

    scan, share = number("scan", scans - 1), table.number(row["homogeneity"])
    assert scan is not None
    if row["homogeneity"] and (share is None or share > 1):
        raise UserError(f"{where}: homogeneity is {quoted(row['homogeneity'])}; it must be a number from 0 to 1")
    place = number("row", 2**40), number("col", 2**40)
    return Patch(row["patch_id"], scan, row["split"], *place, None if share is None else float(share), digest or None)


def _check_whole(path: Path, patches: tuple[Patch, ...]) -> None:
    """Refuses patches that come twice, under one name or at one place, and splits that are empty or interleaved."""
    for name in SPLITS:
        if not any(patch.split == name for patch in patches):
            raise UserError(f"{path}: holds no {name} patch")
    if [patch.split for patch in patches] != sorted((patch.split for patch in patches), reverse=True):
        raise UserError(f"{path}: test patches stand before training patches; put those first")
    seen: set[object] = set()
    for line, patch in enumerate(patches, start=2):
        keys = [patch.patch_id] + ([(patch.scan, patch.row, patch.col)] if patch.row is not None else [])
        if seen.intersection(keys):
            raise UserError(f"{path}, line {line}: {patch.patch_id} is there twice, by name or by place")
        seen.update(keys)
