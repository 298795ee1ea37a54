"""Elementwise functions: which functions are elementwise, and whether they are 0 at 0."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

__all__ = ["UNARY", "activate", "is_elementwise", "keeps_zero"]

SEPARABLE = frozenset((
    "celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_tanh",
    "leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink",
    "softplus", "softsign", "sparse_plus", "sparse_sigmoid", "squareplus", "tanh", "tanh_shrink", "threshold",
))  # fmt: skip
"""Names of Keras's elementwise activations. Softmax, sparsemax and glu are not elementwise."""

UNARY = (
    "Absolute", "Abs", "Fabs", "Arcsinh", "Arctan", "Ceil", "Celu", "Copy", "Cos", "Cosh", "Elu", "Erf",
    "Exp", "Exp2", "Expm1", "Floor", "Gelu", "HardShrink", "HardSigmoid", "HardSilu", "HardTanh", "LeakyRelu",
    "Log1p", "LogSigmoid", "NanToNum", "Negative", "Relu", "Relu6", "Round", "Selu", "Sigmoid", "Sign",
    "Silu", "Sin", "Sinh", "SoftShrink", "Softplus", "Softsign", "SparsePlus", "SparseSigmoid", "Sqrt",
    "Square", "Squareplus", "Tan", "Tanh", "TanhShrink", "Threshold", "Trunc", "Clip", "Cast", "SaturateCast",
    "StopGradient", "LogicalNot", "Isnan", "Isfinite",
    "ConvertToTensor", "ZerosLike", "OnesLike", "Reciprocal", "Rsqrt", "Log",
)  # fmt: skip
"""Names of the elementwise operations of `keras.ops` that take one tensor."""

EACH_NUMBER = frozenset({*UNARY, "Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Power"})

LAST_AXIS = frozenset({"softmax", "log_softmax"})


def keeps_zero(function: Any) -> bool:
    """Whether f(0) = 0."""
    return bool(np.all(ops.convert_to_numpy(function(ops.zeros((1, 1)))) == 0.0))


def activate(call: Any, dims: Any, function: Any) -> Any:
    """The entries after an activation function: the same, unless it normalises or is not known to be elementwise.

    Axes that it normalises over are frozen; all axes are if the function is not known.
    """
    if function is None:
        return dims
    name = getattr(function, "__name__", type(function).__name__)
    if name == "linear":
        return dims
    if getattr(keras.activations, name, None) is function and name in SEPARABLE:
        return dims.with_zero(keeps_zero(function))
    if isinstance(function, ELEMENTWISE_LAYERS):
        return dims.with_zero(keeps_zero(function))
    if getattr(keras.activations, name, None) is function and name in LAST_AXIS:
        call.freeze(dims[-1], f"{name} normalises over this axis")
        return dims.replaced(-1, None).with_zero(False)
    if is_elementwise(function):
        return dims.with_zero(keeps_zero(function))
    for entry in dims:
        call.freeze(entry, f"the activation {name!r} is not known to be elementwise")
    return type(dims)([None] * len(dims))


def is_elementwise(function: Any) -> bool:
    """Whether a user's function calls nothing but elementwise `keras.ops`."""
    inputs = keras.Input((2, 3))
    try:
        outputs = function(inputs)
        nodes = keras.Function(inputs, outputs).operations
    except Exception:
        return False
    names = [type(one).__name__ for one in nodes if not isinstance(one, keras.layers.InputLayer)]
    return all(name in EACH_NUMBER for name in names)


ELEMENTWISE_LAYERS = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
