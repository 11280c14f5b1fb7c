"""Whole slides made here: pyramid TIFFs of drawn tissue."""

import io
import zlib
from unittest import mock

import numpy as np
import tifffile
from PIL import Image

from kimiajax.data.sources.synthetic import Tissue, draw_tissue

SIZE, TILE = 64, 128


def draw(seed, height=448, width=512):
    rng = np.random.default_rng(seed)
    return draw_tissue(Tissue.draw(rng), height, width, rng)


def jpeg_tiles(rgb):
    """Tiles as Pillow compresses them; tifffile itself knows no JPEG without a further package."""
    high, wide = (-(-n // TILE) * TILE for n in rgb.shape[:2])
    padded = np.pad(rgb, ((0, high - rgb.shape[0]), (0, wide - rgb.shape[1]), (0, 0)), mode="edge")
    for row in range(0, high, TILE):
        for col in range(0, wide, TILE):
            content = io.BytesIO()
            tile = Image.fromarray(padded[row : row + TILE, col : col + TILE])
            tile.save(content, "JPEG", quality=95, subsampling=0)
            yield content.getvalue()


def write_slide(path, gray, mpp=0.5, levels=2, jpeg=True, resolution=True):
    """An RGB pyramid in tiles, each level the mean of 2 x 2 pixels of the one before."""
    per_cm = 1e4 / mpp
    encoded = mock.patch.object(tifffile.TIFF, "COMPRESSORS", {7: None, 32946: zlib.compress})  # 7: JPEG, ready-made
    with encoded, tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            rgb = np.repeat(gray[..., None], 3, axis=2)
            options = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"} if resolution else {}
            if jpeg:
                options |= {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (1, 1)}
            else:
                options |= {"compression": "deflate", "photometric": "rgb"}
            tiff.write(
                jpeg_tiles(rgb) if jpeg else rgb,
                shape=rgb.shape,
                dtype=rgb.dtype,
                tile=(TILE, TILE),
                subfiletype=1 if level else 0,
                **options,
            )
            gray = np.asarray(Image.fromarray(gray).reduce(2))
            per_cm /= 2
    return path


def write_tiff(path, gray, per_unit=None, unit="NONE", description=None, channels=3, **options):
    """One level in tiles, without loss: so many pixels per unit across and down, and a description."""
    pixels = np.repeat(gray[..., None], 3, axis=2) if channels == 3 else gray
    if per_unit is not None:
        options["resolution"] = per_unit if isinstance(per_unit, tuple) else (per_unit, per_unit)
        options["resolutionunit"] = unit
    options["photometric"] = "rgb" if channels == 3 else "minisblack"
    options = {"tile": (TILE, TILE), "compression": "deflate", "metadata": None, "description": description, **options}
    tifffile.imwrite(path, pixels, **options)
    return path


def aperio(said=""):
    """The description of an .svs, with what else it says: "|MPP = 0.5"."""
    return f"Aperio Image Library v10\n512x448 ({TILE}x{TILE}) JPEG/RGB Q=70{said}"


def ome(said):
    """The description of an OME-TIFF of one image, whose pixels have these attributes besides."""
    pixels = 'DimensionOrder="XYCZT" Type="uint8" SizeX="512" SizeY="448" SizeC="3" SizeZ="1" SizeT="1"'
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" {pixels} {said}/></Image></OME>'
    )


def cut(file, share):
    """Leaves a share of a file, from its start."""
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    return file
