"""Follow an optimizer step by step: what a session does when a change is due, and the callback that drives it."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import keras

from keras_prune.schedules import Schedule
from keras_prune.state import StepPart, TrainingState
from keras_prune.step import Part
from keras_prune.variables import read

__all__ = ["SteppedCallback", "SteppedSession", "synchronise"]

LOOKAHEAD = 256
"""How many steps ahead the next change is looked for at a time."""


def synchronise(model: keras.Model) -> None:
    """Bring variables up to date where the compiled step holds them (JAX)."""
    sync = getattr(model, "jax_state_sync", None)
    if sync is not None:
        sync()


class SteppedSession(ABC):
    """One training that changes at certain steps of its optimizer.

    Args:
        model: built and compiled.
        optimizer: the one whose steps count.
        state: of the model.

    Attributes:
        started: whether the training has begun.
    """

    def __init__(self, model: keras.Model, optimizer: Any, state: TrainingState) -> None:
        self.model = model
        self._optimizer = optimizer
        self._state = state
        self._installed: list[StepPart] = []
        self._levels: list[_Level] = []
        self.started = False
        self._behind = 0
        self._step = 0
        self._wake = 0

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        synchronise(self.model)
        # What `optimizer.iterations` gives, without making a tensor of it at every look.
        return int(read(self._optimizer._iterations)) // (self._optimizer.gradient_accumulation_steps or 1)

    def step_limit(self, calls: int) -> int:
        """Return the step at which training ends after so many calls of the optimizer from now."""
        return self.step + calls // (self._optimizer.gradient_accumulation_steps or 1)

    def start(self) -> None:
        """Begin, once weights are loaded: take up what an earlier run did, and act if that is due at once."""
        self.started = True
        self._step = self.step
        self._take_up()
        for level in self._levels:
            level.start(self._step)
        self._act_first()
        self._find_wake()

    def end(self) -> int:
        """End, also before anything has begun, as when a finished training is started once more; see `finish`."""
        if not self.started:
            self._step = self.step
            self._take_up()
        return self.finish()

    def on_step(self, steps: int = 1) -> None:
        """Note that the optimizer was called at most `steps` times more; act if that is due.

        Args:
            steps: calls since the last time; the true count is read from the optimizer only when a change may be due.
        """
        if not self.started:
            raise RuntimeError(f"{type(self).__name__}.start() comes before on_step().")
        self._behind += steps
        if self._step + self._behind < self._wake:
            return
        before, self._step, self._behind = self._step, self.step, 0
        passed = range(before + 1, self._step + 1)
        for level in self._levels:
            level.follow(passed)
        self._act(passed)
        self._find_wake()

    @property
    @abstractmethod
    def last_step(self) -> int:
        """The step of the last change."""

    @abstractmethod
    def finish(self) -> int:
        """End; return how many weights that should be zero something else had written to."""

    @abstractmethod
    def settle(self) -> int:
        """Put weights that something wrote to after `finish` back at zero; return how many there were."""

    @abstractmethod
    def abandon(self) -> None:
        """Leave the step, in whatever state this is."""

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

    def _install(self, part: StepPart) -> None:
        self._installed.append(part)
        self._state.install(part)

    def _uninstall(self) -> None:
        for part in self._installed:
            self._state.remove(part)
        self._installed = []

    def _level_of(self, part: Part, name: str) -> keras.Variable | float:
        """Return where the ramp of a part stands: a variable that is set at each change, or 1.0."""
        if part.ramp is None:
            return 1.0
        level = self._state.variable(name, (), "float32", 0.0)
        self._levels.append(_Level(part.ramp, level))
        return level

    def _find_wake(self) -> None:
        ramps = [level.ramp for level in self._levels]
        due = (
            step
            for step in range(self._step + 1, self._step + LOOKAHEAD)
            if self._is_due(step) or any(ramp.should_update(step) for ramp in ramps)
        )
        self._wake = next(due, self._step + LOOKAHEAD)


class _Level:
    """Where a part's ramp stands: its value at its last change, also where a training goes on between two changes.

    Args:
        ramp: the schedule.
        variable: a scalar that takes the share of the ramp's final value.
    """

    def __init__(self, ramp: Schedule, variable: keras.Variable) -> None:
        self.ramp = ramp
        self.variable = variable

    def start(self, step: int) -> None:
        """Set the variable for a training that begins at a step or goes on from it."""
        changes = range(min(step, self.ramp.last_step), self.ramp.first_step - 1, -1)
        self._set(next(filter(self.ramp.should_update, changes), min(step, self.ramp.first_step)))

    def follow(self, passed: range) -> None:
        """Set the variable if the ramp changes at one of the steps that have passed."""
        last = next(filter(self.ramp.should_update, reversed(passed)), None)
        if last is not None:
            self._set(last)

    def _set(self, step: int) -> None:
        self.variable.assign(self.ramp(step) / self.ramp.final if self.ramp.final else 0.0)


Running = TypeVar("Running", bound=SteppedSession)


class SteppedCallback(keras.callbacks.Callback, Generic[Running]):
    """Drives a session from the hooks of `fit`, or from `attach`, `on_step` and `detach` in a loop of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self._session: Running | None = None
        self._last_batch = -1

    # -- what a callback says of itself -------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self, model: keras.Model, run: Any) -> Running:
        """Return a session on a model."""

    @abstractmethod
    def _shown(self, session: Running) -> dict[str, float]:
        """Return what is shown beside the loss."""

    def _counted(self, session: Running) -> dict[str, float]:
        """Return the same for the history, where it may take a look at the weights."""
        return self._shown(session)

    @abstractmethod
    def _too_late(self, session: Running, total: int, end: str) -> str:
        """Return what is said of a session whose last step lies after the end of training, at step `total`.

        Args:
            session: it.
            total: the step at which training ends.
            end: that in words.
        """

    @abstractmethod
    def _written(self, number: int) -> str:
        """Return what is said of so many weights that another callback wrote to, and that are zero again."""

    def _running(self) -> Running:
        if self._session is None:
            raise RuntimeError(
                f"{type(self).__name__} is not attached to a model. Hand it to model.fit(callbacks=[...]), "
                "or call attach(model)."
            )
        return self._session

    # -- custom loops -------------------------------------------------------------------------------------------------

    def attach(self, model: keras.Model, run: Any = None) -> None:
        """Take hold of a built and compiled model.

        Args:
            model: what will be trained; its optimizer is the one whose steps count.
            run: which training this is; `fit` gives its History.
        """
        if self._session is not None:
            self._session.abandon()
        self._session = self._begin(model, run)

    def on_step(self, steps: int = 1) -> None:
        """Note that the optimizer was called `steps` times more, and act if the schedule says so.

        Call it once before the first step with `steps=0`, if there is something to do at step 0, and after every step.
        """
        session = self._running()
        if not session.started:
            session.start()
        if steps:
            session.on_step(steps)

    def detach(self) -> None:
        """End the training: what is pruned is exactly zero and stays so; everything else leaves the step."""
        self._warn_of(self._running().end())

    # -- Keras's hooks ------------------------------------------------------------------------------------------------

    def set_model(self, model: keras.Model) -> None:
        """Take hold before anything is traced or restored; called by `fit`, once the model is built."""
        super().set_model(model)
        self.attach(model, run=getattr(model, "history", None))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Warn of a schedule that will not be over when training is."""
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        if not steps or not epochs:
            return
        session = self._running()
        total = session.step_limit(steps * epochs)
        if session.last_step > total:
            end = f"{total} ({epochs} epochs of {steps} steps)"
            warnings.warn(f"{type(self).__name__}: {self._too_late(session, total, end)}", stacklevel=2)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin the session with the first epoch: by then every callback has restored what it restores."""
        self._last_batch = -1
        if not self._running().started:
            self._running().start()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Follow the optimizer; show how far it is beside the loss."""
        session = self._running()
        session.on_step(batch - self._last_batch)
        self._last_batch = batch
        if logs is not None:
            logs.update(self._shown(session))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Record how far it is in the history."""
        if logs is not None:
            logs.update(self._counted(self._running()))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave exact zeros behind, held against callbacks that end later, as those that restore weights do."""
        self.detach()
        history = getattr(self.model, "history", None)
        if not isinstance(history, keras.callbacks.History):
            return
        # Keras runs its History last: by then every other callback has written what it writes. Another callback of
        # this kind may have got hold of it before.
        before = vars(history).get("on_train_end")

        def after_all(logs: dict[str, Any] | None = None) -> None:
            del history.on_train_end
            if before is not None:
                history.on_train_end = before
            self._warn_of(self._running().settle())
            history.on_train_end(logs)

        history.on_train_end = after_all

    def _warn_of(self, written: int) -> None:
        if written:
            warnings.warn(f"{type(self).__name__}: {self._written(written)}", stacklevel=3)
