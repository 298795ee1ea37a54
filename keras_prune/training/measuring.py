"""What strategies declare that they need, measured: statistics of gradients and inputs, and curves of the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune import statistics
from keras_prune.allocation import Uniform
from keras_prune.in_step.gradient_sums import TrainingSums
from keras_prune.masks.recipe import Recipe
from keras_prune.masks.state import TrainingState
from keras_prune.masks.update import Tensor, highest_sparsity, masks_at_sparsity
from keras_prune.scope import Target
from keras_prune.strategy import Measuring

__all__ = ["Curve", "Measurements", "alone", "measure_curves", "with_curves"]

MaskArray = npt.NDArray[np.bool_]
Curve = tuple[tuple[float, float], ...]


def measure_curves(
    model: keras.Model, targets: Sequence[Target], tensors: Sequence[Tensor], recipe: Recipe
) -> list[Curve]:
    """Return each tensor's curve: the rise of the loss at each of the allocation's points; the model stays as it was.

    A point above what a tensor's pattern can give, or that would empty it, is measured at the most that is possible.
    Without data the curves are empty.
    """
    allocation = recipe.allocation
    if allocation.data is None:
        return [()] * len(tensors)
    masks_alone, most = alone(tensors, recipe)
    curves = statistics.sensitivity_curves(model, targets, masks_alone, allocation.points, allocation.data)
    return [
        tuple({min(sparsity, top): rise for sparsity, rise in curve}.items())
        for top, curve in zip(most, curves, strict=True)
    ]


def alone(tensors: Sequence[Tensor], recipe: Recipe) -> tuple[Callable[[int, float], MaskArray], list[float]]:
    """Return what gives the mask of each tensor pruned alone, and the highest sparsity that each can have.

    Args:
        tensors: the first argument of what is returned counts them; a sparsity that one cannot have gives its highest.
        recipe: its allocation does not matter.
    """
    recipe = Recipe(recipe.criterion, recipe.pattern, Uniform())
    most = [highest_sparsity(tensor, recipe) for tensor in tensors]

    def mask_alone(index: int, sparsity: float) -> MaskArray:
        return masks_at_sparsity([tensors[index]], recipe, min(sparsity, most[index]))[0]

    return mask_alone, most


def with_curves(tensors: Sequence[Tensor], curves: Sequence[Curve]) -> list[Tensor]:
    """Return the tensors, each with its curve."""
    return [dataclasses.replace(tensor, curve=curve) for tensor, curve in zip(tensors, curves, strict=True)]


class Measurements:
    """What the strategies of one training are given at each update of the masks.

    Args:
        owner: the callback's name, for messages.
        model: what is trained.
        targets: the tensors that are pruned.
        recipe: the strategies.
        state: of the model; it keeps sums of gradients and curves.

    Attributes:
        sums: of the gradients of training; None if nothing is taken from training.
    """

    def __init__(
        self, owner: str, model: keras.Model, targets: Sequence[Target], recipe: Recipe, state: TrainingState
    ) -> None:
        self._owner = owner
        self._model = model
        self._targets = targets
        self._recipe = recipe
        self._state = state
        kinds = recipe.criterion.from_training
        if recipe.growth is not None:
            kinds |= recipe.growth.from_training
        self.sums = TrainingSums(state, targets, kinds) if kinds else None

    def statistics_for(self, strategy: Measuring | None, step: int) -> list[dict[str, Any]]:
        """Return for each target the statistics that a criterion or a growth needs, from training and from data.

        Args:
            strategy: None needs nothing.
            step: optimizer steps done, for messages.

        Raises:
            ValueError: they come from training, and no gradient was seen yet.
        """
        gathered: list[dict[str, Any]] = [{} for _ in self._targets]
        if strategy is None:
            return gathered
        if strategy.from_training and self.sums is not None:
            if self.sums.steps == 0:
                way_out = f", or give the {strategy.kind} data=(x, y)" * strategy.takes_data
                raise ValueError(
                    f"{self._owner} has seen no gradients at step {step}, and takes them from training. "
                    f"Begin the schedule at step 1 or later{way_out}."
                )
            gathered = self.sums.read(strategy.from_training)
        if strategy.from_data:
            more = statistics.collect(self._model, self._targets, strategy.from_data, strategy.data)
            for values, others in zip(gathered, more, strict=True):
                values.update(others)
        return gathered

    def with_curves(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors, with their curves if the allocation needs some; those are measured once and saved."""
        if not self._recipe.allocation.needs_curves:
            return list(tensors)
        names = [f"curve:{target.index}" for target in self._targets]
        if not all(name in self._state.arrays for name in names):
            curves = measure_curves(self._model, self._targets, tensors, self._recipe)
            if self._recipe.allocation.data is None:
                return with_curves(tensors, curves)
            for name, curve in zip(names, curves, strict=True):
                self._state.arrays[name] = np.array(curve, dtype=np.float64)
        kept = [self._state.arrays[name] for name in names]
        return with_curves(tensors, [tuple((float(s), float(loss)) for s, loss in curve) for curve in kept])
