"""What a search looks for: numbers that a pruned model has, each to be high or low."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_prune.models.variables import read
from keras_prune.monitoring.metric import Score
from keras_prune.structured.analysis.groups import analyse
from keras_prune.structured.counting.counting import count
from keras_prune.structured.planning.latency import find_measure
from keras_prune.trials.working_copy import WorkingCopy

__all__ = ["NAMES", "Measured", "Objective", "count_macs", "nonzero_bytes", "resolve_objectives"]

NAMES = ("metric", "bytes", "macs", "latency")
"""The objectives that have names."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective of your own: a function of the pruned model, as `keras_prune.strip` gives it.

    Args:
        function: plain Keras model -> number.
        mode: "min" or "max", what is better.
        name: in tables and plots; None for the function's own name.

    Raises:
        ValueError: the mode is unknown. TypeError: no function.

    Example:
        >>> Objective(lambda model: model.count_params(), name="parameters").name
        'parameters'
    """

    function: Callable[[keras.Model], Any]
    mode: str = "min"
    name: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"Objective: function must take a model and give a number. Received: {self.function!r}")
        if self.mode not in ("min", "max"):
            raise ValueError(f"Objective: mode must be 'min' or 'max'. Received: {self.mode!r}")
        if self.name is None:
            object.__setattr__(self, "name", getattr(self.function, "__name__", type(self.function).__name__))


@dataclasses.dataclass(frozen=True)
class Measured:
    """An objective as a search measures it.

    Attributes:
        name: in tables.
        rises: whether more is better.
        of: takes the pruned working copy and gives the number.
        is_metric: whether it is the metric of the validation.
    """

    name: str
    rises: bool
    of: Callable[[WorkingCopy], float]
    is_metric: bool = False


def resolve_objectives(objectives: Any, copy: WorkingCopy, score: Score, data: Any) -> list[Measured]:
    """Return what a study measures.

    Args:
        objectives: one or several: names of `NAMES`, functions of a model (whose result should be low), or `Objective`.
        copy: of the dense model; it is measured once, so that a metric's direction is known and latency has a first.
        score: gives the metric.
        data: inputs for the measurement of latency.

    Raises:
        ValueError: a name is unknown or comes twice, or a model's multiplications cannot be counted.
        TypeError: it is none of these.
    """
    several = isinstance(objectives, Sequence) and not isinstance(objectives, str)
    given = list(objectives) if several else [objectives]
    if not given:
        raise ValueError(
            f"study: objectives must have at least one of {NAMES}, or a function. Received: {objectives!r}"
        )
    found = [_measured(one, copy, score, data) for one in given]
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"study: each objective needs a name of its own. Received: {twice} twice. See Objective(name=)."
        )
    return found


def _measured(given: Any, copy: WorkingCopy, score: Score, data: Any) -> Measured:
    if given == "metric":
        score(copy.model)
        assert score.metric is not None  # known once it was measured
        return Measured(score.metric.name, score.metric.rises, lambda copy: score(copy.model), is_metric=True)
    if given == "bytes":
        return Measured("bytes", False, lambda copy: float(nonzero_bytes(copy.model)))
    if given == "macs":
        return Measured("macs", False, count_macs(copy.model))
    if given == "latency":
        measure = find_measure(copy.model, data)
        measure(copy.plain())
        return Measured("latency", False, lambda copy: float(measure(copy.plain())))
    if isinstance(given, Objective):
        name, function = str(given.name), given.function
        return Measured(name, given.mode == "max", lambda copy: float(function(copy.plain())))
    if isinstance(given, str):
        raise ValueError(f"study: an objective is one of {NAMES}, a function, or an Objective. Received: {given!r}")
    if callable(given):
        return _measured(Objective(given), copy, score, data)
    raise TypeError(f"study: an objective is one of {NAMES}, a function, or an Objective. Received: {given!r}")


def nonzero_bytes(model: keras.Model) -> int:
    """Return the bytes of a model's weights that are not zero: values alone, without a word on where they are.

    Args:
        model: built; all its weights count, biases and statistics too.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_initializer="ones")])
        >>> nonzero_bytes(model)
        48
    """
    weights = [read(variable) for variable in model.weights]
    return sum(int(np.count_nonzero(weight)) * weight.dtype.itemsize for weight in weights)


def count_macs(model: keras.Model) -> Callable[[WorkingCopy], float]:
    """Return a function that counts the multiplications by weights that are not zero, for one sample.

    The multiplications of a call with a kernel count in proportion to the kernel's weights that are not zero; those
    between tensors (attention) count in full.

    Args:
        model: whose calls are counted; the function takes a copy that holds this very model.

    Raises:
        ValueError: the multiplications of a call are not known.
    """
    unknown = count(model).not_counted
    if unknown:
        listed = "; ".join(f"{one.path}: {one.reason}" for one in unknown)
        raise ValueError(
            f"study: objective 'macs' cannot be counted for {model.name!r}: {listed}. Give a function of the model."
        )
    rows = []
    for _, cost in analyse(model).costs:
        widths = [part[0].shape[part[1]] if isinstance(part, tuple) else len(part) for part in cost.parts]
        kernels = {id(part[0]): part[0] for part in cost.parts if isinstance(part, tuple)}
        rows.append((cost.factor * float(np.prod(widths)), tuple(kernels.values())))

    def macs(copy: WorkingCopy) -> float:
        return float(sum(full * np.prod([_density(kernel) for kernel in kernels]) for full, kernels in rows))

    return macs


def _density(kernel: keras.Variable) -> float:
    weight = read(kernel)
    return np.count_nonzero(weight) / weight.size
