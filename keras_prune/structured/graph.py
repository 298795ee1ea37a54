"""Model -> its calls in topological order, read from Keras's own record of operations; nothing is changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import tree

from keras_prune.keras2 import refuse_keras2

__all__ = ["Graph", "Node", "Ref", "trace"]

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Ref:
    """The place of a tensor among the arguments of a call."""

    index: int


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of a layer, of a model or of a `keras.ops` operation.

    Attributes:
        operation: what is called; a shared layer is the operation of several nodes.
        args, kwargs: the arguments of the call, a `Ref` for each tensor.
        inputs, outputs: numbers of the tensors, in the order in which Keras flattens them.
        path: names from the outermost model down, joined by "/".
        body: the calls inside, if the operation is itself a functional or sequential model.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    path: str
    body: Graph | None = None

    @property
    def entries(self) -> tuple[int, ...]:
        """The tensors that enter the model called, in its order: not a mask, which is an input of the call, too."""
        given = self.args[0] if self.args else self.kwargs["inputs"]
        return tuple(leaf.index for leaf in tree.flatten(given) if isinstance(leaf, Ref))


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
            if node.body is not None:
                yield from node.body.walk()


def trace(model: keras.Model, input_shape: Any = None, *, training: bool | None = None) -> Graph:
    """Return the graph of a model.

    A functional or sequential model has one. A subclassed model is called once on symbolic inputs: its layers and
    `keras.ops` then record themselves, and their record is put back as it was.

    Args:
        model: built.
        input_shape: for a subclassed model, a shape with the batch axis (or a structure of shapes); None for the one
            that the model was built with.
        training: for a subclassed model, what its `call` is told; None for its default.

    Raises:
        ValueError: the model is not built, or its `call` cannot be run on symbolic inputs (with the reason).

    Example:
        >>> a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")
        >>> model = keras.Sequential([keras.Input((4,)), a, b])
        >>> [node.path for node in trace(model).nodes]
        ['a', 'b']
    """
    refuse_keras2("trace", model)
    function = _function_of(model)
    if function is not None:
        return _read(model, function.inputs, function.outputs, _ordered(function), "", {})
    if isinstance(model, keras.Sequential):
        raise ValueError(f"{model.name!r} is not built, so its graph cannot be seen. Give it a keras.Input.")
    return _trace_subclass(model, input_shape, {} if training is None else {"training": training})


def _function_of(operation: Any) -> Any:
    """The functional model that an operation is or holds; None where its `call` is its own."""
    if isinstance(operation, keras.Sequential):
        return operation._functional if type(operation).call is keras.Sequential.call else None
    if hasattr(operation, "_run_through_graph") and _inherits_call(operation):
        return operation
    return None


def _inherits_call(operation: Any) -> bool:
    return type(operation).call.__module__.startswith("keras.")


def _ordered(function: Any) -> list[Any]:
    """Keras's nodes, inputs left out, deepest first: a topological order."""
    depths = sorted(function._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in function._nodes_by_depth[depth] if not node.is_input]


def _read(
    model: Any,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    nodes: Sequence[Any],
    prefix: str,
    bodies: dict[int, Graph],
) -> Graph:
    numbers: dict[int, int] = {}
    symbols: list[Any] = []

    def number(tensor: Any) -> int:
        if id(tensor) not in numbers:
            numbers[id(tensor)] = len(symbols)
            symbols.append(tensor)
        return numbers[id(tensor)]

    def refer(value: Any) -> Any:
        return Ref(number(value)) if isinstance(value, keras.KerasTensor) else value

    starts = tuple(number(tensor) for tensor in inputs)
    calls = []
    for node in nodes:
        operation = node.operation
        path = prefix + operation.name
        args, kwargs = node.arguments.convert(refer)
        taken = tuple(number(tensor) for tensor in node.arguments.keras_tensors)
        made = tuple(number(tensor) for tensor in node.outputs)
        calls.append(Node(operation, args, kwargs, taken, made, path, _body(operation, path, bodies)))
    ends = tuple(number(tensor) for tensor in outputs)
    shapes = tuple(tuple(tensor.shape) for tensor in symbols)
    return Graph(model, tuple(calls), shapes, starts, ends, tuple(symbols))


def _body(operation: Any, path: str, bodies: dict[int, Graph]) -> Graph | None:
    function = _function_of(operation)
    if function is None:
        return None
    if id(operation) not in bodies:
        bodies[id(operation)] = _read(
            operation, function.inputs, function.outputs, _ordered(function), path + "/", bodies
        )
    return bodies[id(operation)]


def _trace_subclass(model: Any, input_shape: Any, options: dict[str, Any]) -> Graph:
    shapes = input_shape if input_shape is not None else _built_shape(model)
    inputs = tree.map_shape_structure(lambda shape: keras.Input(batch_shape=(None, *shape[1:])), shapes)
    layers = list(model._flatten_layers())
    record = [(layer, len(layer._inbound_nodes), len(layer._outbound_nodes), len(layer._losses)) for layer in layers]
    try:
        outputs = model.call(inputs, **options)
        flat_inputs, flat_outputs = tree.flatten(inputs), tree.flatten(outputs)
        if not all(isinstance(tensor, keras.KerasTensor) for tensor in flat_outputs):
            raise TypeError("call() returned something that is no tensor")
        return _read(model, flat_inputs, flat_outputs, _reaching(flat_outputs), "", {})
    except Exception as error:
        raise ValueError(
            f"The graph of {type(model).__name__} {model.name!r} cannot be seen: its call() does not run on symbolic "
            f"inputs ({' '.join(str(error).split())[:300]}). Use layers and keras.ops in call(), no functions of a "
            "backend, and no if on a tensor's value; or rebuild the model with the functional API."
        ) from error
    finally:
        for layer, inbound, outbound, losses in record:
            del layer._inbound_nodes[inbound:]
            del layer._outbound_nodes[outbound:]
            del layer._losses[losses:]


def _built_shape(model: Any) -> Any:
    shapes = getattr(model, "_build_shapes_dict", None)
    if not shapes:
        raise ValueError(
            f"{type(model).__name__} {model.name!r} is not built, so its graph cannot be seen. "
            "Call it on a batch first, or give input_shape=."
        )
    if len(shapes) > 1:
        raise ValueError(
            f"{type(model).__name__} {model.name!r} takes several arguments ({sorted(shapes)}), so its graph cannot be "
            "seen. Give it one argument: a list or dictionary of tensors."
        )
    return next(iter(shapes.values()))


def _reaching(outputs: Sequence[Any]) -> list[Any]:
    """Keras's nodes on the way to `outputs`, each after its parents; with a stack, since models are deep."""
    done: set[int] = set()
    order: list[Any] = []
    stack = [
        (tensor._keras_history.operation._inbound_nodes[tensor._keras_history.node_index], False) for tensor in outputs
    ]
    while stack:
        node, parents_done = stack.pop()
        if id(node) in done or node.is_input:
            continue
        if parents_done:
            done.add(id(node))
            order.append(node)
        else:
            stack.append((node, True))
            stack.extend((parent, False) for parent in reversed(node.parent_nodes))
    return order
