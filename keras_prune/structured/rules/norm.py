"""Rules of normalisations: which of them treat each channel separately, and which compute statistics over channels.

A mean over channels changes when a channel is removed, even one that is all zeros, since the sum is divided by a
smaller number. RMS normalisation can be corrected for that. L2 normalisation takes a sum and needs no correction.
Layer normalisation cannot be corrected, so none of its channels is removed unless `exact=False` allows the change.
"""

from __future__ import annotations

import math

from keras import layers as kl

from keras_prune.structured.rules.registry import Axis, Call, Dims, Effect, Width, rule_for

__all__ = ["batch_norm", "group_norm", "layer_norm", "layer_scale", "normalization", "rms_norm", "unit_norm"]


@rule_for(kl.BatchNormalization)
def batch_norm(call: Call) -> Effect:
    """A scale and a shift for each channel."""
    layer, x = call.layer, call.inputs[0]
    entry = x[layer.axis]
    for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
        call.bind(variable, 0, entry)
    others = x.with_zero(False)
    if entry is None:
        return Effect([others])
    return Effect([others.replaced(layer.axis, Axis(entry.labels, bool(layer.scale or entry.zero)))])


@rule_for(kl.LayerNormalization)
def layer_norm(call: Call) -> Effect:
    """Mean and variance over `axis`: no channel is removed there, unless inexact removals are allowed."""
    layer, x = call.layer, call.inputs[0]
    axes = sorted(axis % len(x) for axis in (layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]))
    output = x.with_zero(False)
    for place, axis in enumerate(axes):
        if call.exact:
            call.freeze(x[axis], "layer normalisation takes its statistics over this axis (exact=False allows it)")
        for variable in (layer.gamma, layer.beta):
            call.bind(variable, place, x[axis])
        if x[axis] is not None:
            output = output.replaced(axis, Axis(x[axis].labels, layer.scale))
    return Effect([output])


@rule_for(kl.RMSNormalization)
def rms_norm(call: Call) -> Effect:
    r"""$\gamma x / \sqrt{\sum x^2 / n + \epsilon}$, summed over an axis of n channels.

    With n' channels left and the others 0, the result is the same if $\gamma$ becomes $\gamma \sqrt{n / n'}$ and
    $\epsilon$ becomes $\epsilon n / n'$.
    """
    layer, x = call.layer, call.inputs[0]
    axes = [axis % len(x) for axis in (layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis])]
    for place, axis in enumerate(sorted(axes)):
        entry = x[axis]
        if entry is not None and call.exact and (len(axes) > 1 or not entry.zero):
            call.freeze(entry, "its statistics are taken over values that would not be zero, or over several axes")
        call.bind(layer.scale, place, entry)
    entry = x[axes[0]]
    if len(axes) > 1 or entry is None:
        return Effect([x])
    labels = entry.labels
    scale = (layer.scale, Width(labels, lambda kept, before: math.sqrt(before / kept)))
    epsilon = Width(labels, lambda kept, before: layer.epsilon * before / kept)
    output = x.replaced(axes[0], Axis(labels))
    return Effect([output], {"epsilon": epsilon}, scales=[scale])


@rule_for(kl.UnitNormalization)
def unit_norm(call: Call) -> Effect:
    r"""$x / \sqrt{\sum x^2}$: channels that are 0 can be left out."""
    x = call.inputs[0]
    for axis in call.layer.axis if isinstance(call.layer.axis, list | tuple) else [call.layer.axis]:
        entry = x[axis]
        if call.exact and entry is not None and not entry.zero:
            call.freeze(entry, "its norm is taken over values that would not be zero")
    return Effect([x])


@rule_for(kl.GroupNormalization)
def group_norm(call: Call) -> Effect:
    """Statistics over each group of channels: a group is kept or removed as a whole."""
    layer, x = call.layer, call.inputs[0]
    axis = layer.axis % len(x)
    entry = x[axis]
    for variable in (layer.gamma, layer.beta):
        call.bind(variable, 0, entry)
    for place, other in enumerate(x):
        if place != axis:
            call.freeze(other, "group normalisation takes its statistics over this axis")
    if entry is None:
        return Effect([x])
    size = len(entry.labels)
    groups = size if layer.groups == -1 else layer.groups
    grid = entry.labels.reshape(groups, size // groups)
    call.tie(grid[:, :1], grid[:, 1:])
    config = {} if layer.groups == -1 else {"groups": Width(grid[:, 0])}
    zero = bool(layer.scale or (entry.zero and layer.center))
    return Effect([Dims([None] * len(x)).replaced(axis, Axis(entry.labels, zero))], config)


@rule_for(kl.Normalization)
def normalization(call: Call) -> Effect:
    """Means and variances of data: nothing is removed along the axes that they belong to."""
    layer, x = call.layer, call.inputs[0]
    axes = layer.axis if layer.axis is not None else ()
    for axis in axes if isinstance(axes, list | tuple) else [axes]:
        call.freeze(x[axis], "its means and variances are those of the input data")
        x = x.replaced(axis, None)
    return Effect([x.with_zero(False)])


@rule_for("LayerScale")
def layer_scale(call: Call) -> Effect:
    """ConvNeXt's factor for each channel."""
    layer, x = call.layer, call.inputs[0]
    call.bind(layer.gamma, 0, x[-1])
    config = {} if x[-1] is None else {"projection_dim": Width(x[-1].labels)}
    return Effect([x if x[-1] is None else x.replaced(-1, Axis(x[-1].labels))], config)
