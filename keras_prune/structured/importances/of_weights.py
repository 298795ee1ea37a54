"""Importances of weights: their sizes, their distances, scales of normalisations; and noise to compare with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
from keras import layers as kl
from keras.saving import register_keras_serializable

from keras_prune import criteria
from keras_prune.allocation import lamp_scores
from keras_prune.keras_seam import layers_in
from keras_prune.structured.analysis.groups import Analysis, Group
from keras_prune.structured.importances.importance import Array, AxisImportance, Importance, Scores
from keras_prune.structured.importances.slices import over_others

__all__ = ["FPGM", "L1", "L2", "BatchNormScale", "LAMPScore", "Random"]

_register = register_keras_serializable(package="keras_prune_structured")


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class L1(AxisImportance):
    r"""$\sum |w|$ over a unit's weights.

    Source: Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.1.

    Example:
        >>> L1().of_axis(np.array([[1.0, -2.0], [3.0, 0.0]]), 1, {})
        array([4., 2.])
    """

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        return over_others(criteria.Magnitude()(weight, {}), axis)


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class L2(AxisImportance):
    r"""$\sqrt{\sum w^2}$ over a unit's weights.

    Example:
        >>> L2().of_axis(np.array([[3.0, -2.0], [4.0, 0.0]]), 1, {})
        array([5., 2.])
    """

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        return _norms(weight, axis)


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class FPGM(AxisImportance):
    r"""$\sum_j \lVert w_i - w_j \rVert_2$ over the other units of a group.

    The unit that is nearest to the geometric median of all is redundant: the others can stand in for it.

    Source: He et al. 2019, "Filter pruning via geometric median for deep convolutional neural networks acceleration",
    equation 7.

    Example:
        >>> FPGM().of_axis(np.array([[0.0, 1.0, 5.0]]), 1, {})
        array([6., 5., 9.])
    """

    reduction: str = "first"

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        squares = np.square(rows).sum(axis=1)
        distances = squares[:, None] + squares[None, :] - 2.0 * rows @ rows.T
        np.fill_diagonal(distances, 0.0)
        return np.asarray(np.sqrt(np.maximum(distances, 0.0)).sum(axis=1))


@register_keras_serializable(package="keras_prune_structured", name="LAMP")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LAMPScore(AxisImportance):
    r"""$\lVert w_i \rVert^2 / \sum_{j: \lVert w_j \rVert \ge \lVert w_i \rVert} \lVert w_j \rVert^2$ within a group.

    Source: Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", equation 4, on units.
    """

    normalise: str = "none"

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        return _norms(weight, axis)

    def __call__(self, model: keras.Model, analysis: Analysis) -> Scores:
        norms = super().__call__(model, analysis)  # the formula gives the same for norms in any unit
        scores = norms.copy()
        for group in analysis.groups:
            part = norms[group.start : group.stop]
            if np.isfinite(part).all():
                scores[group.start + np.argsort(part, kind="stable")] = lamp_scores(part)
        return self.normalised(analysis, scores)


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Random(Importance):
    """Uniform noise: the baseline that every other importance has to beat.

    Args:
        seed: fixes the noise.
    """

    normalise: str = "none"
    seed: int = 0

    def __call__(self, model: keras.Model, analysis: Analysis) -> Scores:
        return self.normalised(analysis, np.random.default_rng(self.seed).random(analysis.size))


@_register
@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchNormScale(AxisImportance):
    r"""$|\gamma|$ of the batch normalisations that a unit passes; units that pass none always stay.

    Source: Liu et al. 2017, "Learning efficient convolutional networks through network slimming", section 3.
    """

    every: ClassVar[bool] = True

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        return np.abs(weight)

    def counted(self, analysis: Analysis, group: Group) -> list[int]:
        owned = {
            id(layer.gamma) for layer in layers_in(analysis.graph.model) if isinstance(layer, kl.BatchNormalization)
        }
        return [i for i in super().counted(analysis, group) if id(analysis.slots[i].variable) in owned]


def _norms(weight: Array, axis: int) -> Array:
    r"""$\lVert w \rVert_2$ for each index of an axis, `[indices]`."""
    return np.asarray(np.sqrt(over_others(np.square(weight), axis)))
