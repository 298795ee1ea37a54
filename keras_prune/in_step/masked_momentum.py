"""SGD-P: the mask holds for the gradient, the momentum and the update, not for the weight alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops
from keras.saving import register_keras_serializable

from keras_prune.in_step.parts import MaskedGradients, TrainingPart
from keras_prune.masks.bound import MaskConstraint, select
from keras_prune.optimizers.finding import StepPart
from keras_prune.optimizers.slots import slots_of

__all__ = ["MaskMomentum"]


@register_keras_serializable(package="keras_prune")
@dataclasses.dataclass(frozen=True)
class MaskMomentum(TrainingPart):
    r"""Pruned momentum SGD (SGD-P): $v \leftarrow m \odot (\mu v - \alpha\, g)$, $w \leftarrow m \odot (w + v)$.

    Without it a mask holds for the weight alone, and the momentum of what is pruned runs on, unseen. With it a pruned
    weight has the optimizer's state of a new one and a gradient of 0, so its update is 0 too; a norm over all gradients
    counts what is on. So it is for every optimizer: of Adam, both moments are masked.

    For callbacks whose pruned weights do not learn on out of sight.

    Raises:
        ValueError: when training begins, weights in scope have no mask that holds them.

    Example:
        >>> import numpy as np
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, use_bias=False)])
        >>> model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        >>> pruning = kp.Pruning(kp.schedules.OneShot(0.75, step=2), parts=kp.MaskMomentum())
        >>> _ = model.fit(np.ones((40, 8)), np.ones((40, 4)), batch_size=10, verbose=0, callbacks=[pruning])
        >>> int((keras.ops.convert_to_numpy(model.optimizer.momentums[0]) == 0).sum())
        24
    """

    def __post_init__(self) -> None:
        if self.ramp is not None:
            raise ValueError(f"MaskMomentum has no strength to ramp. Received: ramp={self.ramp}")

    def bind(self, model: keras.Model, weights: Sequence[int], level: Any, optimizer: Any) -> StepPart:
        """Return what masks the state of the weights in the optimizer's step."""
        ids, masks, free = set(weights), {}, []
        for variable in model.trainable_variables:
            if id(variable) in ids and isinstance(variable.constraint, MaskConstraint):
                masks[id(variable)] = variable.constraint.mask
            elif id(variable) in ids:
                free.append(variable.path)
        if free:
            raise ValueError(
                "MaskMomentum: pruned weights must be held by a mask. Received: weights that have none, as "
                f"where they go on learning out of sight: {free}. Leave the part out."
            )
        return _MaskedSlots(masks, optimizer)


class _MaskedSlots(MaskedGradients):
    """Makes gradients of what is off 0, and what the optimizer keeps of it what it is at the begin."""

    def __init__(self, masks: dict[int, keras.Variable], optimizer: Any) -> None:
        super().__init__(masks)
        self._optimizer = optimizer

    def before(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        """Mask the state, in which a weight may have moved until now, and the gradients."""
        for variable in variables:
            mask = self.masks.get(id(variable))
            for slot, begins in slots_of(self._optimizer, variable) if mask is not None else ():
                slot.assign(select(mask, slot) if begins == 0.0 else _select_or(mask, slot, begins))
        return super().before(gradients, variables)


def _select_or(mask: keras.Variable, slot: keras.Variable, begins: float) -> Any:
    value = ops.convert_to_tensor(slot)
    return ops.where(ops.convert_to_tensor(mask), value, ops.cast(begins, value.dtype))
