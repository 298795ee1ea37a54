"""Ramps from an initial to a final sparsity, each of its own shape."""

from __future__ import annotations

import dataclasses
import math
import numbers
from abc import abstractmethod
from typing import Any

from keras.saving import register_keras_serializable

from keras_prune.schedules.schedule import Schedule
from keras_prune.schedules.timed import TimedSchedule, given_edge
from keras_prune.strategy import check_fraction, to_numbers

__all__ = ["Cosine", "Exponential", "Linear", "PolynomialDecay", "Ramp", "as_schedule"]

_register = register_keras_serializable(package="keras_prune")


@dataclasses.dataclass(frozen=True, repr=False)
class Ramp(TimedSchedule):
    """Base of ramps: from an initial to a final sparsity between two steps; subclasses define the shape.

    Args:
        initial_sparsity: a fraction in [0, 1).
        final_sparsity: a fraction in [0, 1), not below the initial one.
        begin_step, end_step, frequency: as for `PolynomialDecay`; so are `begin`, `end`, `begin_epoch`, `end_epoch`.

    Raises:
        ValueError: a sparsity is out of its range, or the end comes before the begin.
        TypeError: nothing says where the ramp begins, or where it ends.
    """

    initial_sparsity: float
    final_sparsity: float

    def __post_init__(self) -> None:
        name = type(self).__name__
        super().__post_init__()
        to_numbers(self, "initial_sparsity", "final_sparsity")
        check_fraction(f"{name}: initial_sparsity", self.initial_sparsity)
        check_fraction(f"{name}: final_sparsity", self.final_sparsity)
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                f"{name}: final_sparsity must not be below initial_sparsity, since pruned weights stay pruned. "
                f"Received: initial_sparsity={self.initial_sparsity}, final_sparsity={self.final_sparsity}"
            )
        for edge, example in (("begin", "10%"), ("end", "70%")):
            if given_edge(self, edge) is None:
                raise TypeError(
                    f"{name}: {edge}_step={'0' if edge == 'begin' else '1000'}, {edge}={example!r} or {edge}_epoch=... "
                    f"says where it {edge}s. Received: none of them"
                )

    @property
    def final(self) -> float:
        return self.final_sparsity

    def __call__(self, step: int) -> float:
        begin, end, _ = self._in_steps()
        assert end is not None  # checked when it was made
        if step < begin:
            return 0.0
        span = end - begin
        progress = 1.0 if span == 0 else min(1.0, (step - begin) / span)
        # The ends are returned as given, so that no rounding moves the final count.
        if progress == 0.0:
            return self.initial_sparsity
        return self.final_sparsity if progress == 1.0 else self._between(progress)

    @abstractmethod
    def _between(self, progress: float) -> float:
        """Return the sparsity at a progress above 0 and below 1."""


@_register
@dataclasses.dataclass(frozen=True, repr=False)
class PolynomialDecay(Ramp):
    r"""Fast first, slow at the end: $s = s_f + (s_i - s_f)(1 - p)^{power}$.

    Args:
        initial_sparsity: $s_i$, a fraction in [0, 1).
        final_sparsity: $s_f$, a fraction in [0, 1).
        begin_step: the step of the first pruning; before it the sparsity is 0. Or `begin="10%"`, `begin_epoch=1`.
        end_step: the step from which $s_f$ holds. Or `end="70%"`, `end_epoch=5`.
        frequency: steps between two changes of the masks; None for 100, or with shares and epochs for a hundredth of
            the training.
        power: any positive number; 3 in the paper.

    Raises:
        ValueError: a sparsity outside [0, 1), end before begin, a power that is not positive.

    Source: Zhu and Gupta 2017, "To prune, or not to prune", equation 1.

    Example:
        >>> PolynomialDecay(0.0, 0.8, begin_step=0, end_step=10, power=1.0)(5)
        0.4
        >>> PolynomialDecay(0.0, 0.8, begin="10%", end="70%")
        PolynomialDecay(begin='10%', end='70%', initial_sparsity=0.0, final_sparsity=0.8, power=3.0)
    """

    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        to_numbers(self, "power")
        if not self.power > 0:
            raise ValueError(f"PolynomialDecay: power must be positive. Received: power={self.power}")

    def _between(self, progress: float) -> float:
        difference = self.initial_sparsity - self.final_sparsity
        return float(self.final_sparsity + difference * (1.0 - progress) ** self.power)


@_register
@dataclasses.dataclass(frozen=True, repr=False)
class Linear(Ramp):
    r"""At constant speed: $s = s_i + (s_f - s_i) p$.

    Example:
        >>> Linear(0.0, 0.5, begin_step=0, end_step=100)(50)
        0.25
    """

    def _between(self, progress: float) -> float:
        return self.initial_sparsity + (self.final_sparsity - self.initial_sparsity) * progress


@_register
@dataclasses.dataclass(frozen=True, repr=False)
class Cosine(Ramp):
    r"""Slow at both ends: $s = s_f + (s_i - s_f)(1 + \cos \pi p) / 2$.

    Source: the annealing of Dettmers and Zettlemoyer 2019, "Sparse networks from scratch", section 3.

    Example:
        >>> round(Cosine(0.0, 0.8, begin_step=0, end_step=100)(50), 6)
        0.4
    """

    def _between(self, progress: float) -> float:
        difference = self.initial_sparsity - self.final_sparsity
        return self.final_sparsity + difference * (1.0 + math.cos(math.pi * progress)) / 2.0


@_register
@dataclasses.dataclass(frozen=True, repr=False)
class Exponential(Ramp):
    r"""The same share of what is left at each step: $1 - s = (1 - s_i)\left(\frac{1 - s_f}{1 - s_i}\right)^p$.

    Source: the schedule of Tanaka et al. 2020, "Pruning neural networks without any data", algorithm 1.

    Example:
        >>> round(Exponential(0.0, 0.75, begin_step=0, end_step=100)(50), 6)
        0.5
    """

    def _between(self, progress: float) -> float:
        start = 1.0 - self.initial_sparsity
        return float(1.0 - start * ((1.0 - self.final_sparsity) / start) ** progress)


def as_schedule(name: str, schedule: Any) -> Schedule:
    """Return a schedule as it is; for a number, the schedule that reaches this sparsity in the training that it is in.

    It is cubic, and goes from a tenth to seven tenths of the training, so that the rest is there to recover.

    Args:
        name: who asks, for messages.
        schedule: a schedule, or a fraction in [0, 1).

    Raises:
        TypeError: it is neither.
        ValueError: the number is no fraction in [0, 1).
    """
    if isinstance(schedule, numbers.Real) and not isinstance(schedule, bool):
        check_fraction(f"{name}: the sparsity", schedule)  # type: ignore[arg-type]
        return PolynomialDecay(0.0, float(schedule), begin="10%", end="70%")
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"{name}: schedule must be a keras_prune.schedules.Schedule, or a number, the sparsity at the end. "
            f"Received: {schedule!r} of type {type(schedule).__name__}."
        )
    return schedule
