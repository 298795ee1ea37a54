"""A graph run call by call on real tensors, with a look at each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import tree

from keras_prune.graph.graph import Graph, Inside, Node, Ref, place_of_call
from keras_prune.graph.held import lent
from keras_prune.graph.running import run_calls
from keras_prune.graph.symbolic import flat_tensors

__all__ = ["all_graphs", "results_of", "run_graph"]


def all_graphs(graph: Graph) -> list[Graph]:
    """Return a graph and those of the models and layers in it, each once."""
    bodies = {id(node.body): node.body for node in graph.walk() if node.body is not None}
    return [graph, *bodies.values()]


def run_graph(
    graph: Graph,
    inputs: Sequence[Any],
    see: Callable[[Graph, int, Any], None],
    call: Callable[[Any, Any, Any], tuple[list[Any], list[Any]]],
) -> list[Any]:
    """Run a graph call by call at inference, and show what `call` gives of each tensor to `see`.

    A layer that was seen through runs as it is; of what is inside, its inner layers' inputs and results are shown.
    """

    def called(node: Node, known: Mapping[int, Any]) -> list[Any]:
        args, kwargs = node.filled(known)
        if isinstance(node.body, Inside):
            made = seen = _run_inside(node.body, args, kwargs, see, call)
        elif node.body is not None:
            made = seen = run_graph(node.body, [known[i] for i in node.entries], see, call)
        else:
            made, seen = call(node.operation, args, kwargs)
        for number, shown in zip(node.outputs, seen, strict=True):
            see(graph, number, shown)
        return made

    for number, value in zip(graph.inputs, inputs, strict=True):
        see(graph, number, value)
    return run_calls(graph, inputs, called)


def results_of(operation: Any, args: Any, kwargs: Any) -> tuple[list[Any], list[Any]]:
    """The results of a call, and all of them to be seen."""
    made = flat_tensors(operation(*args, **kwargs))
    return made, made


def _run_inside(body: Inside, args: Any, kwargs: Any, see: Any, call: Any) -> list[Any]:
    """Run a layer as it is, then each of its inner layers alone on what it was given."""
    given: dict[int, list[tuple[Any, Any]]] = {}
    with contextlib.ExitStack() as stack:
        for inner in {id(node.operation): node.operation for node in body.nodes}.values():
            if isinstance(inner, keras.Layer):
                taken = given.setdefault(id(inner), [])
                stack.enter_context(lent(inner, {("call",): _noting(inner.call, taken)}))
        made = flat_tensors(body.model(*args, **kwargs))
    for node in body.nodes:
        taken = given.get(id(node.operation), [])
        place = place_of_call(body, node)
        if place >= len(taken):
            continue
        real = taken[place]
        for leaf, value in zip(tree.flatten((node.args, node.kwargs)), tree.flatten(real), strict=False):
            if isinstance(leaf, Ref) and leaf.index not in body.own:
                see(body, leaf.index, value)
        if isinstance(node.body, Inside):
            shown = _run_inside(node.body, *real, see, call)
        elif node.body is not None:
            shown = run_graph(node.body, tree.flatten(real[0]), see, call)
        else:
            shown = call(node.operation, *real)[1]
        for number, value in zip(node.outputs, shown, strict=True):
            see(body, number, value)
    return made


def _noting(call: Any, taken: list[tuple[Any, Any]]) -> Any:
    def noted(*args: Any, **kwargs: Any) -> Any:
        taken.append((args, kwargs))
        return call(*args, **kwargs)

    return noted
