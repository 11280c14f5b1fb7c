"""Keras' own VGG16 and Inception-v3, with their parts by this project's names. Choose Keras' backend before."""

import keras

BUILDERS = {"vgg16": keras.applications.VGG16, "inception_v3": keras.applications.InceptionV3}


def build(network: str, size: int, classes: int | None) -> keras.Model:
    """The network for images of this size, random; with logits of so many classes, or without top."""
    return BUILDERS[network](
        weights=None,
        include_top=classes is not None,
        input_shape=(size, size, 3),
        **({} if classes is None else {"classes": classes, "classifier_activation": None}),
    )


def block_layers(model: keras.Model) -> dict[str, keras.Layer]:
    """The layer whose output is a block's, by the block's name here."""
    layers = {layer.name: layer for layer in model.layers}
    if "block1_pool" in layers:
        names = {f"block{n}": f"block{n}_pool" for n in range(1, 6)} | {n: n for n in ("fc1", "fc2", "predictions")}
        return {block: layers[name] for block, name in names.items() if name in layers}
    pools = [layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    blocks = {"stem": pools[1], **{f"mixed{n}": layers[f"mixed{n}"] for n in range(11)}}
    return blocks | ({"predictions": layers["predictions"]} if "predictions" in layers else {})


def name_of(variable: keras.Variable) -> str:
    """As the converter names arrays: layers that Keras only numbers by their rank."""
    layer, leaf = variable.path.rsplit("/", 1)
    kind, _, number = layer.rpartition("_") if layer.rpartition("_")[2].isdigit() else (layer, "", "0")
    return f"{kind}#{number}/{leaf}" if kind in ("conv2d", "batch_normalization") else variable.path


def train_after(model: keras.Model, boundary: str) -> None:
    """Makes trainable what lies after a block, in Keras' order of depth, which has all of a block before the next."""
    last, train = block_layers(model)[boundary], False
    for layer in model.layers:
        layer.trainable = train
        train = train or layer is last
