"""How many indices stay on many axes at once, and products of such numbers: no model is built for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from keras_prune.structured.analysis.groups import Group, Units

__all__ = ["Kept", "Products", "Widths"]

Kept = npt.NDArray[np.int64]
"""How many units of each group stay."""


class Widths:
    """The number of indices that stay on each of some axes, for any number of units kept in each group.

    All units of a group lie on an axis equally often, so a width is a sum over groups: what stays in any case, and for
    each group its units times their number of indices.

    Args:
        groups: of the analysis.
        axes: for each axis, the unit of each of its indices, -1 where it stays.
    """

    def __init__(self, groups: Sequence[Group], axes: Sequence[Units]) -> None:
        stops = np.array([group.stop for group in groups], np.int64)
        entries: list[tuple[int, int, float]] = []
        self._base = np.zeros(len(axes) + 1, np.int64)
        for i, units in enumerate(axes):
            inside = units[units >= 0]
            self._base[i] = len(units) - len(inside)
            on, number = np.unique(np.searchsorted(stops, inside, side="right"), return_counts=True)
            entries += [(i, int(g), n / groups[g].size) for g, n in zip(on, number, strict=True)]
        self._axis, self._group = (np.array([entry[k] for entry in entries], np.int64) for k in (0, 1))
        self._times = np.array([entry[2] for entry in entries], np.float64)

    def __call__(self, kept: Kept) -> npt.NDArray[np.float64]:
        """The widths, `[axes + 1]`, the last of them 1: what fills up `Products`."""
        added = np.bincount(self._axis, self._times * kept[self._group], minlength=len(self._base))
        widths = self._base + np.rint(added)
        widths[-1] = 1
        return np.asarray(widths)


class Products:
    """A fixed factor times the widths of some axes, for many rows at once.

    Args:
        rows: for each, the factor and the numbers of the axes.
        axes: how many axes `Widths` was given.

    Example:
        >>> Products([(3.0, [0, 1]), (5.0, [])], axes=2)(np.array([2.0, 7.0, 1.0]))
        array([42.,  5.])
    """

    def __init__(self, rows: Sequence[tuple[float, list[int]]], axes: int) -> None:
        depth = max((len(on) for _, on in rows), default=0)
        self._factor = np.array([factor for factor, _ in rows])
        self._axes = np.array([on + [axes] * (depth - len(on)) for _, on in rows], np.int64)
        self._axes = self._axes.reshape(len(rows), depth)

    def __call__(self, widths: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The products, `[rows]`."""
        return np.asarray(self._factor * np.prod(widths[self._axes], axis=1))
