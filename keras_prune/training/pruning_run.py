"""One pruned training: brings the pure strategies, the model's variables and the training step together."""

from __future__ import annotations

import dataclasses
import functools
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune.devices import Device
from keras_prune.devices.pruned_tensors import choose_tensors
from keras_prune.in_step.hidden_weights import HiddenWeights, MaskedWeights
from keras_prune.in_step.parts import MaskedGradients, TrainingPart
from keras_prune.in_step.rewinding import Rewinding
from keras_prune.masks.bound import Mask, bind
from keras_prune.masks.hold import loose_zeros
from keras_prune.masks.mask_set import MaskSet
from keras_prune.masks.recipe import Recipe
from keras_prune.masks.state import TrainingState, strategy_scope
from keras_prune.masks.update import Tensor, masks_at_sparsity, masks_at_threshold, off_in_units
from keras_prune.models.variables import read
from keras_prune.optimizers.clock import optimizers_for, synchronise
from keras_prune.optimizers.slots import clear_momentum, restart
from keras_prune.schedules import Schedule
from keras_prune.schedules.spans import Span
from keras_prune.scope import Scope, Skipped, Target
from keras_prune.strategy import FROM_TRAINING
from keras_prune.training.earlier_run import EarlierRun
from keras_prune.training.measuring import Measurements
from keras_prune.training.stepped_run import SteppedRun

__all__ = ["NOTABLE", "PruningRun"]

GRADIENTS = FROM_TRAINING | {"hessian_gradient"}
"""Statistics of gradients, which are 0 for what a wrapper's mask has off."""

NOTABLE = 0.01
"""From this share of the weights on, zeros that are lost, or that nothing holds, are worth a warning."""


class PruningRun(SteppedRun):
    """One pruned training: what a pruning callback drives.

    Args:
        model: built and compiled.
        recipe: how masks are found.
        schedule: when, and how much; one that counts in shares or epochs gets its steps once training begins.
        scope: which tensors; None for all kernels.
        device: what the model is for, which chooses the tensors and their patterns; or None.
        parts: what else acts in the step.
        hidden: what is shown of weights that go on learning out of sight, where the growth lets them.
        owner: the callback, which is named in messages.
        history: the History of the `fit` that this is of; two owners of one tensor in one `fit` are refused.

    Attributes:
        targets: the tensors that are pruned.
        skipped: the variables that are not, with reasons.
        sparsity: the share of the targets' weights that are off.
    """

    def __init__(
        self,
        model: keras.Model,
        recipe: Recipe,
        schedule: Schedule,
        *,
        scope: Scope | None = None,
        device: str | Device | None = None,
        parts: Sequence[TrainingPart] = (),
        hidden: Callable[[TrainingState, Sequence[Mask]], HiddenWeights] = MaskedWeights,
        owner: Any = None,
        history: Any = None,
    ) -> None:
        self.schedule = self._asked = schedule
        self.owner = owner if owner is not None else self
        self._make_hidden = hidden
        instead = "to prune without training, use keras_prune.prune(model)."
        optimizers = optimizers_for(model, _name(self.owner), instead)
        survey, self.recipe = choose_tensors(
            model, scope, recipe, device, _name(self.owner), None if schedule.gives == "threshold" else schedule.final
        )
        self.targets: tuple[Target, ...] = survey.targets
        self.skipped: tuple[Skipped, ...] = survey.skipped
        with strategy_scope(model):
            if model.optimizer is not None and not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            variables = [target.variable for target in self.targets]
            super().__init__(model, optimizers, TrainingState.of(model), variables, parts, history)
            self._state.left_alone = survey.for_target
            self._refuse_gradients_of_wrappers()
            for target in self.targets:
                self._state.claim(self, target.variable, target.path, history)
            self._attach()
        self._enlist()

    # -- attaching ----------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        self._keys = [str(target.index) for target in self.targets]
        self._earlier = EarlierRun(_name(self.owner), self._state, self._keys)
        self._units_off: float | None = None
        grows_hidden = bool(self.recipe.growth and self.recipe.growth.keeps_learning)
        self._masks = MaskSet([bind(target, self._state, hold=not grows_hidden) for target in self.targets])
        self._loose = [0] * len(self._masks)
        self._hidden: HiddenWeights | None = None
        self._measurements = Measurements(_name(self.owner), self.model, self.targets, self.recipe, self._state)
        sums = self._measurements.sums
        if sums is not None:
            self._install(lambda _: sums.part())
        self._restarting: list[Mask] = []
        if grows_hidden:
            self._hidden = self._make_hidden(self._state, list(self._masks))
            self._install(self._hidden.part)
        elif self.recipe.growth is not None:
            self._attach_restarts()
        self._attach_parts()
        self._attach_rewinding()

    def _attach_restarts(self) -> None:
        """Hide what is off from the optimizer: weights that come back begin anew."""
        self._restarting = [mask for mask in self._masks if not mask.target.straight_through]
        masked = MaskedGradients({id(mask.target.variable): mask.variable for mask in self._restarting})
        self._install(lambda _: masked)

    def _refuse_gradients_of_wrappers(self) -> None:
        growth = self.recipe.growth
        under = [t.path for t in self.targets if t.mask is not None and not t.straight_through]
        if growth is not None and growth.needs & GRADIENTS and under:
            raise ValueError(
                f"{_name(self.owner)}: {growth} chooses what comes back by the gradient of pruned weights, which a "
                f"wrapper layer makes 0. Received: {under} under wrappers. Use the plain layers, whose masks the "
                "callback holds; or the wrapper's straight_through=True; or growth='set'."
            )

    def _attach_parts(self) -> None:
        kernels = [id(target.variable) for target in self.targets]
        biases = [id(v) for v in self.model.trainable_variables if "bias" in v.name]
        for i, part in enumerate(self.parts):
            weights = kernels + (biases if part.on_biases else [])
            level = self._level_of(part, f"level{i}:{self._keys[0]}")
            self._install(functools.partial(part.bind, self.model, weights, level))

    def _attach_rewinding(self) -> None:
        """Keep, inside the step, the weights that the schedule rewinds to."""
        self._rewinding: Rewinding | None = None
        if self.schedule.rewinds:
            self._rewinding = Rewinding(self.model, self._state, self._keys[0])
            self._install(self._rewinding.part)

    # -- running ------------------------------------------------------------------------------------------------------

    @property
    def sparsity(self) -> float:
        """The share of the targets' weights that are pruned and zero, counted now, a fraction in [0, 1]."""
        synchronise(self.model)
        return self._masks.sparsity

    @property
    def off(self) -> float:
        """The share of the targets' weights that masks have off, counted when they last changed."""
        return self._masks.off

    @property
    def variables(self) -> dict[str, keras.Variable]:
        """What goes with the weights of a moment, by its key in the model's state: masks, then sums of gradients."""
        masks = {f"mask:{key}": mask.variable for key, mask in zip(self._keys, self._masks, strict=True)}
        return masks if self._measurements.sums is None else {**masks, **self._measurements.sums.variables}

    @property
    def last_step(self) -> int:
        """The step from which the final target holds."""
        return self.schedule.target_step

    def _key(self) -> str:
        return self._keys[0]

    def _given(self) -> Schedule:
        return self._asked

    def _resolve(self, span: Span) -> None:
        self.schedule = self._asked.resolve(span)

    def _take_up(self) -> None:
        unknown = self._asked.is_relative and self.span is None
        begun = self._step > (0 if unknown else self.schedule.first_step)
        self._earlier.take_masks(self._masks, begun=begun)
        self._units_off = None
        if begun:
            sums = self._measurements.sums
            hidden = [] if self._hidden is None else self._hidden.keys
            self._earlier.warn_of_lost_state(hidden + (sums.keys if sums is not None else []))
        zeros = zip(self._masks, self._keys, self._masks.zeros(), strict=True)
        # Zeros that were there without a mask: they may be lost, and that is said at the end. What has just grown back
        # in a training that goes on is 0, too, and there to learn.
        self._loose = [
            0
            if self.recipe.growth is not None and self._earlier.knows(key)
            else loose_zeros(mask.target.variable, mask.read()) and number
            for mask, key, number in zeros
        ]
        self._masks.guard()

    def _act_first(self) -> None:
        self._earlier.refuse_lost_weights(self.schedule, self._step)
        if self._rewinding is not None and self.schedule.rewind_step is not None:
            self._rewinding.remember(self.schedule.rewind_step, self._step)
        self._earlier.warn_of_late_begin(self.schedule, self._step)
        if self._changes(self._step) and not self._is_done():
            self._update()

    def _act(self, passed: Sequence[int]) -> None:
        if any(self._changes(step) for step in passed):
            self._update()

    def finish(self) -> int:
        """End: pruned weights are exactly zero and held there, and nothing else of the run stays in the step."""
        synchronise(self.model)
        for mask in self._masks:
            if self._hidden is not None:
                mask.hold()
            # The optimizer may have written averages over the weights at the end.
            mask.apply()
        self._state.arrays.pop(f"span:{self._key()}", None)
        self._warn_of_lost_zeros()
        self.abandon()
        return 0

    def _warn_of_lost_zeros(self) -> None:
        lost = sum(max(0, before - now) for before, now in zip(self._loose, self._masks.zeros(), strict=True) if before)
        if lost > NOTABLE * self._masks.size:
            warnings.warn(
                f"{_name(self.owner)}: {lost:,} of {sum(self._loose):,} zeros that the weights had before training "
                "are gone, since no mask held them. Was the model pruned, and then copied or loaded by plain Keras? "
                "keras_prune.hold(model) before fit, or keras_prune.load_model, keeps them.",
                stacklevel=4,
            )

    def settle(self) -> int:
        """Put pruned weights that something wrote to after `finish` back at zero; return how many there were."""
        return self._masks.settle()

    def recount(self) -> None:
        """Count the zeros of masks that something else has set."""
        self._masks.recount()

    def abandon(self) -> None:
        """Take the run's parts out of the step, whatever state it is in."""
        self._uninstall()
        self._masks.guard(False)
        self._state.unclaim(self)
        self.model.train_function = None

    def _is_done(self) -> bool:
        """Whether an earlier run made this very update.

        Made twice it could prune more: sums of gradients are reset by an update, growth draws anew, and a threshold
        may be relative to the weights that the update left.
        """
        last = self._state.arrays.get(f"updated:{self._keys[0]}")
        return last is not None and np.array_equal(last, self._mark())

    def _mark(self) -> npt.NDArray[np.int64]:
        """The step, and what tells the updates of two recipes at one step apart."""
        recipe, schedule = self.recipe, self.schedule
        strategies = [schedule, *(getattr(recipe, field.name) for field in dataclasses.fields(recipe))]
        kinds = [type(one).__name__ for one in strategies]
        words = [*kinds, schedule.first_step, schedule.last_step, schedule(self._step), schedule.final]
        return np.array([self._step, zlib.crc32(repr(words).encode())], np.int64)

    def _is_due(self, step: int) -> bool:
        return self._changes(step)

    def _changes(self, step: int) -> bool:
        """Whether masks change at a step: where the schedule says so, and always where its final target begins."""
        return self.schedule.should_update(step) or step == self.last_step

    # -- updating -----------------------------------------------------------------------------------------------------

    def bring_to(self, sparsity: float) -> None:
        """Prune to a sparsity now, between two steps and whatever the schedule says of them; what is off stays off.

        Args:
            sparsity: at most the schedule's final one.
        """
        synchronise(self.model)
        self._step = self.step
        if not (self.recipe.allocation.adds_up and self._has_reached(sparsity)):
            self._change(masks_at_sparsity(self._read_tensors(), self.recipe, sparsity, final=self.schedule.final))

    def _update(self) -> None:
        target = self.schedule(self._step)
        grows = self.recipe.growth is not None
        by_threshold = self.schedule.gives == "threshold"
        # Without growth, a target that is reached leaves nothing to do.
        if not grows and not by_threshold and self.recipe.allocation.adds_up and self._has_reached(target):
            return
        if target == 0.0 and not by_threshold and not (grows and self._masks.off):
            return
        tensors = self._read_tensors()
        if by_threshold:
            masks = masks_at_threshold(tensors, self.recipe, target, relative_to=self.schedule.relative_to)
        else:
            span = self.schedule.last_step - self.schedule.first_step
            progress = (self._step - self.schedule.first_step) / span if span else 0.0
            masks = masks_at_sparsity(
                tensors, self.recipe, target, final=self.schedule.final, progress=min(1.0, progress), seed=self._step
            )
        # They look into the variables' memory, and while they do, TensorFlow copies a variable before it writes to it.
        del tensors
        self._change(masks)
        self._state.arrays[f"updated:{self._keys[0]}"] = self._mark()

    def _change(self, masks: Sequence[npt.NDArray[np.bool_]]) -> None:
        """Put new masks in force."""
        self._units_off = None
        self._restart(masks)
        if self._hidden is not None:
            self._hidden.change(masks)
        else:
            self._masks.write(masks)
        if self._rewinding is not None:
            self._rewinding.rewind()
            self._masks.apply()
        if self._measurements.sums is not None:
            self._measurements.sums.reset()

    def _restart(self, masks: Sequence[npt.NDArray[np.bool_]]) -> None:
        """Give weights that are about to come back the optimizer's state of new ones."""
        new = {id(mask): values for mask, values in zip(self._masks, masks, strict=True)}
        for mask in self._restarting:
            back = new[id(mask)] & ~mask.read()
            for optimizer in self._optimizers if back.any() else ():
                restart(optimizer, mask.target.variable, back)
        growth = self.recipe.growth
        if growth is not None and growth.clears_momentum and self._masks.off and all(one.all() for one in masks):
            for optimizer in self._optimizers:
                clear_momentum(optimizer)

    def _has_reached(self, target: float) -> bool:
        """Whether so many units are off already. Where masks are finer than the pattern, more weights are."""
        if target > self.off:
            return False
        if self._units_off is None:
            off = [off_in_units(m.target.path, m.read(), m.target.layout, self.recipe) for m in self._masks]
            self._units_off = sum(off) / self._masks.size
        return target <= self._units_off

    def _read_tensors(self) -> list[Tensor]:
        recipe, tensors = self.recipe, []
        statistics = self._measurements.statistics_for(recipe.criterion, self._step)
        gains = self._measurements.statistics_for(recipe.growth, self._step)
        for target, mask, values, gain in zip(self.targets, self._masks, statistics, gains, strict=True):
            weight = read(target.variable) if self._hidden is None else self._hidden.read(mask)
            on = mask.read() if mask.zeros else None
            tensors.append(Tensor(target.path, weight, on, target.layout, values, target.index, gains=gain))
        return self._measurements.with_curves(tensors)


def _name(thing: Any) -> str:
    return type(thing).__name__
