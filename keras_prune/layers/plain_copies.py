"""Models copied layer by layer, with Keras's own layers in the places of those that hold masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras import layers as kl

from keras_prune.keras_seam import (
    functional_in,
    input_structure,
    layers_in,
    layers_of,
    origin_of,
    own_variables,
    run_graph,
    takes_graph,
)
from keras_prune.layers.carrying import carry_attributes
from keras_prune.layers.masking import MaskedLayer
from keras_prune.layers.prunable import Prunable
from keras_prune.layers.variants import VARIANTS
from keras_prune.models.masked_layers import mask_pairs_of
from keras_prune.models.stand_ins import StandIn, hand_on, stand_ins_in
from keras_prune.optimizers.compiling import known_objects

__all__ = ["Copier", "has_graph", "is_plain_functional", "masked_in", "signatures", "sources"]


class Copier:
    """Copies layers without masks and stand-ins; what is shared in the model is shared in the copy.

    Functional and Sequential models are copied layer by layer. Any other layer is made again from its configuration, in
    which the library's layers are replaced by plain ones, at any depth. So is a functional model of a class with a
    configuration of its own, if the copy then has the same weights; otherwise its graph is copied.

    Args:
        by_graph: copy the graphs of such models in any case.

    Attributes:
        made: layers that were made again from configurations, each with its copy.
        reduced: functional models whose graphs were copied into a `keras.Model`.
    """

    def __init__(self, *, by_graph: bool) -> None:
        self.by_graph = by_graph
        self.copies: dict[int, Any] = {}
        self.made: list[tuple[Any, Any]] = []
        self.reduced: list[Any] = []

    def copy(self, layer: Any, name: str | None = None) -> Any:
        """The plain copy of a layer, model or operation: the same object each time."""
        if id(layer) not in self.copies:
            self.copies[id(layer)] = self._make(layer, name)
        return self.copies[id(layer)]

    def _make(self, layer: Any, name: str | None) -> Any:
        if isinstance(layer, Prunable):
            return self.copy(layer.layer, name)
        if isinstance(layer, StandIn):
            return hand_on if layer.plain is None else self.copy(layer.plain, name)
        if type(layer) is keras.Sequential:
            return self._sequential(layer)
        if is_plain_functional(layer):
            return self._functional(layer, type(layer))
        if has_graph(layer):
            copy = None if self.by_graph else self._same_class(layer, name)
            if copy is None:
                self.reduced.append(layer)
                copy = self._functional(layer, keras.Model)
            return copy
        copy = self._from_config(layer, name)
        if isinstance(layer, keras.Layer):
            self.made.append((layer, copy))
        return copy

    def _same_class(self, model: Any, name: str | None) -> Any:
        """A functional model made again from its configuration; None where that gives other weights, or masks."""
        try:
            copy = self._from_config(model, name)
        except ValueError:
            return None
        if masked_in(copy) or signatures(sources(model)) != signatures(copy.weights):
            return None
        for old, new in zip(model.inputs, copy.inputs, strict=True):
            new.name = old.name  # made anew without a name, it would have another one in files and exports
        self.made.append((model, copy))
        return copy

    def _functional(self, model: Any, kind: type) -> Any:
        names = _plain_names(model.operations)
        inputs = keras.tree.map_structure(_fresh_input, input_structure(model))
        outputs = run_graph(model, inputs, instead=lambda op: self.copy(op, names.get(id(op))))
        copy = kind(inputs=inputs, outputs=outputs, name=model.name)
        if not model.trainable:
            copy.trainable = False
        return copy

    def _sequential(self, model: Any) -> Any:
        names = _plain_names(model.layers)
        copies = [self.copy(layer, names[id(layer)]) for layer in model.layers]
        layers = [copy for copy in copies if copy is not hand_on]
        layers[:0] = [_copy_of_input(first) for first in layers_of(model)[:1] if isinstance(first, kl.InputLayer)]
        copy = keras.Sequential(layers, name=model.name, trainable=model.trainable)
        if not copy.built:
            copy.build_from_config(model.get_build_config())
        return copy

    def _from_config(self, layer: Any, name: str | None) -> Any:
        cls: Any = VARIANTS.get(type(layer), type(layer))
        with self._reasons(layer), known_objects(layer):
            config = _plain_config(layer.get_config())
            if cls is not type(layer):
                del config["straight_through"]
            if name is not None:
                config["name"] = name
            if isinstance(layer, kl.Lambda):
                copy = cls.from_config(config, safe_mode=False)
                copy.function = layer.function  # written down and read back, it has lost its global names
            else:
                copy = cls.from_config(config)
                if isinstance(layer, keras.Layer):
                    carry_attributes(layer, copy)
            if isinstance(layer, keras.Layer) and layer.built and not copy.built:
                copy.build_from_config(layer.get_build_config())
        return copy

    @contextlib.contextmanager
    def _reasons(self, layer: Any) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise ValueError(
                f"strip: {type(layer).__name__} {layer.name!r} cannot be rebuilt from its configuration "
                f"({' '.join(str(error).split()).rstrip('.')}). "
                "Give its class get_config() and from_config(), or make a plain model of the same layers yourself and "
                "call strip(model, into=plain_model)."
            ) from error


def has_graph(layer: Any) -> bool:
    """Whether a layer is a model that runs a graph of its own; a Sequential is not meant."""
    return functional_in(layer) is layer


def is_plain_functional(layer: Any) -> bool:
    """Whether a model is its graph: functional, with Keras's own configuration (its `train_step` may be anybody's)."""
    return has_graph(layer) and takes_graph(type(layer))


def _fresh_input(tensor: Any) -> Any:
    """A new input like the one that `tensor` comes from."""
    operation = origin_of(tensor)
    if isinstance(operation, kl.InputLayer):
        return _copy_of_input(operation).output
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, sparse=tensor.sparse, name=tensor.name)


def _copy_of_input(layer: Any) -> Any:
    """An input layer whose tensor has the name that files and exports know it by: not the layer's, if it had none."""
    copy = kl.InputLayer.from_config(layer.get_config())
    copy.output.name = layer.output.name
    return copy


def _plain_names(operations: Any) -> dict[int, str | None]:
    """Names by layer: a wrapped layer keeps its own, unless another one in the model has it; then the wrapper's."""
    wrapped = {id(op): op.layer.name for op in operations if isinstance(op, Prunable)}
    wrapped |= {id(op): op.plain.name for op in operations if isinstance(op, StandIn) and op.plain is not None}
    taken = [wrapped.get(id(op), op.name) for op in operations]
    unique = {name for name in taken if taken.count(name) == 1}
    return {
        id(op): op.name if id(op) in wrapped and name not in unique else None
        for op, name in zip(operations, taken, strict=True)
    }


def _plain_config(config: Any) -> Any:
    """A configuration in which the library's layers are the plain ones, at any depth."""
    if isinstance(config, list | tuple):
        return type(config)(_plain_config(item) for item in config)
    if not isinstance(config, dict):
        return config
    registered = config.get("registered_name")
    if registered == keras.saving.get_registered_name(Prunable):
        place = {key: config[key] for key in ("name", "inbound_nodes") if key in config}
        return {**place, **_plain_config(config["config"]["layer"]), **place}
    for variant, plain in VARIANTS.items():
        if registered == keras.saving.get_registered_name(variant):
            inner = {key: value for key, value in config["config"].items() if key != "straight_through"}
            names = {"module": "keras.layers", "class_name": plain.__name__, "registered_name": None}
            return {**config, **names, "config": _plain_config(inner)}
    return {key: _plain_config(value) for key, value in config.items()}


def masked_in(plain: Any) -> list[str]:
    """The layers with masks, and the stand-ins, that a copy holds."""
    left = [layer._subject for layer in layers_in(plain) if isinstance(layer, MaskedLayer)]
    return left + [f"{type(layer).__name__} {layer.name!r}" for layer in stand_ins_in(plain)]


def signatures(variables: Iterable[keras.Variable]) -> list[tuple[str, tuple[int, ...]]]:
    """Return the name and the shape of each variable: what two models of the same layers agree in."""
    return [(variable.name, tuple(variable.shape)) for variable in variables]


def sources(model: keras.Layer) -> list[keras.Variable]:
    """The weights of a model, without its masks and those of stand-ins: those that a plain copy has, in its order."""
    ours = {id(mask) for layer in layers_in(model) for _, mask in mask_pairs_of(layer)}
    ours |= {id(variable) for layer in stand_ins_in(model) for variable in own_variables(layer)}
    return [variable for variable in model.weights if id(variable) not in ours]
