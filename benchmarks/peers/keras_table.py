"""The study's five rows as a Keras and scikit-learn user would write them: one script, patches in memory, no tricks.

The folder holds `patches.npz` (gray uint8 patches of both splits, and their scans) and the weights, `vgg16.h5` and
`inception_v3.h5`. The protocol is that of `kimiajax table quick`: features into a linear SVM; a head on bottleneck
features by RMSprop, then head and last blocks together by SGD, batch normalisation in inference mode; and a small
network from scratch by Adam.
"""

from pathlib import Path

import keras
import numpy as np
from keras import layers
from sklearn.svm import SVC

from ..contender import Work, serve

NETWORKS = {
    "vgg16": {"build": keras.applications.VGG16, "features": "fc2", "from": "block5_conv1", "hidden": 256},
    "inception_v3": {"build": keras.applications.InceptionV3, "features": "avg_pool", "from": None, "hidden": 1024},
}


class Inference(layers.Layer):
    """A model that stays in inference mode: `model(x, training=False)` does not, within a model that is trained."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, x):
        return self.model(x, training=False)


def main(folder: Path, config: dict) -> dict:
    with np.load(folder / "patches.npz") as arrays:
        train, train_scans, test = arrays["train"], arrays["train_scans"], arrays["test"]
    train, test = (np.repeat(images[..., None], 3, axis=-1).astype("float32") / 255 for images in (train, test))
    classes, predicted = int(train_scans.max()) + 1, {}
    predicted["cnn"] = from_scratch(train, train_scans, test, classes, config)
    for name, network in NETWORKS.items():
        whole = network["build"](weights=None, input_shape=train.shape[1:], classifier_activation=None)
        whole.load_weights(folder / f"{name}.h5")
        features = keras.Model(whole.input, whole.get_layer(network["features"]).output)
        svm = SVC(kernel="linear", C=1.0).fit(features.predict(train, verbose=0), train_scans)
        predicted[f"fe_{name}"] = svm.predict(features.predict(test, verbose=0))
        predicted[f"tl_{name}"] = fine_tune(name, whole, train, train_scans, test, classes, config)
    return predicted


def fine_tune(name, whole, train, scans, test, classes, config):
    network = NETWORKS[name]
    if name == "vgg16":
        pooled = layers.Flatten()(whole.get_layer("block5_pool").output)
    else:
        pooled = whole.get_layer("avg_pool").output
    trunk = keras.Model(whole.input, pooled)
    bottleneck = trunk.predict(train, verbose=0)
    head = keras.Sequential(
        [
            keras.Input(bottleneck.shape[1:]),
            layers.Dense(network["hidden"], activation="relu"),
            *([layers.Dropout(0.5)] if name == "vgg16" else []),
            layers.Dense(classes),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    head.compile(keras.optimizers.RMSprop(1e-3), loss)
    head.fit(bottleneck, scans, batch_size=32, epochs=config["head_epochs"], verbose=0)

    images = keras.Input(train.shape[1:])
    model = keras.Model(images, head(Inference(trunk)(images)))
    trunk.trainable = True
    train_from = network["from"]
    names = [layer.name for layer in trunk.layers]
    cut = names.index(train_from) if train_from else names.index("mixed8") + 1
    for layer in trunk.layers[:cut]:
        layer.trainable = False
    model.compile(keras.optimizers.SGD(config["learning_rate"], momentum=0.9), loss)
    model.fit(train, scans, batch_size=32, epochs=config["epochs"], verbose=0)
    return model.predict(test, verbose=0).argmax(axis=1)


def from_scratch(train, scans, test, classes, config):
    model = keras.Sequential([keras.Input(train.shape[1:])])
    for width, kernel, stride in ((32, 4, 4), (64, 3, 2), (128, 3, 2), (256, 3, 2)):
        model.add(layers.Conv2D(width, kernel, strides=stride, padding="same", use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(classes))
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(train, scans, batch_size=32, epochs=config["epochs"], verbose=0)
    return model.predict(test, verbose=0).argmax(axis=1)


if __name__ == "__main__":
    serve(lambda job: Work(lambda: main(Path(job["folder"]), job), lambda predicted: predicted))
