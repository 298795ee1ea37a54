"""Schedules that begin, change masks every so many steps, and end: where, is said in steps, shares or epochs.

Where a training begins and how long it is, a schedule need not know. `begin="10%"` and `end="70%"` are shares of the
`fit` that it is given to, `begin_epoch=1` and `end_epoch=5` are epochs of it, counted from 0 as `fit` counts them. A
callback puts steps in their place, `schedule.resolve(span)`, once the length of the training is known.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from keras.saving import register_keras_serializable

from keras_prune.schedules.schedule import Schedule, check_steps, on_grid, unresolved
from keras_prune.schedules.spans import Span, Time, check_time
from keras_prune.strategy import check_fraction, to_integers, to_numbers

__all__ = ["ConstantSparsity", "TimedSchedule", "given_edge"]

_register = register_keras_serializable(package="keras_prune")


def given_edge(schedule: Any, edge: str) -> Time | None:
    """Return where a schedule begins or ends: a step, a text ("10%", "2 epochs"), or None where it does not say.

    Args:
        schedule: with the fields of a `TimedSchedule`.
        edge: "begin" or "end".

    Raises:
        ValueError: two fields say it, or the epoch is below 0.
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


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class TimedSchedule(Schedule):
    """Base of schedules that begin, change masks every `frequency` steps, and end.

    Args:
        begin_step: the step of the first change. Or `begin="10%"`, `begin_epoch=1`.
        end_step: the step of the last change. Or `end="70%"`, `end_epoch=5`.
        frequency: steps between two changes of the masks; None for 100, or with shares and epochs for a hundredth of
            the training.
    """

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
        for edge in ("begin", "end"):
            given_edge(self, edge)  # refuses what says it twice
        if self.frequency is None and not self.is_relative:
            object.__setattr__(self, "frequency", 100)
        check_steps(self, self.begin_step, self.end_step, self.frequency)

    @property
    def is_relative(self) -> bool:
        # Asked at every step of a training.
        said = (self.begin, self.end, self.begin_epoch, self.end_epoch)
        return any(value is not None for value in said)

    def resolve(self, span: Span) -> Schedule:
        if not self.is_relative:
            return self
        begin, end = given_edge(self, "begin"), given_edge(self, "end")
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
        """Return where it begins and ends, and how often masks change.

        Raises:
            ValueError: it counts in shares or epochs, and is not resolved.
        """
        if self.begin_step is None or self.frequency is None or self.is_relative:
            raise unresolved(self)
        return self.begin_step, self.end_step, self.frequency

    @property
    def first_step(self) -> int:
        return self._in_steps()[0]

    @property
    def last_step(self) -> int:
        first, last, _ = self._in_steps()
        return first if last is None else last

    def should_update(self, step: int) -> bool:
        return on_grid(step, *self._in_steps())


@_register
@dataclasses.dataclass(frozen=True, repr=False)
class ConstantSparsity(TimedSchedule):
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
        if given_edge(self, "begin") is None:
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
