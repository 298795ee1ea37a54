"""Numbers rounded as TFLite's int8 kernels hold them, with the gradient of the identity."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_prune.arrays.layouts import Layout

__all__ = ["LARGEST", "channel_axes", "round_range", "round_weights"]

LARGEST = 127
"""The largest int8 weight; -128 is left out, so that the range is symmetric."""


def channel_axes(layout: Layout, rank: int) -> tuple[int, ...]:
    """Return the axes of a kernel along which scales run: those of its outputs.

    Example:
        >>> channel_axes(Layout.plain(4), 4), channel_axes(Layout.depthwise(4), 4)
        ((3,), (2, 3))
    """
    return (rank - 1,) if layout.split else layout.outputs


def round_weights(weights: Any, channels: tuple[int, ...]) -> Any:
    r"""Round weights to int8, symmetrically, with one scale a channel: $s_c = \max_i |w_{ci}| / 127$.

    $\hat w = s_c \, \mathrm{round}(w / s_c)$, and $∂\hat w/∂w = 1$. Zero stays zero, and equal weights of a channel
    stay equal. A factor of a whole channel passes through: $\widehat{f w} = f \hat w$, so that the weights with a batch
    normalization folded into them are rounded alike.

    Args:
        weights: any shape.
        channels: the axes along which scales run.

    Returns:
        A tensor of the same shape and type.

    Example:
        >>> w = ops.convert_to_tensor([[1.27, 12.7], [0.344, 3.44], [0.0, 0.0]])
        >>> [[round(float(value), 4) for value in row] for row in round_weights(w, (1,))]
        [[1.27, 12.7], [0.34, 3.4], [0.0, 0.0]]
    """
    weights = ops.convert_to_tensor(weights)
    others = tuple(axis for axis in range(len(weights.shape)) if axis not in channels)
    largest = ops.max(ops.abs(weights), axis=others, keepdims=True)
    scale = ops.where(largest > 0, largest / LARGEST, ops.ones_like(largest))
    return weights + ops.stop_gradient(ops.round(weights / scale) * scale - weights)


def round_range(values: Any, low: Any, high: Any) -> Any:
    r"""Round values to the 256 steps of a range, moved so that zero is one of them.

    $∂\hat x/∂x$ is 1 within the range and 0 outside; the ends of the range get the gradients of what lies beyond.
    On TensorFlow it is the operation that the TFLite converter reads the range from.

    Args:
        values: any shape.
        low: the range's lower end, a scalar of at most 0.
        high: its upper end, of at least 0.

    Example:
        >>> [round(float(value), 3) for value in round_range(ops.convert_to_tensor([-1.0, 0.003, 5.0]), 0.0, 2.55)]
        [0.0, 0.0, 2.55]
    """
    return keras.quantizers.fake_quant_with_min_max_vars(values, low, high, num_bits=8, narrow_range=False)
