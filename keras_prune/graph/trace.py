"""Model -> its calls in topological order, read from Keras's own record of operations; nothing is changed."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import tree

from keras_prune.graph.compare import difference
from keras_prune.graph.graph import Graph, Inside, Node, Ref, Shape
from keras_prune.graph.held import Place, held, is_layer, is_variable
from keras_prune.graph.symbolic import call_symbolically, flat_tensors, reaching, stand_in
from keras_prune.keras_seam import built_shapes, calls_in, from_keras, functional_in, mask_of, set_mask, unrecorded
from keras_prune.layer_kinds import channel_rule
from keras_prune.models.keras2 import refuse_keras2

__all__ = ["InsideReader", "trace"]

SIZES = (97, 23, 7, 5, 3, None)
"""Sizes of free axes with which a layer's `call` is tried, one after the other; with a batch of one, or an open one."""


def trace(model: keras.Model, input_shape: Any = None, *, training: bool | None = None) -> Graph:
    """Return the graph of a model.

    A functional or sequential model has one. A subclassed model is called once on symbolic inputs: its layers and
    `keras.ops` then record themselves, and their record is put back as it was. So is, wherever it is called, a layer
    that has no rule: what it calls in its own `call` is the body of its node.

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
    function = functional_in(model)
    if function is not None:
        return _functional(model, function, "", {})
    if isinstance(model, keras.Sequential):
        raise ValueError(f"{model.name!r} is not built, so its graph cannot be traced. Give it a keras.Input.")
    return _trace_subclass(model, input_shape, {} if training is None else {"training": training})


def _functional(model: Any, function: Any, prefix: str, bodies: dict[int, Graph]) -> Graph:
    return _Reader(prefix, bodies).graph(model, function.inputs, function.outputs, calls_in(function))


class _Reader:
    """Gives tensors numbers in the order in which they are met.

    Args:
        prefix: of the paths of calls.
        bodies: graphs of nested models that were read already, by the model's id.
    """

    def __init__(self, prefix: str, bodies: dict[int, Graph]) -> None:
        self.prefix = prefix
        self.bodies = bodies
        self.deep = True
        self.symbols: list[Any] = []
        self.numbers: dict[int, int] = {}

    def number(self, tensor: Any) -> int:
        if id(tensor) not in self.numbers:
            self.numbers[id(tensor)] = len(self.symbols)
            self.symbols.append(tensor)
        return self.numbers[id(tensor)]

    def refer(self, value: Any) -> Any:
        return Ref(self.number(value)) if isinstance(value, keras.KerasTensor) else value

    def graph(self, model: Any, inputs: Sequence[Any], outputs: Sequence[Any], nodes: Sequence[Any]) -> Graph:
        starts = tuple(self.number(tensor) for tensor in inputs)
        calls = tuple(self.node(node) for node in nodes)
        ends = tuple(self.number(tensor) for tensor in outputs)
        return Graph(model, calls, self.shapes(), starts, ends, tuple(self.symbols))

    def shapes(self) -> tuple[Shape, ...]:
        return tuple(tuple(tensor.shape) for tensor in self.symbols)

    def node(self, node: Any) -> Node:
        operation = node.operation
        path = self.prefix + operation.name
        args, kwargs = node.arguments.convert(self.refer)
        taken = tuple(leaf.index for leaf in tree.flatten((args, kwargs)) if isinstance(leaf, Ref))
        made = tuple(self.number(tensor) for tensor in node.outputs)
        call = Node(operation, args, kwargs, taken, made, path)
        if not self.deep:
            return call
        function = functional_in(operation)
        if function is not None:
            if id(operation) not in self.bodies:
                self.bodies[id(operation)] = _functional(operation, function, path + "/", self.bodies)
            given = args[0] if args else kwargs["inputs"]  # not a mask, which is an input of the call, too
            entries = tuple(leaf.index for leaf in tree.flatten(given) if isinstance(leaf, Ref))
            return dataclasses.replace(call, body=self.bodies[id(operation)], entries=entries)
        if not _is_own_code(operation) or channel_rule(operation) is not None:
            return call
        try:
            body, training = _look_inside(node, path + "/", self.bodies)
        except _Unseen as error:
            return dataclasses.replace(call, unseen=str(error))
        return dataclasses.replace(call, body=body, training=training, entries=tuple(dict.fromkeys(taken)))


class InsideReader(_Reader):
    """Reads what a layer calls in its own `call`; variables are tensors there.

    Args:
        prefix, bodies: as for any reader.
        results: what inner layers returned.
        deep: whether the inner layers are looked into.
    """

    def __init__(self, prefix: str, bodies: dict[int, Graph], results: Sequence[Any], deep: bool = True) -> None:
        super().__init__(prefix, bodies)
        self.deep = deep
        self.results = {id(leaf): made for made in results for leaf in tree.flatten(made)}

    def refer(self, value: Any) -> Any:
        return Ref(self.number(value)) if isinstance(value, keras.KerasTensor | keras.Variable) else value

    def node(self, node: Any) -> Node:
        made = self.results.get(id(node.outputs[0]))
        return dataclasses.replace(super().node(node), results=tree.map_structure(self.refer, made))


def _is_own_code(operation: Any) -> bool:
    """Whether an operation is a layer of somebody else's: Keras's own have rules, or none on purpose."""
    call = type(operation).call
    return (
        isinstance(operation, keras.Layer) and not from_keras(call) and call.__module__.split(".")[0] != "keras_prune"
    )


class _Unseen(ValueError):
    """A layer's `call` cannot be traced; with the reason."""


def _look_inside(node: Any, prefix: str, bodies: dict[int, Graph]) -> tuple[Inside, Inside | None]:
    """What a layer calls at inference, and in training if it is told which of the two and calls something else then."""
    layer = node.operation
    body = _look(node, prefix, bodies, None)
    if "training" not in inspect.signature(layer.call).parameters:
        return body, None
    same = not difference(body, _look(node, prefix, bodies, True, deep=False))
    return body, None if same else _look(node, prefix, bodies, True)


def _look(node: Any, prefix: str, bodies: dict[int, Graph], training: bool | None, deep: bool = True) -> Inside:
    failures: list[Exception] = []
    shapes = [tensor.shape for tensor in node.arguments.keras_tensors]
    free = any(None in shape[1:] for shape in shapes)
    for size in SIZES if free else (1, None) if any(None in shape for shape in shapes) else (1,):
        try:
            return _look_at_sizes(node, prefix, bodies, training, size, deep)
        except Exception as error:
            failures.append(error)
    failure = failures[0]
    raise _Unseen(
        f"there is no rule for {type(node.operation).__name__}, and its call() cannot be traced: {_spell(failure)}"
    ) from failure


def _spell(error: Exception) -> str:
    """What an error says, without the colours and the list of arguments that Keras adds."""
    text = re.sub(r"\x1b\[\d+m|Exception encountered when calling", "", str(error)).split("Arguments received by")[0]
    return " ".join(text.split()).rstrip(".")[:200]


def _look_at_sizes(
    node: Any,
    prefix: str,
    bodies: dict[int, Graph],
    training: bool | None,
    free: int | None,
    deep: bool,
) -> Inside:
    layer = node.operation

    def like(tensor: Any) -> Any:
        batch = None if free is None else 1
        sizes = [size if size is not None else free if i else batch for i, size in enumerate(tensor.shape)]
        return stand_in(sizes, tensor)

    inputs: dict[int, Any] = {}
    masks: dict[int, Any] = {}
    for tensor in node.arguments.keras_tensors:
        if id(tensor) not in inputs:
            copy = inputs[id(tensor)] = like(tensor)
            if mask_of(tensor) is not None:
                masks[id(copy)] = like(mask_of(tensor))
                set_mask(copy, masks[id(copy)])
    args, kwargs = node.arguments.convert(lambda leaf: inputs.get(id(leaf), leaf))
    if "training" in inspect.signature(layer.call).parameters:
        kwargs = {**kwargs, "training": training}
    variables = held(layer, is_variable)
    symbols = {id(variable): _as_tensor(layer, variable) for variable in variables.values()}
    lend: dict[Place, Any] = {place: symbols[id(variable)] for place, variable in variables.items()}
    with unrecorded(layer):
        called = call_symbolically(layer, args, kwargs, lend)
        outputs = flat_tensors(called.outputs)
        _check_outputs(outputs, node.outputs)
        own = {id(symbols[id(variable)]): variable for variable in variables.values()}
        reader = InsideReader(prefix, bodies, called.results, deep)
        body = _inside(reader, node, called, [*inputs.values()], masks, own, (args, kwargs))
        if any(None in tensor.shape[1:] for tensor in node.arguments.keras_tensors):
            body = dataclasses.replace(body, free=free)
    _check_held(body)
    return body


def _check_held(body: Inside) -> None:
    """Refuse layers that are in no place where others could be put."""
    called = {id(node.operation): node.operation for node in body.nodes if is_layer(node.operation)}
    found = held(body.model, lambda value: id(value) in called, through=True)
    lost = [one.name for key, one in called.items() if not any(id(value) == key for value in found.values())]
    if lost:
        raise ValueError(f"it calls layers that it does not hold in its attributes: {lost}")


def _inside(
    reader: InsideReader,
    node: Any,
    called: Any,
    inputs: list[Any],
    masks: dict[int, Any],
    own: dict[int, keras.Variable],
    given: tuple[Any, Any],
) -> Inside:
    outputs = flat_tensors(called.outputs)
    graph = reader.graph(node.operation, inputs, outputs, reaching(outputs))
    args, kwargs = tree.map_structure(reader.refer, given)
    at = {reader.number(tensor): reader.number(masks[id(tensor)]) for tensor in inputs if id(tensor) in masks}
    alone: dict[int, keras.Variable | None] = dict.fromkeys(at.values())
    for number, symbol in enumerate(reader.symbols):
        if isinstance(symbol, keras.Variable):
            alone[number] = symbol
        elif id(symbol) in own:
            alone[number] = own[id(symbol)]
    fields = {field.name: getattr(graph, field.name) for field in dataclasses.fields(Graph)}
    fields |= {"symbols": tuple(reader.symbols), "shapes": reader.shapes()}
    return Inside(**fields, args=args, kwargs=kwargs, own=alone, masks=at, read=called.read)


def _as_tensor(layer: Any, variable: keras.Variable) -> Any:
    """A symbolic tensor in a variable's place, of the type that the layer's `call` sees it in."""
    casts = layer.autocast and getattr(variable, "autocast", True) and keras.backend.is_float_dtype(variable.dtype)
    return keras.KerasTensor(tuple(variable.shape), dtype=layer.compute_dtype if casts else variable.dtype)


def _check_outputs(outputs: Sequence[Any], wanted: Sequence[Any]) -> None:
    if not all(isinstance(tensor, keras.KerasTensor) for tensor in outputs):
        raise TypeError("it returns something that does not come from its inputs")
    for a, b in zip(outputs, wanted, strict=True):
        pairs = zip(a.shape, b.shape, strict=True)
        if any(None not in pair and pair[0] != pair[1] for pair in pairs):
            raise ValueError(f"it returned shape {tuple(a.shape)}, and {tuple(b.shape)} before")


def _trace_subclass(model: Any, input_shape: Any, options: dict[str, Any]) -> Graph:
    shapes = input_shape if input_shape is not None else _built_shape(model)
    inputs = tree.map_shape_structure(lambda shape: keras.Input(batch_shape=(None, *shape[1:])), shapes)
    try:
        with unrecorded(model):
            outputs = model.call(inputs, **options)
            flat_inputs, flat_outputs = tree.flatten(inputs), tree.flatten(outputs)
            if not all(isinstance(tensor, keras.KerasTensor) for tensor in flat_outputs):
                raise TypeError("call() returned something that is no tensor")
            return _Reader("", {}).graph(model, flat_inputs, flat_outputs, reaching(flat_outputs))
    except Exception as error:
        raise ValueError(
            f"The graph of {type(model).__name__} {model.name!r} cannot be traced: its call() does not run on symbolic "
            f"inputs ({' '.join(str(error).split())[:300]}). Use layers and keras.ops in call(), no functions of a "
            "backend, and no if on a tensor's value; or rebuild the model with the functional API."
        ) from error


def _built_shape(model: Any) -> Any:
    shapes = built_shapes(model)
    if not shapes:
        raise ValueError(
            f"{type(model).__name__} {model.name!r} is not built, so its graph cannot be traced. "
            "Call it on a batch first, or give input_shape=."
        )
    if len(shapes) > 1:
        raise ValueError(
            f"{type(model).__name__} {model.name!r} takes several arguments ({sorted(shapes)}), so its graph cannot be "
            "seen. Give it one argument: a list or dictionary of tensors."
        )
    return next(iter(shapes.values()))
