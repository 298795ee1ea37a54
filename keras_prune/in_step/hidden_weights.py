"""Pruned weights that go on learning out of sight: inside the step, and when the masks change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.masks.bound import Mask, select
from keras_prune.optimizers.averages import averages_of

__all__ = ["HiddenWeights", "change_mask", "read_merged"]


class HiddenWeights:
    r"""Lets pruned weights learn on out of sight: all $w \leftarrow w - \alpha\, \partial L / \partial (w \odot m)$.

    The variable holds w where the mask is on and 0 elsewhere, so that the loss, checkpoints and exports see the
    sparse model; before the optimizer's step the hidden values are put in, after it they are taken out again.

    Args:
        hidden: for each weight (by id) its mask and the variable for the values of pruned weights.
        optimizer: the one in whose step they learn.

    Source: Guo et al. 2016, "Dynamic network surgery for efficient DNNs", equation 2.
    """

    def __init__(self, hidden: Mapping[int, tuple[keras.Variable, keras.Variable]], optimizer: Any = None) -> None:
        self.hidden = hidden
        self.optimizer = optimizer

    def before(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        """Put the hidden values in."""
        for variable in variables:
            if id(variable) in self.hidden:
                mask, values = self.hidden[id(variable)]
                # Past what guards the variable.
                type(variable).assign(variable, _merge(mask, variable, values))
        return gradients

    def after(self, variables: list[keras.Variable]) -> None:
        """Take the values of pruned weights out again."""
        for variable in variables:
            if id(variable) in self.hidden:
                mask, values = self.hidden[id(variable)]
                values.assign(ops.convert_to_tensor(variable))
                variable.assign(select(mask, variable))
                for average in averages_of(self.optimizer, variable):
                    average.assign(select(mask, average))


def read_merged(mask: Mask, hidden: keras.Variable) -> npt.NDArray[Any]:
    """Return a weight with the hidden values where the mask is off, as an array of its shape."""
    return np.asarray(ops.convert_to_numpy(_merge(mask.variable, mask.target.variable.value, hidden.value)))


def change_mask(mask: Mask, hidden: keras.Variable, values: npt.NDArray[np.bool_]) -> None:
    """Put a new mask in force; the hidden weights keep what the pruned ones have learnt.

    Args:
        mask: of the target.
        hidden: the variable for the values of pruned weights.
        values: the new mask (True: kept), of the target's shape.
    """
    variable = mask.target.variable
    hidden.assign(_merge(mask.variable, variable.value, hidden.value))
    mask.put(values)
    variable.assign(select(mask.variable, hidden.value))
    mask.apply_to_averages()


def _merge(mask: Any, weight: Any, hidden: Any) -> Any:
    """Return the weight where the mask is on and the hidden value elsewhere."""
    return ops.where(ops.convert_to_tensor(mask), ops.convert_to_tensor(weight), ops.convert_to_tensor(hidden))
