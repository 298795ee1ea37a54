"""A model without the units that are 0 already: what gates have closed, or what training has driven there."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from keras_prune.keras_seam import hidden_variables, layers_in, own_state
from keras_prune.masks.bound import MaskConstraint, mask_of
from keras_prune.masks.hold import is_held
from keras_prune.masks.state import TrainingState
from keras_prune.models.variables import read
from keras_prune.optimizers.averages import all_optimizers
from keras_prune.structured.analysis.groups import Analysis, Keep, analyse
from keras_prune.structured.surgery.rewrite import rebuild

__all__ = ["is_gate", "rebuild_bare", "refuse_masks", "shrink", "zero_units"]


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
        assert slot.variable is not None
        rows = np.moveaxis(read(slot.variable), slot.axis, 0).reshape(len(slot.units), -1)
        zero[slot.units[(slot.units >= 0) & rows.any(axis=1)]] = False
    for group in analysis.groups:
        part = zero[group.start : group.stop]
        if part.all():
            part[0] = False
    return zero


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
    """Return a model without the units that are 0 in every weight: those closed by gates, in a loaded file too.

    Outputs are the same. Moments of the optimizer are sliced, settings of `compile` kept; the model given stays as it
    is. To be used on a model that was loaded from a file; `StructuredPruning.shrink()` does it after `fit`.

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
    return rebuild_bare(model, analysis, ~zero_units(analysis))


def is_gate(constraint: Any) -> bool:
    """Whether a constraint is that of gates: their masks are named so by `TrainingState`."""
    return isinstance(constraint, MaskConstraint) and constraint.mask.name.startswith("pruning_gate_")


def refuse_masks(model: keras.Model, own: set[int]) -> None:
    """Refuse a model with masks other than these, by id of their variables: a smaller one would lose them."""
    masked = [v for v in model.variables if mask_of(v) is not None and not is_held(v.constraint)]
    others = [v.path for v in masked if id(v.constraint.mask) not in own]
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
