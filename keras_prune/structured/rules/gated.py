"""The rule of layers with gates: the channel, its gate and the weights of the gate stay or go together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_prune.layers.gated import Gated, gated_layer
from keras_prune.structured.rules.registry import Axis, Call, Cost, Dims, Effect, Width, find_rule, rule_for
from keras_prune.structured.rules.weights import channel_axis

__all__ = ["gated"]


@rule_for(Gated)
def gated(call: Call) -> Effect:
    """The rule of the layer inside; its head reads the means of the channels, and has a logit for each output channel.

    A channel whose logit has no weights is closed, and so 0 whatever the layer's bias and activation function are.
    """
    layer = call.layer
    stack = layer.layer.layers if isinstance(layer.layer, keras.Sequential) else [layer.layer]
    unknown = [type(one).__name__ for one in stack if find_rule(one) is None]
    if unknown:
        return call.opaque(f"there is no rule for the {unknown[0]} inside", multiplies=True)
    x, axis, head = call.inputs[0], channel_axis(gated_layer(layer)), layer.head
    effect = _in_a_row(call, stack)
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
    dims: Dims = effect.outputs[0] if out is None else effect.outputs[0].replaced(axis, Axis(out.labels))
    config = {"hidden": Width(hidden), **({"layer": {"config": effect.config}} if effect.config else {})}
    costs = [Cost(1, ((kernel, 0), (kernel, 1))) for kernel in (head.hidden_kernel, head.logit_kernel)]
    return dataclasses.replace(effect, outputs=[dims], config=config, costs=[*effect.costs, *costs])


def _in_a_row(call: Call, stack: Sequence[Any]) -> Effect:
    """What the layers inside do, one after the other; the configuration is that of the wrapper's argument."""
    dims, shape = call.inputs[0], tuple(call.shapes[0])
    effects: dict[str, Effect] = {}
    for one in stack:
        made = tuple(one.compute_output_shape(shape))
        rule = find_rule(one)
        assert rule is not None
        effects[one.name] = rule(call.within(one, [dims], [shape], [made]))
        dims, shape = effects[one.name].outputs[0], made
    first = effects[stack[0].name]
    config: Mapping[str, Any] = first.config
    if call.layer.layer is not stack[0]:
        written = call.layer.layer.get_config()["layers"]
        parts = {i: effects[_name(part)].config for i, part in enumerate(written) if _name(part) in effects}
        entries = {i: _input(call) for i, part in enumerate(written) if part["class_name"] == "InputLayer"}
        config = {"layers": {i: {"config": part} for i, part in {**parts, **entries}.items() if part}}
    return dataclasses.replace(first, outputs=[dims], config=config)


def _name(part: Mapping[str, Any]) -> str:
    return str(part["config"]["name"])


def _input(call: Call) -> dict[str, Any]:
    """What changes of the input that a Sequential has written down."""
    sizes = [
        size if entry is None else Width(entry.labels)
        for size, entry in zip(call.shapes[0], call.inputs[0], strict=True)
    ]
    return {"batch_shape": sizes}
