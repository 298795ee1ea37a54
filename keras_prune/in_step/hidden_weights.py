"""Weights that go on learning out of sight: whole for the optimizer, and for the loss as a method shows them.

The variable holds what is shown, so that the loss, validation, checkpoints and exports see the sparse model. The rest
is kept beside it: whole = shown + rest. Before the optimizer's step the rest is added, after it the weight is parted
anew. So whatever another callback writes to the variable moves the whole weight by as much.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.masks.bound import Mask, select
from keras_prune.masks.state import TrainingState
from keras_prune.optimizers.averages import averages_of

__all__ = ["HiddenWeights", "MaskedWeights", "part_weight"]


def part_weight(variable: keras.Variable, rest: keras.Variable, whole: Any, shown: Any) -> None:
    """Put into a variable what is shown of it, and beside it the rest.

    Args:
        variable: a weight, or an average of it.
        rest: of its shape.
        whole: what the optimizer moves, a tensor of this shape.
        shown: what the loss sees, likewise.
    """
    rest.assign(whole - shown)
    # Past what guards the variable.
    type(variable).assign(variable, shown)


def whole_of(variable: keras.Variable, rest: keras.Variable) -> Any:
    """Return a weight with what is out of sight, a tensor of its shape."""
    return ops.convert_to_tensor(variable) + ops.convert_to_tensor(rest)


class HiddenWeights(ABC):
    """The weights of a training of which a part is out of sight.

    A subclass says what is shown of a whole weight. An average that the optimizer keeps of a weight is parted as the
    weight is.

    Args:
        state: of the model; it makes the variables.
        masks: of the weights.
    """

    def __init__(self, state: TrainingState, masks: Sequence[Mask]) -> None:
        self.masks = tuple(masks)
        self.keys: list[str] = []
        self._rests: dict[int, keras.Variable] = {}
        self._averages: dict[int, list[keras.Variable]] = {}
        for mask in masks:
            variable, index = mask.target.variable, mask.target.index
            self._rests[id(variable)] = self._state_of(state, f"hidden:{index}", variable)
            self._averages[id(variable)] = list(mask.averages)
            for i, average in enumerate(mask.averages):
                self._rests[id(average)] = self._state_of(state, f"hidden_average{i or ''}:{index}", variable)

    def _state_of(self, state: TrainingState, key: str, variable: keras.Variable) -> keras.Variable:
        self.keys.append(key)
        return state.variable(key, variable.shape, str(variable.dtype), 0.0)

    @abstractmethod
    def show(self, mask: Mask, whole: Any) -> Any:
        """Return what is shown of a weight, a tensor of its shape; in the step and on the host.

        Args:
            mask: of the weight, as it stands.
            whole: a tensor of this shape.
        """

    def prepare(  # noqa: B027 (few need it)
        self, mask: Mask, whole: npt.NDArray[Any], values: npt.NDArray[np.bool_]
    ) -> None:
        """Set what `show` needs besides the mask, before a new mask comes into force.

        Args:
            mask: of the weight.
            whole: of its shape; likewise below.
            values: the new mask (True: kept).
        """

    def part(self, optimizer: Any) -> HiddenInStep:
        """Return what parts the weights in the steps of an optimizer."""
        return HiddenInStep(self, optimizer)

    def read(self, mask: Mask) -> npt.NDArray[Any]:
        """Return a whole weight, as an array of its shape."""
        variable = mask.target.variable
        return np.asarray(ops.convert_to_numpy(whole_of(variable, self._rests[id(variable)])))

    def change(self, values: Sequence[npt.NDArray[np.bool_]]) -> None:
        """Put new masks in force; weights keep what they have learnt.

        Args:
            values: for each mask, True where kept, of the weight's shape.
        """
        for mask, value in zip(self.masks, values, strict=True):
            wholes = [(held, whole_of(held, self._rests[id(held)])) for held in self.held_by(mask)]
            self.prepare(mask, np.asarray(ops.convert_to_numpy(wholes[0][1])), value)
            mask.put(value)
            for held, whole in wholes:
                part_weight(held, self._rests[id(held)], whole, self.show(mask, whole))

    def held_by(self, mask: Mask) -> list[keras.Variable]:
        """Return the variables of a mask's weight that are parted: the weight itself, then averages of it."""
        return [mask.target.variable, *self._averages[id(mask.target.variable)]]

    def rest_of(self, variable: keras.Variable) -> keras.Variable:
        """Return what is kept beside a weight or an average."""
        return self._rests[id(variable)]


class HiddenInStep:
    """Makes weights whole before an optimizer moves them, and parts them afterwards."""

    def __init__(self, hidden: HiddenWeights, optimizer: Any) -> None:
        self._hidden = hidden
        self._masks: Mapping[int, Mask] = {id(mask.target.variable): mask for mask in hidden.masks}
        self._optimizer = optimizer

    def before(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        """Add what is out of sight."""
        for variable in variables:
            if id(variable) in self._masks:
                for held in self._hidden.held_by(self._masks[id(variable)]):
                    type(held).assign(held, whole_of(held, self._hidden.rest_of(held)))
        return gradients

    def after(self, variables: list[keras.Variable]) -> None:
        """Show what the method shows, and keep the rest."""
        for variable in variables:
            mask = self._masks.get(id(variable))
            if mask is None:
                continue
            known = self._hidden.held_by(mask)
            for held in known:
                whole = ops.convert_to_tensor(held)
                part_weight(held, self._hidden.rest_of(held), whole, self._hidden.show(mask, whole))
            for average in averages_of(self._optimizer, variable):
                # Of an optimizer that was not built when training began.
                if not any(average is held for held in known):
                    average.assign(select(mask.variable, average))


class MaskedWeights(HiddenWeights):
    r"""Shows $w \odot m$, so that all weights learn: $w \leftarrow w - \alpha\, \partial L / \partial (w \odot m)$.

    Source: Guo et al. 2016, "Dynamic network surgery for efficient DNNs", equation 2.
    """

    def show(self, mask: Mask, whole: Any) -> Any:
        return select(mask.variable, whole)
