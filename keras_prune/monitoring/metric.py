"""A number that says how good a model is: where it stands in the logs, and whether it should rise or fall."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from keras_prune.models.variables import given_back
from keras_prune.statistics.batches import Batches

__all__ = ["ROUNDING", "Metric", "Score", "check_mode", "evaluate_within", "value_of"]

MODES = ("auto", "max", "min")
ROUNDING = 1e-6
"""Metrics come in single precision: what is worse by no more than this is not worse."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric's name and direction.

    Attributes:
        name: its name in the logs.
        rises: whether more is better.

    Example:
        >>> Metric("loss", rises=False).loss_from(0.5, 0.75)
        0.25
    """

    name: str
    rises: bool

    def loss_from(self, reference: float, value: float) -> float:
        """Return how much worse `value` is than `reference`; negative if it is better."""
        return reference - value if self.rises else value - reference

    def is_within(self, tolerance: float, reference: float, value: float) -> bool:
        """Return whether `value` is worse than `reference` by no more than a tolerance; not a number never is.

        Example:
            >>> accuracy = Metric("accuracy", rises=True)
            >>> [accuracy.is_within(0.01, 0.9, value) for value in (0.95, 0.89, 0.88, float("nan"))]
            [True, True, False, False]
        """
        return math.isfinite(value) and self.loss_from(reference, value) <= tolerance + ROUNDING

    @classmethod
    def of(cls, owner: str, model: keras.Model, name: str, mode: str, value: float) -> Metric:
        """Find the direction as `keras.callbacks.EarlyStopping` does, once the model's metrics have been used.

        Raises:
            ValueError: the mode is unknown, or "auto" does not find the direction.
        """
        check_mode(owner, mode)
        if mode != "auto":
            return cls(name, mode == "max")
        stopping = keras.callbacks.EarlyStopping(monitor=name, patience=sys.maxsize)
        stopping.set_model(model)
        stopping.on_train_begin()
        try:
            stopping.on_epoch_end(0, {name: value})
        except ValueError as error:
            raise ValueError(
                f"{owner}: whether {name!r} should rise or fall is not known. Received: mode='auto'. "
                "Say mode='max' or mode='min'."
            ) from error
        return cls(name, stopping.monitor_op is ops.greater)


def check_mode(owner: str, mode: str) -> None:
    """Refuse a mode that Keras does not know."""
    if mode not in MODES:
        raise ValueError(f"{owner}: mode must be one of {MODES}. Received: {mode!r}")


def value_of(owner: str, logs: Mapping[str, Any], name: str) -> float:
    """Read a metric from logs.

    Raises:
        ValueError: it is not there; the message lists what is.
    """
    if name not in logs:
        hint = " Give fit(...) validation_data." if name.startswith("val_") else ""
        raise ValueError(f"{owner}: the metric must be one of the logs {sorted(logs)}. Received: {name!r}.{hint}")
    return float(logs[name])


class Score:
    """How good a model is, by a function, or by a metric that it is compiled with, on given data.

    Args:
        owner: who asks, for messages.
        evaluate: a function of the model; or data for `model.evaluate`: `(x, y)` or a data set; or `Batches`.
        metric: the name of a metric in what `evaluate` returns; None for the first one beside the loss.
        mode: "max", "min", or "auto" as Keras finds it; a function's value rises with "auto".
    """

    def __init__(self, owner: str, evaluate: Any, metric: str | None, mode: str) -> None:
        check_mode(owner, mode)
        self.owner = owner
        self.mode = mode
        self._function: Callable[[keras.Model], Any] | None = evaluate if callable(evaluate) else None
        self._data = evaluate
        self.metric: Metric | None = None
        if self._function is not None:
            self.metric = Metric(metric or str(getattr(evaluate, "__name__", "score")), mode != "min")
        self._name = metric

    def __call__(self, model: keras.Model) -> float:
        """Return the model's value."""
        if self._function is not None:
            return float(self._function(model))
        logs = _evaluate(model, self._data)
        if self._name is None:
            self._name = next((name for name in logs if name != "loss"), "loss")
        value = value_of(self.owner, logs, self._name)
        if self.metric is None:
            self.metric = Metric.of(self.owner, model, self._name, self.mode, value)
        return value


def _evaluate(model: keras.Model, data: Any) -> dict[str, Any]:
    """Return the logs of `model.evaluate` on `(x, y)`, `(x, y, sample_weight)`, a data set, or batches."""
    if isinstance(data, Batches):
        parts = ((b.x, b.y) if b.sample_weight is None else (b.x, b.y, b.sample_weight) for b in data)
        # Told how many there are, Keras does not warn that they come to an end.
        return dict(model.evaluate(parts, steps=data.count, verbose=0, return_dict=True))
    x, rest = (data[0], data[1:]) if isinstance(data, tuple) else (data, ())
    named = dict(zip(("y", "sample_weight"), rest, strict=False))
    return dict(model.evaluate(x, **named, verbose=0, return_dict=True))


def evaluate_within(model: keras.Model, data: Any) -> dict[str, Any]:
    """Evaluate in the middle of an epoch, whose running metrics go on as if it had not been."""
    with given_back(model.metrics_variables):
        logs = _evaluate(model, data)
    return {f"val_{name}": value for name, value in logs.items()}
