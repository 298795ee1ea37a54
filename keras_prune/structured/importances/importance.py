"""Model -> a score for each unit that could be removed: the lower, the sooner it goes."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl
from keras.saving import register_keras_serializable

from keras_prune import criteria, statistics
from keras_prune.allocation import lamp_scores
from keras_prune.models.variables import read
from keras_prune.strategy import Strategy
from keras_prune.structured.analysis.groups import Analysis, Group
from keras_prune.structured.importances.slices import over_others, spread, targets_of

__all__ = [
    "FPGM",
    "L1",
    "L2",
    "LAMP",
    "BatchNormScale",
    "Fisher",
    "Gradient",
    "Importance",
    "Random",
    "Scored",
    "Taylor",
]

Array = npt.NDArray[np.floating[Any]]
Scores = npt.NDArray[np.float64]

_register = register_keras_serializable(package="keras_prune_structured")

REDUCTIONS: Mapping[str, Callable[[Array], Array]] = {
    "mean": lambda rows: np.mean(rows, axis=0),
    "max": lambda rows: np.max(rows, axis=0),
    "sum": lambda rows: np.sum(rows, axis=0),
    "first": lambda rows: rows[0],
}
NORMALISATIONS: Mapping[str, Callable[[Array], float]] = {
    "none": lambda scores: 1.0,
    "mean": lambda scores: float(np.mean(scores)),
    "max": lambda scores: float(np.max(scores)),
    "sum": lambda scores: float(np.sum(scores)),
}


def data_field() -> Any:
    """A field for data: neither compared nor written into the configuration."""
    return dataclasses.field(default=None, metadata={"config": False}, compare=False, repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """The scores of all units, and what an importance found on the way.

    Attributes:
        scores: `[units]`; infinity where a unit has to stay.
        notes: lines that a plan prints.
    """

    scores: Scores
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Importance(Strategy):
    """A score for every unit.

    Each axis of a variable that a unit lies on gives a score (`of_axis`); a group's axes are reduced to one score a
    unit, and a group's scores divided by a number of their own, so that groups can be compared in one ranking.

    Attributes:
        needs: statistics of gradients that `of_axis` takes (`keras_prune.criteria.Criterion.needs`).
        every: whether biases and normalisations count beside kernels.

    Args:
        reduction: of a group's axes: "mean", "max", "sum", or "first" for the layer alone that makes the units.
        normalise: by the "mean", "max" or "sum" of a group's scores, or "none".
    """

    kind: ClassVar[str] = "importance"
    needs: ClassVar[frozenset[str]] = frozenset()
    every: ClassVar[bool] = False

    reduction: str = "mean"
    normalise: str = "mean"

    def __post_init__(self) -> None:
        for field, known in (("reduction", REDUCTIONS), ("normalise", NORMALISATIONS)):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{type(self).__name__}: {field} must be one of {sorted(known)}. Received: {getattr(self, field)!r}"
                )

    @abstractmethod
    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        """Return a score for each index of an axis, `[indices]`.

        Args:
            weight: a variable's value.
            axis: the axis that units lie on.
            statistics: the arrays that `needs` names, of the weight's shape.
        """
        raise NotImplementedError(f"{type(self).__name__} must define of_axis(weight, axis, statistics)")

    def __call__(self, model: keras.Model, analysis: Analysis) -> Scores:
        """Return the scores of all units, `[units]`.

        Raises:
            ValueError: statistics are needed and no data was given, or the model is not compiled.
        """
        gathered = self._statistics(model, analysis)
        scores = np.zeros(analysis.size)
        for group in analysis.groups:
            rows = [self._row(analysis, group, i, gathered) for i in self._used(analysis, group)]
            reduced = REDUCTIONS[self.reduction](np.stack(rows)) if rows else np.inf
            scores[group.start : group.stop] = reduced
        return self.normalised(analysis, scores)

    def score(self, model: keras.Model, analysis: Analysis) -> Scored:
        """Return the scores, with notes for the plan; an importance that has something to tell defines this, too.

        Raises:
            ValueError: as calling it.
        """
        return Scored(self(model, analysis))

    def normalised(self, analysis: Analysis, scores: Scores) -> Scores:
        """Return scores `[units]` with each group's divided by its own number, where that is above 0 and finite."""
        result = scores.copy()
        for group in analysis.groups:
            scale = NORMALISATIONS[self.normalise](scores[group.start : group.stop])
            if 0.0 < scale < np.inf:
                result[group.start : group.stop] /= scale
        return result

    def _used(self, analysis: Analysis, group: Group) -> list[int]:
        """The slots of a group that count: all, or those of kernels if there are any."""
        on = [i for i in group.slots if (v := analysis.slots[i].variable) is not None and v.trainable]
        if self.every:
            return on
        kernels = [i for i in on if (v := analysis.slots[i].variable) is not None and len(v.shape) > 1]
        return kernels or on

    def _row(self, analysis: Analysis, group: Group, i: int, gathered: Mapping[int, Mapping[str, Any]]) -> Array:
        """One axis's scores, summed where a unit lies on it several times."""
        slot = analysis.slots[i]
        assert slot.variable is not None
        weight = read(slot.variable).astype(np.float64)
        values = self.of_axis(weight, slot.axis, gathered.get(id(slot.variable), {}))
        return spread(slot, group, values)

    def _statistics(self, model: keras.Model, analysis: Analysis) -> dict[int, dict[str, Any]]:
        if not self.needs:
            return {}
        variables = {id(v): v for slot in analysis.slots if (v := slot.variable) is not None and v.trainable}
        found = statistics.collect(
            model, targets_of(model, variables.values()), self.needs, getattr(self, "data", None)
        )
        return dict(zip(variables, found, strict=True))


@_register
@dataclasses.dataclass(frozen=True)
class L1(Importance):
    r"""$\sum |w|$ over a unit's weights.

    Source: Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.1.

    Example:
        >>> L1().of_axis(np.array([[1.0, -2.0], [3.0, 0.0]]), 1, {})
        array([4., 2.])
    """

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        return over_others(criteria.Magnitude()(weight, {}), axis)


@_register
@dataclasses.dataclass(frozen=True)
class L2(Importance):
    r"""$\sqrt{\sum w^2}$ over a unit's weights.

    Example:
        >>> L2().of_axis(np.array([[3.0, -2.0], [4.0, 0.0]]), 1, {})
        array([5., 2.])
    """

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        return np.sqrt(over_others(np.square(weight), axis))


@_register
@dataclasses.dataclass(frozen=True)
class FPGM(Importance):
    r"""$\sum_j \lVert w_i - w_j \rVert_2$: the unit nearest to the geometric median of all can be said by the others.

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


@_register
@dataclasses.dataclass(frozen=True)
class LAMP(L2):
    r"""$\lVert w_i \rVert^2 / \sum_{j: \lVert w_j \rVert \ge \lVert w_i \rVert} \lVert w_j \rVert^2$ within a group.

    Source: Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", equation 4, on units.
    """

    normalise: str = "none"

    def __call__(self, model: keras.Model, analysis: Analysis) -> Scores:
        scores = super().__call__(model, analysis)
        for group in analysis.groups:
            part = scores[group.start : group.stop]
            order = np.argsort(part, kind="stable")
            part[order] = lamp_scores(part)
        return scores


@_register
@dataclasses.dataclass(frozen=True)
class Random(Importance):
    """Uniform noise: the baseline that every other importance has to beat.

    Args:
        seed: fixes the noise.
    """

    seed: int = 0

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        return np.asarray(np.random.default_rng((self.seed, weight.size)).random(weight.shape[axis]))

    def __call__(self, model: keras.Model, analysis: Analysis) -> Scores:
        return np.random.default_rng(self.seed).random(analysis.size)


@_register
@dataclasses.dataclass(frozen=True)
class BatchNormScale(Importance):
    r"""$|\gamma|$ of the batch normalisations that a unit passes; units that pass none always stay.

    Source: Liu et al. 2017, "Learning efficient convolutional networks through network slimming", section 3.
    """

    every: ClassVar[bool] = True

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        return np.abs(weight)

    def _used(self, analysis: Analysis, group: Group) -> list[int]:
        owned = {
            id(layer.gamma)
            for layer in analysis.graph.model._flatten_layers()
            if isinstance(layer, kl.BatchNormalization)
        }
        return [i for i in super()._used(analysis, group) if id(analysis.slots[i].variable) in owned]


@_register
@dataclasses.dataclass(frozen=True)
class Gradient(Importance):
    r"""$\sum \overline{|g|}$ over a unit's weights.

    Args:
        data: `(x, y)` or batches of it.
    """

    needs: ClassVar[frozenset[str]] = criteria.Gradient.needs
    every: ClassVar[bool] = True

    data: Any = data_field()

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        return over_others(criteria.Gradient()(weight, statistics), axis)


@_register
@dataclasses.dataclass(frozen=True)
class Taylor(Importance):
    r"""$\sum |w| \, \overline{|g|}$ over a unit's weights: the first-order change of the loss without them.

    Args:
        data: `(x, y)` or batches of it.

    Source: Molchanov et al. 2019, "Importance estimation for neural network pruning", section 3.1.
    """

    needs: ClassVar[frozenset[str]] = criteria.Taylor.needs
    every: ClassVar[bool] = True

    data: Any = data_field()

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        return over_others(criteria.Taylor()(weight, statistics), axis)


@_register
@dataclasses.dataclass(frozen=True)
class Fisher(Importance):
    r"""$\sum w^2 \, \overline{g^2} / 2$ over a unit's weights.

    Args:
        data: `(x, y)` or batches of it.

    Source: Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", equation 8.
    """

    needs: ClassVar[frozenset[str]] = criteria.Fisher.needs
    every: ClassVar[bool] = True

    data: Any = data_field()

    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        return over_others(criteria.Fisher()(weight, statistics), axis)
