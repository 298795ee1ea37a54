"""One pass over a graph's calls: each rule says how axes of results, inputs and variables belong together."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import keras
from keras import tree

import keras_prune.structured.rules.elementwise
import keras_prune.structured.rules.gated
import keras_prune.structured.rules.merge
import keras_prune.structured.rules.norm
import keras_prune.structured.rules.pick
import keras_prune.structured.rules.sequence
import keras_prune.structured.rules.shape  # noqa: F401
from keras_prune.graph.graph import Graph, Inside, Node
from keras_prune.layer_kinds import altered
from keras_prune.models.keys import fits
from keras_prune.scope import Skipped
from keras_prune.structured.rules.registry import Axis, Call, Cost, Dims, Effect, Tracker, Width, find_rule

__all__ = ["Walk"]


class Walk:
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
                call.freeze(a, "the layer is also called on tensors of other shapes")
                call.freeze(b, "the layer is also called on tensors of other shapes")

    def _freeze(self, node: Node) -> None:
        for variable in getattr(node.operation, "variables", ()):
            for labels in self.tracker.bindings.get(id(variable), (None, [], ""))[1]:
                if labels is not None:
                    self.tracker.elements.freeze(labels, (node.path, "it is named in frozen"))


def _names(key: str, node: Node) -> bool:
    """Whether a key is the call's path, its layer's name, that of a model around it, or a pattern for the path."""
    return key == node.operation.name or node.path.startswith(key + "/") or fits(key, node.path)


def _for_length_one(graph: Graph, axes: Sequence[int | None], cost: Cost) -> Cost:
    """A cost inside a layer with axes of unknown length counted as 1, as everywhere: a prime number stands for them."""
    free = graph.free if isinstance(graph, Inside) else None
    factor = cost.factor
    for _ in range(axes.count(free) if free is not None else 0):
        factor = factor / free if free is not None and factor % free == 0 else factor
    return cost if factor == cost.factor else dataclasses.replace(cost, factor=factor)
