"""What units do on data: the tensors that layers read them from, looked at while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_prune.graph.graph import Graph
from keras_prune.statistics.batches import Batches
from keras_prune.structured.analysis.groups import Analysis
from keras_prune.structured.analysis.running import all_graphs, results_of, run_graph
from keras_prune.structured.importances.importance import Array, Scores

__all__ = ["Tensor", "Watched", "of_units", "read_tensors", "watch"]

Tensor = tuple[int, int]
"""The id of a graph and the number of a tensor in it."""

Watched = Mapping[Tensor, tuple[int, Any]]
"""For tensors: the axis that units lie on, and the elements along it."""


def read_tensors(analysis: Analysis) -> Watched:
    """For each tensor that a layer with a kernel reads units from: the axis and the elements along it."""
    found: dict[Tensor, tuple[int, Any]] = {}
    for graph in all_graphs(analysis.graph):
        for node in graph.nodes:
            kernels = [v for v in getattr(node.operation, "weights", ()) if len(v.shape) > 1] if not node.body else []
            slots = [slot for v in kernels for axis in range(len(v.shape)) if (slot := analysis.slot_of(v, axis))]
            if not slots:
                continue
            bound = np.unique(np.concatenate([slot.units for slot in slots]))
            for number, dims in zip(node.inputs, analysis.inputs_of[id(node)], strict=True):
                for axis, entry in enumerate(dims):
                    if entry is not None and np.isin(analysis.units_of(entry.labels), bound[bound >= 0]).any():
                        found[id(graph), number] = (axis, entry.labels)
    return found


def watch(
    model: keras.Model,
    analysis: Analysis,
    watched: Watched,
    data: Any,
    call: Callable[[Any, Any, Any], tuple[list[Any], list[Any]]] = results_of,
) -> Iterator[tuple[Tensor, Array]]:
    """Run a model on data and yield the values of the watched tensors, `[samples, positions, indices]` a batch.

    Args:
        model: built; it stays as it is.
        analysis: of the model.
        watched: what to look at.
        data: inputs `x`, `(x, y)` or batches of them.
        call: gives the results of a call, and what is to be seen of them.
    """
    for batch in Batches(data, model, labels=False):
        found: list[tuple[Tensor, Array]] = []

        def see(graph: Graph, number: int, value: Any, found: list[tuple[Tensor, Array]] = found) -> None:
            if (id(graph), number) in watched:
                axis = watched[id(graph), number][0]
                array = np.moveaxis(ops.convert_to_numpy(value).astype(np.float64), axis, -1)
                found.append(((id(graph), number), array.reshape(len(array), -1, array.shape[-1])))

        run_graph(analysis.graph, tree.flatten(batch.x), see, call)
        yield from found


def of_units(analysis: Analysis, watched: Watched, found: Mapping[Tensor, Array]) -> Scores:
    """From values of indices, `[indices]` a tensor, to values of units, `[units]`.

    The first tensor that has a unit gives its value, the mean over the unit's indices; infinity where none has it.
    """
    values = np.full(analysis.size, np.inf)
    for tensor, row in found.items():
        units = analysis.units_of(watched[tensor][1])
        inside = units >= 0
        number = np.bincount(units[inside], minlength=analysis.size)
        mean = np.bincount(units[inside], row[inside], minlength=analysis.size) / np.maximum(number, 1)
        values = np.where((number > 0) & np.isinf(values), mean, values)
    return values
