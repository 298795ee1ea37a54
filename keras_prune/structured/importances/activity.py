"""Importances of what units do on data: their activations, as the layers that read them see them."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras.saving import register_keras_serializable

from keras_prune.layer_kinds import kinds_where
from keras_prune.structured.analysis.groups import Analysis
from keras_prune.structured.analysis.running import all_graphs, results_of
from keras_prune.structured.importances.importance import Array, Importance, Scores, data_field
from keras_prune.structured.importances.observing import Tensor, Watched, of_units, read_tensors, watch

__all__ = ["APoZ", "ActivationSum", "Entropy", "MeanActivation"]

_register = register_keras_serializable(package="keras_prune_structured")

SUMS = kinds_where(lambda kind: kind.sums)
"""Layers that compute a sum of products and then an activation function."""


@dataclasses.dataclass(frozen=True, kw_only=True)
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

    def __call__(self, model: keras.Model, analysis: Analysis) -> Scores:
        self.check_data()
        watched = self._watched(analysis)
        means: dict[Tensor, tuple[Array, int]] = {}
        for tensor, values in watch(model, analysis, watched, self.data, self._call):
            total, number = means.get(tensor, (0.0, 0))
            means[tensor] = (total + self.of_values(values) * len(values), number + len(values))
        found = {tensor: total / number for tensor, (total, number) in means.items()}
        return self.normalised(analysis, of_units(analysis, watched, found))

    def _call(self, operation: Any, args: Any, kwargs: Any) -> tuple[list[Any], list[Any]]:
        """The results of a call, and what is to be seen of them."""
        return results_of(operation, args, kwargs)

    def _watched(self, analysis: Analysis) -> Watched:
        return read_tensors(analysis)


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanActivation(Activity):
    r"""Mean $|a|$ over samples and positions.

    Example:
        >>> MeanActivation().of_values(np.array([[[1.0, 0.0], [-3.0, 1.0]]]))
        array([2. , 0.5])
    """

    def of_values(self, values: Array) -> Array:
        return np.asarray(np.abs(values).mean(axis=(0, 1)))


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class APoZ(Activity):
    r"""The share of activations that are above $\theta$: one less the average percentage of zeros.

    Args:
        theta: activations up to this size count as zero.

    Source: Hu et al. 2016, "Network trimming", section 3.1.

    Example:
        >>> APoZ().of_values(np.array([[[1.0, 0.0], [3.0, 1.0]]]))
        array([1. , 0.5])
    """

    theta: float = 0.0

    def of_values(self, values: Array) -> Array:
        return np.asarray((np.abs(values) > self.theta).mean(axis=(0, 1)))


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
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

    def _watched(self, analysis: Analysis) -> Watched:
        found: dict[Tensor, tuple[int, Any]] = {}
        for graph in all_graphs(analysis.graph):
            for node in graph.nodes:
                if isinstance(node.operation, SUMS):
                    for axis, entry in enumerate(analysis.effects[id(node)].outputs[0]):
                        if entry is not None and (analysis.units_of(entry.labels) >= 0).any():
                            found[id(graph), node.outputs[0]] = (axis, entry.labels)
        return found


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
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
        self.check_data()
        watched = self._watched(analysis)
        means: dict[Tensor, list[Array]] = {}
        for tensor, values in watch(model, analysis, watched, self.data):
            means.setdefault(tensor, []).append(values.mean(axis=1, keepdims=True))
        found = {tensor: self.of_values(np.concatenate(parts)) for tensor, parts in means.items()}
        return self.normalised(analysis, of_units(analysis, watched, found))


def _entropy(values: npt.NDArray[np.floating[Any]], bins: int) -> float:
    counts, _ = np.histogram(values, bins)
    shares = counts[counts > 0] / len(values)
    return float(-(shares * np.log(shares)).sum())
