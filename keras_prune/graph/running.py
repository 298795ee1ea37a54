"""A graph run call by call: on tensors, on symbols, on whatever stands for a tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_prune.graph.graph import Graph, Node

__all__ = ["needed", "run_calls"]


def run_calls(
    graph: Graph,
    inputs: Sequence[Any],
    call: Callable[[Node, Mapping[int, Any]], Sequence[Any]],
    skip: Mapping[int, int] | None = None,
) -> list[Any]:
    """Run the calls that a graph's outputs come from, in order; return what stands for its outputs.

    What no later call reads is let go of at once.

    Args:
        graph: of what nested models call, only the call of the model counts: what it does is up to `call`.
        inputs: what stands for each of the graph's inputs.
        call: (a call, what stands for each tensor that is known, by number) -> what stands for each of its results.
        skip: calls (by id) that are left out, each with the tensor that takes the place of its result.

    Example:
        >>> import keras
        >>> from keras_prune.graph.trace import trace
        >>> inputs = keras.Input((2,))
        >>> graph = trace(keras.Model(inputs, keras.layers.ReLU(name="b")(keras.layers.ReLU(name="a")(inputs))))
        >>> run_calls(graph, ["x"], lambda node, known: [f"{node.path}({known[node.inputs[0]]})"])
        ['b(a(x))']
    """
    skip = skip or {}
    nodes = needed(graph, skip)
    reads = {id(n): {skip[id(n)]} if id(n) in skip else {*n.inputs, *n.entries} for n in nodes}
    readers = Counter(number for numbers in (*reads.values(), set(graph.outputs)) for number in numbers)
    known = dict(zip(graph.inputs, inputs, strict=True))
    for node in nodes:
        made = [known[skip[id(node)]]] if id(node) in skip else call(node, known)
        known.update(zip(node.outputs, made, strict=True))
        readers.subtract(reads[id(node)])
        for number in {*reads[id(node)], *node.outputs}:
            if readers[number] <= 0:
                del known[number]
    return [known[number] for number in graph.outputs]


def needed(graph: Graph, skip: Mapping[int, int]) -> list[Node]:
    """Return the calls that a graph's outputs come from when some are left out, as `run_calls` does; these included."""
    wanted, found = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.outputs):
            found.append(node)
            wanted.update([skip[id(node)]] if id(node) in skip else node.inputs)
    return found[::-1]
