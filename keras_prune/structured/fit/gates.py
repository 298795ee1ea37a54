"""Gates: units switched off and on in a model that trains, as if they were removed and put back.

A closed unit's weights are +0.0 on every variable that it lies on, and stay so, by the masks that the pruning
callbacks use. Of the units that `analyse` offers, that changes the outputs exactly as removing them does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune.in_step.parts import MaskedGradients
from keras_prune.keras_seam import moved_by, slots_by_weight
from keras_prune.masks.bound import Mask, MaskConstraint, put_zeros
from keras_prune.masks.hold import is_held
from keras_prune.masks.mask_set import MaskSet
from keras_prune.masks.state import TrainingState, strategy_scope
from keras_prune.models.variables import read
from keras_prune.optimizers.averages import all_optimizers
from keras_prune.optimizers.clock import synchronise
from keras_prune.optimizers.finding import hook, hooked, innermost, optimizers_of, unhook
from keras_prune.scope import Target
from keras_prune.structured.analysis.groups import Analysis, Keep
from keras_prune.structured.fit.unit_masks import (
    MaskArray,
    check_analysis,
    check_groups,
    closed_units,
    gated_targets,
    mask_of_units,
)
from keras_prune.structured.surgery.shrink import is_gate, rebuild_bare, refuse_masks

__all__ = ["Gates"]


class Gates:
    """Masks on all variables that units lie on; a unit is open, or closed: 0 everywhere, and held there.

    The masks are state of the compiled step, so they hold under `jit_compile`, `steps_per_execution`, mixed precision
    and gradient accumulation, and are saved and restored with the model. Gradients of closed units are 0 for the
    optimizer, and so are their moments, so that clipping by a norm, momentum and averages are those of the smaller
    model. A constraint that a variable had stays, and is applied before.

    Args:
        model: built; compiled, if it is to be trained.
        analysis: of this model, with `exact=True`.
        remember: keep the values of closed units, so that they can be opened again: 4 bytes a weight on the host and
            in checkpoints, once something is closed.
        owner: who is named when two want the same variable.
        run: which training this is; two owners of one variable in one run are refused.

    Attributes:
        state: what pruning adds to the model, where the masks are.

    Raises:
        ValueError: the analysis is of another model or allows inexact removals, nothing can be removed, a variable has
            a mask of another pruning, or another owner in this run.

    Example:
        >>> a, b = keras.layers.Dense(3, use_bias=False, name="a"), keras.layers.Dense(2, name="b")
        >>> model = keras.Sequential([keras.Input((4,)), a, b])
        >>> from keras_prune.structured import analyse
        >>> gates = Gates(model, analyse(model))
        >>> gates.close([1])
        >>> gates.keep
        array([ True, False,  True])
        >>> np.count_nonzero(a.get_weights()[0], axis=0)
        array([4, 0, 4])
        >>> gates.shrink().layers[0].units
        2
        >>> gates.open([1])
        >>> np.count_nonzero(a.get_weights()[0], axis=0)
        array([4, 4, 4])
    """

    def __init__(
        self,
        model: keras.Model,
        analysis: Analysis,
        *,
        remember: bool = True,
        owner: Any = None,
        run: Any = None,
    ) -> None:
        check_analysis(model, analysis)
        self.model = model
        self.analysis = analysis
        self.remember = remember
        self.owner = owner if owner is not None else self
        self._keep: Keep = np.ones(analysis.size, bool)
        self._optimizer = innermost(getattr(model, "optimizer", None))
        with strategy_scope(model):
            if self._optimizer is not None and not self._optimizer.built:
                model.optimizer.build(model.trainable_variables)
            self._optimizers = optimizers_of(model)
            self.state = TrainingState.of(model)
            self._masks = [self._bind(target, run) for target in gated_targets(analysis)]
            self._write = MaskSet(self._masks).write
            self._part = _ClosedGradients({id(m.target.variable): m.variable for m in self._masks})
            for optimizer in self._optimizers:
                for part in hooked(optimizer, _ClosedGradients):
                    if part.masks.keys() & self._part.masks.keys():
                        unhook(optimizer, part)  # of gates of an earlier training
                hook(optimizer, self._part)
        model.train_function = None  # one that was compiled before would train without the masks
        self.refresh()

    def _bind(self, target: Target, run: Any) -> Mask:
        self.state.claim(self, target.variable, target.path, run)
        key = f"gate:{target.index}"
        ours = self.state.variables.get(key)
        constraint = target.variable.constraint
        held = constraint if is_held(constraint) else None
        if isinstance(constraint, MaskConstraint) and not (held or constraint.mask is ours or is_gate(constraint)):
            raise ValueError(
                f"{target.path!r} has a mask of another pruning, and gates need one of their own. Take it off first: "
                "train kp.strip(model), or prune units before single weights."
            )
        in_file = key in self.state.arrays
        variable = self.state.variable(key, target.variable.shape, "bool", True)
        mask = Mask(target, variable)
        if held and not in_file:
            # Zeros of single weights, under the gates. Held zeros of gates in a file are the gates themselves.
            target.variable.constraint = MaskConstraint(variable, held)
        return mask

    @property
    def variables(self) -> list[keras.Variable]:
        """What training moves of the variables that units lie on."""
        return [mask.target.variable for mask in self._masks if mask.target.variable.trainable]

    @property
    def restored(self) -> bool:
        """Whether what is closed was known: from a file with the state of pruning in it, or from gates before these."""
        return any(f"gate:{mask.target.index}" in self.state.restored for mask in self._masks)

    # -- what is open -------------------------------------------------------------------------------------------------

    @property
    def keep(self) -> Keep:
        """For each unit whether it is open, a copy."""
        return self._keep.copy()

    def close(self, units: Iterable[int]) -> None:
        """Put these units at 0 and hold them there.

        Raises:
            ValueError: there is no such unit, or none of a group would be left open.
        """
        keep = self.keep
        keep[self._numbers(units)] = False
        self.set(keep)

    def open(self, units: Iterable[int]) -> None:
        """Let these units train again, from the values that they had when they were closed.

        Raises:
            ValueError: there is no such unit, or the values were not remembered.
        """
        keep = self.keep
        keep[self._numbers(units)] = True
        self.set(keep)

    def set(self, keep: Keep) -> None:
        """Open the units where `keep` is True, close the others.

        Raises:
            ValueError: `keep` is not one boolean for each unit, none of a group would be left open, or units would be
                opened whose values were not remembered.
        """
        keep = np.asarray(keep)
        if keep.dtype != bool or keep.shape != (self.analysis.size,):
            raise ValueError(
                f"Gates: keep must hold one boolean for each of the {self.analysis.size} units. "
                f"Received: {keep.dtype} of shape {keep.shape}"
            )
        opened = np.flatnonzero(keep & ~self._keep)
        if opened.size and not self.remember:
            raise ValueError(
                f"Gates: the values of closed units were not remembered, so they cannot be opened. Received: {opened}. "
                "Make Gates(..., remember=True)."
            )
        check_groups(self.analysis, keep)
        self._check_in_force()
        if np.array_equal(keep, self._keep):
            return
        synchronise(self.model)
        before = [np.array(mask.read()) for mask in self._masks]
        after = [mask_of_units(self.analysis, mask.target.variable, keep) for mask in self._masks]
        for mask, was, now in zip(self._masks, before, after, strict=True):
            self._remember(mask, was & ~now)
        self._write(after)
        for mask, was, now in zip(self._masks, before, after, strict=True):
            self._restore(mask, now & ~was)
            if (was & ~now).any():
                for moment in self._moments(mask.target.variable):
                    put_zeros(moment, now)
        self._keep = keep.copy()

    def refresh(self) -> None:
        """Take over what a file that was loaded into the model has closed."""
        synchronise(self.model)
        keep = np.ones(self.analysis.size, bool)
        for mask in self._masks:
            mask.count(mask.read())
            if mask.zeros:
                keep[closed_units(self.analysis, mask)] = False
        self._keep = keep

    def recount(self) -> None:
        """Take note of masks that something else has set."""
        self.refresh()

    # -- what was closed ----------------------------------------------------------------------------------------------

    def _remember(self, mask: Mask, closed: MaskArray) -> None:
        if not self.remember or not closed.any():
            return
        value = read(mask.target.variable)
        # Files know no half precision of other makers than NumPy.
        kind = value.dtype if value.dtype == np.float64 else np.dtype(np.float32)
        kept = self.state.arrays.setdefault(self._key(mask), np.zeros(value.shape, kind))
        kept[closed] = value[closed]

    def _restore(self, mask: Mask, opened: MaskArray) -> None:
        kept = self.state.arrays.get(self._key(mask))
        if kept is None or not opened.any():
            return
        value = np.array(read(mask.target.variable))
        value[opened] = kept[opened]
        mask.target.variable.assign(value)

    @staticmethod
    def _key(mask: Mask) -> str:
        return f"gate_values:{mask.target.index}"

    def _moments(self, variable: keras.Variable) -> list[keras.Variable]:
        """What the optimizer keeps for each weight of a variable: momentum, averages, sums of gradients."""
        found: list[keras.Variable] = []
        for optimizer in (inner for outer in self._optimizers for inner in all_optimizers(outer)):
            weights = [id(weight) for weight in moved_by(optimizer)] if optimizer.built else []
            if id(variable) not in weights:
                continue
            place = weights.index(id(variable))
            moments = [slots[place] for slots in slots_by_weight(optimizer, averages=True).values()]
            found += [one for one in moments if one is not None and tuple(one.shape) == tuple(variable.shape)]
        return found

    # -- the end ------------------------------------------------------------------------------------------------------

    def settle(self) -> int:
        """Put weights of closed units that something else has written to back at zero; return how many there were."""
        synchronise(self.model)
        written = 0
        for mask in self._masks:
            if mask.zeros and mask.target.variable.trainable:
                written += int(np.count_nonzero(read(mask.target.variable)[~mask.read()]))
            if mask.zeros:
                mask.apply()
        return written

    def shrink(self) -> keras.Model:
        """Return the model without the closed units, with no gates on it; this one stays as it is.

        Moments of the optimizer are sliced, settings of `compile` kept. See `rewrite.rebuild`.

        Raises:
            ValueError: as for `rebuild`, or a mask of another pruning is on a variable.
        """
        self._check_in_force()
        own = {id(mask.variable) for mask in self._masks}
        refuse_masks(self.model, own)
        written = self.settle()
        if written:
            warnings.warn(
                f"Gates: {written} weights of closed units had been written to, and are zero again: the model was not "
                "the one that its gates say. Were weights loaded that were saved when less was closed?",
                stacklevel=2,
            )
        return rebuild_bare(self.model, self.analysis, self._keep)

    def remove(self) -> None:
        """Take the gates off: closed units are 0 and train again; constraints that were there before are left."""
        for mask in self._masks:
            if self._in_force(mask):
                mask.hold(False)
            mask.put(np.ones(tuple(mask.variable.shape), bool))
            self.state.arrays.pop(self._key(mask), None)
        self._keep = np.ones(self.analysis.size, bool)
        self.abandon()

    def guard(self, on: bool = True) -> None:
        """Let no callback write to closed units while a training runs, or end that; see `Mask.guard`."""
        for mask in self._masks:
            mask.guard(on)

    def rest(self) -> None:
        """Say that this training is over: closed units stay closed in later ones, and other owners may come."""
        self.guard(False)
        self.state.unclaim(self)

    def abandon(self) -> None:
        """Leave the optimizer's step; called when others take the variables over."""
        self.guard(False)
        for optimizer in self._optimizers:
            unhook(optimizer, self._part)
        self.state.unclaim(self)
        self.model.train_function = None

    # -- checks -------------------------------------------------------------------------------------------------------

    def _numbers(self, units: Iterable[int]) -> npt.NDArray[np.int64]:
        numbers = np.asarray(list(units), np.int64).reshape(-1)
        wrong = numbers[(numbers < 0) | (numbers >= self.analysis.size)]
        if wrong.size:
            raise ValueError(f"Gates: units are numbered 0 to {self.analysis.size - 1}. Received: {wrong.tolist()}")
        return numbers

    def _in_force(self, mask: Mask) -> bool:
        constraint = mask.target.variable.constraint
        return isinstance(constraint, MaskConstraint) and constraint.mask is mask.variable

    def _check_in_force(self) -> None:
        current = innermost(getattr(self.model, "optimizer", None))
        if current is not self._optimizer:
            raise RuntimeError(
                f"Gates: {self.model.name!r} was compiled anew, and the gates belong to the old optimizer. Make new "
                "ones: they take over what is closed."
            )
        lost = [mask.target.path for mask in self._masks if not self._in_force(mask)]
        if lost:
            raise RuntimeError(
                f"Gates: the masks of {len(lost)} variables, the first {lost[0]!r}, were removed or taken over by "
                "another pruning. Make new gates."
            )


class _ClosedGradients(MaskedGradients):
    """Those of gates, told from other parts of the step."""
