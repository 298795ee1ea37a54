"""The weights that a schedule rewinds to: kept inside the step, and put back after each pruning."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_prune.keras_seam import calls_counted
from keras_prune.masks.state import TrainingState
from keras_prune.optimizers.finding import leaves, owns

__all__ = ["Rewinding", "Snapshot"]


class Snapshot:
    """Keeps the weights that an optimizer has made in so many steps, whatever else happens between two looks.

    Args:
        at: a scalar, the number of steps.
        kept: for each weight (by id) the variable that its value is put in.
        optimizer: whose steps count; of a MultiOptimizer, those of the one that a weight belongs to.
    """

    def __init__(self, at: keras.Variable, kept: Mapping[int, keras.Variable], optimizer: Any) -> None:
        self.at = at
        self.kept = kept
        self.optimizer = optimizer

    def before(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        """Nothing: weights are kept once they have moved."""
        return gradients

    def after(self, variables: list[keras.Variable]) -> None:
        """Keep the weights, if this is the step."""
        for leaf in leaves(self.optimizer):
            own = [variable for variable in variables if id(variable) in self.kept and owns(leaf, variable)]
            steps = calls_counted(leaf) // (leaf.gradient_accumulation_steps or 1)
            reached = ops.equal(ops.cast(steps, "int32"), ops.convert_to_tensor(self.at))
            if own and _may_branch():
                ops.cond(reached, functools.partial(self._keep, own), lambda: None)
            elif own:
                self._keep(own, reached)

    def _keep(self, variables: list[keras.Variable], reached: Any = True) -> None:
        for variable in variables:
            kept, value = self.kept[id(variable)], ops.convert_to_tensor(variable)
            kept.assign(value if reached is True else ops.where(reached, value, ops.convert_to_tensor(kept)))


class Rewinding:
    """All trainable weights of a model as they were at one step.

    Args:
        model: what is trained.
        state: of the model; it makes the variables.
        key: tells this training from others of the model, in files.
    """

    def __init__(self, model: keras.Model, state: TrainingState, key: str) -> None:
        self._kept = [
            (variable, state.variable(f"rewind:{i}", variable.shape, str(variable.dtype), 0.0))
            for i, variable in enumerate(model.trainable_variables)
        ]
        self._at = state.variable(f"rewind_at:{key}", (), "int32", -1)

    def part(self, optimizer: Any) -> Snapshot:
        """Return what keeps the weights in the step of an optimizer."""
        return Snapshot(self._at, {id(variable): kept for variable, kept in self._kept}, optimizer)

    def remember(self, step: int, now: int) -> None:
        """Set the step whose weights are kept; those that nothing moves until then are kept now.

        Args:
            step: the step to rewind to.
            now: optimizer steps done.
        """
        self._at.assign(step)
        if now <= step:
            for variable, kept in self._kept:
                kept.assign(variable.value)

    def rewind(self) -> None:
        """Put the weights back to those of the step."""
        for variable, kept in self._kept:
            variable.assign(kept.value)


def _may_branch() -> bool:
    """Whether variables may be set in a branch of the step: not by JAX, and not by one replica of several."""
    if keras.backend.backend() != "tensorflow":
        return keras.backend.backend() != "jax"
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context is not None and context.num_replicas_in_sync == 1
