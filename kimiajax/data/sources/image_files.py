"""Image files: read right, or refused by name. Nothing is guessed at, and nothing is filled in."""

import io
import logging
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kimiajax.data.survey import SMALLEST_PATCH
from kimiajax.errors import UserError
from kimiajax.io.files import guess
from kimiajax.shapes import UInt8
from kimiajax.text import quoted, shown

if TYPE_CHECKING:
    from PIL import Image

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # whatever a file is called: Pillow runs other programs for some
EIGHT_BITS = {"L": "L", "RGB": "RGB", "1": "L", "P": "RGB"}  # modes that are read, and what they become
PNG = {"compress_level": 1, "compress_type": zlib.Z_RLE}  # as small as zlib's default on tissue, and 2.7 times as fast
LARGEST = 2**28  # bytes of a file, and of its pixels as RGB, whatever limit of Pillow's own this process has
QUIET = logging.NullHandler()  # an error is raised, and told by whoever it concerns
AS_THEY_ARE = ("JPEG", "PNG")  # formats that every reader of data sets knows
FILLED_IN = (128, (128, 128, 128))  # the last pixel of a JPEG that was cut, gray or RGB
ORIENTATION = 0x0112  # Exif's tag
MORE = bytes(range(1, 255))  # bytes that a JPEG's decoder takes for pixels, if it looks at them


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

    return _png(Image.fromarray(pixels))


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
    return content if kept else _png(image.convert("RGB")), (image.height, image.width)


def _png(image: "Image.Image") -> bytes:
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
    from PIL import Image, ImageOps, UnidentifiedImageError

    logging.getLogger("PIL").addHandler(QUIET)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > LARGEST // 3:
                raise Image.DecompressionBombError(f"{image.height} x {image.width} pixels")
            if _bits(image) > 8:
                raise _undecided(name, "has more than 8 bits a channel")
            if min(image.size) < SMALLEST_PATCH:
                size = f"{image.height} x {image.width}"
                raise UserError(f"{name}: is {size} pixels, too small for a patch; fetch it again, or remove it")
            image.load()
            if _is_filled_in(image, content):
                raise OSError("its data end before the picture does")
            before, as_it_is = image.mode, image.format in AS_THEY_ARE
            if image.info.get("exif"):  # Pillow drops all of what is damaged in part
                up = _orientation(image.info["exif"])
                if up != 1:  # else XMP's word counts, which Pillow looks for
                    image.getexif()[ORIENTATION] = up
            turned = image.getexif().get(ORIENTATION, 1) != 1
            upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        wanted = f"a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
        raise UserError(f"{name}: {guess(content[:512], len(content), wanted)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"{name}: claims to be far larger than a patch ({error}); fetch it again, or remove it"
        ) from error
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes Pillow raise
        raise UserError(f"{name}: a damaged image ({quoted(str(error), 200)[1:-1]}); fetch it again") from error
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        if upright.getextrema()[3] != (255, 255):  # pyright: ignore[reportGeneralTypeIssues]  # of RGBA: four pairs
            raise _undecided(name, "is transparent in places, and nothing says over what")
        upright = upright.convert("RGB")
    if upright.mode not in EIGHT_BITS:
        raise _undecided(name, f"is of mode {upright.mode}")
    upright = upright.convert(EIGHT_BITS[upright.mode])
    return upright, as_it_is and not turned and upright.mode == before


def _undecided(name: str, what: str) -> UserError:
    return UserError(f"{name}: {what}; save it as 8-bit gray or RGB")


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


def _is_filled_in(image: "Image.Image", content: bytes) -> bool:
    """Whether a JPEG lacks data but for the mark of its end: the decoder makes the rest gray, without a word.

    Data beyond the last pixel's are not decoded. So where more of them change the picture, it was not whole.
    """
    from PIL import Image

    if image.format != "JPEG" or image.getpixel((image.width - 1, image.height - 1)) not in FILLED_IN:
        return False
    end = content.rindex(b"\xff\xd9")
    with Image.open(io.BytesIO(content[:end] + MORE + content[end:])) as other:
        return other.tobytes() != image.tobytes()


def _bits(image: Any) -> int:
    """Bits of a channel in the file, which Pillow may cut to eight without a word."""
    if image.mode.startswith(("I", "F")):
        return 16
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,)))
    if image.format == "PNG":
        modes = [tile[3] if isinstance(tile[3], str) else tile[3][0] for tile in image.tile]
        return 16 if any(";16" in mode for mode in modes) else 8
    return 8
