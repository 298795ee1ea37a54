"""Where the ramp of a part stands while a model trains."""

from __future__ import annotations

import keras

from keras_prune.schedules import Schedule
from keras_prune.schedules.spans import Span

__all__ = ["RampLevel"]


class RampLevel:
    """The value of a ramp at its last change, also where a training goes on between two changes.

    Args:
        ramp: the schedule.
        variable: a scalar that takes the share of the ramp's final value.
    """

    def __init__(self, ramp: Schedule, variable: keras.Variable) -> None:
        self.ramp = self._asked = ramp
        self.variable = variable

    def resolve(self, span: Span) -> None:
        """Put the ramp into the steps of a training."""
        self.ramp = self._asked.resolve(span)

    def changes(self, step: int) -> bool:
        """Whether the ramp changes at a step: where it says so, and always where its final value begins."""
        return self.ramp.should_update(step) or step == self.ramp.target_step

    def start(self, step: int) -> None:
        """Set the variable for a training that begins at a step or goes on from it."""
        changes = range(min(step, self.ramp.last_step), self.ramp.first_step - 1, -1)
        self._set(next(filter(self.changes, changes), min(step, self.ramp.first_step)))

    def follow(self, passed: range) -> None:
        """Set the variable if the ramp changes at one of the steps that have passed."""
        last = next(filter(self.changes, reversed(passed)), None)
        if last is not None:
            self._set(last)

    def _set(self, step: int) -> None:
        self.variable.assign(self.ramp(step) / self.ramp.final if self.ramp.final else 0.0)
