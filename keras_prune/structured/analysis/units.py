"""What one pass has tied and frozen -> numbered units, in groups, and the axes that each unit lies on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune.arrays.union_find import OPAQUE, Elements, Labels
from keras_prune.scope import Skipped
from keras_prune.structured.analysis.walk import Walk
from keras_prune.structured.rules.registry import Tracker

__all__ = ["Copies", "Group", "Keep", "Numbering", "Slot", "Units", "number_units", "spell_reason"]

Units = npt.NDArray[np.int64]
Keep = npt.NDArray[np.bool_]
Copies = npt.NDArray[np.int64]
"""For each unit, how many of it there are to be: 0 takes it out, 2 puts a copy beside it."""

Place = tuple[Labels, keras.Variable | None, int, str]
"""Elements along an axis, the variable and the axis (of a tensor: None and 0), and the first call that uses it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """An axis along which units lie.

    Attributes:
        units: for each index, the number of its unit; -1 where it stays.
        variable, axis: of which variable; None for an axis that only tensors have.
        path: the first call that uses it.
        labels: the elements along it.
    """

    labels: Labels
    units: Units
    variable: keras.Variable | None
    axis: int
    path: str


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Units that lie on the same axes, so that they are compared with one another; one of them always stays.

    Attributes:
        start, stop: the numbers of its units, `range(start, stop)`.
        slots: which of `Analysis.slots` they lie on, in topological order, so that the producer is the first.
    """

    start: int
    stop: int
    slots: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many units there are."""
        return self.stop - self.start


@dataclasses.dataclass(frozen=True, eq=False)
class Numbering:
    """The units of a model, numbered so that those of a group are a range.

    Attributes:
        slots: the axes that units lie on.
        groups: the units, in topological order.
        units: for each element its unit; -1 where it stays, `[elements]`.
        places: for a variable (by id) and an axis, the number of its slot.
        skipped: axes of variables along which elements were made that all stay, each with the reason.
    """

    slots: tuple[Slot, ...]
    groups: tuple[Group, ...]
    units: Units
    places: dict[tuple[int, int], int]
    skipped: tuple[Skipped, ...]


def number_units(walk: Walk) -> Numbering:
    """Number the units that a pass over a graph has found.

    Args:
        walk: done.
    """
    tracker = walk.tracker
    axes: list[Place] = []
    for variable, bound, path in tracker.bindings.values():
        axes += [(labels, variable, axis, path) for axis, labels in enumerate(bound) if labels is not None]
    axes += [(part, None, 0, path) for path, cost in walk.costs for part in cost.parts if isinstance(part, np.ndarray)]
    # Axes of tensors count, too: so what is left of a split, say, is never empty.
    tensors = {id(e.labels): e.labels for effect in walk.effects.values() for x in effect.outputs for e in x if e}
    tensors.update((id(labels), labels) for labels, *_ in axes)
    units, stops = _numbers(tracker.elements, list(tensors.values()))
    slots: list[Slot] = []
    places: dict[tuple[int, int], int] = {}
    on: list[list[int]] = [[] for _ in stops]
    seen: set[int] = set()
    for labels, variable, axis, path in axes:
        of_axis = units[labels]
        if (of_axis >= 0).any() and id(labels) not in seen:
            seen.add(id(labels) if variable is None else -1)
            if variable is not None:
                places[id(variable), axis] = len(slots)
            for group in np.unique(np.searchsorted(stops, of_axis[of_axis >= 0], side="right")):
                on[int(group)].append(len(slots))
            slots.append(Slot(labels, of_axis, variable, axis, path))
    starts = [0, *stops[:-1].tolist()]
    groups = [Group(start, int(stop), tuple(of)) for start, stop, of in zip(starts, stops, on, strict=False)]
    return Numbering(tuple(slots), tuple(groups), units, places, tuple(_whole(tracker, units)))


def _numbers(elements: Elements, axes: Sequence[Labels]) -> tuple[Units, npt.NDArray[np.int64]]:
    """For each element the number of its unit, and where groups stop: units that lie on the same axes are one group."""
    everything = np.arange(len(elements))
    roots = elements.find(everything)
    free = np.flatnonzero((roots == everything) & ~elements.frozen(everything))
    index = np.full(len(elements), -1)
    index[free] = np.arange(len(free))
    random = np.random.default_rng(0)
    signature = np.zeros(len(free), np.uint64)
    for labels in axes:
        units = index[roots[labels]]
        weight = random.integers(1, 2**63, dtype=np.uint64)
        np.add.at(signature, units[units >= 0], weight)
    _, first, group_of = np.unique(signature, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # groups in the order of their first unit, which is topological
    order = np.argsort(rank[group_of], kind="stable")
    index[free[order]] = np.arange(len(free))
    return index[roots], np.cumsum(np.bincount(rank[group_of], minlength=len(first)))


def _whole(tracker: Tracker, units: Units) -> list[Skipped]:
    """Axes of variables along which new elements were made that all stay, each with the reason."""
    found = []
    known = OPAQUE
    for variable, bound, path in tracker.bindings.values():
        for labels in bound:
            if labels is None or not labels.size or labels.max() <= known:
                continue
            known = int(labels.max())
            if (units[labels] < 0).all():
                found.append(Skipped(f"{path}/{variable.name}", spell_reason(tracker.elements.reason(known))))
    return found


def spell_reason(reason: Any) -> str:
    """Return why an element stays, with the call where that was found."""
    return reason if isinstance(reason, str) else f"{reason[1]}: {reason[0]}"
