"""Single weights, blocks of them, and groups of m of which n are kept."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import ClassVar

import numpy as np
from keras.saving import register_keras_serializable

from keras_prune.patterns.pattern import Array, Mask, Pattern, Shape, check_pooling, nearest_divisor, pool
from keras_prune.strategy import to_integers

__all__ = ["Block", "NofM", "Unstructured"]

_register = register_keras_serializable(package="keras_prune")


@_register
@dataclasses.dataclass(frozen=True)
class Unstructured(Pattern, name="unstructured"):
    """Any single weight.

    Example:
        >>> Unstructured().mask(np.array([[1.0, -2.0, 3.0, 4.0]]), 0.25)
        array([[ True, False,  True,  True]])
    """

    def check(self, shape: Shape) -> None:
        """Every shape will do."""

    def weights_per_unit(self, shape: Shape) -> int:
        return 1

    def reach(self, shape: Shape) -> int:
        return 1

    def reduce(self, scores: Array) -> Array:
        return scores.reshape(-1)

    def units_on(self, mask: Mask) -> Mask:
        return mask.reshape(-1)

    def expand(self, on: Mask, scores: Array) -> Mask:
        return on.reshape(scores.shape)


@_register
@dataclasses.dataclass(frozen=True)
class Block(Pattern):
    """Blocks of `rows` x `cols` of the kernel flattened to `[product of all axes but the last, out]`.

    Args:
        rows: size along the (flattened) inputs.
        cols: size along the outputs.
        pooling: what a block is worth, the "mean" or the "max" of its scores.

    `Block(4, 1)` is what TFLite's sparse FULLY_CONNECTED kernel runs (1x4 in its own layout `[out, in]`), `Block(16,
    1)` its int8 kernel.

    Example:
        >>> Block(2, 1).mask(np.array([[1.0, 5.0], [1.0, 5.0]]), 0.5)
        array([[False,  True],
               [False,  True]])
    """

    rows: int
    cols: int
    pooling: str = "mean"

    def __post_init__(self) -> None:
        to_integers(self, "rows", "cols")
        if self.rows < 1 or self.cols < 1:
            raise ValueError(f"Block: rows and cols must be 1 or more. Received: Block({self.rows}, {self.cols})")
        check_pooling(self, self.pooling)

    def _matrix(self, shape: Shape) -> tuple[int, int]:
        return math.prod(shape[:-1]), shape[-1]

    def check(self, shape: Shape) -> None:
        rows, cols = self._matrix(shape)
        if rows % self.rows or cols % self.cols:
            near = (nearest_divisor(rows, self.rows), nearest_divisor(cols, self.cols))
            raise ValueError(
                f"Block({self.rows}, {self.cols}) does not divide a kernel of shape {shape}, flattened to "
                f"({rows}, {cols}). The nearest that does is Block({near[0]}, {near[1]})."
            )

    def weights_per_unit(self, shape: Shape) -> int:
        return self.rows * self.cols

    def reach(self, shape: Shape) -> int:
        return self.rows

    def reduce(self, scores: Array) -> Array:
        rows, cols = self._matrix(scores.shape)
        tiles = scores.reshape(rows // self.rows, self.rows, cols // self.cols, self.cols)
        return pool(tiles, (1, 3), self.pooling).reshape(-1)

    def units_on(self, mask: Mask) -> Mask:
        rows, cols = self._matrix(mask.shape)
        tiles = mask.reshape(rows // self.rows, self.rows, cols).any(axis=1).reshape(-1, self.cols)
        # A reduction over a few neighbours takes NumPy ten times as long.
        return functools.reduce(np.logical_or, (tiles[:, i] for i in range(self.cols)))

    def expand(self, on: Mask, scores: Array) -> Mask:
        rows, cols = self._matrix(scores.shape)
        kept = on.reshape(rows // self.rows, 1, cols // self.cols, 1)
        full = (rows // self.rows, self.rows, cols // self.cols, self.cols)
        return np.broadcast_to(kept, full).reshape(scores.shape)


@_register
@dataclasses.dataclass(frozen=True)
class NofM(Pattern):
    """At most `n` weights of each `m` neighbours along the inputs are kept; at full sparsity it is $1 - n/m$.

    The kernel is flattened to `[product of all axes but the last, out]`, and each column is cut into groups of `m`.
    A unit that is off is a group that keeps only its `n` largest; below full sparsity, the groups that lose least go
    first.

    Args:
        n: weights kept, from 1 to m - 1.
        m: weights in a group.

    Source: Mishra et al. 2021, "Accelerating sparse deep neural networks" (2:4).

    Example:
        >>> NofM(2, 4).mask(np.array([[4.0], [1.0], [3.0], [2.0]]), 0.5)[:, 0]
        array([ True, False,  True, False])
    """

    fixed_units: ClassVar[bool] = False

    n: int
    m: int

    def __post_init__(self) -> None:
        to_integers(self, "n", "m")
        if not 1 <= self.n < self.m:
            raise ValueError(f"NofM: n must be from 1 to m - 1. Received: NofM({self.n}, {self.m})")

    def check(self, shape: Shape) -> None:
        rows = math.prod(shape[:-1])
        if rows % self.m:
            raise ValueError(
                f"NofM({self.n}, {self.m}) does not divide the {rows} inputs of a kernel of shape {shape}. "
                f"The nearest m that does is {nearest_divisor(rows, self.m)}."
            )

    def weights_per_unit(self, shape: Shape) -> int:
        return self.m - self.n

    def reach(self, shape: Shape) -> int:
        return self.m

    def limit(self, shape: Shape) -> float:
        return 1.0 - self.n / self.m

    def _groups(self, scores: Array) -> Array:
        """Return one row a group, `[groups, m]`."""
        columns = scores.reshape(-1, self.m, scores.shape[-1])
        return columns.transpose(0, 2, 1).reshape(-1, self.m)

    def reduce(self, scores: Array) -> Array:
        groups = self._groups(scores)
        lost = np.partition(groups, self.m - self.n - 1, axis=1)[:, : self.m - self.n]
        lost[np.isneginf(lost)] = 0.0
        return np.asarray(np.mean(lost, axis=1))

    def units_on(self, mask: Mask) -> Mask:
        kept = mask.reshape(-1, self.m, mask.shape[-1]).sum(axis=1, dtype=np.uint16)
        return np.asarray(kept > self.n).reshape(-1)

    def expand(self, on: Mask, scores: Array) -> Mask:
        # A stable sort of each group breaks ties by index; groups are a few weights long.
        order = np.argsort(self._groups(scores), axis=1, kind="stable")
        kept = np.ones(order.shape, dtype=bool)
        np.put_along_axis(kept, order[:, : self.m - self.n], on[:, np.newaxis], axis=1)
        columns = kept.reshape(-1, scores.shape[-1], self.m).transpose(0, 2, 1)
        return columns.reshape(scores.shape)
