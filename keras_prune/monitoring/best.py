"""The best epoch of a pruned training: among those in which the final target was in force."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np

from keras_prune.masks.state import TrainingState
from keras_prune.monitoring.kept_model import KeptModel
from keras_prune.monitoring.metric import Metric, check_mode, value_of

__all__ = ["RestoreBest"]

NUMBERS = "best:numbers"
MASKS = ("mask:", "gate:")


class RestoreBest(keras.callbacks.Callback):
    """Gives the model, when training ends, the weights and masks of its best epoch at the final target.

    Epochs before the target is reached do not count, however good they are: their weights have fewer zeros. Where no
    callback prunes in this `fit`, every epoch counts. What was found is saved with the model, so a training that was
    interrupted goes on from it; list this callback before the one that saves.

    Args:
        monitor: the metric's name in the logs of an epoch.
        mode: "max", "min", or "auto" as Keras's callbacks find it.
        min_delta: how much better an epoch has to be than the best one so far, 0 or more.
        patience: stop training after so many epochs at the target without a better one; None to train to the end.

    Attributes:
        best: the metric's value in the best epoch, or None.
        best_epoch: its number, counted from 0, or None.

    Raises:
        ValueError: an argument is out of its range; at the end of an epoch, if the metric is not in the logs.

    Example:
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> best = kp.RestoreBest("loss")
        >>> callbacks = [kp.Pruning(0.75), best]
        >>> _ = model.fit(np.ones((80, 8)), np.ones((80, 1)), epochs=10, verbose=0, callbacks=callbacks)
        >>> best.best_epoch >= 6, kp.report(model).sparsity
        (True, 0.75)
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        mode: str = "auto",
        min_delta: float = 0.0,
        patience: int | None = None,
    ) -> None:
        super().__init__()
        check_mode("RestoreBest", mode)
        if not isinstance(min_delta, int | float) or not min_delta >= 0:
            raise ValueError(f"RestoreBest: min_delta must be 0 or more. Received: {min_delta!r}")
        if patience is not None and (not isinstance(patience, int) or patience < 1):
            raise ValueError(f"RestoreBest: patience must be a whole number from 1, or None. Received: {patience!r}")
        self.monitor = monitor
        self.mode = mode
        self.min_delta = min_delta
        self.patience = patience
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: the arguments."""
        arguments = {name: getattr(self, name) for name in ("monitor", "mode", "min_delta", "patience")}
        return {**vars(type(self)(**arguments))}

    def _forget(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._waited = 0
        self._metric: Metric | None = None
        self._began = False
        self._owners: list[Any] = []

    # -- Keras's hooks ------------------------------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget the previous training."""
        self._forget()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Take up what a checkpoint holds; by now, every callback has restored what it restores."""
        if not self._began:
            self._take_up(epoch)

    def _take_up(self, epoch: float) -> None:
        self._began = True
        known = self._state().arrays.get(NUMBERS)
        if known is not None and known[1] < epoch:
            self.best, self.best_epoch, self._waited = float(known[0]), int(known[1]), int(known[2])
        else:
            self._kept().drop()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keep the weights, if this is the best epoch of those at the target."""
        self._owners = self._state().owners
        if not all(run.at_target for run in self._state().runs):
            return
        value = value_of("RestoreBest", logs or {}, self.monitor)
        if self._metric is None:
            self._metric = Metric.of("RestoreBest", self.model, self.monitor, self.mode, value)
        self._waited += 1
        if self.best is None or self._metric.loss_from(self.best, value) < -self.min_delta:
            self.best, self.best_epoch, self._waited = value, epoch, 0
            self._kept().keep(self._masks())
        self._state().arrays[NUMBERS] = np.array([self.best, self.best_epoch, self._waited], np.float64)
        if self.patience is not None and self._waited >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the best epoch's weights and masks back."""
        if not self._began:
            self._take_up(np.inf)
        if self.best_epoch is None:
            warnings.warn(
                "RestoreBest: no epoch ended with the final target in force, so the model is that of the last epoch. "
                "Let the schedule end earlier, or train longer.",
                stacklevel=2,
            )
        else:
            self._kept().put_back(self._masks())
            for owner in self._owners:  # those whose training is over by now, too
                owner.recount()
        self._kept().drop()

    # -- what is kept -------------------------------------------------------------------------------------------------

    def _state(self) -> TrainingState:
        return TrainingState.of(self.model)

    def _kept(self) -> KeptModel:
        return KeptModel(self.model, "best")

    def _masks(self) -> dict[str, keras.Variable]:
        return {key: variable for key, variable in self._state().variables.items() if key.startswith(MASKS)}
