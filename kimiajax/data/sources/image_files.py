"""Image files: read right, or refused by name. Nothing is guessed at, and nothing is filled in."""

import io
import logging
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kimiajax.data.sources import tiff_pages, tiff_picture
from kimiajax.data.sources.jpeg_data import ALONE, JpegData, UnreadError, check_pixels
from kimiajax.data.sources.png_and_bmp import colours_of_bmp, colours_of_png
from kimiajax.data.survey import SMALLEST_PATCH
from kimiajax.errors import UserError
from kimiajax.io.files import guess
from kimiajax.shapes import UInt8
from kimiajax.text import quoted, shown

if TYPE_CHECKING:
    from PIL import Image

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = {  # by a file's first bytes, whatever it is called: Pillow runs other programs for some
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    **dict.fromkeys(tiff_pages.SIGNATURES, "TIFF"),
    b"BM": "BMP",
}
MODES = {"L": "L", "RGB": "RGB", "1": "L", "P": "RGB", "YCbCr": "RGB"}  # that are read, and what they become
PNG = {"compress_level": 1, "compress_type": zlib.Z_RLE}  # as small as zlib's default on tissue, and 2.7 times as fast
LARGEST = 2**28  # bytes of a file, and of its pixels as RGB, whatever limit of Pillow's own this process has
QUIET = logging.NullHandler()  # an error is raised, and told by whoever it concerns
AS_THEY_ARE = ("JPEG", "PNG")  # formats that every reader of data sets knows
ORIENTATION = 0x0112  # Exif's tag
TRANSPARENT = "is transparent in places, and nothing says over what"
PREVIEWS = (0x010001, 0x010002)  # kinds of a picture that a camera puts behind another


def read_gray(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The gray values of an 8-bit image, upright: colours become gray as in ITU-R 601-2, which is Pillow's way.

    Raises:
        UserError: no image, a damaged or a tiny one, or one that would have to be guessed at: 16 bits, transparent,
            CMYK.
    """
    return decode_gray(_content(path), shown(path))


def decode_gray(content: bytes, name: str) -> UInt8[np.ndarray, "h w"]:
    """The same of an image in memory, by the name that a message is to give it."""
    return np.asarray(_upright(content, name)[0].convert("L"))


def encode_gray(pixels: UInt8[np.ndarray, "h w"]) -> bytes:
    """Gray values as a PNG."""
    from PIL import Image

    return _encoded(Image.fromarray(pixels))


def read_rgb(path: Path) -> tuple[bytes, tuple[int, int]]:
    """A colour image as the file's own bytes, where these are an upright RGB JPEG or PNG, and else as a PNG of it.

    Returns:
        The bytes, and height and width in pixels.

    Raises:
        UserError: what `read_gray` refuses.
    """
    content = _content(path)
    image, as_it_is = _upright(content, shown(path))
    kept = as_it_is and image.mode == "RGB"
    return content if kept else _encoded(image.convert("RGB")), (image.height, image.width)


def _encoded(image: "Image.Image") -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **PNG)
    return stream.getvalue()


def _content(path: Path) -> bytes:
    """A file's bytes, from which Pillow takes no more than there are, whatever lengths they claim."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise UserError(f"{shown(path)}: has {size:,} bytes, far more than a patch; fetch it again, or remove it")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{shown(path)}: no such file any more; was the folder changed?") from error


def _upright(content: bytes, name: str) -> tuple["Image.Image", bool]:
    """An image, gray or RGB, and whether that is what the file holds as it is."""
    from PIL import Image, ImageOps

    logging.getLogger("PIL").addHandler(QUIET)
    kind = next((kind for start, kind in FORMATS.items() if content.startswith(start)), None)
    if kind is None:
        names = list(dict.fromkeys(FORMATS.values()))
        wanted = f"a {', '.join(names[:-1])} or {names[-1]} image"
        raise UserError(f"{name}: {guess(content[:512], len(content), wanted)}")
    try:
        image = OPENED[kind](content, name)
        if image.info.get("exif"):  # Pillow drops all of what is damaged in part
            up = _orientation(image.info["exif"])
            if up != 1:  # else XMP's word counts, which Pillow looks for
                image.getexif()[ORIENTATION] = up
        turned = image.getexif().get(ORIENTATION, 1) != 1
        upright = _opaque(ImageOps.exif_transpose(image))
        if upright.mode not in MODES:
            raise UnreadError(f"is of mode {upright.mode}")
    except UnreadError as error:
        raise UserError(f"{name}: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"{name}: claims to be far larger than a patch ({error}); fetch it again, or remove it"
        ) from error
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes Pillow raise
        raise UserError(f"{name}: a damaged image ({quoted(str(error), 200)[1:-1]}); fetch it again") from error
    as_it_is = image.format in AS_THEY_ARE and not turned and upright.mode == image.mode
    upright = upright.convert(MODES[upright.mode])
    return upright, as_it_is and upright.mode == image.mode


def _opaque(image: "Image.Image") -> "Image.Image":
    """An image without what says that nothing of it is transparent."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    if image.getextrema()[3] != (255, 255):  # pyright: ignore[reportGeneralTypeIssues]  # of RGBA: four pairs
        raise UnreadError(TRANSPARENT)
    return image.convert("RGB")


def _loaded(content: bytes, name: str, kind: str) -> "Image.Image":
    """An image that Pillow decoded."""
    from PIL import Image

    image = Image.open(io.BytesIO(content), formats=[kind])
    if image.width * image.height > LARGEST // 3:
        raise Image.DecompressionBombError(f"{image.height} x {image.width} pixels")
    if min(image.size) < SMALLEST_PATCH:
        size = f"{image.height} x {image.width}"
        raise UserError(f"{name}: is {size} pixels, too small for a patch; fetch it again, or remove it")
    image.load()
    return image


def _png(content: bytes, name: str) -> "Image.Image":
    colours = colours_of_png(content)
    return _with_colours(_loaded(content, name, "PNG"), colours)


def _bmp(content: bytes, name: str) -> "Image.Image":
    colours = colours_of_bmp(content)
    return _with_colours(_loaded(content, name, "BMP"), colours)


def _with_colours(image: "Image.Image", colours: int | None) -> "Image.Image":
    """The image; raises OSError where a pixel names a colour that the table lacks, which Pillow makes up."""
    if image.mode == "P" and colours is not None and np.asarray(image).max() >= colours:
        raise OSError("its table of colours lacks some")
    return image


def _jpeg(content: bytes, name: str) -> "Image.Image":
    data = JpegData.parse(content)
    others = _others_in(content, data)
    if others:
        raise UnreadError(f"holds {1 + others} pictures", ALONE)
    image = _loaded(content, name, "JPEG")
    check_pixels(content, data, np.asarray(image))
    return image


def _others_in(content: bytes, data: JpegData) -> int:
    """How many pictures as large as the first a camera put behind it, if its list of them can be read."""
    start, listed = data.index or (0, b"")
    found = 0
    try:
        page = next(tiff_pages.pages_of(listed))
        entries = bytes(page.values(tiff_pages.CAMERAS))
        for said, place in struct.iter_unpack(f"{page.order}I4xI4x", entries[16:]):  # the first is the picture itself
            other = JpegData.parse(content, start + place)
            smaller = other.width < data.width and other.height < data.height
            found += said & 0xFFFFFF not in PREVIEWS and not smaller
    except (OSError, ValueError, KeyError, IndexError, struct.error, UnreadError):
        return found
    return found


def _tiff(content: bytes, name: str) -> "Image.Image":
    from PIL import UnidentifiedImageError

    page, mask = tiff_pages.picture_in(content)
    tiff_picture.check_page(page)
    if mask is not None and np.asarray(_upright(tiff_picture.mask_of(mask), name)[0]).min() < 255:
        raise UnreadError(TRANSPARENT)
    try:
        return _loaded(tiff_picture.alone(page), name, "TIFF")
    except UnidentifiedImageError as error:
        raise UnreadError("is a TIFF of a rare kind") from error
    except OSError as error:
        where = tiff_picture.first_damaged(page)
        raise OSError(f"{where} is cut or damaged" if where else str(error)) from error


OPENED = {"PNG": _png, "JPEG": _jpeg, "TIFF": _tiff, "BMP": _bmp}


def _orientation(exif: bytes) -> int:
    """Which way is up, as Exif counts; what else a camera wrote may be damaged.

    Raises:
        OSError: the data break off before they could say it.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}4xI", tiff)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, value = struct.unpack_from(f"{order}H6xH", tiff, place)
            if tag == ORIENTATION:
                return value
    except struct.error as error:
        raise OSError("its camera's data break off before they say which way is up") from error
    return 1
