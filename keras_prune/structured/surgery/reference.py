"""What a rewritten model has to answer: the calls of the one it was made from, run one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops, tree

from keras_prune.arrays.distance import relative_difference
from keras_prune.graph.graph import Graph, Inside, Node, input_tensors
from keras_prune.graph.running import run_calls
from keras_prune.graph.trace import trace
from keras_prune.keras_seam import takes_training
from keras_prune.models.agreement import Given, State, check_agreement, kept_state
from keras_prune.models.variables import read
from keras_prune.structured.analysis.groups import Analysis, Copies, Keep

__all__ = ["check_rebuilt", "run_graph"]

Trail = list[tuple[Node, Any]]


def check_rebuilt(
    owner: str,
    analysis: Analysis,
    keep: Keep | Copies,
    model: keras.Model,
    *,
    skip: Mapping[int, int] | None = None,
    inputs: Any = None,
) -> None:
    """Compare a rebuilt model with the one it was made from, whose removed units are set to 0 and calls left out.

    Args:
        owner: the function that made it, for the message.
        analysis: of the model that was.
        keep: for each unit, whether it stays, or how many of it there are.
        model: the rebuilt one.
        skip: calls that were left out, as for `rebuild`.
        inputs: as for `check_agreement`.

    Raises:
        ValueError: the outputs differ.
    """
    if not analysis.exact and not np.all(keep):
        return  # what is asked for then is another function
    graph, skip = analysis.graph, skip or {}
    state = _zeros(analysis, keep)

    def reference(*args: Any, training: bool, **kwargs: Any) -> Any:
        return run_graph(graph, input_tensors(graph, (args, kwargs)), skip, [])

    def locate(given: Given, tolerance: float) -> str:
        return _first_difference(analysis, keep, model, skip, state, given, tolerance)

    check_agreement(
        owner,
        graph.model,
        model,
        inputs=inputs,
        reference=reference if skip else None,
        state=state,
        locate=locate,
    )


def run_graph(graph: Graph, inputs: list[Any], skip: Mapping[int, int], trail: Trail) -> list[Any]:
    """Return the outputs of a graph's calls on tensors, outside of training, and note each call with its results.

    Args:
        graph: its layers are called as they are.
        inputs: a tensor for each of the graph's inputs.
        skip: calls that are left out, each with the tensor that takes the place of its result.
        trail: takes the calls, each with what it made.
    """

    def call(node: Node, known: Mapping[int, Any]) -> list[Any]:
        if node.body is not None and not isinstance(node.body, Inside):
            return run_graph(node.body, [known[i] for i in node.entries], skip, trail)
        args, kwargs = node.filled(known)
        if takes_training(node.operation):
            kwargs["training"] = False
        made = node.operation(*args, **kwargs)
        trail.append((node, made))
        return tree.flatten(made)

    return run_calls(graph, inputs, call, skip)


def _zeros(analysis: Analysis, keep: Keep | Copies) -> State:
    """The values of a model's variables when all that is removed is 0."""
    values: dict[int, tuple[keras.Variable, npt.NDArray[Any]]] = {}
    for slot in analysis.slots:
        gone = np.flatnonzero((slot.units >= 0) & ~np.asarray(keep, bool)[slot.units])
        if slot.variable is None or not gone.size:
            continue
        if id(slot.variable) not in values:
            values[id(slot.variable)] = slot.variable, np.array(read(slot.variable))
        np.moveaxis(values[id(slot.variable)][1], slot.axis, 0)[gone] = 0
    return list(values.values())


def _first_difference(
    analysis: Analysis,
    keep: Keep | Copies,
    model: keras.Model,
    skip: Mapping[int, int],
    state: State,
    given: Given,
    tolerance: float,
) -> str:
    """The first call whose results differ where they are not cut, in words; nothing where it cannot be said."""
    before: Trail = []
    after: Trail = []
    graph = analysis.graph
    with contextlib.suppress(Exception):  # what is sought is a hint: the message stands without it
        with kept_state(graph.model, state):
            run_graph(graph, input_tensors(graph, given), skip, before)
        made = trace(model)
        with kept_state(model):
            run_graph(made, input_tensors(made, given), {}, after)
        found = {node.path: outputs for node, outputs in reversed(after)}
        for node, outputs in before:
            pairs = zip(tree.flatten(outputs), tree.flatten(found.get(node.path, ())), strict=False)
            for place, (wanted, got) in enumerate(pairs):
                error = _error(_cut(analysis, keep, node, place, wanted), np.asarray(ops.convert_to_numpy(got)))
                if error > tolerance:
                    return f", first at {node.path!r} ({type(node.operation).__name__}), by {error:.2g} of its scale"
    return ""


def _cut(analysis: Analysis, keep: Keep | Copies, node: Node, place: int, value: Any) -> npt.NDArray[Any]:
    array = np.asarray(ops.convert_to_numpy(value))
    dims = (
        analysis.effects[id(node)].outputs[place]
        if node.body is None
        else analysis.dims[id(node.body), node.body.outputs[place]]
    )
    for axis, entry in enumerate(dims):
        stays = None if entry is None else analysis.places(entry.labels, keep)
        array = array if stays is None else np.take(array, stays, axis)
    return array


def _error(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    return relative_difference(found, wanted) if wanted.shape == found.shape else 0.0
