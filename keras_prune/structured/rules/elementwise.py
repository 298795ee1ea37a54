"""Rules of layers that are elementwise, treat channels separately (pooling, padding), or do nothing at inference."""

from __future__ import annotations

import numpy as np
from keras import layers as kl

from keras_prune.structured.rules.activations import UNARY, activate, keeps_zero
from keras_prune.structured.rules.registry import Call, Dims, Effect, rule_for
from keras_prune.structured.rules.weights import channel_axis, only_channels

__all__ = ["activation", "global_pooling", "over_space", "prelu", "rescaling", "softmax", "unary", "unchanged"]


@rule_for(
    kl.Dropout, kl.GaussianDropout, kl.GaussianNoise, kl.AlphaDropout, kl.SpatialDropout1D, kl.SpatialDropout2D,
    kl.SpatialDropout3D, kl.Identity, kl.ActivityRegularization,
)  # fmt: skip
def unchanged(call: Call) -> Effect:
    """At inference, the result is the input."""
    return Effect([call.inputs[0]])


@rule_for(kl.Activation)
def activation(call: Call) -> Effect:
    """The layer's function."""
    return Effect([activate(call, call.inputs[0], call.layer.activation)])


@rule_for(kl.ReLU, kl.LeakyReLU, kl.ELU, *UNARY)
def unary(call: Call) -> Effect:
    """An elementwise function; whether it is 0 at 0 is found by calling it."""
    zero = keeps_zero(lambda x: call.layer.call(x)) if not call.node.args[1:] else False
    return Effect([call.inputs[0].with_zero(zero)])


@rule_for(kl.Softmax, "Softmax", "LogSoftmax")
def softmax(call: Call) -> Effect:
    """Softmax normalises over its own axes and treats indices of the others separately."""
    x = call.inputs[0]
    axes = call.layer.axis if isinstance(call.layer.axis, list | tuple) else [call.layer.axis]
    for axis in axes if axes != [None] else range(len(x)):
        call.freeze(x[axis], "softmax normalises over this axis")
        x = x.replaced(axis, None)
    return Effect([x.with_zero(False)])


@rule_for(kl.PReLU)
def prelu(call: Call) -> Effect:
    """Slopes of the input's shape without the batch, with size 1 along `shared_axes`."""
    x, alpha = call.inputs[0], call.layer.alpha
    for axis in range(len(alpha.shape)):
        if axis + 1 not in (call.layer.shared_axes or ()):
            call.bind(alpha, axis, x[axis + 1])
    return Effect([x])


@rule_for(kl.Rescaling)
def rescaling(call: Call) -> Effect:
    """`x * scale + offset`, where both are single numbers."""
    layer = call.layer
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        return call.opaque("its scale or offset has an entry for each channel")
    return Effect([call.inputs[0].with_zero(layer.offset == 0)])


@rule_for(
    kl.MaxPooling1D, kl.MaxPooling2D, kl.MaxPooling3D, kl.AveragePooling1D, kl.AveragePooling2D, kl.AveragePooling3D,
    kl.AdaptiveAveragePooling1D, kl.AdaptiveAveragePooling2D, kl.AdaptiveAveragePooling3D, kl.AdaptiveMaxPooling1D,
    kl.AdaptiveMaxPooling2D, kl.AdaptiveMaxPooling3D, kl.ZeroPadding1D, kl.ZeroPadding2D, kl.ZeroPadding3D,
    kl.Cropping1D, kl.Cropping2D, kl.Cropping3D, kl.UpSampling1D, kl.UpSampling2D, kl.UpSampling3D, kl.Resizing,
    kl.CenterCrop, "MaxPool", "AveragePool", "AdaptiveMaxPool", "AdaptiveAveragePool", "Resize",
)  # fmt: skip
def over_space(call: Call) -> Effect:
    """Each channel separately; a channel of zeros stays zero unless it is padded with another value."""
    x = call.inputs[0]
    output = only_channels(call, x, channel_axis(call.layer), len(x))
    return Effect([output.with_zero(not getattr(call.layer, "fill_value", 0.0))])


@rule_for(
    kl.GlobalAveragePooling1D, kl.GlobalAveragePooling2D, kl.GlobalAveragePooling3D, kl.GlobalMaxPooling1D,
    kl.GlobalMaxPooling2D, kl.GlobalMaxPooling3D,
)  # fmt: skip
def global_pooling(call: Call) -> Effect:
    """Each channel separately; without `keepdims`, the channels become the last axis."""
    x, axis = call.inputs[0], channel_axis(call.layer)
    rank = len(call.output_shapes[0])
    return Effect([only_channels(call, x, axis, len(x)) if rank == len(x) else _pooled(call, x, axis)])


def _pooled(call: Call, x: Dims, axis: int) -> Dims:
    kept = only_channels(call, x, axis, len(x))[axis]
    return Dims([None, kept])
