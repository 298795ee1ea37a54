"""Stock networks of keras.applications with random weights, pruned as for a phone: zeros in their 1x1 convolutions."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import keras
import numpy as np

NAMES = ("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "EfficientNetB0")


def pruned(name: str, size: int = 224, zeros: float = 0.9, seed: int = 0) -> keras.Model:
    """Return a network with weights and batch-norm statistics drawn anew, its smallest pointwise weights zero.

    Kernels are drawn from N(0, 2 / fan-in of the weights that stay), as if the network had been trained with its zeros:
    activations keep their scale through all of it.

    Args:
        name: of keras.applications.
        size: of the image.
        zeros: share of each 1x1 convolution's weights.
        seed: of everything drawn.
    """
    rng = np.random.default_rng(seed)
    # Logits, since a softmax of random ones may hold zeros and a one only, and so hide errors.
    model: keras.Model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classifier_activation=None
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.gamma.assign(rng.uniform(0.8, 1.2, shape))
            layer.beta.assign(rng.normal(0.0, 0.1, shape))
            layer.moving_mean.assign(rng.normal(0.0, 0.1, shape))
            layer.moving_variance.assign(rng.uniform(0.8, 1.2, shape))
        elif isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)):
            layer.kernel.assign(_kernel(layer, zeros, rng))
    return model


def _kernel(layer: Any, zeros: float, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    shape = tuple(layer.kernel.shape)
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    values = rng.normal(0.0, np.sqrt(2.0 / np.prod(shape[:2] if depthwise else shape[:-1])), shape)
    if is_pointwise(layer):
        order = np.argsort(np.abs(values), axis=None)
        values.reshape(-1)[order[: round(zeros * values.size)]] = 0.0
        values *= np.sqrt(2.0 / np.prod(shape[:-1])) / values.std()
    return values


def is_pointwise(layer: Any) -> bool:
    """Whether a layer is a 1x1 convolution."""
    return (
        isinstance(layer, keras.layers.Conv2D)
        and not isinstance(layer, keras.layers.DepthwiseConv2D)
        and layer.kernel_size == (1, 1)
    )


def images(name: str, size: int = 224, samples: int = 2, seed: int = 1) -> np.ndarray[Any, Any]:
    """Return pictures of noise, in the range that a network takes: [-1, 1], or [0, 255] where it scales by itself."""
    pictures = np.random.default_rng(seed).uniform(-1.0, 1.0, (samples, size, size, 3))
    return (pictures if name in ("MobileNet", "MobileNetV2") else 127.5 * (pictures + 1.0)).astype("float32")


def stock_file(model: keras.Model, path: Path, *, sparse: bool) -> None:
    """Write what TensorFlow's own converter makes of a model at batch 1, with its sparsity pass or without."""
    import tensorflow as tf

    image = keras.Input(model.inputs[0].shape[1:], batch_size=1)
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(image, model(image)))
    if sparse:
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the signature
        content = converter.convert()
    path.write_bytes(content)
