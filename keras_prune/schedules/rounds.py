"""Schedules that prune once, or in rounds of pruning and recovering."""

from __future__ import annotations

import dataclasses

from keras.saving import register_keras_serializable

from keras_prune.schedules.schedule import Schedule, check_steps, on_grid, unresolved
from keras_prune.schedules.spans import Span, Time, check_time
from keras_prune.strategy import check_fraction, to_integers, to_numbers

__all__ = ["Iterative", "OneShot"]

_register = register_keras_serializable(package="keras_prune")


@_register
@dataclasses.dataclass(frozen=True, repr=False)
class OneShot(Schedule):
    """All at once at one step.

    Args:
        sparsity: a fraction in [0, 1).
        step: when; 0, which is before training, or `"10%"` or `"2 epochs"` of the training.
        begin: the same, named as in other schedules: `begin="10%"`.
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
        set_begin(self, "step", begin, begin_epoch)
        to_time(self, "step")
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
            raise unresolved(self)
        return self.step

    @property
    def final(self) -> float:
        return self.sparsity

    def __call__(self, step: int) -> float:
        return self.sparsity if step >= self.first_step else 0.0

    def should_update(self, step: int) -> bool:
        return step == self.first_step


def set_begin(schedule: Schedule, field: str, begin: str | None, begin_epoch: float | None) -> None:
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


def to_time(schedule: Schedule, name: str) -> None:
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
        begin: the same, named as in other schedules: `begin="10%"`.
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
        set_begin(self, "begin_step", begin, begin_epoch)
        to_integers(self, "rounds")
        for name in ("interval", "begin_step", "rewind_to"):
            to_time(self, name)
        to_numbers(self, "sparsity")
        check_fraction("Iterative: sparsity", self.sparsity)
        interval, first, rewind = self.interval, self.begin_step, self.rewind_to
        check_steps(self, first if isinstance(first, int) else None, None, 1)
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
            raise unresolved(self)
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
            raise unresolved(self)
        return self.rewind_to

    def __call__(self, step: int) -> float:
        begin, interval = self._in_steps()
        if step < begin:
            return 0.0
        done = min(self.rounds, (step - begin) // interval + 1)
        return self.sparsity if done == self.rounds else 1.0 - (1.0 - self.sparsity) ** (done / self.rounds)

    def should_update(self, step: int) -> bool:
        begin, interval = self._in_steps()
        return on_grid(step, begin, self.last_step, interval)
