"""The averages of weights that an optimizer keeps (`use_ema=True`): where they are, and which optimizer is at work.

Keras puts averages in the place of the weights for validation (`SwapEMAWeights`), every so many steps
(`ema_overwrite_frequency`) and at the end of `fit`, past every constraint. So a mask has to hold for them too.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_prune.keras_seam import average_of

__all__ = ["all_optimizers", "averages_of"]


def all_optimizers(optimizer: Any) -> list[Any]:
    """Return an optimizer and all optimizers that it passes gradients on to."""
    if optimizer is None:
        return []
    inner = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", ())]
    return [optimizer, *(found for one in inner for found in all_optimizers(one))]


def averages_of(optimizer: Any, variable: keras.Variable) -> list[keras.Variable]:
    """Return the averages of a weight that an optimizer, or one inside it, keeps; it may not be built yet, or None."""
    found = [average_of(one, variable) for one in all_optimizers(optimizer)]
    return [average for average in found if average is not None]
