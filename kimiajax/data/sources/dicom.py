"""What the heads of DICOM files say: which of them are parts of one whole slide, and whether they are whole.

OpenSlide takes the files of a series that lie beside the one that it opens, and leaves out without a word those that it
cannot read. So each is looked at here before.
"""

import struct
from pathlib import Path
from typing import NamedTuple

from kimiajax.data.sources.source import UnreadableError
from kimiajax.io.files import guess
from kimiajax.text import quoted

SUFFIXES = (".dcm", ".dicom")
MARK, MARK_AT = b"DICM", 128
HEAD = 2**18  # bytes at a file's start, among which what is asked of it lies
TAIL = 2**14  # bytes at its end, among which compressed pixels end
DEEPEST = 32  # sequences within one another
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
DIRECTORY = "1.2.840.10008.1.3.10"
IMPLICIT, DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
COMPRESSED = ("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5")
SUB_IMAGES = ("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER")
STORAGE = "1.2.840.10008.5.1.4.1.1."
BESIDE = ("11", "30", "66", "88", "91", "104")  # classes of what is about slides: marks, segmentations, reports
KINDS = {  # classes of other images
    "1": "an X-ray image",
    "2": "a CT image",
    "4": "an MR image",
    "6": "an ultrasound image",
    "7": "a secondary capture",
    "77": "a photograph, or one field of a microscope",
    "128": "a PET image",
}
LONG = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV")
SYNTAX, IMAGE_TYPE, CLASS = (0x0002, 0x0010), (0x0008, 0x0008), (0x0008, 0x0016)
CLASS_IN_HEAD, STUDY, SERIES = (0x0002, 0x0002), (0x0020, 0x000D), (0x0020, 0x000E)
SAMPLES, FRAMES, ROWS, COLUMNS = (0x0028, 0x0002), (0x0028, 0x0008), (0x0028, 0x0010), (0x0028, 0x0011)
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
BROKEN = (struct.error, IndexError)  # of a head that breaks off
UNTOLD = 0xFFFFFFFF  # a length that is not told: there is a mark where the value ends


class Instance(NamedTuple):
    """What a DICOM file says of itself.

    Attributes:
        kind: its class, a UID.
        role: of a whole slide's file, which image it is: VOLUME, LABEL, OVERVIEW, THUMBNAIL.
        study, series: what it belongs to, UIDs.
        whole: whether all of its pixels are there, as far as its size and its end show.
    """

    kind: str
    role: str
    study: str
    series: str
    whole: bool

    @property
    def is_slide(self) -> bool:
        return self.kind == WHOLE_SLIDE

    @property
    def is_level(self) -> bool:
        """Whether it is a level of a whole slide, and neither its label nor another small image."""
        return self.is_slide and self.role not in SUB_IMAGES

    @property
    def is_beside(self) -> bool:
        """Whether it is about slides, and none: annotations, a segmentation, a report, a directory."""
        return self._class in BESIDE or self.kind == DIRECTORY

    @property
    def told(self) -> str:
        """What it is, in words."""
        return KINDS.get(self._class, f"a DICOM file of another kind ({quoted(self.kind)})")

    @property
    def _class(self) -> str:
        """The number that its class has among those of images and the like."""
        return self.kind.removeprefix(STORAGE).partition(".")[0] if self.kind.startswith(STORAGE) else ""


def is_dicom(file: Path) -> bool:
    """Whether a file has DICOM's mark, or at least the suffix."""
    if file.suffix.lower() in SUFFIXES:
        return True
    try:
        with file.open("rb") as stream:
            return stream.read(MARK_AT + len(MARK))[MARK_AT:] == MARK
    except OSError:
        return False


def read_instance(file: Path) -> Instance:
    """Reads a file's head.

    Raises:
        UnreadableError: it is no DICOM file, or breaks off before it says what it is.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(HEAD)
        stream.seek(max(0, size - TAIL))
        tail = stream.read()
    if head[MARK_AT : MARK_AT + len(MARK)] != MARK:
        raise UnreadableError(guess(head[:512], size, "a DICOM file"))
    values: dict[tuple[int, int], bytes] = {}
    syntax, order = "", "<"
    try:
        at = _elements(head, MARK_AT + len(MARK), "<", True, values, SYNTAX[0])
        syntax = _text(values, SYNTAX)
        if not syntax.startswith(IMPLICIT):
            raise UnreadableError("a DICOM file that breaks off in its head; fetch it again")
        if syntax == DEFLATED:
            raise UnreadableError("a DICOM file that is deflated as a whole, which OpenSlide does not read; convert it")
        order = ">" if syntax == BIG_ENDIAN else "<"
        _elements(head, at, order, syntax != IMPLICIT, values, COLUMNS[0])
    except BROKEN as error:
        if size <= HEAD and SERIES not in values:
            raise UnreadableError("a DICOM file that breaks off in its head; fetch it again") from error
    kind = _text(values, CLASS) or _text(values, CLASS_IN_HEAD)
    series = _text(values, SERIES)
    if not series and kind != DIRECTORY:
        raise UnreadableError("a DICOM file that does not say which series it belongs to; fetch it again")
    if syntax.startswith(COMPRESSED):
        whole = struct.pack(f"{order}2H", *SEQUENCE_END) in tail
    else:
        whole = size >= _pixels(values, order)
    role = [part.strip() for part in _text(values, IMAGE_TYPE).split("\\")]
    return Instance(kind, role[2] if len(role) > 2 else "", _text(values, STUDY), series, whole)


def _text(values: dict[tuple[int, int], bytes], tag: tuple[int, int]) -> str:
    return values.get(tag, b"").decode("ascii", "replace").strip(" \0")


def _pixels(values: dict[tuple[int, int], bytes], order: str) -> int:
    """How many bytes the pixels take that are not compressed, at least; 0 where that is not said."""
    frames = _text(values, FRAMES) or "1"
    sides = [values.get(tag, b"") for tag in (ROWS, COLUMNS, SAMPLES)]
    if not frames.isdecimal() or any(len(side) != 2 for side in sides):
        return 0
    rows, columns, samples = (struct.unpack(f"{order}H", side)[0] for side in sides)
    return rows * columns * samples * int(frames)


def _elements(head: bytes, at: int, order: str, explicit: bool, values: dict[tuple[int, int], bytes], last: int) -> int:
    """Takes up the elements of the groups to `last`, from a place on; returns where those end."""
    while at < len(head):
        (tag, length, start) = _element(head, at, order, explicit)
        if tag[0] > last:
            break
        if length == UNTOLD:
            at = _skip(head, start, order, explicit, 1)
        else:
            values[tag] = head[start : start + length]
            at = start + length
    return at


def _element(head: bytes, at: int, order: str, explicit: bool) -> tuple[tuple[int, int], int, int]:
    """The tag of an element, the length of its value, and where that starts."""
    group, number = struct.unpack_from(f"{order}2H", head, at)
    if not explicit or group == ITEM[0]:
        (length,) = struct.unpack_from(f"{order}I", head, at + 4)
        return (group, number), length, at + 8
    if head[at + 4 : at + 6] in LONG:
        (length,) = struct.unpack_from(f"{order}I", head, at + 8)
        return (group, number), length, at + 12
    (length,) = struct.unpack_from(f"{order}H", head, at + 6)
    return (group, number), length, at + 8


def _skip(head: bytes, at: int, order: str, explicit: bool, depth: int) -> int:
    """Where a sequence, or an item of one, ends whose length is not told."""
    if depth > DEEPEST:
        raise IndexError("sequences within sequences")
    while True:
        tag, length, at = _element(head, at, order, explicit)
        if tag in (ITEM_END, SEQUENCE_END):
            return at
        at = _skip(head, at, order, explicit, depth + 1) if length == UNTOLD else at + length
