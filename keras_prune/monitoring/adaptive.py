"""The callback whose sparsity follows a metric: it speeds up, holds, rolls back, and ends with the best model found."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import keras

from keras_prune.devices import Device
from keras_prune.in_step.parts import TrainingPart
from keras_prune.keras_seam import print_msg
from keras_prune.masks.recipe import Recipe
from keras_prune.masks.state import TrainingState
from keras_prune.masks.update import Tensor, highest_sparsity
from keras_prune.models.variables import read
from keras_prune.monitoring.kept_model import KeptModel
from keras_prune.monitoring.metric import Metric, check_mode, value_of
from keras_prune.monitoring.steering import Looks, Progress, Steering
from keras_prune.schedules import Schedule
from keras_prune.scope import Scope, Target
from keras_prune.training.callbacks import PruningCallback
from keras_prune.training.pruning_run import PruningRun

__all__ = ["AdaptivePruning"]

NAME = "adaptive"
"""Of the last good model, and of what was found so far, in files."""
STATE = f"{NAME}:found"


@dataclasses.dataclass(frozen=True)
class FollowsMetric(Schedule):
    """No step of its own: when masks change, and to what, a metric says.

    Args:
        most: the highest sparsity that it comes to, a fraction in [0, 1).
    """

    most: float

    def __call__(self, step: int) -> float:
        return self.most

    def should_update(self, step: int) -> bool:
        return False

    @property
    def first_step(self) -> int:
        return sys.maxsize

    @property
    def final(self) -> float:
        return self.most


class AdaptivePruning(PruningCallback):
    r"""Prunes as far as a metric allows: the sparsity follows what validation says at the end of each epoch.

    The metric of the first epochs, in which nothing is pruned, is the baseline. Then the sparsity is raised epoch by
    epoch, from s to $1 - (1 - s)(1 - \delta)$, and faster while the metric holds: $\delta$ grows by `speed_up`. When
    the metric comes near the tolerance, the sparsity is held. When it has been worse than the tolerance for `patience`
    epochs, the last good model comes back, masks, weights and what the optimizer keeps of them, and pruning goes on
    from there in steps half as large. Training ends when these are below `min_step`; then, or when `fit` is over, the
    model is the one of the highest sparsity at which the metric was within the tolerance.

    Masks change as the next epoch begins, so every checkpoint holds the weights that were measured. The optimizer's
    count of steps, learning rates and random states are not rolled back. The last good model is kept in memory, and in
    every file that is saved meanwhile: a training that was interrupted goes on as if it had not been. List this
    callback before the one that saves.

    Args:
        monitor: the metric's name in the logs of an epoch.
        tolerance: how much worse than the baseline it may be.
        criterion, pattern, allocation, scope, parts, target: as for `Pruning`.
        mode: "max", "min", or "auto" as Keras's callbacks find it.
        relative: whether the tolerance is a share of the baseline.
        baseline: what the metric is compared with; None for the best value of the first epochs. With a number, pruning
            begins at once.
        baseline_epochs: how many epochs these are. A model that still gets better needs more of them.
        patience: how many epochs in a row may be worse than the tolerance before the last good model comes back; after
            as many near the tolerance, pruning goes on in steps half as large.
        near: from which share of the tolerance on the sparsity is held.
        step: the first $\delta$, the share of the weights that are left which a raise prunes.
        speed_up: by what $\delta$ grows from raise to raise, 1 or more: up to a half, and after a roll back no further
            than it was halved to.
        min_step: the smallest $\delta$.
        max_sparsity: training ends here in any case, within the tolerance.
        verbose: 1 to print what follows from each epoch.

    Attributes:
        history: one entry an epoch: metric, sparsity, what was done, and why; `str()` is a table.

    Raises:
        ValueError: an argument is out of its range; at the end of an epoch, if the metric is not in the logs; as for
            `Pruning`.

    Source: pruning and retraining in turn, Han et al. 2015, "Learning both weights and connections", section 3; a fifth
    of the weights that are left at a time, Frankle and Carbin 2019, "The lottery ticket hypothesis".

    Example:
        >>> import keras, numpy as np
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> pruning = kp.AdaptivePruning("loss", tolerance=10.0, max_sparsity=0.5)
        >>> x, y = np.ones((80, 8)), np.ones((80, 1))
        >>> _ = model.fit(x, y, epochs=10, verbose=0, callbacks=[pruning])
        >>> [(look.action, round(look.to, 3)) for look in pruning.history], pruning.sparsity
        ([('raise', 0.2), ('raise', 0.44), ('raise', 0.5), ('end', 0.5)], 0.5)
    """

    def __init__(
        self,
        monitor: str = "val_accuracy",
        tolerance: float = 0.01,
        criterion: Any = None,
        pattern: Any = None,
        allocation: Any = None,
        *,
        mode: str = "auto",
        relative: bool = False,
        baseline: float | None = None,
        baseline_epochs: int = 1,
        patience: int = 2,
        near: float = 0.5,
        step: float = 0.2,
        speed_up: float = 1.5,
        min_step: float = 0.02,
        max_sparsity: float = 0.98,
        scope: Scope | None = None,
        parts: TrainingPart | Sequence[TrainingPart] = (),
        target: str | Device | None = None,
        verbose: int = 0,
    ) -> None:
        check_mode("AdaptivePruning", mode)
        self.monitor = monitor
        self.mode = mode
        self.verbose = verbose
        self.steering = Steering(
            tolerance=tolerance,
            relative=relative,
            baseline=baseline,
            baseline_epochs=baseline_epochs,
            patience=patience,
            near=near,
            step=step,
            speed_up=speed_up,
            min_step=min_step,
            max_sparsity=max_sparsity,
        )
        super().__init__(
            FollowsMetric(max_sparsity), criterion, pattern, allocation, scope=scope, parts=parts, target=target
        )
        self._forget()

    def _check(self, recipe: Recipe) -> None:
        if self.steering.baseline is not None and recipe.criterion.from_training:
            raise ValueError(
                f"AdaptivePruning: {recipe.criterion} takes gradients from training, and with a baseline the first "
                f"weights are pruned before any were seen. Received: baseline={self.steering.baseline}. Let the "
                "baseline be measured, baseline=None, or give the criterion data=(x, y)."
            )

    def __repr__(self) -> str:
        recipe = self.recipe
        chosen = f"{recipe.criterion}, {recipe.pattern}, {recipe.allocation}"
        return f"AdaptivePruning({self.monitor!r}, tolerance={self.steering.tolerance}, {chosen})"

    def _forget(self) -> None:
        self.history = Looks()
        self._now = self.steering.begin(0.0)
        self._metric: Metric | None = None
        self._began = False

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: everything but the training that this one is in."""
        return {**super().__getstate__(), "_metric": None, "_began": False}

    def attach(self, model: keras.Model, run: Any = None, **lengths: Any) -> None:
        """Refuse: there are no epochs and no logs to follow.

        Raises:
            ValueError: with the way out.
        """
        raise ValueError(
            "AdaptivePruning follows the logs of epochs, which attach() knows nothing of. In a training loop of your "
            "own, make callbacks = keras.callbacks.CallbackList([pruning], model=model) and call its on_train_begin(), "
            "on_epoch_begin(epoch), on_train_batch_end(batch), on_epoch_end(epoch, logs) and on_train_end()."
        )

    # -- Keras's hooks ------------------------------------------------------------------------------------------------

    def _begin(self, model: keras.Model, history: Any) -> PruningRun:
        self._forget()
        return super()._begin(model, history)

    def _foresee(self, run: PruningRun, epoch: int) -> None:
        self._foreseen = True  # No step is promised at which some sparsity is reached.

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Do what the last look at the metric decided."""
        super().on_epoch_begin(epoch, logs)
        if not self._began:
            self._take_up(epoch)
        if self._now.going_back:
            self._kept().put_back(self._running().variables)
        if self._now.to is not None:
            self._running().bring_to(self._now.to)
        self._now = self._now.done()
        self._note()
        if self._now.ended:  # by a training that was interrupted just then
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the metric, and decide what follows."""
        super().on_epoch_end(epoch, logs)
        value = value_of("AdaptivePruning", logs or {}, self.monitor)
        if self._metric is None:
            self._metric = Metric.of("AdaptivePruning", self.model, self.monitor, self.mode, value)
        number, sparsity = len(self.history) + 1, self._running().off
        self._now, look = self.steering.look(self._now, self._metric, epoch, value, sparsity, number)
        self.history = Looks((*self.history, look))
        if self._now.good_epoch == epoch:
            self._kept().keep(self._running().variables)
        self._note()
        if self.verbose:
            print_msg(
                f"AdaptivePruning: epoch {epoch}, {self.monitor} {value:.4f} at a sparsity of {sparsity:.1%}: "
                f"{look.action}, {look.to:.1%} next ({look.reason})."
            )
        if self._now.ended:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the best model back: of the highest sparsity that was within the tolerance."""
        if not self._began:
            self._take_up(math.inf)
        if STATE in TrainingState.of(self.model).arrays:
            self._kept().put_back(self._running().variables)
            self._warn_if_nothing_held()
        self._kept().drop()
        super().on_train_end(logs)

    # -- what is known ------------------------------------------------------------------------------------------------

    def _kept(self) -> KeptModel:
        return KeptModel(self.model, NAME, moments=True)

    def _note(self) -> None:
        """Put what was found so far where a checkpoint finds it."""
        TrainingState.of(self.model).arrays[STATE] = self._now.to_array(self.history)

    def _take_up(self, epoch: float) -> None:
        """Go on with a training that was interrupted, or begin a new one."""
        self._began = True
        known = TrainingState.of(self.model).arrays.get(STATE)
        now, looks = (None, Looks()) if known is None else Progress.from_array(known)
        last = looks[-1].epoch if looks else -1
        if now is not None and last < epoch:
            self._now, self.history = now, looks
            if last + 1 < epoch < math.inf:
                warnings.warn(
                    f"AdaptivePruning goes on in epoch {epoch} from what was saved before the metric of epoch "
                    f"{last + 1} was looked at. List it before the callback that saves, so that no epoch is missed.",
                    stacklevel=3,
                )
            return
        self._kept().drop()
        if epoch == math.inf:
            return
        run = self._running()
        self._now = self.steering.begin(run.off, _highest(run.targets, run.recipe))
        if self._now.baseline is not None:
            self._kept().keep(run.variables)

    def _warn_if_nothing_held(self) -> None:
        now = self._now
        if now.good_at > now.began_at or now.began_at >= now.most:
            return
        found = f"no sparsity above {now.began_at:.1%} was found at which {self.monitor!r} stays within the tolerance"
        if not any(look.action != "measure" for look in self.history):
            found = "the baseline is measured, and nothing was pruned yet"
        warnings.warn(
            f"AdaptivePruning: training ended after {len(self.history)} epochs, and {found}. Train longer, allow a "
            "larger tolerance, or take smaller steps; history has the reason for each epoch.",
            stacklevel=3,
        )


def _highest(targets: Sequence[Target], recipe: Recipe) -> float:
    """Return the highest sparsity that the patterns and the allocation's floor let tensors have together."""
    tensors = [Tensor(target.path, read(target.variable), None, target.layout, {}) for target in targets]
    off = sum(highest_sparsity(tensor, recipe, recipe.allocation.floor) * tensor.weight.size for tensor in tensors)
    return off / sum(tensor.weight.size for tensor in tensors)
