import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kimiajax.errors import UserError
from kimiajax.models.head import Classifier, drop
from kimiajax.models.registry import BACKBONES


def size_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "with_top", "without_top"),
    [("vgg16", 138_357_544, 14_714_688), ("inception_v3", 23_851_784, 21_802_784)],
)
def test_networks_have_the_published_number_of_parameters(name, with_top, without_top):
    backbone = BACKBONES[name]
    assert size_of(backbone.shapes(224)) == with_top
    assert size_of(backbone.shapes(224, backbone.trunk)) == without_top


@pytest.mark.parametrize(("name", "trainable"), [("vgg16", 7_079_424), ("inception_v3", 11_114_880)])
def test_the_papers_blocks_have_the_parameters_it_trains(name, trainable):
    backbone = BACKBONES[name]
    params = backbone.shapes(224)["params"]
    assert size_of([params[block] for block in backbone.fine_tuned]) == trainable


@pytest.mark.parametrize(
    ("name", "size", "shapes"),
    [
        ("vgg16", 224, {"block4": (14, 14, 512), "block5": (7, 7, 512), "fc2": (4096,), "predictions": (1000,)}),
        ("vgg16", 32, {"block5": (1, 1, 512)}),
        ("inception_v3", 224, {"mixed8": (5, 5, 1280), "mixed10": (5, 5, 2048), "pooled": (2048,)}),
        ("inception_v3", 299, {"stem": (35, 35, 192), "mixed7": (17, 17, 768), "mixed10": (8, 8, 2048)}),
        ("inception_v3", 75, {"mixed10": (1, 1, 2048)}),
        ("cnn", 224, {"block4": (7, 7, 256), "pooled": (256,)}),
    ],
)
def test_taps_have_the_shapes_that_are_documented(name, size, shapes):
    backbone = BACKBONES[name]
    blocks = backbone.up_to(backbone.last_of(shapes))
    image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    taps = jax.eval_shape(lambda v, x: backbone.apply(v, x, blocks)[1], backbone.shapes(size, blocks), image)
    assert {block: taps[block].shape for block in shapes} == {block: (2, *shape) for block, shape in shapes.items()}


def test_running_the_prefix_and_then_the_tail_is_running_the_network(rng):
    backbone = BACKBONES["inception_v3"]
    variables = backbone.init(rng, 75, backbone.up_to("pooled"))
    images = rng.random((2, 75, 75, 3), np.float32)
    run = jax.jit(backbone.apply, static_argnums=2)
    whole, taps, _ = run(variables, images, backbone.up_to("pooled"))
    tail, _, _ = run(variables, taps["mixed8"], backbone.span("mixed9", "pooled"))
    np.testing.assert_allclose(tail, whole, rtol=1e-5, atol=1e-6)  # two programs, two orders of summation


def test_random_weights_keep_the_size_of_the_activations(rng):
    """Features must not vanish: 40 layers of a scale 1 % too small would."""
    for name, tap in (("vgg16", "fc2"), ("inception_v3", "pooled")):
        backbone = BACKBONES[name]
        variables = backbone.init(rng, 75, backbone.up_to(tap))
        images = rng.random((2, 75, 75, 3), np.float32)
        features, _, _ = jax.jit(backbone.apply, static_argnums=2)(variables, images, backbone.up_to(tap))
        assert 0.05 < float(jnp.sqrt(jnp.mean(features**2))) < 5


def test_kernels_are_he_scaled(rng):
    params = BACKBONES["vgg16"].init(rng, 32, ("block1", "block2"))["params"]
    kernel = params["block2"]["conv2"]["kernel"]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (3 * 3 * 128)), rel=0.02)


def test_an_unknown_block_is_refused_with_the_valid_names():
    with pytest.raises(
        UserError, match=r"unknown block 'mixed12' of inception_v3; choose from stem, mixed0, .*mixed10"
    ):
        BACKBONES["inception_v3"].up_to("mixed12")


@pytest.mark.parametrize(("name", "size"), [("vgg16", 31), ("inception_v3", 74)])
def test_too_small_an_image_is_refused(name, size):
    with pytest.raises(UserError, match=f"{size} is too small"):
        BACKBONES[name].shapes(size)


def test_the_head_drops_in_training_only(rng):
    classifier = Classifier(BACKBONES["vgg16"], (), 5)
    params = {"params": {"head": classifier.init_head(jax.random.key(0), (1, 1, 512))}}
    x = rng.random((3, 1, 1, 512), np.float32)
    quiet, _ = classifier.apply(params, x)
    again, _ = classifier.apply(params, x)
    keys = jax.random.split(jax.random.key(1), 3)
    noisy, _ = classifier.apply(params, x, dropout_keys=keys)
    assert quiet.shape == (3, 5)
    np.testing.assert_array_equal(quiet, again)
    assert not np.allclose(quiet, noisy)


def test_what_the_head_drops_of_an_input_depends_on_its_key_alone(rng):
    rows, keys = jnp.asarray(rng.random((4, 64), np.float32)), jax.random.split(jax.random.key(1), 4)
    whole, part = drop(rows, 0.5, keys), drop(rows[2:], 0.5, keys[2:])
    np.testing.assert_array_equal(whole[2:], part)
    kept = np.asarray(whole) != 0
    assert 0.35 < kept.mean() < 0.65
    np.testing.assert_allclose(np.asarray(whole)[kept], 2 * rows[kept], rtol=1e-6)


def test_bfloat16_computes_in_it_and_gives_logits_in_float32(rng, cnn):
    classifier = Classifier(cnn, cnn.trunk, 3)
    variables = cnn.init(rng, 32)
    variables["params"]["head"] = classifier.init_head(jax.random.key(0), (256,))
    images = rng.random((2, 32, 32, 3), np.float32)
    exact, _ = classifier.apply(variables, images)
    rough, statistics = classifier.apply(variables, images, dtype=jnp.bfloat16)
    assert (rough.dtype, statistics["block1"]["bn"]["mean"].dtype) == (jnp.float32, jnp.float32)
    _, taps, _ = cnn.apply(variables, images, dtype=jnp.bfloat16)
    assert taps["pooled"].dtype == jnp.bfloat16
    error = np.abs(exact - rough).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.05, "8 bits: neither float32 nor nonsense"
