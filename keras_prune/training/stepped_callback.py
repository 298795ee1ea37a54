"""The callback that follows a training: from the hooks of `fit`, or by hand in a training loop of one's own."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, Generic, TypeVar

import keras

from keras_prune.keras_seam import print_msg
from keras_prune.models.keras2 import refuse_keras2
from keras_prune.schedules import Schedule
from keras_prune.schedules.spans import Extent
from keras_prune.training.stepped_run import SteppedRun

__all__ = ["SteppedCallback"]

NEVER_KNOWN = (
    "how long the training is was not known before its end, and the schedule counts in shares or epochs of it: it "
    "never began. Give fit(..., steps_per_epoch=...), train for two epochs or more, or write a schedule in steps."
)

Running = TypeVar("Running", bound=SteppedRun)


class SteppedCallback(keras.callbacks.Callback, Generic[Running]):
    """Drives a `SteppedRun` from the hooks of `fit`, or by `attach`, `on_step` and `detach` in a loop of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.params: dict[str, Any] = {}  # a CallbackList of one's own need not have any
        self._run: Running | None = None
        self._last_batch = -1
        self._foreseen = False
        self._told = False
        self._extent = Extent()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: everything but the training that this one is in."""
        return {**vars(self), "_run": None, "_model": None}

    # -- what a callback says of itself -------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self, model: keras.Model, history: Any) -> Running:
        """Return the run that follows a model.

        Args:
            model: built and compiled.
            history: the History of the `fit` that this is of; None in a loop of the user's own.
        """

    @abstractmethod
    def _shown(self, run: Running) -> dict[str, float]:
        """Return what is shown beside the loss."""

    def _counted(self, run: Running) -> dict[str, float]:
        """Return what the history records at the end of an epoch, for which the weights may be read."""
        return self._shown(run)

    @abstractmethod
    def _too_late(self, run: Running, total: int, end: str) -> str:
        """Return the warning, as training begins, that the target lies after its end.

        Args:
            run: the training.
            total: the step at which training ends.
            end: the same in words.
        """

    @abstractmethod
    def _fell_short(self, run: Running) -> str:
        """Return the warning, as training ends, that the target was not reached."""

    @abstractmethod
    def _written(self, number: int) -> str:
        """Return the warning that another callback wrote to pruned weights, which are zero again.

        Args:
            number: of these weights.
        """

    def _running(self) -> Running:
        if self._run is None:
            raise RuntimeError(
                f"{type(self).__name__} is not attached to a model. Hand it to model.fit(callbacks=[...]), "
                "or call attach(model)."
            )
        return self._run

    @property
    def resolved_schedule(self) -> Schedule:
        """The schedule in steps: shares and epochs become steps when training begins, or after its first epoch."""
        return self._running().schedule_in_steps

    # -- custom loops -------------------------------------------------------------------------------------------------

    def attach(
        self,
        model: keras.Model,
        run: Any = None,
        *,
        total_steps: int | None = None,
        steps_per_epoch: float | None = None,
    ) -> None:
        """Follow a built and compiled model, in a training loop of your own.

        Args:
            model: what will be trained. The steps of its optimizer count, or those of other optimizers that it holds,
                if they move what is pruned.
            run: which training this is; `fit` gives its History.
            total_steps: how many steps of the optimizer the loop makes from now, for schedules in shares of a training.
            steps_per_epoch: how many of them an epoch has, for schedules in epochs.

        Raises:
            ValueError: the schedule counts in shares, and `total_steps` is not given; as for the callback.
        """
        for name, number in (("total_steps", total_steps), ("steps_per_epoch", steps_per_epoch)):
            if number is not None and (not isinstance(number, int | float) or not number >= 1):
                raise ValueError(f"{type(self).__name__}: {name} must be 1 or more, or None. Received: {number!r}")
        self._attach(model, run)
        total = None if total_steps is None else int(total_steps)
        self._extent = Extent(total=total, epoch_steps=steps_per_epoch)
        if self._running().is_relative and total_steps is None:
            self._running().abandon()
            self._run = None
            raise ValueError(
                f"{type(self).__name__}: the schedule counts in shares or epochs of a training, whose length a loop of "
                "your own has to say. Received: total_steps=None. Write attach(model, total_steps=...), or a schedule "
                "in steps."
            )

    def _attach(self, model: keras.Model, history: Any) -> None:
        refuse_keras2(type(self).__name__, model)
        if self._run is not None:
            self._run.abandon()
        self._run = self._begin(model, history)
        self._foreseen = self._told = False
        self._extent = Extent()

    def on_step(self, steps: int = 1) -> None:
        """Note that the optimizer was called `steps` times more, and act if the schedule says so.

        Call it once before the first step with `steps=0`, if there is something to do at step 0, and after every step.
        """
        run = self._running()
        if not run.started:
            run.start(self._extent)
        if steps:
            run.on_step(steps)

    def detach(self) -> None:
        """End the training: what is pruned is exactly zero and stays so; everything else leaves the step."""
        self._end()

    def _end(self) -> None:
        run = self._running()
        if run.started:
            run.look()
        if run.started and not run.at_target and not self._foreseen:
            unknown = run.is_relative and run.span is None
            text = NEVER_KNOWN if unknown else self._fell_short(run)
            warnings.warn(f"{type(self).__name__}: {text}", stacklevel=3)
        self._warn_of(run.end(), stacklevel=4)

    # -- Keras's hooks ------------------------------------------------------------------------------------------------

    def set_model(self, model: keras.Model) -> None:
        """Attach to the model before anything is traced or restored; called by `fit`, once the model is built."""
        super().set_model(model)
        self._attach(model, getattr(model, "history", None))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begin the run with the first epoch: by then every callback has restored what it restores."""
        self._last_batch = -1
        run = self._running()
        if not run.started:
            run.start(Extent(epoch, self.params.get("epochs"), self.params.get("steps")))
            self._tell(run)
            self._foresee(run, epoch)

    def _tell(self, run: Running) -> None:
        """Print, once, the steps that a schedule in shares or epochs has come to."""
        if run.span is None or self._told:
            return
        self._told = True
        if self.params.get("verbose", 0) != 0:
            schedule = run.schedule_in_steps
            print_msg(
                f"{type(self).__name__}: from step {schedule.first_step} on, the target of {schedule.final:g} in force "
                f"at step {schedule.target_step}; training ends at step {run.span.end}."
            )

    def _foresee(self, run: Running, epoch: int) -> None:
        """Warn of a schedule that will not be over when training is."""
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        if not steps or not epochs:
            return
        left = epochs - epoch
        total = run.step_limit(steps * left)
        if total is not None and run.last_step > total:
            self._foreseen = True
            end = f"{total} ({left} epoch{'s' if left > 1 else ''} of {steps} steps)"
            warnings.warn(f"{type(self).__name__}: {self._too_late(run, total, end)}", stacklevel=3)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Follow the optimizer, and show the sparsity beside the loss."""
        run = self._running()
        run.on_step(batch - self._last_batch)
        self._last_batch = batch
        if logs is not None:
            logs.update(self._shown(run))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the sparsity in the history."""
        run = self._running()
        run.end_epoch()
        self._tell(run)
        amiss = run.look_back()
        if amiss:
            warnings.warn(f"{type(self).__name__}: {amiss}", stacklevel=2)
        if logs is not None:
            logs.update(self._counted(run))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave exact zeros behind, held against callbacks that end later, as those that restore weights do."""
        self._end()
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

    def _warn_of(self, written: int, stacklevel: int = 3) -> None:
        if written:
            warnings.warn(f"{type(self).__name__}: {self._written(written)}", stacklevel=stacklevel)
