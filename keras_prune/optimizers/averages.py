"""The averages of weights that an optimizer keeps (`use_ema=True`): where they are, and which optimizer is at work.

Keras puts averages in the place of the weights for validation (`SwapEMAWeights`), every so many steps
(`ema_overwrite_frequency`) and at the end of `fit`, past every constraint. So a mask has to hold for them too.
"""

from __future__ import annotations

from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.optimizers.base_optimizer import BaseOptimizer

__all__ = ["all_optimizers", "average_of", "averages_of", "optimizer_at_work"]


def all_optimizers(optimizer: Any) -> list[Any]:
    """Return an optimizer and all that it hands gradients on to."""
    if optimizer is None:
        return []
    inner = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", ())]
    return [optimizer, *(found for one in inner for found in all_optimizers(one))]


def averages_of(optimizer: Any, variable: keras.Variable) -> list[keras.Variable]:
    """Return the averages of a weight that an optimizer, or one inside it, keeps; it may not be built yet, or None."""
    found = [average_of(one, variable) for one in all_optimizers(optimizer)]
    return [average for average in found if average is not None]


def average_of(optimizer: Any, variable: keras.Variable) -> keras.Variable | None:
    """Return the average of a weight that this optimizer keeps, or None.

    Example:
        >>> layer = keras.layers.Dense(1, use_bias=False)
        >>> layer.build((None, 2))
        >>> optimizer = keras.optimizers.SGD(use_ema=True)
        >>> optimizer.build([layer.kernel])
        >>> tuple(average_of(optimizer, layer.kernel).shape)
        (2, 1)
    """
    averages = getattr(optimizer, "_model_variables_moving_average", None)
    if not averages:
        return None
    place = optimizer._trainable_variables_indices.get(optimizer._var_key(variable))
    return None if place is None else averages[place]


def optimizer_at_work() -> Any:
    """Return the optimizer in whose `apply` this is called, traced or not; None outside of every optimizer's step.

    A constraint is called there and is told no more than the weight: the model may be part of a larger one that is
    trained, and may be compiled anew at any time.
    """
    # Keras enters a name scope of its own for whatever makes variables.
    scopes = global_state.get_global_attribute("name_scope_stack") or []
    return scopes[-1].caller if scopes and isinstance(scopes[-1].caller, BaseOptimizer) else None
