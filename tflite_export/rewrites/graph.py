"""A Keras model as one flat graph of operations, in a copy that a rewrite may edit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_prune import strip
from keras_prune.arrays.union_find import Groups
from keras_prune.keras_seam import calls_in, functional_in, input_structure, output_structure, run_graph

__all__ = [
    "Builder",
    "FlatGraph",
    "flat_copy",
    "is_map",
    "is_single",
    "joined",
    "model_like",
    "path_of",
    "refusal_of",
]


class Builder:
    """Calls operations on symbolic tensors, and sees to it that no two of a model bear the same name."""

    def __init__(self) -> None:
        self._named: dict[str, Any] = {}

    def call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what an operation answers; where its name is taken by another one, it gets a number."""
        name, number = operation.name, 1
        while self._named.setdefault(operation.name, operation) is not operation:
            operation.name = f"{name}_{number}"
            number += 1
        return operation(*args, **kwargs)

    def unfold(self, graph: Any, inputs: Sequence[Any]) -> Any:
        """Return the outputs of a graph on new inputs, calling the operations of the models inside it one by one."""
        return run_graph(graph, inputs, call=self._unfolded)

    def _unfolded(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        inner = functional_in(operation)
        if inner is None or not _is_plain_call(inner, args, kwargs):
            return self.call(operation, *args, **kwargs)
        return self.unfold(inner, keras.tree.flatten(args[0]))


def refusal_of(model: keras.Model) -> str | None:
    """Return why a model cannot be rewritten, or None where its graph is known."""
    if functional_in(model) is not None:
        return None
    if isinstance(model, keras.Sequential):
        return "its shapes are not known: begin it with keras.Input(shape)"
    return "a subclassed model, whose graph is in the code of its call(): make it a functional model"


def flat_copy(model: keras.Model) -> keras.Model:
    """Return a functional copy that shares nothing with the model, the models inside it unfolded.

    Names of inputs, paths of variables, and the structures of inputs and outputs stay.

    Args:
        model: built, functional or sequential, so that `refusal_of` says None.

    Example:
        >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(3)])
        >>> [type(layer).__name__ for layer in flat_copy(model).layers]
        ['InputLayer', 'Dense', 'Dense']
    """
    graph = functional_in(strip(model))
    assert graph is not None  # the copy of a functional model is functional
    return model_like(graph, keras.tree.flatten(Builder().unfold(graph, graph.inputs)), model.name)


def model_like(graph: Any, outputs: Sequence[Any], name: str) -> keras.Model:
    """Return the model from a graph's inputs to new outputs (flat), in the structure of its own outputs."""
    ends = keras.tree.pack_sequence_as(output_structure(graph), outputs)
    return keras.Model(input_structure(graph), ends, name=name)


class FlatGraph:
    """The graph of a flat copy of a model, which a rewrite may edit.

    Attributes:
        model: the copy: see `flat_copy`.
        nodes: its nodes, each after those that it reads from, without the inputs (`keras_prune.keras_seam.calls_in`).
            Of a node are read: `operation`, `arguments`, `input_tensors`, `outputs`.
        producers: the node that gives a tensor, by the tensor's id; inputs have none.
        readers: the nodes that read a tensor, by its id, once for each time; None stands for the model, which gives the
            tensor out.

    Args:
        model: built, functional or sequential, so that `refusal_of` says None; it stays as it is.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = flat_copy(model)
        self.nodes = calls_in(self.model)
        self.producers = {id(tensor): node for node in self.nodes for tensor in node.outputs}
        self.readers: defaultdict[int, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for tensor in node.input_tensors:
                self.readers[id(tensor)].append(node)
        for tensor in self.model.outputs:
            self.readers[id(tensor)].append(None)

    def producer(self, tensor: Any) -> Any:
        """Return the node that gives a tensor; None for an input of the model."""
        return self.producers.get(id(tensor))

    def rebuilt(self, new: Callable[[Any], Any]) -> keras.Model:
        """Return the model whose outputs are new tensors in place of old ones.

        Args:
            new: returns the new tensor for an old one.
        """
        return model_like(self.model, [new(tensor) for tensor in self.model.outputs], self.model.name)


def joined(nodes: Sequence[Any], by: Callable[[Any], bool]) -> list[list[Any]]:
    """Return nodes in groups: a node that reads another one's tensor is in its group, where `by(tensor)` holds."""
    by_id = {id(node): node for node in nodes}
    producers = {id(tensor): id(node) for node in nodes for tensor in node.outputs}
    groups: Groups[int] = Groups()
    for node in nodes:
        for tensor in node.input_tensors:
            if id(tensor) in producers and by(tensor):
                groups.join(producers[id(tensor)], id(node))
    return [[by_id[key] for key in group] for group in groups.of(by_id)]


def path_of(operation: Any) -> str:
    """Return what a report calls a layer or an operation: its path where it has one of its own, else its name."""
    path = getattr(operation, "path", None) or ""
    return path if path.split("/")[-1] == operation.name else str(operation.name)


def is_map(tensor: Any) -> bool:
    """Return whether a tensor has the rank of an image batch, [batch, height, width, channels], and is no single."""
    return len(tensor.shape) == 4 and not is_single(tensor)


def is_single(tensor: Any) -> bool:
    """Return whether a tensor is [batch, 1, 1, channels]."""
    return len(tensor.shape) == 4 and tuple(tensor.shape[1:3]) == (1, 1)


def _is_plain_call(graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call only hands tensors to a graph, of the types and ranks that it was made with."""
    extra = {key: value for key, value in kwargs.items() if value is not None}
    if len(args) != 1 or extra not in ({}, {"training": False}):
        return False
    given, wanted = keras.tree.flatten(args[0]), graph.inputs
    return len(given) == len(wanted) and all(
        isinstance(one, keras.KerasTensor) and one.dtype == other.dtype and len(one.shape) == len(other.shape)
        for one, other in zip(given, wanted, strict=True)
    )
