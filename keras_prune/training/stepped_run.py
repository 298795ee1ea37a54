"""A training that is followed step by step: when a change may be due, and what is done then."""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_prune.in_step.parts import RampLevel, TrainingPart
from keras_prune.masks.state import TrainingState
from keras_prune.optimizers.clock import Clock
from keras_prune.optimizers.finding import StepPart, has_own_step, hook, in_fit, unhook
from keras_prune.schedules import Schedule
from keras_prune.schedules.spans import Extent, Span

__all__ = ["SteppedRun"]

LOOKAHEAD = 256
"""How many steps ahead the next change is looked for at a time."""


class SteppedRun(ABC):
    """A training in which something changes at certain steps of the optimizer that moves given variables.

    Args:
        model: built and compiled.
        optimizers: that may move them.
        state: of the model.
        variables: the ones whose moves count.
        parts: what else acts in the step.
        history: the History of the `fit` that this is of; None in a loop of the user's own.

    Attributes:
        started: whether the training has begun.
        parts: what else acts in the step.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizers: Sequence[Any],
        state: TrainingState,
        variables: Sequence[keras.Variable],
        parts: Sequence[TrainingPart],
        history: Any,
    ) -> None:
        self.model = model
        self.parts = tuple(parts)
        self._optimizers = tuple(optimizers)
        self._state = state
        self._history = history if in_fit(model) else None
        self._clock = Clock(
            model, variables, optimizers, exact=len(optimizers) == 1 and (history is None or not has_own_step(model))
        )
        self._installed: list[tuple[Any, StepPart]] = []
        self._levels: list[RampLevel] = []
        self.started = False
        self._acting = False
        self._complained = False
        self._extent = Extent()
        self._span: Span | None = None
        self._went_on = False
        self._epochs = 0
        self._step = 0
        self._wake = 0
        self._seen = 0
        self._behind = 0
        self._patience = 1
        self._fastest = 1.0

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._clock.step

    @property
    def is_relative(self) -> bool:
        """Whether a schedule counts in shares or epochs, so that the length of the training has to be known."""
        return any(schedule.is_relative for schedule in self._schedules())

    @property
    def span(self) -> Span | None:
        """The training that shares and epochs refer to; None if nothing needs it, or it is not known yet."""
        return self._span

    @property
    def schedule_in_steps(self) -> Schedule:
        """The schedule, with steps in the place of shares and epochs, once they are known."""
        return self._given() if self._span is None else self._given().resolve(self._span)

    @property
    def now(self) -> int:
        """Optimizer steps done when they were last counted."""
        return self._step

    def step_limit(self, batches: int) -> int | None:
        """Return the step at which training ends after a number of batches from now; None if batches do not tell."""
        return self.step + batches // self._clock.calls if self._clock.exact else None

    def start(self, extent: Extent | None = None) -> None:
        """Begin, once weights are loaded: take up what an earlier run did, and act if a change is due at once.

        Args:
            extent: how long the training is, as far as known.
        """
        self.started = True
        self._extent = extent if extent is not None else Extent()
        plain = self._clock.begin()
        self._step = self.step
        if self._clock.exact:
            batches = self._extent.batches
            self._measure(batches / self._clock.calls if batches else self._extent.epoch_steps, self._step)
        self._take_up()
        if plain and (self._span is not None or not self.is_relative):
            self._begin_acting()

    def end(self) -> int:
        """End the run, even one that never began, as when a finished training is started once more; see `finish`."""
        if not self.started:
            self._step = self.step
            self._take_up()
        return self.finish()

    def on_step(self, batches: int = 1) -> None:
        """Note that some more batches were trained on, and act if a change is due.

        Args:
            batches: number of batches since the last call. The optimizer's count of steps is read only when a change
                may be due.
        """
        if not self.started:
            raise RuntimeError(f"{type(self).__name__}.start() comes before on_step().")
        self._behind += batches
        if self._behind >= self._patience:
            self.look()

    def look(self) -> None:
        """Read how many steps were done, and act if a change is due."""
        batches, self._behind = self._behind, 0
        self._seen += batches
        self._clock.look()
        if not self._acting and not self._can_act():
            self._step, self._patience = self.step, max(1, self._seen)
            return
        before, self._step = self._step, self.step
        if batches:
            self._fastest = max(self._fastest, (self._step - before) / batches)
        passed = range(before + 1, self._step + 1)
        for level in self._levels:
            level.follow(passed)
        self._act(passed)
        self._find_wake()

    def _can_act(self) -> bool:
        """Begin to act, if it is known by now which optimizer's steps count and how long the training is."""
        if not self._clock.known:
            return False
        self._step = self._clock.first
        if self.is_relative and self._span is None:
            extent, guess = self._extent, self._extent.epoch_steps
            if extent.batches and self._seen:
                # By what the first batches took, until the first epoch is over.
                guess = (self.step - self._step) / self._seen * extent.batches
            self._measure(guess, self._step)
            if self._span is None:
                return False
        self._begin_acting()
        return True

    def end_epoch(self) -> None:
        """Note that an epoch is over. If that tells how long the training is, schedules get their steps now."""
        self._epochs += 1
        known = self._went_on or (self._span is not None and self._clock.exact)
        if self._epochs > 1 or known or not self.is_relative or self._extent.epochs is None:
            return
        if self._span is None and self._extent.epochs - self._extent.epoch < 2:
            return  # Nothing is trained after this: what was pruned now could not recover.
        self.look()
        if not self._clock.known:
            return
        now = self.step
        # Where a guess was right nothing changes, and where it was not, only what is still to come.
        self._measure(now - self._clock.first, now if self._span is None else self._span.now)
        if self._acting:
            self._find_wake()
        elif self._span is not None:
            self._step = now
            self._begin_acting()

    def _measure(self, epoch_steps: float | None, now: int) -> None:
        """Find out how long the training is, from the steps of an epoch, and give schedules their steps."""
        if not self.is_relative:
            return
        extent, start, first = self._extent, self._clock.first, self._extent.epoch
        kept = self._kept_span(start) if self._span is None else None
        if kept is not None:
            self._went_on = True
            start, first, epoch_steps, now = kept
        if extent.total is not None:
            total = extent.total
        elif extent.epochs is not None and epoch_steps:
            total = math.floor((extent.epochs - first) * epoch_steps + 1e-6)
        else:
            return
        self._span = Span(start, max(1, total), epoch_steps, first, now)
        numbers = [self._fingerprint(), start, first, epoch_steps or 0.0, now]
        self._state.arrays[f"span:{self._key()}"] = np.array(numbers, np.float64)
        self._resolve(self._span)
        for level in self._levels:
            level.resolve(self._span)

    def _kept_span(self, step: int) -> tuple[int, int, float | None, int] | None:
        """Return what an interrupted run of this very training found out, so that going on keeps its steps."""
        kept = self._state.arrays.get(f"span:{self._key()}")
        if kept is None or kept[0] != self._fingerprint():
            return None
        start, first, epoch_steps, now = int(kept[1]), int(kept[2]), float(kept[3]), int(kept[4])
        extent = self._extent
        begin = start + math.floor((extent.epoch - first) * epoch_steps + 1e-6)
        length = epoch_steps if extent.total is None else extent.total
        return (start, first, epoch_steps or None, now) if start <= begin <= step < begin + length else None

    def _fingerprint(self) -> int:
        return zlib.crc32(repr([schedule.get_config() for schedule in self._schedules()]).encode())

    def look_back(self) -> str:
        """Check at the end of an epoch, by when all trained weights should have moved; say, once, which have not."""
        self.look()
        if self._clock.exact:
            return ""
        amiss = "" if self._complained else self._clock.complaint()
        self._complained = bool(amiss) or self._complained
        return amiss

    @property
    def is_over(self) -> bool:
        """Whether the `fit` of this run has ended without telling its callbacks: by an exception or an interrupt."""
        return self._history is not None and (self.model.history is not self._history or not in_fit(self.model))

    @property
    def at_target(self) -> bool:
        """Whether the final target is in force."""
        return self._acting and self.step >= self.last_step

    def _begin_acting(self) -> None:
        self._acting = True
        for level in self._levels:
            level.start(self._step)
        self._act_first()
        self._find_wake()

    @property
    @abstractmethod
    def last_step(self) -> int:
        """The step of the last change."""

    @abstractmethod
    def finish(self) -> int:
        """End the run; return how many weights that should be zero something else had written to."""

    @abstractmethod
    def settle(self) -> int:
        """Put weights that something wrote to after `finish` back at zero; return how many there were."""

    @abstractmethod
    def abandon(self) -> None:
        """Take all parts out of the step, whatever the state of the run."""

    @abstractmethod
    def _key(self) -> str:
        """Return what tells this run from others of the model, in files."""

    @abstractmethod
    def _given(self) -> Schedule:
        """Return the schedule as it was given."""

    @abstractmethod
    def _resolve(self, span: Span) -> None:
        """Put the schedule as it was given into the steps of a training."""

    def around(self, train_function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what `fit` is to call for each batch, or for several, in the place of the compiled function."""
        return train_function

    def _schedules(self) -> list[Schedule]:
        return [self._given(), *(part.ramp for part in self.parts if part.ramp is not None)]

    @abstractmethod
    def _take_up(self) -> None:
        """Take up what an earlier run did, from the file or the variables."""

    @abstractmethod
    def _act_first(self) -> None:
        """Act at the step at which training begins or goes on."""

    @abstractmethod
    def _act(self, passed: Sequence[int]) -> None:
        """Act, some steps having passed."""

    @abstractmethod
    def _is_due(self, step: int) -> bool:
        """Return whether a step asks for more than the ramps of parts do."""

    def _enlist(self) -> None:
        """Register as a run that follows the model; the last statement of a constructor."""
        self._clock.watch()
        self._state.runs.append(self)
        self._state.guard(self.model)
        # A function compiled before would train without what acts in the step.
        self.model.train_function = None

    def _install(self, part_of: Callable[[Any], StepPart], *, last: bool = False) -> None:
        """Let a part act in the step of each optimizer.

        Args:
            part_of: makes the part for an optimizer, whose learning rate it may use.
            last: whether it acts after the parts of all runs that are not.
        """
        for optimizer in self._optimizers:
            part = part_of(optimizer)
            hook(optimizer, part, lambda: self.is_over, last=last)
            self._installed.append((optimizer, part))

    def _uninstall(self) -> None:
        for optimizer, part in self._installed:
            unhook(optimizer, part)
        self._installed = []
        self._clock.release()
        if self in self._state.runs:
            self._state.runs.remove(self)
        self._state.guard(self.model)

    def _level_of(self, part: TrainingPart, name: str) -> keras.Variable | float:
        """Return where the ramp of a part stands: a variable that is set at each change, or 1.0."""
        if part.ramp is None:
            return 1.0
        level = self._state.variable(name, (), "float32", 0.0)
        self._levels.append(RampLevel(part.ramp, level))
        return level

    def _find_wake(self) -> None:
        due = (
            step
            for step in range(self._step + 1, self._step + LOOKAHEAD)
            if self._is_due(step) or any(level.changes(step) for level in self._levels)
        )
        self._wake = next(due, self._step + LOOKAHEAD)
        self._patience = max(1, math.floor((self._wake - self._step) / self._fastest))
        if self._clock.open:
            self._patience = min(self._patience, max(1, self._seen))
