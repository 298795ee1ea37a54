"""Targeted dropout: of the weights that a prune would take, each is 0 for one step with a probability.

Weights are dropped just before a step and whole again after it; the gradient, taken in between, is that of the dropped
network. Inside the step, the optimizer moves whole weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_prune.arrays.layouts import Layout
from keras_prune.in_step.hidden_weights import part_weight, whole_of
from keras_prune.keras_seam import calls_counted
from keras_prune.models.variables import dense
from keras_prune.optimizers.finding import leaves, owns
from keras_prune.scope import Target

__all__ = ["Droppable", "DroppedWeights", "draw_shape"]


@dataclasses.dataclass(frozen=True, eq=False)
class Droppable:
    """A weight, and what its dropout needs.

    Attributes:
        target: the weight.
        safe: booleans of its shape; False for one that may be dropped.
        rest: of its shape; what is dropped of it now, 0 elsewhere.
    """

    target: Target
    safe: keras.Variable
    rest: keras.Variable


class _Seed(keras.random.SeedGenerator):
    """Gives one key, which may be of the step: so the same step draws the same, in whichever process.

    Args:
        key: two integers.
    """

    def __init__(self, key: Sequence[Any]) -> None:
        # Not the base's, whose state is a variable that moves on with each draw.
        kind = "uint32" if keras.backend.backend() == "jax" else "int32"
        self._key = ops.stack([ops.cast(number, kind) for number in key])

    def next(self, ordered: bool = True) -> Any:
        return self._key


def draw_shape(layout: Layout, shape: Sequence[int], units: bool) -> tuple[int, ...]:
    """Return the shape in which is drawn: one number for each weight, or for each output, in the axes of the kernel.

    Example:
        >>> draw_shape(Layout.plain(4), (3, 3, 8, 16), units=True)
        (1, 1, 1, 16)
    """
    outputs = {min(axis, len(shape) - 1) for axis in layout.outputs}
    return tuple(size if not units or axis in outputs else 1 for axis, size in enumerate(shape))


class DroppedWeights:
    """Drops weights, brings them back, and does both inside the step, where several steps are run in one call.

    Args:
        weights: what may be dropped.
        optimizers: that may move the weights.
        rate: the probability of dropping one, a fraction in [0, 1].
        units: draw for each output of a kernel, not for each weight.
        seed: with the number of the step, it says what is drawn.
        redraws: whether the step drops anew after the optimizer's move.
    """

    def __init__(
        self,
        weights: Sequence[Droppable],
        optimizers: Sequence[Any],
        *,
        rate: float,
        units: bool,
        seed: int,
        redraws: bool,
    ) -> None:
        self._weights = {id(one.target.variable): one for one in weights}
        self._rate = rate
        self._units = units
        self._seed = seed
        self._redraws = redraws
        self._leaves = [leaf for optimizer in optimizers for leaf in leaves(optimizer)]

    @property
    def is_settled(self) -> bool:
        """Whether it is known which optimizer moves each weight, whose steps say what is drawn."""
        return all(any(owns(leaf, one.target.variable) for leaf in self._leaves) for one in self._weights.values())

    def drop(self) -> None:
        """Drop what is drawn for the next step."""
        for one in self._weights.values():
            self._drop(one)

    def bring_back(self) -> None:
        """Make all weights whole."""
        for one in self._weights.values():
            self._bring_back(one)

    def _drop(self, one: Droppable) -> None:
        target = one.target
        owner = next((leaf for leaf in self._leaves if owns(leaf, target.variable)), None)
        key = (self._seed + 1_000_003 * target.index, 0 if owner is None else calls_counted(owner))
        shape = draw_shape(target.layout, tuple(target.variable.shape), self._units)
        kept = ops.greater_equal(keras.random.uniform(shape, seed=_Seed(key)), self._rate)
        whole = whole_of(target.variable, one.rest)
        shown = ops.where(ops.logical_or(ops.convert_to_tensor(one.safe), kept), whole, ops.zeros_like(whole))
        part_weight(target.variable, one.rest, whole, shown)

    def _bring_back(self, one: Droppable) -> None:
        whole = whole_of(one.target.variable, one.rest)
        part_weight(one.target.variable, one.rest, whole, whole)

    # -- inside the step ----------------------------------------------------------------------------------------------

    def before(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        """Make weights whole, and keep gradients from what was dropped: the loss did not depend on it."""
        found = []
        for gradient, variable in zip(gradients, variables, strict=True):
            one = self._weights.get(id(variable))
            if one is not None and gradient is not None:
                gradient = dense(gradient)
                kept = ops.equal(ops.convert_to_tensor(one.rest), 0)
                gradient = ops.where(kept, gradient, ops.zeros_like(gradient))
                self._bring_back(one)
            found.append(gradient)
        return found

    def after(self, variables: list[keras.Variable]) -> None:
        """Drop for the next step, if it follows in the same call."""
        for variable in variables if self._redraws else ():
            one = self._weights.get(id(variable))
            if one is not None:
                self._drop(one)
