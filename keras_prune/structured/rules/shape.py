"""Rules of operations that move indices: reshape, transpose, concatenate, split, slice."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import layers as kl

from keras_prune.arrays.union_find import OPAQUE, Labels
from keras_prune.structured.rules.registry import Axis, Call, Dims, Effect, Width, rule_for
from keras_prune.structured.rules.weights import labels_of

__all__ = ["reshaped"]

Sizes = tuple[int | None, ...]


def reshaped(call: Call, dims: Dims, before: Sizes, after: Sizes) -> Dims:
    """The entries after a reshape from `before` to `after`.

    From the left, the smallest runs of axes with equal products of sizes are matched. If a run merges axes, the result
    carries the elements of the last axis that has some, and nothing is removed along the others. If a run splits an
    axis, one of the new axes carries the elements: the one along which elements differ already, or else the last. The
    elements at each index of that axis are tied, so that the indices that are left form a grid again.
    """
    result: list[Axis | None] = [None] * len(after)
    for inner, outer in _runs(before, after):
        if outer is None:
            for axis in inner:
                call.freeze(dims[axis], "a reshape merges it with an axis of unknown size")
            continue
        if not outer:  # axes of size 1 are left over at the end
            for axis in inner:
                call.freeze(dims[axis], "a reshape drops this axis, of size 1")
            continue
        known = [axis for axis in inner if dims[axis] is not None]
        if not known:
            continue
        for axis in known[:-1]:
            call.freeze(dims[axis], "a reshape merges it with an axis that can be pruned")
        entry = dims[known[-1]]
        assert entry is not None
        if len(inner) == len(outer) == 1:
            result[outer[0]] = entry
            continue
        place = inner.index(known[-1])
        sizes = [_size(before[axis]) for axis in inner]
        spread = np.ones(len(sizes), int)
        spread[place] = -1
        flat = np.broadcast_to(entry.labels.reshape(spread), sizes).ravel()
        axis, labels = _cut(call, flat, [_size(after[axis]) for axis in outer])
        result[outer[axis]] = Axis(labels, entry.zero)
    return Dims(result)


def _size(size: int | None) -> int:
    return 1 if size is None else size


def _runs(before: Sizes, after: Sizes) -> list[tuple[list[int], list[int] | None]]:
    """The smallest runs of axes, before and after, with equal products of sizes.

    Where an axis of unknown size is not a run by itself, all axes that are left form the last run, with None for those
    after.
    """
    runs: list[tuple[list[int], list[int] | None]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        inner, outer = [], []
        if i < len(before):
            inner.append(i)
            i += 1
        if j < len(after):
            outer.append(j)
            j += 1
        while True:
            sizes, targets = [before[a] for a in inner], [after[a] for a in outer]
            if None in sizes or None in targets:
                if sizes == [None] and targets == [None]:
                    break
                return [*runs, ([*inner, *range(i, len(before))], None)]
            left, right = math.prod(sizes), math.prod(targets)  # type: ignore[arg-type]
            if left == right:
                break
            if left < right and i < len(before):
                inner.append(i)
                i += 1
            elif left > right and j < len(after):
                outer.append(j)
                j += 1
            else:
                return [*runs, ([*inner, *range(i, len(before))], None)]
        runs.append((inner, outer))
    return runs


def _cut(call: Call, flat: Labels, sizes: list[int]) -> tuple[int, Labels]:
    """Which axis carries the elements, and which elements, when `flat` is split into axes of these sizes."""
    grid = call.roots(flat).reshape(sizes)
    places = [axis for axis in range(len(sizes)) if sizes[axis] > 1] or [len(sizes) - 1]
    for axis in places:
        first = np.take(np.moveaxis(grid, axis, 0).reshape(sizes[axis], -1), [0], axis=1)
        if np.array_equal(np.broadcast_to(first, (sizes[axis], grid.size // sizes[axis])), _rows(grid, axis)):
            return axis, first[:, 0]
    axis = call.choose(places)
    rows = _rows(grid, axis)
    call.tie(rows[:, :1], rows[:, 1:])
    return axis, call.chosen(places, rows[:, 0])


def _rows(grid: Labels, axis: int) -> Labels:
    return np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)


def widths(dims: Dims, sizes: Any, given: Any = None) -> list[Any]:
    """Sizes for an operation's configuration: widths where indices may be removed, and -1 where it was given."""
    given = list(given) if given is not None else list(sizes)
    return [
        size if size in (-1, None) or entry is None else Width(entry.labels)
        for size, entry in zip(given, dims, strict=True)
    ]


@rule_for(kl.Reshape)
def reshape(call: Call) -> Effect:
    """To `target_shape`, which does not include the batch."""
    output = reshaped(call, call.inputs[0], call.shapes[0], call.output_shapes[0])
    return Effect([output], {"target_shape": widths(Dims(output[1:]), call.layer.target_shape)})


@rule_for("Reshape")
def reshape_operation(call: Call) -> Effect:
    """To `newshape`, which includes the batch."""
    output = reshaped(call, call.inputs[0], call.shapes[0], call.output_shapes[0])
    return Effect([output], {"newshape": widths(output, call.layer.newshape)})


@rule_for(kl.Flatten)
def flatten(call: Call) -> Effect:
    """All axes but the batch merged into one, channels last."""
    x, shape = call.inputs[0], call.shapes[0]
    if call.layer.data_format == "channels_first" and len(x) > 2:
        x, shape = Dims([x[0], *x[2:], x[1]]), (shape[0], *shape[2:], shape[1])
    if len(x) == 1:
        return Effect([Dims([x[0], None])])
    return Effect([reshaped(call, x, shape, call.output_shapes[0])])


@rule_for("Ravel")
def ravel(call: Call) -> Effect:
    """All axes merged into one, the batch included."""
    return call.opaque("it merges the batch with other axes")


@rule_for(kl.Permute)
def permute(call: Call) -> Effect:
    """Axes in another order; they are counted from 1, after the batch."""
    x = call.inputs[0]
    return Effect([Dims([x[0], *(x[axis] for axis in call.layer.dims)])])


@rule_for("Transpose")
def transpose(call: Call) -> Effect:
    """Axes in another order; reversed if none is given."""
    x = call.inputs[0]
    axes = call.layer.axes if call.layer.axes is not None else range(len(x))[::-1]
    return Effect([Dims(x[axis] for axis in axes)])


@rule_for("Swapaxes")
def swapaxes(call: Call) -> Effect:
    """Two axes swapped."""
    x = call.inputs[0]
    first, second = call.layer.axis1, call.layer.axis2
    return Effect([x.replaced(first, x[second]).replaced(second, x[first])])


@rule_for("Moveaxis")
def moveaxis(call: Call) -> Effect:
    """Axes moved to other places."""
    x = call.inputs[0]
    # NumPy moves the axes of an array whose sizes are the numbers of its axes.
    moved = np.moveaxis(np.empty(range(len(x))), call.layer.source, call.layer.destination).shape
    return Effect([Dims(x[axis] for axis in moved)])


@rule_for(kl.RepeatVector)
def repeat_vector(call: Call) -> Effect:
    """`[batch, n, features]`."""
    x = call.inputs[0]
    return Effect([Dims([x[0], None, x[1]])])


@rule_for("ExpandDims")
def expand_dims(call: Call) -> Effect:
    """New axes of size 1."""
    x, rank = list(call.inputs[0]), len(call.output_shapes[0])
    axes = call.layer.axis if isinstance(call.layer.axis, list | tuple) else [call.layer.axis]
    new = {axis % rank for axis in axes}
    return Effect([Dims(None if axis in new else x.pop(0) for axis in range(rank))])


@rule_for("Squeeze")
def squeeze(call: Call) -> Effect:
    """Axes of size 1 are dropped."""
    x, shape = call.inputs[0], call.shapes[0]
    axis = call.layer.axis
    axes = range(len(x)) if axis is None else axis if isinstance(axis, list | tuple) else [axis]
    gone = {a % len(x) for a in axes if shape[a] == 1}
    for a in gone:
        call.freeze(x[a], "this axis is squeezed")
    return Effect([Dims(entry for a, entry in enumerate(x) if a not in gone)])


@rule_for(kl.Concatenate, "Concatenate")
def concatenate(call: Call) -> Effect:
    """The inputs' indices follow one another along an axis; their other axes are tied."""
    if call.constants():
        return call.opaque("it concatenates a constant")
    rank = len(call.inputs[0])
    axis = call.layer.axis % rank
    output: list[Axis | None] = []
    for place in range(rank):
        entries = [x[place] for x in call.inputs]
        if place != axis:
            output.append(call.merge(*entries))
        elif all(entry is None for entry in entries):
            output.append(None)
        else:
            sizes = [shape[axis] for shape in call.shapes]
            parts = [labels_of(call, e, s or 0) for e, s in zip(entries, sizes, strict=True)]
            zero = all(entry.zero for entry in entries if entry is not None)
            output.append(Axis(np.concatenate(parts), zero))
    return Effect([Dims(output)])


@rule_for("Repeat")
def repeat(call: Call) -> Effect:
    """Each index several times along an axis."""
    x, layer = call.inputs[0], call.layer
    if layer.axis is None or not isinstance(layer.repeats, int):
        return call.opaque("it repeats a flattened tensor, or a different number of times for each index")
    entry = x[layer.axis]
    if entry is None:
        return Effect([x])
    return Effect([x.replaced(layer.axis, Axis(np.repeat(entry.labels, layer.repeats), entry.zero))])


@rule_for("Stack")
def stack(call: Call) -> Effect:
    """Tensors joined along a new axis; their axes are tied."""
    if call.constants():
        return call.opaque("it concatenates a constant")
    rank = len(call.output_shapes[0])
    entries = [call.merge(*(x[place] for x in call.inputs)) for place in range(rank - 1)]
    entries.insert(call.layer.axis % rank, None)
    return Effect([Dims(entries)])


@rule_for("Unstack")
def unstack(call: Call) -> Effect:
    """One tensor for each index of an axis, along which nothing is removed."""
    x = call.inputs[0]
    axis = call.layer.axis % len(x)
    call.freeze(x[axis], "this axis is unstacked")
    output = Dims(entry for place, entry in enumerate(x) if place != axis)
    return Effect([output] * len(call.output_shapes))


@rule_for("Split")
def split(call: Call) -> Effect:
    """Runs of indices of an axis; the places where they begin depend on what is kept."""
    x = call.inputs[0]
    axis = call.layer.axis % len(x)
    entry = x[axis]
    if entry is None:
        return Effect([x] * len(call.output_shapes))
    ends = np.cumsum([shape[axis] for shape in call.output_shapes])
    parts = np.split(entry.labels, ends[:-1])
    config = {"indices_or_sections": [Width(entry.labels[:end]) for end in ends[:-1]]}
    return Effect([x.replaced(axis, Axis(part, entry.zero)) for part in parts], config)


@rule_for("GetItem")
def get_item(call: Call) -> Effect:
    """`x[key]` with slices, whole numbers, None and an ellipsis."""
    x = call.inputs[0]
    key = call.argument("key", 1)
    key = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(k, slice | int | type(None)) or k is Ellipsis for k in key):
        return call.opaque("it is indexed by a tensor or a list")
    taken = sum(k is not None and k is not Ellipsis for k in key)
    if Ellipsis not in key:
        key = (*key, Ellipsis)
    at = key.index(Ellipsis)
    key = (*key[:at], *[slice(None)] * (len(x) - taken), *key[at + 1 :])
    output: list[Axis | None] = []
    new: list[Any] = []
    axis = 0
    for k in key:
        if k is None:
            output.append(None)
            new.append(None)
            continue
        entry = x[axis]
        if entry is None or k == slice(None):
            new.append(k)
            output += [] if isinstance(k, int) else [entry]
        elif isinstance(k, int) or (k.step or 1) < 0:
            call.freeze(entry, "single indices of this axis are read, or it is read in reverse")
            new.append(k)
            output += [] if isinstance(k, int) else [Axis(np.full(len(entry.labels[k]), OPAQUE))]
        elif (k.step or 1) > 1:
            call.freeze(entry, "this axis is read with a stride")
            new.append(k)
            output.append(Axis(entry.labels[k]))
        else:
            start, stop, _ = k.indices(len(entry.labels))
            new.append((Width(entry.labels[:start]), Width(entry.labels[:stop])))
            output.append(Axis(entry.labels[start:stop], entry.zero))
        axis += 1
    key_now = tuple(slice(*k) if isinstance(k, tuple) else k for k in new)
    at_position: int | str = "key" if "key" in call.node.kwargs else 1
    return Effect([Dims(output)], args={at_position: key_now} if any(isinstance(k, tuple) for k in new) else {})


@rule_for("Pad")
def pad(call: Call) -> Effect:
    """Indices are added at the ends of axes; nothing is removed along an axis that is padded."""
    x = call.inputs[0]
    pairs = np.broadcast_to(np.asarray(call.layer.pad_width), (len(x), 2))
    for entry, pair in zip(x, pairs, strict=True):
        if pair.any():
            call.freeze(entry, "this axis is padded")
    output = Dims(None if pair.any() else entry for entry, pair in zip(x, pairs, strict=True))
    return Effect([output.with_zero(call.layer.mode == "constant" and not call.argument("constant_values", 1, None))])
