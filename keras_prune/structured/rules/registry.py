"""How the axes of a call's results relate to those of its inputs and of its variables: one rule a layer kind.

A tensor carries, for each of its axes, either None (nothing can be removed along it: the batch, space, time) or
an `Axis`: for each index, the number of the element that it belongs to. A rule hands these maps on. Where an operation
moves indices (Flatten, Concatenate, a split), it moves the numbers in the same way; where it needs two indices to stay
or go together (Add, grouped convolutions), it ties their elements. So one pass in topological order finds exactly
which indices of which variables belong together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_prune.arrays.union_find import OPAQUE, Elements, Labels
from keras_prune.graph.graph import Node, Ref, Shape
from keras_prune.layer_kinds import channel_rule, set_channel_rule

__all__ = ["Axis", "Call", "Cost", "Dims", "Effect", "Rule", "Tracker", "Width", "find_rule", "rule_for"]


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """An axis from which indices may be taken out.

    Attributes:
        labels: for each index, the element that it belongs to.
        zero: whether the tensor is 0 at an index once all weights of its element are 0. Where a sum over the axis is to
            leave out an element, this has to hold.
    """

    labels: Labels
    zero: bool = True

    def with_zero(self, zero: bool) -> Axis:
        """The same axis, zero only if it was and `zero` is true."""
        return Axis(self.labels, self.zero and zero)


class Dims(tuple[Axis | None, ...]):
    """One entry for each axis of a tensor."""

    __slots__ = ()

    def replaced(self, axis: int, value: Axis | None) -> Dims:
        """The same, with another entry at `axis`."""
        entries = list(self)
        entries[axis] = value
        return Dims(entries)

    def with_zero(self, zero: bool) -> Dims:
        """The same, its axes zero only if they were and `zero` is true."""
        return Dims(None if axis is None else axis.with_zero(zero) for axis in self)


@dataclasses.dataclass(frozen=True, eq=False)
class Width:
    """A number that follows from how many indices stay: a constructor's argument, or a factor on a variable.

    Attributes:
        labels: the indices.
        rule: (how many stay, how many there were) -> the number; by default how many stay.
    """

    labels: Labels
    rule: Callable[[int, int], Any] = lambda kept, before: kept


@dataclasses.dataclass(frozen=True, eq=False)
class Cost:
    """Multiplications with addition of a call, for one sample: `factor` times the widths in `parts`.

    Attributes:
        factor: what does not change with widths; an axis of unknown length counts as 1.
        parts: (variable, axis), or the labels of an axis that no variable has.
    """

    factor: float
    parts: tuple[tuple[keras.Variable, int] | Labels, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Effect:
    """What a rule says of a call.

    Attributes:
        outputs: the axes of each result.
        config: entries of the operation's configuration that follow from widths, nested as the configuration is.
        args: arguments of the call that follow from widths, by position or by name.
        scales: variables that are multiplied by a number that follows from a width, so that the result is the same.
        costs: its multiplications.
        not_counted: why its multiplications are not known; empty if they are.
    """

    outputs: Sequence[Dims]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    args: Mapping[int | str, Any] = dataclasses.field(default_factory=dict)
    scales: Sequence[tuple[keras.Variable, Width]] = ()
    costs: Sequence[Cost] = ()
    not_counted: str = ""


Rule = Callable[["Call"], Effect]


def rule_for(*kinds: type | str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these layers and of their subclasses that keep `call`.

    A later rule replaces an earlier one.

    Args:
        kinds: layer classes; or class names, for what Keras does not export: operations of `keras.ops` ("Add",
            "Reshape") and layers of `keras.applications`.

    Example:
        >>> class Gain(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain")
        ...     def call(self, x):
        ...         return x * self.gain
        >>> @rule_for(Gain)
        ... def gain(call):
        ...     x = call.inputs[0]
        ...     call.bind(call.layer.gain, 0, x[-1])
        ...     return Effect([x])
        >>> find_rule(Gain()) is gain
        True
    """

    def register(rule: Rule) -> Rule:
        set_channel_rule(kinds, rule)
        return rule

    return register


def find_rule(operation: Any) -> Rule | None:
    """The rule of the nearest class that has one, unless a class in between has a `call` of its own."""
    rule: Rule | None = channel_rule(operation)
    return rule


class Tracker:
    """What one pass over a graph has gathered so far; it lives as long as the pass.

    Attributes:
        elements: all elements.
        bindings: for each variable (by id), the variable and the labels of each axis, None where it stays whole.
        exact: whether only such removals are allowed that leave outputs as they are.
        first: calls (by id) that cut an axis into several, of which the first is to keep elements, not the last.
        cuts: calls (by id) that had that choice, and the elements that were kept.
    """

    def __init__(self, exact: bool, first: frozenset[int] = frozenset()) -> None:
        self.elements = Elements()
        self.first = first
        self.cuts: list[tuple[int, Labels]] = []
        self.bindings: dict[int, tuple[keras.Variable, list[Labels | None], str]] = {}
        self.exact = exact


class Call:
    """A call as its rule sees it.

    Attributes:
        node: the call; layer: what is called.
        inputs: the axes of each tensor among the arguments, in order.
        shapes, output_shapes: of the inputs and results.
        exact: whether only such removals are allowed that leave outputs as they are.
    """

    def __init__(
        self,
        node: Node,
        inputs: Sequence[Dims],
        shapes: Sequence[Shape],
        output_shapes: Sequence[Shape],
        tracker: Tracker,
    ) -> None:
        self.node = node
        self.layer = node.operation
        self.inputs = list(inputs)
        self.shapes = list(shapes)
        self.output_shapes = list(output_shapes)
        self.exact = tracker.exact
        self._tracker = tracker

    def within(
        self, layer: Any, inputs: Sequence[Dims], shapes: Sequence[Shape], output_shapes: Sequence[Shape]
    ) -> Call:
        """The call of a layer inside this one (of a wrapper)."""
        call = Call(self.node, inputs, shapes, output_shapes, self._tracker)
        call.layer = layer
        return call

    def argument(self, name: str, position: int, default: Any = None) -> Any:
        """An argument of the call, with the number of the input where there was a tensor (see `place`)."""
        args, kwargs = self.node.args, self.node.kwargs
        return kwargs[name] if name in kwargs else args[position] if position < len(args) else default

    def place(self, value: Any) -> int | None:
        """Which of `inputs` an argument is; None if it is no tensor of the graph."""
        return self.node.inputs.index(value.index) if isinstance(value, Ref) else None

    def constants(self) -> list[Any]:
        """Arrays and tensors with axes among the arguments that are no tensors of the graph."""
        leaves = tree.flatten((self.node.args, self.node.kwargs))
        return [leaf for leaf in leaves if not isinstance(leaf, Ref) and len(getattr(leaf, "shape", ())) > 0]

    def bind(self, variable: keras.Variable | None, axis: int, entry: Axis | Labels | None) -> None:
        """Say that an axis of a variable runs along these elements; None: it stays whole."""
        if variable is None:
            return
        size = variable.shape[axis]
        labels = entry.labels if isinstance(entry, Axis) else entry
        if labels is None:
            labels = np.full(size, OPAQUE)
        if len(labels) != size:
            raise ValueError(
                f"The rule of {type(self.layer).__name__} binds axis {axis} of {variable.path!r}, which has {size} "
                f"indices, to {len(labels)} elements."
            )
        known = self._axes(variable)
        before = known[axis]
        if before is None:
            known[axis] = labels
        else:
            self.tie(before, labels)

    def units(self, variable: keras.Variable, axis: int) -> Labels:
        """The elements along an axis of a variable that makes them: new ones at the first call."""
        known = self._axes(variable)
        labels = known[axis]
        if labels is None:
            labels = known[axis] = self._tracker.elements.fresh(variable.shape[axis])
        return labels

    def _axes(self, variable: keras.Variable) -> list[Labels | None]:
        whole: list[Labels | None] = [None] * len(variable.shape)
        return self._tracker.bindings.setdefault(id(variable), (variable, whole, self.node.path))[1]

    def tie(self, a: Labels, b: Labels) -> None:
        """Make elements stay or go together."""
        self._tracker.elements.tie(a, b, (self.node.path, "tied to a dimension that cannot be pruned"))

    def freeze(self, entry: Axis | Labels | None, reason: str) -> None:
        """Keep all elements of an axis."""
        labels = entry.labels if isinstance(entry, Axis) else entry
        if labels is not None:
            self._tracker.elements.freeze(labels, (self.node.path, reason))

    def choose(self, axes: Sequence[int]) -> int:
        """Which of several axes keeps elements where one is cut into them: the last, unless a pass found it frozen."""
        return axes[0] if id(self.node) in self._tracker.first else axes[-1]

    def chosen(self, axes: Sequence[int], labels: Labels) -> Labels:
        """Note what was chosen, where there was a choice; gives the labels."""
        if len(axes) > 1:
            self._tracker.cuts.append((id(self.node), labels))
        return labels

    def roots(self, labels: Labels) -> Labels:
        """One number for each class of elements that are tied so far."""
        return self._tracker.elements.find(labels)

    def merge(self, *entries: Axis | None, zero: bool | None = None) -> Axis | None:
        """One axis that several tensors share, element by element; `zero` overrides "zero if all are"."""
        known = [entry for entry in entries if entry is not None]
        if not known:
            return None
        if len(known) < len(entries):
            for entry in known:
                self.freeze(entry, "tied to a dimension that cannot be pruned")
        for entry in known[1:]:
            self.tie(known[0].labels, entry.labels)
        return Axis(known[0].labels, all(entry.zero for entry in known) if zero is None else zero)

    def spread(self, dims: Dims, shape: Shape) -> tuple[int, tuple[Labels, ...]]:
        """How often something is computed that is computed at each index of some axes: a factor, and widths."""
        fixed = [size for size, entry in zip(shape, dims, strict=True) if entry is None]
        known = tuple(entry.labels for entry in dims if entry is not None)
        return math.prod(size for size in fixed if size is not None), known

    def opaque(self, reason: str, multiplies: bool = False) -> Effect:
        """Freeze all that touches the call: its inputs, its variables, its results.

        Args:
            reason: why.
            multiplies: whether it has multiplications that count, which are then not known.
        """
        for dims in self.inputs:
            for entry in dims:
                self.freeze(entry, reason)
        for variable in getattr(self.layer, "variables", ()):
            for axis in range(len(variable.shape)):
                self.bind(variable, axis, None)
        outputs = [Dims([None] * len(shape)) for shape in self.output_shapes]
        return Effect(outputs, not_counted=reason if multiplies else "")
