"""Rules of operations that pick indices of a tensor, repeat or reorder them: slices, takes, broadcasts, rolls."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_prune.arrays.union_find import OPAQUE
from keras_prune.structured.rules.registry import Axis, Call, Dims, Effect, rule_for
from keras_prune.structured.rules.shape import widths

__all__ = ["broadcast_to", "slice_operation", "take", "tile", "turned"]


@rule_for("Slice")
def slice_operation(call: Call) -> Effect:
    """A box of a given shape: nothing is removed along an axis of which only a part is read."""
    x, shape, taken = call.inputs[0], call.shapes[0], call.output_shapes[0]
    starts = call.argument("start_indices", 1)
    output: list[Axis | None] = []
    for axis, entry in enumerate(x):
        start = starts[axis] if isinstance(starts, list | tuple | np.ndarray) else None
        whole = isinstance(start, int | np.integer) and start == 0 and shape[axis] == taken[axis]
        if not whole:
            call.freeze(entry, "a part of this axis is read")
        output.append(entry if whole else None)
    return Effect([Dims(output)], {"shape": widths(Dims(output), call.layer.shape)})


@rule_for("Take")
def take(call: Call) -> Effect:
    """Some indices of an axis, along which nothing is removed; the axes of the indices take its place."""
    x, axis = call.inputs[0], call.layer.axis
    if axis is None or call.place(call.argument("x", 0)) != 0:
        return call.opaque("it takes from a flattened tensor, or from a constant")
    axis %= len(x)
    call.freeze(x[axis], "single indices of this axis are read")
    for dims in call.inputs[1:]:
        for entry in dims:
            call.freeze(entry, "it holds indices")
    new = len(call.output_shapes[0]) - len(x) + 1
    return Effect([Dims([*x[:axis], *[None] * new, *x[axis + 1 :]])])


@rule_for("Tile")
def tile(call: Call) -> Effect:
    """All indices of an axis, and then all of them again, several times."""
    x, rank = call.inputs[0], len(call.output_shapes[0])
    given = call.layer.repeats
    times = [given] if isinstance(given, int) else list(given)
    times = [1] * (rank - len(times)) + times
    if not all(isinstance(number, int) for number in times):
        return call.opaque("the number of repeats is a tensor")
    aligned = [None] * (rank - len(x)) + list(x)
    entries = zip(aligned, times, strict=True)
    return Effect([Dims(None if e is None else Axis(np.tile(e.labels, n), e.zero) for e, n in entries)])


@rule_for("BroadcastTo")
def broadcast_to(call: Call) -> Effect:
    """Nothing is removed along axes of size 1 that are broadcast; new axes come before the first."""
    x, after = call.inputs[0], call.output_shapes[0]
    lead = len(after) - len(x)
    output: list[Axis | None] = [None] * lead
    for entry, size, wanted in zip(x, call.shapes[0], after[lead:], strict=True):
        stretched = size == 1 and wanted != 1
        if stretched:
            call.freeze(entry, "this axis of size 1 is broadcast over another one")
        output.append(None if stretched else entry)
    return Effect([Dims(output)], {"shape": widths(Dims(output), call.layer.shape)})


@rule_for("Flip", "Roll")
def turned(call: Call) -> Effect:
    """Indices of an axis in another order, which depends on how many there are: nothing is removed along it."""
    x, axis = call.inputs[0], call.layer.axis
    if axis is None and type(call.layer).__name__ == "Roll":
        return call.opaque("it rolls a flattened tensor")
    axes = range(len(x)) if axis is None else axis if isinstance(axis, list | tuple) else [axis]
    moved = {a % len(x) for a in axes}
    for a in moved:
        call.freeze(x[a], "its indices are reordered")
    return Effect([Dims(_fixed(entry) if a in moved else entry for a, entry in enumerate(x))])


def _fixed(entry: Axis | None) -> Any:
    return None if entry is None else Axis(np.full(len(entry.labels), OPAQUE), False)
