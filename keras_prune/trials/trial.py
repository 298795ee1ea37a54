"""One trial: a copy of the model is pruned, trained if that is asked for, and measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_prune.monitoring.metric import Score
from keras_prune.trials.choice import PruningStrategy
from keras_prune.trials.extra import quiet_optuna, search_module
from keras_prune.trials.objectives import Measured
from keras_prune.trials.working_copy import WorkingCopy

__all__ = ["STOPPED", "Training", "TrialRunner", "strategy_of"]

STOPPED = "stopped"
"""The attribute of an Optuna trial that an error or Ctrl-C has ended, with what it was."""


@dataclasses.dataclass(frozen=True)
class Training:
    """What a trial does besides choosing masks.

    Attributes:
        epochs: of training; 0 for none.
        options: of `fit`.
        reconstruct: whether kept weights are solved again, without training.
        paired: whether the data is a tuple `(x, y)`.
    """

    epochs: int
    options: Mapping[str, Any]
    reconstruct: bool
    paired: bool

    def described(self) -> list[Any]:
        """Return it as what JSON can hold; of an option that is no plain value, the kind."""
        plain = (bool, int, float, str, type(None))
        options = {
            key: value if isinstance(value, plain) else type(value).__name__ for key, value in self.options.items()
        }
        return [self.epochs, dict(sorted(options.items())), self.reconstruct]


class TrialRunner:
    """Runs trials on a working copy.

    Args:
        copy: of the model.
        space: Optuna trial -> strategy or callback.
        objectives: what is measured.
        score: the metric on the validation data, after each epoch too.
        data: for training, criteria and reconstruction.
        training: what is done with it.
        stopper: the Optuna pruner that ends poor trials, or None.
        seed: Keras's, set before each training.
    """

    def __init__(
        self,
        copy: WorkingCopy,
        space: Callable[[Any], Any],
        objectives: Sequence[Measured],
        score: Score,
        data: Any,
        training: Training,
        stopper: Any,
        seed: int,
    ) -> None:
        self.copy = copy
        self.space = space
        self.objectives = tuple(objectives)
        self.training = training
        self.stopper = stopper
        self._score = score
        self._data = data
        self._seed = seed

    def parameters(self) -> dict[str, Any]:
        """Return the Optuna distributions of the space's parameters, by name, as one trial asks for them."""
        optuna = search_module("optuna")
        with quiet_optuna():
            trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=self._seed)).ask()
        self._chosen(trial)
        return dict(trial.distributions)

    def dense(self) -> list[float]:
        """Return the objectives of the model as it was given."""
        self.copy.restore()
        return [one.of(self.copy) for one in self.objectives]

    def run(self, trial: Any) -> list[float]:
        """Run a trial and return its objectives.

        Args:
            trial: of Optuna.

        Raises:
            optuna.TrialPruned: it ended early, or an objective is no finite number.
        """
        pruned = search_module("optuna").TrialPruned
        try:
            self.copy.restore()
            self._apply(self._chosen(trial), trial)
            values = [float(one.of(self.copy)) for one in self.objectives]
        except pruned:
            raise
        except BaseException as error:
            trial.set_user_attr(STOPPED, repr(error)[:500])
            raise
        for one, value in zip(self.objectives, values, strict=True):
            if not math.isfinite(value):
                raise pruned(f"{one.name} is {value}")
        return values

    def _chosen(self, trial: Any) -> Any:
        chosen = self.space(trial)
        callbacks = chosen if isinstance(chosen, list | tuple) else [chosen]
        trained = all(isinstance(one, keras.callbacks.Callback) for one in callbacks) and len(callbacks) > 0
        if not isinstance(chosen, PruningStrategy) and not (trained and self.training.epochs):
            raise TypeError(
                "study: space must return a keras_prune.search.PruningStrategy, or where trials train a callback or "
                f"a list of them. Received: {chosen!r}, with epochs={self.training.epochs}"
            )
        return chosen

    def _apply(self, chosen: Any, trial: Any) -> None:
        model, training = self.copy.model, self.training
        if not training.epochs:
            chosen.prune(model, self._data, reconstruct=self._data if training.reconstruct else None)
            return
        options = {"verbose": 0, **training.options}
        callbacks = [chosen.callback(self._data)] if isinstance(chosen, PruningStrategy) else chosen
        callbacks = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
        if self.stopper is not None:
            callbacks.append(_Reporting(self._score, trial))
        callbacks += options.pop("callbacks", [])
        keras.utils.set_random_seed(self._seed)
        self.copy.fit(self._data, {**options, "epochs": training.epochs, "callbacks": callbacks})


class _Reporting(keras.callbacks.Callback):
    """Tells Optuna the metric after each epoch, and ends the trial if it is poor."""

    def __init__(self, score: Score, trial: Any) -> None:
        super().__init__()
        self._score = score
        self._trial = trial

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        value = self._score(self.model)
        self._trial.report(value, epoch)
        if epoch + 1 < self.params["epochs"] and (not math.isfinite(value) or self._trial.should_prune()):
            raise search_module("optuna").TrialPruned(f"after {epoch + 1} epochs, at {value:.6g}")


def strategy_of(space: Callable[[Any], Any], parameters: Mapping[str, Any]) -> Any:
    """Return what a space makes of known parameters.

    Args:
        space: Optuna trial -> strategy or callback.
        parameters: of a trial that is finished.
    """
    return space(search_module("optuna").trial.FixedTrial(dict(parameters)))
