"""JPEG data, whole or not: a decoder makes gray of what is missing, without a word."""

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

SOI, EOI, SOS, DRI, ADOBE = 0xD8, 0xD9, 0xDA, 0xDD, 0xEE
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # kinds of coding; between them lie tables
HUFFMAN = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
PROGRESSIVE = 0xC2
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
END_OF_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
MORE = bytes.fromhex("d28b5ce197") * 50  # a decoder takes it for pixels if it looks at it; it puts zeros without it
INDEX = b"MPF\0"
CUT = "its data end before the picture does"
ALONE = "save one as a file of its own"


class UnreadError(Exception):
    """A picture that is whole, and would have to be guessed at.

    Args:
        what: what is the matter with it.
        remedy: what to do.
    """

    def __init__(self, what: str, remedy: str = "save it as 8-bit gray or RGB"):
        super().__init__(f"{what}; {remedy}")


@dataclass
class JpegData:
    """What the markers of a picture say.

    Attributes:
        bits: of a sample.
        sampling: how often each component is sampled, across and down, by its number.
        ends: where each stretch of coded pixels ends.
        end: where the picture ends.
        adobe: how colours are stored as Adobe says, 0 for RGB or CMYK; None where it says nothing.
        jfif: whether it says that it is a JFIF file, whose colours are YCbCr.
        index: where a list of several pictures begins, in the layout of a TIFF file, and the list.
    """

    coding: int = 0
    bits: int = 8
    width: int = 0
    height: int = 0
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    end: int = 0
    adobe: int | None = None
    jfif: bool = False
    index: tuple[int, bytes] | None = None
    _interval: int = 0
    _left: dict[int, list[int | None]] = field(default_factory=dict)  # bits yet to come, of a component's coefficients

    @classmethod
    def parse(cls, content: bytes, start: int = 0) -> "JpegData":
        """Reads a picture's markers, from its first to its last.

        Raises:
            UnreadError: 12 bits, or a coding that few programs read.
            OSError: it is not whole, as far as markers tell.
        """
        self = cls()
        for marker, place, body in _segments(content, start):
            if marker in FRAMES:
                self._begin(marker, body)
            elif marker == DRI:
                (self._interval,) = struct.unpack_from(">H", body)
            elif marker == ADOBE and body.startswith(b"Adobe") and len(body) >= 12:
                self.adobe = body[11]
            elif marker == 0xE0 and body.startswith(b"JFIF\0"):
                self.jfif = True
            elif marker == 0xE2 and body.startswith(INDEX):
                self.index = place - len(body) + len(INDEX), body[len(INDEX) :]
            elif marker == SOS:
                self._scan(content, place, body)
            elif marker == EOI:
                self.end = place
        if not self._left or any(left != 0 for each in self._left.values() for left in each):
            raise OSError(CUT)
        return self

    def _begin(self, marker: int, body: bytes) -> None:
        if self.coding:
            raise OSError("one picture begins inside another")
        if marker not in HUFFMAN:
            raise UnreadError("is a JPEG of a kind that few programs read (lossless, or coded arithmetically)")
        self.coding = marker
        self.bits, self.height, self.width, count = struct.unpack_from(">BHHB", body)
        if self.bits != 8:
            raise UnreadError("has more than 8 bits a channel")
        for number, sides in struct.iter_unpack("BBx", body[6 : 6 + 3 * count]):
            self.sampling[number] = (sides >> 4, sides & 15)
            self._left[number] = [None] * 64
        if not (self.height and self.width and self.sampling and all(map(all, self.sampling.values()))):
            raise OSError("it says no size")

    def _scan(self, content: bytes, place: int, body: bytes) -> None:
        count = body[0]
        numbers = list(body[1 : 1 + 2 * count : 2])
        first, last, bits = struct.unpack_from("BBB", body, 1 + 2 * count)
        if not numbers or any(number not in self.sampling for number in numbers):
            raise OSError("a scan is of no component")
        if self.coding != PROGRESSIVE:
            first, last, bits = 0, 63, 0
        for number in numbers:
            left = self._left[number]
            for k in range(first, min(last, 63) + 1):
                if bits >> 4 and left[k] != bits >> 4:
                    raise OSError("a scan is missing")
                left[k] = bits & 15
        end = END_OF_SCAN.search(content, place)
        if end is None:
            raise OSError(CUT)
        marks = list(RESTART.finditer(content, place, end.start()))
        expected = (self._blocks(numbers) - 1) // self._interval if self._interval else 0
        if [mark[0][1] for mark in marks] != [0xD0 + k % 8 for k in range(expected)]:
            raise OSError(f"{len(marks)} of {expected} restart marks, or others, lie in it")
        self.ends += [mark.start() for mark in marks] + [end.start()]

    def _blocks(self, numbers: list[int]) -> int:
        """How many units of a scan are coded one after another."""
        most_across, most_down = (max(sides) for sides in zip(*self.sampling.values()))
        if len(numbers) > 1:
            return -(-self.width // (8 * most_across)) * -(-self.height // (8 * most_down))
        across, down = self.sampling[numbers[0]]
        width, height = -(-self.width * across // most_across), -(-self.height * down // most_down)
        return -(-width // 8) * -(-height // 8)


def _segments(content: bytes, start: int) -> Iterator[tuple[int, int, bytes]]:
    """Each marker, where its data end, and these data. Pixels are passed over."""
    if content[start : start + 2] != b"\xff\xd8":
        raise OSError("it has no first mark")
    place, in_pixels = start + 2, False
    while True:
        found = END_OF_SCAN.search(content, place)
        if found is None or (found.start() != place and not in_pixels):
            raise OSError(CUT)
        marker, place = content[found.end() - 1], found.end()
        if marker == SOI:
            raise OSError("one picture begins inside another")
        if marker == EOI:
            yield marker, place, b""
            return
        size = int.from_bytes(content[place : place + 2], "big")
        body = content[place + 2 : place + size]
        if size < 2 or len(body) != size - 2:
            raise OSError(CUT)
        place, in_pixels = place + size, marker == SOS
        yield marker, place, body


def check_pixels(content: bytes, data: JpegData, pixels: np.ndarray) -> None:
    """Raises OSError where coded pixels are missing, in whose place the decoder puts gray, or what it guesses.

    Data beyond the last pixel's are not decoded. So where more of them change the picture, it was not whole. What is
    damaged and can be decoded nevertheless does not show: a JPEG has no checksum.

    Args:
        pixels: what the data give, [h w] or [h w c].
    """
    from PIL.JpegImagePlugin import JpegImageFile

    parts, at = [], 0
    for end in data.ends:
        parts += [content[at:end], MORE]
        at = end
    with JpegImageFile(io.BytesIO(b"".join([*parts, content[at : data.end]]))) as image:
        if (np.asarray(image) != pixels).any():
            raise OSError(CUT)
