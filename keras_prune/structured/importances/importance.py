"""Model -> a score for each unit that could be removed: the lower the score, the sooner the unit goes."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, cast

import keras
import numpy as np
import numpy.typing as npt

from keras_prune import statistics
from keras_prune.models.variables import read
from keras_prune.strategy import S, Strategy
from keras_prune.structured.analysis.groups import Analysis, Group
from keras_prune.structured.importances.slices import spread, targets_of

__all__ = [
    "NORMALISATIONS",
    "REDUCTIONS",
    "Array",
    "AxisImportance",
    "Importance",
    "ScoredUnits",
    "Scores",
    "check_choice",
    "data_field",
]

Array = npt.NDArray[np.floating[Any]]
Scores = npt.NDArray[np.float64]

REDUCTIONS: Mapping[str, Callable[[Array], Array]] = {
    "mean": lambda rows: np.mean(rows, axis=0),
    "max": lambda rows: np.max(rows, axis=0),
    "sum": lambda rows: np.sum(rows, axis=0),
    "first": lambda rows: rows[0],
}
"""How the scores `[axes, units]` of a group's axes become `[units]`."""

NORMALISATIONS: Mapping[str, Callable[[Array], float]] = {
    "none": lambda scores: 1.0,
    "mean": lambda scores: float(np.mean(scores)),
    "max": lambda scores: float(np.max(scores)),
    "sum": lambda scores: float(np.sum(scores)),
}
"""What a group's scores `[units]` are divided by."""


def data_field() -> Any:
    """A field for data: neither compared nor written into the configuration."""
    return dataclasses.field(default=None, metadata={"config": False}, compare=False, repr=False)


def check_choice(strategy: Strategy, field: str, known: Mapping[str, Any]) -> None:
    """Refuse a field that is not one of the known names.

    Raises:
        ValueError: with the class, the field, the names and the value.
    """
    value = getattr(strategy, field)
    if value not in known:
        raise ValueError(f"{type(strategy).__name__}: {field} must be one of {sorted(known)}. Received: {value!r}")


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredUnits:
    """The scores of all units, and what an importance found on the way.

    Attributes:
        scores: `[units]`; infinity where a unit has to stay.
        notes: lines that a plan prints.
    """

    scores: Scores
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance(Strategy, ABC):
    """A score for every unit of a model.

    An importance that scores weights along one axis is an `AxisImportance`, which needs one short method; one that
    scores units in another way (by their activations, by taking them out) defines `__call__`. Either is used by `plan`,
    `prune`, `iterate`, `StructuredPruning` and `StructureAdjustment` without registration.

    An importance that is taken on data has a field for it, `data: Any = None`. Those who use it hand over the `data`
    that they were given themselves, if the field is None.

    Args:
        normalise: each group's scores are divided by a number of their own, their "mean", "max" or "sum", so that
            groups can be compared in one ranking; or by "none".

    Example:
        >>> class Place(Importance):
        ...     def __call__(self, model, analysis):
        ...         return self.normalised(analysis, np.arange(analysis.size, dtype=float))
        >>> from keras_prune.structured import analyse
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(1)])
        >>> Place(normalise="max")(model, analyse(model))
        array([0. , 0.5, 1. ])
    """

    kind: ClassVar[str] = "importance"
    # No field here, and no class variable for type checkers: an importance on data makes a field of it.
    data = cast(Any, None)

    normalise: str = "mean"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "of_axis" in vars(cls) and cls.__module__ != __name__ and AxisImportance not in cls.__mro__:
            warnings.warn(
                f"{cls.__name__} scores weights along an axis: derive it from keras_prune.structured.AxisImportance. "
                "As an Importance with of_axis() it works until 0.2.",
                DeprecationWarning,
                stacklevel=2,
            )
            cls.__bases__ = tuple(AxisImportance if base is Importance else base for base in cls.__bases__)

    def __post_init__(self) -> None:
        check_choice(self, "normalise", NORMALISATIONS)

    @classmethod
    def from_config(cls: type[S], config: Mapping[str, Any]) -> S:
        """Make the importance that `get_config` described.

        Args:
            config: of this version, or of one in which every importance had a `reduction`.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        given = {key: value for key, value in config.items() if key != "reduction" or key in known}
        return super().from_config(given)

    @abstractmethod
    def __call__(self, model: keras.Model, analysis: Analysis) -> Scores:
        """Return the scores of all units, `[units]`; infinity for a unit that has to stay.

        Args:
            model: built; it stays as it is.
            analysis: of the model.

        Raises:
            ValueError: there is no data to take the scores on, or the model is not compiled and has to be.
        """

    def score(self, model: keras.Model, analysis: Analysis) -> ScoredUnits:
        """Return the scores, with notes for the plan; an importance that has something to tell defines this, too.

        Raises:
            ValueError: as calling it.
        """
        return ScoredUnits(self(model, analysis))

    def normalised(self, analysis: Analysis, scores: Scores) -> Scores:
        """Return scores `[units]` with each group's divided by its own number, where that is above 0 and finite."""
        result = scores.copy()
        for group in analysis.groups:
            scale = NORMALISATIONS[self.normalise](scores[group.start : group.stop])
            if 0.0 < scale < np.inf:
                result[group.start : group.stop] /= scale
        return result

    def as_measured(self) -> Self:
        """Return the same importance without normalisation."""
        return dataclasses.replace(self, normalise="none")

    @property
    def takes_data(self) -> bool:
        """Whether the scores are taken on data: whether the importance has a field `data`."""
        return any(field.name == "data" for field in dataclasses.fields(self))

    def on(self, data: Any) -> Self:
        """Return the same importance on this data, if it takes some and has none of its own."""
        if data is None or self.data is not None or not self.takes_data:
            return self
        return dataclasses.replace(self, data=data)  # type: ignore[call-arg]

    def check_data(self, owner: str = "plan") -> None:
        """Refuse to score on data that nobody has given.

        Args:
            owner: who is to be given data, for the message.

        Raises:
            ValueError: the importance is taken on data, and has none.
        """
        if self.takes_data and self.data is None:
            raise ValueError(
                f"{owner}: {type(self).__name__} is taken on data. Received: data=None. "
                f"Give a few hundred samples: {owner}(..., data=(x, y))."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AxisImportance(Importance):
    """A score for every unit from its weights: each axis of a variable that a unit lies on gives a score.

    Attributes:
        needs: statistics of gradients that `of_axis` takes (`keras_prune.criteria.Criterion.needs`).
        every: whether biases and normalisations count beside kernels.

    Args:
        reduction: how the scores of a group's axes become one score a unit: "mean", "max", "sum", or "first" for the
            layer alone that makes the units.

    Example:
        >>> class Largest(AxisImportance):
        ...     def of_axis(self, weight, axis, statistics):
        ...         return np.abs(weight).max(axis=tuple(a for a in range(weight.ndim) if a != axis))
        >>> Largest().of_axis(np.array([[1.0, -2.0], [3.0, 0.0]]), 1, {})
        array([3., 2.])
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    every: ClassVar[bool] = False

    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "reduction", REDUCTIONS)

    @abstractmethod
    def of_axis(self, weight: Array, axis: int, statistics: Mapping[str, Any]) -> Array:
        """Return a score for each index of an axis, `[indices]`.

        Args:
            weight: a variable's value.
            axis: the axis that units lie on.
            statistics: the arrays that `needs` names, of the weight's shape.
        """

    def __call__(self, model: keras.Model, analysis: Analysis) -> Scores:
        gathered = self._statistics(model, analysis)
        scores = np.zeros(analysis.size)
        for group in analysis.groups:
            rows = [self._row(analysis, group, i, gathered) for i in self.counted(analysis, group)]
            reduced = REDUCTIONS[self.reduction](np.stack(rows)) if rows else np.inf
            scores[group.start : group.stop] = reduced
        return self.normalised(analysis, scores)

    def counted(self, analysis: Analysis, group: Group) -> list[int]:
        """Return the slots of a group that count, by number: all, or those of kernels if there are any."""
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
        found = statistics.collect(model, targets_of(model, variables.values()), self.needs, self.data)
        return dict(zip(variables, found, strict=True))
