"""What a model is worth with one tensor at a time pruned: what sensitivity curves are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.scope import Target
from keras_prune.statistics.batches import Batches
from keras_prune.statistics.evaluation import batch_loss, check_compiled

__all__ = ["Measure", "finite", "loss", "mean_loss", "sensitivity_curves", "values_alone"]

Weights = Sequence[tuple[keras.Variable, Any]]
Measure = Callable[[Weights], float]
"""Values in the place of some variables' own -> what the model is worth with them; it is left as it was."""
MasksAt = Callable[[int, float], npt.NDArray[np.bool_]]
"""Index of a target and sparsity -> mask of the variable's shape, True where kept."""


def loss(model: keras.Model, data: Any) -> float:
    """Return the mean loss over the samples of `data`, in inference mode; the model stays as it is.

    Args:
        model: compiled.
        data: `(x, y)`, `(x, y, sample_weight)` or batches of it; arrays are taken 256 samples at a time.
    """
    return mean_loss(model, data)(())


def mean_loss(model: keras.Model, data: Any) -> Measure:
    """Return what measures the mean loss over the samples of `data`, in inference mode.

    Args:
        model: compiled.
        data: as for `loss`.
    """
    check_compiled(model)
    batches = Batches(data, model, labels=True, size=256)

    def measure(weights: Weights) -> float:
        total, samples = 0.0, 0
        for batch in batches:
            total += float(batch_loss(model, batch, weights)) * batch.size
            samples += batch.size
        return total / samples

    return measure


def values_alone(
    targets: Sequence[Target], masks_at: MasksAt, points: Sequence[float], measure: Measure
) -> Iterator[tuple[int, float, float]]:
    """Yield for each target and sparsity what the model is worth with this tensor alone pruned.

    Where a mask is that of the point before, the value is, too.

    Args:
        targets: the tensors.
        masks_at: gives the masks.
        points: sparsities, increasing fractions in (0, 1).
        measure: says what the model is worth.

    Returns:
        The target's index, the share of its weights that are off, and the value.
    """
    for index, target in enumerate(targets):
        weight = ops.convert_to_tensor(target.variable.value)
        before: npt.NDArray[np.bool_] | None = None
        value = math.nan
        for point in points:
            mask = np.asarray(masks_at(index, point), dtype=bool)
            if mask.shape != tuple(target.variable.shape):
                raise ValueError(
                    f"The mask of {target.path!r} must have the shape {tuple(target.variable.shape)}. "
                    f"Received: {mask.shape}"
                )
            if before is None or not np.array_equal(mask, before):
                pruned = ops.where(ops.convert_to_tensor(mask), weight, ops.zeros_like(weight))
                value = measure([(target.variable, pruned)])
            before = mask
            yield index, (mask.size - int(np.count_nonzero(mask))) / mask.size, value


def sensitivity_curves(
    model: keras.Model, targets: Sequence[Target], masks_at: MasksAt, points: Sequence[float], data: Any
) -> list[tuple[tuple[float, float], ...]]:
    r"""Measure $L(w \odot m_l(s)) - L(w)$ for each tensor l pruned alone to each sparsity s.

    Args:
        model: compiled; it stays as it is.
        targets: the tensors.
        masks_at: gives the masks.
        points: sparsities, increasing fractions in (0, 1).
        data: `(x, y)` or batches of it. Cost: one evaluation a target and point.

    Returns:
        For each target, pairs of (sparsity, loss increase): `allocation.Scored.curve`.
    """
    measure = mean_loss(model, data)
    whole = finite(model, "loss", measure(()))
    rises = [value - whole for _, _, value in values_alone(targets, masks_at, points, measure)]
    # A loss that overflows is worse than any other, which a finite curve can still say.
    rises = [rise if math.isfinite(rise) else float(np.finfo(np.float32).max) for rise in rises]
    number = len(points)
    return [
        tuple((float(point), rise) for point, rise in zip(points, rises[i * number : (i + 1) * number], strict=True))
        for i in range(len(targets))
    ]


def finite(model: keras.Model, name: str, value: float) -> float:
    """Return what a model is worth; refuse it if it is not finite.

    Args:
        model: for the message.
        name: of the value.
        value: of the model as it is.
    """
    if not math.isfinite(value):
        raise ValueError(
            f"The {name} of {model.name!r} on the data must be finite. Received: {value}. Look for NaN in data or "
            "weights."
        )
    return value
