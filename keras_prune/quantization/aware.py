"""A plain model -> one that trains with what an int8 file will round, rounded."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import layers as kl

from keras_prune.graph.graph import Graph, Node
from keras_prune.graph.running import run_calls
from keras_prune.graph.trace import trace
from keras_prune.keras_seam import functional_in, input_structure, output_structure
from keras_prune.layer_kinds import kernels_of
from keras_prune.layers.plain_copies import is_plain_functional
from keras_prune.masks.hold import hold
from keras_prune.models.attributes import replaced
from keras_prune.models.keras2 import refuse_keras2
from keras_prune.models.stand_ins import stand_ins_in
from keras_prune.optimizers.compiling import compile_like
from keras_prune.quantization.kinds import (
    FIXED,
    FUSED,
    activation_in,
    fuses,
    keeps_range,
    name_of_activation,
    refusal_of,
)
from keras_prune.quantization.layers import FakeQuantize, QuantizedKernels, RoundedLayer, Seen
from keras_prune.quantization.recurrent import QuantizedRecurrent
from keras_prune.quantization.steps import refusal_of_recurrent
from keras_prune.statistics.batches import Batches
from keras_prune.statistics.evaluation import forward
from keras_prune.strip import strip

__all__ = ["Filters", "quantize_aware"]

Filters = str | Sequence[str] | Callable[[keras.Layer], bool] | None
"""Which layers: a regular expression found in their names, several of these, or a function of the layer; None: all."""


def quantize_aware(
    model: keras.Model,
    *,
    data: Any,
    filters: Filters = None,
    ranges: str = "moving",
    momentum: float = 0.99,
) -> keras.Model:
    """Return a copy of a model that trains with its kernels and activations rounded as an int8 file rounds them.

    Kernels are rounded symmetrically with one scale a channel, a batch normalization behind them as if it were folded
    in; what an operator of the file gives is rounded to 256 steps of a range. Gradients pass straight through. Ranges
    begin with the extremes of `data`, and go on in training. Zeros stay zero: those of pruned kernels are held
    (`keras_prune.hold`), and a pruning callback goes on from them. Equal weights of a channel are rounded to equal
    numbers; that weights share values in training too, `WeightSharing` in `fit` sees to, as in any model.

    `tflite_export.export(..., quantize="int8")` writes the trained ranges into the file. `keras_prune.strip` takes all
    of it out again. `keras_prune.quantization.report` says what is rounded, and what is not, and why.

    Args:
        model: a built model, functional or sequential, pruned or not; it stays as it is.
        data: inputs that the ranges begin with, a hundred or more; in any form that `fit` takes, labels are not read.
        filters: as for Keras's `quantize`: which layers, by a regular expression that is searched in their names, a
            list of these, or a function of the layer. None: all. What is left out has ranges from the export's data.
        ranges: "moving": in training, ends of ranges are moving averages of each batch's extremes. "trained": they are
            weights, which the optimizer moves.
        momentum: of the moving averages.

    Returns:
        A new model with the weights of the one given; compiled as that is, with a fresh optimizer.

    Raises:
        TypeError: it is no Keras model, or `filters` is none of these.
        ValueError: it is not built, its graph is not known, or the filters leave nothing.

    Source: Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, section 3.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(2)])
        >>> quantized = quantize_aware(model, data=np.ones((8, 4)))
        >>> [type(layer).__name__ for layer in quantized.layers]
        ['FakeQuantize', 'QuantizedKernels', 'FakeQuantize', 'QuantizedKernels', 'FakeQuantize']
    """
    _check(model, filters)
    plain = strip(model)
    made = _Placement(_chosen_by(filters), ranges, momentum).model(plain, inputs=True)
    if not any(isinstance(layer, RoundedLayer) for layer in stand_ins_in(made)):
        names = [layer.name for layer in plain.layers]
        raise ValueError(f"quantize_aware: filters={filters!r} leave no layer with a kernel. There are: {names}")
    _begin_ranges(made, data)
    hold(made)
    compile_like("quantize_aware", plain, made, [(variable, variable) for variable in plain.weights])
    return made


def _check(model: Any, filters: Any) -> None:
    refuse_keras2("quantize_aware", model)
    if not isinstance(model, keras.Model):
        raise TypeError(f"quantize_aware takes a keras.Model. Received: {model!r} of type {type(model).__name__}")
    if filters is not None and not callable(filters):
        words = [filters] if isinstance(filters, str) else filters
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise TypeError(
                "quantize_aware: filters must be a regular expression, a list of these, or a function of a layer. "
                f"Received: {filters!r} of type {type(filters).__name__}"
            )
    if stand_ins_in(model):
        raise ValueError(
            f"quantize_aware: {model.name!r} trains quantization-aware already: train it on, or strip it first."
        )
    if functional_in(model) is None:
        raise ValueError(
            f"quantize_aware: the graph of {type(model).__name__} {model.name!r} is not known: it is not built, or in "
            "the code of its call(). Make it a functional model, or begin a Sequential with keras.Input(shape)."
        )


def _chosen_by(filters: Filters) -> Callable[[Any], bool]:
    if filters is None:
        return lambda layer: True
    if callable(filters):
        return lambda layer: not isinstance(layer, keras.Layer) or filters(layer)
    words = [filters] if isinstance(filters, str) else list(filters)
    return lambda layer: any(re.search(word, layer.name) for word in words)


class _Placement:
    """Makes models with stand-ins of plain ones, using their layers.

    Args:
        chosen: whether a layer or operation is to be quantized.
        ranges, momentum: as for `FakeQuantize`.
    """

    def __init__(self, chosen: Callable[[Any], bool], ranges: str, momentum: float) -> None:
        self.chosen, self.ranges, self.momentum = chosen, ranges, momentum
        self.names: set[str] = set()
        self.kernels: dict[int, Any] = {}
        self.behind: dict[tuple[int, int], FakeQuantize] = {}
        self.parts: dict[int, Any] = {}
        self.models: dict[int, Any] = {}

    def model(self, plain: Any, *, inputs: bool = False) -> Any:
        """The quantized form of a functional or sequential model; the same object each time.

        Args:
            plain: the model.
            inputs: whether its inputs are yet to be rounded.
        """
        if id(plain) not in self.models:
            self.names |= {layer.name for layer in plain.layers}
            graph = trace(plain)
            sequential = type(plain) is keras.Sequential and len(graph.inputs) == len(graph.outputs) == 1
            made = self._sequential(plain, graph, inputs) if sequential else self._functional(plain, graph, inputs)
            self.models[id(plain)] = made
        return self.models[id(plain)]

    def _functional(self, plain: Any, graph: Graph, inputs: bool) -> Any:
        function = functional_in(plain)
        placed = _Readers(graph)

        def call(node: Node, known: Mapping[int, Any]) -> list[Any]:
            args, kwargs = node.filled(known)
            made = self._operations(node, placed)
            results = keras.tree.flatten(made[0](*args, **kwargs))
            for following in made[1:]:
                results = [following(results[0])]
            if not self._is_rounded(node, placed):
                return results
            return [self._range(node.operation, i)(each) if _is_float(each) else each for i, each in enumerate(results)]

        given = [graph.symbols[number] for number in graph.inputs]
        starts = [self._input(tensor)(tensor) if inputs and _is_float(tensor) else tensor for tensor in given]
        ends = keras.tree.pack_sequence_as(output_structure(function), run_calls(graph, starts, call))
        kind = type(plain) if is_plain_functional(plain) else keras.Model
        return kind(inputs=input_structure(function), outputs=ends, name=plain.name)

    def _sequential(self, plain: Any, graph: Graph, inputs: bool) -> Any:
        placed, start = _Readers(graph), graph.symbols[graph.inputs[0]]
        layers = [keras.Input(batch_shape=start.shape, dtype=start.dtype, name=start.name)]
        if inputs and _is_float(start):
            layers.append(self._input(start))
        for node in graph.nodes:
            layers += self._operations(node, placed)
            if self._is_rounded(node, placed) and _is_float(graph.symbols[node.outputs[0]]):
                layers.append(self._range(node.operation, 0))
        return keras.Sequential(layers, name=plain.name)

    def _operations(self, node: Node, placed: _Readers) -> list[Any]:
        """What is called in the place of a layer: it, or its quantized form; an activation that is not fused, apart."""
        operation = node.operation
        if functional_in(operation) is not None and node.body is not None:
            return [self.model(operation)]
        if self._is_recurrent(operation):
            if id(operation) not in self.kernels:
                name = self._name(f"quantized_{operation.name}")
                self.kernels[id(operation)] = QuantizedRecurrent(operation, self.ranges, self.momentum, name=name)
            return [self.kernels[id(operation)]]
        if not isinstance(operation, keras.Layer) or not self._has_kernels(operation):
            return [operation]
        if id(operation) not in self.kernels:
            self.kernels[id(operation)] = QuantizedKernels(operation, name=self._name(f"quantized_{operation.name}"))
            if activation_in(operation) not in FUSED:
                apart = kl.Activation(operation.activation, name=self._name(f"{operation.name}_activation"))
                before = FakeQuantize(self.ranges, self.momentum, name=self._name(f"{operation.name}_sum_range"))
                operation.activation = keras.activations.linear
                self.parts[id(operation)] = (before, apart)
        return [self.kernels[id(operation)], *self.parts.get(id(operation), ())]

    def _has_kernels(self, layer: Any) -> bool:
        return bool(kernels_of(layer)) and not refusal_of(layer) and self.chosen(layer)

    def _is_recurrent(self, layer: Any) -> bool:
        return isinstance(layer, kl.RNN) and not refusal_of_recurrent(layer) and self.chosen(layer)

    def _is_rounded(self, node: Node, placed: _Readers) -> bool:
        """Whether what a call gives has a range of its own in the file, and is not rounded by the call itself."""
        operation = node.operation
        if node.body is not None or keeps_range(operation) or not self.chosen(operation):
            return False
        if self._is_recurrent(operation):
            return False
        reader = placed.only_reader(node)
        return reader is None or not fuses(operation, reader.operation, placed.is_folded(node))

    def _range(self, operation: Any, place: int) -> FakeQuantize:
        key = (id(operation), place)
        if key not in self.behind:
            _, last = self.parts.get(id(operation), (None, operation))
            fixed = FIXED.get(name_of_activation(last))
            name = self._name(f"{operation.name}_range" if place == 0 else f"{operation.name}_range_{place}")
            self.behind[key] = FakeQuantize(self.ranges, self.momentum, fixed, name=name)
        return self.behind[key]

    def _input(self, tensor: Any) -> FakeQuantize:
        return FakeQuantize(self.ranges, self.momentum, name=self._name(f"{tensor.name}_range"))

    def _name(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self.names:
            name, number = f"{wanted}_{number}", number + 1
        self.names.add(name)
        return name


class _Readers:
    """Which call reads what another one gives."""

    def __init__(self, graph: Graph) -> None:
        self.outputs = set(graph.outputs)
        self.givers = {number: node for node in graph.nodes for number in node.outputs}
        self.readers: dict[int, list[Node]] = {}
        for node in graph.nodes:
            for number in node.inputs:
                self.readers.setdefault(number, []).append(node)

    def only_reader(self, node: Node) -> Node | None:
        """The one call that reads the one result of a call; None where there are others, or it is given out."""
        readers = [reader for number in node.outputs for reader in self.readers.get(number, ())]
        given_out = any(number in self.outputs for number in node.outputs)
        return readers[0] if len(readers) == 1 and not given_out else None

    def is_folded(self, node: Node) -> bool:
        """Whether a call is a batch normalization that the converter folds into the kernel before it."""
        before = self.givers.get(node.inputs[0]) if node.inputs else None
        normalized = isinstance(node.operation, kl.BatchNormalization)
        return (
            normalized
            and before is not None
            and self.only_reader(before) is node
            and fuses(before.operation, node.operation, False)
        )


def _is_float(tensor: Any) -> bool:
    return keras.backend.standardize_dtype(tensor.dtype).startswith(("float", "bfloat"))


def _begin_ranges(model: Any, data: Any) -> None:
    """Set the ranges of a model to the extremes that its tensors have on data, kernels rounded and tensors not."""
    layers = [one for one in stand_ins_in(model) if isinstance(one, FakeQuantize) and one.fixed is None]
    with _watched(layers) as seen:
        for batch in Batches(data, model, labels=False):
            forward(model, batch.x)
    for layer, extremes in zip(layers, seen, strict=True):
        layer.set_range(extremes.low, extremes.high)


@contextlib.contextmanager
def _watched(layers: Sequence[FakeQuantize]) -> Iterator[list[Seen]]:
    seen = [Seen(layer.steps) for layer in layers]
    with contextlib.ExitStack() as stack:
        for layer, extremes in zip(layers, seen, strict=True):
            stack.enter_context(replaced(layer, "watch", extremes))
        yield seen
