"""Weights that share values, inside the compiled step: one of each group learns, by the sum of all their gradients.

The first weight of a group leads it. The optimizer is given the sum of the group's gradients for the leader and 0 for
the others, and once it has moved the leader, the others take its value. So the leader is the centroid, whatever the
optimizer does with a weight: its momentum, its decay, and its part in the norm of all gradients are those of one
parameter, and members are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.masks.bound import MaskConstraint, mask_of, select
from keras_prune.masks.state import TrainingState
from keras_prune.models.variables import assign, dense, read
from keras_prune.optimizers.averages import averages_of
from keras_prune.optimizers.slots import restart, slots_of
from keras_prune.scope import Target
from keras_prune.sharing.codebooks import Codebook, most_values

__all__ = ["TiedInStep", "TiedWeight"]


class TiedWeight:
    """The state of one tensor whose weights share values.

    Args:
        target: the tensor.
        state: of the model; it makes the variables.
        name: tells the choices that the state is of from others, in files.
        books: the codebook of each weight, in a shape that broadcasts to the weight's.
        values: the most values of a codebook.
    """

    def __init__(
        self, target: Target, state: TrainingState, name: str, books: npt.NDArray[np.int32], values: int
    ) -> None:
        self.target = target
        self._books = books
        self._room = values + 1  # the last place is that of zeros
        self._count = self._room * (int(books.max()) + 1)
        kind = "uint8" if values < 256 else "uint16"
        self.keys = (f"{name}_places:{target.index}", f"{name}_leaders:{target.index}")
        self._places = state.variable(self.keys[0], target.variable.shape, kind, 0)
        self._leaders = state.variable(self.keys[1], (self._count,), "int32", 0)

    # -- on the host --------------------------------------------------------------------------------------------------

    def write(self, codebook: Codebook, optimizers: Sequence[Any]) -> None:
        """Let the weights share values, and begin anew what optimizers keep of them.

        Args:
            codebook: of the tensor.
            optimizers: that may move it.
        """
        variable, numbers = self.target.variable, self._numbers(codebook.places)
        self._set(codebook.places, numbers)
        type(variable).assign(variable, codebook.expand())
        sizes = np.maximum(1, np.bincount(numbers, minlength=self._count))
        for optimizer in optimizers:
            restart(optimizer, variable, np.ones(tuple(variable.shape), bool))
            for average in averages_of(optimizer, variable):
                whole = np.asarray(read(average), np.float64).reshape(-1)
                means = (np.bincount(numbers, whole, self._count) / sizes).reshape(-1, self._room)
                means[:, -1] = 0.0
                average.assign(means.reshape(-1)[numbers].reshape(tuple(variable.shape)))

    def follow_mask(self, optimizers: Sequence[Any]) -> bool:
        """Take weights that a mask has off out of their groups; another member leads where the leader was one of them.

        Args:
            optimizers: that may move the tensor.

        Returns:
            Whether that was all: False where weights are back that were off.
        """
        variable, zero = self.target.variable, self._room - 1
        weight, places = np.asarray(read(variable)), np.array(read(self._places))
        if ((places == zero) & (weight != 0)).any():
            return False
        held = self.target.mask
        on = mask_of(variable) if held is None else np.asarray(read(held), bool)
        if on is None or not (~on & (places != zero)).any():
            return True
        places[~on] = zero
        earlier = np.array(read(self._leaders))
        numbers = self._numbers(places)
        changed = self._set(places, numbers, earlier)
        for optimizer in optimizers if changed.size else ():
            for slot, begins in slots_of(optimizer, variable):
                moments = np.array(read(slot)).reshape(-1)
                moments[self.leaders[changed]] = moments[earlier[changed]]
                moments[earlier[changed]] = begins
                slot.assign(moments.reshape(tuple(variable.shape)))
        return True

    @property
    def leaders(self) -> npt.NDArray[np.int32]:
        """The index of each group's leader in the flattened tensor; 0 where a group has no members."""
        return np.asarray(read(self._leaders))

    @property
    def is_tied(self) -> bool:
        """Whether the members of each group have one value now, but for those that were pruned, and zeros are 0."""
        weight, numbers = np.asarray(read(self.target.variable)).reshape(-1), self._numbers(read(self._places))
        on = np.flatnonzero(weight)
        present, first, place = np.unique(numbers[on], return_index=True, return_inverse=True)
        is_zero = present % self._room == self._room - 1
        return not is_zero.any() and bool((weight[on] == weight[on[first]][place.reshape(-1)]).all())

    @property
    def most(self) -> int:
        """How many different values the codebook has that has most of them now, zero counted."""
        return most_values(np.asarray(read(self.target.variable)), self._books)

    def _set(
        self, places: npt.NDArray[np.integer], numbers: npt.NDArray[np.intp], earlier: Any = None
    ) -> npt.NDArray[np.intp]:
        """Put places in force; of groups whose leader is still a member, it stays. Return those with another leader."""
        present, first = np.unique(numbers, return_index=True)
        leaders = np.zeros(self._count, np.int32) if earlier is None else np.array(earlier)
        lost = numbers[leaders[present]] != present
        leaders[present[lost]] = first[lost]
        changed = present[lost & (present % self._room != self._room - 1)]
        assign(self._places, places.astype(self._places.dtype))
        assign(self._leaders, leaders)
        return changed

    def _numbers(self, places: npt.NDArray[np.integer]) -> npt.NDArray[np.intp]:
        """Return the number of each weight's group, [weights], codebook after codebook."""
        return (places.astype(np.intp) + self._books * self._room).reshape(-1)

    # -- inside the step ----------------------------------------------------------------------------------------------

    def summed(self, gradient: Any) -> Any:
        """Return the sum of each group's gradients at its leader, and 0 elsewhere; traced.

        Args:
            gradient: one tensor of the weight's shape.
        """
        mask = self._mask()
        given = gradient if mask is None else select(mask, gradient)
        wide = "float32" if keras.backend.standardize_dtype(given.dtype) in ("float16", "bfloat16") else given.dtype
        flat = ops.cast(ops.reshape(given, (-1,)), wide)
        sums = ops.segment_sum(flat, self._groups(), num_segments=self._count)
        leaders = ops.convert_to_tensor(self._leaders)
        at_leaders = ops.segment_sum(self._without_zeros(sums), leaders, num_segments=flat.shape[0])
        return ops.cast(ops.reshape(at_leaders, gradient.shape), gradient.dtype)

    def tied(self, value: Any) -> Any:
        """Return a tensor in which all members of a group have what their leader has; traced.

        Args:
            value: of the weight's shape: the weight, or an average of it.
        """
        flat = ops.reshape(value, (-1,))
        led = self._without_zeros(ops.take(flat, ops.convert_to_tensor(self._leaders)))
        found = ops.reshape(ops.take(led, self._groups()), value.shape)
        mask = self._mask()
        return found if mask is None else select(mask, found)

    def _groups(self) -> Any:
        first = ops.convert_to_tensor(self._books * np.int32(self._room))
        return ops.reshape(ops.cast(ops.convert_to_tensor(self._places), "int32") + first, (-1,))

    def _without_zeros(self, by_group: Any) -> Any:
        """Return numbers of groups with 0 for the zeros, which do not learn."""
        learns = np.arange(self._count) % self._room != self._room - 1
        return ops.where(ops.convert_to_tensor(learns), by_group, ops.zeros_like(by_group))

    def _mask(self) -> keras.Variable | None:
        constraint = self.target.variable.constraint
        return constraint.mask if isinstance(constraint, MaskConstraint) else None


class TiedInStep:
    """Makes weights share values in the steps of an optimizer, once they do.

    Args:
        weights: the tensors.
        active: a scalar boolean variable: whether they share values yet.
        optimizer: whose steps these are.
    """

    def __init__(self, weights: Sequence[TiedWeight], active: keras.Variable, optimizer: Any) -> None:
        self._weights = {id(one.target.variable): one for one in weights}
        self._active = active
        self._optimizer = optimizer

    def before(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        """Give leaders the sums of their groups' gradients."""
        found = []
        for gradient, variable in zip(gradients, variables, strict=True):
            one = self._weights.get(id(variable))
            if one is not None and gradient is not None:
                gradient = self._once_active(one.summed, dense(gradient))
            found.append(gradient)
        return found

    def after(self, variables: list[keras.Variable]) -> None:
        """Let members follow their leaders, and the optimizer's averages likewise."""
        for variable in variables:
            one = self._weights.get(id(variable))
            for held in () if one is None else (variable, *averages_of(self._optimizer, variable)):
                assert one is not None
                # Past what guards the variable.
                type(held).assign(held, self._once_active(one.tied, ops.convert_to_tensor(held)))

    def _once_active(self, act: Any, value: Any) -> Any:
        # A comparison gives a tensor; TensorFlow does not branch on a variable.
        return ops.cond(ops.equal(ops.convert_to_tensor(self._active), True), lambda: act(value), lambda: value)
