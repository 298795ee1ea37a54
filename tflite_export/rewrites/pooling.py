"""The rewrite of a mean over the whole map that is written in another way: it becomes a GlobalAveragePooling2D.

XNNPACK's sparse inference ends in a MEAN over height and width; an AVERAGE_POOL_2D has no sparse form, whatever it
covers (`src/subgraph.c`, `xnn_check_nchw_compatibility`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers as kl

from keras_prune.graph.pooling import is_mean_of_places, pools_whole_map
from tflite_export.file.tflite_file import Change
from tflite_export.rewrites.graph import Builder, FlatGraph, path_of
from tflite_export.rewrites.rewrite import Pass, Refusal

__all__ = ["NAME", "PoolingPass"]

NAME = "pooling"


@dataclass(frozen=True)
class PoolingPass(Pass):
    r"""Write each mean over a whole map as GlobalAveragePooling2D.

    1. An average pooling whose one window covers the map: $y_{b11c} = \sum_{ij} x_{bijc} / (h w)$, dimensions kept.
    2. A Reshape to [batch, places, channels] with a mean over the places, where nothing else reads it.

    Example:
        >>> model = keras.Sequential([keras.Input((7, 7, 16)), kl.AveragePooling2D(7), kl.Flatten()])
        >>> [type(layer).__name__ for layer in PoolingPass().apply(model).model.layers]
        ['InputLayer', 'GlobalAveragePooling2D', 'Flatten']
    """

    name: str = NAME

    def concerns(self, model: keras.Model) -> bool:
        return any(map(_may_pool, _operations(model)))

    def rewrite(self, graph: FlatGraph) -> tuple[keras.Model | None, tuple[Change, ...], tuple[Refusal, ...]]:
        means = _means(graph)
        if not means:
            return None, (), ()
        builder, changes = Builder(), []
        made = {id(tensor): tensor for tensor in graph.model.inputs}
        left_out = {id(first) for first, _ in means.values() if first is not None}
        for node in graph.nodes:
            if id(node) in left_out:
                continue
            if id(node) in means:
                first, pooled = means[id(node)]
                source = (node if first is None else first).input_tensors[0]
                outputs = builder.call(pooled, made[id(source)])
                changes.append(Change(NAME, path_of(node.operation), _words(node, first)))
            else:
                args, kwargs = node.arguments.convert(
                    lambda value: made[id(value)] if isinstance(value, keras.KerasTensor) else value
                )
                outputs = builder.call(node.operation, *args, **kwargs)
            for old, new in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
                made[id(old)] = new
        return graph.rebuilt(lambda tensor: made[id(tensor)]), tuple(changes), ()


def _means(graph: FlatGraph) -> dict[int, tuple[Any, kl.Layer]]:
    """Return, by the id of the node that gives a mean: the Reshape before it, or None, and the layer in its place."""
    found: dict[int, tuple[Any, kl.Layer]] = {}
    for node in graph.nodes:
        if len(node.input_tensors) != 1:
            continue
        given = node.input_tensors[0]
        before = graph.producer(given)
        if pools_whole_map(node.operation, given.shape):
            found[id(node)] = None, _pooling(node, keepdims=True)
        elif before is not None and len(before.input_tensors) == 1 and len(graph.readers[id(given)]) == 1:
            shapes = before.input_tensors[0].shape, given.shape
            if is_mean_of_places(before.operation, *shapes, node.operation):
                found[id(node)] = before, _pooling(node, keepdims=False)
    return found


def _pooling(node: Any, *, keepdims: bool) -> kl.Layer:
    name = node.operation.name
    policy = getattr(node.operation, "dtype_policy", node.outputs[0].dtype)
    return kl.GlobalAveragePooling2D("channels_last", keepdims, name=name, dtype=policy)


def _words(node: Any, first: Any) -> str:
    was = type(node.operation).__name__
    if first is not None:
        return f"Reshape and {was} -> GlobalAveragePooling2D"
    return f"{was} of the whole map -> GlobalAveragePooling2D"


def _may_pool(operation: Any) -> bool:
    return type(operation).__name__ in {
        "AdaptiveAveragePool",
        "AdaptiveAveragePooling2D",
        "AveragePool",
        "AveragePooling2D",
        "Reshape",
    }


def _operations(model: Any) -> Iterator[Any]:
    """Give every operation of a model and of the models inside it."""
    for operation in getattr(model, "operations", None) or model.layers:
        yield operation
        if isinstance(operation, keras.Model):
            yield from _operations(operation)
