"""What a trial prunes with: one choice of everything, as a value, as a callback and as code."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras.saving import register_keras_serializable

from keras_prune.allocation import Allocation
from keras_prune.criteria import Criterion
from keras_prune.masks.recipe import resolve_recipe
from keras_prune.oneshot import prune
from keras_prune.patterns import ByPath, Pattern
from keras_prune.schedules import Schedule
from keras_prune.schedules.decays import as_schedule
from keras_prune.scope import Scope, check_scope
from keras_prune.strategy import FROM_TRAINING, ONLY_FROM_TRAINING, Strategy, check_fraction
from keras_prune.training.callbacks import Pruning

__all__ = ["PruningStrategy"]


@register_keras_serializable(package="keras_prune")
@dataclasses.dataclass(frozen=True)
class PruningStrategy(Strategy):
    """One way to prune a model: how much, by what, where and when.

    Args:
        sparsity: of all tensors in scope together, a fraction in [0, 1).
        criterion: a name or an instance, as for `Pruning`; likewise the next two.
        pattern: where zeros may fall.
        allocation: how much of each tensor; a mapping of paths to sparsities gives each its own.
        schedule: when, in training; None for the one that `Pruning` makes of a number.
        scope: which tensors; None for all kernels.

    Raises:
        ValueError: a name is unknown, or a number out of its range.

    Example:
        >>> found = PruningStrategy(0.75, allocation={"a": 0.5, "b": 0.9})
        >>> layers = [keras.layers.Dense(20, name="a"), keras.layers.Dense(20, name="b")]
        >>> model = found.prune(keras.Sequential([keras.Input((10,)), *layers]))
        >>> [int((layer.kernel.numpy() == 0).sum()) for layer in model.layers]
        [100, 360]
        >>> found.callback()
        Pruning(PolynomialDecay(...), Magnitude(), Unstructured(), Explicit(targets={'a': 0.5, 'b': 0.9}))
    """

    kind: ClassVar[str] = "pruning strategy"

    sparsity: float
    criterion: Criterion | str = "magnitude"
    pattern: Pattern | ByPath | str | Mapping[str, Any] = "unstructured"
    allocation: Allocation | str | Mapping[str, float] = "global"
    schedule: Schedule | None = None
    scope: Scope | None = None

    def __post_init__(self) -> None:
        check_fraction("PruningStrategy: sparsity", self.sparsity)
        object.__setattr__(self, "sparsity", float(self.sparsity))
        check_scope("PruningStrategy", self.scope)
        recipe = resolve_recipe(self.criterion, self.pattern, self.allocation, default="global")
        for name in ("criterion", "pattern", "allocation"):
            object.__setattr__(self, name, getattr(recipe, name))
        if isinstance(self.schedule, numbers.Real):
            raise TypeError(f"PruningStrategy: schedule must be a Schedule, or None. Received: {self.schedule!r}")
        if self.schedule is not None:
            as_schedule("PruningStrategy", self.schedule)

    def callback(self, data: Any = None) -> Pruning:
        """Return a callback that prunes so while `fit` trains.

        Args:
            data: for a criterion that takes what training does not give, such as the inputs of layers.
        """
        schedule = self.sparsity if self.schedule is None else self.schedule
        criterion = self.criterion_on(data, training=True)
        return Pruning(schedule, criterion, self.pattern, self.allocation, scope=self.scope)

    def prune(self, model: keras.Model, data: Any = None, *, reconstruct: Any = None) -> keras.Model:
        """Prune a model so at once, in place, and return it.

        Args:
            model: as for `keras_prune.prune`; likewise `reconstruct`.
            data: for a criterion that takes data and has none of its own.
            reconstruct: inputs on which kept weights are solved again, or None.
        """
        criterion = self.criterion_on(data, training=False)
        return prune(
            model, self.sparsity, criterion, self.pattern, self.allocation, scope=self.scope, reconstruct=reconstruct
        )

    def criterion_on(self, data: Any, *, training: bool) -> Criterion:
        """Return the criterion with the data that it needs: in training, only for what training does not give.

        Args:
            data: for a criterion that takes data and has none of its own.
            training: whether there is a training that gives some statistics.
        """
        assert isinstance(self.criterion, Criterion)  # since it was made
        given = FROM_TRAINING if training else ONLY_FROM_TRAINING
        return self.criterion if set(self.criterion.needs) <= given else self.criterion.on(data)
