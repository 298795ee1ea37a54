"""One pruned training: brings the pure strategies, the model's variables and the step together.

A run is what every callback drives, and what a custom training loop drives by hand: attach, on_step after each
step, finish.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune import statistics
from keras_prune.devices import Device
from keras_prune.devices.pruned_tensors import choose_tensors
from keras_prune.growth import Growth
from keras_prune.masks.bound import Mask, Writer, bind, select
from keras_prune.masks.hold import loose_zeros
from keras_prune.masks.recipe import Recipe
from keras_prune.masks.state import TrainingState, strategy_scope
from keras_prune.masks.update import Tensor, masks_at_sparsity, masks_at_threshold, off_in_units
from keras_prune.models.variables import read
from keras_prune.optimizers.clock import optimizers_for, synchronise
from keras_prune.optimizers.slots import restart
from keras_prune.schedules import Schedule
from keras_prune.schedules.spans import Span
from keras_prune.scope import Scope, Skipped, Target
from keras_prune.strategy import FROM_TRAINING, Measuring
from keras_prune.training.gradient_sums import TrainingSums
from keras_prune.training.parts import HiddenWeights, MaskedGradients, Part, Snapshot, merge
from keras_prune.training.sensitivity import Curve, measure_curves, with_curves
from keras_prune.training.stepped_run import SteppedRun

__all__ = ["NOTABLE", "PruningRun"]

GRADIENTS = FROM_TRAINING | {"hessian_gradient"}
"""Statistics of gradients, which are 0 for what a wrapper's mask has off."""

NOTABLE = 0.01
"""From this share of the weights on, zeros that are lost, or that nothing holds, are worth a warning."""


class PruningRun(SteppedRun):
    """The state and the hands of one pruning callback.

    Args:
        model: built and compiled.
        recipe: how masks are found.
        schedule: when, and how much; one that counts in shares or epochs gets its steps once training begins.
        scope: which tensors; None for all kernels.
        device: what the model is for, which chooses the tensors and their patterns; or None.
        parts: what else acts in the step.
        owner: who is named in messages and holds the tensors.
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
        parts: Sequence[Part] = (),
        owner: Any = None,
        history: Any = None,
    ) -> None:
        self.schedule = self._asked = schedule
        self.owner = owner if owner is not None else self
        instead = "to prune without training, use keras_prune.prune(model)."
        optimizers = optimizers_for(model, _name(self.owner), instead)
        survey, self.recipe = choose_tensors(
            model, scope, recipe, device, _name(self.owner), None if schedule.gives == "threshold" else schedule.final
        )
        self.targets: tuple[Target, ...] = survey.targets
        self._size = sum(int(np.prod(target.variable.shape)) for target in self.targets)
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
        self._units_off: float | None = None
        grows_hidden = bool(self.recipe.growth and self.recipe.growth.keeps_learning)
        self._masks = [bind(target, self._state, hold=not grows_hidden) for target in self.targets]
        self._write = Writer(self._masks)
        self._loose = [0] * len(self._masks)
        self._hidden: dict[int, tuple[keras.Variable, keras.Variable]] = {}
        self._sums = self._attach_sums()
        self._restarting: list[Mask] = []
        if grows_hidden:
            self._attach_hidden()
        elif self.recipe.growth is not None:
            self._attach_restarts()
        self._attach_parts()
        self._attach_snapshot()

    def _attach_sums(self) -> TrainingSums | None:
        kinds = self._kinds_from_training()
        if not kinds:
            return None
        sums = TrainingSums(self._state, self.targets, kinds)
        self._install(lambda _: sums.part())
        return sums

    def _kinds_from_training(self) -> frozenset[str]:
        return self.recipe.criterion.from_training.union(*(one.from_training for one in self._growths()))

    def _growths(self) -> list[Growth]:
        return [] if self.recipe.growth is None else [self.recipe.growth]

    def _attach_hidden(self) -> None:
        for target, key, mask in zip(self.targets, self._keys, self._masks, strict=True):
            hidden = self._state.variable(f"hidden:{key}", target.variable.shape, str(target.variable.dtype), 0.0)
            self._hidden[id(target.variable)] = (mask.variable, hidden)
        self._install(functools.partial(HiddenWeights, self._hidden))

    def _attach_restarts(self) -> None:
        """Weights that come back begin anew, so the optimizer is to know nothing of them while they are off."""
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

    def _attach_snapshot(self) -> None:
        """Keep, inside the step, the weights that the schedule rewinds to."""
        self._kept: list[tuple[keras.Variable, keras.Variable]] = []
        if not self.schedule.rewinds:
            return
        for i, variable in enumerate(self.model.trainable_variables):
            kept = self._state.variable(f"rewind:{i}", variable.shape, str(variable.dtype), 0.0)
            self._kept.append((variable, kept))
        self._rewind_at = self._state.variable(f"rewind_at:{self._keys[0]}", (), "int32", -1)
        table = {id(variable): kept for variable, kept in self._kept}
        self._install(lambda optimizer: Snapshot(self._rewind_at, table, optimizer))

    # -- running ------------------------------------------------------------------------------------------------------

    @property
    def sparsity(self) -> float:
        """The share of the targets' weights that are pruned and zero, counted now, a fraction in [0, 1].

        Weights that have just come back as 0, and are there to learn, do not count.
        """
        synchronise(self.model)
        return sum(self._zeros(pruned=True)) / self._size

    @property
    def off(self) -> float:
        """The share of the targets' weights that masks have off, as known from their last change, without a look."""
        return sum(mask.zeros for mask in self._masks) / self._size

    def _zeros(self, pruned: bool = False) -> list[int]:
        """How many weights of each target, or pruned ones only, are zero for the layer that computes with them."""
        found = []
        for mask in self._masks:
            zero = read(mask.target.variable) == 0
            wrapped = mask.target.mask
            zero = zero if wrapped is None else zero | (read(wrapped) == 0)
            found.append(int(np.count_nonzero(zero & ~mask.read() if pruned else zero)))
        return found

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
        self._resume()
        zeros = zip(self._masks, self._keys, self._zeros(), strict=True)
        # Zeros that were there without a mask: they may be lost, and that is said at the end. What has just grown back
        # in a training that goes on is 0, too, and there to learn.
        self._loose = [
            0
            if self._growths() and f"mask:{key}" in self._state.restored
            else loose_zeros(mask.target.variable, mask.read()) and number
            for mask, key, number in zeros
        ]
        for mask in self._masks:
            mask.guard()

    def _act_first(self) -> None:
        self._refuse_lost_weights()
        self._remember()
        self._warn_of_late_begin()
        if self._changes(self._step) and not self._is_done():
            self._update()

    def _act(self, passed: Sequence[int]) -> None:
        if any(self._changes(step) for step in passed):
            self._update()

    def finish(self) -> int:
        """End: pruned weights are exactly zero and held there, and nothing else of the run stays in the step."""
        synchronise(self.model)
        for mask in self._masks:
            if id(mask.target.variable) in self._hidden:
                mask.hold()
            # The optimizer may have written averages over the weights at the end.
            mask.apply()
        self._state.arrays.pop(f"span:{self._key()}", None)
        self._warn_of_lost_zeros()
        self.abandon()
        return 0

    def _warn_of_lost_zeros(self) -> None:
        lost = sum(max(0, before - now) for before, now in zip(self._loose, self._zeros(), strict=True) if before)
        if lost > NOTABLE * self._size:
            warnings.warn(
                f"{_name(self.owner)}: {lost:,} of {sum(self._loose):,} zeros that the weights had before training "
                "are gone, since no mask held them. Was the model pruned, and then copied or loaded by plain Keras? "
                "keras_prune.hold(model) before fit, or keras_prune.load_model, keeps them.",
                stacklevel=4,
            )

    def settle(self) -> int:
        """Put pruned weights that something wrote to after `finish` back at zero; return how many there were."""
        written = 0
        for mask in self._masks:
            if not mask.target.straight_through:
                written += int(np.count_nonzero(read(mask.target.variable)[~mask.read()]))
        if written:
            for mask in self._masks:
                mask.apply()
        return written

    def recount(self) -> None:
        """Take note of masks that something else has set."""
        for mask in self._masks:
            mask.count(mask.read())

    def abandon(self) -> None:
        """Take the run's parts out of the step, whatever state it is in."""
        self._uninstall()
        for mask in self._masks:
            mask.guard(False)
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

    # -- taking up an earlier run -------------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Masks come from the file, from the variable, or from the zeros of a training that had begun to prune."""
        unknown = self._asked.is_relative and self.span is None
        begun = self._step > (0 if unknown else self.schedule.first_step)
        restored = [f"mask:{key}" in self._state.restored for key in self._keys]
        self._resumed = any(restored)
        for mask, known in zip(self._masks, restored, strict=True):
            values = mask.read()
            if not known and begun:
                weight = read(mask.target.variable)
                if not weight.all():
                    values = weight != 0
                    self._resumed = True
            mask.put(np.array(values))
        self._units_off = None
        self._warn_of_lost_state(begun)

    def _warn_of_late_begin(self) -> None:
        begun = self._step > self.schedule.first_step
        if begun and not self._resumed and self._step >= self.schedule.last_step and self.schedule.final > 0:
            warnings.warn(
                f"{_name(self.owner)}: its schedule ends at step {self.schedule.last_step}, and the optimizer has done "
                f"{self._step} steps already, so nothing will be pruned. Steps are the optimizer's iterations: compile "
                f"the model again to count from 0, or begin the schedule at {self._step}.",
                stacklevel=2,
            )

    def _refuse_lost_weights(self) -> None:
        rewind = self.schedule.rewind_step
        if rewind is not None and self._step > rewind and "rewind:0" not in self._state.restored:
            raise ValueError(
                f"{_name(self.owner)}: the weights of step {rewind}, to which the schedule rewinds, are not known: the "
                f"optimizer has done {self._step} steps. Load the file of an earlier run by keras_prune.load_model, "
                "which brings them along; or compile the model again to count from 0; or set rewind_to to "
                f"{self._step} or later."
            )

    def _warn_of_lost_state(self, begun: bool) -> None:
        wanted = [f"hidden:{key}" for key in self._keys if self._hidden]
        wanted += self._sums.keys if self._sums is not None else []
        lost = [key for key in wanted if key not in self._state.restored]
        if begun and self._resumed and lost:
            warnings.warn(
                f"{_name(self.owner)} goes on with a training whose masks were found, but not its sums of gradients or "
                "hidden weights, which start from zero. To bring them along, load the file with "
                "keras_prune.load_model, or use BackupAndRestore in the same fit.",
                stacklevel=2,
            )

    def _remember(self) -> None:
        """Say at which step weights are to be kept in the step; those that nothing moves until then are kept now."""
        rewind = self.schedule.rewind_step
        if rewind is None:
            return
        self._rewind_at.assign(rewind)
        if self._step <= rewind:
            for variable, kept in self._kept:
                kept.assign(variable.value)

    # -- updating -----------------------------------------------------------------------------------------------------

    def _update(self) -> None:
        target = self.schedule(self._step)
        grows = self.recipe.growth is not None
        by_threshold = self.schedule.gives == "threshold"
        # Without growth, a target that is reached leaves nothing to do.
        if not grows and not by_threshold and self.recipe.allocation.adds_up and self._has_reached(target):
            return
        if target == 0.0 and not by_threshold:
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
        self._units_off = None
        self._restart(masks)
        # They look into the variables' memory, and while they do, TensorFlow copies a variable before it writes to it.
        del tensors
        if self._hidden:
            for mask, values in zip(self._masks, masks, strict=True):
                self._commit_hidden(mask, values)
        else:
            self._write(masks)
        self._rewind()
        if self._sums is not None:
            self._sums.reset()
        self._state.arrays[f"updated:{self._keys[0]}"] = self._mark()

    def _restart(self, masks: Sequence[npt.NDArray[np.bool_]]) -> None:
        """Give weights that are about to come back the optimizer's state of new ones."""
        new = {id(mask): values for mask, values in zip(self._masks, masks, strict=True)}
        for mask in self._restarting:
            back = new[id(mask)] & ~mask.read()
            for optimizer in self._optimizers if back.any() else ():
                restart(optimizer, mask.target.variable, back)

    def _has_reached(self, target: float) -> bool:
        """Whether so many units are off already. Where masks are finer than the pattern, more weights are."""
        if target > self.off:
            return False
        if self._units_off is None:
            off = [off_in_units(m.target.path, m.read(), m.target.layout, self.recipe) for m in self._masks]
            self._units_off = sum(off) / self._size
        return target <= self._units_off

    def _read_tensors(self) -> list[Tensor]:
        tensors = []
        found = [self._measure_for(one) for one in (self.recipe.criterion, *self._growths())]
        statistics, gains = found[0], found[-1] if self._growths() else [{} for _ in self.targets]
        for target, mask, values, gain in zip(self.targets, self._masks, statistics, gains, strict=True):
            weight = read(target.variable)
            if id(target.variable) in self._hidden:
                weight = read_merged(mask, self._hidden[id(target.variable)][1])
            on = mask.read() if mask.zeros else None
            tensors.append(Tensor(target.path, weight, on, target.layout, values, target.index, gains=gain))
        return with_curves(tensors, self._curves(tensors)) if self.recipe.allocation.needs_curves else tensors

    def _measure_for(self, strategy: Measuring) -> list[dict[str, Any]]:
        """The statistics that a criterion or a growth needs, for each target, from training and from data."""
        gathered: list[dict[str, Any]] = [{} for _ in self.targets]
        if strategy.from_training and self._sums is not None:
            if self._sums.steps == 0:
                way_out = f", or give the {strategy.kind} data=(x, y)" * strategy.takes_data
                raise ValueError(
                    f"{_name(self.owner)} has seen no gradients at step {self._step}, and takes them from training. "
                    f"Begin the schedule at step 1 or later{way_out}."
                )
            gathered = self._sums.read(strategy.from_training)
        if strategy.from_data:
            more = statistics.collect(self.model, self.targets, strategy.from_data, strategy.data)
            for values, others in zip(gathered, more, strict=True):
                values.update(others)
        return gathered

    def _curves(self, tensors: list[Tensor]) -> list[Curve]:
        """Loss against sparsity, tensor by tensor: measured once, and saved with the training."""
        names = [f"curve:{key}" for key in self._keys]
        if not all(name in self._state.arrays for name in names):
            curves = measure_curves(self.model, self.targets, tensors, self.recipe)
            if self.recipe.allocation.data is None:
                return curves
            for name, curve in zip(names, curves, strict=True):
                self._state.arrays[name] = np.array(curve, dtype=np.float64)
        return [tuple((float(s), float(loss)) for s, loss in self._state.arrays[name]) for name in names]

    def _commit_hidden(self, mask: Mask, values: Any) -> None:
        """Put a new mask in force; the hidden weights keep what the pruned ones have learnt."""
        variable = mask.target.variable
        hidden = self._hidden[id(variable)][1]
        hidden.assign(merge(mask.variable, variable.value, hidden.value))
        mask.put(values)
        variable.assign(select(mask.variable, hidden.value))
        mask.apply_to_averages()

    def _rewind(self) -> None:
        if not self._kept:
            return
        for variable, kept in self._kept:
            variable.assign(kept.value)
        for mask in self._masks:
            mask.apply()


def read_merged(mask: Mask, hidden: keras.Variable) -> Any:
    """Return a weight with the hidden values of what is pruned."""
    return np.asarray(ops.convert_to_numpy(merge(mask.variable, mask.target.variable.value, hidden.value)))


def _name(thing: Any) -> str:
    return type(thing).__name__
