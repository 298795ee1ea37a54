"""The rewrite of what follows a global pooling: vectors where a head follows, 1x1 maps where a map is scaled.

XNNPACK's sparse inference answers garbage for a sparse 1x1 convolution on a 1x1 map at the end of a model, while inside
of it (squeeze-and-excitation) it takes MEAN with the dimensions kept, 1x1 convolutions and MUL, and nothing of rank 2:
a RESHAPE there ends it (`src/subgraph.c`, `xnn_check_nchw_compatibility`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from keras_prune.keras_seam import Mean, origin_of
from keras_prune.layer_kinds import altered
from tflite_export.file.tflite_file import Change
from tflite_export.rewrites.graph import Builder, FlatGraph, is_map, is_single, joined, path_of
from tflite_export.rewrites.positions import forgets_places, is_placewise
from tflite_export.rewrites.rewrite import Pass, Refusal

__all__ = ["NAME", "HeadsPass"]

NAME = "heads"
VECTORS, SINGLES = 2, 4
"""The rank that the tensors of a group get: [batch, channels] or [batch, 1, 1, channels]."""


@dataclass(frozen=True)
class HeadsPass(Pass):
    """Write what follows a global pooling in the form that XNNPACK's sparse inference executes rightly.

    Taken is each group of layers joined by tensors without places, [batch, channels] or [batch, 1, 1, channels].
    1. None of it scales a map: it is a head. 1x1 convolutions become Dense layers of the same weights, a pooling
       that keeps its dimensions drops them, and Reshape and Flatten between the two ranks go away.
    2. All that comes out of it scales maps, and all that goes in is a mean over places: squeeze-and-excitation.
       Dense layers become 1x1 convolutions, the pooling keeps its dimensions, and Reshape goes away.
    Any other group is left as it is, as is one that has its form already.

    Example:
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 16)),
        ...     kl.GlobalAveragePooling2D(keepdims=True),
        ...     kl.Conv2D(4, 1),
        ...     kl.Flatten(),
        ... ])
        >>> rewritten = HeadsPass().apply(model)
        >>> [type(layer).__name__ for layer in rewritten.model.layers]
        ['InputLayer', 'GlobalAveragePooling2D', 'Dense']
    """

    name: str = NAME

    def rewrite(self, graph: FlatGraph) -> tuple[keras.Model | None, tuple[Change, ...], tuple[Refusal, ...]]:
        build = _Build(graph)
        for group in joined([node for node in graph.nodes if _kind(node) is not None], _is_placeless):
            build.plan(group)
        return (build.run(), tuple(build.changes), ()) if build.ranks else (None, (), ())


def _is_placeless(tensor: Any) -> bool:
    return (len(tensor.shape) == 2 or is_single(tensor)) and tensor.shape[-1] is not None


def _kind(node: Any) -> str | None:
    """Return what a node between tensors without places is, where it can be written in both ranks, or None."""
    layer, kind = node.operation, type(node.operation)
    if not node.input_tensors or not all(map(_is_placeless, (*node.input_tensors, *node.outputs))):
        return None
    given, made = node.input_tensors[0], node.outputs[0]
    if altered(layer):
        return None
    if kind is kl.Conv2D and (layer.kernel_size, layer.groups, layer.data_format) == ((1, 1), 1, "channels_last"):
        return "convolution"
    if kind is kl.Dense and len(given.shape) == 2:
        return "dense"
    if kind in (kl.Reshape, kl.Flatten):
        return "reshape" if given.shape[-1] == made.shape[-1] else None
    if not is_placewise(node, len(given.shape)) or type(layer) in _BOUND:
        return None
    if kind is kl.BatchNormalization:
        return "norm"
    bound = getattr(layer, "axis", -1) != -1 or any(np.ndim(value) for value in _constants(node))
    return None if bound else "placewise"


_BOUND = (
    kl.Dense,
    kl.GroupNormalization,
    kl.LayerNormalization,
    kl.Normalization,
    kl.PReLU,
    kl.RMSNormalization,
    kl.Rescaling,
    kl.SpatialDropout2D,
    kl.UnitNormalization,
)
"""Layers that are tied to the rank of their input."""


def _constants(node: Any) -> list[Any]:
    values = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    return [value for value in values if not isinstance(value, keras.KerasTensor)]


def _is_mean(node: Any) -> bool:
    """Return whether a node is the mean over all places of a map."""
    return node is not None and type(node.operation) in (kl.GlobalAveragePooling2D, Mean) and forgets_places(node)


class _Build:
    """Chooses the form of each group, and builds the model; counts what was changed."""

    def __init__(self, graph: FlatGraph) -> None:
        self.graph = graph
        self.builder = Builder()
        self.changes: list[Change] = []
        self.ranks: dict[int, int] = {}
        self.made: dict[tuple[int, int], Any] = {
            (id(tensor), len(tensor.shape)): tensor for tensor in graph.model.inputs
        }
        self.layers: dict[tuple[int, int], Any] = {}

    def plan(self, group: Sequence[Any]) -> None:
        """Choose the form of a group, where it has to have another one."""
        inside = {id(node) for node in group}
        made = [tensor for node in group for tensor in node.outputs]
        entries = [
            tensor for node in group for tensor in node.input_tensors if id(self.graph.producer(tensor)) not in inside
        ]
        exits = [reader for tensor in made for reader in self.graph.readers[id(tensor)] if id(reader) not in inside]
        kinds = {_kind(node) for node in group}
        scaling = [
            reader is not None and is_placewise(reader) and any(map(is_map, reader.input_tensors)) for reader in exits
        ]
        if not any(scaling):
            pooled = any(is_single(tensor) and _is_mean(self.graph.producer(tensor)) for tensor in entries)
            works = kinds & {"placewise", "norm"} and any(map(is_single, made))
            rank = VECTORS if "convolution" in kinds or (pooled and works) else None
        else:
            fits = all(scaling) and all(_is_mean(self.graph.producer(tensor)) for tensor in entries)
            rank = SINGLES if fits and kinds & {"dense", "reshape"} else None
        if rank is not None:
            self.ranks.update(dict.fromkeys(inside, rank))

    def run(self) -> keras.Model:
        for node in self.graph.nodes:
            if id(node) in self.ranks:
                rank = self.ranks[id(node)]
                self.made[id(node.outputs[0]), rank] = self._call(node, rank)
            elif not _is_mean(node):  # a mean is called once it is known which form is wanted
                args, kwargs = node.arguments.convert(self._original)
                outputs = keras.tree.flatten(self.builder.call(node.operation, *args, **kwargs))
                for old, new in zip(node.outputs, outputs, strict=True):
                    self.made[id(old), len(old.shape)] = new
        return self.graph.rebuilt(self._original)

    def _original(self, value: Any) -> Any:
        return self._as(value, len(value.shape)) if isinstance(value, keras.KerasTensor) else value

    def _as(self, tensor: Any, rank: int) -> Any:
        """Return the new tensor for an old one, in the form of a rank."""
        key = id(tensor), rank
        if key in self.made:
            return self.made[key]
        producer = self.graph.producer(tensor)
        if _is_mean(producer):
            self.made[key] = self._mean(producer, rank)
            return self.made[key]
        channels = tensor.shape[-1]
        shape = (channels,) if rank == VECTORS else (1, 1, channels)
        source = next(new for (old, _), new in self.made.items() if old == id(tensor))
        name = path_of(origin_of(tensor)).replace("/", "_")
        self.made[key] = self.builder.call(kl.Reshape(shape, name=f"{name}_rank_{rank}", dtype=tensor.dtype), source)
        return self.made[key]

    def _mean(self, node: Any, rank: int) -> Any:
        operation, keepdims = node.operation, rank == SINGLES
        if bool(operation.keepdims) != keepdims and len(node.outputs[0].shape) in (VECTORS, SINGLES):
            self._note(operation, "keeps its dimensions" if keepdims else "drops its dimensions")
            if type(operation) is Mean:
                operation = Mean(operation.axis, keepdims, name=operation.name)
            else:
                operation = kl.GlobalAveragePooling2D(
                    keepdims=keepdims,
                    data_format=operation.data_format,
                    name=operation.name,
                    dtype=operation.dtype_policy,
                )
        args, kwargs = node.arguments.convert(self._original)
        return self.builder.call(operation, *args, **kwargs)

    def _call(self, node: Any, rank: int) -> Any:
        kind = _kind(node)
        if kind == "reshape":
            self._note(node.operation, "left out")
            return self._as(node.input_tensors[0], rank)
        args, kwargs = node.arguments.convert(
            lambda value: self._as(value, rank) if isinstance(value, keras.KerasTensor) else value
        )
        native = len(node.outputs[0].shape) == rank and len(node.input_tensors[0].shape) == rank
        if native or kind == "placewise":
            return self.builder.call(node.operation, *args, **kwargs)
        key = id(node.operation), rank
        if key not in self.layers:
            self.layers[key] = _remade(node.operation, args[0])
            self._note(node.operation, _REMADE[kind, rank])
        return self.builder.call(self.layers[key], args[0])

    def _note(self, operation: Any, what: str) -> None:
        change = Change(NAME, path_of(operation), what)
        if change not in self.changes:
            self.changes.append(change)


_REMADE: dict[tuple[str | None, int], str] = {
    ("convolution", VECTORS): "1x1 convolution on a 1x1 map -> Dense",
    ("dense", SINGLES): "Dense -> 1x1 convolution on a 1x1 map",
    ("norm", VECTORS): "normalizes [batch, channels]",
    ("norm", SINGLES): "normalizes [batch, 1, 1, channels]",
}


def _remade(layer: Any, tensor: Any) -> Any:
    """Return a layer of the same weights for the other rank, built for a tensor."""
    same: dict[str, Any] = {"name": layer.name, "dtype": layer.dtype_policy}
    new: Any
    if type(layer) is kl.BatchNormalization:
        new = kl.BatchNormalization(epsilon=layer.epsilon, center=layer.center, scale=layer.scale, **same)
    elif type(layer) is kl.Dense:
        new = kl.Conv2D(layer.units, 1, activation=layer.activation, use_bias=layer.use_bias, **same)
    else:
        new = kl.Dense(layer.filters, activation=layer.activation, use_bias=layer.use_bias, **same)
    new.build(tensor.shape)
    for target, source in zip(new.weights, layer.weights, strict=True):
        target.assign(np.reshape(source.numpy(), target.shape))
    return new
