"""The study's head and fine-tuning as a Keras user would write them: losses and eta on the patches of a manifest.

    python benchmarks/peers/keras_protocol.py vgg16 --scans FILE.h5 --manifest RUN/manifest.csv --weights vgg16.h5 \
        --seeds 0 1 2 --out keras_vgg16.json

Nothing here is this project's: patches are cut from the scan file by h5py, in the places of the manifest's rows,
resized by Pillow, and trained on by `fit`, batch normalisation and optimizers being Keras' own. The frozen blocks run
once. Each seed trains a head by each optimizer, and from each head the last blocks in each mode of batch normalisation.
The file that is written has for each the loss of every epoch, eta_p, eta_w and eta_total, and all predictions.
"""

import argparse
import csv
import json
from pathlib import Path

import h5py
import keras
import numpy as np
from keras import layers, ops
from PIL import Image

NETWORKS = {
    "vgg16": {"build": keras.applications.VGG16, "frozen": "block4_pool", "last": "block5_pool", "hidden": 256},
    "inception_v3": {"build": keras.applications.InceptionV3, "frozen": "mixed8", "last": "mixed10", "hidden": 1024},
}


class RMSprop2017(keras.optimizers.RMSprop):
    """RMSprop of Keras 2.0, which adds its epsilon to the root, where Keras 3 adds it within."""

    def update_step(self, gradient, variable, learning_rate):
        velocity = self._velocities[self._get_variable_index(variable)]
        self.assign(velocity, self.rho * velocity + (1 - self.rho) * ops.square(gradient))
        self.assign_sub(variable, learning_rate * gradient / (ops.sqrt(velocity) + self.epsilon))


OPTIMIZERS = {
    "rmsprop": lambda rate: keras.optimizers.RMSprop(rate, epsilon=1e-7),
    "rmsprop2017": lambda rate: RMSprop2017(rate, epsilon=1e-8),
}


class Inference(layers.Layer):
    """A model that stays in inference mode: `model(x, training=False)` does not, within a model that is trained."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, x):
        return self.model(x, training=False)


def read_patches(scans, manifest, size, resize):
    """Images [n size size 3] in [0, 1] and the scan of each, of the training and of the test patches."""
    found = {"train": ([], []), "test": ([], [])}
    with h5py.File(scans, "r") as file, manifest.open(newline="") as rows:
        stored = file["test_data/patches"]
        side = stored.shape[1]
        for row in csv.DictReader(rows):
            if row["split"] == "train":
                top, left = int(row["row"]), int(row["col"])
                gray = file[f"scan{row['scan']}/data"][top : top + side, left : left + side]
            else:
                gray = stored[int(row["patch_id"].rsplit("/", 1)[1])]
            image = Image.fromarray(gray).resize((size, size), getattr(Image.Resampling, resize.upper()))
            found[row["split"]][0].append(np.asarray(image))
            found[row["split"]][1].append(int(row["scan"]))
    return {
        split: (np.repeat(np.stack(images)[..., None], 3, axis=-1).astype("float32") / 255, np.array(labels))
        for split, (images, labels) in found.items()
    }


def build(network, size, weights, top):
    """The whole network, the last frozen layer's output, and what a head gets."""
    about = NETWORKS[network]
    model = about["build"](weights=None, include_top=top, input_shape=(size, size, 3) if not top else None)
    model.load_weights(weights)
    last = model.get_layer(about["last"]).output
    pooled = layers.Flatten()(last) if network == "vgg16" else layers.GlobalAveragePooling2D()(last)
    return model, model.get_layer(about["frozen"]).output, pooled


def scores(predicted, labels):
    right = predicted == labels
    eta_p, eta_w = right.mean(), np.mean([right[labels == scan].mean() for scan in np.unique(labels)])
    return {"eta_p": eta_p, "eta_w": eta_w, "eta_total": eta_p * eta_w, "predicted": predicted.tolist()}


def trained(model, optimizer, inputs, labels, epochs):
    """The loss of each epoch."""
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model.fit(inputs, labels, batch_size=32, epochs=epochs, verbose=0).history["loss"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--scans", type=Path, required=True, help="a scan file in the layout of Kimia_Path24.h5")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.csv of a run, whose patches are taken")
    parser.add_argument("--weights", required=True, help="a weight file of keras.applications")
    parser.add_argument("--top", action="store_true", help="the weight file has the ImageNet classes")
    parser.add_argument("--out", type=Path, required=True, help="the .json file to write")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--resize", default="box", choices=("nearest", "bilinear", "box"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the head, dropout and order")
    parser.add_argument("--head-optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    parser.add_argument("--trained-bn", nargs="+", default=["inference", "keras2017"])
    parser.add_argument("--head-epochs", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    options = parser.parse_args()

    found = read_patches(options.scans, options.manifest, options.image_size, options.resize)
    (train, scans), (test, test_scans) = found["train"], found["test"]
    classes, hidden = int(scans.max()) + 1, NETWORKS[options.network]["hidden"]
    model, frozen, pooled = build(options.network, options.image_size, options.weights, options.top)
    both = keras.Model(model.input, [frozen, pooled])
    (stored, bottleneck), (test_stored, test_bottleneck) = (
        both.predict(images, batch_size=32, verbose=0) for images in (train, test)
    )
    modes = options.trained_bn if options.network == "inception_v3" else options.trained_bn[:1]  # VGG16 has no such
    results = []
    for seed in options.seeds:
        for name in options.head_optimizers:
            keras.utils.set_random_seed(seed)
            dropout = [layers.Dropout(0.5)] if options.network == "vgg16" else []
            start = keras.Input(bottleneck.shape[1:])
            head = keras.Sequential(
                [start, layers.Dense(hidden, activation="relu"), *dropout, layers.Dense(classes)], name="head"
            )
            losses = trained(head, OPTIMIZERS[name](1e-3), bottleneck, scans, options.head_epochs)
            predicted = head.predict(test_bottleneck, verbose=0).argmax(axis=1)
            about = {"seed": seed, "head_optimizer": name}
            results.append({**about, "row": "HD", "losses": losses, **scores(predicted, test_scans)})
            kept = head.get_weights()
            for mode in modes:
                _, frozen, pooled = build(options.network, options.image_size, options.weights, options.top)
                after, images = keras.Model(frozen, pooled), keras.Input(stored.shape[1:])
                head.set_weights(kept)
                tuned = keras.Model(images, head(Inference(after)(images) if mode == "inference" else after(images)))
                optimizer = keras.optimizers.SGD(options.learning_rate, momentum=0.9)
                losses = trained(tuned, optimizer, stored, scans, options.epochs)
                predicted = tuned.predict(test_stored, verbose=0).argmax(axis=1)
                tl = {**about, "row": "TL", "trained_bn": mode, "losses": losses, **scores(predicted, test_scans)}
                results.append(tl)
                print(seed, name, mode, f"TL {tl['eta_p']:.4f}, losses {losses[0]:.3f} to {losses[-1]:.3f}", flush=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    about = {"keras": keras.__version__, "backend": keras.backend.backend(), "settings": settings}
    options.out.write_text(json.dumps({**about, "scans": test_scans.tolist(), "results": results}) + "\n")


if __name__ == "__main__":
    main()
