"""What taking out a unit costs, measured: one compiled evaluation that takes the unit's number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.statistics.batches import Batch, Batches
from keras_prune.statistics.evaluation import batch_loss, check_compiled
from keras_prune.structured.analysis.groups import Analysis

__all__ = ["ablate"]

Scores = npt.NDArray[np.float64]

NOBODY = -2
"""A number that no unit has, and no index that stays (-1)."""

BATCH = 256


def ablate(model: keras.Model, analysis: Analysis, units: Sequence[int] | npt.ArrayLike, data: Any) -> Scores:
    r"""Return $L(w \text{ without unit } u) - L(w)$ for each unit u alone, `[len(units)]`.

    L is the mean over the data of the loss that the model is compiled with, in inference mode, regularisers included.
    Without a unit means: all slices that it lies on (of kernels, biases and normalisations) are 0, which gives the
    outputs of the model that it is removed from (see `Analysis`; with `exact=False`, up to layer normalisations). A
    cost below 0 says that the data are answered better without.

    Nothing is assigned: the evaluation is a function of weights, compiled once, in which the weights of unit u are
    masked. So there is nothing to put back after an error or Ctrl-C. It runs once for each unit and batch.

    Args:
        model: compiled, and not changed.
        analysis: of the model.
        units: numbers of units.
        data: `(x, y)`, `(x, y, sample_weight)` or batches of it; walked once, arrays 256 samples at a time.

    Raises:
        ValueError: a number is no unit's, the model is not compiled, the loss cannot be computed on the data or is not
            finite with all units in place. A loss that overflows without a unit counts as the largest float32.

    Source: the oracle of Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient
    inference", section 2.2, with the sign kept.

    Example:
        >>> from keras_prune.structured import analyse
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dense(1)])
        >>> model.set_weights([np.eye(2), np.zeros(2), np.array([[3.0], [1.0]]), np.zeros(1)])
        >>> model.compile(loss="mse")
        >>> ablate(model, analyse(model), [0, 1], (np.ones((4, 2)), np.full((4, 1), 4.0)))
        array([9., 1.])
    """
    check_compiled(model)
    numbers = np.asarray(units, np.int64).reshape(-1)
    wrong = numbers[(numbers < 0) | (numbers >= analysis.size)]
    if wrong.size:
        raise ValueError(
            f"ablate: {model.name!r} has the units 0 to {analysis.size - 1}. Received: {wrong[:5].tolist()}"
        )
    loss_without = _evaluation(model, analysis)
    costs, samples = np.zeros(len(numbers)), 0
    for batch in Batches(data, model, labels=True, size=BATCH):
        whole = loss_without(NOBODY, batch)
        if not math.isfinite(whole):
            raise ValueError(
                f"The loss of {model.name!r} on the data must be finite. Received: {whole}. Look for NaN in data or "
                "weights."
            )
        costs += batch.size * (np.array([loss_without(unit, batch) for unit in numbers.tolist()]) - whole)
        samples += batch.size
    worst = float(np.finfo(np.float32).max)
    return np.nan_to_num(costs / samples, nan=worst, posinf=worst)


def _evaluation(model: keras.Model, analysis: Analysis) -> Callable[[int, Batch], float]:
    """(unit, batch) -> the loss without the unit."""
    slots: dict[int, list[tuple[int, npt.NDArray[np.int32]]]] = {}
    variables: dict[int, keras.Variable] = {}
    for slot in analysis.slots:
        if slot.variable is not None:
            variables[id(slot.variable)] = slot.variable
            slots.setdefault(id(slot.variable), []).append((slot.axis, slot.units.astype(np.int32)))

    def loss(values: list[Any], unit: Any, x: Any, y: Any, sample_weight: Any) -> Any:
        masked = []
        for (key, variable), value in zip(variables.items(), values, strict=True):
            for axis, places in slots[key]:
                shape = [-1 if i == axis else 1 for i in range(len(variable.shape))]
                stays = ops.reshape(ops.not_equal(ops.convert_to_tensor(places), unit), shape)
                value = ops.where(stays, value, ops.zeros_like(value))
            masked.append((variable, value))
        return batch_loss(model, Batch(x, y, sample_weight, 0), masked)

    compiled = loss if model.run_eagerly else _compile(loss)
    values = [ops.convert_to_tensor(variable.value) for variable in variables.values()]

    def loss_without(unit: int, batch: Batch) -> float:
        number = ops.convert_to_tensor(unit, dtype="int32")
        return float(compiled(values, number, batch.x, batch.y, batch.sample_weight))

    return loss_without


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False, reduce_retracing=True)
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function
