import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kimiajax.data.pixels import gray_to_unit_rgb, resize, resize_all


def test_box_is_the_mean_of_whole_blocks_and_nearest_takes_one_pixel():
    patch = np.array([[0, 10, 100, 100], [20, 30, 100, 100]] * 2, np.uint8)
    np.testing.assert_array_equal(resize(patch, 2, "box"), [[15, 100], [15, 100]])
    assert set(np.unique(resize(patch, 2, "nearest"))) <= set(np.unique(patch))


@pytest.mark.parametrize("filter", ["nearest", "bilinear", "box"])
def test_resizing_is_pillows_whatever_the_thread_and_order(rng, filter):
    patches = [rng.integers(0, 255, (40, 40), dtype=np.uint8) for _ in range(9)]
    expected = [np.asarray(Image.fromarray(p).resize((12, 12), Image.Resampling[filter.upper()])) for p in patches]
    np.testing.assert_array_equal(resize_all(iter(patches), 9, 12, filter), expected)


@pytest.mark.parametrize("library", [np, jnp])
def test_gray_becomes_three_equal_channels_in_the_unit_range(library):
    rgb = gray_to_unit_rgb(library.asarray(np.array([[[0, 51], [255, 128]]], np.uint8)))
    assert rgb.shape == (1, 2, 2, 3)
    assert rgb.dtype == np.float32
    np.testing.assert_allclose(rgb[0, :, :, 2], [[0, 0.2], [1, 128 / 255]], rtol=1e-7)
