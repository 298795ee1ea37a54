"""What is said of a Keras graph before training, held against the file that is made of it."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_prune.devices.sparse_inference import clusters_of
from keras_prune.graph.wiring import wire
from tflite_export import export, inspect


def squeeze(x):
    s = layers.Dense(4, activation="relu", name="squeeze")(layers.GlobalAveragePooling2D()(x))
    return layers.Multiply()([x, layers.Reshape((1, 1, 32))(layers.Dense(32, activation="sigmoid", name="excite")(s))])


def normalised(x):
    shifted = keras.initializers.RandomNormal(1.0, seed=1)
    return layers.BatchNormalization(beta_initializer=shifted)(layers.ReLU()(x))


INNER = {
    "squeeze-and-excitation": squeeze,
    "a Dense on the map": lambda x: layers.Dense(32, name="dense")(x),
    "swish and a scalar": lambda x: layers.Activation("swish")(x) * 0.5,
    "5x5 depthwise at stride 2": lambda x: layers.DepthwiseConv2D(5, 2, "same")(x),
    "normalisation after ReLU": normalised,
    "ReLU3": lambda x: layers.ReLU(3.0)(x),
    "a difference": lambda x: layers.Subtract()([x, layers.Conv2D(32, 1, name="other")(x)]),
    "attention over channels": lambda x: layers.Multiply()(
        [x, layers.Reshape((1, 1, 32))(layers.Conv1D(1, 3, padding="same")(layers.Reshape((32, 1))(squeezed(x))))]
    ),
}


def squeezed(x):
    return layers.GlobalAveragePooling2D()(x)


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_a_cluster_without_blockers_runs_sparse_and_one_with_them_does_not(tmp_path, inner):
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(image)
    x = layers.Conv2D(32, 1, name="last")(inner(layers.Conv2D(32, 1, name="mix")(x)))
    model = keras.Model(image, layers.Dense(4, name="head")(squeezed(x)))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.name in ("mix", "last", "dense", "other", "squeeze", "excite"):
            layer.kernel.assign(layer.kernel.numpy() * (rng.random(layer.kernel.shape) > 0.8))
    blockers = [blocker for cluster in clusters_of(wire(model)) for blocker in cluster.blockers]
    images = rng.normal(size=(2, 16, 16, 3)).astype("float32")
    export(model, tmp_path / "m.tflite", target="web", data=images, batch_size=1)
    assert inspect(tmp_path / "m.tflite", target="web").runs_sparse == (not blockers)
