"""Importance by what units do on data: their activations, as the layers that read them see them."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl
from keras import ops, tree
from keras.saving import register_keras_serializable

from keras_prune.graph.graph import Graph, Inside, Ref, place_of_call
from keras_prune.graph.held import lent
from keras_prune.graph.symbolic import flat_tensors
from keras_prune.statistics.batches import Batches
from keras_prune.structured.analysis.groups import Analysis
from keras_prune.structured.importances.importance import NORMALISATIONS, Array, Importance, Scores, data_field

__all__ = ["APoZ", "ActivationSum", "Entropy", "MeanActivation"]

_register = register_keras_serializable(package="keras_prune_structured")

SUMS = (
    kl.Dense, kl.EinsumDense, kl.Conv1D, kl.Conv2D, kl.Conv3D, kl.Conv1DTranspose, kl.Conv2DTranspose,
    kl.Conv3DTranspose, kl.SeparableConv1D, kl.SeparableConv2D,
)  # fmt: skip

Tensor = tuple[int, int]
"""The id of a graph and the number of a tensor in it."""


@dataclasses.dataclass(frozen=True)
class Activity(Importance):
    """A score from the activations of a unit over all samples and positions.

    A unit's activation is what the first layer with a kernel that reads it is given. Units that no such layer reads
    keep the score of infinity, and stay.

    Args:
        data: inputs `x`, `(x, y)` or batches of them.
    """

    data: Any = data_field()

    @abstractmethod
    def of_values(self, values: Array) -> Array:
        """Return a score for each index of the last axis from one batch, `[samples, positions, indices]`.

        Scores of batches are averaged over samples.
        """
        raise NotImplementedError(f"{type(self).__name__} must define of_values(values)")

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        raise TypeError(f"{type(self).__name__} scores activations, not weights")

    def __call__(self, model: keras.Model, analysis: Analysis) -> Scores:
        watched = self._watched(analysis)
        means: dict[Tensor, tuple[Array, int]] = {}
        for tensor, values in self._observations(model, analysis, watched):
            total, number = means.get(tensor, (0.0, 0))
            means[tensor] = (total + self.of_values(values) * len(values), number + len(values))
        return self._spread(analysis, watched, {tensor: total / number for tensor, (total, number) in means.items()})

    def _call(self, operation: Any, args: Any, kwargs: Any) -> tuple[list[Any], list[Any]]:
        """The results of a call, and what is to be seen of them."""
        return results_of(operation, args, kwargs)

    def _watched(self, analysis: Analysis) -> dict[Tensor, tuple[int, Any]]:
        return read_tensors(analysis)

    def _observations(
        self, model: keras.Model, analysis: Analysis, watched: Mapping[Tensor, tuple[int, Any]]
    ) -> Iterator[tuple[Tensor, Array]]:
        if self.data is None:
            raise ValueError(
                f"{type(self).__name__} is taken on data. Received: data=None. Give the importance some: "
                "plan(..., data=x)."
            )
        for batch in Batches(self.data, model, labels=False):
            found: list[tuple[Tensor, Array]] = []

            def see(graph: Graph, number: int, value: Any, found: list[tuple[Tensor, Array]] = found) -> None:
                if (id(graph), number) in watched:
                    axis = watched[id(graph), number][0]
                    array = np.moveaxis(ops.convert_to_numpy(value).astype(np.float64), axis, -1)
                    found.append(((id(graph), number), array.reshape(len(array), -1, array.shape[-1])))

            run(analysis.graph, tree.flatten(batch.x), see, self._call)
            yield from found

    def _spread(
        self, analysis: Analysis, watched: Mapping[Tensor, tuple[int, Any]], found: Mapping[Tensor, Array]
    ) -> Scores:
        """From scores of indices to scores of units: the first tensor that has a unit gives its score."""
        scores = np.full(analysis.size, np.inf)
        for tensor, values in found.items():
            units = analysis.units_of(watched[tensor][1])
            inside = units >= 0
            number = np.bincount(units[inside], minlength=analysis.size)
            mean = np.bincount(units[inside], values[inside], minlength=analysis.size) / np.maximum(number, 1)
            scores = np.where((number > 0) & np.isinf(scores), mean, scores)
        for group in analysis.groups:
            part = scores[group.start : group.stop]
            if np.isfinite(part).all():
                scale = NORMALISATIONS[self.normalise](part)
                scores[group.start : group.stop] = part / scale if scale > 0 else part
        return scores


def read_tensors(analysis: Analysis) -> dict[Tensor, tuple[int, Any]]:
    """For each tensor that a layer with a kernel reads units from: the axis and the elements along it."""
    found: dict[Tensor, tuple[int, Any]] = {}
    for graph in _graphs(analysis.graph):
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


def _graphs(graph: Graph) -> list[Graph]:
    bodies = {id(node.body): node.body for node in graph.walk() if node.body is not None}
    return [graph, *bodies.values()]


def run(
    graph: Graph,
    inputs: Sequence[Any],
    see: Callable[[Graph, int, Any], None],
    call: Callable[[Any, Any, Any], tuple[list[Any], list[Any]]],
) -> list[Any]:
    """Run a graph call by call at inference, and show what `call` gives of each tensor to `see`.

    A layer that was seen through runs as it is; of what is inside, its inner layers' inputs and results are shown.
    """
    known = dict(zip(graph.inputs, inputs, strict=True))
    for number in graph.inputs:
        see(graph, number, known[number])
    for node in graph.nodes:
        args, kwargs = node.filled(known)
        if isinstance(node.body, Inside):
            made = seen = _run_inside(node.body, args, kwargs, see, call)
        elif node.body is not None:
            made = seen = run(node.body, [known[i] for i in node.entries], see, call)
        else:
            made, seen = call(node.operation, args, kwargs)
        for number, value, shown in zip(node.outputs, made, seen, strict=True):
            known[number] = value
            see(graph, number, shown)
    return [known[i] for i in graph.outputs]


def results_of(operation: Any, args: Any, kwargs: Any) -> tuple[list[Any], list[Any]]:
    """The results of a call, and all of them to be seen."""
    made = flat_tensors(operation(*args, **kwargs))
    return made, made


def _run_inside(body: Inside, args: Any, kwargs: Any, see: Any, call: Any) -> list[Any]:
    """Run a layer as it is, then each of its inner layers alone on what it was given."""
    given: dict[int, list[tuple[Any, Any]]] = {}
    with contextlib.ExitStack() as stack:
        for inner in {id(node.operation): node.operation for node in body.nodes}.values():
            if isinstance(inner, keras.Layer):
                taken = given.setdefault(id(inner), [])
                stack.enter_context(lent(inner, {("call",): _noting(inner.call, taken)}))
        made = flat_tensors(body.model(*args, **kwargs))
    for node in body.nodes:
        taken = given.get(id(node.operation), [])
        place = place_of_call(body, node)
        if place >= len(taken):
            continue
        real = taken[place]
        for leaf, value in zip(tree.flatten((node.args, node.kwargs)), tree.flatten(real), strict=False):
            if isinstance(leaf, Ref) and leaf.index not in body.own:
                see(body, leaf.index, value)
        if isinstance(node.body, Inside):
            shown = _run_inside(node.body, *real, see, call)
        elif node.body is not None:
            shown = run(node.body, tree.flatten(real[0]), see, call)
        else:
            shown = call(node.operation, *real)[1]
        for number, value in zip(node.outputs, shown, strict=True):
            see(body, number, value)
    return made


def _noting(call: Any, taken: list[tuple[Any, Any]]) -> Any:
    def noted(*args: Any, **kwargs: Any) -> Any:
        taken.append((args, kwargs))
        return call(*args, **kwargs)

    return noted


@_register
@dataclasses.dataclass(frozen=True)
class MeanActivation(Activity):
    r"""Mean $|a|$ over samples and positions.

    Example:
        >>> MeanActivation().of_values(np.array([[[1.0, 0.0], [-3.0, 1.0]]]))
        array([2. , 0.5])
    """

    def of_values(self, values: Array) -> Array:
        return np.asarray(np.abs(values).mean(axis=(0, 1)))


@_register
@dataclasses.dataclass(frozen=True)
class APoZ(Activity):
    r"""The share of activations that are above $\theta$: one less the average percentage of zeros.

    Args:
        theta: what counts as zero still.

    Source: Hu et al. 2016, "Network trimming", section 3.1.

    Example:
        >>> APoZ().of_values(np.array([[[1.0, 0.0], [3.0, 1.0]]]))
        array([1. , 0.5])
    """

    theta: float = 0.0

    def of_values(self, values: Array) -> Array:
        return np.asarray((np.abs(values) > self.theta).mean(axis=(0, 1)))


@_register
@dataclasses.dataclass(frozen=True)
class ActivationSum(Activity):
    r"""$A_i = \sum_j w_{ij} a_j + b_i$, the mean over samples and positions, before the layer's activation function.

    Taken of dense, einsum and convolution layers. While it is, their functions are switched off and on again.
    """

    def of_values(self, values: Array) -> Array:
        return np.asarray(values.mean(axis=(0, 1)))

    def _call(self, operation: Any, args: Any, kwargs: Any) -> tuple[list[Any], list[Any]]:
        made, _ = results_of(operation, args, kwargs)
        layer = operation
        if not isinstance(layer, SUMS) or layer.activation is keras.activations.linear:
            return made, made
        function = layer.activation
        try:
            layer.activation = keras.activations.linear
            return made, results_of(operation, args, kwargs)[0]
        finally:
            layer.activation = function

    def _watched(self, analysis: Analysis) -> dict[Tensor, tuple[int, Any]]:
        found: dict[Tensor, tuple[int, Any]] = {}
        for graph in _graphs(analysis.graph):
            for node in graph.nodes:
                if isinstance(node.operation, SUMS):
                    for axis, entry in enumerate(analysis.effects[id(node)].outputs[0]):
                        if entry is not None and (analysis.units_of(entry.labels) >= 0).any():
                            found[id(graph), node.outputs[0]] = (axis, entry.labels)
        return found


@_register
@dataclasses.dataclass(frozen=True)
class Entropy(Activity):
    r"""$-\sum_k p_k \ln p_k$ of a unit's mean activations by sample, in `bins` bins from the least to the largest.

    Args:
        bins: how many.

    Source: Luo and Wu 2017, "An entropy-based pruning method for CNN compression", section 3.2.
    """

    bins: int = 10

    def of_values(self, values: Array) -> Array:
        return np.asarray([_entropy(column, self.bins) for column in values.mean(axis=1).T])

    def __call__(self, model: keras.Model, analysis: Analysis) -> Scores:
        watched = self._watched(analysis)
        means: dict[Tensor, list[Array]] = {}
        for tensor, values in self._observations(model, analysis, watched):
            means.setdefault(tensor, []).append(values.mean(axis=1, keepdims=True))
        return self._spread(
            analysis, watched, {tensor: self.of_values(np.concatenate(parts)) for tensor, parts in means.items()}
        )


def _entropy(values: npt.NDArray[np.floating[Any]], bins: int) -> float:
    counts, _ = np.histogram(values, bins)
    shares = counts[counts > 0] / len(values)
    return float(-(shares * np.log(shares)).sum())
