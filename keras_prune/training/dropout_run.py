"""A training with targeted dropout: what may be dropped changes by a schedule, what is dropped at each step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_prune.devices.pruned_tensors import choose_tensors
from keras_prune.in_step.dropped_weights import Droppable, DroppedWeights
from keras_prune.masks.recipe import Recipe
from keras_prune.masks.state import TrainingState, strategy_scope
from keras_prune.masks.update import Tensor, masks_at_sparsity
from keras_prune.models.variables import assign, read, resource_of
from keras_prune.optimizers.clock import optimizers_for, synchronise
from keras_prune.schedules import Schedule
from keras_prune.schedules.spans import Span
from keras_prune.scope import Scope
from keras_prune.training.measuring import Measurements
from keras_prune.training.stepped_run import SteppedRun

__all__ = ["DropoutRun"]


class DropoutRun(SteppedRun):
    """One training with targeted dropout.

    Args:
        model: built and compiled.
        recipe: which weights come first; its growth chooses anew at each update.
        schedule: the share of weights that may be dropped.
        rate: the probability of dropping one of them.
        units: drop whole outputs.
        seed: of what is drawn.
        scope: which tensors; None for all kernels.
        owner: the callback's name, for messages.
        history: the History of the `fit` that this is of, or None.

    Attributes:
        off: the share of weights that may be dropped, counted when it last changed.
        drops: how many times weights were dropped.
    """

    def __init__(
        self,
        model: keras.Model,
        recipe: Recipe,
        schedule: Schedule,
        *,
        rate: float,
        units: bool,
        seed: int,
        scope: Scope,
        owner: str,
        history: Any,
    ) -> None:
        self.schedule = self._asked = schedule
        self.recipe = recipe
        optimizers = optimizers_for(model, owner, "there is no dropout without training.")
        survey, _ = choose_tensors(model, scope, recipe, None, owner)
        self.targets = survey.targets
        with strategy_scope(model):
            if model.optimizer is not None and not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            variables = [target.variable for target in self.targets]
            super().__init__(model, optimizers, TrainingState.of(model), variables, (), history)
            self._measurements = Measurements(owner, model, self.targets, recipe, self._state)
            if self._measurements.sums is not None:
                sums = self._measurements.sums
                self._install(lambda _: sums.part())
            self._weights = [
                Droppable(
                    target,
                    self._state.variable(f"undropped:{target.index}", target.variable.shape, "bool", True),
                    self._state.variable(
                        f"dropped:{target.index}", target.variable.shape, str(target.variable.dtype), 0.0
                    ),
                )
                for target in self.targets
            ]
        redraws = getattr(model, "steps_per_execution", 1) != 1
        self._dropped = DroppedWeights(self._weights, optimizers, rate=rate, units=units, seed=seed, redraws=redraws)
        self._install(lambda _: self._dropped)
        self._drop, self._bring_back = self._dropped.drop, self._dropped.bring_back
        if all(resource_of(one.rest) is not None for one in self._weights) and self._dropped.is_settled:
            # Call by call, TensorFlow takes three times as long.
            self._drop, self._bring_back = (_compiled(act) for act in (self._drop, self._bring_back))
        self.off = self._count()
        self.drops = 0
        self._enlist()

    # -- around each call of the compiled step ------------------------------------------------------------------------

    @contextlib.contextmanager
    def dropped(self) -> Iterator[None]:
        """The scope of a step: weights are dropped inside and whole outside, whatever happens inside."""
        self.drops += 1
        try:
            self._drop()
            yield
        finally:
            self._bring_back()

    def around(self, train_function: Callable[..., Any]) -> Callable[..., Any]:
        """Drop weights for each call."""
        if keras.backend.backend() == "jax":
            return self._around_jax(train_function)

        def with_dropout(*arguments: Any) -> Any:
            with self.dropped():
                return train_function(*arguments)

        return with_dropout

    def _around_jax(self, train_function: Callable[..., Any]) -> Callable[..., Any]:
        """Drop weights in the state that the compiled step is given, and bring them back in what it returns."""

        def with_dropout(state: Any, iterator: Any) -> Any:
            self.drops += 1
            logs, state = train_function(self._through(state, self._dropped.drop), iterator)
            return logs, self._through(state, self._dropped.bring_back)

        return with_dropout

    def _through(self, state: Any, act: Callable[[], None]) -> Any:
        trained, others, moments, metrics = state
        variables, slots = self.model.trainable_variables, self.model.optimizer.variables
        mapping = [*zip(variables, trained, strict=True), *zip(slots, moments, strict=True)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            act()
        return (
            [scope.get_current_value(variable) for variable in variables],
            others,
            [scope.get_current_value(slot) for slot in slots],
            metrics,
        )

    # -- running ------------------------------------------------------------------------------------------------------

    @property
    def last_step(self) -> int:
        """The step from which the final share holds."""
        return self.schedule.target_step

    def finish(self) -> int:
        """End: weights are whole, and nothing of the run stays in the step."""
        synchronise(self.model)
        self._bring_back()
        self._state.arrays.pop(f"span:{self._key()}", None)
        self.abandon()
        return 0

    def settle(self) -> int:
        """Nothing: no weight has to be zero."""
        return 0

    def abandon(self) -> None:
        """Take the run's parts out of the step."""
        self._uninstall()
        self.model.train_function = None

    def _key(self) -> str:
        return f"dropout{self.targets[0].index}"

    def _given(self) -> Schedule:
        return self._asked

    def _resolve(self, span: Span) -> None:
        self.schedule = self._asked.resolve(span)

    def _take_up(self) -> None:
        """Count what a file has brought: the weights that may be dropped are among the state of the step."""
        self.off = self._count()

    def _act_first(self) -> None:
        # A run that goes on has what its last update chose.
        known = all(f"undropped:{target.index}" in self._state.restored for target in self.targets)
        if self._is_due(self._step) and not (known and self._is_done()):
            self._choose()

    def _act(self, passed: Sequence[int]) -> None:
        if any(self._is_due(step) for step in passed):
            self._choose()

    def _is_due(self, step: int) -> bool:
        return self.schedule.should_update(step) or step == self.last_step

    def _is_done(self) -> bool:
        chosen = self._state.arrays.get(f"chosen:{self._key()}")
        return chosen is not None and int(chosen) == self._step

    def _choose(self) -> None:
        """Choose anew which weights may be dropped."""
        statistics = self._measurements.statistics_for(self.recipe.criterion, self._step)
        tensors = [
            Tensor(target.path, read(target.variable), read(one.safe), target.layout, values, target.index)
            for target, one, values in zip(self.targets, self._weights, statistics, strict=True)
        ]
        share = self.schedule(self._step)
        masks = masks_at_sparsity(
            self._measurements.with_curves(tensors), self.recipe, share, final=self.schedule.final, seed=self._step
        )
        for one, mask in zip(self._weights, masks, strict=True):
            assign(one.safe, mask)
        if self._measurements.sums is not None:
            self._measurements.sums.reset()
        self.off = self._count()
        self._state.arrays[f"chosen:{self._key()}"] = np.array(self._step)

    def _count(self) -> float:
        safe = [read(one.safe) for one in self._weights]
        return 1.0 - sum(int(np.count_nonzero(one)) for one in safe) / sum(one.size for one in safe)


def _compiled(act: Callable[[], None]) -> Callable[[], None]:
    import tensorflow as tf

    compiled: Callable[[], None] = tf.function(act, autograph=False)
    return compiled
