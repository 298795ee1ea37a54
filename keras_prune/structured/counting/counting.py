"""Parameters, multiplications and memory of a model, layer by layer, as it is and as it would be."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from keras_prune.graph.graph import Node
from keras_prune.layer_kinds import altered
from keras_prune.models.stand_ins import stand_ins_in
from keras_prune.scope import Skipped
from keras_prune.strip import strip
from keras_prune.structured.analysis.groups import Analysis, analyse
from keras_prune.structured.analysis.widths import Kept, Products, Widths
from keras_prune.structured.counting.memory import Memory
from keras_prune.structured.rules.registry import find_rule

__all__ = ["Count", "Counter", "Counts", "count"]


@dataclasses.dataclass(frozen=True)
class Count:
    """One layer, or a whole model.

    Attributes:
        path: the layer's path; the model's name.
        params: the number of its weights, trainable or not.
        macs: its multiplications with addition for one sample, an axis of unknown length counted as 1. Only products
            with kernels and between tensors (attention, `matmul`, `einsum`) count.
        activations: bytes of its results for one sample.
        peak: the most bytes of activations that live at once while it runs, those of other layers' too (see
            `keras_prune.structured.counting.memory.Memory`).
    """

    path: str
    params: int
    macs: int
    activations: int
    peak: int

    @property
    def flops(self) -> int:
        """Floating-point operations for one sample: a multiplication with addition is two."""
        return 2 * self.macs


@dataclasses.dataclass(frozen=True)
class Counts:
    """A model's layers and their sum; shared layers' weights count once, what they compute at every call.

    Attributes:
        layers: in the order in which they run first.
        total: sums, and the peak of all.
        not_counted: calls whose multiplications are not known, with the reasons: they are in no sum.
    """

    layers: tuple[Count, ...]
    total: Count
    not_counted: tuple[Skipped, ...] = ()


class Counter:
    """Counts for any number of units kept in each group, without building the model.

    Args:
        analysis: of the model.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.sizes: Kept = np.array([group.size for group in analysis.groups], np.int64)
        self._widths = Widths(analysis.groups, [slot.units for slot in analysis.slots])
        slot_of = {id(slot): i for i, slot in enumerate(analysis.slots)}
        variables = {id(v): v for v in analysis.graph.model.weights}.values()
        self._params = Products(self._rows_of_variables(analysis, variables, slot_of), len(analysis.slots))
        self._macs = Products(self._rows_of_costs(analysis, slot_of), len(analysis.slots))
        self._memory = Memory(analysis)
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

    def total(self, kept: Kept) -> Count:
        """The whole model with `kept` units in each group."""
        widths = self._widths(kept)
        return Count(
            self._name,
            params=round(self._params(widths).sum()),
            macs=round(self._macs(widths).sum()),
            activations=int(self._memory.made(kept).sum()),
            peak=self._memory.peak(kept),
        )

    def layers(self, kept: Kept) -> tuple[Count, ...]:
        """Each layer with `kept` units in each group."""
        widths = self._widths(kept)
        params: dict[str, float] = {}
        macs: dict[str, float] = {}
        activations: dict[str, int] = {}
        peaks: dict[str, int] = {}
        for variable, number in zip(self._variables, self._params(widths), strict=True):
            _add(params, self._owners[variable], number)
        for path, number in zip(self._paths, self._macs(widths), strict=True):
            _add(macs, path, number)
        for path, made, live in zip(self._memory.paths, self._memory.made(kept), self._memory.live(kept), strict=False):
            _add(activations, path, int(made))
            peaks[path] = max(peaks.get(path, 0), int(live))
        paths = dict.fromkeys([*self._memory.paths, *params])
        return tuple(
            Count(p, round(params.get(p, 0)), round(macs.get(p, 0)), activations.get(p, 0), peaks.get(p, 0))
            for p in paths
        )


def _add(sums: dict[str, Any], path: str, number: Any) -> None:
    sums[path] = sums.get(path, 0) + number


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


def _not_counted(analysis: Analysis, node: Node) -> str:
    """Why the multiplications of a call are not known; empty if they are."""
    operation = node.operation
    if find_rule(operation) is None:
        return node.unseen or f"there is no rule for {type(operation).__name__}"
    return altered(operation) or analysis.effects[id(node)].not_counted


def count(model: keras.Model, input_shape: Any = None) -> Counts:
    """Count a model's parameters, multiplications and bytes of activations, layer by layer.

    A model that trains quantization-aware is counted as the plain one that it becomes.

    Args:
        model: built.
        input_shape: as for `trace`.

    Raises:
        ValueError: the graph cannot be traced.

    Example:
        >>> a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")
        >>> model = keras.Sequential([keras.Input((4,)), a, b], name="net")
        >>> found = count(model)
        >>> found.layers[0]
        Count(path='a', params=15, macs=12, activations=12, peak=28)
        >>> found.total
        Count(path='net', params=23, macs=18, activations=20, peak=28)
    """
    analysis = analyse(strip(model) if stand_ins_in(model) else model, input_shape=input_shape)
    counter = Counter(analysis)
    calls = {node.path: node for node in analysis.graph.walk() if node.body is None}
    not_counted = tuple(Skipped(path, why) for path, node in calls.items() if (why := _not_counted(analysis, node)))
    return Counts(counter.layers(counter.sizes), counter.total(counter.sizes), not_counted)
