"""How the axes of a call's results relate to those of its inputs and of its variables: one rule for each kind of layer.

A tensor carries an entry for each of its axes. The entry is None if nothing can be removed along the axis (the batch,
space, time), and an `Axis` otherwise: for each index, the number of the element that it belongs to. A rule computes the
entries of a call's results from those of its inputs. Where an operation moves indices (Flatten, Concatenate, a split),
its rule moves the numbers in the same way; where two indices must stay or go together (Add, grouped convolutions), its
rule ties their elements. So one pass in topological order finds which indices of which variables belong together.
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
    """An axis along which indices may be removed.

    Attributes:
        labels: for each index, the element that it belongs to.
        zero: whether the tensor is 0 at an index once all weights of its element are 0. This must hold for an element
            to be left out of a sum over the axis.
    """

    labels: Labels
    zero: bool = True

    def with_zero(self, zero: bool) -> Axis:
        """The same axis, with `zero` kept only if the argument is true as well."""
        return Axis(self.labels, self.zero and zero)


class Dims(tuple[Axis | None, ...]):
    """One entry for each axis of a tensor."""

    __slots__ = ()

    def replaced(self, axis: int, value: Axis | None) -> Dims:
        """The same entries, with another one at `axis`."""
        entries = list(self)
        entries[axis] = value
        return Dims(entries)

    def with_zero(self, zero: bool) -> Dims:
        """The same entries, with `zero` of each kept only if the argument is true as well."""
        return Dims(None if axis is None else axis.with_zero(zero) for axis in self)


@dataclasses.dataclass(frozen=True, eq=False)
class Width:
    """A number that depends on how many indices are kept: a constructor's argument, or a factor on a variable.

    Attributes:
        labels: the elements of these indices.
        rule: (indices kept, indices before) -> the number; by default, the number of indices kept.
    """

    labels: Labels
    rule: Callable[[int, int], Any] = lambda kept, before: kept


@dataclasses.dataclass(frozen=True, eq=False)
class Cost:
    """Multiply-adds of a call for one sample: `factor` times the lengths of the axes in `parts`.

    Attributes:
        factor: the part that does not depend on widths; an axis of unknown length counts as 1.
        parts: axes whose lengths are multiplied: (variable, axis), or the labels of an axis that no variable has.
    """

    factor: float
    parts: tuple[tuple[keras.Variable, int] | Labels, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Effect:
    """What a rule says about a call.

    Attributes:
        outputs: the entries of each result's axes.
        config: entries of the operation's configuration that depend on widths, nested as the configuration is.
        args: arguments of the call that depend on widths, by position or by name.
        scales: variables, each with the number that it is multiplied by to keep the result the same.
        costs: its multiply-adds.
        not_counted: why its multiply-adds are not known; empty if they are.
    """

    outputs: Sequence[Dims]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    args: Mapping[int | str, Any] = dataclasses.field(default_factory=dict)
    scales: Sequence[tuple[keras.Variable, Width]] = ()
    costs: Sequence[Cost] = ()
    not_counted: str = ""


Rule = Callable[["Call"], Effect]


def rule_for(*kinds: type | str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these layers, and of their subclasses that do not override `call`.

    A rule that is registered later replaces an earlier one.

    Args:
        kinds: classes of layers; or names of classes that Keras does not export: operations of `keras.ops` ("Add",
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
    """The rule of the nearest base class that has one, unless a class in between overrides `call`."""
    rule: Rule | None = channel_rule(operation)
    return rule


class Tracker:
    """What one pass over a graph has collected so far.

    Attributes:
        elements: all elements.
        bindings: for each variable (by id), the variable, the labels of each axis (None if the axis is not bound yet),
            and the path of the call that bound it first.
        exact: whether only removals that leave the outputs unchanged are allowed.
        first: calls (by id) that split an axis into several, and whose first new axis is to carry the elements; in
            other calls, the last one does.
        cuts: calls (by id) that had this choice, each with the elements along the axis that was chosen.
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
        node: the call.
        layer: the layer or operation that is called.
        inputs: the entries of each tensor among the arguments, in order.
        shapes: shapes of these tensors.
        output_shapes: shapes of the results.
        exact: whether only removals that leave the outputs unchanged are allowed.
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
        """The call of a layer inside this one, which is a wrapper."""
        call = Call(self.node, inputs, shapes, output_shapes, self._tracker)
        call.layer = layer
        return call

    def argument(self, name: str, position: int, default: Any = None) -> Any:
        """An argument of the call; where a tensor of the graph was passed, a reference to it (see `place`)."""
        args, kwargs = self.node.args, self.node.kwargs
        return kwargs[name] if name in kwargs else args[position] if position < len(args) else default

    def place(self, value: Any) -> int | None:
        """The index in `inputs` of an argument; None if it is not a tensor of the graph."""
        return self.node.inputs.index(value.index) if isinstance(value, Ref) else None

    def constants(self) -> list[Any]:
        """Arrays among the arguments, of rank 1 or more, that are not tensors of the graph."""
        leaves = tree.flatten((self.node.args, self.node.kwargs))
        return [leaf for leaf in leaves if not isinstance(leaf, Ref) and len(getattr(leaf, "shape", ())) > 0]

    def bind(self, variable: keras.Variable | None, axis: int, entry: Axis | Labels | None) -> None:
        """State that these elements lie along an axis of a variable; None states that nothing is removed along it."""
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
        """The elements along an axis of a variable; new ones if the axis is not bound yet."""
        known = self._axes(variable)
        labels = known[axis]
        if labels is None:
            labels = known[axis] = self._tracker.elements.fresh(variable.shape[axis])
        return labels

    def _axes(self, variable: keras.Variable) -> list[Labels | None]:
        whole: list[Labels | None] = [None] * len(variable.shape)
        return self._tracker.bindings.setdefault(id(variable), (variable, whole, self.node.path))[1]

    def tie(self, a: Labels, b: Labels) -> None:
        """Make elements stay or go together, pair by pair."""
        self._tracker.elements.tie(a, b, (self.node.path, "tied to a dimension that cannot be pruned"))

    def freeze(self, entry: Axis | Labels | None, reason: str) -> None:
        """Keep all elements of an axis."""
        labels = entry.labels if isinstance(entry, Axis) else entry
        if labels is not None:
            self._tracker.elements.freeze(labels, (self.node.path, reason))

    def choose(self, axes: Sequence[int]) -> int:
        """Which of the axes that one is split into carries the elements: the last, unless a pass found that frozen."""
        return axes[0] if id(self.node) in self._tracker.first else axes[-1]

    def chosen(self, axes: Sequence[int], labels: Labels) -> Labels:
        """Return the labels along the axis that was chosen; record them if there was more than one axis."""
        if len(axes) > 1:
            self._tracker.cuts.append((id(self.node), labels))
        return labels

    def roots(self, labels: Labels) -> Labels:
        """For each element, a number that all elements tied to it so far share."""
        return self._tracker.elements.find(labels)

    def merge(self, *entries: Axis | None, zero: bool | None = None) -> Axis | None:
        """The entry of an axis that several tensors share, their elements tied index by index.

        Args:
            entries: the axis in each of the tensors. If some are None, the elements of the others cannot be removed.
            zero: `zero` of the result; by default, whether all entries have it.
        """
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
        """How often a computation runs that runs once for each index of some axes.

        Args:
            dims: the entries of these axes.
            shape: their sizes.

        Returns:
            The product of the sizes that do not change, and the labels of the axes that may become shorter.
        """
        fixed = [size for size, entry in zip(shape, dims, strict=True) if entry is None]
        known = tuple(entry.labels for entry in dims if entry is not None)
        return math.prod(size for size in fixed if size is not None), known

    def opaque(self, reason: str, multiplies: bool = False) -> Effect:
        """Allow no removal along any axis of the call's inputs, variables and results.

        Args:
            reason: the reason, for the report.
            multiplies: whether the call has multiply-adds, whose number is then not known.
        """
        for dims in self.inputs:
            for entry in dims:
                self.freeze(entry, reason)
        for variable in getattr(self.layer, "variables", ()):
            for axis in range(len(variable.shape)):
                self.bind(variable, axis, None)
        outputs = [Dims([None] * len(shape)) for shape in self.output_shapes]
        return Effect(outputs, not_counted=reason if multiplies else "")
