"""How the loss rises when one tensor alone is pruned: what an allocation with `needs_curves` goes by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import numpy.typing as npt

from keras_prune import statistics
from keras_prune.allocation import Uniform
from keras_prune.masks.recipe import Recipe
from keras_prune.masks.update import Tensor, masks_at_sparsity
from keras_prune.scope import Target

__all__ = ["Curve", "measure_curves", "with_curves"]

MaskArray = npt.NDArray[np.bool_]
Curve = tuple[tuple[float, float], ...]


def measure_curves(
    model: keras.Model, targets: Sequence[Target], tensors: Sequence[Tensor], recipe: Recipe
) -> list[Curve]:
    """Return each tensor's curve: the rise of the loss at each of the allocation's points; the model stays as it was.

    Without data the curves are empty.
    """
    allocation = recipe.allocation
    if allocation.data is None:
        return [()] * len(tensors)
    alone = Recipe(recipe.criterion, recipe.pattern, Uniform())

    def mask_alone(index: int, sparsity: float) -> MaskArray:
        return masks_at_sparsity([tensors[index]], alone, sparsity)[0]

    return statistics.sensitivity_curves(model, targets, mask_alone, allocation.points, allocation.data)


def with_curves(tensors: Sequence[Tensor], curves: Sequence[Curve]) -> list[Tensor]:
    """Return the tensors, each with its curve."""
    return [dataclasses.replace(tensor, curve=curve) for tensor, curve in zip(tensors, curves, strict=True)]
