"""A model's calls in topological order: what `trace` gives, and all that follows from it begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras import ops, tree

from keras_prune.keras_seam import place_among_calls

__all__ = ["Graph", "Inside", "Node", "Ref", "Shape", "fill", "input_tensors", "place_of_call"]

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Ref:
    """The place of a tensor among the arguments of a call."""

    index: int


def fill(value: Any, known: Mapping[int, Any]) -> Any:
    """A structure with tensors in the places of their numbers."""
    return tree.map_structure(lambda leaf: known[leaf.index] if isinstance(leaf, Ref) else leaf, value)


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of a layer, of a model or of a `keras.ops` operation.

    Attributes:
        operation: what is called; a shared layer is the operation of several nodes.
        args, kwargs: the arguments of the call, a `Ref` for each tensor.
        inputs, outputs: numbers of the tensors, in the order in which Keras flattens them.
        path: names from the outermost model down, joined by "/".
        entries: the tensors that enter `body`, in its order.
        body: the calls inside, if the operation is itself a functional or sequential model, or a layer without a rule
            whose own `call` can be seen (`Inside`).
        training: the calls inside while the layer trains, where they are others than those of `body`.
        unseen: why `call` of a layer without a rule cannot be traced.
        results: the results as the call packs them, a `Ref` for each tensor; of calls in an `Inside`.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    path: str
    entries: tuple[int, ...] = ()
    body: Graph | None = None
    training: Inside | None = None
    unseen: str = ""
    results: Any = None

    def filled(self, known: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with these tensors in them, by their numbers."""
        return fill((self.args, self.kwargs), known)

    @property
    def bodies(self) -> tuple[Graph, ...]:
        """The calls inside: at inference, and in training where they are others."""
        return tuple(body for body in (self.body, self.training) if body is not None)


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """The calls of one model, each after those whose results it takes.

    Attributes:
        model: the model.
        nodes: its calls; those of nested models are in `Node.body`.
        shapes: the shape of each tensor, with None where it is left open.
        inputs, outputs: numbers of the model's tensors.
        symbols: the Keras tensors behind the numbers.
    """

    model: Any
    nodes: tuple[Node, ...]
    shapes: tuple[Shape, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    symbols: tuple[Any, ...]

    def walk(self) -> Iterator[Node]:
        """Give every call, those of nested models after the call of the model."""
        for node in self.nodes:
            yield node
            for body in node.bodies:
                yield from body.walk()


@dataclasses.dataclass(frozen=True, eq=False)
class Inside(Graph):
    """The calls that a layer makes in its own `call`, which is code: none of them can be left out, nor one put in.

    Attributes:
        args, kwargs: what `call` was given, a `Ref` for each tensor.
        own: tensors that nobody gives, by number: the layer's variables; None for a mask that comes with a tensor.
        masks: for an input, the number of the mask that comes with it.
        free: the size that stands for axes of unknown length.
        read: variables of which `call` took the values, so that what became of them is not seen.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    own: Mapping[int, keras.Variable | None] = dataclasses.field(default_factory=dict)
    masks: Mapping[int, int] = dataclasses.field(default_factory=dict)
    free: int | None = None
    read: tuple[keras.Variable, ...] = ()


def place_of_call(body: Inside, node: Node) -> int:
    """Which call of its layer a node is, in the order in which they happened; those without effect do not count."""
    same = [one for one in body.nodes if one.operation is node.operation]
    order = sorted(same, key=lambda one: place_among_calls(body.symbols[one.outputs[0]]))
    return next(i for i, one in enumerate(order) if one is node)


def input_tensors(graph: Graph, x: Any) -> list[Any]:
    """Return what a model is given as a tensor for each of its graph's inputs, in their order, types and ranks."""
    symbols = [graph.symbols[i] for i in graph.inputs]
    if isinstance(x, dict) and all(symbol.name in x for symbol in symbols):
        leaves = [x[symbol.name] for symbol in symbols]
    else:
        leaves = tree.flatten(x)
    found = []
    for leaf, symbol in zip(leaves, symbols, strict=True):
        tensor = ops.convert_to_tensor(leaf, dtype=symbol.dtype)
        if len(tensor.shape) == len(symbol.shape) - 1:
            tensor = ops.expand_dims(tensor, -1)
        found.append(tensor)
    return found
