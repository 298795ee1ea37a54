"""Which weights of a variable are off when units are closed, and which units are closed when weights are off."""

from __future__ import annotations

import keras
import numpy as np
import numpy.typing as npt

from keras_prune.arrays.layouts import Layout
from keras_prune.masks.bound import Mask
from keras_prune.scope import Target
from keras_prune.structured.analysis.groups import Analysis, Keep

__all__ = ["MaskArray", "check_analysis", "check_groups", "closed_units", "gated_targets", "mask_of_units"]

MaskArray = npt.NDArray[np.bool_]


def check_groups(analysis: Analysis, keep: Keep) -> None:
    """Refuse to lose all units of a group.

    Raises:
        ValueError: with the layer that makes them.
    """
    for group in analysis.groups:
        if not keep[group.start : group.stop].any():
            raise ValueError(
                f"{analysis.slots[group.slots[0]].path!r} must keep one unit at least. Received: all {group.size} "
                f"units, {group.start} to {group.stop - 1}, to be closed."
            )


def check_analysis(model: keras.Model, analysis: Analysis) -> None:
    """Refuse an analysis whose units cannot be closed in a model.

    Raises:
        ValueError: it is of another model, allows inexact removals, or has no unit.
    """
    if analysis.graph.model is not model:
        raise ValueError(
            f"Gates: the analysis must be of the model itself. Received: one of {analysis.graph.model.name!r} for "
            f"{model.name!r}. Write Gates(model, analyse(model))."
        )
    if not analysis.exact:
        raise ValueError(
            "Gates: the analysis must be exact, for a closed unit has to do to the outputs what a removed one does. "
            "Received: one with exact=False. Write analyse(model), and remove inexact units by plan(..., exact=False)."
        )
    if not analysis.size:
        reasons = "; ".join(f"{skipped.path} ({skipped.reason})" for skipped in analysis.skipped)
        raise ValueError(f"Gates: {model.name!r} has no unit that can be removed. What stays, and why: {reasons}.")


def gated_targets(analysis: Analysis) -> list[Target]:
    """Return the variables that units lie on and that hold floating-point numbers, in the model's order."""
    model = analysis.graph.model
    on = {id(slot.variable) for slot in analysis.slots if slot.variable is not None and (slot.units >= 0).any()}
    return [
        Target(variable.path, model, variable, Layout.plain(len(variable.shape)), index=i)
        for i, variable in enumerate(model.weights)
        if id(variable) in on and str(variable.dtype).startswith(("float", "bfloat"))
    ]


def mask_of_units(analysis: Analysis, variable: keras.Variable, keep: Keep) -> MaskArray:
    """Return where a variable's weights are of no closed unit, of its shape."""
    mask = np.ones(tuple(variable.shape), bool)
    for axis, size in enumerate(variable.shape):
        slot = analysis.slot_of(variable, axis)
        if slot is not None:
            open_ = (slot.units < 0) | keep[slot.units]
            mask &= open_.reshape([size if a == axis else 1 for a in range(mask.ndim)])
    return mask


def closed_units(analysis: Analysis, mask: Mask) -> npt.NDArray[np.int64]:
    """Return the units that a mask has off: an open unit has something on, since each group has an open one."""
    values = mask.read()
    closed = [np.zeros(0, np.int64)]
    for axis in range(values.ndim):
        slot = analysis.slot_of(mask.target.variable, axis)
        if slot is not None:
            on = values.any(axis=tuple(a for a in range(values.ndim) if a != axis))
            closed.append(slot.units[(slot.units >= 0) & ~on])
    return np.concatenate(closed)
