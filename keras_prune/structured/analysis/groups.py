"""A model -> the units that can be removed, in groups, with all slices of variables that each takes along."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune.arrays.union_find import Labels
from keras_prune.graph.graph import Graph, Inside
from keras_prune.graph.phases import trace_phases
from keras_prune.models.keys import as_keys, check_keys
from keras_prune.scope import Skipped
from keras_prune.structured.analysis.replay import Mismatch, replay
from keras_prune.structured.analysis.units import (
    Copies,
    Group,
    Keep,
    Numbering,
    Slot,
    Units,
    number_units,
    spell_reason,
)
from keras_prune.structured.analysis.walk import Walk
from keras_prune.structured.rules.registry import Cost, Dims, Effect, Tracker

__all__ = ["Analysis", "Copies", "Group", "Keep", "Slot", "Units", "analyse", "inside_of", "labels_of_layer"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Analysis:
    """What can be removed from a model, and what that takes along.

    Attributes:
        graph: the calls of the model.
        slots: the axes that units lie on.
        groups: the units, in topological order.
        effects: for each call (by id), what its rule said at the first evaluation.
        costs: path and cost of each call, shared calls as often as they run.
        skipped: what stays although its layer makes units, with the reason; and each call without a rule.
        inputs_of: for each call (by id), the axes of its inputs at the first evaluation.
        dims: the axes of each tensor, by its graph's id and its number there.
        training_only: what a subclassed model does in training that the graph does not have, in words.
    """

    graph: Graph
    slots: tuple[Slot, ...]
    groups: tuple[Group, ...]
    effects: dict[int, Effect]
    costs: tuple[tuple[str, Cost], ...]
    skipped: tuple[Skipped, ...]
    inputs_of: dict[int, list[Dims]]
    dims: dict[tuple[int, int], Dims]
    _numbering: Numbering
    _tracker: Tracker
    training_only: str = ""

    @property
    def size(self) -> int:
        """The number of units."""
        return self.groups[-1].stop if self.groups else 0

    @property
    def exact(self) -> bool:
        """Whether only such units are counted that leave outputs as they are once the removed weights are 0."""
        return self._tracker.exact

    def units_of(self, labels: Labels) -> Units:
        """The unit of each element; -1 where it stays."""
        return self._numbering.units[self._tracker.elements.find(labels)]

    def kept(self, labels: Labels, keep: Keep | Copies) -> int:
        """How many of these indices stay, copies among them."""
        units = self.units_of(labels)
        return int(np.where(units < 0, 1, keep[units]).sum()) if self.size else len(units)

    def counts(self, keep: Keep) -> npt.NDArray[np.int64]:
        """How many units of each group stay."""
        return np.array([np.count_nonzero(keep[group.start : group.stop]) for group in self.groups], np.int64)

    def slot_of(self, variable: keras.Variable, axis: int) -> Slot | None:
        """The slot of a variable's axis; None if it stays whole."""
        place = self._numbering.places.get((id(variable), axis % len(variable.shape)))
        return None if place is None else self.slots[place]

    def indices(self, variable: keras.Variable, keep: Keep | Copies) -> tuple[Units | None, ...]:
        """For each axis of a variable, which indices stay, as often as there are copies; None for all, once each."""
        slots = [self.slot_of(variable, axis) for axis in range(len(variable.shape))]
        return tuple(None if slot is None else _places(slot.units, keep) for slot in slots)

    def places(self, labels: Labels, keep: Keep | Copies) -> Units | None:
        """Which of these indices stay, as often as there are copies; None for all, once each."""
        return _places(self.units_of(labels), keep) if self.size else None

    def reason(self, labels: Labels) -> str:
        """Why the first of these elements that stays does."""
        elements = self._tracker.elements
        stays = labels[elements.frozen(labels)]
        return "" if not stays.size else spell_reason(elements.reason(int(stays[0])))


def _places(units: Units, keep: Keep | Copies) -> Units | None:
    """The indices of an axis that stay. What lies side by side of one unit is copied as a whole."""
    times = np.where(units < 0, 1, keep[units])
    if (times == 1).all():
        return None
    if times.max() <= 1:
        return np.flatnonzero(times)
    runs = np.split(np.arange(len(units)), np.flatnonzero((np.diff(units) != 0) | (units[1:] < 0)) + 1)
    return np.concatenate([np.tile(run, times[run[0]]) for run in runs])


def analyse(model: keras.Model, *, exact: bool = True, frozen: Iterable[str] = (), input_shape: Any = None) -> Analysis:
    """Find what can be removed from a model.

    Args:
        model: built; it stays as it is.
        exact: whether only such removals are allowed that leave outputs as they are once the removed weights are 0.
        frozen: layers (or nested models) whose variables keep their shapes: names, paths, or regular expressions that
            match whole paths.
        input_shape: as for `trace`.

    Raises:
        ValueError: the graph cannot be traced, or a name in `frozen` matches nothing.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
        >>> found = analyse(model)
        >>> [(group.size, [found.slots[i].variable.name for i in group.slots]) for group in found.groups]
        [(3, ['kernel', 'bias', 'kernel'])]
    """
    graph, training_only = trace_phases(model, input_shape)
    names = frozenset(as_keys(frozen))
    found, stuck = _pass(graph, exact, names, frozenset())
    if stuck:
        # Heads and the size of a head lie on one axis of a kernel: where the size has to stay, heads may go.
        again, still = _pass(graph, exact, names, stuck)
        if stuck - still:
            found = again if not still else _pass(graph, exact, names, stuck - still)[0]
    if training_only:
        left_out = Skipped(model.name, f"{training_only}; a smaller model will not have it")
        return dataclasses.replace(found, skipped=(*found.skipped, left_out), training_only=training_only)
    return found


def _pass(graph: Graph, exact: bool, frozen: frozenset[str], first: frozenset[int]) -> tuple[Analysis, frozenset[int]]:
    """One pass over a graph, and the calls that cut an axis into several so that none of its elements may go."""
    walk = Walk(Tracker(exact, first), frozen)
    inputs = [Dims([None] * len(graph.shapes[i])) for i in graph.inputs]
    for dims in walk.run(graph, inputs):
        for entry in dims:
            if entry is not None:
                walk.tracker.elements.freeze(entry.labels, "it is an output of the model")
    unknown = sorted(walk.frozen - walk.matched)
    check_keys(
        f"frozen must name layers of {graph.model.name!r}", unknown, [node.path for node in graph.walk()], "layer"
    )
    found = _fitting(_analysis(graph, walk), walk)
    return found, frozenset(call for call, kept in walk.tracker.cuts if walk.tracker.elements.frozen(kept).all())


def _analysis(graph: Graph, walk: Walk) -> Analysis:
    """What a pass over a graph has found."""
    numbering = number_units(walk)
    return Analysis(
        graph,
        numbering.slots,
        numbering.groups,
        walk.effects,
        tuple(walk.costs),
        (*walk.skipped, *numbering.skipped),
        walk.inputs_of,
        walk.dims,
        numbering,
        walk.tracker,
    )


def _fitting(analysis: Analysis, walk: Walk) -> Analysis:
    """The analysis without units of which a layer's own `call` does not follow the removal, as a trial shows."""
    inside = inside_of(analysis.graph)
    while True:
        failed = [
            (group, (path, str(error)))
            for path, bodies in inside
            for group in _groups_in(analysis, bodies)
            if (error := _trial(analysis, bodies, group)) is not None
        ]
        if not failed:
            return analysis
        for group, reason in failed:
            for slot in (analysis.slots[i] for i in group.slots):
                of_group = (slot.units >= group.start) & (slot.units < group.stop)
                walk.tracker.elements.freeze(slot.labels[of_group], reason)
        analysis = _analysis(analysis.graph, walk)


def inside_of(graph: Graph) -> list[tuple[str, list[Inside]]]:
    """For each layer that is seen through, its path and what its `call` does at each of its calls."""
    found: dict[int, tuple[str, list[Inside]]] = {}
    for node in graph.walk():
        bodies = [body for body in node.bodies if isinstance(body, Inside)]
        if bodies:
            known = found.setdefault(id(node.operation), (node.path, []))[1]
            known += [body for body in bodies if not any(body is one for one in known)]
    return list(found.values())


def _groups_in(analysis: Analysis, bodies: Sequence[Inside]) -> list[Group]:
    """The groups of more than one unit that lie on tensors inside a layer."""
    tensors = [analysis.dims[id(body), i] for body in bodies for i in range(len(body.shapes))]
    axes = [entry.labels for dims in tensors for entry in dims if entry is not None]
    units = np.unique(np.concatenate([analysis.units_of(labels) for labels in axes])) if axes else np.zeros(0, int)
    units = units[units >= 0]
    stops = [group.stop for group in analysis.groups]
    return [
        group for i in np.unique(np.searchsorted(stops, units, side="right")) if (group := analysis.groups[i]).size > 1
    ]


def _trial(analysis: Analysis, bodies: Sequence[Inside], group: Group) -> Mismatch | None:
    """Why `call` does not do without half of a group; None if it does."""
    keep = np.ones(analysis.size, bool)
    keep[group.start : group.start + group.size // 2] = False
    try:
        replay(analysis, bodies, keep)
    except Mismatch as error:
        return error
    return None


def labels_of_layer(analysis: Analysis, name: str) -> Any:
    """The elements of a layer's outputs: the last axis that its rule gives."""
    for node in analysis.graph.walk():
        if node.body is None and name in (node.path, node.operation.name):
            output = analysis.effects[id(node)].outputs[0]
            known = [entry for entry in output if entry is not None]
            if not known:
                raise ValueError(f"{name!r} has no outputs that can be removed.")
            return known[-1].labels
    raise ValueError(f"{analysis.graph.model.name!r} has no layer {name!r}.")
