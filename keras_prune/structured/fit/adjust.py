"""Structure that follows a metric while a model trains: units are taken out while it allows, and put back when not."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_prune.masks.state import TrainingState
from keras_prune.monitoring.metric import Metric, check_mode, evaluate_within, value_of
from keras_prune.optimizers.clock import Clock, optimizers_for
from keras_prune.optimizers.finding import has_own_step
from keras_prune.structured.analysis.groups import Units, analyse
from keras_prune.structured.fit.adjustments import (
    GROWTHS,
    SCOPES,
    Adjustment,
    Adjustments,
    Progress,
    check_arguments,
    check_looks,
    decide,
    first_allowed,
    reached_target,
    units_to_copy,
)
from keras_prune.structured.fit.gates import Gates
from keras_prune.structured.importances.names import resolve_importance
from keras_prune.structured.planning.unit_choice import limits_of, order_units
from keras_prune.structured.surgery.net2net import check_copies, copy_units, summed_axes

__all__ = ["StructureAdjustment"]

STATE = "structure_adjustment"


class StructureAdjustment(keras.callbacks.Callback):
    """Takes units out of a model while its metric allows, and puts them back when it falls, in one `fit`.

    At the end of an epoch the metric is compared with its reference. Within the tolerance, the least important units
    are closed, by gates: they are 0 and stay so. When it has been worse for `patience` looks, units are opened again,
    those that were closed last first. A fall halves how many are moved at a time, once for openings in a row. In the
    last epoch nothing is closed, for nothing would be trained after it. After `fit`, `shrink()` gives the smaller
    model.

    What is closed, and what was found so far, is saved with the model, so a training that was interrupted goes on as if
    it had not been; list this callback before the one that saves.

    Args:
        metric: its name in the logs of an epoch.
        tolerance: how much worse than the reference it may be.
        step: the share of all units that is closed or opened at a time, in (0, 1); one unit at least.
        importance: as for `plan`.
        data: as for `plan`.
        scope: as for `plan`.
        grow: how units come back. "weights": with the weights that they had when they were closed. "net2net": as
            copies of the most important open units of their groups, and what reads these takes a share from each, so
            that the outputs do not change (Chen et al. 2016, see `net2net`).
        patience: how many looks in a row have to find it worse before units are opened.
        mode: "max", "min", or "auto" as Keras's callbacks find it.
        reference: "best", the best value so far; "dense", the value at the first look; or a number.
        min_step: once `step` is smaller than this, nothing is closed any more.
        params: nothing is closed any more once this share of parameters or less is left, a fraction in (0, 1).
        flops: the same for floating-point operations.
        start_from_epoch: the first epoch, counted from 0, at whose end is looked.
        every: look after so many steps of the optimizer, too, on `validation_data`; the metric's name then begins with
            "val_".
        validation_data: `(x, y)` or a data set.
        noise: for "net2net", as for `net2net.widen`; copies of equal shares would learn the same.
        seed: fixes the noise.
        min_width: as for `plan`.
        max_share: as for `plan`.
        frozen: as for `plan`.
        input_shape: for a subclassed model, see `trace`.

    Attributes:
        history: `Adjustments`, one entry a look.
        gates: on the model; see `gates.Gates`.
        step: as it is now.

    Raises:
        ValueError: when it is made, for arguments out of their range; when `fit` begins, for a model that is not
            compiled or has nothing to remove, and with "net2net", for one in which copies cannot be divided (with the
            layer); at the first look, if the metric is not in the logs (with what is).

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> adjustment = StructureAdjustment("loss", tolerance=10.0, step=0.25)
        >>> x, y = np.ones((8, 4)), np.ones((8, 1))
        >>> _ = model.fit(x, y, epochs=3, verbose=0, callbacks=[adjustment])
        >>> [(one.action, one.open) for one in adjustment.history], adjustment.shrink().layers[0].units
        ([('close', 6), ('close', 4), ('hold', 4)], 4)
    """

    def __init__(
        self,
        metric: str = "val_accuracy",
        *,
        tolerance: float = 0.01,
        step: float = 0.1,
        importance: Any = "l2",
        data: Any = None,
        scope: str = "local",
        grow: str = "weights",
        patience: int = 1,
        mode: str = "auto",
        reference: str | float = "best",
        min_step: float = 0.0,
        params: float | None = None,
        flops: float | None = None,
        start_from_epoch: int = 0,
        every: int | None = None,
        validation_data: Any = None,
        noise: float = 0.1,
        seed: int = 0,
        min_width: int = 1,
        max_share: float | Mapping[str, float] = 1.0,
        frozen: Iterable[str] = (),
        input_shape: Any = None,
    ) -> None:
        super().__init__()
        check_arguments(
            tolerance=tolerance,
            shares={"step": step, "params": params, "flops": flops},
            min_step=min_step,
            whole={"patience": patience, "min_width": min_width},
            noise=noise,
            choices={"grow": (grow, GROWTHS), "scope": (scope, SCOPES)},
            reference=reference,
        )
        check_looks(every, metric, validation_data)
        check_mode("StructureAdjustment", mode)
        self.metric = metric
        self.tolerance = tolerance
        self.importance = resolve_importance(importance, data)
        self.importance.check_data("StructureAdjustment")
        self.scope = scope
        self.grow = grow
        self.patience = patience
        self.mode = mode
        self.reference = reference
        self.min_step = min_step
        self.targets = {"params": params, "macs": flops}
        self.start_from_epoch = start_from_epoch
        self.every = every
        self.validation_data = validation_data
        self.noise = noise
        self.seed = seed
        self.min_width = min_width
        self.max_share = max_share
        self.frozen = (frozen,) if isinstance(frozen, str) else tuple(frozen)
        self.input_shape = input_shape
        self.history = Adjustments()
        self.gates: Gates | None = None
        self._found: Metric | None = None
        self._now = Progress(step)
        self._epoch = 0
        self._clock: Clock | None = None
        self._fresh = True
        self._begun = 0
        self._batches = 0

    @property
    def step(self) -> float:
        """The share of all units that is closed or opened at a time, as it is now."""
        return self._now.step

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: everything but the model that this one is on."""
        return {**vars(self), "gates": None, "_clock": None, "_model": None}

    # -- Keras's hooks ------------------------------------------------------------------------------------------------

    def set_model(self, model: keras.Model) -> None:
        """Put gates on the model before its step is compiled."""
        super().set_model(model)
        if not model.compiled:
            raise ValueError(
                f"StructureAdjustment: {model.name!r} must be compiled, for a metric to be followed in training. "
                "Call compile(...) first."
            )
        analysis = analyse(model, frozen=self.frozen, input_shape=self.input_shape)
        if self.grow == "net2net":
            check_copies(
                "StructureAdjustment(grow='net2net')", analysis, summed_axes(analysis), np.ones(analysis.size, bool)
            )
        self._least = limits_of(analysis, self.max_share, self.min_width, 1).least
        if self.gates is not None and self.gates.model is model:
            self.gates.abandon()
        self.gates = Gates(model, analysis, owner=self, run=getattr(model, "history", None))
        optimizers = optimizers_for(model, "StructureAdjustment", "to remove units at once, use kp.structured.prune.")
        exact = len(optimizers) == 1 and not has_own_step(model)
        if self._clock is not None:
            self._clock.release()  # of a training that was interrupted
        self._clock = Clock(model, self.gates.variables, optimizers, exact=exact)
        self._clock.watch()
        self._fresh = True
        closed = np.flatnonzero(~self.gates.keep).tolist()
        known = [unit for unit in self._now.closed if unit in closed]
        self._now.closed = known + [unit for unit in closed if unit not in known]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch; take over what a checkpoint holds: by then every callback has restored what it restores."""
        self._epoch = epoch
        self._last_batch = -1
        self._gates().refresh()
        self._gates().guard()
        self._restore()
        if self._fresh:
            assert self._clock is not None
            self._clock.begin()
            self._begun, self._batches, self._fresh = self._now.steps, 0, False
        self._make_up()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the metric, if it is time."""
        self._batches += batch - self._last_batch
        self._last_batch = batch
        before, self._now.steps = self._now.steps, self._begun + self._steps_done()
        if self.every and before // self.every < self._now.steps // self.every and self._epoch >= self.start_from_epoch:
            self._look(evaluate_within(self.model, self.validation_data))

    def _steps_done(self) -> int:
        """Steps of the optimizer that moves the units, since training began; read from it only where batches differ."""
        assert self._clock is not None
        if self._clock.exact and self._clock.calls == 1:
            return self._batches
        self._clock.look()
        return self._clock.step - self._clock.first if self._clock.known else 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the metric."""
        if epoch >= self.start_from_epoch:
            self._look(logs or {}, last=epoch + 1 == self.params.get("epochs"))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leave exact zeros behind."""
        TrainingState.of(self.model).arrays.pop(STATE, None)
        self._now.put_off = False  # another `fit` is another training; one that was stopped goes on from a checkpoint
        gates = self._gates()
        wanted = {name: share for name, share in self.targets.items() if share is not None}
        if wanted and not reached_target(gates.analysis, gates.keep, wanted):
            asked = ", ".join(f"{'flops' if name == 'macs' else name}={share}" for name, share in wanted.items())
            warnings.warn(
                f"StructureAdjustment: training ended before {asked} was reached: {np.count_nonzero(gates.keep)} of "
                f"{gates.analysis.size} units are open. Train longer, allow a larger tolerance, or take larger steps; "
                "history has the reason for each look.",
                stacklevel=2,
            )
        gates.settle()
        self._gates().rest()
        if self._clock is not None:
            self._clock.release()

    def shrink(self) -> keras.Model:
        """Return the model without the closed units; see `gates.Gates.shrink`.

        Raises:
            ValueError: there was no training yet.
        """
        return self._gates().shrink()

    # -- one look -----------------------------------------------------------------------------------------------------

    def _gates(self) -> Gates:
        if self.gates is None:
            raise ValueError("StructureAdjustment: there was no training yet. Give it to fit(..., callbacks=[...]).")
        return self.gates

    def _look(self, logs: Mapping[str, Any], last: bool = False) -> None:
        value = value_of("StructureAdjustment", logs, self.metric)
        if self._found is None:
            self._found = Metric.of("StructureAdjustment", self.model, self.metric, self.mode, value)
        reference = self._now.compared_with(self.reference, value, self._found)
        action, reason = decide(self._found.loss_from(reference, value), self.tolerance, self._now.falls, self.patience)
        self._now.falls = 0 if action in ("close", "open") else self._now.falls + 1
        units: Units = np.zeros(0, np.int64)
        if action == "close":
            action, reason, units = self._close(reason, last)
        elif action == "open":
            action, reason, units = self._open(reason)
        self._now.looks += 1
        self._note(value, reference, action, reason, units)

    def _note(self, value: float, reference: float, action: str, reason: str, units: Units) -> None:
        """Add to the history, and put what was found so far where a checkpoint finds it."""
        number = int(np.count_nonzero(self._gates().keep))
        made = Adjustment(self._epoch, self._now.steps, value, reference, action, len(units), number, reason)
        self.history = Adjustments((*self.history, made))
        TrainingState.of(self.model).arrays[STATE] = self._now.to_array()

    def _make_up(self) -> None:
        """Close what the last look put off, because training was to end: it goes on after all."""
        if not self._now.put_off:
            return
        self._now.put_off = False
        action, reason, units = self._close("the training goes on", last=False)
        self._note(np.nan, np.nan if self._now.best is None else self._now.best, action, reason, units)

    def _restore(self) -> None:
        """Go on from a training that was interrupted, with what its last checkpoint knew of the looks so far."""
        known = TrainingState.of(self.model).arrays.get(STATE)
        if known is not None:
            self._now = Progress.from_array(known)

    def _number(self) -> int:
        return max(1, round(self.step * self._gates().analysis.size))

    def _close(self, reason: str, last: bool) -> tuple[str, str, Units]:
        gates = self._gates()
        none: Units = np.zeros(0, np.int64)
        if last:
            self._now.put_off = True
            return "hold", f"{reason}, but nothing is trained after this", none
        if self.step < self.min_step:
            return "hold", f"{reason}, but the step {self.step:g} is below min_step", none
        reached = reached_target(gates.analysis, gates.keep, self.targets)
        if reached:
            return "hold", f"{reason}, but {reached}", none
        scores = np.where(gates.keep, self.importance(self.model, gates.analysis), np.inf)
        order = order_units(gates.analysis, scores, self.scope)
        units = first_allowed(gates.analysis, order, gates.keep, self._least, self._number())
        if not units.size:
            return "hold", f"{reason}, but no group can lose one more", none
        gates.close(units)
        self._now.closed += units.tolist()
        self._now.falling = False
        return "close", reason, units

    def _open(self, reason: str) -> tuple[str, str, Units]:
        gates = self._gates()
        if not self._now.closed:
            return "hold", f"{reason}, but nothing is closed", np.zeros(0, np.int64)
        number = self._number()
        units = np.array(self._now.closed[-number:][::-1], np.int64)
        pairs: list[tuple[int, int]] = []
        if self.grow == "net2net":
            pairs = units_to_copy(gates.analysis, gates.keep, self.importance(self.model, gates.analysis), units)
        gates.open(units)
        if pairs:
            copy_units(gates.analysis, summed_axes(gates.analysis), pairs, self.noise, self.seed + self._now.looks)
        del self._now.closed[-number:]
        self._now.step /= 1 if self._now.falling else 2
        self._now.falling = True
        return "open", reason, units
