"""The network of two blocks as Keras has it, and the mapping of its files."""

from weights_convert.keras_h5 import HEAD_TABLE, batch_norm
from weights_convert.mapping import AS_IS, MINUS_ONE_TO_ONE, Convention, Files, KerasModel, Table

EPSILON = 1e-5
BLOCKS = {"one": (4, 4), "two": (3, 1)}  # side and stride of the kernel

KERAS: Table = {}
for block in BLOCKS:
    KERAS[f"{block}_conv/kernel"] = (("params", block, "conv", "kernel"), AS_IS)
    KERAS |= batch_norm(f"{block}_bn", block, "bn", scale=True)
MODEL = KerasModel("support.keras_two:build", {block: f"{block}_relu" for block in BLOCKS})
FILES = {"keras": Files((KERAS | HEAD_TABLE,), Convention({}, MINUS_ONE_TO_ONE, batch_norm_epsilon=EPSILON), MODEL)}


def build(weights=None, include_top=True, input_shape=None, classes=1000, classifier_activation=None):
    import keras  # in the reference's process alone

    x = start = keras.Input(input_shape)
    for name, (kernel, stride) in BLOCKS.items():
        x = keras.layers.Conv2D(8, kernel, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
        x = keras.layers.BatchNormalization(epsilon=EPSILON, name=f"{name}_bn")(x)
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
    return keras.Model(start, x)
