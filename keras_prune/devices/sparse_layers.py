"""Which layers and operations of Keras XNNPACK's sparse inference supports, one by one, and why not the others.

Rules: XNNPACK `src/subgraph.c`, `xnn_check_nchw_compatibility`; LiteRT `tflite/delegates/xnnpack/xnnpack_delegate.cc`.
What a layer's neighbours decide is in `keras_prune.devices.sparse_inference`.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from keras_prune.keras_seam import Sum, from_keras
from keras_prune.layer_kinds import kinds_where

__all__ = [
    "CONVOLUTIONS",
    "CURES",
    "PLACEWISE",
    "VANISHING",
    "is_depthwise",
    "is_known",
    "is_pointwise",
    "is_stem",
    "is_sum_of_map",
    "why_not_activation",
    "why_not_convolution",
    "why_not_depthwise",
]

# fmt: off
PLACEWISE = frozenset({
    "Abs", "Absolute", "Activation", "ActivityRegularization", "Add", "AlphaDropout", "Average", "Cast", "Celu", "Ceil",
    "Clip", "Cos", "Dropout", "ELU", "Elu", "Exp", "Floor", "GaussianDropout", "GaussianNoise", "Gelu", "HardSigmoid",
    "HardSilu", "HardTanh", "Identity", "LeakyReLU", "LeakyRelu", "Log", "Multiply", "Negative", "ReLU", "Relu",
    "Relu6", "Rescaling", "Round", "Rsqrt", "Sigmoid", "Silu", "Sin", "SpatialDropout2D", "Sqrt", "Square", "Tanh",
})
"""Classes of elementwise layers and operations of Keras that sparse inference supports."""
VANISHING = frozenset({"Identity", *(kind.__name__ for kind in kinds_where(lambda kind: kind.training_only))})
"""Classes that do nothing at inference."""
# fmt: on
CONVOLUTIONS = (kl.Conv2D, kl.DepthwiseConv2D, kl.SeparableConv2D)
CURES = {
    "AveragePooling2D": "GlobalAveragePooling2D where it covers the whole map, else a depthwise convolution",
    "Concatenate": "a sum",
    "Conv2DTranspose": "UpSampling2D(interpolation='bilinear') and a 1x1 convolution",
    "Flatten": "GlobalAveragePooling2D before it",
    "GlobalMaxPooling2D": "GlobalAveragePooling2D",
    "MaxPooling2D": "a depthwise convolution of stride 2",
    "PReLU": "ReLU or LeakyReLU",
    "Reshape": "GlobalAveragePooling2D before it",
    "Subtract": "add the negative",
}
"""Class of a layer that sparse inference does not support -> what to write instead."""


def is_stem(layer: Any) -> bool:
    """Whether a layer is a 3x3 convolution of 3 channels at stride 2, where sparse inference may begin."""
    if not isinstance(layer, kl.Conv2D) or not layer.built or layer.groups != 1:
        return False
    return tuple(layer.kernel.shape[:3]) == (3, 3, 3) and tuple(layer.strides) == (2, 2)


def is_pointwise(layer: Any) -> bool:
    """Whether a layer holds a 1x1 convolution of one group without strides."""
    if isinstance(layer, kl.SeparableConv2D):
        return True
    if not isinstance(layer, kl.Conv2D) or isinstance(layer, kl.DepthwiseConv2D):
        return False
    return tuple(layer.kernel_size) == (1, 1) and layer.groups == 1 and set(layer.strides) == {1}


def why_not_convolution(layer: Any) -> str:
    """Why sparse inference does not support a convolution that is no stem; empty where it does."""
    kernel = "x".join(map(str, layer.kernel_size))
    channels = layer.kernel.shape[2] * layer.groups
    if set(layer.dilation_rate) != {1}:
        return "it is dilated"
    if layer.groups != 1:
        return "it has groups; instead: a depthwise and a 1x1 convolution"
    if tuple(layer.kernel_size) == (1, 1):
        return "" if set(layer.strides) == {1} else f"a 1x1 convolution of stride {layer.strides[0]}"
    if tuple(layer.kernel_size) == (3, 3) and channels == 3:
        return f"the first convolution has stride {layer.strides[0]}, and only 2 is supported"
    return f"a {kernel} convolution of {channels} channels; instead: a depthwise and a 1x1 convolution"


def why_not_depthwise(layer: Any) -> str:
    """Why sparse inference does not support a depthwise convolution; empty where it does."""
    if tuple(layer.kernel_size) not in ((3, 3), (5, 5)):
        return f"a {'x'.join(map(str, layer.kernel_size))} depthwise kernel, and only 3x3 and 5x5 are supported"
    if tuple(layer.strides) not in ((1, 1), (2, 2)):
        return f"stride {tuple(layer.strides)}, and only 1 and 2 are supported"
    if set(layer.dilation_rate) != {1}:
        return "it is dilated"
    if layer.depth_multiplier != 1:
        return f"depth_multiplier={layer.depth_multiplier}, and only 1 is supported"
    return ""


def why_not_activation(operation: Any) -> str:
    """Why sparse inference does not support the activation of a layer; empty where it does."""
    if isinstance(operation, kl.ReLU) and operation.max_value not in (None, 6):
        return f"max_value={operation.max_value:g}, and only 6 is supported"
    if isinstance(operation, kl.ReLU) and operation.threshold:
        return f"threshold={operation.threshold:g}, and only 0 is supported"
    function = getattr(operation, "activation", None)
    if function in (keras.activations.softmax, keras.activations.selu):
        return f"{function.__name__} has no sparse form"
    return ""


def is_sum_of_map(operation: Any) -> bool:
    """Whether an operation sums over height and width."""
    return isinstance(operation, Sum) and operation.axis is not None and sorted(a % 4 for a in operation.axis) == [1, 2]


def is_depthwise(layer: Any) -> bool:
    """Whether a layer holds a depthwise convolution."""
    return isinstance(layer, (kl.DepthwiseConv2D, kl.SeparableConv2D))


def is_known(operation: Any) -> bool:
    """Whether a layer or operation is of Keras itself."""
    return from_keras(type(operation))
