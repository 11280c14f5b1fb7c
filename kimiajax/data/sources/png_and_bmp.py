"""What Pillow passes over in PNG and BMP files: a wrong checksum, a missing end, pixels that nothing sets."""

import struct
import zlib

from kimiajax.data.sources.jpeg_data import ALONE, CUT, UnreadError
from kimiajax.data.sources.tiff_picture import MOST_PIXELS, check_deflated

PALETTE = 3  # PNG's number for colours by a table
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's number for a kind of colours
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
RLE = {1: False, 2: True}  # by BMP's number: whether a byte holds two pixels
MODERN = 40  # bytes of BMP's header, from which on it tells of compression


def colours_of_png(content: bytes) -> int | None:
    """How many colours the table of a whole PNG has; None where it needs none.

    Raises:
        UnreadError: more than 8 bits, or several pictures.
        OSError: it is damaged.
    """
    place, kind, colours, by_table, packed, needed, pixels = 8, b"", 0, False, [], 0, 0
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, place) if place + 12 <= len(content) else (len(content), b"")
        place += 12 + length
        if place > len(content):
            raise OSError(CUT)
        data, checksum = content[place - 4 - length : place - 4], content[place - 4 : place]
        if zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
            raise OSError(f"the checksum of its {kind.decode('latin-1')} chunk does not match")
        if kind == b"IHDR":
            width, height, bits, colour, interlaced = struct.unpack_from(">IIBB2xB", data)
            by_table = colour == PALETTE
            pixels = width * height
            needed = _length(width, height, bits * CHANNELS.get(colour, 1), bool(interlaced))
            if bits > 8:
                raise UnreadError("has more than 8 bits a channel")
        elif kind == b"acTL" and (count := int.from_bytes(data[:4], "big")) > 1:
            raise UnreadError(f"holds {count} pictures", ALONE)
        elif kind == b"PLTE":
            colours = length // 3
        elif kind == b"IDAT":
            packed.append(data)
    if pixels <= MOST_PIXELS:  # a larger one is refused by its size
        check_deflated(b"".join(packed), needed)
    return colours if by_table else None


def _length(width: int, height: int, bits: int, interlaced: bool) -> int:
    """How many bytes a PNG's pixels are, each row after its filter's number."""
    passes = PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = ((-((left - width) // across), -((top - height) // down)) for left, top, across, down in passes)
    return sum(high * (1 + -(-wide * bits // 8)) for wide, high in sizes if wide > 0)


def colours_of_bmp(content: bytes) -> int | None:
    """The same of a BMP.

    Raises:
        UnreadError: some pixels are of no stated colour.
        OSError: it is damaged.
    """
    (header,) = struct.unpack_from("<I", content, 14)
    if header < MODERN:
        (bits,) = struct.unpack_from("<H", content, 24)
        return 2**bits if bits <= 8 else None
    width, height, bits, packing, listed = struct.unpack_from("<ii2xHI12xI", content, 18)
    if packing in RLE:
        (start,) = struct.unpack_from("<I", content, 10)
        _check_rle(content[start:], width, abs(height), RLE[packing])
    return (listed or 2**bits) if bits <= 8 else None


def _check_rle(data: bytes, width: int, height: int, by_halves: bool) -> None:
    at, x, lines, stopped = 0, 0, 0, False
    while at + 1 < len(data) and lines < height and not stopped:
        count, value = data[at], data[at + 1]
        at += 2
        if count:
            x += count
        elif value > 2:
            size = -(-value // 2) if by_halves else value
            at, x = at + size + size % 2, x + value
        elif value == 0 and x == width:
            x, lines = 0, lines + 1
        else:
            stopped = True
        if x > width:
            raise OSError("a line of it is too long")
    if at > len(data) or lines * width + x != height * width:
        raise UnreadError("leaves pixels out") if stopped else OSError(CUT)
