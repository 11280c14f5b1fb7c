"""The package's public names, handed what is wrong: one line of UserError, and never a number."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.networks import TWO

import kimiajax as kj

SIDE, COUNT, WIDTH = 16, 6, 8
RNG = np.random.default_rng(5)
GRAY = RNG.integers(0, 255, (COUNT, SIDE, SIDE), dtype=np.uint8)
RGB = RNG.uniform(0, 1, (COUNT, SIDE, SIDE, 3)).astype(np.float32)
FEATURES = RNG.standard_normal((COUNT, WIDTH)).astype(np.float32)
LABELS = np.arange(COUNT) % 3
BODY = TWO.init(RNG, SIDE)
WHOLE = kj.Classifier(TWO, TWO.trunk, 3)
HEAD = kj.Classifier(TWO, (), 3)
LEARNT = {"params": {"head": HEAD.init_head(jax.random.key(0), (WIDTH,))}}
BOTH = {**BODY, "params": {**BODY["params"], **LEARNT["params"]}}
BLOCKS = kj.TrainableBlocks(("head",))
SVM = kj.fit_linear_svm(FEATURES, LABELS)


def changed(array, place, value):
    array = np.array(array)
    array[place] = value
    return array


def fit(classifier, variables, inputs, labels=LABELS, **options):
    training = kj.Training(classifier, optax.sgd(1e-3), BLOCKS)
    return kj.fit(training, variables, inputs, labels, **{"epochs": 1, "batch_size": 4, "seed": 0, **options})


def heads(inputs, labels):
    training = kj.Training(HEAD, optax.sgd(1e-3), BLOCKS)
    return kj.fit_heads(training, [LEARNT], [inputs], [labels], epochs=1, batch_size=4, seeds=[0])


def refused(message, call, *given, **options):
    with pytest.raises(kj.UserError, match=message) as caught:
        call(*given, **options)
    assert "\n" not in str(caught.value)


OF_FEATURES = {
    "svm": lambda x: kj.fit_linear_svm(x, LABELS),
    "svm predict": SVM.predict,
    "svm votes": SVM.votes,
    "gallery": lambda x: kj.nearest(FEATURES, x, 1),
    "queries": lambda x: kj.nearest(x, FEATURES, 1, "cosine"),
    "retrieve": lambda x: kj.retrieve(x, LABELS, FEATURES, LABELS, "euclidean", 2),
    "retrieve barcodes": lambda x: kj.retrieve(FEATURES, LABELS, x, LABELS, "barcode", 2),
    "predict": lambda x: kj.predict(HEAD, LEARNT, x, batch_size=4),
    "fit": lambda x: fit(HEAD, LEARNT, x),
    "apply": lambda x: HEAD.apply(LEARNT, x),
}
BAD_FEATURES = {  # what is wrong -> it, and what a message says of it
    "nan": (changed(FEATURES, (1, 2), np.nan), "(?i)nan"),
    "infinity": (changed(FEATURES, (0, 0), -np.inf), "(?i)inf|nan"),
    "jax nan": (jnp.asarray(changed(FEATURES, (1, 2), np.nan)), "(?i)nan"),
    "a row": (FEATURES[0], "shape"),
    "no columns": (FEATURES[:, :0], "shape"),
    "objects": (FEATURES.astype(object), "an array of object"),
    "text": (FEATURES.astype(str), "an array of <U"),
    "ragged": ([[1.0], [1.0, 2.0]], "no array"),
    "nothing": (None, "an array of object"),
}


@pytest.mark.parametrize("kind", BAD_FEATURES)
@pytest.mark.parametrize("name", OF_FEATURES)
def test_no_function_of_features_makes_a_number_of_what_is_none(name, kind):
    given, message = BAD_FEATURES[kind]
    refused(message, OF_FEATURES[name], given)


@pytest.mark.parametrize("name", ["svm predict", "queries", "gallery", "predict", "apply"])
def test_features_of_another_width_are_refused(name):
    refused("wide|values a row|does not fit", OF_FEATURES[name], FEATURES[:, :5])


OF_LABELS = {
    "svm": lambda y: kj.fit_linear_svm(FEATURES, y),
    "fit": lambda y: fit(HEAD, LEARNT, FEATURES, y),
    "fit_heads": lambda y: heads(FEATURES, y),
    "truth": lambda y: kj.kimia_scores(y, LABELS, 3),
    "gallery": lambda y: kj.retrieve(FEATURES, y, FEATURES, LABELS, "euclidean", 2),
    "queries": lambda y: kj.retrieve(FEATURES, LABELS, FEATURES, y, "cosine", 2),
}
BAD_LABELS = {
    "one short": (LABELS[:-1], "[56] .* for [56] "),
    "a column": (LABELS[:, None], "an array of shape"),
    "below 0": (changed(LABELS, 3, -1), r"-1 at \[3\]"),
    "beyond 32 bits": (changed(LABELS, 3, 2**32), r"4294967296 at \[3\]"),
    "fractions": (LABELS + 0.5, r"0.5 at \[0\]"),
    "nan": (changed(LABELS.astype(float), 2, np.nan), r"nan at \[2\]"),
    "truth values": (LABELS > 0, "truth values"),
    "text": (LABELS.astype(str), "an array of <U"),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
@pytest.mark.parametrize("name", OF_LABELS)
def test_no_function_of_labels_takes_what_are_none(name, kind):
    given, message = BAD_LABELS[kind]
    refused(message, OF_LABELS[name], given)


@pytest.mark.parametrize("kind", ["uint8", "int64", "float32", list, jnp.asarray])
@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_that_are_exactly_meant_are_taken(name, kind):
    OF_LABELS[name](kind(LABELS) if callable(kind) else LABELS.astype(kind))


def test_predictions_beyond_32_bits_are_wrong_and_not_cut_off():
    for beyond in (2**32, -(2**32), 2**63 - 1):
        assert float(kj.kimia_scores(np.array([0, 1]), np.array([beyond, 1]), 2).eta_p) == 0.5
    refused("predictions: nan", kj.kimia_scores, [0, 1], [0, np.nan], 2)
    refused("1 predictions for 2 labels", kj.kimia_scores, [0, 1], [0], 2)
    refused("mask: int64", kj.kimia_scores, [0, 1], [0, 1], 2, np.array([1, 0]))
    for count in (0, 1.5, float("nan"), None):
        refused("num_scans", kj.kimia_scores, [0, 1], [0, 1], count)


OF_IMAGES = {
    "extract": lambda images: kj.extract_features(TWO, BODY, images),
    "grad_cam": lambda images: kj.grad_cam(WHOLE, BOTH, images),
    "predict": lambda images: kj.predict(WHOLE, BOTH, images, batch_size=4),
    "fit": lambda images: fit(WHOLE, BOTH, images),
}
BAD_IMAGES = {
    "0 to 255": RGB * 255,
    "gray floats": GRAY.astype(np.float32),
    "below 0": RGB * 2 - 1,
    "channels first": RGB.transpose(0, 3, 1, 2),
    "RGB in 8 bits": (RGB * 255).astype(np.uint8),
    "64 bits": GRAY.astype(np.int64),
    "one image": GRAY[0],
    "nan": changed(RGB, (0, 1, 2, 0), np.nan),
    "too small": GRAY[:, :8, :8],
    "a path": "image.png",
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
@pytest.mark.parametrize("name", OF_IMAGES)
def test_no_network_takes_images_in_another_form(name, kind):
    refused("uint8|too small|an array of <U", OF_IMAGES[name], BAD_IMAGES[kind])


def test_images_as_lists_and_jax_arrays_are_taken_and_none_give_no_features():
    expected = kj.extract_features(TWO, BODY, GRAY)
    for same in (list(GRAY), jnp.asarray(GRAY)):
        np.testing.assert_array_equal(kj.extract_features(TWO, BODY, same), expected)
    assert kj.extract_features(TWO, BODY, GRAY[:0]).shape == (0, WIDTH)
    assert SVM.predict(FEATURES[:0]).shape == (0,)
    np.testing.assert_array_equal(SVM.predict(FEATURES.tolist()), SVM.predict(FEATURES.astype(np.float64)))


def test_weights_that_are_not_finite_predict_nothing_and_are_not_kept():
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), BOTH)
    refused("the scores of input 0 are not finite", kj.predict, WHOLE, broken, GRAY, batch_size=4)
    parent = kj.load_weights("cnn", "random", image_size=32)
    refused("nan .*is not finite", kj.fine_tuned, parent, broken, ("head",), "mine")


CALLS = {
    "unknown block 'mixed9'": lambda: kj.extract_taps(TWO, BODY, GRAY, ("mixed9",)),
    r"taps are a sequence: write \('two',\)": lambda: kj.extract_taps(TWO, BODY, GRAY, "two"),
    "none is named": lambda: kj.extract_taps(TWO, BODY, GRAY, ()),
    "no such form": lambda: kj.extract_taps(TWO, BODY, GRAY, ("two.max",)),
    "no layer 'head'": lambda: kj.grad_cam(WHOLE, BOTH, GRAY, layer="head"),
    "layer: 3 is no str": lambda: kj.grad_cam(WHOLE, BOTH, GRAY, layer=3),
    "classes: 0.5": lambda: kj.grad_cam(WHOLE, BOTH, GRAY, classes=0.5),
    "have no head": lambda: kj.grad_cam(WHOLE, BODY, GRAY),
    "have no head; put": lambda: WHOLE.apply(BODY, RGB),
    "no network 'vgg19'; choose from": lambda: kj.BACKBONES["vgg19"],
    "no network 'vgg19'": lambda: kj.load_weights("vgg19"),
    "is no Backbone": lambda: kj.extract_features("vgg16", BODY, GRAY),
    "variables: a Weights, which holds no params": lambda: kj.extract_features(
        TWO, kj.load_weights("cnn", "random", image_size=32), GRAY
    ),
    "variables: a NoneType": lambda: TWO.apply(None, RGB),
    r"two of two takes floats \[b h w 8\], as one gives": lambda: TWO.apply(BODY, RGB, ("two",)),
    "takes images from 16 x 16": lambda: TWO.apply(BODY, RGB[:, :8, :8]),
    "in the input|input: nan": lambda: TWO.apply(BODY, changed(RGB, (0, 0, 0, 0), np.nan)),
    "the head on two: the input does not fit": lambda: HEAD.apply(LEARNT, FEATURES[:, :3]),
    "no generator|is no Generator": lambda: TWO.init(0, SIDE),
    "image size 1.5": lambda: TWO.shapes(1.5),
    "blocks: none of two": lambda: TWO.last_of([]),
    "key: 0 is no": lambda: HEAD.init_head(0, (WIDTH,)),
    "bottleneck_shape 1.5": lambda: HEAD.init_head(jax.random.key(0), (1.5,)),
    "inputs: None is no Sequence": lambda: kj.apply_row("run/row", None),
    "k 1.5": lambda: kj.nearest(FEATURES, FEATURES, 1.5),
    "queries: there are none": lambda: kj.nearest(FEATURES[:0], FEATURES, 1),
    "inputs: there are none": lambda: kj.predict(HEAD, LEARNT, FEATURES[:0], batch_size=4),
    "a batch of nan": lambda: kj.predict(HEAD, LEARNT, FEATURES, batch_size=float("nan")),
    "epochs -1": lambda: fit(HEAD, LEARNT, FEATURES, epochs=-1),
    "seed -1": lambda: fit(HEAD, LEARNT, FEATURES, seed=-1),
    "seed 4294967296: must be from 0 to 4294967295": lambda: fit(HEAD, LEARNT, FEATURES, seed=2**32),
    "features: an array of key": lambda: kj.fit_linear_svm(jax.random.split(jax.random.key(0), (4, 3)), [0, 0, 1, 1]),
    "no feed 'fast'": lambda: fit(HEAD, LEARNT, FEATURES, feed="fast"),
    "the variables hold no 'mixed9'": lambda: kj.fine_tuned(
        kj.load_weights("cnn", "random", image_size=32), BOTH, ("mixed9",), "mine"
    ),
    "no precision 'half'": lambda: kj.extract_features(TWO, BODY, GRAY, precision="half"),
    "c nan": lambda: kj.fit_linear_svm(FEATURES, LABELS, float("nan")),
    "two scans at least": lambda: kj.fit_linear_svm(FEATURES[:0], LABELS[:0]),
    "no split 'valid'": lambda: kj.Manifest((), 8, 2).labels("valid"),
    "scans None: must be a path": lambda: kj.open_scans(None),
    "--mpp nan": lambda: kj.open_scans("scans.h5", mpp=float("nan")),
    "--slide-mpp inf": lambda: kj.open_scans("slides", slide_mpp=float("inf")),
    "--slide-mpp True": lambda: kj.open_scans("slides", slide_mpp=True),
    "--patch-size 1.5": lambda: kj.open_scans("scans.h5", patch_size=1.5),
    "predictions None: must be a path": lambda: kj.score(None, None),
    "run: None is no StoredRun": lambda: kj.analyse(None),
    "a: None is no StoredRun": lambda: kj.compare_runs(None, None),
    "config: None is no TableConfig": lambda: kj.run_table("demo", None),
    "config: None is no SweepConfig": lambda: kj.run_sweep("demo", None),
    "no split 'valid'; choose from train, test, all": lambda: kj.apply_row("run/row", "images", split="valid"),
    "source: None is no Source": lambda: kj.cut_patches(None),
    "patches: None is no PatchSource": lambda: kj.batches(None, 4),
    "devices: there are none": lambda: kj.engine_of("jit", []),
    "no settings of a table: epoch; did you mean epochs": lambda: kj.PRESETS["demo"][1].replace(epoch=3),
}


@pytest.mark.parametrize("message", CALLS)
def test_a_call_that_cannot_be_meant_is_refused_with_what_to_do(message):
    refused(message, CALLS[message])


def test_an_unknown_network_is_a_missing_key_to_whoever_asks_a_mapping():
    assert kj.BACKBONES.get("vgg19") is None
    with pytest.raises(KeyError):
        kj.BACKBONES["vgg19"]


def test_what_users_trace_stays_traceable():
    np.testing.assert_allclose(jax.jit(lambda x: TWO.apply(BODY, x)[0])(RGB), TWO.apply(BODY, RGB)[0], rtol=1e-5)
    assert jax.grad(lambda x: TWO.apply(BODY, x)[0].sum())(jnp.asarray(RGB)).shape == RGB.shape
    assert jax.vmap(lambda x: HEAD.apply(LEARNT, x[None])[0])(jnp.asarray(FEATURES)).shape == (COUNT, 1, 3)
    refused("takes floats", jax.jit(lambda x: TWO.apply(BODY, x)[0]), RGB.transpose(0, 3, 1, 2))
    refused("takes floats", jax.jit(lambda x: TWO.apply(BODY, x)[0]), GRAY)
    refused("labels: float32", jax.jit(kj.kimia_scores, static_argnums=2), LABELS.astype(np.float32), LABELS, 3)


def test_settings_of_another_type_or_range_are_refused():
    """In a process of its own: here the type checker would be first."""
    made = """
import optax, kimiajax as kj
nan, two = float("nan"), kj.BACKBONES["cnn"]
config, sweep = kj.PRESETS["demo"][1], kj.SWEEPS["demo"][1]
head, blocks = kj.Classifier(two, (), 3), kj.TrainableBlocks(["head"])
assert blocks.names == ("head",) and kj.Classifier(two, ["pooled"], 3).blocks == ("pooled",)
assert config.replace(out="runs/x").folder("demo").name == "x"
makers = {
    "background": [lambda v=v: kj.Rules(background=v) for v in (nan, 1.5, "220", 256)],
    "grid": [lambda v=v: kj.Rules(grid=v) for v in ("whole", None, 3)],
    "homogeneity": [lambda v=v: kj.Rules(homogeneity=v) for v in (nan, "1", 0, 1.5)],
    "patches": [lambda v=v: kj.Rules(patches_per_scan=v) for v in (nan, 0, "most", 2.0)],
    "optimizer": [lambda v=v: kj.Optimization(optimizer=v) for v in ("lion", None)],
    "learning_rate": [lambda v=v: kj.Optimization(learning_rate=v) for v in (nan, 0, "1e-3")],
    "weight_decay": [lambda v=v: kj.Optimization(weight_decay=v) for v in (nan, -1, float("inf"))],
    "classes": [lambda v=v: kj.Classifier(two, (), v) for v in (nan, 0, 2.5, "3", True)],
    "block": [lambda v=v: kj.Classifier(two, v, 3) for v in (("mixed9",), "pooled", 3, None)],
    "Backbone": [lambda v=v: kj.Classifier(v, (), 3) for v in ("vgg16", None)],
    "image": [lambda v=v: kj.Dataset("mnist", image=v) for v in (3, None)],
    "precision": [lambda v=v: kj.Training(head, optax.sgd(1), blocks, precision=v) for v in ("half", None)],
    "augmentation": [lambda v=v: kj.Training(head, optax.sgd(1), blocks, augmentation=v) for v in ("keras", 3)],
    "label_smoothing": [lambda v=v: kj.Training(head, optax.sgd(1), blocks, label_smoothing=v) for v in (nan, 1, -1)],
    "sequence": [lambda v=v: kj.TrainableBlocks(v) for v in ("head", 3, None, [1])],
    "--epochs": [lambda v=v: config.replace(epochs=v).validate() for v in (nan, 1.5, "3", -1)],
    "--resize": [lambda v=v: config.replace(resize=v).validate() for v in ("bicubic", 3)],
    "--momentum": [lambda v=v: config.replace(momentum=v).validate() for v in (nan, 1, "0.9")],
    "--rows": [lambda v=v: config.replace(rows=v).validate() for v in ("fe_vgg16", 3, ())],
    "--depths": [lambda v=v: sweep.replace(depths=v).validate() for v in (3, (nan, 1), ("1",))],
}
for name, calls in makers.items():
    for call in calls:
        try:
            call()
        except kj.UserError as error:
            if name in str(error) and "\\n" not in str(error):
                continue
            print(name, error)
        else:
            print(name, "was taken")
"""
    done = subprocess.run([sys.executable, "-c", made], capture_output=True, text=True, timeout=240)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
