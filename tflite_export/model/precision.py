"""What layers compute in: float32 for an export, whatever they were trained in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras

from keras_prune.keras_seam import layers_in
from keras_prune.layer_kinds import quantization_of
from tflite_export.errors import ExportError

__all__ = ["float32"]


@contextmanager
def float32(model: keras.Model) -> Iterator[tuple[str, ...]]:
    """Let the layers of a model compute in float32, their variables' type, and put their policies back.

    TFLite has no float16 or bfloat16 kernels for what `mixed_float16` and `mixed_bfloat16` layers do.

    Yields:
        Paths of the layers that computed in another type.

    Raises:
        ExportError: a layer was quantized by Keras, which TFLite's kernels cannot express.

    Example:
        >>> model = keras.Sequential([keras.layers.Dense(2, dtype="mixed_float16")])
        >>> with float32(model):
        ...     print(model.layers[0].compute_dtype)
        float32
        >>> print(model.layers[0].compute_dtype)
        float16
    """
    changed = []
    for layer in layers_in(model):
        mode = quantization_of(layer)
        if mode is not None:
            raise ExportError(
                f"layer '{layer.path}'",
                "must not be quantized by Keras before an export",
                mode,
                "Export the model that it was quantized from.",
            )
        if layer.compute_dtype in ("float16", "bfloat16"):
            changed.append((layer, layer.dtype_policy))
    try:
        for layer, _ in changed:
            layer.dtype_policy = "float32"
        yield tuple(layer.path for layer, _ in changed)
    finally:
        for layer, policy in changed:
            layer.dtype_policy = policy
