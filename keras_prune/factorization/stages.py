"""Keras layers in a row that compute what one layer did, with factors of its kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from keras_prune.factorization.chains import Array
from keras_prune.models.variables import assign, read

__all__ = ["NameGiver", "chain_layers", "finished", "given_weights"]

NameGiver = Callable[[str], str]
"""A name that is wished for -> one that no layer of the model has."""


def chain_layers(
    layer: Any, kernels: Sequence[Array], moves: Sequence[Sequence[int]], name: NameGiver
) -> list[keras.Layer]:
    """Return built layers of the same class in the place of a Dense layer or a convolution.

    The last has the name, the bias, the activation and all that is said of these; it gives what the old layer gave.

    Args:
        layer: the old one, built.
        kernels: in order, `[window..., in, out]`.
        moves: for each, the axes of the window that it takes over, with the strides and the dilation along them.
        name: makes names of layers.
    """
    made = []
    for place, (kernel, axes) in enumerate(zip(kernels, moves, strict=True)):
        last = place == len(kernels) - 1
        label = layer.name if last else name(f"{layer.name}_factor{place + 1}")
        config = {**_shared(layer, kernel, axes), "name": label, **(finished(layer) if last else {"use_bias": False})}
        made.append(given_weights(_class(layer)(**config), kernel, layer if last else None))
    return made


def _class(layer: Any) -> Any:
    return next(kind for kind in (kl.Dense, kl.Conv1D, kl.Conv2D) if isinstance(layer, kind))


def _shared(layer: Any, kernel: Array, axes: Sequence[int]) -> dict[str, Any]:
    """What each of the layers takes from the old one."""
    config = {"dtype": layer.dtype_policy, "kernel_regularizer": layer.kernel_regularizer}
    if isinstance(layer, kl.Dense):
        return {**config, "units": kernel.shape[-1]}

    def along(values: Sequence[int]) -> tuple[int, ...]:
        return tuple(value if axis in axes else 1 for axis, value in enumerate(values))

    return {
        **config,
        "filters": kernel.shape[-1],
        "kernel_size": kernel.shape[:-2],
        "strides": along(layer.strides),
        "dilation_rate": along(layer.dilation_rate),
        "padding": layer.padding if axes else "valid",
        "data_format": layer.data_format,
    }


def finished(layer: Any) -> dict[str, Any]:
    """What the last of the layers takes: the bias, the activation, and what is said of both."""
    names = (
        "use_bias",
        "activation",
        "bias_initializer",
        "bias_regularizer",
        "bias_constraint",
        "activity_regularizer",
    )
    return {name: getattr(layer, name) for name in names}


def given_weights(layer: Any, kernel: Array, old: Any = None) -> Any:
    """Build a layer whose kernel's last axes are in and out; give it a kernel, and the bias of an old layer."""
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    window = kernel.ndim - 2
    sizes = (None,) * window
    layer.build((None, kernel.shape[-2], *sizes) if channels_first else (None, *sizes, kernel.shape[-2]))
    assign(layer.kernel, np.asarray(kernel, np.float64).astype(read(layer.kernel).dtype))
    if old is not None and old.bias is not None:
        assign(layer.bias, np.array(read(old.bias)))
        layer.bias.trainable = old.bias.trainable
    return layer
