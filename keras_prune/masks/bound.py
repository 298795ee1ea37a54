"""A mask bound to a variable: attached as a constraint, updated in place, detached without a trace.

Keras runs a variable's constraint at the end of the optimizer's step, inside the compiled function, so a constraint
that selects by a mask keeps pruned weights at zero at no cost to the host and under every way of running the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.keras_seam import average_of, in_stateless_scope, optimizer_at_work, value_held
from keras_prune.masks.state import TrainingState
from keras_prune.models.variables import assign, read, resource_of
from keras_prune.optimizers.averages import averages_of
from keras_prune.scope import Target

__all__ = ["Mask", "MaskConstraint", "bind", "mask_of", "release", "select"]

LARGE = 1 << 24
"""From so many weights on, an array of zeros of a tensor's size is too much to make."""


class MaskConstraint(keras.constraints.Constraint):
    """Selects: $w_i$ where the mask is on, +0.0 elsewhere; after the constraint that the variable had before, if any.

    Args:
        mask: a boolean variable of the weight's shape.
        inner: the user's own constraint, applied first, or None.
    """

    def __init__(self, mask: keras.Variable, inner: Any = None) -> None:
        self.mask = mask
        self.inner = inner

    def __call__(self, w: Any) -> Any:
        """Return the weight with pruned entries at +0.0 (selected, not multiplied: that would leave -0.0).

        Called in an optimizer's step, it also puts zeros into the average that the optimizer keeps of the weight.
        """
        optimizer = optimizer_at_work()
        average = None if optimizer is None or not isinstance(w, keras.Variable) else average_of(optimizer, w)
        if average is not None:
            average.assign(select(self.mask, average))
        return select(self.mask, w if self.inner is None else self.inner(w))

    def get_config(self) -> dict[str, Any]:
        """Refuse: a mask is state of a training, not configuration."""
        raise NotImplementedError("A mask cannot be written into a configuration. Call keras_prune.strip(model) first.")


def select(mask: Any, weight: Any) -> Any:
    """Return the weight where the mask is on and +0.0 elsewhere."""
    mask, value = ops.convert_to_tensor(mask), ops.convert_to_tensor(weight)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if math.prod(value.shape) <= LARGE:
            # The kernel for equal shapes; that of `where` is made for broadcasting, and a third slower.
            return tf.raw_ops.Select(condition=mask, x=value, y=tf.zeros_like(value))
        # As fast on a large tensor, and no zeros of its size beside it.
        return tf.where(mask, value, tf.zeros((), value.dtype))
    return ops.where(mask, value, ops.zeros_like(value))


def put_zeros(variable: keras.Variable, mask: npt.NDArray[np.bool_]) -> None:
    """Put weights at +0.0 where the mask is off.

    Args:
        variable: a kernel.
        mask: True where kept, of the kernel's shape.
    """
    # TensorFlow's scatters and assignments to slices would save a copy here and cost one in every later step: from then
    # on, the variable is copied whenever it is read.
    resource = resource_of(variable)
    if resource is not None:
        resource.assign(select(mask, resource.value()), read_value=False)
    else:
        variable.assign(select(mask, variable.value))


class Mask:
    """The mask of one target.

    Args:
        target: the tensor.
        variable: a boolean variable of its shape. On the JAX backend the compiled step sees only state that is handed
            to it, so for a mask that changes during training it has to be one of the optimizer's (`masks.state`
            makes it so).
        hold: keep pruned weights at zero by a constraint. False where they go on learning; then the caller keeps
            them at zero.
        averages: the optimizer's averages of the weight, which are kept at zero like it.

    Attributes:
        zeros: how many weights are off.
    """

    def __init__(
        self,
        target: Target,
        variable: keras.Variable,
        *,
        hold: bool = True,
        averages: Sequence[keras.Variable] = (),
    ) -> None:
        self.target = target
        self.variable = variable
        self.averages = () if target.straight_through else tuple(averages)
        self.count(read(variable))
        self.hold(hold)

    def hold(self, on: bool = True) -> None:
        """Attach the constraint, or take it off and leave the user's own."""
        kernel = self.target.variable
        inner = release(kernel)
        if on:
            kernel.constraint = MaskConstraint(self.variable, inner)

    def read(self) -> npt.NDArray[np.bool_]:
        """Return the mask (True: kept), of the kernel's shape, to be read only."""
        return read(self.variable)

    def put(self, values: npt.NDArray[np.bool_]) -> None:
        """Set the mask, here and in the wrapper layer if there is one; the weights stay as they are.

        Args:
            values: True where kept, of the kernel's shape; likewise below.
        """
        assign(self.variable, values)
        if self.target.mask is not None:
            self.target.mask.assign(values)
        self.count(values)

    def count(self, values: npt.NDArray[np.bool_]) -> None:
        """Count the zeros of a mask that is in force already."""
        self.zeros = int(values.size - np.count_nonzero(values))

    def write(self, values: npt.NDArray[np.bool_]) -> None:
        """Set the mask, and put pruned weights at +0.0.

        Where a wrapper lets masked weights go on learning (straight through), the weights stay as they are.
        """
        self.put(values)
        if not self.target.straight_through:
            put_zeros(self.target.variable, values)
            self.apply_to_averages()

    def apply(self) -> None:
        """Put the weights that the mask prunes at +0.0, and their averages."""
        if not self.target.straight_through:
            self.target.variable.assign(select(self.variable, self.target.variable.value))
            self.apply_to_averages()

    def apply_to_averages(self) -> None:
        """Put the averages of weights that the mask prunes at +0.0."""
        for average in self.averages:
            average.assign(select(self.variable, average.value))

    def guard(self, on: bool = True) -> None:
        """Keep pruned weights at zero whatever else than an optimizer writes to the kernel; or end that.

        Between two steps of a training, other callbacks write weights: those that average them, or restore earlier
        ones. What they write is pruned at once, so that whatever reads it next (validation, a checkpoint) sees zeros.
        """
        variable = self.target.variable
        vars(variable).pop("assign", None)
        if not on or self.target.straight_through:
            return

        def assign(value: Any) -> Any:
            known = tuple(getattr(value, "shape", ())) == tuple(variable.shape)
            # On JAX the compiled step holds all values while it runs, and hands them back one by one.
            known = known and value_held(self.variable) is not None
            if known and optimizer_at_work() is None and not in_stateless_scope():
                value = select(self.variable, ops.cast(value, variable.dtype))
            return type(variable).assign(variable, value)

        variable.assign = assign


def bind(target: Target, state: TrainingState, *, hold: bool = True) -> Mask:
    """Return the mask of a target: that of the loaded file, of the weight or of its layer; else a new one, all on.

    Args:
        target: the tensor.
        state: of the target's model; it makes the variable.
        hold: as for `Mask`; without effect for a target whose weights learn straight through.
    """
    earlier = mask_of(target.variable)
    if earlier is None and target.mask is not None:
        earlier = read(target.mask)
    key = f"mask:{target.index}"
    in_file = key in state.arrays
    variable = state.variable(key, target.variable.shape, "bool", True)
    if earlier is not None and not in_file:
        variable.assign(np.array(earlier))
        if not earlier.all():
            state.restored.add(key)
    averages = averages_of(state.optimizer, target.variable)
    return Mask(target, variable, hold=hold and not target.straight_through, averages=averages)


def mask_of(variable: keras.Variable) -> npt.NDArray[np.bool_] | None:
    """Return the mask that is bound to a variable, of its shape (True: kept), or None.

    Example:
        >>> layer = keras.layers.Dense(2)
        >>> layer.build((None, 3))
        >>> mask_of(layer.kernel) is None
        True
    """
    constraint = variable.constraint
    return read(constraint.mask) if isinstance(constraint, MaskConstraint) else None


def release(variable: keras.Variable) -> Any:
    """Take a mask off a variable; what remains is the constraint that the user gave it, which is returned."""
    while isinstance(variable.constraint, MaskConstraint):
        variable.constraint = variable.constraint.inner
    return variable.constraint
