"""The pictures that a run leaves for its report: `pictures/FOLDER/NAME.png`."""

import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.io.files import new_file
from kimiajax.shapes import UInt8


@dataclass(frozen=True)
class Picture:
    """Attributes:
    name: of its file, without its ending.
    pixels: gray [h w] or RGB [h w 3].
    about: what it shows, as JSON takes it.
    """

    name: str
    pixels: UInt8[np.ndarray, "h w ..."]
    about: dict[str, Any]


def write_pictures(out: Path, folder: str, pictures: Iterable[Picture], most: int) -> list[dict[str, Any]]:
    """Writes pictures and gives what a record says of them: the file, from the run's folder, and what it shows.

    Args:
        out: the run's folder.
        folder: theirs, within `pictures`.
        pictures: to write; larger ones are made smaller.
        most: the longer side of the largest, in pixels.
    """
    from PIL import Image

    records = []
    for picture in pictures:
        image = Image.fromarray(np.ascontiguousarray(picture.pixels))
        image.thumbnail((most, most), Image.Resampling.BOX)
        path = out / "pictures" / folder / f"{picture.name}.png"
        with new_file(path) as aside:
            image.save(aside, format="PNG", optimize=True)
        records.append({"file": path.relative_to(out).as_posix(), **picture.about})
    return records


def is_picture(out: Path, file: str) -> bool:
    """Whether a record's file is there, whole, a PNG, and within the run's folder."""
    from PIL import Image

    path = out / file
    if not path.resolve().is_relative_to(out.resolve()):
        return False
    try:
        with warnings.catch_warnings(action="error"), Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except Exception:  # whatever a damaged file makes Pillow raise
        return False
    return True


def clear_pictures(out: Path, folder: str) -> None:
    """Removes what `write_pictures` left in a folder."""
    shutil.rmtree(out / "pictures" / folder, ignore_errors=True)
