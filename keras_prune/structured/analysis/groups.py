"""One pass over a graph -> units that can be removed, in groups, with all slices of variables that each takes along."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import tree

import keras_prune.structured.rules.elementwise
import keras_prune.structured.rules.merge
import keras_prune.structured.rules.norm
import keras_prune.structured.rules.pick
import keras_prune.structured.rules.sequence
import keras_prune.structured.rules.shape  # noqa: F401
from keras_prune.arrays.union_find import OPAQUE, Labels
from keras_prune.graph.graph import Graph, Inside, Node
from keras_prune.graph.phases import trace_phases
from keras_prune.layer_kinds import altered
from keras_prune.models.keys import as_keys, check_keys, fits
from keras_prune.scope import Skipped
from keras_prune.structured.analysis.replay import Mismatch, replay
from keras_prune.structured.rules.registry import Axis, Call, Cost, Dims, Effect, Tracker, Width, find_rule

__all__ = ["Analysis", "Copies", "Group", "Slot", "analyse", "inside_of", "labels_of_layer"]

Units = npt.NDArray[np.int64]
Keep = npt.NDArray[np.bool_]
Copies = npt.NDArray[np.int64]
"""For each unit, how many of it there are to be: 0 takes it out, 2 puts a copy beside it."""


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
    _units: Units
    _places: dict[tuple[int, int], int]
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
        return self._units[self._tracker.elements.find(labels)]

    def kept(self, labels: Labels, keep: Keep | Copies) -> int:
        """How many of these indices stay, copies among them."""
        units = self.units_of(labels)
        return int(np.where(units < 0, 1, keep[units]).sum()) if self.size else len(units)

    def counts(self, keep: Keep) -> npt.NDArray[np.int64]:
        """How many units of each group stay."""
        return np.array([np.count_nonzero(keep[group.start : group.stop]) for group in self.groups], np.int64)

    def slot_of(self, variable: keras.Variable, axis: int) -> Slot | None:
        """The slot of a variable's axis; None if it stays whole."""
        place = self._places.get((id(variable), axis % len(variable.shape)))
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
        return "" if not stays.size else _spell(elements.reason(int(stays[0])))


def _places(units: Units, keep: Keep | Copies) -> Units | None:
    """The indices of an axis that stay. What lies side by side of one unit is copied as a whole."""
    times = np.where(units < 0, 1, keep[units])
    if (times == 1).all():
        return None
    if times.max() <= 1:
        return np.flatnonzero(times)
    runs = np.split(np.arange(len(units)), np.flatnonzero((np.diff(units) != 0) | (units[1:] < 0)) + 1)
    return np.concatenate([np.tile(run, times[run[0]]) for run in runs])


def _spell(reason: Any) -> str:
    return reason if isinstance(reason, str) else f"{reason[1]}: {reason[0]}"


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
    walk = _Walk(Tracker(exact, first), frozen)
    inputs = [Dims([None] * len(graph.shapes[i])) for i in graph.inputs]
    for dims in walk.run(graph, inputs):
        for entry in dims:
            if entry is not None:
                walk.tracker.elements.freeze(entry.labels, "it is an output of the model")
    unknown = sorted(walk.frozen - walk.matched)
    check_keys(
        f"frozen must name layers of {graph.model.name!r}", unknown, [node.path for node in graph.walk()], "layer"
    )
    found = _fitting(_collect(graph, walk), walk)
    return found, frozenset(call for call, kept in walk.tracker.cuts if walk.tracker.elements.frozen(kept).all())


def _fitting(analysis: Analysis, walk: _Walk) -> Analysis:
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
        analysis = _collect(analysis.graph, walk)


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


def _names(key: str, node: Node) -> bool:
    """Whether a key is the call's path, its layer's name, that of a model around it, or a pattern for the path."""
    return key == node.operation.name or node.path.startswith(key + "/") or fits(key, node.path)


class _Walk:
    """One pass over a graph, nested models at each of their calls."""

    def __init__(self, tracker: Tracker, frozen: frozenset[str]) -> None:
        self.tracker = tracker
        self.frozen = frozen
        self.matched: set[str] = set()
        self.effects: dict[int, Effect] = {}
        self.costs: list[tuple[str, Cost]] = []
        self.skipped: list[Skipped] = []
        self.first: dict[int, list[Axis | None]] = {}
        self.inputs_of: dict[int, list[Dims]] = {}
        self.dims: dict[tuple[int, int], Dims] = {}

    def run(self, graph: Graph, inputs: Sequence[Dims]) -> list[Dims]:
        known = dict(zip(graph.inputs, inputs, strict=True))
        for node in graph.nodes:
            if isinstance(graph, Inside):
                known.update({i: self._own(graph, node, i) for i in node.inputs if i in graph.own})
            if node.body is not None:
                made = self._enter(graph, node, [known[i] for i in node.entries])
            else:
                made = self._apply(graph, node, [known[i] for i in node.inputs])
            known.update(zip(node.outputs, made, strict=True))
        for number, dims in known.items():
            self.dims.setdefault((id(graph), number), dims)
        return [known[i] for i in graph.outputs]

    def _enter(self, graph: Graph, node: Node, taken: list[Dims]) -> list[Dims]:
        """Run the calls inside a model, or inside a layer that was seen through: at inference, then in training."""
        assert node.body is not None
        call = self._call(graph, node, taken)
        if not isinstance(node.body, Inside):
            self._share(call, [entry for dims in taken for entry in dims])
        made = self.run(node.body, taken)
        if node.training is not None:
            costs = len(self.costs)
            others = self.run(node.training, taken)
            del self.costs[costs:]
            made = [
                Dims(call.merge(a, b) for a, b in zip(x, y, strict=True)) for x, y in zip(made, others, strict=True)
            ]
        for body in node.bodies:
            for variable in body.read if isinstance(body, Inside) else ():
                self._hold(call, variable, f"its value is read in call() of {type(node.operation).__name__}")
        return made

    def _own(self, graph: Inside, node: Node, number: int) -> Dims:
        """The axes of a layer's own variable, along which new elements lie; a mask has none."""
        variable = graph.own[number]
        if variable is None:
            return Dims([None] * len(graph.shapes[number]))
        call = self._call(graph, node, [])
        if not keras.backend.is_float_dtype(variable.dtype):
            self._hold(call, variable, f"it holds numbers of type {variable.dtype}")
            return Dims([None] * len(variable.shape))
        return Dims(Axis(call.units(variable, i)) if size > 1 else None for i, size in enumerate(variable.shape))

    def _hold(self, call: Call, variable: keras.Variable, reason: str) -> None:
        for axis in range(len(variable.shape)):
            call.freeze(call.units(variable, axis), reason)

    def _call(self, graph: Graph, node: Node, taken: list[Dims]) -> Call:
        shapes, output_shapes = ([graph.shapes[i] for i in numbers] for numbers in (node.inputs, node.outputs))
        return Call(node, taken, shapes, output_shapes, self.tracker)

    def _apply(self, graph: Graph, node: Node, taken: list[Dims]) -> list[Dims]:
        call = self._call(graph, node, taken)
        rule = find_rule(node.operation)
        unknown = node.unseen or f"there is no rule for {type(node.operation).__name__}"
        reason = altered(node.operation) or ("" if rule else unknown)
        effect = rule(call) if rule is not None and not reason else call.opaque(reason)
        if [len(dims) for dims in effect.outputs] != [len(shape) for shape in call.output_shapes]:
            raise ValueError(
                f"The rule of {type(node.operation).__name__} must give the axes of each result: ranks "
                f"{[len(shape) for shape in call.output_shapes]}. Received: {[len(dims) for dims in effect.outputs]}"
            )
        leaves = tree.flatten(dict(effect.config))
        self._share(call, [Axis(leaf.labels) if isinstance(leaf, Width) else None for leaf in leaves])
        touched = any(entry is not None for dims in taken for entry in dims)
        if reason and (touched or bool(getattr(node.operation, "weights", None))):
            self.skipped.append(Skipped(node.path, reason))
        matching = {key for key in self.frozen if _names(key, node)}
        if matching:
            self.matched |= matching
            self._freeze(node)
        self.effects.setdefault(id(node), effect)
        self.inputs_of.setdefault(id(node), taken)
        axes = [size for shape in (*call.shapes, *call.output_shapes) for size in shape]
        self.costs += [(node.path, _for_length_one(graph, axes, cost)) for cost in effect.costs]
        return list(effect.outputs)

    def _share(self, call: Call, entries: list[Axis | None]) -> None:
        """What is called again has one configuration, and a model one set of inputs: their widths stay the same."""
        for a, b in itertools.zip_longest(entries, self.first.setdefault(id(call.layer), entries)):
            if a is not None and b is not None and len(a.labels) == len(b.labels):
                call.merge(a, b)
            else:
                call.freeze(a, "the layer is called on tensors of other shapes, too")
                call.freeze(b, "the layer is called on tensors of other shapes, too")

    def _freeze(self, node: Node) -> None:
        for variable in getattr(node.operation, "variables", ()):
            for labels in self.tracker.bindings.get(id(variable), (None, [], ""))[1]:
                if labels is not None:
                    self.tracker.elements.freeze(labels, (node.path, "it was asked to stay as it is"))


def _for_length_one(graph: Graph, axes: Sequence[int | None], cost: Cost) -> Cost:
    """A cost inside a layer with axes of unknown length counted as 1, as everywhere: a prime number stands for them."""
    free = graph.free if isinstance(graph, Inside) else None
    factor = cost.factor
    for _ in range(axes.count(free) if free is not None else 0):
        factor = factor / free if free is not None and factor % free == 0 else factor
    return cost if factor == cost.factor else dataclasses.replace(cost, factor=factor)


def _collect(graph: Graph, walk: _Walk) -> Analysis:
    """Number the units so that a group is a range, and find what each lies on."""
    tracker = walk.tracker
    elements = tracker.elements
    axes: list[tuple[Labels, Any, int, str]] = []
    for variable, bound, path in tracker.bindings.values():
        axes += [(labels, variable, axis, path) for axis, labels in enumerate(bound) if labels is not None]
    axes += [(part, None, 0, path) for path, cost in walk.costs for part in cost.parts if isinstance(part, np.ndarray)]
    everything = np.arange(len(elements))
    roots = elements.find(everything)
    free = np.flatnonzero((roots == everything) & ~elements.frozen(everything))
    index = np.full(len(elements), -1)
    index[free] = np.arange(len(free))
    random = np.random.default_rng(0)
    signature = np.zeros(len(free), np.uint64)
    # Axes of tensors count, too: so what is left of a split, say, is never empty.
    tensors = {id(e.labels): e.labels for effect in walk.effects.values() for x in effect.outputs for e in x if e}
    tensors.update((id(labels), labels) for labels, *_ in axes)
    for labels in tensors.values():
        units = index[roots[labels]]
        weight = random.integers(1, 2**63, dtype=np.uint64)
        np.add.at(signature, units[units >= 0], weight)
    _, first, group_of = np.unique(signature, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # groups in the order of their first unit, which is topological
    order = np.argsort(rank[group_of], kind="stable")
    index[free[order]] = np.arange(len(free))
    sizes = np.bincount(rank[group_of], minlength=len(first))
    stops = np.cumsum(sizes)

    slots: list[Slot] = []
    places: dict[tuple[int, int], int] = {}
    on: list[list[int]] = [[] for _ in sizes]
    seen: set[int] = set()
    for labels, variable, axis, path in axes:
        units = index[roots[labels]]
        if (units >= 0).any() and id(labels) not in seen:
            seen.add(id(labels) if variable is None else -1)
            if variable is not None:
                places[id(variable), axis] = len(slots)
            for group in np.unique(np.searchsorted(stops, units[units >= 0], side="right")):
                on[int(group)].append(len(slots))
            slots.append(Slot(labels, units, variable, axis, path))
    groups = tuple(
        Group(int(stop - size), int(stop), tuple(members)) for stop, size, members in zip(stops, sizes, on, strict=True)
    )
    skipped = (*walk.skipped, *_whole(tracker, index, roots))
    return Analysis(
        graph,
        tuple(slots),
        groups,
        walk.effects,
        tuple(walk.costs),
        skipped,
        walk.inputs_of,
        walk.dims,
        index[roots],
        places,
        tracker,
    )


def _whole(tracker: Tracker, index: Units, roots: Labels) -> list[Skipped]:
    """Axes of variables along which new elements were made that all stay, each with the reason."""
    found = []
    known = OPAQUE
    for variable, bound, path in tracker.bindings.values():
        for labels in bound:
            if labels is None or not labels.size or labels.max() <= known:
                continue
            known = int(labels.max())
            if (index[roots[labels]] < 0).all():
                found.append(Skipped(f"{path}/{variable.name}", _spell(tracker.elements.reason(known))))
    return found


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
