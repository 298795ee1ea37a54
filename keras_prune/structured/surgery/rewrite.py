"""A model of other widths or fewer layers: built anew from configurations, with the weights that stay."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as kl
from keras import tree

from keras_prune.graph.graph import Graph, Inside, Node
from keras_prune.graph.running import run_calls
from keras_prune.keras_seam import input_structure, origin_of, output_structure, takes_graph
from keras_prune.layers.carrying import carry_attributes, carry_state
from keras_prune.masks.hold import hold, is_held
from keras_prune.models.variables import assign, read
from keras_prune.optimizers.compiling import compile_like, known_objects
from keras_prune.structured.analysis.groups import Analysis, Copies, Keep, Units, inside_of
from keras_prune.structured.analysis.replay import evaluate, shape_now
from keras_prune.structured.rules.registry import Effect
from keras_prune.structured.surgery.arrays import cut_arrays
from keras_prune.structured.surgery.compose import compose
from keras_prune.structured.surgery.constructor import made_again, unbuilt
from keras_prune.structured.surgery.reference import check_rebuilt
from keras_prune.structured.surgery.resized import Resized, tell_resized
from keras_prune.structured.surgery.training import copy_training_state

__all__ = ["rebuild"]

Pair = tuple[keras.Variable, keras.Variable]
Factors = Callable[[keras.Variable, int, Units], Any]


def rebuild(
    analysis: Analysis,
    keep: Keep | Copies,
    *,
    factors: Factors | None = None,
    skip: Mapping[int, int] | None = None,
    then: Mapping[int, keras.Layer] | None = None,
    instead: Mapping[int, Sequence[keras.Layer]] | None = None,
    owner: str = "plan",
    inputs: Any = None,
) -> keras.Model:
    """Return a model of other widths; the analysed one stays as it is.

    A sequential model gives a sequential one and a functional model a functional one, models inside them likewise, with
    the names of layers kept. A subclassed model gives a functional one: its class would build the old widths. Weights
    are sliced, settings of `compile` kept, and what the optimizer knows of each weight is sliced with it.

    Args:
        analysis: of the model.
        keep: for each unit, whether it stays, or how many of it there are to be.
        factors: (variable, axis, the indices that were taken) -> numbers that these are multiplied by, or None; asked
            of axes on which something is left out or copied.
        skip: calls (by id) that are left out, each with the tensor that takes the place of its result. Layers that
            nothing calls any more are left out, too.
        then: new layers that are put behind layers (by id). The optimizer starts anew then: it knows no such weights.
            They change what the model answers until the caller sets their weights, so the caller compares.
        instead: new layers, with their weights, that take the place of layers (by id), in a row, at each of their
            calls. The optimizer starts anew; what they are to answer is the caller's to compare.
        owner: the function that rebuilds, for messages.
        inputs: a few inputs to compare on, as the model's call takes them; None draws some.

    Raises:
        ValueError: a layer cannot be rebuilt from its configuration, or comes out with other shapes than its rule
            says (with the layer and both shapes); weights of a subclassed model are in no layer that it calls; the
            result answers otherwise (with the first layer that does).
    """
    if analysis.training_only:
        warnings.warn(
            f"{owner}: the result leaves out what {analysis.graph.model.name!r} does in training: "
            f"{analysis.training_only}. Give layers the argument `training` instead, as Keras's own have it.",
            stacklevel=3,
        )
    model = _Rebuild(analysis, keep, factors, skip or {}, then or {}, instead or {}, owner).whole()
    if not then and not instead:
        check_rebuilt(owner, analysis, keep, model, skip=skip, inputs=inputs)
    # Zeros that were held stay so. A new layer is the identity at first, whose zeros are to be trained.
    was_held = any(is_held(variable.constraint) for variable in analysis.graph.model.variables)
    return hold(model) if was_held and not then else model


class _Rebuild:
    def __init__(
        self,
        analysis: Analysis,
        keep: Keep | Copies,
        factors: Factors | None,
        skip: Mapping[int, int],
        then: Mapping[int, keras.Layer],
        instead: Mapping[int, Sequence[keras.Layer]],
        owner: str,
    ) -> None:
        self.analysis = analysis
        self.keep = keep
        self.factors = factors
        self.skip = skip
        self.then = then
        self.instead = instead
        self.owner = owner
        self.copies: dict[int, Any] = {}
        self.found: dict[str, Any] = {}
        self.effects = self._first_effects(analysis.graph, {})
        self.bodies = {id(bodies[0].model): bodies for _, bodies in inside_of(analysis.graph)}

    def whole(self) -> keras.Model:
        """The new model, with its weights and training state."""
        source = self.analysis.graph.model
        _check_owned(self.analysis.graph)
        model = self._model(self.analysis.graph)
        pairs = [pair for old, new in self._layers() for pair in self._weights(old, new)]
        for old, new in self._composed():
            done = {id(variable) for variable, _ in pairs}
            pairs += [pair for pair in self._weights(old, new, done)]
        for old, new in (*self._layers(), *self._composed()):
            carry_state(old, new, self._indices)
        tell_resized(self.owner, [new.name for _, new in self._composed() if isinstance(new, Resized)])
        if self.then or self.instead:
            compile_like(self.owner, source, model, pairs, stacklevel=5)
        else:
            copy_training_state(self.owner, source, model, pairs, self._indices)
        return model

    def _first_effects(self, graph: Graph, found: dict[int, tuple[Node, Effect]]) -> dict[int, tuple[Node, Effect]]:
        """For each operation, the first call and what its rule said: all calls share one configuration."""
        for node in graph.walk():
            if node.body is None:
                found.setdefault(id(node.operation), (node, self.analysis.effects[id(node)]))
        return found

    def _layers(self) -> Iterator[tuple[Any, Any]]:
        for node, _ in self.effects.values():
            if isinstance(node.operation, keras.Layer) and id(node.operation) in self.copies:
                yield node.operation, self.copies[id(node.operation)]

    def _composed(self) -> Iterator[tuple[Any, Any]]:
        """The layers that were seen through, and what they became."""
        for key, bodies in self.bodies.items():
            if key in self.copies:
                yield bodies[0].model, self.copies[key]

    def _model(self, graph: Graph) -> Any:
        model = graph.model
        if isinstance(model, keras.Sequential):
            copy = keras.Sequential(self._sequence(model), name=model.name)
        else:
            inputs = [_input_like(graph.symbols[i], self._shape(graph, i)) for i in graph.inputs]
            outputs = self._run(graph, inputs)
            structure = input_structure(model)
            functional = structure is not None
            kind = type(model) if functional and takes_graph(type(model)) else keras.Model
            packed = tree.pack_sequence_as(structure, inputs) if functional else _single(inputs)
            ends = tree.pack_sequence_as(output_structure(model), outputs) if functional else _single(outputs)
            copy = kind(inputs=packed, outputs=ends, name=model.name)
        if not model.trainable:
            copy.trainable = False
        # By it `compile` decides whether the loss is scaled, whatever the global policy is by now.
        copy.dtype_policy = model.dtype_policy
        return copy

    def _sequence(self, model: Any) -> list[Any]:
        graph = self._graph_of(model)
        first = _input_like(graph.symbols[graph.inputs[0]], self._shape(graph, graph.inputs[0]))
        copies = [origin_of(first)]
        called = {id(node.operation): node for node in graph.nodes}
        for layer in model.layers:
            if id(layer) in self.instead:
                copies += self.instead[id(layer)]
            elif id(called.get(id(layer))) not in self.skip:
                copies.append(self._copy(layer, called[id(layer)].body if id(layer) in called else None))
                copies += [self.then[id(layer)]] if id(layer) in self.then else []
        return copies

    def _graph_of(self, model: Any) -> Graph:
        whole = self.analysis.graph
        if whole.model is model:
            return whole
        return next(node.body for node in whole.walk() if node.body is not None and node.operation is model)

    def _run(self, graph: Graph, inputs: list[Any]) -> list[Any]:
        def call(node: Node, known: Mapping[int, Any]) -> list[Any]:
            filled, kwargs = node.filled(known)
            args = list(filled)
            if id(node.operation) in self.instead:
                return [functools.reduce(lambda x, layer: layer(x), self.instead[id(node.operation)], args[0])]
            if node.body is None:
                for place, value in self.analysis.effects[id(node)].args.items():
                    into: Any = kwargs if isinstance(place, str) else args
                    into[place] = self._evaluate(value)
            made = self._copy(node.operation, node.body)(*args, **kwargs)
            if id(node.operation) in self.then:
                made = self.then[id(node.operation)](made)
            return tree.flatten(made)

        return run_calls(graph, inputs, call, self.skip)

    def _copy(self, operation: Any, body: Graph | None, alone: bool = True) -> Any:
        if id(operation) not in self.copies:
            if isinstance(body, Inside):
                copy = self._as_it_was(operation)
                copy = self._composite(operation, alone) if copy is None else copy
            else:
                copy = self._from_config(operation) if body is None else self._model(body)
            self.copies[id(operation)] = copy
        return self.copies[id(operation)]

    def _as_it_was(self, layer: Any) -> Any:
        """A layer that was seen through, made by its class from its configuration; None where that does not do."""
        if not self._stays(layer):
            return None
        with known_objects(layer):
            try:
                copy = type(layer).from_config(unbuilt(layer.get_config()))
            except Exception:  # its configuration is not all that its class takes: it is made part by part
                return None
        carry_attributes(layer, copy)
        return copy

    def _stays(self, layer: Any) -> bool:
        """Whether nothing in a layer that was seen through is cut, and none of its layers is called elsewhere."""
        outer = self.bodies[id(layer)]
        within = {id(node): node for body in outer for node in body.walk()}
        bodies = [*outer, *(body for node in within.values() for body in node.bodies if isinstance(body, Inside))]
        called = {id(node.operation) for node in within.values() if isinstance(node.operation, keras.Layer)}
        shared = any(id(n.operation) in called and id(n) not in within for n in self.analysis.graph.walk())
        shapes = [(tuple(body.shapes[i]), self._shape(body, i)) for body in bodies for i in range(len(body.shapes))]
        return not shared and not self._cuts(layer) and all(before == tuple(now) for before, now in shapes)

    def _composite(self, layer: Any, alone: bool) -> Any:
        """A layer that was seen through, with its own class."""
        return compose(
            layer,
            self.bodies[id(layer)],
            self.analysis,
            self.keep,
            self.copies,
            lambda inner, node: self._copy(inner, node.body, alone=False),
            self.found,
            alone=alone,
        )

    def _from_config(self, operation: Any) -> Any:
        # A layer that was seen through has no rule of its own.
        config = self.effects[id(operation)][1].config if id(operation) in self.effects else {}
        changes = self._evaluate(dict(config))
        try:
            with known_objects(operation):
                cuts = self._cuts(operation)
                if isinstance(operation, kl.Lambda):
                    copy = type(operation).from_config(
                        _merged(unbuilt(operation.get_config()), changes), safe_mode=False
                    )
                    copy.function = operation.function  # written down and read back, it has lost its global names
                    return copy
                copy = made_again(operation, lambda config: cut_arrays(_merged(config, changes), cuts))
                if isinstance(operation, keras.Layer) and not cuts and not config:
                    carry_attributes(operation, copy)
                return copy
        except Exception as error:
            raise ValueError(
                f"{type(operation).__name__} {operation.name!r} cannot be rebuilt from its configuration "
                f"({' '.join(str(error).split()).rstrip('.')}). Give its class get_config() and from_config()."
            ) from error

    def _indices(self, variable: keras.Variable) -> tuple[Units | None, ...]:
        return self.analysis.indices(variable, self.keep)

    def _cuts(self, operation: Any) -> list[tuple[keras.Variable, tuple[Units | None, ...]]]:
        """The variables of an operation that are cut, each with the indices that stay along its axes."""
        pairs = [(v, self._indices(v)) for v in getattr(operation, "variables", ())]
        return [(variable, stays) for variable, stays in pairs if any(axis is not None for axis in stays)]

    def _evaluate(self, value: Any) -> Any:
        """Widths as numbers, at any depth."""
        return evaluate(self.analysis, self.keep, value)

    def _shape(self, graph: Graph, tensor: int) -> tuple[int | None, ...]:
        """The new shape of a nested model's input; the outermost model's inputs stay."""
        return shape_now(self.analysis, self.keep, graph, tensor)

    def _weights(self, old: Any, new: Any, done: Collection[int] = ()) -> Iterator[Pair]:
        """Slice each variable of a layer into its copy, and check what the layer's rule said of the shapes."""
        factors: dict[int, float] = {}
        for variable, width in self.effects[id(old)][1].scales if id(old) in self.effects else ():
            factors[id(variable)] = factors.get(id(variable), 1.0) * self._evaluate(width)
        sources, targets = old.variables, new.variables
        if len(sources) != len(targets):
            raise ValueError(
                f"{type(old).__name__} {old.name!r} has {len(sources)} variables, and made again from its "
                f"configuration {len(targets)}: its rule or its get_config() leaves something out."
            )
        for source, target in zip(sources, targets, strict=True):
            if id(source) in done:
                continue
            value = read(source)
            for axis, stays in enumerate(self.analysis.indices(source, self.keep)):
                if stays is not None:
                    value = self._scaled(source, axis, stays, np.take(value, stays, axis))
            if value.shape != tuple(target.shape):
                raise ValueError(
                    f"{source.path!r} has shape {tuple(source.shape)}, of which {value.shape} stays, but "
                    f"{type(old).__name__} {old.name!r} made again has {tuple(target.shape)}: its rule is wrong."
                )
            factor = factors.get(id(source), 1.0)
            assign(target, np.array(value if factor == 1.0 else (value * factor).astype(value.dtype)))
            if target.trainable != source.trainable:
                target.trainable = source.trainable
            yield source, target

    def _scaled(self, variable: keras.Variable, axis: int, stays: Units, value: Any) -> Any:
        numbers = None if self.factors is None else self.factors(variable, axis, stays)
        if numbers is None:
            return value
        return (value * np.reshape(numbers, [-1 if a == axis else 1 for a in range(value.ndim)])).astype(value.dtype)


def _check_owned(graph: Graph) -> None:
    """Refuse weights that no layer of the graph holds: there would be nobody to hold their slices."""
    layers = [node.operation for node in graph.walk() if isinstance(node.operation, keras.Layer)]
    owned = {id(variable) for layer in layers for variable in layer.weights}
    lost = [variable.path for variable in graph.model.weights if id(variable) not in owned]
    if lost:
        raise ValueError(
            f"{type(graph.model).__name__} {graph.model.name!r} has weights that no layer called by it holds: {lost}. "
            "Its graph is all that a smaller model is made from. Put weights into layers, and call these."
        )


def _single(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _merged(config: Any, changes: Mapping[Any, Any]) -> Any:
    """A configuration with some entries changed, at any depth; those of a list by their place."""
    result = list(config) if isinstance(config, list) else dict(config)
    for key, value in changes.items():
        result[key] = _merged(result[key], value) if isinstance(value, Mapping) else value
    return result


def _input_like(tensor: Any, shape: tuple[int | None, ...]) -> Any:
    """A new input with the name that files and exports know the old one by."""
    operation = origin_of(tensor)
    name = operation.name if isinstance(operation, kl.InputLayer) else None
    copy = kl.InputLayer(batch_shape=shape, dtype=tensor.dtype, sparse=tensor.sparse, name=name)
    copy.output.name = tensor.name
    return copy.output
