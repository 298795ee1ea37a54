"""How far values are from what they should be: the one measure behind every comparison of two answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Distance", "distance", "is_float", "largest_difference", "relative_difference", "scale_of"]


@dataclass(frozen=True)
class Distance:
    r"""How far an array is from the one that it should be.

    Args:
        largest: $\max |found - wanted|$; infinity where the shapes differ, or one holds a NaN or an infinity that the
            other does not hold in the same place.
        mean: mean of $|found - wanted|$, likewise.
        unequal: number of elements that differ.
        size: number of elements.
        scale: $\max |wanted|$ over finite elements, or what was given in its place.
        place: index of the largest difference; empty where there are no elements, or the shapes differ.
    """

    largest: float
    mean: float
    unequal: int
    size: int
    scale: float
    place: tuple[int, ...] = ()

    @property
    def relative(self) -> float:
        """The largest difference as a share of the scale; of an array of zeros only, the difference itself."""
        return self.largest / self.scale if self.scale > 0 else self.largest


def distance(found: NDArray[Any], wanted: NDArray[Any], scale: float | None = None) -> Distance:
    r"""Return how far an array is from the one that it should be, computed in float64.

    NaN equals NaN, and an infinity itself.

    Args:
        found: of any shape and any type of numbers.
        wanted: likewise.
        scale: in place of $\max |wanted|$: that of a larger array, say, of which this one is a part.

    Example:
        >>> found = distance(np.array([[2.0, 3.0]]), np.array([[2.0, 4.0]]))
        >>> found.largest, found.relative, found.mean, found.unequal, found.place
        (1.0, 0.25, 0.5, 1, (0, 1))
    """
    scale = scale_of(wanted) if scale is None else scale
    if found.shape != wanted.shape:
        return Distance(float("inf"), float("inf"), max(found.size, wanted.size), wanted.size, scale)
    a, b = _exact(found), _exact(wanted)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):  # the difference of equal infinities is NaN
        off = np.where(same, 0.0, np.abs(a - b))
    off = np.where(np.isnan(off), np.inf, off)
    place = np.unravel_index(off.argmax(), off.shape) if off.size else ()
    return Distance(
        largest=float(off.max(initial=0.0)),
        mean=float(off.mean()) if off.size else 0.0,
        unequal=int(off.size - np.count_nonzero(same)),
        size=off.size,
        scale=scale,
        place=tuple(int(index) for index in place),
    )


def relative_difference(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    r"""Return $\max |found - wanted| / \max |wanted|$; of what is no float, 0 where all are equal, else infinity.

    Args:
        found: of any shape and type.
        wanted: likewise.

    Example:
        >>> relative_difference(np.array([1.0, -1.9]), np.array([1.0, -2.0]))
        0.050000000000000044
        >>> relative_difference(np.array([1, 2]), np.array([1, 3]))
        inf
    """
    if is_float(found) and is_float(wanted):
        return distance(found, wanted).relative
    equal = is_float(found) == is_float(wanted) and np.array_equal(found, wanted)
    return 0.0 if equal else float("inf")


def largest_difference(found: Sequence[NDArray[Any]], wanted: Sequence[NDArray[Any]]) -> float:
    r"""Return the largest of $\max |found - wanted| / \max |wanted|$ over pairs of arrays of any type of numbers.

    Args:
        found: arrays of any shapes.
        wanted: as many.

    Example:
        >>> largest_difference([np.array([2.0, 3.0]), np.array([7])], [np.array([2.0, 4.0]), np.array([7])])
        0.25
    """
    return max((distance(one, other).relative for one, other in zip(found, wanted, strict=True)), default=0.0)


def scale_of(values: NDArray[Any]) -> float:
    """Return the largest finite absolute value of an array; 0.0 where there is none."""
    exact = np.abs(_exact(values))
    return float(exact[np.isfinite(exact)].max(initial=0.0))


def is_float(values: NDArray[Any]) -> bool:
    """Return whether an array holds floats or complex numbers, of those types too that NumPy itself lacks."""
    return values.dtype.kind in "fc" or "float" in values.dtype.name


def _exact(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(values).astype(np.complex128 if values.dtype.kind == "c" else np.float64)
