"""Which outputs are scores of classes, so that the place of the largest is an answer.

Agreement in the largest value means something there, and nothing elsewhere: of two landmarks that are off by a tenth of
the picture, the largest coordinate is the same one. An output [samples, scores] is taken for scores of classes where

1. the model was compiled with a loss over classes for it, such as `SparseCategoricalCrossentropy`, or, with a loss that
   is none of Keras's, with a metric over classes;
2. nothing is known of its loss, and each row is a distribution: not negative and 1 in sum, or the logarithm of one.

An output with another loss of Keras, such as `MeanSquaredError` or `BinaryCrossentropy`, never is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_prune.keras_seam import metrics_given

__all__ = ["SUM_TOLERANCE", "Compiled", "are_distributions"]

SUM_TOLERANCE = 1e-3
"""By which the sum of a distribution may differ from 1: of thousands of classes in float32."""


@dataclass(frozen=True)
class Compiled:
    """What a model was compiled with.

    Args:
        loss: as `model.compile` takes it, or its configuration in a file: one for all outputs, a list, or a dictionary.
        metrics: likewise.
        names: of the layers of the outputs, where they are known: a dictionary may be keyed by them.
    """

    loss: Any = None
    metrics: Any = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Any) -> Compiled:
        """Return what a model in memory was compiled with; nothing, for an object that is no Keras model.

        Example:
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
            >>> model.compile(loss="mse")
            >>> Compiled.of(model).classes(["output_0"])
            (False,)
        """
        metrics = metrics_given(model)
        return cls(getattr(model, "loss", None), metrics, tuple(getattr(model, "output_names", None) or ()))

    def classes(self, outputs: Sequence[str]) -> tuple[bool | None, ...]:
        """Return for each output whether it holds scores of classes; None where nothing says so.

        Args:
            outputs: their names, in the order of `keras.tree.flatten`.
        """
        losses, metrics = self._for_outputs(self.loss, outputs), self._for_outputs(self.metrics, outputs)
        return tuple(_holds_classes(loss, metric) for loss, metric in zip(losses, metrics, strict=True))

    def _for_outputs(self, chosen: Any, outputs: Sequence[str]) -> list[Any]:
        if isinstance(chosen, Mapping) and "class_name" not in chosen:
            layers = self.names if len(self.names) == len(outputs) else outputs
            return [chosen.get(name, chosen.get(layer)) for name, layer in zip(outputs, layers, strict=True)]
        if isinstance(chosen, (list, tuple)) and len(chosen) == len(outputs) > 1:
            return list(chosen)
        return [chosen] * len(outputs)


def are_distributions(output: NDArray[Any]) -> bool:
    """Return whether each row of an output is a distribution over more than one class, or the logarithm of one.

    Args:
        output: [samples, scores].

    Example:
        >>> are_distributions(np.array([[0.25, 0.75]])), are_distributions(np.array([[20.0, 44.0]]))
        (True, False)
    """
    if output.ndim != 2 or output.shape[1] < 2 or output.dtype.kind != "f" or not np.isfinite(output).all():
        return False
    values = output.astype(np.float64)
    if (values < 0).all():  # exp of what is positive may overflow
        values = np.exp(values)
    return bool((values >= 0).all() and (np.abs(values.sum(1) - 1) <= SUM_TOLERANCE).all())


def _holds_classes(loss: Any, metrics: Any) -> bool | None:
    name = next(_names(loss), None)
    if name is None:
        return None
    if "categorical" in name:
        return True
    if name in _KERAS_LOSSES:
        return False
    return True if any("categorical" in metric for metric in _names(metrics)) else None


def _names(chosen: Any) -> Iterator[str]:
    """Yield the names of losses or metrics, in small letters without underscores."""
    if isinstance(chosen, (list, tuple)):
        for each in chosen:
            yield from _names(each)
    elif isinstance(chosen, Mapping):  # the configuration of an object, or of a function
        yield from _names(chosen["config"] if isinstance(chosen.get("config"), str) else chosen.get("class_name"))
    elif chosen is not None:
        wrapped = getattr(chosen, "fn", chosen)  # LossFunctionWrapper, MeanMetricWrapper
        name = chosen if isinstance(chosen, str) else getattr(wrapped, "__name__", type(chosen).__name__)
        yield name.replace("_", "").lower()


_KERAS_LOSSES = {name.replace("_", "").lower() for name in dir(keras.losses) if not name.startswith("_")} - {
    "kldivergence"  # of any distributions
} | {"mse", "mae", "mape", "msle"}
"""Names of Keras's losses; those over classes are told by "categorical"."""
