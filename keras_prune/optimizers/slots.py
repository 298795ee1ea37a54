"""What an optimizer keeps for each weight, its moments, and putting it back to where it begins."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.keras_seam import begin_of_slot, moved_by, slots_by_weight
from keras_prune.optimizers.averages import all_optimizers

__all__ = ["clear_momentum", "restart", "slots_of"]


def slots_of(optimizer: Any, weight: keras.Variable) -> list[tuple[keras.Variable, float]]:
    """Return the optimizer's variables of a weight's shape that follow it, each with the value at which it begins.

    A variable of another shape, such as Adafactor's means of rows, is not of single weights and is not among them.

    Args:
        optimizer: built; one that hands weights to others is looked through.
        weight: one of those that it moves, or not.
    """
    found = [slot for inner in getattr(optimizer, "optimizers", ()) for slot in slots_of(inner, weight)]
    known = moved_by(optimizer)
    place = next((i for i, variable in enumerate(known) if variable is weight), None)
    if place is None:
        return found
    for name, slots in slots_by_weight(optimizer, averages=False).items():
        slot = slots[place]
        if isinstance(slot, keras.Variable) and tuple(slot.shape) == tuple(weight.shape):
            found.append((slot, begin_of_slot(optimizer, name)))
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


def clear_momentum(optimizer: Any) -> None:
    """Put the momentum of every weight to 0: the mean of past gradients, not that of their squares.

    Args:
        optimizer: one that hands weights to others is looked through; one that keeps no momentum stays as it is.
    """
    for one in all_optimizers(optimizer):
        for name, slots in slots_by_weight(one, averages=False).items():
            # Adamax calls it m, as its paper does.
            if "momentum" in name or name == "_m":
                for slot in slots:
                    if isinstance(slot, keras.Variable):
                        slot.assign(ops.zeros_like(slot.value))
