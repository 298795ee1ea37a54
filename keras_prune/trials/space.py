"""The space that a search looks in: a sparsity for each tensor, and which criterion, pattern and schedule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras.saving import register_keras_serializable

from keras_prune.allocation import Allocation
from keras_prune.arrays.splitting import Scored, shift_shares
from keras_prune.criteria import Criterion, Magnitude
from keras_prune.masks.recipe import Recipe, resolve_allocation, resolve_pattern
from keras_prune.masks.update import Tensor, check_shape, layout_for, masks_at_sparsity
from keras_prune.models.keys import check_keys, fits, keyed
from keras_prune.models.variables import read
from keras_prune.patterns import ByPath, Pattern
from keras_prune.schedules import Cosine, PolynomialDecay, Schedule
from keras_prune.schedules.decays import as_schedule
from keras_prune.scope import Scope, Target, check_scope
from keras_prune.strategy import Strategy, check_fraction, resolve
from keras_prune.trials.choice import PruningStrategy

__all__ = ["ModelSpace", "Space"]

FINAL = ("final_sparsity", "sparsity")
"""The fields by which schedules say where they end."""


@register_keras_serializable(package="keras_prune")
@dataclasses.dataclass(frozen=True)
class Space(Strategy):
    r"""Strategies to choose from: one sparsity a tensor, times a criterion, a pattern and a schedule.

    A trial draws a sparsity for each tensor. Where the study has a global sparsity, one shift c of all of them on the
    logistic scale of their bounds brings the whole to it, so that all trials have the same number of zeros:

    $s_i' = l_i + (h_i - l_i) \, \sigma(c + \mathrm{logit} \frac{s_i - l_i}{h_i - l_i})$

    Args:
        bounds: the lowest and the highest sparsity of a tensor, fractions in [0, 1); or a mapping of names, globs or
            regular expressions to such pairs, of which the first that fits counts, and (0, 0.99) where none does.
        criteria: names or instances, as for `Pruning`. One that takes data and has none is given the study's.
        patterns: names, instances, or mappings of paths to patterns.
        schedules: whose last sparsity is replaced by that of the trial; only used where trials train.
        scope: which tensors; None for all kernels.
        starts: allocations that are tried first, names or instances, so that the search begins where they end.

    Raises:
        ValueError: a choice is empty or comes twice, or a bound is out of its range.

    Example:
        >>> Space(bounds={"conv*": (0.0, 0.8)}, criteria=["magnitude", "taylor"]).criteria
        (Magnitude(), Taylor())
    """

    kind: ClassVar[str] = "space"

    bounds: tuple[float, float] | Mapping[str, tuple[float, float]] = (0.0, 0.99)
    criteria: tuple[Any, ...] = ("magnitude",)
    patterns: tuple[Any, ...] = ("unstructured",)
    schedules: tuple[Schedule, ...] = (
        PolynomialDecay(0.0, 0.5, begin="10%", end="70%"),
        PolynomialDecay(0.0, 0.5, begin="0%", end="50%"),
        Cosine(0.0, 0.5, begin="10%", end="70%"),
    )
    scope: Scope | None = None
    starts: tuple[Any, ...] = ("uniform", "erk", "lamp")

    def __post_init__(self) -> None:
        bounds = keyed(self.bounds) if isinstance(self.bounds, Mapping) else {"": self.bounds}
        for key, pair in bounds.items():
            _check_bounds(f"Space: bounds{f' of {key!r}' if key else ''}", pair)
        check_scope("Space", self.scope)
        self._set("criteria", [resolve(one, Criterion) for one in _several(self.criteria)])  # type: ignore[type-abstract]
        self._set("patterns", [resolve_pattern(one) for one in _several(self.patterns)])
        self._set("schedules", [as_schedule("Space", one) for one in _several(self.schedules)])
        self._set("starts", [resolve_allocation(one) for one in _several(self.starts)], may_be_empty=True)
        for schedule in self.schedules:
            with_final(schedule, 0.5)

    def _set(self, name: str, values: Sequence[Any], *, may_be_empty: bool = False) -> None:
        labels = [str(value) for value in values]
        if not (values or may_be_empty) or len(set(labels)) < len(labels):
            raise ValueError(f"Space: {name} must be different choices, at least one. Received: {labels}")
        object.__setattr__(self, name, tuple(values))

    def bounds_of(self, path: str) -> tuple[float, float]:
        """Return the lowest and the highest sparsity of the tensor at a path."""
        if not isinstance(self.bounds, Mapping):
            return self.bounds
        return next((pair for key, pair in self.bounds.items() if fits(key, path)), (0.0, 0.99))

    def of(self, model: keras.Model, sparsity: float | None, *, trains: bool) -> ModelSpace:
        """Return the space for the tensors of a model.

        Args:
            model: built.
            sparsity: of all tensors together, a fraction in [0, 1); None where each is free within its bounds.
            trains: whether trials train, so that a schedule is chosen too.

        Raises:
            ValueError: a pattern does not divide a tensor, or the bounds leave no way to the sparsity.
        """
        return ModelSpace(self, model, sparsity, trains=trains)


class ModelSpace:
    """A space for the tensors of one model: trial -> strategy.

    Args:
        space: the choices.
        model: built; only its tensors are looked at, and for starts its weights.
        sparsity: of all tensors together, or None.
        trains: whether a schedule is chosen.

    Attributes:
        targets: the tensors, in the order of the model's weights.
        starts: parameters of trials to begin with.
    """

    def __init__(self, space: Space, model: keras.Model, sparsity: float | None, *, trains: bool) -> None:
        if sparsity is not None:
            check_fraction("study: sparsity", sparsity)
        self.space = space
        self.sparsity = sparsity
        self.targets = (space.scope or Scope()).survey(model).targets
        self._schedules = space.schedules if trains else ()
        paths = [target.path for target in self.targets]
        if isinstance(space.bounds, Mapping):
            check_keys("Space: bounds", [*keyed(space.bounds)], paths)
        self._bounds = [space.bounds_of(path) for path in paths]
        self._tensors = {str(pattern): self._in_units(pattern) for pattern in space.patterns}
        for tensors in self._tensors.values():
            shift_shares(tensors, [0.5] * len(tensors), self._bounds, sparsity)
        level = sparsity if sparsity is not None else 0.5
        self.starts = tuple(self._start(allocation, level) for allocation in space.starts)

    def __call__(self, trial: Any) -> PruningStrategy:
        """Return the strategy of a trial.

        Args:
            trial: an Optuna trial, or whatever has its `suggest_float` and `suggest_categorical`.
        """
        pattern = _choose(trial, "pattern", self.space.patterns)
        criterion = _choose(trial, "criterion", self.space.criteria)
        schedule = _choose(trial, "schedule", self._schedules) if self._schedules else None
        wanted = [
            trial.suggest_float(_parameter(target), low, high)
            for target, (low, high) in zip(self.targets, self._bounds, strict=True)
        ]
        tensors = self._tensors[str(pattern)]
        shares = shift_shares(tensors, wanted, self._bounds, self.sparsity)
        sparsity = self.sparsity
        if sparsity is None:
            sizes = [tensor.size for tensor in tensors]
            sparsity = sum(share * size for share, size in zip(shares, sizes, strict=True)) / sum(sizes)
        # A short path may be a part of a longer one, and the first key that fits counts.
        found = sorted(zip([t.path for t in tensors], shares, strict=True), key=lambda pair: -pair[0].count("/"))
        return PruningStrategy(
            sparsity,
            criterion,
            pattern,
            dict(found),
            None if schedule is None else with_final(schedule, sparsity),
            self.space.scope,
        )

    def _in_units(self, pattern: Pattern | ByPath) -> list[Scored]:
        """The tensors as their pattern divides them."""
        tensors = []
        for target in self.targets:
            own = pattern.at(target.path)
            shape = layout_for(target.layout, own).canonical_shape(tuple(target.variable.shape))
            check_shape(own, target.path, shape)
            size = own.weights_per_unit(shape)
            tensors.append(Scored(target.path, shape, np.zeros(0), size, own.limit(shape)))
        return tensors

    def _start(self, allocation: Allocation, sparsity: float) -> dict[str, Any]:
        """The parameters that give what an allocation gives, by the magnitude of single weights."""
        tensors = [Tensor(t.path, read(t.variable), None, t.layout, {}, t.index) for t in self.targets]
        recipe = Recipe(Magnitude(), resolve_pattern("unstructured"), allocation)
        masks = masks_at_sparsity(tensors, recipe, sparsity)
        shares = [1.0 - np.count_nonzero(mask) / mask.size for mask in masks]
        parameters = {
            _parameter(target): float(min(max(share, low), high))
            for target, share, (low, high) in zip(self.targets, shares, self._bounds, strict=True)
        }
        choices = {"pattern": self.space.patterns, "criterion": self.space.criteria, "schedule": self._schedules}
        return {**{name: str(values[0]) for name, values in choices.items() if len(values) > 1}, **parameters}


def _parameter(target: Target) -> str:
    """The name of a tensor's parameter: by its place, since names of layers change when a model is built again."""
    return f"sparsity_{target.index}"


def _choose(trial: Any, name: str, choices: Sequence[Any]) -> Any:
    if len(choices) == 1:
        return choices[0]
    labels = {str(choice): choice for choice in choices}
    return labels[trial.suggest_categorical(name, list(labels))]


def with_final(schedule: Schedule, sparsity: float) -> Schedule:
    """Return a schedule with another sparsity at its end.

    Raises:
        TypeError: it has no field for it.
    """
    name = next((field.name for field in dataclasses.fields(schedule) if field.name in FINAL), None)
    if name is None:
        raise TypeError(f"Space: a schedule must have a field of {FINAL}, its last sparsity. Received: {schedule}")
    first = {"initial_sparsity": 0.0} if getattr(schedule, "initial_sparsity", 0.0) > sparsity else {}
    return dataclasses.replace(schedule, **{name: sparsity}, **first)


def _several(value: Any) -> list[Any]:
    one = isinstance(value, str | Strategy | Mapping) or not isinstance(value, Sequence)
    return [value] if one else list(value)


def _check_bounds(subject: str, pair: Any) -> None:
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(end, int | float) for end in pair):
        raise TypeError(f"{subject} must be two fractions, the lowest and the highest sparsity. Received: {pair!r}")
    for end in pair:
        check_fraction(subject, end)
    if not pair[0] <= pair[1] or math.isnan(pair[0] + pair[1]):
        raise ValueError(f"{subject} must not fall. Received: {pair!r}")
