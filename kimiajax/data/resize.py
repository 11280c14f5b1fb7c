"""From patches to images of a network's size."""

import numpy as np

from kimiajax.shapes import UInt8

FILTERS = ("nearest", "bilinear", "box", "reduce_bilinear")  # nearest is what Keras 2.0's image loader did


def resize(patch: UInt8[np.ndarray, "h w"], size: int, filter: str) -> UInt8[np.ndarray, "s s"]:
    """Resizes gray values to `size` x `size` with one of `FILTERS`.

    All but one are Pillow's. `reduce_bilinear` takes the mean of whole blocks first, 4 x 4 from 1000 pixels to 224, and
    goes on bilinearly: the fastest, and another picture.
    """
    from PIL import Image  # an image library is needed here only, and a GPU image may hold none

    if patch.shape == (size, size):
        return patch
    image = Image.fromarray(patch)
    if filter == "reduce_bilinear":
        image = image.reduce(max(1, min(patch.shape) // size))
        filter = "bilinear"
    return np.asarray(image.resize((size, size), Image.Resampling[filter.upper()]))
