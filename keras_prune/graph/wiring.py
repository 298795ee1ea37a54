"""A model as one flat list of calls: which reads what, and which kernels give the model's answers."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import keras
from keras import layers as kl

from keras_prune.graph.graph import Graph, Node
from keras_prune.graph.trace import trace
from keras_prune.layer_kinds import kinds_where
from keras_prune.models.masked_layers import HoldsMasks
from keras_prune.models.stand_ins import StandIn

__all__ = ["Call", "Wiring", "wire"]

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or operation.

    Attributes:
        operation: the layer, out of its wrapper if it has one of this library, or the operation of `keras.ops`.
        path: names from the outermost model down, joined by "/".
        inputs, outputs: numbers of tensors.
    """

    operation: Any
    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Wiring:
    """The calls of a model, those of the models inside it among them, each after those whose results it takes.

    Attributes:
        calls: in order.
        shapes: of each tensor, by its number.
        outputs: numbers of the model's outputs.
    """

    calls: tuple[Call, ...]
    shapes: dict[int, Shape]
    outputs: tuple[int, ...]

    @cached_property
    def producers(self) -> dict[int, Call]:
        """The call that gives a tensor, by the tensor's number; none gives an input of the model."""
        return {tensor: call for call in self.calls for tensor in call.outputs}

    @cached_property
    def readers(self) -> dict[int, list[Call]]:
        """The calls that read a tensor, by its number."""
        found: defaultdict[int, list[Call]] = defaultdict(list)
        for call in self.calls:
            for tensor in dict.fromkeys(call.inputs):
                found[tensor].append(call)
        return found

    def given(self, call: Call) -> Shape:
        """Return the shape of a call's first input, empty if it has none."""
        return self.shapes[call.inputs[0]] if call.inputs else ()

    def made(self, call: Call) -> Shape:
        """Return the shape of a call's first output."""
        return self.shapes[call.outputs[0]] if call.outputs else ()

    def heads(self) -> set[int]:
        """Return the ids of the layers that give the model's answers.

        They are found from each output back, through what only forms an answer (activations, reshapes, dropout, the
        sum or the concatenation of several answers), up to the first layer with a kernel. A pooling or a normalisation
        on the way says that a map of features is given out, and no answer.
        """
        found: set[int] = set()
        waiting = [(tensor, 0) for tensor in self.outputs]
        while waiting:
            tensor, sums = waiting.pop()
            call = self.producers.get(tensor)
            if call is None:
                continue
            if isinstance(call.operation, _ANSWERING):
                found.add(id(call.operation))
            elif len(call.inputs) > 1 and _name(call.operation) in _MERGING and sums == 0:
                waiting += [(one, sums + 1) for one in call.inputs]
            elif len(call.inputs) == 1 and _name(call.operation) in _FORMING:
                waiting.append((call.inputs[0], sums))
        return found


_ANSWERING = kinds_where(lambda kind: kind.sums and len(kind.kernels) == 1)
"""Layers whose kernels give answers."""
# fmt: off
_FORMING = frozenset({
    "Activation", "Cast", "Dropout", "Elu", "Exp", "Flatten", "GetItem", "Identity", "LeakyReLU", "Log",
    "LogSoftmax", "Negative", "Permute", "ReLU", "Relu", "Reshape", "Sigmoid", "Softmax", "Softplus", "Split",
    "Squeeze", "Tanh", "Transpose", "UnitNormalization", "ExpandDims", "Rescaling", "Resizing", "UpSampling2D",
    "Normalize", "Multiply", "Add", "Subtract", "Divide", "TrueDivide", "Clip", "Cropping2D", "GaussianDropout",
})
"""What forms an answer, by its class."""
_MERGING = frozenset({"Add", "Average", "Concatenate", "Multiply", "Stack", "Subtract"})
# fmt: on


def _name(operation: Any) -> str:
    return type(operation).__name__


def wire(model: keras.Model) -> Wiring | None:
    """Return the wiring of a built model; None where its graph cannot be traced.

    Example:
        >>> inner = keras.Sequential([keras.Input((4,)), kl.Dense(2, name="a")], name="inner")
        >>> found = wire(keras.Sequential([keras.Input((4,)), inner, kl.Dense(3, name="b")]))
        >>> [call.path for call in found.calls], len(found.heads())
        (['inner/a', 'b'], 1)
    """
    try:
        graph = trace(model)
    except ValueError:
        return None
    return _Flattening(graph).wiring


class _Flattening:
    """Numbers the tensors of a graph and of the graphs inside it as one."""

    def __init__(self, graph: Graph) -> None:
        self.shapes: dict[int, Shape] = {}
        calls: list[Call] = []
        inputs = {tensor: self._number(graph.shapes[tensor]) for tensor in graph.inputs}
        outputs = self._add(graph, inputs, calls)
        self.wiring = Wiring(tuple(calls), self.shapes, tuple(outputs))

    def _number(self, shape: Shape) -> int:
        self.shapes[len(self.shapes)] = shape
        return len(self.shapes) - 1

    def _add(self, graph: Graph, numbers: dict[int, int], calls: list[Call]) -> list[int]:
        for node in graph.nodes:
            taken = [numbers.setdefault(t, -1) for t in node.inputs]
            taken = [self._number(graph.shapes[t]) if n < 0 else n for t, n in zip(node.inputs, taken, strict=True)]
            numbers.update(zip(node.inputs, taken, strict=True))
            entries = _entries(node)
            if node.body is not None and entries is not None:
                inner = dict(zip(node.body.inputs, (numbers[tensor] for tensor in entries), strict=True))
                numbers.update(zip(node.outputs, self._add(node.body, inner, calls), strict=False))
                continue
            if isinstance(node.operation, StandIn) and node.operation.plain is None:
                numbers.update(zip(node.outputs, taken, strict=True))
                continue
            made = tuple(numbers.setdefault(t, self._number(graph.shapes[t])) for t in node.outputs)
            calls.append(Call(_unwrapped(node.operation), node.path, tuple(taken), made))
        return [numbers[tensor] for tensor in graph.outputs]


def _entries(node: Node) -> Sequence[int] | None:
    """The tensors that enter the model that a call is of, one for each of its inputs; None where they do not fit."""
    if node.body is None:
        return None
    entries = node.entries
    return entries if len(entries) == len(node.body.inputs) else None


def _unwrapped(operation: Any) -> Any:
    while isinstance(operation, kl.Wrapper) and issubclass(type(operation), HoldsMasks | StandIn):
        operation = operation.layer
    return operation
