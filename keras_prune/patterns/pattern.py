"""What a pattern is: a partition of a kernel into units that are pruned whole."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from keras_prune.arrays.selection import all_but_smallest
from keras_prune.strategy import Strategy, check_fraction

__all__ = ["Array", "Mask", "Pattern", "Shape", "check_pooling", "nearest_divisor", "pool"]

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Pattern(Strategy):
    """A partition of a kernel into units that are pruned whole.

    A pattern says how large its units are (`weights_per_unit`), what each is worth (`reduce`), and which weights an
    off unit takes with it (`expand`). `mask` puts them together: exactly `round(target * units)` units are off, where
    `units` is the number of weights divided by the weights that an off unit takes; of equal units the one with the
    lower index goes first.

    A unit is off when all the weights that it takes are off. Where only some of them are, pruned earlier under a finer
    pattern, the unit is on; those weights count as 0 in its score, since they cost nothing any more.

    A subclass defines `check`, `weights_per_unit`, `reduce` and `expand`.

    Example:
        >>> from keras_prune.patterns import Unstructured
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
        """Return the pattern of the tensor at this path: this one; `ByPath` has one for each."""
        return self

    @abstractmethod
    def check(self, shape: Shape) -> None:
        """Refuse a kernel that the units do not divide, and name the nearest size that does.

        Args:
            shape: of the kernel, `[..., in, out]`; likewise below.

        Raises:
            ValueError: the units do not divide it.
        """

    @abstractmethod
    def weights_per_unit(self, shape: Shape) -> int:
        """Return how many weights are zero when one unit is off."""

    @abstractmethod
    def reduce(self, scores: Array) -> Array:
        """Return one score a unit, `[units]`.

        Args:
            scores: one a weight, `[..., in, out]`.
        """

    @abstractmethod
    def expand(self, on: Mask, scores: Array) -> Mask:
        """Return the mask `[..., in, out]` (True: kept) in which only the units `on` are on.

        Args:
            on: `[units]`.
            scores: one a weight, `[..., in, out]`; they say which weights a unit takes, where that is not fixed.
        """

    def units_on(self, mask: Mask) -> Mask:
        """Return which units have weights left to take, `[units]`.

        Args:
            mask: True where kept, `[..., in, out]`.
        """
        return np.asarray(self.reduce(mask.astype(np.float32)) > 0)

    def limit(self, shape: Shape) -> float:
        """Return the sparsity with every unit off, the highest that the pattern can give."""
        return 1.0

    def reach(self, shape: Shape) -> int:
        """Return over how many neighbouring inputs a unit reaches at most, where inputs are cut from the first on.

        Inputs are all axes but the last, flattened; with `by_input` the one before the last, and a unit has all places
        of the window. Masks that are chosen while the kernel is solved are chosen in runs of so many inputs or more. As
        it stands here: over all of them.
        """
        return shape[-2] if self.by_input else math.prod(shape[:-1])

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


def pool(array: Array, axes: tuple[int, ...], pooling: str) -> Array:
    """Return the "mean" or the "max" of an array over axes, whose dimensions go."""
    return np.asarray(np.max(array, axis=axes) if pooling == "max" else np.mean(array, axis=axes))


def check_pooling(pattern: Pattern, pooling: str) -> None:
    """Refuse a pooling that is neither "mean" nor "max".

    Raises:
        ValueError: with the value.
    """
    if pooling not in ("mean", "max"):
        raise ValueError(f"{type(pattern).__name__}: pooling must be 'mean' or 'max'. Received: pooling={pooling!r}")


def nearest_divisor(size: int, wanted: int) -> int:
    """Return the divisor of a size that is nearest to a number; of two, the smaller one."""
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    return min(divisors, key=lambda d: (abs(d - wanted), d))
