"""Rules of layers with a kernel: dense, einsum, convolutions of every kind, embeddings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import layers as kl

from keras_prune.arrays.union_find import OPAQUE, Labels
from keras_prune.structured.rules.activations import activate
from keras_prune.structured.rules.registry import Axis, Call, Cost, Dims, Effect, Width, rule_for

__all__ = ["channel_axis", "only_channels", "positions"]


def positions(shape: tuple[int | None, ...]) -> int:
    """The product of the known sizes."""
    return math.prod(size for size in shape if size is not None)


def channel_axis(layer: Any) -> int:
    """The axis of channels: 1 if the layer's data format is channels_first, otherwise -1."""
    return 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else -1


def only_channels(call: Call, dims: Dims, axis: int, rank: int) -> Dims:
    """The entries of a result with the input's channels, where the layer computes over all other axes.

    Args:
        call: the call.
        dims: entries of the input.
        axis: the axis of channels, of input and result alike.
        rank: rank of the result.
    """
    for place, entry in enumerate(dims):
        if place != axis % len(dims):
            call.freeze(entry, "the layer computes over this axis")
    return Dims([None] * rank).replaced(axis, dims[axis])


def labels_of(call: Call, entry: Axis | None, size: int) -> Labels:
    """The elements of an axis; `OPAQUE` at each index if nothing can be removed along it."""
    return np.full(size, OPAQUE) if entry is None else entry.labels


@rule_for(kl.Dense)
def dense(call: Call) -> Effect:
    """`[..., in] x [in, units]`."""
    layer, (x,) = call.layer, call.inputs[:1]
    call.bind(layer.kernel, 0, x[-1])
    units = call.units(layer.kernel, 1)
    call.bind(layer.bias, 0, units)
    others = x.with_zero(layer.bias is None)  # for an input of zeros, the result is the bias
    output = activate(call, others.replaced(-1, Axis(units)), layer.activation)
    rows, widths = call.spread(Dims(x[:-1]), call.shapes[0][:-1])
    cost = Cost(rows, ((layer.kernel, 0), (layer.kernel, 1), *widths))
    return Effect([output], {"units": Width(units)}, costs=[cost])


@rule_for(kl.EinsumDense)
def einsum_dense(call: Call) -> Effect:
    """Axes of the kernel whose letters are not in the input have new elements; the others have the input's."""
    layer, x = call.layer, call.inputs[0]
    left, out = layer.equation.replace(" ", "").split("->")
    read, kernel = left.split(",")
    rank = len(call.output_shapes[0])
    read, out = _spell(read, len(x)), _spell(out, rank)
    of_input = dict(zip(read, x, strict=True))
    entries: dict[str, Axis | None] = dict(of_input)
    for axis, letter in enumerate(kernel):
        if letter in of_input:
            call.bind(layer.kernel, axis, of_input[letter])
        else:
            entries[letter] = Axis(call.units(layer.kernel, axis))
    for letter in set(read) - set(kernel) - set(out):
        call.freeze(of_input[letter], "the equation sums over this axis, which the kernel does not have")
    covered = set(out)
    if layer.bias is not None:
        covered = set(layer.bias_axes)
        start = min(out.index(letter) for letter in covered)
        for axis, letter in enumerate(out[start:]):
            if letter in covered:
                call.bind(layer.bias, axis, entries[letter])
    # A bias that is shared by all indices of an axis is still added where their weights are zero.
    output = Dims(None if (entry := entries[letter]) is None else entry.with_zero(letter in covered) for letter in out)
    given = layer.partial_output_shape
    tail = zip(given, output[rank - len(given) :], strict=True)
    widths = [size if size is None or entry is None else Width(entry.labels) for size, entry in tail]
    free = [axis for axis, letter in enumerate(out) if letter not in kernel]
    rows, kept = call.spread(Dims(output[axis] for axis in free), tuple(call.output_shapes[0][axis] for axis in free))
    cost = Cost(rows, (*((layer.kernel, axis) for axis in range(len(kernel))), *kept))
    return Effect([activate(call, output, layer.activation)], {"output_shape": widths}, costs=[cost])


def _spell(letters: str, rank: int) -> str:
    """An equation's letters, one for each axis: an ellipsis becomes capital letters."""
    if "..." not in letters:
        return letters
    return letters.replace("...", "ABCDEFGHIJ"[: rank - len(letters.replace("...", ""))])


@rule_for(kl.Conv1D, kl.Conv2D, kl.Conv3D)
def conv(call: Call) -> Effect:
    """Kernel `[..., in / groups, out]`.

    If each group has one input channel, a group is removed with its channel. If groups have more, their number stays,
    and channels at the same place of each group are removed together: input channels with input channels, output
    channels with output channels.
    """
    layer, x = call.layer, call.inputs[0]
    kernel, groups = layer.kernel, layer.groups
    axis = channel_axis(layer)
    config: dict[str, Any] = {}
    incoming = x[axis]
    if groups > 1 and kernel.shape[-2] == 1:
        each = kernel.shape[-1] // groups
        labels = labels_of(call, incoming, groups)
        out = np.repeat(labels, each)
        call.bind(kernel, -1, out)
        config["groups"] = Width(labels)
    else:
        if groups > 1 and incoming is not None:
            call.tie(*_same_place(incoming.labels, groups))
        call.bind(kernel, -2, None if incoming is None else incoming.labels[: kernel.shape[-2]])
        out = call.units(kernel, -1)
        if groups > 1:
            call.tie(*_same_place(out, groups))
    call.bind(layer.bias, 0, out)
    output = only_channels(call, x, axis, len(x)).replaced(axis, Axis(out))
    config["filters"] = Width(out)
    cost = Cost(_space(call.output_shapes[0], axis) * math.prod(kernel.shape[:-2]), ((kernel, -2), (kernel, -1)))
    return Effect([activate(call, output, layer.activation)], config, costs=[cost])


def _same_place(labels: Labels, groups: int) -> tuple[Labels, Labels]:
    grid = labels.reshape(groups, -1)
    return grid[:1], grid[1:]


def _space(shape: tuple[int | None, ...], axis: int) -> int:
    return positions(shape[1:-1] if axis == -1 else shape[2:])


@rule_for(kl.DepthwiseConv1D, kl.DepthwiseConv2D)
def depthwise(call: Call) -> Effect:
    """Kernel `[..., in, multiplier]`: output `c * multiplier + m` is removed with input channel c."""
    layer, x = call.layer, call.inputs[0]
    axis = channel_axis(layer)
    kernel = layer.kernel
    call.bind(kernel, -2, x[axis])
    out = np.repeat(labels_of(call, x[axis], kernel.shape[-2]), kernel.shape[-1])
    call.bind(layer.bias, 0, out)
    output = only_channels(call, x, axis, len(x)).replaced(axis, Axis(out) if x[axis] is not None else None)
    factor = _space(call.output_shapes[0], axis) * math.prod(kernel.shape[:-2]) * kernel.shape[-1]
    return Effect([activate(call, output, layer.activation)], costs=[Cost(factor, ((kernel, -2),))])


@rule_for(kl.SeparableConv1D, kl.SeparableConv2D)
def separable(call: Call) -> Effect:
    """A depthwise kernel `[..., in, multiplier]`, then a pointwise one `[..., in * multiplier, out]`."""
    layer, x = call.layer, call.inputs[0]
    axis = channel_axis(layer)
    deep, point = layer.depthwise_kernel, layer.pointwise_kernel
    call.bind(deep, -2, x[axis])
    call.bind(point, -2, np.repeat(labels_of(call, x[axis], deep.shape[-2]), deep.shape[-1]))
    out = call.units(point, -1)
    call.bind(layer.bias, 0, out)
    output = only_channels(call, x, axis, len(x)).replaced(axis, Axis(out))
    space = _space(call.output_shapes[0], axis)
    costs = [
        Cost(space * math.prod(deep.shape[:-2]) * deep.shape[-1], ((deep, -2),)),
        Cost(space, ((point, -2), (point, -1))),
    ]
    return Effect([activate(call, output, layer.activation)], {"filters": Width(out)}, costs=costs)


@rule_for(kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose)
def conv_transpose(call: Call) -> Effect:
    """Kernel `[..., out, in]`; each position of the input is multiplied by the whole kernel."""
    layer, x = call.layer, call.inputs[0]
    axis = channel_axis(layer)
    kernel = layer.kernel
    call.bind(kernel, -1, x[axis])
    out = call.units(kernel, -2)
    call.bind(layer.bias, 0, out)
    output = only_channels(call, x, axis, len(x)).replaced(axis, Axis(out))
    cost = Cost(_space(call.shapes[0], axis) * math.prod(kernel.shape[:-2]), ((kernel, -2), (kernel, -1)))
    return Effect([activate(call, output, layer.activation)], {"filters": Width(out)}, costs=[cost])


@rule_for(kl.Embedding)
def embedding(call: Call) -> Effect:
    """Table `[words, units]`; words are not removed."""
    layer = call.layer
    units = call.units(layer.embeddings, 1)
    return Effect([Dims([*call.inputs[0], Axis(units)])], {"output_dim": Width(units)})


@rule_for(kl.ReversibleEmbedding)
def reversible_embedding(call: Call) -> Effect:
    """An embedding; with `reverse`, the projection back onto words, by the same table or by a second one."""
    layer = call.layer
    table, axis = (layer.embeddings, 1) if layer.tie_weights else (layer.reverse_embeddings, 0)
    units = call.units(layer.embeddings, 1)
    call.bind(table, axis, units)  # both tables have the same width, even if this model never reverses
    if not call.argument("reverse", 1, False):
        return embedding(call)
    x = call.inputs[0]
    call.bind(layer.embeddings, 1, x[-1])
    rows, widths = call.spread(Dims(x[:-1]), call.shapes[0][:-1])
    cost = Cost(rows * (table.shape[1 - axis] or 1), ((table, axis), *widths))
    return Effect([x.replaced(-1, None)], {"output_dim": Width(units)}, costs=[cost])
