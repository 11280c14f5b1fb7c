"""The fast convolutions against plain ones, in double precision where nothing but a mistake can differ."""

import functools
from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.networks import randomise

from kimiajax.errors import UserError
from kimiajax.models import conv, conv_autotune, winograd
from kimiajax.models.conv import KEPT, Conv, avg_pool, convolving, max_pool
from kimiajax.models.conv_autotune import Choice, choose_way
from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.training.freezing import TrainableBlocks
from kimiajax.training.steps import Batch, Training, gradients_of

SIZES = [(3, 3), (5, 5), (1, 7), (7, 1), (3, 1), (1, 1)]


@pytest.fixture
def setting(rng):
    """A layer of some size and padding, its variables and its input; 11 x 14 pixels are no whole number of tiles."""

    def build(size, padding):
        layer, x = Conv(5, size, padding=padding), jnp.asarray(rng.standard_normal((2, 11, 14, 8)))
        shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
        return layer, jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), shapes), x

    return build


def output(way, layer, variables, x):
    with convolving(way):
        return layer.apply(variables, x, mutable=[KEPT])[0]


def differences(layer, variables, x, rng):
    """Of outputs and of gradients by the input, kernel and bias, the largest between fast and plain."""
    weights = rng.standard_normal(output("plain", layer, variables, x).shape)

    @functools.partial(jax.jit, static_argnums=0)
    def all_of(way, x, variables):
        def value(x, params):
            y = output(way, layer, {**variables, "params": params}, x)
            return (y * weights).sum(), y

        (_, y), gradients = jax.value_and_grad(value, (0, 1), has_aux=True)(x, variables["params"])
        # inference takes another way than differentiation does
        return [output(way, layer, variables, x), y, *jax.tree.leaves(gradients)]

    pairs = zip(*(all_of(way, x, variables) for way in ("plain", "fast")), strict=True)
    return [float(jnp.abs(one - other).max()) for one, other in pairs]


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("size", SIZES)
def test_fast_outputs_and_gradients_are_those_of_plain_convolutions(setting, rng, size, padding):
    with jax.enable_x64(True):
        assert max(differences(*setting(size, padding), rng)) < 1e-11


def wrong_constant(tile, side, real=winograd._matrices):
    matrices = real(tile, side)
    of_input = matrices.of_input.copy()
    of_input[1, 2] += 0.1
    return matrices._replace(of_input=of_input)


def test_an_image_too_large_for_the_cache_goes_in_strips_with_the_same_result(rng, monkeypatch):
    x = jnp.asarray(rng.standard_normal((2, 22, 17, 4)), jnp.float32)
    kept = winograd.transformed(jnp.asarray(rng.standard_normal((3, 3, 4, 5)), jnp.float32), (4, 4))
    whole = winograd._winograd(x, kept, (3, 3), (1, 1))
    monkeypatch.setattr(winograd, "HELD", 0)
    for strip, rows in ((0, 1), (3 * 5 * 36 * 4 * 4, 3)):
        monkeypatch.setattr(winograd, "STRIP", strip)
        jaxpr = str(jax.make_jaxpr(lambda x: winograd._winograd(x, kept, (3, 3), (1, 1)))(x))
        assert f"length={2 * 6 // rows}" in jaxpr
        np.testing.assert_allclose(winograd._winograd(x, kept, (3, 3), (1, 1)), whole, atol=1e-4)
    monkeypatch.setattr(winograd, "READ_AGAIN", 0)
    assert "scan" not in str(jax.make_jaxpr(lambda x: winograd._winograd(x, kept, (3, 3), (1, 1)))(x))


@pytest.mark.parametrize("size", winograd.TILES)
def test_kernels_are_folded_as_programs_transform_them(rng, size):
    kernel, tile = rng.standard_normal((*size, 4, 5)), winograd.TILES[size]
    with jax.enable_x64(True):
        in_program = winograd.transformed(jnp.asarray(kernel), tile)
        np.testing.assert_allclose(winograd.folded(kernel, tile), in_program, rtol=0, atol=1e-12)


def test_a_wrong_constant_shows_in_outputs_and_gradients(setting, rng, monkeypatch):
    monkeypatch.setattr(winograd, "_matrices", wrong_constant)
    with jax.enable_x64(True):
        inferred, trained, by_input, by_bias, by_kernel = differences(*setting((3, 3), "SAME"), rng)
    assert min(inferred, trained, by_input, by_kernel) > 1e-2
    assert by_bias < 1e-11


def test_a_kept_kernel_of_other_weights_shows_in_inference_alone(setting, rng):
    """What is differentiated is computed from the kernel itself."""
    with jax.enable_x64(True):
        layer, variables, x = setting((3, 3), "SAME")
        stale = {**variables, KEPT: {"kernel": winograd.transformed(2 * variables["params"]["kernel"], (4, 4))}}
        inferred, *others = differences(layer, stale, x, rng)
    assert inferred > 1
    assert max(others) < 1e-11


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 11, 14, 3)])
def test_fast_pools_are_plain_pools(rng, shape):
    x = jnp.asarray(rng.standard_normal(shape), np.float32)
    pools = [lambda: max_pool(x, 2, 2), lambda: max_pool(x, 3, 2)]
    pools += [lambda counted=counted: avg_pool(x, 3, count_padding=counted) for counted in (True, False)]
    for pool in pools:
        with convolving("fast"):
            fast = pool()
        np.testing.assert_allclose(fast, pool(), atol=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2)])
def test_a_pool_of_what_was_rectified_is_right_in_bfloat16_too(rng, window, stride):
    """jaxlib 0.12.0 fuses the two into numbers of 1e38, after two convolutions, on a CPU."""
    kernels = [jnp.asarray(0.1 * rng.standard_normal(shape), jnp.float32) for shape in ((3, 3, 3, 64), (3, 3, 64, 64))]

    @functools.partial(jax.jit, static_argnums=2)
    def run(x, kernels, dtype):
        x = x.astype(dtype)
        for kernel in kernels:
            x = jax.nn.relu(conv.convolve(x, kernel.astype(dtype)))
        return max_pool(x, window, stride)

    x = jnp.asarray(rng.random((2, 32, 32, 3)), jnp.float32)
    exact, rough = run(x, kernels, jnp.float32), run(x, kernels, jnp.bfloat16)
    assert rough.dtype == jnp.bfloat16
    assert np.abs(exact - rough).max() < 0.02 * np.abs(exact).max()


def errors(name, rng, size, last):
    """Of each block, how far plain and fast are in single precision from double, relative to its output."""
    backbone = BACKBONES[name]
    blocks = backbone.up_to(last)
    variables = backbone.init(rng, size, blocks)
    images = rng.random((2, size, size, 3), np.float32)

    def taps(backbone, variables, images):
        run = jax.jit(lambda variables, x: backbone.apply(variables, x, blocks)[1])
        return jax.tree.map(np.asarray, run(variables, images))

    with jax.enable_x64(True):
        exact = taps(backbone, *jax.tree.map(lambda leaf: leaf.astype(np.float64), (variables, images)))
    found = []
    for way in ("plain", "fast"):
        got = taps(replace(backbone, conv=way), variables, images)
        assert {tap.dtype for tap in got.values()} == {np.dtype(np.float32)}
        found.append({block: np.linalg.norm(got[block] - exact[block]) / np.linalg.norm(exact[block]) for block in got})
    return found


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("name", "size", "last"),
    [
        ("vgg16", 112, "block5"),
        ("inception_v3", 107, "mixed4"),  # by then each size of kernel has come up
        pytest.param("inception_v3", 107, "mixed10", marks=pytest.mark.parity),
    ],
)
def test_fast_rounding_is_at_most_twice_that_of_plain_at_every_block(rng, name, size, last):
    """On a few pixels it may be more: most of what plain convolutions add up is padding there."""
    plain, fast = errors(name, rng, size, last)
    assert all(fast[block] < 2 * plain[block] for block in plain), (plain, fast)
    assert any(fast[block] != plain[block] for block in plain)


@pytest.mark.optimised
def test_points_that_round_worse_are_found_out(rng, monkeypatch):
    """Lavin and Gray's own points."""
    monkeypatch.setitem(winograd.POINTS, 6, (0.0, 1.0, -1.0, 2.0, -2.0))
    winograd._matrices.cache_clear()
    plain, fast = errors("vgg16", rng, 112, last="block1")
    winograd._matrices.cache_clear()
    assert any(fast[block] > 2 * plain[block] for block in plain)


def gradients(way, name, first, blocks, variables, batch):
    """Of one training step of the blocks from some block on, with the running statistics after it."""
    backbone = replace(BACKBONES[name], conv=way, dropout=0.0)
    training = Training(Classifier(backbone, backbone.span(first, backbone.bottleneck), 3), optax.sgd(0.1), blocks)
    state = training.start(variables, jax.random.key(0))
    found, _, statistics = jax.jit(lambda state, batch: gradients_of(training, state, batch))(state, batch)
    return jax.tree.leaves((found, {**state.batch_stats, **statistics}))


@pytest.mark.parametrize(
    ("name", "first", "shape", "blocks"),
    [
        ("vgg16", "block4", (4, 4, 256), TrainableBlocks(("block5", "head"))),
        ("inception_v3", "mixed9", (2, 3, 1280), TrainableBlocks(("mixed10", "head"))),
        ("inception_v3", "mixed9", (2, 3, 1280), TrainableBlocks(("mixed10", "head"), frozen_bn="keras2017")),
    ],
)
def test_a_fast_training_step_has_the_gradients_and_statistics_of_a_plain_one(rng, name, first, shape, blocks):
    backbone = BACKBONES[name]
    span = backbone.span(first, backbone.bottleneck)
    whole = backbone.shapes(backbone.smallest, backbone.trunk)
    variables = randomise({kind: {b: part[b] for b in span if b in part} for kind, part in whole.items()}, rng)
    bottleneck = {"vgg16": (1, 1, 512), "inception_v3": (2048,)}[name]
    variables["params"]["head"] = Classifier(backbone, span, 3).init_head(jax.random.key(0), bottleneck)
    mask = np.arange(5) < 4  # the last is padding
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        batch = Batch(rng.random((5, *shape)), np.arange(5) % 3, mask, np.arange(5))
        plain, fast = (gradients(way, name, first, blocks, variables, batch) for way in ("plain", "fast"))
    for one, other in zip(plain, fast, strict=True):
        assert np.abs(one - other).max() <= 1e-9 * max(1, np.abs(one).max())


def test_any_batch_size_serves_and_folded_variables_give_the_same(rng):
    backbone = replace(BACKBONES["vgg16"], conv="fast")
    blocks = backbone.up_to("block2")
    variables = backbone.init(rng, 32, blocks)
    folded = backbone.fold_for_inference(variables, 32, blocks)
    assert folded[KEPT]["block2"]["conv2"]["kernel"].shape == (6, 6, 128, 128)
    images = rng.random((6, 32, 32, 3), np.float32)
    apply = jax.jit(lambda variables, x: backbone.apply(variables, x, blocks)[0])
    whole = apply(variables, images)
    for count in (1, 5, 6):
        np.testing.assert_allclose(apply(folded, images[:count]), whole[:count], atol=1e-5)


def test_few_images_at_once_are_what_fits_and_dense_blocks_take_all():
    backbone = replace(BACKBONES["vgg16"], conv="fast")
    x = jnp.zeros((32, 224, 224, 3))
    shapes = backbone.shapes(224, backbone.up_to("fc1"))

    def run(arrays, x, blocks):
        return BACKBONES["vgg16"].apply(arrays, x, blocks)[1], {}

    parts = backbone._parts(run, shapes, x, backbone.up_to("fc1"))
    assert parts == [(("block1", "block2", "block3"), 1), (("block4",), 2), (("block5",), 4)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"precision": "bfloat16"}, "it computes in float32, not in bfloat16"),
        ({"devices": jax.devices() * 2}, "it is for one device, and there are 2"),
        ({"devices": [mock.Mock(jax.Device, platform="gpu")]}, "it is for a CPU, and this is a GPU"),
    ],
)
def test_where_fast_cannot_be_had_it_is_refused_and_auto_is_plain(options, reason):
    backbone = BACKBONES["vgg16"]
    with pytest.raises(UserError, match=f"--conv fast: {reason}; leave --conv out"):
        choose_way("fast", backbone, 32, 8, **options)
    assert choose_way("auto", backbone, 32, 8, **options) == Choice("plain", reason)
    assert choose_way("plain", backbone, 32, 8, **options).way == "plain"


@pytest.mark.parametrize(("fast", "way"), [(1.0, "fast"), (1.9, "plain"), (2.0, "plain")])
def test_auto_takes_what_is_clearly_faster_and_keeps_the_measurement(tmp_path, monkeypatch, fast, way):
    measured = mock.Mock(return_value={"plain": 2.0, "fast": fast})
    monkeypatch.setattr(conv_autotune, "_measured", measured)
    for _ in range(2):
        assert choose_way("auto", BACKBONES["vgg16"], 32, 8, cache=tmp_path).way == way
    assert measured.call_count == 1
    layer, shape, images = measured.call_args.args
    assert (layer.features, layer.size, shape, images) == (512, (3, 3), (1, 4, 4, 512), 2)
    choose_way("auto", BACKBONES["vgg16"], 64, 8, cache=tmp_path)
    assert measured.call_count == 2
    for kept in (tmp_path / "ways").iterdir():
        kept.write_text("{")
    choose_way("auto", BACKBONES["vgg16"], 32, 8, cache=tmp_path)
    assert measured.call_count == 3


@pytest.mark.autotunes
def test_both_ways_are_measured_and_a_network_without_a_fast_way_is_plain():
    layer, shape = conv_autotune._costliest(BACKBONES["inception_v3"], 75)
    assert (layer.features, layer.size, layer.padding) == (192, (3, 3), "VALID")
    assert all(seconds > 0 for seconds in conv_autotune._measured(layer, shape, 1).values())
    assert choose_way("auto", BACKBONES["cnn"], 32, 8).way == "plain"


def test_a_test_that_would_measure_unasked_is_stopped():
    with pytest.raises(AssertionError, match="name one"):
        choose_way("auto", BACKBONES["vgg16"], 32, 8)


def test_auto_goes_on_as_a_run_began_where_it_can():
    assert choose_way("auto", BACKBONES["vgg16"], 32, 8, before="fast").way == "fast"
    assert choose_way("auto", BACKBONES["vgg16"], 32, 8, before="plain").way == "plain"
    assert choose_way("plain", BACKBONES["vgg16"], 32, 8, before="fast").way == "plain"
    assert choose_way("auto", BACKBONES["vgg16"], 32, 8, before="fast", precision="bfloat16").way == "plain"
