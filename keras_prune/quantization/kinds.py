"""What of a model TFLite's converter makes one int8 operator of, and which results have a range of their own."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_prune.keras_seam import from_keras, is_operation, own_variables
from keras_prune.layer_kinds import altered, kernels_of, kinds_where
from keras_prune.models.masked_layers import mask_pairs_of
from keras_prune.quantization.rounding import channel_axes

__all__ = [
    "FIXED",
    "FUSED",
    "activation_in",
    "fuses",
    "keeps_range",
    "name_of_activation",
    "name_of_function",
    "refusal_of",
    "scaled_kernels",
]

ROUNDED = (kl.Dense, kl.Conv1D, kl.Conv2D, kl.Conv2DTranspose, kl.DepthwiseConv2D)
"""Layers whose kernels are rounded as the converter does it: one operator, one kernel, a scale for each output."""
FIXED = {"softmax": (0.0, 255 / 256), "sigmoid": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}
"""Activations whose results have one range in every file."""
FUSED = ("linear", "relu", "relu6")
"""Activations that are a part of the operator before them: what they are given is never rounded."""
# fmt: off
SAME_RANGE = frozenset({
    "AveragePooling1D", "AveragePooling2D", "Cropping1D", "Cropping2D", "Flatten", "GlobalMaxPooling1D",
    "GlobalMaxPooling2D", "Identity", "MaxPooling1D", "MaxPooling2D", "Permute", "RepeatVector", "Reshape",
    "ZeroPadding1D", "ZeroPadding2D", "Masking",
    "AveragePool", "ExpandDims", "Flip", "GetItem", "MaxPool", "Pad", "Repeat", "Squeeze", "SwapAxes", "Tile",
    "Transpose", "Unstack", "Split",
})
"""Layers and operations of `keras.ops`, by class, whose results have the range of what they are given."""
TRAINING_ONLY = kinds_where(lambda kind: kind.training_only)
SUMS = frozenset({"Add", "Subtract", "Multiply"})
"""Layers and operations of `keras.ops`, by class, whose operators take an activation in."""
# fmt: on
OPERATIONS = {"Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "Tanh": "tanh", "Softmax": "softmax"}


def refusal_of(layer: Any) -> str:
    """Return why a layer's kernels are not rounded; empty where they are."""
    if mask_pairs_of(layer):
        return "it carries masks of its own: call keras_prune.strip(model) first"
    if altered(layer):
        return altered(layer)
    if type(layer) in ROUNDED:
        return ""
    if not kernels_of(layer):
        return "it has no kernel that is known"
    if isinstance(layer, ROUNDED):
        return "a class of its own, of which it is not known what the converter makes"
    if isinstance(layer, kl.SeparableConv1D | kl.SeparableConv2D):
        return "two operators in one layer, and no range for what is between: write a DepthwiseConv2D and a Conv2D"
    if isinstance(layer, kl.Embedding):
        return "a table is read, not multiplied; the export gives it one scale"
    return f"{type(layer).__name__} is not known to become one int8 operator"


def scaled_kernels(layer: Any) -> list[tuple[keras.Variable, tuple[int, ...]]]:
    """Return the kernels of a layer, each with the axes along which its scales run."""
    kernels = kernels_of(layer) or {}
    return [
        (variable, channel_axes(kernels[variable.name].layout(layer, len(variable.shape)), len(variable.shape)))
        for variable in own_variables(layer)
        if variable.name in kernels
    ]


def name_of_activation(operation: Any) -> str:
    """Return the name of the activation function that a layer or operation is; empty if it is none that is known."""
    if isinstance(operation, kl.Activation):
        return name_of_function(operation.activation)
    if isinstance(operation, kl.ReLU):
        plain = not operation.negative_slope and not operation.threshold
        return {None: "relu", 6.0: "relu6"}.get(operation.max_value, "") if plain else ""
    if isinstance(operation, kl.Softmax):
        return "softmax" if operation.axis == -1 else ""
    return OPERATIONS.get(type(operation).__name__, "") if is_operation(operation) else ""


def activation_in(layer: Any) -> str:
    """Return the name of the activation function that a layer with kernels ends with; "linear" for none."""
    return name_of_function(getattr(layer, "activation", None))


def name_of_function(function: Any) -> str:
    """Return the name of an activation function; "linear" for None."""
    return "linear" if function is None else str(getattr(function, "__name__", type(function).__name__))


def fuses(before: Any, after: Any, folded: bool) -> bool:
    """Return whether two calls become one operator, where nothing else reads what is between them.

    Args:
        before: the layer or operation that is called first.
        after: the one that reads its result.
        folded: whether `before` is a batch normalization that is folded into the kernel before it.
    """
    linear = isinstance(before, ROUNDED) and activation_in(before) == "linear"
    if isinstance(after, kl.BatchNormalization):
        return linear
    if name_of_activation(after) in FUSED:
        return folded or linear or (_is_known(before) and type(before).__name__ in SUMS)
    return False


def keeps_range(operation: Any) -> bool:
    """Return whether what an operation gives has the range of what it is given."""
    nearest = isinstance(operation, kl.UpSampling2D) and operation.interpolation == "nearest"
    by_name = _is_known(operation) and type(operation).__name__ in SAME_RANGE
    return nearest or by_name or isinstance(operation, TRAINING_ONLY)


def _is_known(operation: Any) -> bool:
    """Return whether the name of an operation's class says what it is."""
    return from_keras(type(operation)) or is_operation(operation)
