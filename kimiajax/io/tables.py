"""Reads the CSV files that people bring, as spreadsheets, pandas and R write them.

The separator is the one under which the first line has the columns that are needed; no data are looked at for that.
"""

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from kimiajax.errors import UserError
from kimiajax.text import first_few, quoted

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".ods", ".json", ".parquet")  # the last five are refused by name
EXCEL = re.compile(r'"?sep=([^"\r\n])"?[ \t;,]*(?:\r\n|\r|\n)', re.IGNORECASE)  # a first line that names the separator
NUMBER = re.compile(r"([0-9]{1,40})(?:([.,])([0-9]{1,40}))?([eE][+-]?[0-9]{1,3})?")
TITLES = 20  # records at the top among which names of columns are looked for
AS_CSV = "save the {} as CSV in UTF-8"
SIGNATURES = {  # first bytes -> what has them
    b"PK\x03\x04": "a zip archive, as an .xlsx or .ods workbook is",
    b"\xd0\xcf\x11\xe0": "an .xls workbook",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy file",
    b"SQLite format 3": "an SQLite database",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"%PDF": "a PDF file",
    b"\x80\x04\x95": "a pickle",
    b"\x80\x05\x95": "a pickle",
}
TEXTS = {"{": "JSON", "[": "JSON", "<": "a web page or XML", "version https://git-lfs": "a pointer of Git LFS"}


@dataclass(frozen=True)
class Table:
    """A CSV file.

    Attributes:
        path: the file.
        columns: name of a column, in lower case -> its values as text, one a row.
        lines: the line of the file that each row ends on, from 1.
        separator: what stands between two fields.
        notes: in what the file departs from UTF-8 and commas, in words.
    """

    path: Path
    columns: dict[str, tuple[str, ...]]
    lines: tuple[int, ...]
    separator: str
    notes: tuple[str, ...] = ()

    def number(self, text: str) -> Decimal | None:
        """The number that a field holds, 0 or more, with a point or a comma before its decimals; None for other text.

        A mark before exactly three digits may separate thousands, so there is no number; a point in a file that is
        separated by commas is none of those.
        """
        match = NUMBER.fullmatch(text.strip())
        if match is None:
            return None
        whole, mark, decimals, exponent = match.groups(default="")
        if len(decimals) == 3 and whole.strip("0") and not exponent and (mark, self.separator) != (".", ","):
            return None
        return Decimal(f"{whole}.{decimals or 0}{exponent}")

    def whole_number(self, text: str, most: int) -> int | None:
        """The whole number from 0 to `most` that a field holds, "3" or as pandas writes it "3.0"; else None."""
        value = self.number(text)
        return int(value) if value is not None and value <= most and value == value.to_integral_value() else None


def read_table(
    path: Path, what: str, needed: Mapping[str, str], known: Sequence[str] = (), content: bytes | None = None
) -> Table:
    """Reads a CSV file: UTF-8 or UTF-16 with a mark; commas, semicolons, tabs or bars; any ends of lines.

    Names of columns may have blanks around them and be in other case. Empty lines, and unnamed columns, are passed
    over.

    Args:
        path: the file.
        what: it holds, for messages: "predictions".
        needed: columns that must be there, by which the separator is chosen -> what to do about one that is missing.
        known: columns of which there may be one at most, beside those.
        content: of the file, where it has been read already.

    Raises:
        UserError: the file is missing, no text, empty or short of a column, a line is broken, or names stand elsewhere
            than in the first line alone; the message names the line.
    """
    text, notes = _text_of(path, what, content)
    named = EXCEL.match(text)
    text = text[named.end() :] if named else text
    separators = [named[1]] if named else list(SEPARATORS)
    heads = {each: _head(text, each) for each in separators}
    separator = max(separators, key=lambda each: len(needed.keys() & {*_names(heads[each])}))  # of several the first
    names = _names(heads[separator])
    if not needed.keys() & {*names}:
        _refuse_strange(path, what, text, needed)
    blanks = any(name[:1] == " " for name in heads[separator][1:])
    rows = _rows(path, what, text, separator, blanks, 1 if named else 0)
    if not rows:
        raise UserError(f"{path}: an empty file; give the CSV file that holds the {what}")
    for name in dict.fromkeys((*needed, *known)):
        if names.count(name) > 1:
            raise UserError(f"{path}: has {names.count(name)} columns {name}; keep one of them")
        if name in needed and name not in names:
            raise UserError(f"{path}: has no column {name} (it has {first_few(map(quoted, names))}); {needed[name]}")
    del rows[0]
    if not rows:
        raise UserError(f"{path}: holds nothing below its first line; write the {what} again")
    columns = dict(zip(names, zip(*(_fields(path, what, line, row, names) for line, row in rows))))
    for line, *values in zip((line for line, _ in rows), *(columns[name] for name in needed)):
        if all(value.strip().lower() in needed for value in values):
            raise UserError(f"{path}, line {line}: names the columns again; keep the first line alone")
    columns.pop("", None)
    if separator != ",":
        notes += (f"separated by {SEPARATORS.get(separator, quoted(separator))}",)
    return Table(path, columns, tuple(line for line, _ in rows), separator, notes)


def _text_of(path: Path, what: str, content: bytes | None) -> tuple[str, tuple[str, ...]]:
    """A file's text, and what is to be said of its encoding."""
    try:
        content = path.read_bytes() if content is None else content
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the CSV file that holds the {what}") from error
    remedy = AS_CSV.format(what)
    for signature, kind in SIGNATURES.items():
        if content.startswith(signature):
            raise UserError(f"{path}: is no UTF-8 text but {kind}; {remedy}")
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff") and content[:4] != b"\xff\xfe\0\0"
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no UTF-8 text ({error}); {remedy}") from error
    head = text[:2000]
    if head.count("\0") > len(head) // 4:
        raise UserError(f"{path}: is no UTF-8 text but UTF-16 or UTF-32 without its mark; {remedy}")
    return text, ("in UTF-16",) if wide else ()


def _records(text: str, separator: str, blanks: bool) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=blanks, strict=True)


def _head(text: str, separator: str) -> list[str]:
    """The fields of the first line that holds any; none where it cannot be read."""
    try:
        return next((row for row in _records(text, separator, False) if _holds(row)), [])
    except csv.Error:
        return []


def _names(head: Sequence[str]) -> list[str]:
    return [name.strip(" \t\xa0\ufeff\"'").lower() for name in head]


def _holds(row: Sequence[str]) -> bool:
    return any(field.strip() for field in row)


def _rows(path: Path, what: str, text: str, separator: str, blanks: bool, above: int) -> list[tuple[int, list[str]]]:
    """The rows that hold anything, each with the line that it ends on, where so many lines stand above the text."""
    records = _records(text, separator, blanks)
    try:
        return [(above + records.line_num, row) for row in records if _holds(row)]
    except csv.Error as error:
        why = f"{error}; is a quote left open?" if "field limit" in str(error) else str(error)
        raise UserError(
            f"{path}, line {above + records.line_num}: is no CSV ({why}); write the {what} again"
        ) from error


def _refuse_strange(path: Path, what: str, text: str, needed: Collection[str]) -> None:
    """Raises UserError for text that is no CSV, and for names of columns that stand further down."""
    start = text.lstrip().lower()
    kind = next((kind for begin, kind in TEXTS.items() if start.startswith(begin)), None)
    if kind:
        raise UserError(f"{path}: has no column {next(iter(needed))}, since it is {kind}; {AS_CSV.format(what)}")
    for separator in SEPARATORS:
        records = _records(text, separator, True)
        with contextlib.suppress(csv.Error):
            line = next(
                (records.line_num for row in itertools.islice(records, TITLES) if {*needed} <= {*_names(row)}), 0
            )
            if line:
                raise UserError(
                    f"{path}, line {line}: names the columns, which the first line must; remove the lines above"
                )


def _fields(path: Path, what: str, line: int, row: list[str], names: list[str]) -> list[str]:
    """A row's fields, as many as there are names, where those beyond are empty, and those that lack have no name."""
    if any(names[len(row) :]) or _holds(row[len(names) :]):
        raise UserError(
            f"{path}, line {line}: holds {len(row)} fields and the first line {len(names)}; write the {what} again"
        )
    return [*row, *[""] * (len(names) - len(row))][: len(names)]
