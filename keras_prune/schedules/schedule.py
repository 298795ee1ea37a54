r"""Step -> target: how much is to be pruned when, and at which steps the masks change.

Every schedule is a pure function of the optimizer's step; it knows no tensor. With begin step $t_0$, end step $t_1$ and
progress $p = (t - t_0) / (t_1 - t_0)$ clipped to [0, 1], the formulas below give the sparsity $s(t)$, a fraction in
[0, 1).

Where a training begins and how long it is, a schedule need not know: `begin="10%"` and `end="70%"` are shares of the
`fit` that it is given to, `begin_epoch=1` and `end_epoch=5` epochs of it, counted from 0 as `fit` counts them. A
callback puts steps in their place, `schedule.resolve(span)`, once the length of the training is known.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from keras.saving import register_keras_serializable

from keras_prune.schedules.spans import Span, Time, check_time
from keras_prune.strategy import Strategy, check_fraction, declared, integer, to_integers, to_numbers

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
    "Span",
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
    """What the target is: "sparsity", a fraction in [0, 1), or "threshold", a bound for scores."""
    relative_to = declared(None)
    """What a threshold is a factor of: None for itself, "std" for each tensor's own standard deviation."""
    begin_step = declared(0)
    """The step of the first change, 0, or a field. Where it is not a field, override `first_step`."""
    end_step = declared(None)
    """The step of the last change, None for no end, or a field. Where it is not a field, override `last_step`."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the target at `step`, the number of optimizer steps done."""

    @abstractmethod
    def should_update(self, step: int) -> bool:
        """Say whether masks change when `step` optimizer steps are done."""

    @property
    def is_relative(self) -> bool:
        """Whether it counts in shares or epochs of a training, and has no steps before it is resolved."""
        return False

    def resolve(self, span: Span) -> Schedule:
        """Return the schedule in steps of a training.

        Example:
            >>> PolynomialDecay(0.0, 0.9, begin="10%", end="70%").resolve(Span(start=0, total=2000)).get_config()[
            ...     "end_step"
            ... ]
            1400
        """
        return self

    @property
    def first_step(self) -> int:
        """The first step at which masks change."""
        return int(self.begin_step)

    @property
    def last_step(self) -> int:
        """The last step at which masks change; the first one, where there is no end."""
        return self.first_step if self.end_step is None else int(self.end_step)

    @property
    def target_step(self) -> int:
        """The step from which the final target holds."""
        return self.last_step

    @property
    def final(self) -> float:
        """The target at the end of the schedule."""
        return self(self.last_step)

    @property
    def rewinds(self) -> bool:
        """Whether the survivors go back to earlier weights after each pruning."""
        return self.rewind_step is not None

    @property
    def rewind_step(self) -> int | None:
        """The step whose weights the survivors go back to after each pruning, or None."""
        return None


def _check_steps(schedule: Schedule, begin: int | None, end: int | None, frequency: int | None) -> None:
    name = type(schedule).__name__
    if begin is not None and begin < 0:
        raise ValueError(f"{name}: begin_step must be 0 or more. Received: begin_step={begin}")
    if begin is not None and end is not None and end < begin:
        raise ValueError(
            f"{name}: end_step must not come before begin_step. Received: begin_step={begin}, end_step={end}"
        )
    if frequency is not None and frequency < 1:
        raise ValueError(f"{name}: frequency must be 1 step or more. Received: frequency={frequency}")


def _given(schedule: Any, edge: str) -> Time | None:
    """What a schedule says of its "begin" or "end": a step, a text, or nothing.

    Raises:
        ValueError: it says two things, or an epoch below 0.
    """
    name = type(schedule).__name__
    step, text, epoch = (getattr(schedule, field) for field in (f"{edge}_step", edge, f"{edge}_epoch"))
    said = {f"{edge}_step": step, edge: text, f"{edge}_epoch": epoch}
    if sum(value is not None for value in said.values()) > 1:
        shown = ", ".join(f"{field}={value!r}" for field, value in said.items() if value is not None)
        raise ValueError(f"{name}: one of {', '.join(said)} says where it {edge}s. Received: {shown}")
    if text is not None:
        check_time(f"{name}: {edge}", text)
        return str(text)
    if epoch is None:
        return None if step is None else int(step)
    if epoch < 0:
        raise ValueError(f"{name}: {edge}_epoch must be 0 or more. Received: {edge}_epoch={epoch}")
    return f"{epoch:.10g} epochs"


def _unresolved(schedule: Schedule) -> ValueError:
    return ValueError(
        f"{schedule} counts in shares or epochs of a training, so it has no steps yet. Give it to a callback in fit; "
        "in a loop of your own write attach(model, total_steps=...); or call resolve(schedules.Span(start=0, "
        "total=...))."
    )


def _on_grid(step: int, begin: int, end: int | None, frequency: int) -> bool:
    """Every `frequency` steps from begin to end; the end always counts, so that the final target is reached."""
    if step < begin or (end is not None and step > end):
        return False
    return step == end or (step - begin) % frequency == 0


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class _Timed(Schedule):
    """Begins, changes masks every so many steps, and ends; where, is said in steps, in shares or in epochs."""

    begin_step: int | None = None
    end_step: int | None = None
    frequency: int | None = None
    begin: str | None = None
    end: str | None = None
    begin_epoch: float | None = None
    end_epoch: float | None = None

    def __repr__(self) -> str:
        fields = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in fields)})"

    def __post_init__(self) -> None:
        to_integers(self, "begin_step", "end_step", "frequency")
        to_numbers(self, "begin_epoch", "end_epoch")
        if self.frequency is None and not self.is_relative:
            object.__setattr__(self, "frequency", 100)
        _check_steps(self, self.begin_step, self.end_step, self.frequency)

    @property
    def is_relative(self) -> bool:
        return any(isinstance(_given(self, edge), str) for edge in ("begin", "end"))

    def resolve(self, span: Span) -> Schedule:
        if not self.is_relative:
            return self
        begin, end = _given(self, "begin"), _given(self, "end")
        first = 0 if begin is None else span.step(begin)
        last = None if end is None else max(first, span.step(end))
        return dataclasses.replace(
            self,
            begin_step=first,
            end_step=last,
            frequency=self.frequency if self.frequency is not None else span.length("1%"),
            **dict.fromkeys(("begin", "end", "begin_epoch", "end_epoch")),
        )

    def _in_steps(self) -> tuple[int, int | None, int]:
        """Where it begins and ends, and how often masks change.

        Raises:
            ValueError: it is relative.
        """
        if self.begin_step is None or self.frequency is None or self.is_relative:
            raise _unresolved(self)
        return self.begin_step, self.end_step, self.frequency

    @property
    def first_step(self) -> int:
        return self._in_steps()[0]

    @property
    def last_step(self) -> int:
        first, last, _ = self._in_steps()
        return first if last is None else last

    def should_update(self, step: int) -> bool:
        return _on_grid(step, *self._in_steps())


@dataclasses.dataclass(frozen=True, repr=False)
class _Ramp(_Timed):
    """From an initial to a final sparsity between two steps; subclasses give the shape."""

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
            if _given(self, edge) is None:
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
class PolynomialDecay(_Ramp):
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
class Linear(_Ramp):
    r"""At constant speed: $s = s_i + (s_f - s_i) p$.

    Example:
        >>> Linear(0.0, 0.5, begin_step=0, end_step=100)(50)
        0.25
    """

    def _between(self, progress: float) -> float:
        return self.initial_sparsity + (self.final_sparsity - self.initial_sparsity) * progress


@_register
@dataclasses.dataclass(frozen=True, repr=False)
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
@dataclasses.dataclass(frozen=True, repr=False)
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
@dataclasses.dataclass(frozen=True, repr=False)
class ConstantSparsity(_Timed):
    """The same target from `begin_step` on: $s = s_f$.

    Args:
        sparsity: $s_f$, a fraction in [0, 1).
        begin_step: the step of the pruning; before it the sparsity is 0. Or `begin="10%"`, `begin_epoch=1`; None for 0.
        end_step: the last step at which masks may change (with growth they go on changing); None for no end. Or
            `end="70%"`, `end_epoch=5`.
        frequency: steps between two changes of the masks; None for 100, or with shares and epochs for a hundredth of
            the training.

    Example:
        >>> ConstantSparsity(0.5, begin_step=10)(9), ConstantSparsity(0.5, begin_step=10)(10)
        (0.0, 0.5)
    """

    sparsity: float

    def __post_init__(self) -> None:
        if _given(self, "begin") is None:
            object.__setattr__(self, "begin_step", 0)
        super().__post_init__()
        to_numbers(self, "sparsity")
        check_fraction("ConstantSparsity: sparsity", self.sparsity)

    @property
    def target_step(self) -> int:
        return self.first_step

    @property
    def final(self) -> float:
        return self.sparsity

    def __call__(self, step: int) -> float:
        return self.sparsity if step >= self.first_step else 0.0


@_register
@dataclasses.dataclass(frozen=True, repr=False)
class OneShot(Schedule):
    """All at once at one step.

    Args:
        sparsity: a fraction in [0, 1).
        step: when; 0, which is before training, or `"10%"` or `"2 epochs"` of the training.
        begin: the same as a text alone, as other schedules have it: `begin="10%"`.
        begin_epoch: the same as an epoch, counted from 0.

    Example:
        >>> [step for step in range(100) if OneShot(0.5, step=7).should_update(step)]
        [7]
        >>> OneShot(0.5, step="10%").resolve(Span(start=0, total=200))
        OneShot(sparsity=0.5, step=20)
    """

    sparsity: float
    _: dataclasses.KW_ONLY
    step: Time = 0
    begin: dataclasses.InitVar[str | None] = None
    begin_epoch: dataclasses.InitVar[float | None] = None

    def __repr__(self) -> str:
        return f"OneShot(sparsity={self.sparsity}, step={self.step!r})"

    def __post_init__(self, begin: str | None, begin_epoch: float | None) -> None:
        _set_begin(self, "step", begin, begin_epoch)
        _to_time(self, "step")
        to_numbers(self, "sparsity")
        check_fraction("OneShot: sparsity", self.sparsity)
        if isinstance(self.step, int) and self.step < 0:
            raise ValueError(f"OneShot: step must be 0 or more. Received: step={self.step}")

    @property
    def is_relative(self) -> bool:
        return isinstance(self.step, str)

    def resolve(self, span: Span) -> Schedule:
        return dataclasses.replace(self, step=span.step(self.step))

    @property
    def first_step(self) -> int:
        if isinstance(self.step, str):
            raise _unresolved(self)
        return self.step

    @property
    def final(self) -> float:
        return self.sparsity

    def __call__(self, step: int) -> float:
        return self.sparsity if step >= self.first_step else 0.0

    def should_update(self, step: int) -> bool:
        return step == self.first_step


def _set_begin(schedule: Schedule, field: str, begin: str | None, begin_epoch: float | None) -> None:
    """Put `begin` or `begin_epoch`, if one is given, into the field that holds when a schedule begins."""
    said = {field: getattr(schedule, field) or None, "begin": begin, "begin_epoch": begin_epoch}
    name, given = type(schedule).__name__, {key: value for key, value in said.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"{name}: one of {', '.join(said)} says where it begins. Received: {given}")
    if begin is not None:
        check_time(f"{name}: begin", begin)
        object.__setattr__(schedule, field, begin)
    if begin_epoch is not None:
        if not begin_epoch >= 0:
            raise ValueError(f"{name}: begin_epoch must be 0 or more. Received: begin_epoch={begin_epoch}")
        object.__setattr__(schedule, field, f"{begin_epoch:.10g} epochs")


def _to_time(schedule: Schedule, name: str) -> None:
    """Make a plain integer of a field that is no text, and check one that is."""
    value = getattr(schedule, name)
    if isinstance(value, str):
        check_time(f"{type(schedule).__name__}: {name}", value)
    else:
        to_integers(schedule, name)


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
        interval: steps of training between two prunings; or `"10%"` or `"2 epochs"` of the training.
        begin_step: the step of the first pruning; likewise.
        rewind_to: a step not after `begin_step`, likewise; None to go on from the trained weights.
        begin: `begin_step` as a text alone, as other schedules have it: `begin="10%"`.
        begin_epoch: the same as an epoch, counted from 0.

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
    interval: Time
    begin_step: Time = 0
    rewind_to: Time | None = None
    begin: dataclasses.InitVar[str | None] = None
    begin_epoch: dataclasses.InitVar[float | None] = None

    def __post_init__(self, begin: str | None, begin_epoch: float | None) -> None:
        _set_begin(self, "begin_step", begin, begin_epoch)
        to_integers(self, "rounds")
        for name in ("interval", "begin_step", "rewind_to"):
            _to_time(self, name)
        to_numbers(self, "sparsity")
        check_fraction("Iterative: sparsity", self.sparsity)
        interval, first, rewind = self.interval, self.begin_step, self.rewind_to
        _check_steps(self, first if isinstance(first, int) else None, None, 1)
        if self.rounds < 1 or (isinstance(interval, int) and interval < 1):
            raise ValueError(
                "Iterative: rounds and interval must be 1 or more. "
                f"Received: rounds={self.rounds}, interval={self.interval}"
            )
        if isinstance(rewind, int) and (rewind < 0 or (isinstance(first, int) and rewind > first)):
            raise ValueError(
                "Iterative: rewind_to must be a step from 0 to begin_step, whose weights are known when the first "
                f"round ends. Received: rewind_to={self.rewind_to}, begin_step={self.begin_step}"
            )

    @property
    def is_relative(self) -> bool:
        return any(isinstance(time, str) for time in (self.interval, self.begin_step, self.rewind_to))

    def resolve(self, span: Span) -> Schedule:
        return dataclasses.replace(
            self,
            interval=span.length(self.interval),
            begin_step=span.step(self.begin_step),
            rewind_to=None if self.rewind_to is None else span.step(self.rewind_to),
        )

    def _in_steps(self) -> tuple[int, int]:
        if isinstance(self.begin_step, str) or isinstance(self.interval, str) or isinstance(self.rewind_to, str):
            raise _unresolved(self)
        return self.begin_step, self.interval

    @property
    def first_step(self) -> int:
        return self._in_steps()[0]

    @property
    def last_step(self) -> int:
        begin, interval = self._in_steps()
        return begin + (self.rounds - 1) * interval

    @property
    def final(self) -> float:
        return self.sparsity

    @property
    def rewinds(self) -> bool:
        return self.rewind_to is not None

    @property
    def rewind_step(self) -> int | None:
        if isinstance(self.rewind_to, str):
            raise _unresolved(self)
        return self.rewind_to

    def __call__(self, step: int) -> float:
        begin, interval = self._in_steps()
        if step < begin:
            return 0.0
        done = min(self.rounds, (step - begin) // interval + 1)
        return self.sparsity if done == self.rounds else 1.0 - (1.0 - self.sparsity) ** (done / self.rounds)

    def should_update(self, step: int) -> bool:
        begin, interval = self._in_steps()
        return _on_grid(step, begin, self.last_step, interval)


@_register
@dataclasses.dataclass(frozen=True)
class Piecewise(Schedule):
    """Given points: from `steps[i]` on the target is `sparsities[i]`, or the straight line between the points.

    Args:
        steps: increasing steps; or all of them texts, `"10%"` or `"2 epochs"` of the training.
        sparsities: a fraction in [0, 1) for each, not decreasing.
        interpolate: follow the line between points instead of jumping at them.
        frequency: with `interpolate`, steps between two changes of the masks.

    Example:
        >>> Piecewise((0, 100), (0.2, 0.6))(50), Piecewise((0, 100), (0.2, 0.6), interpolate=True)(50)
        (0.2, 0.4)
    """

    steps: tuple[Time, ...]
    sparsities: tuple[float, ...]
    _: dataclasses.KW_ONLY
    interpolate: bool = False
    frequency: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "sparsities"):
            if not isinstance(getattr(self, name), Iterable):
                raise TypeError(f"Piecewise: {name} must be a sequence. Received: {name}={getattr(self, name)!r}")
        if isinstance(self.steps, str):
            raise TypeError(f"Piecewise: steps must be a sequence. Received: steps={self.steps!r}")
        steps: tuple[Time, ...] = tuple(self.steps)
        for step in steps:
            if isinstance(step, str):
                check_time("Piecewise: each of steps", step)
        if not any(isinstance(step, str) for step in steps):
            steps = tuple(integer("Piecewise: each of steps", step) for step in steps)
        elif not all(isinstance(step, str) for step in steps):
            raise TypeError(f"Piecewise: steps must be all steps or all texts. Received: steps={steps}")
        object.__setattr__(self, "steps", steps)
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
        if not self.is_relative:
            points = self._points()
            if list(points) != sorted(set(points)) or points[0] < 0:
                raise ValueError(f"Piecewise: steps must increase from 0 or more. Received: steps={self.steps}")
        if list(self.sparsities) != sorted(self.sparsities):
            raise ValueError(
                "Piecewise: sparsities must not decrease, since pruned weights stay pruned. "
                f"Received: sparsities={self.sparsities}"
            )
        _check_steps(self, None, None, self.frequency)

    @property
    def is_relative(self) -> bool:
        return any(isinstance(step, str) for step in self.steps)

    def resolve(self, span: Span) -> Schedule:
        if not self.is_relative:
            return self
        # Of points that fall on one step, as those do that lie before the length was known, the last counts.
        points = {span.step(step): sparsity for step, sparsity in zip(self.steps, self.sparsities, strict=True)}
        return dataclasses.replace(self, steps=tuple(points), sparsities=tuple(points.values()))

    def _points(self) -> tuple[int, ...]:
        if self.is_relative:
            raise _unresolved(self)
        return tuple(int(step) for step in self.steps)

    @property
    def first_step(self) -> int:
        return self._points()[0]

    @property
    def last_step(self) -> int:
        return self._points()[-1]

    @property
    def final(self) -> float:
        return self.sparsities[-1]

    def __call__(self, step: int) -> float:
        points = self._points()
        reached = sum(1 for point in points if point <= step)
        if reached == 0:
            return 0.0
        value = self.sparsities[reached - 1]
        if not self.interpolate or reached == len(points):
            return value
        start, stop = points[reached - 1], points[reached]
        return value + (self.sparsities[reached] - value) * (step - start) / (stop - start)

    def should_update(self, step: int) -> bool:
        points = self._points()
        if step in points:
            return True
        return self.interpolate and _on_grid(step, points[0], points[-1], self.frequency)


@_register
@dataclasses.dataclass(frozen=True, repr=False)
class Threshold(_Timed):
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
        if _given(self, "begin") is None:
            object.__setattr__(self, "begin_step", 0)
        super().__post_init__()
        if self.value is None:
            raise TypeError("Threshold: value must be a number. Received: value=None")
        to_numbers(self, "value", "final_value")
        for name in ("value", "final_value"):
            bound = getattr(self, name)
            if bound is not None and not (bound >= 0 and math.isfinite(bound)):
                raise ValueError(f"Threshold: {name} must be 0 or more, and finite. Received: {name}={bound}")
        if self.final_value is not None and _given(self, "end") is None:
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
