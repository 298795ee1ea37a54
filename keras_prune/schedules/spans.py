"""How long a training is, and where in it a share ("10%"), an epoch ("2 epochs") or a step lies."""

from __future__ import annotations

import dataclasses
import numbers
import re
from typing import Any

__all__ = ["Extent", "Span", "Time", "check_time"]

Time = int | str
"""A step, or a text: a share of the training ("10%"), or so many epochs from its beginning ("2 epochs")."""

TEXT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|epochs?)\s*")


@dataclasses.dataclass(frozen=True)
class Span:
    """A training in steps of the optimizer.

    Args:
        start: the step at which it begins.
        total: how many steps it has.
        epoch_steps: how many of them an epoch has, None in a loop without epochs.
        first_epoch: the number of its first epoch; with `initial_epoch` of `fit` not 0.
        now: nothing can happen before this step; it is later than `start` if the length became known late.

    Raises:
        ValueError: a number is negative, or there is no step at all.

    Example:
        >>> span = Span(start=200, total=1000, epoch_steps=100)
        >>> span.step("10%"), span.step("2 epochs"), span.step(250), span.length("10%")
        (300, 400, 250, 100)
    """

    start: int
    total: int
    epoch_steps: float | None = None
    first_epoch: int = 0
    now: int = 0

    def __post_init__(self) -> None:
        if self.start < 0 or self.total < 1 or (self.epoch_steps is not None and not self.epoch_steps > 0):
            raise ValueError(
                "Span: a training begins at step 0 or later and has one step at least. Received: "
                f"start={self.start}, total={self.total}, epoch_steps={self.epoch_steps}"
            )

    @property
    def end(self) -> int:
        """The step at which the training ends."""
        return self.start + self.total

    def step(self, time: Time) -> int:
        """Return the step that a time stands for.

        Args:
            time: a step, which is returned as it is; or a text, whose step is not before `start` or `now`. A share
                above 0 is at least one step after the start.
        """
        if isinstance(time, int):
            return time
        number, is_share = _parse(time)
        if is_share:
            steps = round(number / 100 * self.total)
            return max(self.start + (max(1, steps) if number else 0), self.now)
        return max(self.start + round((number - self.first_epoch) * self._epoch(time)), self.start, self.now)

    def length(self, time: Time) -> int:
        """Return how many steps a share of the training, or a number of epochs, comes to: one at least."""
        if isinstance(time, int):
            return time
        number, is_share = _parse(time)
        return max(1, round(number / 100 * self.total if is_share else number * self._epoch(time)))

    def _epoch(self, time: Time) -> float:
        if self.epoch_steps is None:
            raise ValueError(
                f"{time!r} counts epochs, and how many steps one has is not known. In a training loop of your own "
                "write attach(model, total_steps=..., steps_per_epoch=...)."
            )
        return self.epoch_steps


@dataclasses.dataclass(frozen=True)
class Extent:
    """What is known of a training's length when it begins.

    Attributes:
        epoch: the number of its first epoch.
        epochs: the number at which epochs end.
        batches: how many an epoch has, None where a data set does not say.
        total: how many steps it has, in a loop of the user's own.
        epoch_steps: how many steps an epoch has, likewise.
    """

    epoch: int = 0
    epochs: int | None = None
    batches: int | None = None
    total: int | None = None
    epoch_steps: float | None = None


def _parse(text: str) -> tuple[float, bool]:
    match = TEXT.fullmatch(text)
    assert match is not None, text  # checked where it was given
    return float(match[1]), match[2] == "%"


def check_time(subject: str, value: Any) -> None:
    """Refuse a text that is no time.

    Raises:
        ValueError: it cannot be read, or is a share above 100 %. TypeError: it is no text.
    """
    if isinstance(value, str):
        match = TEXT.fullmatch(value)
        if match is not None and (match[2] != "%" or float(match[1]) <= 100):
            return
        raise ValueError(
            f"{subject} must be a share of the training, from '0%' to '100%', or a number of epochs as in '2 epochs'. "
            f"Received: {value!r}"
        )
    hint = f" Write '{value * 100:g}%'." if isinstance(value, float) and 0 <= value <= 1 else ""
    known = isinstance(value, numbers.Number)
    also = f" Steps have an argument of their own, {subject.split(': ')[-1]}_step." if known and not hint else ""
    raise TypeError(
        f"{subject} must be a share of the training as in '10%', or epochs as in '2 epochs'. Received: {value!r}."
        f"{hint}{also}"
    )
