"""A pruned model and the dense one run side by side, call by call, on all batches of the data."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_prune.graph.graph import Graph, Inside, Node, input_tensors
from keras_prune.graph.running import run_calls
from keras_prune.graph.trace import trace
from keras_prune.keras_seam.layers import layers_in, takes_training
from keras_prune.models.attributes import replaced
from keras_prune.models.variables import read
from keras_prune.reconstruction.store import Kept, Store
from keras_prune.statistics.batches import Batches

__all__ = ["Call", "run_side_by_side"]

BATCH = 128
"""Samples that run at once, where the data does not come in batches."""

Values = list[tuple[keras.Variable, Any]]
"""The values that variables have in the dense model, where both models are one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A call of a layer in the pruned model and the same call in the dense one, on all batches.

    Attributes:
        pruned, dense: what is called; one object where both models are one.
        batches: how many there are.
        arguments: batch -> the arguments in the pruned model and in the dense one.
        values: those that variables have in the dense model.
    """

    pruned: Any
    dense: Any
    batches: int
    arguments: Callable[[int], tuple[Any, Any]]
    values: Values

    def layers(self) -> list[tuple[Any, Any]]:
        """Return the layer that is called and those in it, each with its counterpart in the dense model.

        Where one of the two has more layers in it, those of the same name and class; None where there is no such.
        """
        if not isinstance(self.pruned, keras.Layer):
            return []
        own, others = layers_in(self.pruned), layers_in(self.dense)
        if len(own) == len(others):
            return list(zip(own, others, strict=True))
        names = Counter(layer.name for layer in others)
        alone = {(layer.name, type(layer)): layer for layer in others if names[layer.name] == 1}
        return [(layer, alone.get((layer.name, type(layer)))) for layer in own]

    def in_order(self, layers: Sequence[Any]) -> list[Any]:
        """Return those of some layers in it that the call reaches, in the order in which it first does."""
        if len(layers) < 2:
            return list(layers)
        seen: dict[int, Any] = {}
        with _watched(layers, lambda layer, x: seen.setdefault(id(layer), layer)):
            _run(self.pruned, self.arguments(0)[0])
        return list(seen.values())

    def inputs(self, layer: Any, dense: Any, batch: int) -> tuple[list[Any], list[Any]]:
        """Return what a layer in it reads in each of its calls on a batch, in the pruned model and in the dense one.

        The same list twice where both read the same.
        """
        first, second = self.arguments(batch)
        if layer is self.pruned:
            read_first, read_second = _first_of(first), _first_of(second)
            return [read_first], [read_first if read_first is read_second else read_second]
        found: list[list[Any]] = []
        for operation, inner, given, values in (
            (self.pruned, layer, first, ()),
            (self.dense, dense, second, self.values),
        ):
            inputs: list[Any] = []
            with _watched([inner], lambda _, x, inputs=inputs: inputs.append(x)):  # type: ignore[misc]
                _run(operation, given, values)
            found.append(inputs)
        return found[0], found[1]

    def results(self, batch: int) -> list[tuple[Any, Any]]:
        """Return the results on a batch, in both models: one object twice where they are equal."""
        first, second = self.arguments(batch)
        made = tree.flatten(_run(self.pruned, first))
        if self._same(first, second):
            return [(one, one) for one in made]
        return list(zip(made, tree.flatten(_run(self.dense, second, self.values)), strict=True))

    def _same(self, first: Any, second: Any) -> bool:
        """Whether both models answer the same: to the same tensors, with the same weights."""
        pairs = zip(tree.flatten(first), tree.flatten(second), strict=True)
        if any(a is not b for a, b in pairs if ops.is_tensor(a)):
            return False
        return self._same_weights

    @functools.cached_property
    def _same_weights(self) -> bool:
        own = [*getattr(self.pruned, "variables", ())]
        if self.pruned is self.dense:
            ids = {id(variable) for variable in own}
            return not any(id(variable) in ids for variable, _ in self.values)
        others = [*getattr(self.dense, "variables", ())]
        pairs = zip(own, others, strict=False)
        return len(own) == len(others) and all(np.array_equal(read(a), read(b)) for a, b in pairs)


def run_side_by_side(
    pruned: keras.Model,
    dense: keras.Model,
    values: Values,
    data: Any,
    visit: Callable[[Call], None],
) -> None:
    """Run both models on data, and show each call to `visit` before its results are taken.

    So what `visit` changes in a layer is what the calls after it read. Tensors are kept until the last call that reads
    them. Where the calls cannot be traced, or are not the same in both models, the whole model is the one call.

    Args:
        pruned: the pruned model.
        dense: the dense one; the pruned one itself, where only values of variables differ.
        values: those of the dense model then; `visit` may add some.
        data: inputs, as `Batches` takes them; labels are not looked at.
        visit: is shown each call.
    """
    batches = [batch.x for batch in Batches(data, pruned, labels=False, size=BATCH)]
    graphs = _graphs(pruned, dense)
    if graphs is None:
        visit(Call(pruned, dense, len(batches), lambda i: (((batches[i],), {}),) * 2, values))
        return
    with Store() as store:
        run = _Run(graphs[1], len(batches), values, visit, store)
        run.graph(graphs[0], store.keep([(x, x) for x in input_tensors(graphs[0], given)] for given in batches))


def _graphs(pruned: keras.Model, dense: keras.Model) -> tuple[Graph, dict[int, Node]] | None:
    """The calls of the pruned model, and for each (by id) that of the dense one; None where they cannot be had."""
    try:
        graph = trace(pruned)
        if pruned is dense:
            return graph, {id(node): node for node in graph.walk()}
        pairs = _paired(graph, trace(dense))
    except ValueError:
        return None
    return None if pairs is None else (graph, pairs)


def _paired(graph: Graph, other: Graph) -> dict[int, Node] | None:
    """For each call (by id) of a graph that of another which makes the same calls; None where they are others."""
    if len(graph.nodes) != len(other.nodes) or len(graph.inputs) != len(other.inputs):
        return None
    pairs: dict[int, Node] = {}
    number = dict(zip(graph.inputs, other.inputs, strict=True))
    for a, b in zip(graph.nodes, other.nodes, strict=True):
        nested = [node.body is not None and not isinstance(node.body, Inside) for node in (a, b)]
        same = _same_kind(a.operation, b.operation) and len(a.outputs) == len(b.outputs) and nested[0] == nested[1]
        if not same or [number.get(i) for i in a.inputs] != list(b.inputs):
            return None
        if a.body is not None and b.body is not None and nested[0]:
            inner = _paired(a.body, b.body)
            if inner is None or [number.get(i) for i in a.entries] != list(b.entries):
                return None
            pairs |= inner
        number.update(zip(a.outputs, b.outputs, strict=True))
        pairs[id(a)] = b
    return pairs if [number[i] for i in graph.outputs] == list(other.outputs) else None


def _same_kind(a: Any, b: Any) -> bool:
    """Whether two operations may be one in both models; a rebuilt model has layers of the same names."""
    layers = isinstance(a, keras.Layer), isinstance(b, keras.Layer)
    return a.name == b.name if all(layers) else not any(layers) and type(a) is type(b)


class _Run:
    """A run of both models through the graph of the pruned one."""

    def __init__(
        self, partners: Mapping[int, Node], batches: int, values: Values, visit: Callable[[Call], None], store: Store
    ) -> None:
        self._partners = partners
        self._batches = batches
        self._values = values
        self._visit = visit
        self._store = store

    def graph(self, graph: Graph, inputs: list[Kept]) -> list[Kept]:
        return run_calls(graph, inputs, self._call)

    def _call(self, node: Node, known: Mapping[int, Kept]) -> list[Kept]:
        if node.body is not None and not isinstance(node.body, Inside):
            return self.graph(node.body, [known[number] for number in node.entries])
        partner = self._partners[id(node)]
        places = list(zip(node.inputs, partner.inputs, strict=True))

        def arguments(batch: int) -> tuple[Any, Any]:
            pairs = {number: known[number].pair(batch) for number in set(node.inputs)}
            first = node.filled({number: pair[0] for number, pair in pairs.items()})
            return first, partner.filled({other: pairs[number][1] for number, other in places})

        call = Call(node.operation, partner.operation, self._batches, arguments, self._values)
        self._visit(call)
        return self._store.keep(call.results(batch) for batch in range(self._batches))


def _run(operation: Any, arguments: Any, values: Sequence[tuple[keras.Variable, Any]] = ()) -> Any:
    args, kwargs = arguments
    if takes_training(operation):
        kwargs = {**kwargs, "training": False}
    with keras.StatelessScope(list(values)):
        return operation(*args, **kwargs)


def _first_of(arguments: Any) -> Any:
    args, kwargs = arguments
    return args[0] if args else next(iter(kwargs.values()))


@contextlib.contextmanager
def _watched(layers: Sequence[Any], see: Callable[[Any, Any], Any]) -> Iterator[None]:
    """For a while, `see` is told each call of these layers, with its first argument."""

    def told(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            see(layer, _first_of((args, kwargs)))
            return call(*args, **kwargs)

        return run

    with contextlib.ExitStack() as undo:
        for layer in {id(layer): layer for layer in layers}.values():
            undo.enter_context(replaced(layer, "call", told(layer, layer.call)))
        yield
