"""Where zeros may fall: scores + target -> mask, in units of a weight, a block, a group of m, or a channel.

Patterns see every kernel in one layout, `[..., in, out]`, the layout of Keras's Dense and Conv kernels: last axis
outputs, the one before it inputs, any others space. (`keras_prune.scope` brings transposed, depthwise and einsum
kernels into it.) TFLite stores the transpose, `[out, ..., in]`: its 1x4 block along the inputs is `Block(4, 1)` here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from keras.saving import register_keras_serializable

from keras_prune.arrays.selection import all_but_smallest
from keras_prune.models.keys import fits, keyed
from keras_prune.strategy import Strategy, check_fraction, to_integers

__all__ = ["Block", "ByPath", "Channel", "Filter", "NofM", "Pattern", "Unstructured"]

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Shape = tuple[int, ...]

_register = register_keras_serializable(package="keras_prune")


@dataclasses.dataclass(frozen=True)
class Pattern(Strategy):
    """A partition of a kernel into units that are pruned whole.

    A pattern says how large its units are (`weights_per_unit`), what each is worth (`reduce`), and which weights an
    off unit takes with it (`expand`). `mask` puts them together: exactly `round(target * units)` units are off, where
    `units` is the number of weights divided by the weights that an off unit takes; of equal units the one with the
    lower index goes first.

    A unit is off when all the weights that it takes are off. One in which some are off, under a finer pattern of
    earlier, is on; those weights count as 0 in its score, since they cost nothing any more.

    Example:
        >>> scores = np.array([[3.0, 1.0], [2.0, 4.0]])
        >>> Unstructured().mask(scores, 0.5)
        array([[ True, False],
               [False,  True]])
    """

    kind: ClassVar[str] = "pattern"
    fixed_units: ClassVar[bool] = True
    """Whether a unit is always the same weights, so that units can also grow back. If not, `reduce` and `expand` are
    given minus infinity for a weight that is off already: it is the first that its unit takes, and costs nothing."""
    by_input: ClassVar[bool] = False
    """Whether the pattern reads a kernel by its inputs: `[..., in, out]` with every input of the layer in `in`. They
    are more than an output reads where groups of outputs read inputs of their own, as in grouped and depthwise
    convolutions; for other kernels it makes no difference."""

    def at(self, path: str) -> Pattern:
        """Return the pattern of the tensor at this path: the same for all, but in `ByPath`."""
        return self

    @abstractmethod
    def check(self, shape: Shape) -> None:
        """Refuse a shape `[..., in, out]` that the units do not divide, naming the nearest that does."""

    @abstractmethod
    def weights_per_unit(self, shape: Shape) -> int:
        """Return how many weights are zero when one unit is off."""

    @abstractmethod
    def reduce(self, scores: Array) -> Array:
        """Return one score a unit, `[units]`."""

    @abstractmethod
    def expand(self, on: Mask, scores: Array) -> Mask:
        """Return the mask of the shape of `scores` (True: kept) in which only the units `on` are on."""

    def units_on(self, mask: Mask) -> Mask:
        """Return which units have weights left to take, `[units]`, under a mask (True: kept)."""
        return np.asarray(self.reduce(mask.astype(np.float32)) > 0)

    def limit(self, shape: Shape) -> float:
        """Return the sparsity with every unit off, the highest that the pattern can give."""
        return 1.0

    def units(self, shape: Shape) -> float:
        """Return the number of weights divided by the weights of a unit."""
        return math.prod(shape) / self.weights_per_unit(shape)

    def count(self, target: float, shape: Shape) -> int:
        """Return how many units are off at `target`: `round(target * units)`.

        Raises:
            ValueError: the target is above what the pattern can give.
        """
        if target > self.limit(shape) + 1e-9:
            raise ValueError(
                f"{self} gives at most a sparsity of {self.limit(shape):g}. Received: target={target:g}. "
                "Lower the target or take another pattern."
            )
        return round(target * self.units(shape))

    def mask(self, scores: Array, target: float) -> Mask:
        """Return the mask (True: kept) with exactly `round(target * units)` units off, the lowest in score.

        Args:
            scores: `[..., in, out]`, larger is kept, without NaN.
            target: a fraction in [0, 1).
        """
        check_fraction(f"{type(self).__name__}: target", target)
        self.check(scores.shape)
        on = all_but_smallest(self.reduce(scores), self.count(target, scores.shape))
        return self.expand(on, scores)


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

    def reduce(self, scores: Array) -> Array:
        return scores.reshape(-1)

    def units_on(self, mask: Mask) -> Mask:
        return mask.reshape(-1)

    def expand(self, on: Mask, scores: Array) -> Mask:
        return on.reshape(scores.shape)


def _pool(array: Array, axes: tuple[int, ...], pooling: str) -> Array:
    return np.asarray(np.max(array, axis=axes) if pooling == "max" else np.mean(array, axis=axes))


def _check_pooling(pattern: Pattern, pooling: str) -> None:
    if pooling not in ("mean", "max"):
        raise ValueError(f"{type(pattern).__name__}: pooling must be 'mean' or 'max'. Received: pooling={pooling!r}")


def _nearest_divisor(size: int, wanted: int) -> int:
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    return min(divisors, key=lambda d: (abs(d - wanted), d))


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
        _check_pooling(self, self.pooling)

    def _matrix(self, shape: Shape) -> tuple[int, int]:
        return math.prod(shape[:-1]), shape[-1]

    def check(self, shape: Shape) -> None:
        rows, cols = self._matrix(shape)
        if rows % self.rows or cols % self.cols:
            near = (_nearest_divisor(rows, self.rows), _nearest_divisor(cols, self.cols))
            raise ValueError(
                f"Block({self.rows}, {self.cols}) does not divide a kernel of shape {shape}, flattened to "
                f"({rows}, {cols}). The nearest that does is Block({near[0]}, {near[1]})."
            )

    def weights_per_unit(self, shape: Shape) -> int:
        return self.rows * self.cols

    def reduce(self, scores: Array) -> Array:
        rows, cols = self._matrix(scores.shape)
        tiles = scores.reshape(rows // self.rows, self.rows, cols // self.cols, self.cols)
        return _pool(tiles, (1, 3), self.pooling).reshape(-1)

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
    An off unit is a group that keeps only its `n` largest; below full sparsity the groups that lose least go first.

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
                f"The nearest m that does is {_nearest_divisor(rows, self.m)}."
            )

    def weights_per_unit(self, shape: Shape) -> int:
        return self.m - self.n

    def limit(self, shape: Shape) -> float:
        return 1.0 - self.n / self.m

    def _groups(self, scores: Array) -> Array:
        """One row a group, `[groups, m]`."""
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
        _check_pooling(self, self.pooling)

    def check(self, shape: Shape) -> None:
        """Every shape will do."""

    def weights_per_unit(self, shape: Shape) -> int:
        return math.prod(shape) // shape[self.axis]

    def reduce(self, scores: Array) -> Array:
        return _pool(np.moveaxis(scores, self.axis, -1), tuple(range(scores.ndim - 1)), self.pooling)

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


@_register
@dataclasses.dataclass(frozen=True)
class ByPath(Strategy):
    """A pattern for each tensor, by its path; the first key that fits counts.

    Args:
        patterns: layer, name, path, glob or regular expression -> pattern.

    Example:
        >>> ByPath({".*conv.*": Unstructured(), ".*": Block(4, 1)}).at("model/conv_1/kernel")
        Unstructured()
    """

    kind: ClassVar[str] = "pattern"

    patterns: Mapping[str, Pattern]

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", keyed(self.patterns))

    @property
    def fixed_units(self) -> bool:
        """Whether the units of every pattern are always the same weights."""
        return all(pattern.fixed_units for pattern in self.patterns.values())

    def at(self, path: str) -> Pattern:
        """Return the pattern of the tensor at this path.

        Raises:
            ValueError: no key fits.
        """
        for key, pattern in self.patterns.items():
            if fits(key, path):
                return pattern
        raise ValueError(
            f"ByPath: no key fits the tensor {path!r}. Received the keys {list(self.patterns)}. "
            "Add one for it, or '.*' for all others at the end; or leave the tensor out by scope=Scope(exclude=...)."
        )
