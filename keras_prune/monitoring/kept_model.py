"""A model as it was at the end of an epoch, kept beside it: in memory, and in every file that is saved of it."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np

from keras_prune.keras_seam import slots_by_weight
from keras_prune.masks.state import TrainingState
from keras_prune.models.variables import read
from keras_prune.optimizers.averages import all_optimizers
from keras_prune.optimizers.clock import synchronise
from keras_prune.optimizers.finding import optimizers_of

__all__ = ["KeptModel"]


class KeptModel:
    """A copy of a model's masks and weights and, on request, of what its optimizers keep of each weight.

    It stands among the arrays of the model's state, so that whatever saves the model saves it too. Counters of steps,
    learning rates and random states are no part of it: time goes on, and the callbacks that set a rate own it.

    Args:
        model: built.
        name: tells the copy from others of the model, in files.
        moments: whether moments, averages and accumulators of the optimizers that the model holds are kept, too.
    """

    def __init__(self, model: keras.Model, name: str, *, moments: bool = False) -> None:
        self._model = model
        self._prefix = f"{name}:"
        self._moments = moments

    def keep(self, masks: Mapping[str, keras.Variable]) -> None:
        """Take a copy of the model as it is now, in the place of the one before.

        Args:
            masks: what belongs with the weights, by its key in the model's state.
        """
        synchronise(self._model)
        arrays = TrainingState.of(self._model).arrays
        for key, variable in self._held(masks).items():
            value = read(variable)
            # Files know no half precision of other makers than NumPy.
            arrays[key] = np.array(value, value.dtype if value.dtype.kind in "biuf" else np.float32)

    def put_back(self, masks: Mapping[str, keras.Variable]) -> None:
        """Give the model what was kept: masks first, for the weights are then what these let pass."""
        state = TrainingState.of(self._model)
        for key, variable in self._held(masks).items():
            if key in state.arrays:
                variable.assign(state.arrays[key])
        for owner in state.owners:
            owner.recount()

    def drop(self) -> None:
        """Forget the copy, and all else that is kept under its name."""
        arrays = TrainingState.of(self._model).arrays
        for key in [key for key in arrays if key.startswith(self._prefix)]:
            del arrays[key]

    def _held(self, masks: Mapping[str, keras.Variable]) -> dict[str, keras.Variable]:
        weights = {str(i): variable for i, variable in enumerate(self._model.weights)}
        return {f"{self._prefix}{key}": variable for key, variable in {**masks, **weights, **self._slots()}.items()}

    def _slots(self) -> dict[str, keras.Variable]:
        """Return what the optimizers keep of single weights; another optimizer has other names."""
        optimizers = [one for found in optimizers_of(self._model) for one in all_optimizers(found)]
        return {
            f"{number}:{type(optimizer).__name__}:{name}:{i}": slot
            for number, optimizer in enumerate(optimizers if self._moments else ())
            for name, slots in slots_by_weight(optimizer, averages=True).items()
            for i, slot in enumerate(slots)
            if isinstance(slot, keras.Variable)
        }
