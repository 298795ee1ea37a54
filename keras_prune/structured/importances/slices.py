"""A unit's slices of variables: sums over them, and their place among the units of a group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune.arrays.layouts import Layout
from keras_prune.scope import Target
from keras_prune.structured.analysis.groups import Group, Slot

__all__ = ["over_others", "spread", "targets_of"]

Array = npt.NDArray[np.floating[Any]]


def over_others(values: Array, axis: int) -> Array:
    """Return the sum over all axes but one.

    Example:
        >>> over_others(np.array([[1.0, 2.0], [3.0, 4.0]]), 1)
        array([4., 6.])
    """
    return np.asarray(values.sum(axis=tuple(a for a in range(values.ndim) if a != axis)))


def spread(slot: Slot, group: Group, values: Array) -> npt.NDArray[np.float64]:
    """Return `[units]` of a group from `[indices]` of a slot's axis, summed where a unit lies on it several times."""
    inside = (slot.units >= group.start) & (slot.units < group.stop)
    return np.asarray(np.bincount(slot.units[inside] - group.start, values[inside], group.size), np.float64)


def targets_of(model: keras.Model, variables: Iterable[keras.Variable]) -> list[Target]:
    """Return each variable as what statistics of gradients are taken of."""
    order = {id(v): i for i, v in enumerate(model.weights)}
    return [Target(v.path, model, v, Layout.plain(len(v.shape)), index=order[id(v)]) for v in variables]
