r"""Step -> target: how much is to be pruned when, and at which steps the masks change.

Every schedule is a pure function of the optimizer's step; it knows no tensor. With begin step $t_0$, end step $t_1$ and
progress $p = (t - t_0) / (t_1 - t_0)$ clipped to [0, 1], the formulas below give the sparsity $s(t)$, a fraction in
[0, 1).
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from keras.saving import register_keras_serializable

from keras_prune.strategy import Strategy, check_fraction, integer, to_integers, to_numbers

__all__ = [
    "ConstantSparsity",
    "Cosine",
    "Exponential",
    "Iterative",
    "Linear",
    "OneShot",
    "Piecewise",
    "PolynomialDecay",
    "Schedule",
    "Threshold",
]

_register = register_keras_serializable(package="keras_prune")


@dataclasses.dataclass(frozen=True)
class Schedule(Strategy):
    """A target for every step, and the steps at which masks are brought to it.

    `schedule(step)` is the target; `should_update(step)` says whether masks change once `step` optimizer steps are done
    (0: before the first). A schedule whose `gives` is "threshold" returns a bound for scores instead of a sparsity.

    Example:
        >>> schedule = PolynomialDecay(0.0, 0.9, begin_step=0, end_step=1000)
        >>> [round(schedule(step), 3) for step in (0, 500, 1000)]
        [0.0, 0.787, 0.9]
        >>> [step for step in range(1001) if schedule.should_update(step)][:3]
        [0, 100, 200]
    """

    kind: ClassVar[str] = "schedule"
    gives: ClassVar[str] = "sparsity"

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the target at `step`, the number of optimizer steps done."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(step)")

    @abstractmethod
    def should_update(self, step: int) -> bool:
        """Say whether masks change when `step` optimizer steps are done."""
        raise NotImplementedError(f"{type(self).__name__} must define should_update(step)")

    @property
    def first_step(self) -> int:
        """The first step at which masks change."""
        return int(getattr(self, "begin_step", 0))

    @property
    def last_step(self) -> int:
        """The step from which the final target holds."""
        end = getattr(self, "end_step", None)
        return self.first_step if end is None else int(end)

    @property
    def final(self) -> float:
        """The target at the end of the schedule."""
        return self(self.last_step)

    @property
    def rewind_step(self) -> int | None:
        """The step whose weights the survivors go back to after each pruning, or None."""
        return None


def _check_steps(schedule: Schedule, begin: int, end: int | None, frequency: int) -> None:
    name = type(schedule).__name__
    if begin < 0:
        raise ValueError(f"{name}: begin_step must be 0 or more. Received: begin_step={begin}")
    if end is not None and end < begin:
        raise ValueError(
            f"{name}: end_step must not come before begin_step. Received: begin_step={begin}, end_step={end}"
        )
    if frequency < 1:
        raise ValueError(f"{name}: frequency must be 1 step or more. Received: frequency={frequency}")


def _on_grid(step: int, begin: int, end: int | None, frequency: int) -> bool:
    """Every `frequency` steps from begin to end; the end always counts, so that the final target is reached."""
    if step < begin or (end is not None and step > end):
        return False
    return step == end or (step - begin) % frequency == 0


@dataclasses.dataclass(frozen=True)
class _Ramp(Schedule):
    """From an initial to a final sparsity between two steps; subclasses give the shape."""

    initial_sparsity: float
    final_sparsity: float
    _: dataclasses.KW_ONLY
    begin_step: int
    end_step: int
    frequency: int = 100

    def __post_init__(self) -> None:
        name = type(self).__name__
        to_integers(self, "begin_step", "end_step", "frequency")
        to_numbers(self, "initial_sparsity", "final_sparsity")
        check_fraction(f"{name}: initial_sparsity", self.initial_sparsity)
        check_fraction(f"{name}: final_sparsity", self.final_sparsity)
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                f"{name}: final_sparsity must not be below initial_sparsity, since pruned weights stay pruned. "
                f"Received: initial_sparsity={self.initial_sparsity}, final_sparsity={self.final_sparsity}"
            )
        _check_steps(self, self.begin_step, self.end_step, self.frequency)

    def should_update(self, step: int) -> bool:
        return _on_grid(step, self.begin_step, self.end_step, self.frequency)

    def __call__(self, step: int) -> float:
        if step < self.begin_step:
            return 0.0
        span = self.end_step - self.begin_step
        progress = 1.0 if span == 0 else min(1.0, (step - self.begin_step) / span)
        # The ends are returned as given, so that no rounding moves the final count.
        if progress == 0.0:
            return self.initial_sparsity
        return self.final_sparsity if progress == 1.0 else self._between(progress)

    @abstractmethod
    def _between(self, progress: float) -> float:
        raise NotImplementedError(f"{type(self).__name__} must define _between(progress)")


@_register
@dataclasses.dataclass(frozen=True)
class PolynomialDecay(_Ramp):
    r"""Fast first, slow at the end: $s = s_f + (s_i - s_f)(1 - p)^{power}$.

    Args:
        initial_sparsity: $s_i$, a fraction in [0, 1).
        final_sparsity: $s_f$, a fraction in [0, 1).
        begin_step: the step of the first pruning; before it the sparsity is 0.
        end_step: the step from which $s_f$ holds.
        power: any positive number; 3 in the paper.
        frequency: steps between two changes of the masks.

    Raises:
        ValueError: a sparsity outside [0, 1), end before begin, a power that is not positive.

    Source: Zhu and Gupta 2017, "To prune, or not to prune", equation 1.

    Example:
        >>> PolynomialDecay(0.0, 0.8, begin_step=0, end_step=10, power=1.0)(5)
        0.4
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
@dataclasses.dataclass(frozen=True)
class Linear(_Ramp):
    r"""At constant speed: $s = s_i + (s_f - s_i) p$.

    Example:
        >>> Linear(0.0, 0.5, begin_step=0, end_step=100)(50)
        0.25
    """

    def _between(self, progress: float) -> float:
        return self.initial_sparsity + (self.final_sparsity - self.initial_sparsity) * progress


@_register
@dataclasses.dataclass(frozen=True)
class Cosine(_Ramp):
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
@dataclasses.dataclass(frozen=True)
class Exponential(_Ramp):
    r"""The same share of what is left at each step: $1 - s = (1 - s_i)\left(\frac{1 - s_f}{1 - s_i}\right)^p$.

    Source: the schedule of Tanaka et al. 2020, "Pruning neural networks without any data", algorithm 1.

    Example:
        >>> round(Exponential(0.0, 0.75, begin_step=0, end_step=100)(50), 6)
        0.5
    """

    def _between(self, progress: float) -> float:
        start = 1.0 - self.initial_sparsity
        return float(1.0 - start * ((1.0 - self.final_sparsity) / start) ** progress)


@_register
@dataclasses.dataclass(frozen=True)
class ConstantSparsity(Schedule):
    """The same target from `begin_step` on: $s = s_f$.

    Args:
        sparsity: $s_f$, a fraction in [0, 1).
        begin_step: the step of the pruning; before it the sparsity is 0.
        end_step: the last step at which masks may change (with growth they go on changing); None for no end.
        frequency: steps between two changes of the masks.

    Example:
        >>> ConstantSparsity(0.5, begin_step=10)(9), ConstantSparsity(0.5, begin_step=10)(10)
        (0.0, 0.5)
    """

    sparsity: float
    _: dataclasses.KW_ONLY
    begin_step: int = 0
    end_step: int | None = None
    frequency: int = 100

    def __post_init__(self) -> None:
        to_integers(self, "begin_step", "end_step", "frequency")
        to_numbers(self, "sparsity")
        check_fraction("ConstantSparsity: sparsity", self.sparsity)
        _check_steps(self, self.begin_step, self.end_step, self.frequency)

    def __call__(self, step: int) -> float:
        return self.sparsity if step >= self.begin_step else 0.0

    def should_update(self, step: int) -> bool:
        return _on_grid(step, self.begin_step, self.end_step, self.frequency)


@_register
@dataclasses.dataclass(frozen=True)
class OneShot(Schedule):
    """All at once at one step.

    Args:
        sparsity: a fraction in [0, 1).
        step: when; 0 is before training.

    Example:
        >>> [step for step in range(100) if OneShot(0.5, step=7).should_update(step)]
        [7]
    """

    sparsity: float
    _: dataclasses.KW_ONLY
    step: int = 0

    def __post_init__(self) -> None:
        to_integers(self, "step")
        to_numbers(self, "sparsity")
        check_fraction("OneShot: sparsity", self.sparsity)
        if self.step < 0:
            raise ValueError(f"OneShot: step must be 0 or more. Received: step={self.step}")

    @property
    def first_step(self) -> int:
        return self.step

    def __call__(self, step: int) -> float:
        return self.sparsity if step >= self.step else 0.0

    def should_update(self, step: int) -> bool:
        return step == self.step


@_register
@dataclasses.dataclass(frozen=True)
class Iterative(Schedule):
    r"""Rounds of prune and recover: after round i of n, $1 - s = (1 - s_f)^{i/n}$.

    Each round prunes the same share of the weights that are left, then trains `interval` steps to recover. With
    `rewind_to` the survivors (and all other trainable weights) go back, after each pruning, to the values that they
    had at that step, as for lottery tickets; the optimizer's moments stay.

    Args:
        sparsity: $s_f$ after the last round, a fraction in [0, 1).
        rounds: n, 1 or more.
        interval: steps of training between two prunings.
        begin_step: the step of the first pruning.
        rewind_to: a step not after `begin_step`, or None to go on from the trained weights.

    Source: Frankle and Carbin 2019, "The lottery ticket hypothesis"; rewinding to an early step: Frankle et al. 2020,
    "Linear mode connectivity and the lottery ticket hypothesis", section 4.

    Example:
        >>> rounds = Iterative(0.75, rounds=2, interval=100, begin_step=100)
        >>> [rounds(step) for step in (99, 100, 200)], rounds.last_step
        ([0.0, 0.5, 0.75], 200)
    """

    sparsity: float
    _: dataclasses.KW_ONLY
    rounds: int
    interval: int
    begin_step: int = 0
    rewind_to: int | None = None

    def __post_init__(self) -> None:
        to_integers(self, "rounds", "interval", "begin_step", "rewind_to")
        to_numbers(self, "sparsity")
        check_fraction("Iterative: sparsity", self.sparsity)
        _check_steps(self, self.begin_step, None, 1)
        if self.rounds < 1 or self.interval < 1:
            raise ValueError(
                "Iterative: rounds and interval must be 1 or more. "
                f"Received: rounds={self.rounds}, interval={self.interval}"
            )
        if self.rewind_to is not None and not 0 <= self.rewind_to <= self.begin_step:
            raise ValueError(
                "Iterative: rewind_to must be a step from 0 to begin_step, whose weights are known when the first "
                f"round ends. Received: rewind_to={self.rewind_to}, begin_step={self.begin_step}"
            )

    @property
    def last_step(self) -> int:
        return self.begin_step + (self.rounds - 1) * self.interval

    @property
    def rewind_step(self) -> int | None:
        return self.rewind_to

    def __call__(self, step: int) -> float:
        if step < self.begin_step:
            return 0.0
        done = min(self.rounds, (step - self.begin_step) // self.interval + 1)
        return self.sparsity if done == self.rounds else 1.0 - (1.0 - self.sparsity) ** (done / self.rounds)

    def should_update(self, step: int) -> bool:
        return _on_grid(step, self.begin_step, self.last_step, self.interval)


@_register
@dataclasses.dataclass(frozen=True)
class Piecewise(Schedule):
    """Given points: from `steps[i]` on the target is `sparsities[i]`, or the straight line between the points.

    Args:
        steps: increasing steps.
        sparsities: a fraction in [0, 1) for each, not decreasing.
        interpolate: follow the line between points instead of jumping at them.
        frequency: with `interpolate`, steps between two changes of the masks.

    Example:
        >>> Piecewise((0, 100), (0.2, 0.6))(50), Piecewise((0, 100), (0.2, 0.6), interpolate=True)(50)
        (0.2, 0.4)
    """

    steps: tuple[int, ...]
    sparsities: tuple[float, ...]
    _: dataclasses.KW_ONLY
    interpolate: bool = False
    frequency: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "sparsities"):
            if not isinstance(getattr(self, name), Iterable):
                raise TypeError(f"Piecewise: {name} must be a sequence. Received: {name}={getattr(self, name)!r}")
        object.__setattr__(self, "steps", tuple(integer("Piecewise: each of steps", step) for step in self.steps))
        object.__setattr__(self, "sparsities", tuple(self.sparsities))
        to_integers(self, "frequency")
        if not self.steps or len(self.steps) != len(self.sparsities):
            raise ValueError(
                "Piecewise: steps and sparsities must be of one length, 1 or more. "
                f"Received: steps={self.steps}, sparsities={self.sparsities}"
            )
        for value in self.sparsities:
            check_fraction("Piecewise: each of sparsities", value)
        object.__setattr__(self, "sparsities", tuple(map(float, self.sparsities)))
        if list(self.steps) != sorted(set(self.steps)) or self.steps[0] < 0:
            raise ValueError(f"Piecewise: steps must increase from 0 or more. Received: steps={self.steps}")
        if list(self.sparsities) != sorted(self.sparsities):
            raise ValueError(
                "Piecewise: sparsities must not decrease, since pruned weights stay pruned. "
                f"Received: sparsities={self.sparsities}"
            )
        _check_steps(self, self.steps[0], self.steps[-1], self.frequency)

    @property
    def first_step(self) -> int:
        return self.steps[0]

    @property
    def last_step(self) -> int:
        return self.steps[-1]

    def __call__(self, step: int) -> float:
        reached = sum(1 for point in self.steps if point <= step)
        if reached == 0:
            return 0.0
        value = self.sparsities[reached - 1]
        if not self.interpolate or reached == len(self.steps):
            return value
        start, stop = self.steps[reached - 1], self.steps[reached]
        return value + (self.sparsities[reached] - value) * (step - start) / (stop - start)

    def should_update(self, step: int) -> bool:
        if step in self.steps:
            return True
        return self.interpolate and _on_grid(step, self.steps[0], self.steps[-1], self.frequency)


@_register
@dataclasses.dataclass(frozen=True)
class Threshold(Schedule):
    r"""A bound for scores instead of a sparsity: weights with score $\le \theta$ are pruned.

    $\theta$ is fixed, or ramps linearly from `value` to `final_value` between the two steps; with `relative_to="std"`
    it is a factor of each tensor's own standard deviation, $\theta = value \cdot \sigma(w)$, taken when the masks
    change, over the weights that are on: every further update goes further, until `end_step`.

    Args:
        value: $\theta$, 0 or more.
        final_value: where the ramp ends; None for a fixed bound.
        begin_step: the step of the first pruning.
        end_step: the last step at which masks change; None for no end (then there is no ramp).
        frequency: steps between two changes of the masks.
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
    begin_step: int = 0
    end_step: int | None = None
    frequency: int = 100
    relative_to: str | None = None

    def __post_init__(self) -> None:
        to_integers(self, "begin_step", "end_step", "frequency")
        if self.value is None:
            raise TypeError("Threshold: value must be a number. Received: value=None")
        to_numbers(self, "value", "final_value")
        for name in ("value", "final_value"):
            bound = getattr(self, name)
            if bound is not None and not (bound >= 0 and math.isfinite(bound)):
                raise ValueError(f"Threshold: {name} must be 0 or more, and finite. Received: {name}={bound}")
        if self.final_value is not None and self.end_step is None:
            raise ValueError(
                "Threshold: a ramp to final_value needs end_step, the step at which it arrives. "
                f"Received: final_value={self.final_value}, end_step=None"
            )
        if self.relative_to not in (None, "std"):
            raise ValueError(f"Threshold: relative_to must be None or 'std'. Received: {self.relative_to!r}")
        _check_steps(self, self.begin_step, self.end_step, self.frequency)

    def __call__(self, step: int) -> float:
        if self.final_value is None or self.end_step is None:
            return self.value
        span = self.end_step - self.begin_step
        progress = 1.0 if span == 0 else min(1.0, max(0.0, (step - self.begin_step) / span))
        return self.value + (self.final_value - self.value) * progress

    def should_update(self, step: int) -> bool:
        return _on_grid(step, self.begin_step, self.end_step, self.frequency)
