"""Parameters and multiplications of a model, layer by layer, as it is and as it would be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune.structured.groups import Analysis, analyse

__all__ = ["Count", "Counter", "Counts", "count"]

Kept = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Count:
    """One layer, or a whole model.

    Attributes:
        path: the layer's path; the model's name.
        params: the number of its weights, trainable or not.
        macs: its multiplications with addition for one sample, an axis of unknown length counted as 1. Only products
            with kernels and between tensors (attention, `matmul`, `einsum`) count; FLOPs are twice as many.
    """

    path: str
    params: int
    macs: int


@dataclasses.dataclass(frozen=True)
class Counts:
    """A model's layers and their sum; shared layers' weights count once, their multiplications at every call."""

    layers: tuple[Count, ...]
    total: Count


class Counter:
    """Counts for any number of units kept in each group, without building the model.

    Args:
        analysis: of the model.
    """

    def __init__(self, analysis: Analysis) -> None:
        groups = analysis.groups
        stops = np.array([group.stop for group in groups], np.int64)
        sizes = np.array([group.size for group in groups], np.int64)
        entries: list[tuple[Any, ...]] = []
        self._base = np.zeros(len(analysis.slots) + 1, np.int64)
        for i, slot in enumerate(analysis.slots):
            inside = slot.units[slot.units >= 0]
            self._base[i] = len(slot.units) - len(inside)
            on, number = np.unique(np.searchsorted(stops, inside, side="right"), return_counts=True)
            entries += [(i, group, n / sizes[group]) for group, n in zip(on, number, strict=True)]
        self._slot, self._group = (np.array([e[k] for e in entries], np.int64) for k in (0, 1))
        self._times = np.array([e[2] for e in entries], np.float64)
        self.sizes: Kept = sizes
        slot_of = {id(slot): i for i, slot in enumerate(analysis.slots)}
        variables = {id(v): v for v in analysis.graph.model.weights}.values()
        self._params = _Products(self._rows_of_variables(analysis, variables, slot_of), len(analysis.slots))
        self._macs = _Products(self._rows_of_costs(analysis, slot_of), len(analysis.slots))
        self._owners = _owners(analysis)
        self._variables = [id(v) for v in variables]
        self._paths = [path for path, _ in analysis.costs]
        self._name = analysis.graph.model.name

    @staticmethod
    def _rows_of_variables(
        analysis: Analysis, variables: Any, slot_of: dict[int, int]
    ) -> list[tuple[float, list[int]]]:
        rows = []
        for variable in variables:
            slots = [analysis.slot_of(variable, axis) for axis in range(len(variable.shape))]
            fixed = math.prod(n for n, slot in zip(variable.shape, slots, strict=True) if slot is None)
            rows.append((float(fixed), [slot_of[id(slot)] for slot in slots if slot is not None]))
        return rows

    @staticmethod
    def _rows_of_costs(analysis: Analysis, slot_of: dict[int, int]) -> list[tuple[float, list[int]]]:
        of_labels = {id(slot.labels): slot for slot in analysis.slots}
        rows = []
        for _, cost in analysis.costs:
            factor, on = cost.factor, []
            for part in cost.parts:
                if isinstance(part, tuple):
                    slot, size = analysis.slot_of(*part), part[0].shape[part[1]]
                else:
                    slot, size = of_labels.get(id(part)), len(part)
                if slot is None:
                    factor *= size
                else:
                    on.append(slot_of[id(slot)])
            rows.append((float(factor), on))
        return rows

    def widths(self, kept: Kept) -> npt.NDArray[np.float64]:
        """The number of indices that stay on each slot, with `kept` units in each group; 1 at the end."""
        added = np.bincount(self._slot, self._times * kept[self._group], minlength=len(self._base))
        result = self._base + np.rint(added)
        result[-1] = 1
        return np.asarray(result)

    def total(self, kept: Kept) -> Count:
        """The whole model with `kept` units in each group."""
        widths = self.widths(kept)
        return Count(self._name, round(self._params(widths).sum()), round(self._macs(widths).sum()))

    def layers(self, kept: Kept) -> tuple[Count, ...]:
        """Each layer with `kept` units in each group."""
        widths = self.widths(kept)
        params: dict[str, float] = dict.fromkeys(self._owners.values(), 0.0)
        macs: dict[str, float] = {}
        for variable, number in zip(self._variables, self._params(widths), strict=True):
            params[self._owners[variable]] = params.get(self._owners[variable], 0.0) + number
        for path, number in zip(self._paths, self._macs(widths), strict=True):
            macs[path] = macs.get(path, 0.0) + number
        return tuple(Count(p, round(params.get(p, 0)), round(macs.get(p, 0))) for p in dict.fromkeys([*params, *macs]))


class _Products:
    """Sums of products: a fixed factor times the widths of some slots, for many rows at once."""

    def __init__(self, rows: Sequence[tuple[float, list[int]]], one: int) -> None:
        depth = max((len(slots) for _, slots in rows), default=0)
        self._factor = np.array([factor for factor, _ in rows])
        self._slots = np.array([slots + [one] * (depth - len(slots)) for _, slots in rows], np.int64)
        self._slots = self._slots.reshape(len(rows), depth)

    def __call__(self, widths: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(self._factor * np.prod(widths[self._slots], axis=1))


def _owners(analysis: Analysis) -> dict[int, str]:
    """The path of the call that each weight is first used in; what is used in none goes to the model."""
    owners: dict[int, str] = {}
    for node in analysis.graph.walk():
        if node.body is None and isinstance(node.operation, keras.Layer):
            for variable in node.operation.weights:
                owners.setdefault(id(variable), node.path)
    for variable in analysis.graph.model.weights:
        owners.setdefault(id(variable), analysis.graph.model.name)
    return owners


def count(model: keras.Model, input_shape: Any = None) -> Counts:
    """Count a model's parameters and multiplications, layer by layer.

    Args:
        model: built.
        input_shape: as for `trace`.

    Example:
        >>> a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")
        >>> model = keras.Sequential([keras.Input((4,)), a, b])
        >>> count(model).layers
        (Count(path='a', params=15, macs=12), Count(path='b', params=8, macs=6))
    """
    counter = Counter(analyse(model, input_shape=input_shape))
    return Counts(counter.layers(counter.sizes), counter.total(counter.sizes))
