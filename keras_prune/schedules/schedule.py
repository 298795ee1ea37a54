r"""What a schedule is: a pure function of the optimizer's step, which knows no tensor.

In the formulas of this package the begin step is $t_0$, the end step $t_1$ and the progress
$p = (t - t_0) / (t_1 - t_0)$, clipped to [0, 1]; they give the sparsity $s(t)$, a fraction in [0, 1).
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import ClassVar

from keras_prune.schedules.spans import Span
from keras_prune.strategy import Strategy, declared

__all__ = ["Schedule", "check_steps", "on_grid", "unresolved"]


@dataclasses.dataclass(frozen=True)
class Schedule(Strategy):
    """A target for every step, and the steps at which masks are brought to it.

    `schedule(step)` is the target, and `should_update(step)` says whether masks change, once `step` optimizer steps are
    done (0: before the first). A subclass defines these two, and `first_step` and `last_step` unless it has fields
    `begin_step` and `end_step`.

    Example:
        >>> from keras_prune.schedules import PolynomialDecay
        >>> schedule = PolynomialDecay(0.0, 0.9, begin_step=0, end_step=1000)
        >>> [round(schedule(step), 3) for step in (0, 500, 1000)]
        [0.0, 0.787, 0.9]
        >>> [step for step in range(1001) if schedule.should_update(step)][:3]
        [0, 100, 200]
    """

    kind: ClassVar[str] = "schedule"
    gives: ClassVar[str] = "sparsity"
    """What the target is: "sparsity", a fraction in [0, 1), or "threshold": what scores at or below it is pruned."""
    relative_to = declared(None)
    """What a threshold is a factor of: None for itself, "std" for each tensor's own standard deviation."""
    begin_step = declared(0)
    """The step of the first change, 0, or a field. Where it is not a field, override `first_step`."""
    end_step = declared(None)
    """The step of the last change, None for no end, or a field. Where it is not a field, override `last_step`."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the target, a sparsity or a threshold (`gives`).

        Args:
            step: the number of optimizer steps done.
        """

    @abstractmethod
    def should_update(self, step: int) -> bool:
        """Return whether masks change.

        Args:
            step: the number of optimizer steps done.
        """

    @property
    def is_relative(self) -> bool:
        """Whether the schedule counts in shares or epochs of a training, and has no steps before it is resolved."""
        return False

    def resolve(self, span: Span) -> Schedule:
        """Return the schedule in steps of a training.

        Args:
            span: the training.

        Example:
            >>> from keras_prune.schedules import PolynomialDecay
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


def check_steps(schedule: Schedule, begin: int | None, end: int | None, frequency: int | None) -> None:
    """Refuse steps that are negative or in the wrong order, and a frequency below 1.

    Raises:
        ValueError: with the values.
    """
    name = type(schedule).__name__
    if begin is not None and begin < 0:
        raise ValueError(f"{name}: begin_step must be 0 or more. Received: begin_step={begin}")
    if begin is not None and end is not None and end < begin:
        raise ValueError(
            f"{name}: end_step must not come before begin_step. Received: begin_step={begin}, end_step={end}"
        )
    if frequency is not None and frequency < 1:
        raise ValueError(f"{name}: frequency must be 1 step or more. Received: frequency={frequency}")


def unresolved(schedule: Schedule) -> ValueError:
    """Return the error for a schedule that is asked for steps before it has some."""
    return ValueError(
        f"{schedule} counts in shares or epochs of a training, so it has no steps yet. Give it to a callback in fit; "
        "in a loop of your own write attach(model, total_steps=...); or call resolve(schedules.Span(start=0, "
        "total=...))."
    )


def on_grid(step: int, begin: int, end: int | None, frequency: int) -> bool:
    """Return whether a step is one of every `frequency` from begin to end; the end always is, to reach the target."""
    if step < begin or (end is not None and step > end):
        return False
    return step == end or (step - begin) % frequency == 0
