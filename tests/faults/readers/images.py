"""Folders of images."""

import io
import shutil

import numpy as np
from PIL import Image
from support.image_cases import CASES

from faults.readers.fuzzing import BLOWS, NUMBERS, asked, chooser, damaged, fuzz, put_entry
from kimiajax.data.open_scans import open_scans
from kimiajax.data.patches import cut_patches
from kimiajax.data.sources.source import PatchSource

WRITTEN = (  # of `CASES`
    *("TIFF LZW tiles, 2 planes", "TIFF JPEG tiles, 4:2:0, tables apart True", "TIFF pages, a mask of everything"),
    *(
        "TIFF pages, a pyramid below",
        "TIFF raw, a table, 4 bits",
        "JPEG, a preview behind",
        "PNG, a table",
        "BMP, runs",
    ),
)


def images():
    """An image of 8 x 8 pixels as every kind of file that is read and as some that are not; others of rare kinds."""
    pixels = np.random.default_rng(3).integers(40, 180, (8, 8), dtype=np.uint8)
    gray, colour = Image.fromarray(pixels), Image.fromarray(np.stack([pixels] * 3, axis=-1))
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = [
        *((gray, "PNG", {}), (colour, "PNG", {}), (gray.convert("P"), "PNG", {}), (gray.convert("1"), "PNG", {})),
        *((gray, "JPEG", {}), (gray, "JPEG", {"progressive": True}), (colour, "JPEG", {"exif": turned})),
        *((colour, "TIFF", {"compression": kind}) for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        *((gray, "TIFF", {}), (gray.convert("1"), "TIFF", {"compression": "group4"}), (gray, "BMP", {})),
        *(
            (gray.convert("I;16"), "TIFF", {}),
            (colour.convert("CMYK"), "JPEG", {}),
            (colour.convert("RGBA"), "PNG", {}),
        ),
        *((gray, "GIF", {}), (gray, "WEBP", {})),
    ]
    files = []
    for image, kind, options in kinds:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        files.append(stream.getvalue())
    return files + [CASES[name].content for name in WRITTEN]


def see_folder(path):
    """Reads every patch of a folder."""
    with open_scans(path) as source:
        manifest = cut_patches(source)
        assert len(source.names) == len(source) == manifest.num_scans
        patches = PatchSource(source, manifest.patches)
        for place, patch in enumerate(manifest.patches):
            pixels = patches[place].pixels
            assert 0 <= patch.scan < len(source)
            assert (pixels.shape, pixels.dtype) == ((source.patch_size,) * 2, np.uint8)
    return True


def lay_out(path, content):
    """An image for each of two scans, for training and test."""
    places = [path / f"{split}/s{scan}/0.png" for split in ("train", "test") for scan in range(2)]
    for place in places:
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
    return places


def folders_of_damaged_images(folder):
    whole = images()
    places = lay_out(folder, whole[0])

    def read(blows):
        place = places[blows[-1] % len(places)]
        place.write_bytes(damaged(blows, whole))
        try:
            asked(lambda: see_folder(folder), folder)
        finally:
            place.write_bytes(whole[0])

    return fuzz(read, BLOWS)


def folders_of_other_things(folder):
    contents = [*images()[:2], *images()[:2], b"", b"no image", b'{"synthetic": 1}', b"[" * 10**4]

    def read(number):
        choose, path = chooser(number), folder / "x"
        lay_out(path, contents[0])
        for _ in range(choose(4)):
            put_entry(path, choose, contents)
        try:
            asked(lambda: see_folder(path), path)
        finally:
            shutil.rmtree(path)

    return fuzz(read, NUMBERS)
