import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kimiajax.data.resize import resize
from kimiajax.models.inputs import gray_to_unit_rgb, native_input


def test_box_is_the_mean_of_whole_blocks_and_nearest_takes_one_pixel():
    patch = np.array([[0, 10, 100, 100], [20, 30, 100, 100]] * 2, np.uint8)
    np.testing.assert_array_equal(resize(patch, 2, "box"), [[15, 100], [15, 100]])
    assert set(np.unique(resize(patch, 2, "nearest"))) <= set(np.unique(patch))


@pytest.mark.parametrize("filter", ["nearest", "bilinear", "box"])
def test_resizing_is_pillows(rng, filter):
    patch = rng.integers(0, 255, (40, 40), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(patch).resize((12, 12), Image.Resampling[filter.upper()]))
    np.testing.assert_array_equal(resize(patch, 12, filter), expected)


def test_reducing_first_takes_the_mean_of_whole_blocks_and_is_another_picture(rng):
    patch = rng.integers(0, 255, (40, 40), dtype=np.uint8)
    blocks = patch.reshape(20, 2, 20, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(resize(patch, 20, "reduce_bilinear"), blocks, atol=0.5)
    assert (resize(patch, 12, "reduce_bilinear") != resize(patch, 12, "box")).any()


@pytest.mark.parametrize("library", [np, jnp])
def test_gray_becomes_three_equal_channels_in_the_unit_range(library):
    rgb = gray_to_unit_rgb(library.asarray(np.array([[[0, 51], [255, 128]]], np.uint8)))
    assert rgb.shape == (1, 2, 2, 3)
    assert rgb.dtype == np.float32
    np.testing.assert_allclose(rgb[0, :, :, 2], [[0, 0.2], [1, 128 / 255]], rtol=1e-7)


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ({"channels": "RGB", "range": [-1, 1], "mean": None, "std": None}, [10 / 127.5 - 1, 0.0, 1.0]),
        (
            {"channels": "BGR", "range": [0, 255], "mean": [103.939, 116.779, 123.68], "std": None},
            [255 - 103.939, 127.5 - 116.779, 10 - 123.68],
        ),
        (
            {"channels": "RGB", "range": [0, 1], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
            [(10 / 255 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (1 - 0.406) / 0.225],
        ),
    ],
)
def test_native_input_is_what_the_lineage_says(expected, value):
    """Of one pixel; 127 and 128 stand for 127.5, which 8 bits do not have."""
    low, high = (native_input(np.array([[[[10, green, 255]]]], np.uint8), expected)[0, 0, 0] for green in (127, 128))
    np.testing.assert_allclose((low + high) / 2, value, rtol=1e-5, atol=1e-6)
