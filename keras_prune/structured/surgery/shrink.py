"""A model without the units that do nothing: what gates have closed, what training drove to 0, what nothing reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl

from keras_prune.keras_seam import hidden_variables, layers_in, own_state
from keras_prune.masks.bound import MaskConstraint
from keras_prune.masks.hold import under_masks
from keras_prune.masks.state import TrainingState
from keras_prune.models.agreement import check_agreement
from keras_prune.models.variables import read
from keras_prune.optimizers.averages import all_optimizers
from keras_prune.scope import Scope
from keras_prune.structured.analysis.groups import Analysis, Keep, Slot, analyse
from keras_prune.structured.rules.registry import Dims
from keras_prune.structured.surgery.rewrite import rebuild

__all__ = ["is_gate", "rebuild_bare", "refuse_masks", "shrink", "unread_units", "zero_units"]


def zero_units(analysis: Analysis) -> Keep:
    """Return for each unit whether it is 0 in every weight that it lies on; of a group, one is left out.

    Moving averages do not count, where a scale of 0 follows or values are not taken to be 0.

    Example:
        >>> a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")
        >>> model = keras.Sequential([keras.Input((4,)), a, b])
        >>> a.set_weights([np.array([1.0, 0.0, 0.0]) * np.ones((4, 3)), np.zeros(3)])
        >>> b.set_weights([np.array([[1.0], [0.0], [1.0]]) * np.ones((3, 2)), np.zeros(2)])
        >>> zero_units(analyse(model))
        array([False,  True, False])
    """
    idle = _averages(analysis)
    slots = [slot for slot in analysis.slots if slot.variable is not None and id(slot.variable) not in idle]
    zero = np.zeros(analysis.size, bool)
    for slot in slots:
        zero[slot.units[slot.units >= 0]] = True
    for slot in slots:
        zero[slot.units[(slot.units >= 0) & _rows(slot).any(axis=1)]] = False
    return _one_left(analysis, zero)


def unread_units(analysis: Analysis) -> Keep:
    """Return for each unit whether nothing reads it: all weights that it is multiplied by are 0; of a group, one stays.

    Such a unit may have any value: the model answers the same without it. Many zeros in a narrow layer leave some, as
    in the first blocks of a MobileNet. A unit that an operation without weights sums up, as in a product of two
    tensors, is read by it.

    Example:
        >>> a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")
        >>> model = keras.Sequential([keras.Input((4,)), a, b])
        >>> b.set_weights([np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), np.zeros(2)])
        >>> unread_units(analyse(model))
        array([ True, False, False])
    """
    inputs = reading_axes(analysis)
    readers = [slot for slot in analysis.slots if (id(slot.variable), slot.axis) in inputs]
    multiplied, read_by = np.zeros(analysis.size, bool), np.zeros(analysis.size, bool)
    for slot in readers:
        on = slot.units >= 0
        multiplied[slot.units[on]] = True
        read_by[slot.units[on & _rows(slot).any(axis=1)]] = True
    read_by[_summed_without_weights(analysis, readers)] = True
    return _one_left(analysis, multiplied & ~read_by)


def reading_axes(analysis: Analysis) -> set[tuple[int, int]]:
    """Return the axes of kernels along which inputs are summed, where a 0 needs no weight: (id of variable, axis)."""
    return {
        (id(target.variable), axis)
        for target in Scope().survey(analysis.graph.model).targets
        for axis in target.layout.inputs
        if axis not in target.layout.outputs
    }


def _summed_without_weights(analysis: Analysis, readers: list[Slot]) -> npt.NDArray[np.int64]:
    """The units that a call takes in and does not hand on, other than by multiplying them with weights."""
    found = [np.zeros(0, np.int64)]
    for node in analysis.graph.walk():
        if node.bodies:
            continue  # its calls come by themselves
        own = {id(variable) for variable in getattr(node.operation, "weights", ())}
        weighed = [slot.units for slot in readers if id(slot.variable) in own]
        handed_on = _units(analysis, analysis.effects[id(node)].outputs)
        taken = np.setdiff1d(_units(analysis, analysis.inputs_of[id(node)]), handed_on)
        found.append(np.setdiff1d(taken, np.concatenate([np.zeros(0, np.int64), *weighed])))
    return np.unique(np.concatenate(found))


def _units(analysis: Analysis, tensors: Iterable[Dims]) -> npt.NDArray[np.int64]:
    """The units along the axes of some tensors, each once."""
    along = [analysis.units_of(axis.labels) for dims in tensors for axis in dims if axis is not None]
    units = np.unique(np.concatenate([np.zeros(0, np.int64), *along]))
    return units[units >= 0]


def _rows(slot: Slot) -> npt.NDArray[Any]:
    """The values of a slot's variable, `[indices of the axis, everything else]`."""
    assert slot.variable is not None
    return np.moveaxis(read(slot.variable), slot.axis, 0).reshape(len(slot.units), -1)


def _one_left(analysis: Analysis, gone: Keep) -> Keep:
    """The same units, without the first of each group that would lose all of its own."""
    for group in analysis.groups:
        part = gone[group.start : group.stop]
        if part.all():
            part[0] = False
    return gone


def _averages(analysis: Analysis) -> set[int]:
    """Variables that layers made as not trainable (a frozen layer's weights are none), as far as they do not matter."""
    found = {id(variable) for layer in layers_in(analysis.graph.model) for variable in own_state(layer)}
    for node in analysis.graph.walk():
        layer = node.operation
        if isinstance(layer, kl.BatchNormalization) and not layer.scale:
            entry = analysis.inputs_of[id(node)][0][layer.axis]
            if entry is not None and entry.zero:
                # Zeros minus the mean are taken for zeros, with no scale behind them that would make them so.
                found.discard(id(layer.moving_mean))
    return found


def shrink(model: keras.Model, *, input_shape: Any = None) -> keras.Model:
    """Return a model without the units that are 0 in every weight, or that no weight reads; outputs are the same.

    Units that gates have closed are 0, in a loaded file too (`StructuredPruning.shrink()` is for after `fit`). Units
    that nothing reads are left where single weights were pruned: `kp.structured.shrink(kp.strip(model))`. Moments of
    the optimizer are sliced, settings of `compile` kept; the model given stays as it is.

    Args:
        model: built.
        input_shape: for a subclassed model, see `trace`.

    Raises:
        ValueError: as for `rebuild`, or a mask that is no gate is on a variable.

    Example:
        >>> a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")
        >>> model = keras.Sequential([keras.Input((4,)), a, b])
        >>> from keras_prune.structured.fit.gates import Gates
        >>> Gates(model, analyse(model)).close([0, 2])
        >>> shrink(model).layers[0].units
        1
    """
    refuse_masks(model, {id(v.constraint.mask) for v in model.variables if is_gate(v.constraint)})
    analysis = analyse(model, input_shape=input_shape)
    unread = unread_units(analysis)
    smaller = rebuild_bare(model, analysis, ~_one_left(analysis, zero_units(analysis) | unread))
    if unread.any():
        # `rebuild` has compared it with the model whose removed units are 0; here they had values.
        check_agreement("shrink", model, smaller)
    return smaller


def is_gate(constraint: Any) -> bool:
    """Whether a constraint is that of gates: their masks are named so by `TrainingState`."""
    return isinstance(constraint, MaskConstraint) and constraint.mask.name.startswith("pruning_gate_")


def refuse_masks(model: keras.Model, own: set[int]) -> None:
    """Refuse a model with masks other than these, by id of their variables: a smaller one would lose them."""
    others = [variable.path for variable in under_masks(model) if id(variable.constraint.mask) not in own]
    if others:
        raise ValueError(
            f"{model.name!r} has masks of another pruning on {len(others)} variables, the first {others[0]!r}, which "
            "a smaller model would lose. Take all masks off first: kp.structured.shrink(kp.strip(model))."
        )


def rebuild_bare(model: keras.Model, analysis: Analysis, keep: Keep) -> keras.Model:
    """The smaller model; what pruning adds to the optimizer is none of its own state, and stays behind."""
    state = TrainingState.held_by(model)
    mine = {id(variable) for variable in state.variables.values()} if state is not None else set()
    with contextlib.ExitStack() as stack:
        for optimizer in all_optimizers(getattr(model, "optimizer", None)):
            stack.enter_context(hidden_variables(optimizer, mine))
        return rebuild(analysis, keep, owner="shrink")
