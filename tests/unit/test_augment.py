"""The warp on the device against scipy's, and the draws against Keras' formulas."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from kimiajax.training import augment as module
from kimiajax.training.augment import BITS, KERAS_2017, KERAS_TODAY, STRONG, augment, draw, grade, matrix_of, warp

BOTH = [KERAS_2017, KERAS_TODAY]


def by_scipy(images, draws, augmentation):
    """Each image under its transform, in float64, as Keras calls scipy."""
    results = []
    for image, fixed, mirrored in zip(images, np.asarray(draws.matrices), np.asarray(draws.mirrored)):
        matrix = fixed / 2**BITS
        centre = (np.array(image.shape) + augmentation.centre) / 2
        offset = centre - matrix @ centre
        result = scipy.ndimage.affine_transform(
            image.astype(np.float64), matrix, offset, order=augmentation.order, mode="nearest"
        )
        results.append(result[:, ::-1] if mirrored else result)
    return np.stack(results)


def keys_of(seed, count):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("augmentation", BOTH)
@pytest.mark.parametrize("shape", [(64, 64), (31, 40)])
def test_the_warp_is_scipys_on_the_same_draws(rng, augmentation, shape):
    images = rng.integers(0, 256, (16, *shape), dtype=np.uint8)
    result = np.asarray(augment(augmentation, jnp.asarray(images), keys_of(0, 16)))
    assert result.dtype == (np.uint8 if augmentation.order == 0 else np.float32)
    expected = by_scipy(images, draw(augmentation, keys_of(0, 16)), augmentation)
    np.testing.assert_allclose(result / 255, expected / 255, rtol=0, atol=0 if augmentation.order == 0 else 1e-6)


@pytest.mark.parametrize(
    "fault",
    [
        {"centre": -1},
        {"order": 1},
        {"sheared": "columns"},
        {"shear": np.deg2rad(0.2)},
        {"mirror": False},
        {"zoom": 0.19},
    ],
)
def test_the_oracle_notices_another_convention(rng, fault):
    images = rng.integers(0, 256, (16, 64, 64), dtype=np.uint8)
    expected = by_scipy(images, draw(KERAS_2017, keys_of(0, 16)), KERAS_2017)
    wrong = augment(replace(KERAS_2017, **fault), jnp.asarray(images), keys_of(0, 16))
    assert np.abs(np.asarray(wrong, np.float64) - expected).max() > 10


def test_matrices_are_keras_formulas():
    """2017: rows then columns. Today: x and y exchanged, so that shear moves the other axis."""
    angle, first, second = 0.17, 0.9, 1.15
    shear = np.array([[1, -np.sin(angle)], [0, np.cos(angle)]])
    expected = shear @ np.diag([first, second])
    exchange = np.array([[0, 1], [1, 0]])
    arguments = [jnp.float32(value) for value in (angle, first, second)]
    np.testing.assert_allclose(matrix_of(*arguments, "rows") / 2**BITS, expected, atol=2**-BITS)
    np.testing.assert_allclose(
        matrix_of(*arguments, "columns") / 2**BITS, exchange @ expected @ exchange, atol=2**-BITS
    )


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
def test_todays_transform_is_that_of_the_installed_keras(rng):
    """Its own function on its own parameters, square: of others it exchanges height and width for the centre."""
    from keras._tf_keras.keras.preprocessing.image import apply_affine_transform

    image = rng.integers(0, 256, (24, 24), dtype=np.uint8)
    degrees, zx, zy = 11.0, 0.875, 1.125
    matrix = matrix_of(jnp.float32(np.deg2rad(degrees)), jnp.float32(zx), jnp.float32(zy), KERAS_TODAY.sheared)
    ours = warp(
        jnp.asarray(image[None]), module.Draws(matrix[None], jnp.zeros(1, bool)), order=1, centre=KERAS_TODAY.centre
    )
    options = {"shear": degrees, "zx": zx, "zy": zy, "row_axis": 0, "col_axis": 1, "channel_axis": 2}
    keras = apply_affine_transform(image[:, :, None].astype(np.float64), **options, fill_mode="nearest", order=1)
    assert np.abs(np.asarray(ours[0]) - keras[:, :, 0]).max() < 0.2, "a matrix rounded to 2**-16 moves no place by more"


def test_draws_fill_their_ranges_evenly():
    draws = draw(KERAS_2017, keys_of(1, 4000))
    matrices = np.asarray(draws.matrices) / 2**BITS
    angles = np.arctan2(-matrices[:, 0, 1], matrices[:, 1, 1])
    first, second = matrices[:, 0, 0], np.hypot(matrices[:, 0, 1], matrices[:, 1, 1])
    for values, low, high in ((angles, -0.2, 0.2), (first, 0.8, 1.2), (second, 0.8, 1.2)):
        assert low - 1e-4 < values.min() < low + 0.01
        assert high - 0.01 < values.max() < high + 1e-4
        assert abs(values.mean() - (low + high) / 2) < 0.01
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05, "drawn apart"
    assert 0.45 < np.mean(draws.mirrored) < 0.55


def test_an_images_transform_depends_on_its_key_alone(rng):
    images, keys = jnp.asarray(rng.integers(0, 256, (4, 32, 32), dtype=np.uint8)), keys_of(2, 4)
    whole, part = augment(KERAS_2017, images, keys), augment(KERAS_2017, images[2:], keys[2:])
    np.testing.assert_array_equal(whole[2:], part)


def test_the_largest_images_stay_within_32_bits(rng):
    """The corner of 8,000 pixels under the largest zoom and shear."""
    image = np.zeros((8000, 8), np.uint8)
    image[-1] = 200
    matrix = matrix_of(jnp.float32(0.2), jnp.float32(1.2), jnp.float32(1.2), "rows")
    result = warp(jnp.asarray(image[None]), module.Draws(matrix[None], jnp.zeros(1, bool)), order=0, centre=1)[0]
    assert (np.asarray(result[-600:]) == 200).all(), "beyond the rim there is the rim"
    assert (np.asarray(result[:-700]) == 0).all()


def test_strong_augmentation_turns_every_way_and_grades_within_black_and_white(rng):
    draws = draw(STRONG, keys_of(0, 4000))
    matrices = np.asarray(draws.matrices) / 2**BITS
    angles = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])  # of the first column, which shear leaves
    counts, _ = np.histogram(angles, bins=8, range=(-np.pi, np.pi))
    assert counts.min() > 400, "of 500 in each eighth"
    lengths = np.linalg.norm(matrices[:, :, 0], axis=1)
    assert 0.7 <= lengths.min() < 0.72 < 1.28 < lengths.max() <= 1.3
    images = jnp.asarray(rng.integers(0, 256, (64, 32, 32), dtype=np.uint8))
    result = np.asarray(augment(STRONG, images, keys_of(1, 64)))
    assert result.dtype == np.float32
    assert result.min() >= 0
    assert result.max() <= 255
    plain = np.asarray(warp(images, draw(STRONG, keys_of(1, 64)), order=1, centre=STRONG.centre))
    assert np.abs(result - plain).max() > 20


def test_what_strong_augmentation_draws_of_an_image_does_not_depend_on_another_of_its_draws():
    draws, keys = draw(STRONG, keys_of(0, 3000)), keys_of(0, 3000)
    first, second = np.moveaxis(np.asarray(draws.matrices) / 2**BITS, 2, 0)  # columns
    turn = np.arctan2(first[:, 1], first[:, 0])
    shear = np.arctan2(second[:, 1], second[:, 0]) - turn - np.pi / 2
    shear = (shear + np.pi) % (2 * np.pi) - np.pi
    zooms = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)
    flat = jnp.tile(jnp.array([[100.0, 200.0]]), (3000, 1, 1))
    graded = np.asarray(grade(STRONG, flat, keys))[:, 0]
    contrast, brightness = graded[:, 1] - graded[:, 0], graded.mean(axis=1)
    drawn = np.corrcoef([turn, shear, *zooms, np.asarray(draws.mirrored), contrast, brightness])
    assert np.abs(drawn - np.eye(7)).max() < 0.1, "0.018 is one standard deviation"


def test_a_grade_keeps_the_order_of_gray_values_and_is_the_keys_alone(rng):
    images = jnp.asarray(np.linspace(60, 180, 48, dtype=np.float32).reshape(1, 4, 12).repeat(50, 0))
    graded = np.asarray(grade(STRONG, images, keys_of(3, 50)))
    assert (np.diff(graded.reshape(50, -1), axis=1) > 0).all()
    contrast = (graded[:, -1, -1] - graded[:, 0, 0]) / 120
    assert 0.75 <= contrast.min() < 0.8 < 1.2 < contrast.max() <= 1.25
    added = graded.mean(axis=(1, 2)) - 120
    assert -25.5 <= added.min() < -20 < 20 < added.max() <= 25.5
    np.testing.assert_array_equal(graded[7:9], grade(STRONG, images[:2], keys_of(3, 50)[7:9]))


@pytest.mark.parametrize("augmentation", BOTH)
def test_keras_augmentations_turn_and_grade_nothing(augmentation):
    assert not augmentation.turn
    assert augmentation.contrast == augmentation.brightness == 0
