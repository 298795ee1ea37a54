"""Which operations treat every place of a map alike, so that a map may be mirrored, or lose its places, before them.

A map is a tensor [batch, height, width, channels].
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers as kl

from keras_prune.keras_seam import from_keras, is_operation

__all__ = ["forgets_places", "is_one_of", "is_placewise"]

_UNARY_LAYERS = (
    kl.ActivityRegularization,
    kl.AlphaDropout,
    kl.Dense,
    kl.Dropout,
    kl.ELU,
    kl.GaussianDropout,
    kl.GaussianNoise,
    kl.Identity,
    kl.LeakyReLU,
    kl.ReLU,
    kl.SpatialDropout2D,
)
_CHANNEL_LAYERS = (
    kl.BatchNormalization,
    kl.GroupNormalization,  # it sums over all places, in no order
    kl.LayerNormalization,
    kl.RMSNormalization,
    kl.Softmax,
    kl.UnitNormalization,
)
_MERGING_LAYERS = (kl.Add, kl.Average, kl.Maximum, kl.Minimum, kl.Multiply, kl.Subtract)
# fmt: off
_UNARY_OPERATIONS = frozenset({
    "Absolute", "Cast", "Celu", "Ceil", "Clip", "Copy", "Cos", "Elu", "Exp", "Expm1", "Floor", "Gelu", "HardShrink",
    "HardSigmoid", "HardSilu", "HardTanh", "LeakyRelu", "Log", "Log1p", "LogSigmoid", "Negative", "Reciprocal",
    "Relu", "Relu6", "Round", "Rsqrt", "Selu", "Sigmoid", "Sign", "Silu", "Sin", "SoftShrink", "Softplus",
    "Softsign", "Sqrt", "Square", "Tanh", "TanhShrink", "Threshold",
})
# fmt: on
_BINARY_OPERATIONS = frozenset({"Add", "Divide", "Maximum", "Minimum", "Multiply", "Power", "Subtract", "TrueDivide"})
_REDUCTIONS = frozenset({"Amax", "Amin", "Max", "Mean", "Min", "Sum"})


def is_one_of(operation: Any, names: frozenset[str]) -> bool:
    """Return whether an operation is one of `keras.ops` with one of these class names."""
    return is_operation(operation) and type(operation).__name__ in names


def is_placewise(node: Any, rank: int = 4) -> bool:
    """Return whether each place of a node's output depends on the same place of its inputs only, in the same way.

    Inputs may also be constants or tensors that hold the same for all places: [batch, 1, 1, channels].

    Args:
        node: of a flat model.
        rank: of its inputs: 4 for maps, 2 for [batch, channels].
    """
    operation, inputs = node.operation, node.input_tensors
    kind = type(operation)
    if any(len(tensor.shape) != rank for tensor in inputs):
        return False
    if kind in _MERGING_LAYERS:
        return True
    if is_one_of(operation, _BINARY_OPERATIONS):
        return all(_is_same_for_all_places(value) for value in _arguments(node))
    if kind is kl.Concatenate or is_one_of(operation, frozenset({"Concatenate"})):
        return operation.axis in (-1, rank - 1)
    if len(inputs) != 1:
        return False
    if kind in _UNARY_LAYERS or is_one_of(operation, _UNARY_OPERATIONS):
        return True
    if is_one_of(operation, _REDUCTIONS):
        axes = operation.axis
        return bool(operation.keepdims) and axes is not None and [axis % rank for axis in axes] == [rank - 1]
    if kind in _CHANNEL_LAYERS:
        return _axis(operation) in (-1, rank - 1)
    if kind is kl.Activation:
        # A function of the user's own may look at several places; Keras's softmax looks at the channels.
        return from_keras(operation.activation)
    if kind is kl.PReLU:
        return all(size == 1 for size in operation.alpha.shape[:-1])
    if kind is kl.Rescaling:
        return _is_same_for_all_places(operation.scale) and _is_same_for_all_places(operation.offset)
    if kind is kl.Normalization:
        return _is_same_for_all_places(operation.mean) and _is_same_for_all_places(operation.variance)
    return False


def forgets_places(node: Any) -> bool:
    """Return whether a node reduces a map over all its places: their order does not matter, and none is left."""
    operation = node.operation
    if len(node.input_tensors) != 1 or len(node.input_tensors[0].shape) != 4:
        return False
    if type(operation) in (kl.GlobalAveragePooling2D, kl.GlobalMaxPooling2D):
        return bool(operation.data_format == "channels_last")
    if is_one_of(operation, _REDUCTIONS):
        axes = operation.axis
        return axes is not None and sorted(axis % 4 for axis in axes) in ([1, 2], [1, 2, 3])
    return False


def _axis(operation: Any) -> int | None:
    axis = operation.axis
    if isinstance(axis, (list, tuple)):
        return axis[0] if len(axis) == 1 else None
    return axis


def _arguments(node: Any) -> list[Any]:
    return [value for value in keras.tree.flatten((node.arguments.args, node.arguments.kwargs)) if value is not None]


def _is_same_for_all_places(value: Any) -> bool:
    """Return whether a constant broadcasts over all places; a tensor of the model does, or is a map itself."""
    return isinstance(value, keras.KerasTensor) or all(size == 1 for size in np.shape(value)[:-1])
