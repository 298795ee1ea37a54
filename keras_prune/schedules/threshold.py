"""A bound for scores in the place of a sparsity."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from keras.saving import register_keras_serializable

from keras_prune.schedules.timed import TimedSchedule, given_edge
from keras_prune.strategy import to_numbers

__all__ = ["Threshold"]

_register = register_keras_serializable(package="keras_prune")


@_register
@dataclasses.dataclass(frozen=True, repr=False)
class Threshold(TimedSchedule):
    r"""A bound for scores instead of a sparsity: weights with score $\le \theta$ are pruned.

    $\theta$ is fixed, or ramps linearly from `value` to `final_value` between the two steps; with `relative_to="std"`
    it is a factor of each tensor's own standard deviation, $\theta = value \cdot \sigma(w)$, taken when the masks
    change, over the weights that are on: every further update goes further, until `end_step`.

    Args:
        value: $\theta$, 0 or more.
        final_value: where the ramp ends; None for a fixed bound.
        begin_step: the step of the first pruning. Or `begin="10%"`, `begin_epoch=1`; None for 0.
        end_step: the last step at which masks change; None for no end (then there is no ramp). Or `end="70%"`,
            `end_epoch=5`.
        frequency: steps between two changes of the masks; None for 100, or with shares and epochs for a hundredth of
            the training.
        relative_to: None, or "std".

    Source: Han et al. 2015, "Learning both weights and connections", section 4 (the factor of the standard deviation).

    Example:
        >>> Threshold(0.1, final_value=0.3, begin_step=0, end_step=100)(50)
        0.2
    """

    gives: ClassVar[str] = "threshold"

    value: float
    _: dataclasses.KW_ONLY
    final_value: float | None = None
    relative_to: str | None = None

    def __post_init__(self) -> None:
        if given_edge(self, "begin") is None:
            object.__setattr__(self, "begin_step", 0)
        super().__post_init__()
        if self.value is None:
            raise TypeError("Threshold: value must be a number. Received: value=None")
        to_numbers(self, "value", "final_value")
        for name in ("value", "final_value"):
            bound = getattr(self, name)
            if bound is not None and not (bound >= 0 and math.isfinite(bound)):
                raise ValueError(f"Threshold: {name} must be 0 or more, and finite. Received: {name}={bound}")
        if self.final_value is not None and given_edge(self, "end") is None:
            raise ValueError(
                "Threshold: a ramp to final_value needs end_step, the step at which it arrives. "
                f"Received: final_value={self.final_value}, end_step=None"
            )
        if self.relative_to not in (None, "std"):
            raise ValueError(f"Threshold: relative_to must be None or 'std'. Received: {self.relative_to!r}")

    @property
    def final(self) -> float:
        return self.value if self.final_value is None else self.final_value

    def __call__(self, step: int) -> float:
        begin, end, _ = self._in_steps()
        if self.final_value is None or end is None:
            return self.value
        span = end - begin
        progress = 1.0 if span == 0 else min(1.0, max(0.0, (step - begin) / span))
        return self.value + (self.final_value - self.value) * progress
