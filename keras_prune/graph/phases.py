"""What a subclassed model does in training only, brought into its graph where that changes nothing outside of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_prune.graph.graph import Graph, Node, Ref
from keras_prune.graph.trace import trace
from keras_prune.keras_seam import Functional, takes_training

__all__ = ["trace_phases"]


def trace_phases(model: keras.Model, input_shape: Any = None) -> tuple[Graph, str]:
    """Return the graph of a model, and what it does in training that the graph does not have, in words ("" if nothing).

    A functional model has one graph for both. The `call` of a subclassed one may ask `if training:`. It is traced both
    ways. Where the two differ in layers that hand on their input outside of training, as Dropout does, the graph is
    that of training; otherwise it is that of inference.

    Args:
        model: built.
        input_shape: as for `trace`.

    Raises:
        ValueError: as for `trace`.

    Example:
        >>> class Net(keras.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = keras.layers.Dense(2, name="a"), keras.layers.Dropout(0.5, name="b")
        ...     def call(self, x, training=False):
        ...         x = self.a(x)
        ...         return self.b(x) if training else x
        >>> model = Net()
        >>> model.build((None, 3))
        >>> [node.path for node in trace_phases(model)[0].nodes]
        ['a', 'b']
    """
    graph = trace(model, input_shape)
    if isinstance(model, Functional | keras.Sequential) or not takes_training(model):
        return graph, ""
    try:
        training = trace(model, input_shape, training=True)
    except ValueError as error:
        return graph, f"in training its call() does what cannot be traced ({error})"
    return _join(graph, training)


def _join(inference: Graph, training: Graph) -> tuple[Graph, str]:
    known = {id(node.operation) for node in inference.nodes}
    layers = [node for node in training.nodes if isinstance(node.operation, keras.Layer)]
    extra = [node for node in layers if id(node.operation) not in known]
    passing = {id(node) for node in extra if _hands_on(training, node)}
    if _described(inference, set()) != _described(training, passing):
        what = f"it calls {[node.path for node in extra]}" if extra else "it computes otherwise"
        return inference, f"{what} in training only, by an `if` in its call()"
    if not passing:
        return inference, ""
    nodes = [dataclasses.replace(node, kwargs=_kwargs(inference, node)) for node in training.nodes]
    return dataclasses.replace(training, nodes=tuple(nodes)), ""


def _hands_on(graph: Graph, node: Node) -> bool:
    """Whether a layer gives back its one input outside of training: it is asked, on a drawn tensor."""
    if len(node.inputs) != 1 or len(node.outputs) != 1:
        return False
    symbol = graph.symbols[node.inputs[0]]
    if graph.shapes[node.inputs[0]] != graph.shapes[node.outputs[0]] or not str(symbol.dtype).startswith("float"):
        return False
    shape = [2 if size is None else size for size in symbol.shape]
    given = ops.convert_to_tensor(np.random.default_rng(0).normal(size=shape), dtype=symbol.dtype)
    try:
        made = node.operation(given, training=False)
    except Exception:  # a layer that does not run on a drawn tensor is none that only hands it on
        return False
    return np.array_equal(ops.convert_to_numpy(made), ops.convert_to_numpy(given))


def _described(graph: Graph, passing: set[int]) -> list[Any]:
    """The calls of a graph in order, each with what it takes, and the outputs; those that hand on are left out."""
    numbers = {tensor: i for i, tensor in enumerate(graph.inputs)}
    made = len(numbers)
    calls: list[Any] = []
    for node in graph.nodes:
        if id(node) in passing:
            numbers[node.outputs[0]] = numbers[node.inputs[0]]
            continue
        kwargs = {key: value for key, value in node.kwargs.items() if key != "training"}
        leaves = tree.flatten((node.args, kwargs))
        taken = [("tensor", numbers[leaf.index]) if isinstance(leaf, Ref) else repr(leaf) for leaf in leaves]
        layer = isinstance(node.operation, keras.Layer)
        calls.append((id(node.operation) if layer else type(node.operation).__name__, taken))
        for output in node.outputs:
            numbers[output] = made = made + 1
    return [*calls, [numbers[output] for output in graph.outputs]]


def _kwargs(inference: Graph, node: Node) -> dict[str, Any]:
    """The arguments of a call of the training graph, with what inference says of `training`: mostly nothing."""
    kwargs = {key: value for key, value in node.kwargs.items() if key != "training"}
    same = next((one for one in inference.nodes if one.operation is node.operation), None)
    if same is not None and "training" in same.kwargs:
        kwargs["training"] = same.kwargs["training"]
    return kwargs
