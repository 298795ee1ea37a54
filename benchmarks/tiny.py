"""Networks like those of MLPerf Tiny, with random weights, for microcontrollers and their NPUs.

Source: Banbury et al., "MLPerf Tiny Benchmark", 2021, https://arxiv.org/abs/2106.07597, and its reference models.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import layers as kl
from numpy.typing import NDArray

__all__ = ["NETWORKS", "autoencoder", "ds_cnn", "inputs_of", "resnet8", "small_cnn"]


def autoencoder() -> keras.Model:
    """Return the autoencoder that finds anomalies in machine sounds: 10 Dense layers, 640 inputs."""
    inputs = keras.Input((640,))
    x = inputs
    for units in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = kl.ReLU()(kl.BatchNormalization()(kl.Dense(units)(x)))
    return keras.Model(inputs, kl.Dense(640)(x), name="autoencoder")


def ds_cnn() -> keras.Model:
    """Return the depthwise separable network that spots keywords: 49 x 10 features, 12 classes."""
    inputs = keras.Input((49, 10, 1))
    x = kl.Conv2D(64, (10, 4), strides=2, padding="same", use_bias=False)(inputs)
    x = kl.ReLU()(kl.BatchNormalization()(x))
    for _ in range(4):
        x = kl.ReLU()(kl.BatchNormalization()(kl.DepthwiseConv2D(3, padding="same", use_bias=False)(x)))
        x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(64, 1, use_bias=False)(x)))
    x = kl.Dense(12)(kl.Flatten()(kl.AveragePooling2D((25, 5))(x)))
    return keras.Model(inputs, kl.Softmax()(x), name="ds_cnn")


def resnet8() -> keras.Model:
    """Return the residual network that classifies small pictures: 32 x 32 x 3, 10 classes."""
    inputs = keras.Input((32, 32, 3))
    x = _convolved(inputs, 16, 1, relu=True)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = _convolved(_convolved(x, filters, stride, relu=True), filters, 1)
        if stride > 1:
            x = kl.Conv2D(filters, 1, strides=stride, padding="same")(x)
        x = kl.ReLU()(kl.Add()([x, y]))
    x = kl.Dense(10)(kl.Flatten()(kl.AveragePooling2D(8)(x)))
    return keras.Model(inputs, kl.Softmax()(x), name="resnet8")


def small_cnn() -> keras.Model:
    """Return a plain convolutional network for 28 x 28 pictures, which is none of MLPerf Tiny's: 10 classes."""
    inputs = keras.Input((28, 28, 1))
    x = kl.MaxPooling2D()(kl.Conv2D(16, 3, padding="same", activation="relu")(inputs))
    x = kl.MaxPooling2D()(kl.Conv2D(32, 3, padding="same", activation="relu")(x))
    x = kl.Dense(56, activation="relu")(kl.Flatten()(x))
    return keras.Model(inputs, kl.Dense(10)(x), name="small_cnn")


def _convolved(x: keras.KerasTensor, filters: int, stride: int, *, relu: bool = False) -> keras.KerasTensor:
    x = kl.BatchNormalization()(kl.Conv2D(filters, 3, strides=stride, padding="same")(x))
    return kl.ReLU()(x) if relu else x


def inputs_of(model: keras.Model, count: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """Return normally distributed inputs for a model."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, *model.input_shape[1:])).astype("float32")


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "autoencoder": autoencoder,
    "ds_cnn": ds_cnn,
    "resnet8": resnet8,
}
"""The networks, by name."""
