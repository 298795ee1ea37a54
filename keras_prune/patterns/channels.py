"""Whole outputs and whole inputs of a kernel."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
from keras.saving import register_keras_serializable

from keras_prune.patterns.pattern import Array, Mask, Pattern, Shape, check_pooling, pool

__all__ = ["Channel", "Filter"]

_register = register_keras_serializable(package="keras_prune")


@_register
@dataclasses.dataclass(frozen=True)
class Filter(Pattern, name="filter"):
    """Whole outputs: every weight of a neuron or filter, `[..., j]`.

    In kernels of LSTM and GRU each gate of a unit is an output of its own, in attention each dimension of a head.

    Args:
        pooling: what an output is worth, the "mean" or the "max" of its scores.

    Example:
        >>> Filter().mask(np.array([[1.0, 5.0], [2.0, 1.0]]), 0.5)
        array([[False,  True],
               [False,  True]])
    """

    axis: ClassVar[int] = -1
    pooling: str = "mean"

    def __post_init__(self) -> None:
        check_pooling(self, self.pooling)

    def check(self, shape: Shape) -> None:
        """Every shape will do."""

    def weights_per_unit(self, shape: Shape) -> int:
        return math.prod(shape) // shape[self.axis]

    def reduce(self, scores: Array) -> Array:
        return pool(np.moveaxis(scores, self.axis, -1), tuple(range(scores.ndim - 1)), self.pooling)

    def units_on(self, mask: Mask) -> Mask:
        return np.asarray(np.moveaxis(mask, self.axis, -1).any(axis=tuple(range(mask.ndim - 1))))

    def expand(self, on: Mask, scores: Array) -> Mask:
        kept = on.reshape([-1 if a == scores.ndim + self.axis else 1 for a in range(scores.ndim)])
        return np.broadcast_to(kept, scores.shape).copy()


@_register
@dataclasses.dataclass(frozen=True)
class Channel(Filter, name="channel"):
    """Whole inputs: every weight that reads an input channel, `[..., i, :]`.

    In a grouped convolution those are weights of one group only; in a depthwise one, the filters of one channel; in
    an embedding, the row of a token.

    Example:
        >>> Channel().mask(np.array([[1.0, 5.0], [2.0, 1.0]]), 0.5)
        array([[ True,  True],
               [False, False]])
    """

    axis: ClassVar[int] = -2
    by_input: ClassVar[bool] = True

    def reach(self, shape: Shape) -> int:
        return 1
