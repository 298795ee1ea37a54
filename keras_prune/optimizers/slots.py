"""What an optimizer keeps for each weight, its moments, and putting it back to where it begins."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

__all__ = ["restart", "slots_of"]

NO_SLOTS = ("_trainable_variables", "_variables", "_model_variables_moving_average")
"""Lists of an optimizer that may be as long as that of its weights, and hold no state of its steps."""


def slots_of(optimizer: Any, weight: keras.Variable) -> list[tuple[keras.Variable, float]]:
    """Return the optimizer's variables of a weight's shape that follow it, each with the value at which it begins.

    A variable of another shape, such as Adafactor's means of rows, is not of single weights and is not among them.

    Args:
        optimizer: built; one that hands weights to others is looked through.
        weight: one of those that it moves, or not.
    """
    found = [slot for inner in getattr(optimizer, "optimizers", ()) for slot in slots_of(inner, weight)]
    known = optimizer._trainable_variables
    place = next((i for i, variable in enumerate(known) if variable is weight), None)
    if place is None:
        return found
    for name, value in vars(optimizer).items():
        if not isinstance(value, list) or name in NO_SLOTS or len(value) != len(known):
            continue
        slot = value[place]
        if isinstance(slot, keras.Variable) and tuple(slot.shape) == tuple(weight.shape):
            # Adagrad and Ftrl begin above 0, so as not to divide by it.
            begins = getattr(optimizer, "initial_accumulator_value", 0.0) if name == "_accumulators" else 0.0
            found.append((slot, float(begins)))
    return found


def restart(optimizer: Any, weight: keras.Variable, places: npt.NDArray[np.bool_]) -> None:
    """Put the optimizer's state of single weights back to where it begins.

    Args:
        optimizer: as for `slots_of`.
        weight: the variable.
        places: True where it is to be done, of the weight's shape.
    """
    for slot, begins in slots_of(optimizer, weight):
        value = ops.convert_to_tensor(slot.value)
        slot.assign(ops.where(ops.convert_to_tensor(places), ops.cast(begins, value.dtype), value))
