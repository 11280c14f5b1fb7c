"""Files of one VGG16 and one Inception-v3 as old and new Keras and torch write them, with what is right for each."""

import json
from functools import cache

import h5py
import ml_dtypes
import numpy as np
from support import weight_files as w

from kimiajax.errors import UserError
from kimiajax.models.registry import BACKBONES
from weights_convert.convert import convert
from weights_convert.mappings import files_of

SIDES = {"vgg16": 64, "inception_v3": 75}
APPLICATIONS = {"vgg16": "VGG16", "inception_v3": "InceptionV3"}
TF, JAX = {"backend": "tensorflow", "keras_version": "2.0.8"}, {"backend": "jax", "keras_version": "3.4.1"}
THEANO, KERAS_1 = {"backend": "theano", "keras_version": "2.0.8"}, {"keras_version": "1.2.2"}
TF_NAME = "vgg16_weights_tf_dim_ordering_tf_kernels.h5"
TH_NAME = "vgg16_weights_th_dim_ordering_th_kernels.h5"
FUNCTION = {"class_name": "function"}
RESCALING = w.layer("Rescaling", "rescaling", scale=1 / 127.5, offset=-1)
POOLED = (w.layer("GlobalAveragePooling2D", "gap"), w.layer("Dense", "scans", units=3, activation="softmax"))


@cache
def source(network, top=False):
    """A network's arrays by Keras' layers and leaves, all random, and its configuration as Keras 3 writes it."""
    import keras

    keras.utils.clear_session()
    model = getattr(keras.applications, APPLICATIONS[network])(
        weights=None,
        include_top=top,
        input_shape=(SIDES[network], SIDES[network], 3),
        **({"classes": 7} if top else {}),
    )
    rng = np.random.default_rng(9)
    layers = {}
    for weight in model.weights:
        layer, leaf = weight.path.rsplit("/", 1)
        shape = tuple(weight.shape)
        values = rng.standard_normal(shape, np.float32)
        values *= np.float32(np.sqrt(2 / np.prod(shape[:-1]))) if leaf == "kernel" else np.float32(0.1)
        layers.setdefault(layer, {})[leaf] = np.abs(values) + 0.5 if leaf == "moving_variance" else values
    config = json.loads(model.to_json())
    return layers, {"class_name": config["class_name"], "config": config["config"]}


@cache
def digest_of(network, top, dtype, folder):
    """The digest of these arrays as this program has them, of a file as Keras 3 writes it."""
    layers, config = source(network, top)
    path = folder / f"{network}-{top}-{dtype}.h5"
    rounded = w.in_type(w.in_type(layers, dtype), "float32")
    digest = convert(network, w.write_h5(path, rounded, config, root=JAX)).lineage["digest"]
    path.unlink()
    return digest


def case(
    network, write, *, top=False, dtype="float32", refused=None, name="x.h5", head=False, without_top=False, **lineage
):
    """A file: what writes it, and what is right: the source's arrays in this type, or a refusal with these words."""
    return {
        "network": network,
        "write": write,
        "top": top,
        "dtype": dtype,
        "refused": refused,
        "name": name,
        "head": head,
        "without_top": without_top,
        "lineage": lineage,
    }


def check(case, folder):
    """Asserts that a case's file is read to the bit, or refused in its words."""
    network, (layers, config) = case["network"], source(case["network"], case["top"])
    path = case["write"](folder / case["name"], layers, config)
    if case["refused"]:
        try:
            convert(network, path, head=case["head"])
        except UserError as error:
            line = str(error)
            assert "\n" not in line
            assert str(path) in line
            assert case["refused"] in line, line
            return
        raise AssertionError("it was read")
    weights = convert(network, path, head=case["head"])
    params = weights.variables["params"]
    if case["head"]:
        expected = head_of(network)
        for layer, mine in (("hidden", "hidden"), ("logits", "scans")):
            for leaf in ("kernel", "bias"):
                np.testing.assert_array_equal(params["head"][layer][leaf], expected[mine][leaf])
        weights = convert(network, path)
    assert "head" not in weights.variables["params"]
    top = case["top"] and not case["without_top"]
    assert ("predictions" in params) == top
    assert weights.lineage["digest"] == digest_of(network, top, case["dtype"], folder)
    for key, value in case["lineage"].items():
        said = weights.lineage[key]
        assert said == value if not isinstance(value, str) else value in json.dumps(said), (key, said)


def head_of(network):
    """A head of the study's form."""
    return w.head_arrays(2048 if network == "inception_v3" else 512 * (SIDES["vgg16"] // 32) ** 2)


@cache
def tables(network):
    """Torch's tables of a network, and Keras' layer and leaf by destination, conv2d#1 as Keras names it."""
    keras = {}
    for name, (to, _) in files_of(network, "keras").tables[0].items():
        layer, leaf = name.split("/")
        kind, _, rank = layer.partition("#")
        keras[to] = (kind if rank in ("", "0") else f"{kind}_{rank}", leaf)
    return files_of(network, "torch").tables, keras


def torch(network, table=0, **options):
    """Writes torch's file, whose Inception-v3 has a scale that Keras' has not: ones."""

    def write(path, layers, config):
        chosen, keras = tables(network)
        beside = dict(options.get("beside", {}))
        if network == "inception_v3":
            beside |= {
                name: np.ones(layers[keras[(*to[:-1], "bias")][0]]["beta"].shape, np.float32)
                for name, (to, _) in chosen[table].items()
                if to[-1] == "scale"
            }
        return w.write_torch(path, layers, chosen[table], keras, **{**options, "beside": beside})

    return write


def h5(change=lambda layers: layers, config=lambda config: config, **options):
    """Writes an `.h5` of arrays and a configuration that these functions change; None leaves the configuration out."""

    def write(path, layers, given):
        return w.write_h5(path, change(layers), config and config(given), **options)

    return write


def numbered(config=None, **options):
    """Writes a `.weights.h5`, or with a configuration a `.keras`."""
    return lambda path, layers, given: w.write_numbered(path, layers, config and config(given), **options)


def keras_2(**options):
    return lambda config: w.keras_2(config, **options)


def nested(*after, before=(), name="vgg16"):
    return lambda config: w.within(w.keras_2(config), name, *after, before=before)


def with_head(network):
    """A head of the study's form behind the network, in `Sequential`."""
    between = w.layer("GlobalAveragePooling2D", "gap") if network == "inception_v3" else w.HEAD[0]
    return nested(between, *w.HEAD[1:], name=network)


def altered(kind, number=0, **settings):
    return lambda config: w.changed(config, kind, number, **settings)


def chw(layers):
    return w.flattened_as_chw(layers, "fc1", 512)


def as_th(layers):
    return w.transposed(w.turned(layers))


V, N = "vgg16", "inception_v3"
BACKENDS = {
    "Keras 3's": case(V, h5(root=JAX)),
    "TensorFlow's, Keras 2.0": case(V, h5(config=keras_2(), root=TF, group=TF), changes=[]),
    "CNTK's": case(V, h5(config=keras_2(), root={**TF, "backend": "cntk"})),
    "Theano's, said at the root": case(V, h5(w.turned, keras_2(), root=THEANO), changes="turned"),
    "Theano's, said of the weights": case(V, h5(w.turned, keras_2(), group=THEANO), changes="turned"),
    "Theano's, said in both": case(N, h5(w.turned, keras_2(), root=THEANO, group=THEANO), changes="turned"),
    "Theano's, in capitals": case(V, h5(w.turned, keras_2(), root={**THEANO, "backend": "Theano"}), changes="turned"),
    "Theano's, said by the configuration": case(
        V, h5(w.turned, lambda c: {**w.keras_2(c), **THEANO}), changes="turned"
    ),
    "Theano's, weights alone": case(V, h5(w.turned, None, root=THEANO), changes="turned"),
    "Theano's Inception-v3, weights alone": case(N, h5(w.turned, None, root=THEANO), changes="turned"),
    "Theano's, by its name": case(V, h5(w.turned, None), name=TH_NAME, changes="turned"),
    "Theano's, by another name": case(V, h5(w.turned, None), name="my_th_kernels.h5", changes="turned"),
    "TensorFlow's, by its name": case(V, h5(config=None), name=TF_NAME, changes=[]),
    "of nobody": case(V, h5(config=None), refused="does not say which backend wrote it"),
    "turned, of nobody": case(V, h5(w.turned, None), refused="does not say which backend wrote it"),
    "of another backend": case(V, h5(config=keras_2(), root={"backend": "plaidml"}), refused="'plaidml'"),
    "Theano's with TensorFlow's name": case(V, h5(w.turned, None, root=THEANO), name=TF_NAME, refused="two answers"),
    "TensorFlow's with Theano's name": case(V, h5(config=None, root=TF), name=TH_NAME, refused="two answers"),
    "Keras 2.4's, without a backend": case(V, h5(config=keras_2(), root={"keras_version": "2.4.0"})),
    "tf.keras' before that": case(V, h5(config=keras_2(), root={"keras_version": "2.2.4-tf"})),
    "a backend that is no text": case(V, h5(config=keras_2(), root={"backend": b"\xff\xfe"}), refused="backend"),
}
KERAS_1_FILES = {
    "th, Theano by its name": case(V, h5(as_th, lambda c: w.keras_1(c, "th"), old=True, root=KERAS_1), name=TH_NAME),
    "th, weights alone, by its name": case(V, h5(as_th, None, old=True), name=TH_NAME, changes="transposed"),
    "th, TensorFlow": case(
        V, h5(w.transposed, lambda c: w.keras_1(c, "th"), old=True, root=KERAS_1), name="vgg16_tf_kernels.h5"
    ),
    "th, of nobody": case(V, h5(as_th, lambda c: w.keras_1(c, "th"), old=True, root=KERAS_1), refused="does not say"),
    "tf, by its name": case(V, h5(config=None, old=True, root=KERAS_1), name=TF_NAME),
    "tf, Inception-v3": case(N, h5(config=lambda c: w.keras_1(c), old=True, root=KERAS_1), name="i_tf_kernels.h5"),
    "th, Inception-v3": case(N, h5(as_th, lambda c: w.keras_1(c, "th"), old=True), name="i_th_kernels.h5"),
    "torch's order under Keras' names": case(V, h5(w.transposed, config=keras_2(), root=TF), refused="13 arrays"),
}
FIRST = {"data_format": "channels_first"}
ORDERS = {
    "last, with top": case(V, h5(config=keras_2(), root=TF), top=True, changes=[]),
    "first, Flatten that says so": case(V, h5(config=keras_2(**FIRST), root=JAX), top=True, changes=[]),
    "first, Flatten of Keras 2.0": case(
        V, h5(chw, keras_2(**FIRST, flatten=False), root=TF), top=True, changes="reordered"
    ),
    "first, Theano": case(
        V, h5(lambda x: chw(w.turned(x)), keras_2(**FIRST, flatten=False), root=THEANO), top=True, changes="reordered"
    ),
    "Keras 1, th": case(
        V,
        h5(lambda x: chw(as_th(x)), lambda c: w.keras_1(c, "th"), old=True),
        top=True,
        name=TH_NAME,
        changes="reordered",
    ),
    "by its name": case(V, h5(lambda x: chw(as_th(x)), None, old=True), top=True, name=TH_NAME, changes="reordered"),
    "weights alone, last by its name": case(V, h5(config=None, root=TF), top=True, name=TF_NAME),
    "weights alone, Keras 2.0": case(V, h5(chw, None, root=TF), top=True, refused="in which order of axes"),
    "weights alone, Theano": case(V, h5(w.turned, None, root=THEANO), top=True, refused="in which order of axes"),
    "weights alone, Keras 2.3": case(V, h5(config=None, root={**TF, "keras_version": "2.3.1"}), top=True, changes=[]),
    "weights alone, Keras 3": case(V, numbered(), top=True, name="x.weights.h5", changes=[]),
    "two orders": case(
        V, h5(config=lambda c: w.changed(w.keras_2(c), "Conv2D", 3, **FIRST), root=TF), refused="no one order of axes"
    ),
    "an order that is none": case(
        V, h5(config=keras_2(data_format="channels_middle"), root=TF), refused="no one order of axes"
    ),
    "first, Inception-v3": case(N, h5(config=keras_2(**FIRST), root=TF), changes=[]),
}
CONFIGURATIONS = {
    "an epsilon": case(N, h5(config=lambda c: epsilon(c, 1e-5), root=JAX), options={"epsilon": 1e-5}),
    "an epsilon of one layer": case(
        N, h5(config=altered("BatchNormalization", 7, epsilon=1e-5), root=JAX), refused="epsilon 1e-05 and 0.001"
    ),
    "a momentum": case(N, h5(config=altered("BatchNormalization", momentum=0.9), root=JAX), says="0.9"),
    "a padding": case(V, h5(config=altered("Conv2D", 4, padding="valid"), root=JAX), refused="block3_conv1"),
    "a stride": case(V, h5(config=altered("Conv2D", 0, strides=[2, 2]), root=JAX), refused="stride 2"),
    "a first stride": case(N, h5(config=altered("Conv2D", 0, strides=[1, 1]), root=JAX), refused="stride 1"),
    "a dilation": case(V, h5(config=altered("Conv2D", 9, dilation_rate=[2, 2]), root=JAX), refused="dilation_rate"),
    "an activation": case(V, h5(config=altered("Conv2D", 2, activation="elu"), root=JAX), refused="elu(block2_conv1)"),
    "an activation apart": case(N, h5(config=altered("Activation", 5, activation="swish"), root=JAX), refused="swish"),
    "a pool": case(V, h5(config=lambda c: pooled_by_means(c, 1), root=JAX), refused="average pool 2"),
    "the last pool": case(V, h5(config=lambda c: pooled_by_means(c, 4), root=JAX), refused="ends in"),
    "a pool's stride": case(V, h5(config=altered("MaxPooling2D", 0, strides=[1, 1]), root=JAX), refused="stride 1"),
    "an axis": case(N, h5(config=altered("BatchNormalization", 3, axis=1), root=JAX), refused="axis 1"),
    "a policy": case(V, h5(config=altered("Conv2D", 3, dtype="mixed_float16"), root=JAX), says="mixed_float16"),
    "no configuration that Keras writes": case(
        V, h5(config=lambda c: {"config": {"layers": [1]}}, root=JAX), refused="its configuration is not"
    ),
    "another network's": case(V, h5(config=lambda c: source(N)[1], root=JAX), refused="no layer of it"),
}
CONFIGURATIONS |= {
    "a ReLU with a limit": case(
        V,
        h5(config=altered("Conv2D", 2, activation=w.layer("ReLU", "r", max_value=0.5)), root=JAX),
        refused="relu {'max_value': 0.5}(block2_conv1)",
    ),
    "a function of somebody's": case(
        V,
        h5(
            config=altered(
                "Conv2D", 2, activation={"module": "mine", "config": "relu", "registered_name": "mine>relu"} | FUNCTION
            ),
            root=JAX,
        ),
        refused="mine.relu(block2_conv1)",
    ),
    "no centre": case(N, h5(config=altered("BatchNormalization", 2, center=False), root=JAX), refused="'s beta"),
    "another kernel": case(V, h5(config=altered("Conv2D", 3, kernel_size=[5, 5]), root=JAX), refused="kernel size"),
    "statistics of the batch": case(
        N,
        h5(config=lambda c: w.changed(w.keras_1(c), "BatchNormalization", 1, mode=2), old=True),
        name="i_tf_kernels.h5",
        refused="mode 2",
    ),
    "training at all times": case(N, h5(config=lambda c: always_training(c), root=TF), refused="in training"),
    "two that differ": case(V, lambda *given: two_configurations(*given), refused="two configurations"),
    "quantised layers' policies": case(
        V,
        h5(
            config=altered("Conv2D", 3, dtype={"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8"}}),
            root=JAX,
        ),
    ),
    "Flatten that transposes": case(
        V, h5(config=altered("Flatten", data_format="channels_first"), root=JAX), top=True, without_top=True
    ),
}
THREE = w.head_arrays(2048) | {"more": {"kernel": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)}}
MODELS = {
    "a third dense layer": case(
        V,
        h5(config=nested(*w.HEAD, w.layer("Dense", "more", units=2)), root=TF, network="vgg16", beside=THREE),
        head=True,
        refused="has no head of the study's form",
    ),
    "a third dense layer, weights alone": case(
        V, numbered(network="vgg16", beside=THREE), name="x.weights.h5", head=True, refused="has no head"
    ),
    "a head by this project's names": case(
        V,
        h5(
            config=nested(
                w.HEAD[0], w.layer("Dense", "head_hidden", activation="tanh"), w.layer("Dense", "head_logits", units=3)
            ),
            root=TF,
            network="vgg16",
            beside={
                f"head_{new}": w.head_arrays(2048)[old] for new, old in (("hidden", "hidden"), ("logits", "scans"))
            },
        ),
        left_out="head_hidden",
    ),
    "arrays of an adapter": case(
        V,
        h5(
            lambda x: {**x, "block5_conv2": {**x["block5_conv2"], "lora_kernel_a": np.ones((3, 3), np.float32)}},
            root=JAX,
        ),
        refused="extra: block5_conv2/lora_kernel_a",
    ),
    "layers between, weights alone": case(
        V,
        numbered(beside={"norm": {"gamma": np.ones(64, np.float32), "beta": np.zeros(64, np.float32)}}),
        name="x.weights.h5",
        refused="extra: norm/",
    ),
    "two networks, one asked for": case(
        V,
        lambda path, layers, config: with_other(w.write_h5(path, layers, None, root=TF, network="a"), source(N)[0]),
        left_out="b (",
    ),
    "Sequential": case(V, h5(config=nested(), root=TF, network="vgg16"), says="vgg16"),
    "Sequential with a head": case(
        V, h5(config=with_head(V), root=TF, network="vgg16", beside=w.head_arrays(2048)), left_out="hidden (2 arrays)"
    ),
    "a head taken": case(V, h5(config=with_head(V), root=TF, network="vgg16", beside=w.head_arrays(2048)), head=True),
    "Inception-v3's head taken": case(
        N, h5(config=with_head(N), root=TF, network="inception_v3", beside=w.head_arrays(2048)), head=True
    ),
    "a head that is not of the form": case(
        V,
        h5(config=nested(*POOLED), root=TF, network="vgg16", beside={"scans": w.head_arrays(512)["hidden"]}),
        head=True,
        refused="has no head of the study's form",
    ),
    "rescaled": case(
        V, h5(config=nested(before=(RESCALING,)), root=TF, network="vgg16"), expected_input='"range": [-1.0, 1.0]'
    ),
    "prepared otherwise": case(
        V, h5(config=nested(before=(w.layer("Lambda", "f"),)), root=TF, network="vgg16"), expected_input=None
    ),
    ".keras": case(V, numbered(lambda c: c), name="x.keras", says="3.1.0"),
    ".keras without names": case(V, numbered(lambda c: c, named=False), name="x.keras"),
    ".keras of Inception-v3 without names": case(N, numbered(lambda c: c, named=False), name="x.keras"),
    ".keras, Sequential": case(V, numbered(nested(), network="vgg16"), name="x.keras", says="vgg16"),
    ".weights.h5, Sequential": case(
        V, numbered(network="vgg16", beside=w.head_arrays(2048)), name="x.weights.h5", left_out="hidden"
    ),
    ".weights.h5, a head taken": case(
        V, numbered(network="vgg16", beside=w.head_arrays(2048)), name="x.weights.h5", head=True
    ),
    ".weights.h5 without names": case(V, numbered(named=False), name="x.weights.h5", refused="which layer it is"),
    "compressed": case(V, h5(config=None, root=TF, compression="gzip", compression_opts=1)),
    "two of them": case(
        V,
        lambda path, layers, config: twice(w.write_h5(path, layers, None, root=TF, network="a"), layers),
        refused="holds two networks",
    ),
}
TYPES = {
    "float16": case(
        V, h5(lambda x: w.in_type(x, "float16"), root=JAX), dtype="float16", changes="widened from float16"
    ),
    "bfloat16": case(
        V, h5(lambda x: w.in_type(x, ml_dtypes.bfloat16), root=JAX), dtype="bfloat16", changes="widened from bfloat16"
    ),
    "float64": case(N, h5(lambda x: w.in_type(x, "float64"), root=JAX), changes="rounded from float64"),
    "int32": case(V, h5(lambda x: w.in_type(x, "int32"), root=JAX), refused="is int32"),
}
CLASSIFIER = {"classifier.0.weight": np.ones((8, 2048), np.float32), "classifier.0.bias": np.ones(8, np.float32)}
OURS = {  # on an image that torch flattens as channel, height, width
    f"classifier.{place}.{leaf}": array.T if leaf == "weight" else array
    for place, layer in ((0, "hidden"), (3, "scans"))
    for leaf, array in zip(("weight", "bias"), w.flattened_as_chw(w.head_arrays(2048), "hidden", 512)[layer].values())
}
TORCH = {
    "torchvision's": case(V, torch(V), name="x.safetensors", changes=[]),
    **{
        f"prefix {prefix}": case(V, torch(V, prefix=prefix), name="x.safetensors", changes=prefix)
        for prefix in ("module.", "model.", "backbone.", "module.model.encoder.", "_orig_mod.")
    },
    "features alone": case(V, torch(V, 2), name="x.safetensors"),
    "features alone, within a model": case(V, torch(V, 2, prefix="net.0."), name="x.safetensors", changes="net.0."),
    "half": case(V, torch(V, dtype=np.float16), name="x.safetensors", dtype="float16", changes="widened"),
    "bfloat16": case(V, torch(V, dtype=ml_dtypes.bfloat16), name="x.safetensors", dtype="bfloat16", changes="widened"),
    "another classifier": case(V, torch(V, beside=CLASSIFIER), name="x.safetensors", left_out="classifier"),
    "a head taken": case(V, torch(V, beside=OURS), name="x.safetensors", head=True),
    "batch normalisation in the classifier": case(
        V,
        torch(V, beside={**OURS, "classifier.1.running_mean": np.ones(8, np.float32)}),
        name="x.safetensors",
        head=True,
        refused="has no head",
    ),
    "a layer between features alone": case(
        V,
        torch(V, 2, beside={"1.running_mean": np.ones(64, np.float32)}),
        name="x.safetensors",
        refused="1.running_mean",
    ),
    "batch normalisation between": case(
        V,
        torch(V, beside={"features.1.running_mean": np.ones(64)}),
        name="x.safetensors",
        refused="features.1.running_mean",
    ),
}


def epsilon(config, value):
    config = json.loads(json.dumps(config))
    for layer in w.layers_of(config):
        if layer["class_name"] == "BatchNormalization":
            layer["config"]["epsilon"] = value
    return config


def pooled_by_means(config, number):
    config = json.loads(json.dumps(config))
    pools = [layer for layer in w.layers_of(config) if layer["class_name"] == "MaxPooling2D"]
    pools[number]["class_name"] = "AveragePooling2D"
    return config


def always_training(config):
    config = w.keras_2(config)
    first = next(layer for layer in w.layers_of(config) if layer["class_name"] == "BatchNormalization")
    first["inbound_nodes"][0][0][3]["training"] = True
    return config


def two_configurations(path, layers, config):
    w.write_h5(path, layers, config, root=JAX)
    with h5py.File(path, "r+") as file:
        file["model_weights"].attrs["model_config"] = json.dumps(w.changed(config, "Conv2D", 0, padding="valid"))
    return path


def with_other(path, layers):
    with h5py.File(path, "r+") as file:
        for layer, leaves in layers.items():
            for leaf, array in leaves.items():
                file[f"b/{layer}/{leaf}:0"] = array
    return path


def twice(path, layers):
    with h5py.File(path, "r+") as file:
        file.copy("a", "b")
    return path


CASES = {
    f"{kind}: {name}": each
    for kind, cases in {
        "backend": BACKENDS,
        "Keras 1": KERAS_1_FILES,
        "order of axes": ORDERS,
        "configuration": CONFIGURATIONS,
        "model": MODELS,
        "type": TYPES,
        "torch": TORCH,
    }.items()
    for name, each in cases.items()
}
assert set(BACKBONES) >= {V, N}
