"""A copy of a model on which one strategy after another is tried, each from the same weights."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_prune.masks.bound import release
from keras_prune.masks.state import TrainingState
from keras_prune.models.variables import assign, read
from keras_prune.optimizers.compiling import compile_like
from keras_prune.strip import strip

__all__ = ["WorkingCopy"]


class WorkingCopy:
    """A plain copy of a model, whose weights and training state can be had as they were at the beginning.

    Args:
        model: built; it is never touched.
        trains: whether trials train the copy, so that each needs an optimizer that has done nothing.

    Attributes:
        model: the copy.

    Raises:
        ValueError: the model cannot be copied, or the copy has to be trained and cannot be compiled.

    Example:
        >>> import keras_prune as kp
        >>> copy = WorkingCopy(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
        >>> kp.report(kp.prune(copy.model, 0.5)).sparsity
        0.5
        >>> copy.restore()
        >>> kp.report(copy.model).sparsity
        0.0
    """

    def __init__(self, model: keras.Model, *, trains: bool = False) -> None:
        self._source = model
        self._trains = trains
        self.model = strip(model)
        self._weights = [(variable, np.array(read(variable))) for variable in self.model.variables]
        self._plain: keras.Model | None = None
        if trains and not self.model.compiled:
            raise ValueError(
                f"study: trials that train need a compiled model, whose settings can be copied. Received: "
                f"{model.name!r}, whose copy is not compiled. Compile it with a loss and metrics that Keras can "
                "serialize (names, or registered functions), or search without training: epochs=0."
            )

    def restore(self) -> None:
        """Put back the weights, take the masks off, and forget what training left."""
        self._plain = None
        state = TrainingState.held_by(self.model)
        if state is not None:
            for run in list(state.runs):
                run.abandon()
            for variable in self.model.weights:
                release(variable)
            state.forget()
        for variable, value in self._weights:
            assign(variable, value)
        if self._trains:
            if state is not None:
                del self.model._pruning_state
            pairs = list(zip(self._source.weights, self.model.weights, strict=False))
            compile_like("study", self._source, self.model, pairs)
        self.model.stop_training = False

    def plain(self) -> keras.Model:
        """Return the model without masks, as it is now; the same one until weights are restored."""
        if self._plain is None:
            self._plain = strip(self.model)
        return self._plain

    def fit(self, data: Any, options: dict[str, Any]) -> None:
        """Train the copy.

        Args:
            data: `(x, y)`, `(x, y, sample_weight)`, or a data set.
            options: of `fit`.
        """
        x, rest = (data[0], data[1:]) if isinstance(data, tuple) else (data, ())
        named = dict(zip(("y", "sample_weight"), rest, strict=False))
        self.model.fit(x, **named, **options)
