"""One training in which weights share values: when they begin to, and what masks and other callbacks do to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_prune.masks.state import TrainingState, strategy_scope
from keras_prune.models.variables import read
from keras_prune.optimizers.clock import optimizers_for, synchronise
from keras_prune.schedules import ConstantSparsity, Schedule
from keras_prune.schedules.spans import Span
from keras_prune.scope import Skipped, Target
from keras_prune.sharing.choices import Choices, books_of
from keras_prune.sharing.tied_weights import TiedInStep, TiedWeight
from keras_prune.training.pruning_run import PruningRun
from keras_prune.training.stepped_run import SteppedRun

__all__ = ["SharingRun"]


class SharingRun(SteppedRun):
    """One training in which weights share values from a step on.

    Args:
        model: built and compiled.
        choices: how weights come to share values.
        begin: the step, as a schedule of one change; its sparsity does not matter.
        history: the History of the `fit` that this is of, or None.

    Attributes:
        targets: the tensors.
        skipped: the variables that are left alone, with the reasons.
    """

    def __init__(self, model: keras.Model, choices: Choices, begin: ConstantSparsity, history: Any) -> None:
        self.schedule: Schedule = begin
        self._asked = begin
        self._choices = choices
        instead = "to share weights without training, use keras_prune.share(model)."
        optimizers = optimizers_for(model, choices.owner, instead)
        self.targets: tuple[Target, ...]
        self.skipped: tuple[Skipped, ...]
        self.targets, self.skipped = choices.survey(model)
        self._refuse_a_second(model)
        name = f"sharing_{choices.values}_{choices.granularity}"
        self._on_key = f"{name}_on:{self.targets[0].index}"
        with strategy_scope(model):
            if model.optimizer is not None and not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            variables = [target.variable for target in self.targets]
            super().__init__(model, optimizers, TrainingState.of(model), variables, (), history)
            self._active = self._state.variable(self._on_key, (), "bool", False)
            self._tied = [
                TiedWeight(target, self._state, name, books_of(target, choices.granularity), choices.values)
                for target in self.targets
            ]
        self._install(lambda optimizer: TiedInStep(self._tied, self._active, optimizer), last=True)
        self._masks_seen: list[float] = []
        self._enlist()

    def _refuse_a_second(self, model: keras.Model) -> None:
        state, own = TrainingState.held_by(model), {id(target.variable) for target in self.targets}
        for run in list(state.runs) if state is not None else ():
            if not isinstance(run, SharingRun) or not any(id(target.variable) in own for target in run.targets):
                continue
            if not run.is_over:
                raise ValueError(
                    f"Two {self._choices.owner} callbacks act on one tensor in one training. Remove one, or give them "
                    "scopes that do not overlap: scope=Scope(include=..., exclude=...)."
                )
            run.abandon()

    # -- what the user can ask ----------------------------------------------------------------------------------------

    @property
    def is_active(self) -> bool:
        """Whether weights share values by now."""
        return bool(read(self._active))

    @property
    def values(self) -> dict[str, int]:
        """The most values that a codebook of each tensor has now, zero counted, by the tensor's path."""
        synchronise(self.model)
        return {one.target.path: one.most for one in self._tied}

    # -- running ------------------------------------------------------------------------------------------------------

    @property
    def last_step(self) -> int:
        """The step from which weights share values."""
        return self.schedule.target_step

    def follow_masks(self) -> None:
        """Take weights that were pruned since the last call out of their groups; call it before each step."""
        seen = [run.off for run in self._state.runs if isinstance(run, PruningRun)]
        if seen == self._masks_seen:
            return
        self._masks_seen = seen
        synchronise(self.model)
        if self.is_active:
            self._follow_masks()

    def _follow_masks(self) -> None:
        for one in self._tied:
            if not one.follow_mask(self._optimizers):
                one.write(self._choices.codebook(one.target), self._optimizers)

    def finish(self) -> int:
        """End: weights keep the values that they share, and nothing of the run stays in the step."""
        synchronise(self.model)
        if self.started and self.is_active:
            self._follow_masks()
        self._state.arrays.pop(f"span:{self._key()}", None)
        self.abandon()
        return 0

    def settle(self) -> int:
        """Let weights share values again where something wrote others after `finish`; return how many weights."""
        written = 0
        for one in self._tied if self.is_active else ():
            if one.most > self._choices.values:
                one.write(self._choices.codebook(one.target), self._optimizers)
                written += int(np.prod(one.target.variable.shape))
        return written

    def abandon(self) -> None:
        """Take the run's part out of the step."""
        self._uninstall()
        self.model.train_function = None

    def _key(self) -> str:
        return f"sharing{self.targets[0].index}"

    def _given(self) -> Schedule:
        return self._asked

    def _resolve(self, span: Span) -> None:
        self.schedule = self._asked.resolve(span)

    def _take_up(self) -> None:
        """Go on with what an earlier run did, if all of it is there and weights are as it left them."""
        known = all(key in self._state.restored for one in self._tied for key in (self._on_key, *one.keys))
        if not (known and self.is_active and all(one.is_tied for one in self._tied)):
            self._active.assign(False)
        else:
            self._follow_masks()

    def _act_first(self) -> None:
        self._refuse_what_grows()
        if self._step >= self.last_step and not self.is_active:
            self._share()

    def _act(self, passed: Sequence[int]) -> None:
        if any(self._is_due(step) for step in passed) and not self.is_active:
            self._share()

    def _is_due(self, step: int) -> bool:
        return step == self.last_step

    def _share(self) -> None:
        """Find the codebooks, and put them in force."""
        synchronise(self.model)
        codebooks = self._choices.codebooks(self.model, self.targets)
        for one, codebook in zip(self._tied, codebooks, strict=True):
            one.write(codebook, self._optimizers)
        self._active.assign(True)

    def _refuse_what_grows(self) -> None:
        """Refuse callbacks whose weights come back, or learn on out of sight, on the same tensors."""
        own = {id(target.variable) for target in self.targets}
        for run in self._state.runs:
            if isinstance(run, SharingRun) or (isinstance(run, PruningRun) and run.recipe.growth is None):
                continue
            others = run.targets if isinstance(run, PruningRun) else self.targets
            if any(id(target.variable) in own for target in others):
                other = type(getattr(run, "owner", run)).__name__
                raise ValueError(
                    f"{self._choices.owner} goes with callbacks whose pruned weights stay pruned, as those of "
                    f"keras_prune.Pruning do. Received: {other} on the same model, whose weights come back or change "
                    "out of sight. Let that training end, and share weights in the next fit."
                )
