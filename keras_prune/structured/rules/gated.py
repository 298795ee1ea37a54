"""The rule of layers with gates: the channel, its gate and the weights of the gate stay or go together."""

from __future__ import annotations

import dataclasses

from keras_prune.layers.gated import Gated, gated_layer
from keras_prune.structured.rules.registry import Axis, Call, Cost, Dims, Effect, Width, find_rule, rule_for
from keras_prune.structured.rules.weights import channel_axis

__all__ = ["gated"]


@rule_for(Gated)
def gated(call: Call) -> Effect:
    """The rule of the layer inside; its head reads the means of the channels, and has a logit for each output channel.

    A channel whose logit has no weights is closed, and so 0 whatever the layer's bias and activation function are.
    """
    layer, inner = call.layer, gated_layer(call.layer)
    rule = find_rule(inner)
    if inner is not layer.layer or rule is None:
        return call.opaque(f"there is no rule for the {type(layer.layer).__name__} inside", multiplies=True)
    x, axis, head = call.inputs[0], channel_axis(inner), layer.head
    effect = rule(call.within(inner, [x], call.shapes[:1], call.output_shapes))
    for place, entry in enumerate(x):
        if place != axis % len(x):
            call.freeze(entry, "gates follow from the mean over this axis")
    call.bind(head.hidden_kernel, 0, x[axis])
    hidden = call.units(head.hidden_kernel, 1)
    call.bind(head.hidden_bias, 0, hidden)
    call.bind(head.logit_kernel, 0, hidden)
    out = effect.outputs[0][axis]
    call.bind(head.logit_kernel, 1, out)
    call.bind(head.logit_bias, 0, out)
    dims = effect.outputs[0] if out is None else effect.outputs[0].replaced(axis, Axis(out.labels))
    config = {"hidden": Width(hidden), **({"layer": {"config": effect.config}} if effect.config else {})}
    costs = [Cost(1, ((kernel, 0), (kernel, 1))) for kernel in (head.hidden_kernel, head.logit_kernel)]
    return dataclasses.replace(effect, outputs=[Dims(dims)], config=config, costs=[*effect.costs, *costs])
