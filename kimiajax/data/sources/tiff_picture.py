"""A page of a TIFF file, held against its tags before Pillow decodes it.

Pillow reads signed values as unsigned ones, passes over channels, and puts black or gray in place of what is missing.
"""

import io
import struct
import zlib
from math import isclose
from typing import Any, NamedTuple

import numpy as np

from kimiajax.data.sources import tiff_pages as tags
from kimiajax.data.sources.jpeg_data import JpegData, UnreadError, check_pixels
from kimiajax.data.sources.tiff_pages import Page

RAW, JPEG = 1, 7
SAME_BYTE = 128  # of PackBits: smaller counts are of bytes as they are, greater ones of a byte that is repeated
MOST_PADDED = 4  # times the pixels of a strip that its data may hold
PACKED = {5: "LZW", 8: "Deflate", 32946: "Deflate", 32773: "PackBits"}  # of which damage shows
OTHER_PACKED = {2: "CCITT", 3: "CCITT", 4: "CCITT", 6: "JPEG of 1992", 34712: "JPEG 2000", 50000: "Zstandard"}
DIFFERENCES, WITH_DIFFERENCES = 2, (5, 8, 32946)
WHITE_IS_0, BLACK_IS_0, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
CHANNELS = {WHITE_IS_0: 1, BLACK_IS_0: 1, RGB: 3, PALETTE: 1, YCBCR: 3}  # of the colours that are read
OTHER_COLOURS = {4: "a mask", 5: "CMYK", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32844: "LogL", 32845: "LogLuv"}
NUMBERS = {2: "signed integers", 3: "floating-point numbers", 4: "values of no stated kind", 5: "complex numbers"}
ALPHA = (1, 2)  # kinds of a channel that says what is transparent
MOST_PIXELS = 2**28 // 3  # of a page, and of a strip or tile of it, which decoders make room for
ADOBE_RGB, ADOBE_YCBCR = 0, 1
BT601, FULL_RANGE = (0.299, 0.587, 0.114), (0, 255, 128, 255, 128, 255)  # which decoders assume
LEFT_ALONE = (tags.COMPRESSION, tags.PREDICTOR, tags.BITS, tags.JPEG_TABLES)  # of a strip that is read by itself
COPIED = (
    *(tags.WIDTH, tags.HEIGHT, tags.BITS, tags.COMPRESSION, tags.COLOURS, tags.STRIPS, tags.ORIENTATION, tags.SAMPLES),
    *(tags.ROWS, tags.STRIP_SIZES, tags.PREDICTOR, tags.TABLE, tags.TILE_WIDTH, tags.TILE_HEIGHT, tags.TILES),
    *(tags.TILE_SIZES, tags.SUBSAMPLING, tags.JPEG_TABLES),
)


class Stretch(NamedTuple):
    """A strip or tile: its name for messages, where its data lie, and its height and width in pixels."""

    name: str
    place: int
    size: int
    height: int
    width: int


def check_page(page: Page) -> None:
    """Holds a page against what can be read right.

    Raises:
        UnreadError: it would have to be guessed at.
        OSError: it is damaged.
    """
    _check_values(page)
    _check_colours(page)
    compression = page.value(tags.COMPRESSION, RAW)
    if compression not in (RAW, JPEG, *PACKED):
        name = OTHER_PACKED.get(compression, f"method {compression}")
        raise UnreadError(f"is compressed with {name}, of which damage may not show", "save it with LZW, or without")
    if page.value(tags.FILL_ORDER, 1) != 1:
        raise UnreadError("has the bits of its bytes in reverse order")
    predictor = page.value(tags.PREDICTOR, 1)
    if predictor != 1 and (predictor, compression, page.bits[0]) not in {(DIFFERENCES, c, 8) for c in WITH_DIFFERENCES}:
        raise UnreadError(f"has predictor {predictor}, which does not go with its values", "save it without")
    for stretch in stretches_of(page):
        _check_stretch(page, stretch, compression)


def _check_values(page: Page) -> None:
    kinds = {kind for kind in page.values(tags.FORMAT) if kind != 1}
    what = NUMBERS.get(next(iter(kinds)), "complex numbers, or of another kind") if kinds else ""
    bits = page.bits
    if max(bits) > 8:
        raise UnreadError("has more than 8 bits a channel" + (f" ({what})" if what else ""))
    if what:
        raise UnreadError(f"holds {what}")
    if not all(page.size) or len(bits) < page.samples:
        raise OSError("its tags give no size, or bits of too few channels")
    several = page.samples > 1 or page.value(tags.COMPRESSION, RAW) == JPEG
    if len(set(bits)) > 1 or bits[0] not in ((8,) if several else (1, 2, 4, 8)):
        raise UnreadError(f"has {', '.join(map(str, sorted(set(bits))))} bits a channel")


def _check_colours(page: Page) -> None:
    colours, is_jpeg = page.value(tags.COLOURS, None), page.value(tags.COMPRESSION, RAW) == JPEG
    if colours is None:
        raise UnreadError("does not say whether 0 is black or white")
    if colours not in CHANNELS:
        raise UnreadError(f"is of mode {OTHER_COLOURS.get(colours, colours)}")
    extra, kinds = page.samples - CHANNELS[colours], page.values(tags.EXTRA)
    if extra < 0:
        raise OSError("its tags give fewer channels than its colours have")
    if extra > 1 or (extra and colours == WHITE_IS_0) or (extra and is_jpeg):
        raise UnreadError(f"has {page.samples} channels")
    if extra and kinds[:1] not in {(kind,) for kind in ALPHA} and (kinds or colours != RGB):
        raise UnreadError("has a channel that is neither colour nor said to be transparency")
    if colours == PALETTE:
        table = page.values(tags.TABLE)
        if is_jpeg or len(table) != 3 * 2 ** page.bits[0]:
            raise OSError("its table of colours does not fit its pixels")
        if max(table) < 256:
            raise UnreadError("has a table of colours of 8 bits, and TIFF's are of 16")
    if colours == YCBCR:
        weights, levels = page.ratios(tags.COEFFICIENTS) or BT601, page.ratios(tags.REFERENCES) or FULL_RANGE
        common = all(isclose(a, b, abs_tol=2e-3) for a, b in zip((*weights, *levels), (*BT601, *FULL_RANGE)))
        is_dense = not is_jpeg and (page.values(tags.SUBSAMPLING) or (2, 2)) != (1, 1)
        if not common or is_dense or page.in_planes or extra:
            raise UnreadError("has YCbCr colours of a rare kind")


def stretches_of(page: Page) -> list[Stretch]:
    """The strips or tiles of a page, in the order in which they lie in the picture, plane by plane.

    Raises:
        OSError: some are missing, or lie outside the file.
    """
    height, width = page.size
    tiled = tags.TILE_WIDTH in page.places
    kind, at, sizes = ("tile", tags.TILES, tags.TILE_SIZES) if tiled else ("strip", tags.STRIPS, tags.STRIP_SIZES)
    rows = page.value(tags.TILE_HEIGHT) if tiled else min(page.value(tags.ROWS, height), height)
    cols = page.value(tags.TILE_WIDTH) if tiled else width
    if not rows or not cols:
        raise OSError(f"its {kind}s have no size")
    if max(height * width, rows * cols) > MOST_PIXELS:
        from PIL import Image

        raise Image.DecompressionBombError(f"{max(height, rows)} x {max(width, cols)} pixels")
    down, across, planes = -(-height // rows), -(-width // cols), page.samples if page.in_planes else 1
    places, lengths, count = page.values(at), page.values(sizes), down * across * planes
    if not len(places) == len(lengths) == count:
        raise OSError(f"it has {min(len(places), len(lengths))} of {count} {kind}s")
    found = []
    for k, (place, length) in enumerate(zip(places, lengths)):
        name, row = f"{kind} {k + 1} of {count}", k // across % down
        if not place or not length:
            raise OSError(f"{name} is missing")
        if place + length > len(page.content):
            raise OSError(f"{name} is cut: the file ends before it does")
        found.append(Stretch(name, place, length, rows if tiled else min(rows, height - row * rows), cols))
    return found


def _check_stretch(page: Page, stretch: Stretch, compression: int) -> None:
    name, place, size, height, width = stretch
    needed = height * -(-width * page.bits[0] * (1 if page.in_planes else page.samples) // 8)
    if compression == RAW:
        if size < needed:
            raise OSError(f"{name} is cut: it has {size:,} bytes")
    elif page.content.count(0, place, place + size) == size:
        raise OSError(f"{name} holds nothing but zeros")
    if compression in CHECKED:
        try:
            CHECKED[compression](page.content[place : place + size], needed)
        except OSError as error:
            raise OSError(f"{name} is cut or damaged: {error}") from error
    if compression == JPEG:
        try:
            _check_jpeg(page, stretch)
        except OSError as error:
            raise OSError(f"{name} is cut or damaged: {error}") from error


def check_deflated(data: bytes, needed: int) -> None:
    """Raises OSError for data that do not unpack to what is needed at least, or not to what their checksum is of."""
    unpacking, length = zlib.decompressobj(), 0
    try:
        while data and not unpacking.eof and length <= MOST_PADDED * needed:
            length += len(unpacking.decompress(data, needed + 1))
            data = unpacking.unconsumed_tail
    except zlib.error as error:
        raise OSError(str(error)) from error
    if not unpacking.eof or length < needed:
        raise OSError("it does not hold all of its pixels")


def _check_packed(data: bytes, needed: int) -> None:
    """The same of PackBits, which has no checksum: lengths must add up."""
    at = length = 0
    while at < len(data) and length < needed:
        count = data[at]
        run = count > SAME_BYTE
        length += 257 - count if run else count + 1 if count < SAME_BYTE else 0
        at += 2 if run else count + 2 if count < SAME_BYTE else 1
    if length != needed or not 0 <= len(data) - at <= 1:
        raise OSError("its runs do not add up to its pixels")


CHECKED = {8: check_deflated, 32946: check_deflated, 32773: _check_packed}


def _check_jpeg(page: Page, stretch: Stretch) -> None:
    from PIL.JpegImagePlugin import JpegImageFile

    content = page.content[stretch.place : stretch.place + stretch.size]
    shared = bytes(page.values(tags.JPEG_TABLES))
    if shared:
        content = shared[:-2] + content[2:]  # between the mark of the beginning and that of the end
    data = JpegData.parse(content)
    if data.width != stretch.width or not stretch.height <= data.height <= MOST_PIXELS // data.width:
        raise OSError(f"it is of {data.height} x {data.width} pixels")
    if len(data.sampling) != (1 if page.in_planes else page.samples):
        raise OSError(f"it is of {len(data.sampling)} channels")
    colours = page.value(tags.COLOURS)
    if (colours == RGB and (data.adobe == ADOBE_YCBCR or data.jfif)) or (colours == YCBCR and data.adobe == ADOBE_RGB):
        raise UnreadError("says one thing of its colours, and the JPEG in it another")
    with JpegImageFile(io.BytesIO(content)) as image:
        check_pixels(content, data, np.asarray(image))


def alone(page: Page) -> bytes:
    """A file with this page alone, and of its tags those that say how its pixels are stored."""
    values = {tag: page.values(tag) for tag in COPIED if tag in page.places}
    if page.in_planes:
        values[tags.PLANES] = (2,)
    if page.samples in (2, 4):  # where nothing is transparent, kinds of transparency are one
        values[tags.EXTRA] = ALPHA[1:]
    return _file(page, values)


def mask_of(mask: Page) -> bytes:
    """A file with a mask alone, as a picture that is white where the other is to be seen."""
    values = {tag: mask.values(tag) for tag in COPIED if tag in mask.places}
    return _file(mask, {**values, tags.COLOURS: (BLACK_IS_0,)})


def first_damaged(page: Page) -> str | None:
    """The name of the first strip or tile that cannot be decoded; None where all can."""
    from PIL import Image

    for name, place, size, height, width in stretches_of(page):
        values = {tag: page.values(tag) for tag in LEFT_ALONE if tag in page.places}
        samples = 1 if page.in_planes else page.samples
        values |= {tags.COLOURS: (BLACK_IS_0 if samples < 3 else RGB,), tags.SAMPLES: (samples,)}
        values |= {tags.EXTRA: ALPHA[1:]} if samples in (2, 4) else {}
        values |= {tags.WIDTH: (width,), tags.HEIGHT: (height,), tags.STRIPS: (place,), tags.STRIP_SIZES: (size,)}
        try:
            with Image.open(io.BytesIO(_file(page, values)), formats=["TIFF"]) as image:
                image.load()
        except Exception:  # whatever it is, it is in this one
            return name
    return None


def _file(page: Page, values: dict[int, tuple[Any, ...]]) -> bytes:
    """The file's bytes with another list of tags, at their end."""
    start = len(page.content) + len(page.content) % 2
    entries, behind = [], b""
    for tag, numbers in sorted(values.items()):
        kind, form = (7, "B") if tag == tags.JPEG_TABLES else (3, "H") if max(numbers, default=0) < 2**16 else (4, "I")
        packed = struct.pack(f"<{len(numbers)}{form}", *numbers)
        if len(packed) > 4:
            place = start + 2 + 12 * len(values) + 4 + len(behind)
            behind += packed + bytes(len(packed) % 2)
            packed = struct.pack("<I", place)
        entries.append(struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0"))
    head = b"II*\0" + struct.pack("<I", start)
    return b"".join(
        [
            head,
            memoryview(page.content)[8:],
            bytes(len(page.content) % 2),
            struct.pack("<H", len(entries)),
            *entries,
            bytes(4),
            behind,
        ]
    )
