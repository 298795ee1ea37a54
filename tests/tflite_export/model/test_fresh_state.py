"""What layers compute once, from data that they were adapted to, is in the file too: it answers as the model given."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_prune import Prunable, prune
from tflite_export import export
from tflite_export.runtimes.litert import LiteRTSession

X = np.random.default_rng(0).normal(50, 10, (32, 8)).astype("float32")
MAPS = np.random.default_rng(1).normal(50, 10, (4, 16, 16, 3)).astype("float32")


def adapted(kind=layers.Normalization, data=X, **options):
    layer = kind(**options)
    layer.adapt(data)
    return layer


def plain():
    return keras.Sequential([keras.Input((8,)), adapted(), layers.Dense(16, "relu"), layers.Dense(3)]), X


def nested():
    inner = keras.Sequential([keras.Input((8,)), adapted(), layers.Dense(16, "relu")])
    outer = keras.Sequential([keras.Input((8,)), inner, layers.Dense(4)])
    return keras.Sequential([keras.Input((8,)), outer, layers.Dense(3)]), X


def shared():
    left, right, norm = keras.Input((8,)), keras.Input((8,)), adapted()
    return keras.Model([left, right], layers.Dense(3)(layers.Add()([norm(left), norm(right)]))), [X, X[::-1].copy()]


def wrapped():
    inputs = keras.Input((5, 8))
    return keras.Model(inputs, layers.Dense(3)(layers.TimeDistributed(adapted())(inputs))), np.repeat(X[:, None], 5, 1)


def discretized():
    layer = adapted(layers.Discretization, num_bins=6)
    inputs = keras.Input((8,))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Embedding(6, 4)(layer(inputs))))), X


def mirrored():
    """A net that an export for a browser rewrites: one-sided padding at a stride of 2, and sparse 1x1 convolutions."""
    stack = [
        keras.Input((16, 16, 3)),
        adapted(data=MAPS, axis=-1),
        layers.ZeroPadding2D(((0, 1), (0, 1))),
        layers.Conv2D(8, 3, strides=2, use_bias=False),
        layers.ReLU(),
        layers.Conv2D(16, 1),
        layers.DepthwiseConv2D(3, padding="same"),
        layers.Conv2D(16, 1),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3),
    ]
    model = keras.Sequential(stack)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D) and layer.kernel_size == (1, 1):
            kernel = np.array(layer.kernel)
            kernel.reshape(-1)[: round(0.85 * kernel.size)] = 0
            layer.kernel.assign(kernel)
    return model, MAPS


def masked(make):
    """The model with a layer around one Dense that holds its mask, so that the export works on a copy."""
    model, data = make()
    norm = next(layer for layer in model.layers if isinstance(layer, layers.Normalization))
    made = keras.Sequential([keras.Input((8,)), norm, Prunable(layers.Dense(16, "relu")), layers.Dense(3)])
    return prune(made, 0.5), data


def masked_nested():
    model, data = masked(plain)
    return keras.Sequential([keras.Input((8,)), model, layers.Dense(2)]), data


MODELS = {
    "plain": plain,
    "nested": nested,
    "shared": shared,
    "wrapped": wrapped,
    "discretized": discretized,
    "mirrored": mirrored,
    "masked": lambda: masked(plain),
    "masked inside": masked_nested,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_file_answers_as_the_model_that_was_given(name, tmp_path):
    """Without what was adapted, answers are off by more than their scale: mean 0, variance 1, or no bins."""
    model, data = MODELS[name]()
    wanted = np.asarray(model(data))
    model.save(tmp_path / "model.keras")
    for given in (model, tmp_path / "model.keras")[
        : 1 if name == "mirrored" else 2
    ]:  # which runs in a browser's engine too
        report = export(given, tmp_path / "model.tflite", data=data, target="web" if name == "mirrored" else None)
        session = LiteRTSession((tmp_path / "model.tflite").read_bytes())
        feeds = data if isinstance(data, list) else [data]
        names = sorted(session.inputs)
        (got,) = session.run(feeds, names, list(session.outputs))
        assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()
        assert {change.rewrite for change in report.changes} >= ({"mirror"} if name == "mirrored" else set())
    np.testing.assert_array_equal(np.asarray(model(data)), wanted)
