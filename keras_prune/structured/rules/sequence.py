"""Rules of recurrent layers, of their wrappers, and of attention."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from keras import layers as kl
from keras import tree

from keras_prune.arrays.union_find import Labels
from keras_prune.keras_seam import attention_axes, has_gate, projection_of
from keras_prune.structured.rules.activations import activate, keeps_zero
from keras_prune.structured.rules.merge import contract
from keras_prune.structured.rules.registry import Axis, Call, Cost, Dims, Effect, Width, find_rule, rule_for
from keras_prune.structured.rules.weights import positions

__all__ = [
    "attention",
    "bidirectional",
    "dot_product_attention",
    "grouped_query_attention",
    "multi_head_attention",
    "recurrent",
    "recurrent_of_cell",
    "time_distributed",
]


def _cell(call: Call, layer: Any, incoming: Axis | None) -> Labels:
    """Bind a cell's variables, in which gates follow one another, and return the elements of its units."""
    call.freeze(call.inputs[0][1], "the time steps of a sequence cannot be pruned")
    cell = layer.cell
    units = call.units(cell.recurrent_kernel, 0)
    gates = np.tile(units, cell.recurrent_kernel.shape[1] // len(units))
    call.bind(cell.kernel, 0, incoming)
    call.bind(cell.kernel, 1, gates)
    call.bind(cell.recurrent_kernel, 1, gates)
    if cell.bias is not None:
        call.bind(cell.bias, len(cell.bias.shape) - 1, gates)
    return units


def _states(call: Call) -> list[Dims]:
    """The initial states that are tensors of the graph; the mask is among the call's inputs as well."""
    places = [call.place(leaf) for leaf in tree.flatten(call.argument("initial_state", 1))]
    return [call.inputs[place] for place in places if place is not None]


def _costs(layer: Any, steps: int) -> list[Cost]:
    cell = layer.cell
    gates = cell.kernel.shape[1] // cell.recurrent_kernel.shape[0]
    return [
        Cost(steps * gates, ((cell.kernel, 0), (cell.recurrent_kernel, 0))),
        Cost(steps * gates, ((cell.recurrent_kernel, 0), (cell.recurrent_kernel, 0))),
    ]


def _result(call: Call, layer: Any, units: Labels, start_at_zero: bool = True) -> Effect:
    known = all(activate(call, Dims([Axis(units)]), f)[0] is not None for f in _functions(layer.cell))
    zero = known and keeps_zero(layer.cell.activation) and start_at_zero
    outputs = [Dims([None] * (len(shape) - 1) + [Axis(units, zero)]) for shape in call.output_shapes]
    return Effect(outputs, {"units": Width(units)}, costs=_costs(layer, call.shapes[0][1] or 1))


def _functions(cell: Any) -> list[Any]:
    return [f for f in (cell.activation, getattr(cell, "recurrent_activation", None)) if f is not None]


@rule_for(kl.SimpleRNN, kl.LSTM, kl.GRU)
def recurrent(call: Call) -> Effect:
    """Kernel `[in, gates * units]`, recurrent kernel `[units, gates * units]`."""
    units = _cell(call, call.layer, call.inputs[0][-1])
    if call.constants():
        return call.opaque("its initial state is a constant", multiplies=True)
    states = _states(call)
    for state in states:
        call.merge(Axis(units), state[-1])
    # With all weights 0, gates are 0.5: half of a state that is not 0 is passed on.
    return _result(call, call.layer, units, all(state[-1] is not None and state[-1].zero for state in states))


@rule_for(kl.RNN)
def recurrent_of_cell(call: Call) -> Effect:
    """A recurrent layer around one of Keras's own cells."""
    if type(call.layer.cell) not in (kl.SimpleRNNCell, kl.LSTMCell, kl.GRUCell):
        return call.opaque(f"its cell is a {type(call.layer.cell).__name__}", multiplies=True)
    effect = recurrent(call)
    return dataclasses.replace(effect, config={"cell": {"config": effect.config}} if effect.config else {})


@rule_for(kl.Bidirectional)
def bidirectional(call: Call) -> Effect:
    """Both directions keep the same number of units: unit j of one is removed with unit j of the other."""
    layer, x = call.layer, call.inputs[0]
    pair = (layer.forward_layer, layer.backward_layer)
    if not all(type(one) in (kl.SimpleRNN, kl.LSTM, kl.GRU) for one in pair) or _states(call):
        return call.opaque("it wraps a layer of another kind, or is given initial states", multiplies=True)
    forward, backward = (_cell(call, one, x[-1]) for one in pair)
    call.tie(forward, backward)
    single = _result(call, pair[0], forward)
    out = single.outputs[0]
    zero = all(keeps_zero(one.cell.activation) for one in pair)
    if layer.merge_mode == "concat":
        out = out.replaced(-1, Axis(np.concatenate([forward, backward]), zero))
    else:
        out = out.replaced(-1, Axis(forward, zero))
    states = [Dims([None, Axis(forward, zero)])] * (len(call.output_shapes) - 1)
    if layer.merge_mode is None:
        states = [*single.outputs[1:]]
    config: dict[str, Any] = {"layer": {"config": {"units": Width(forward)}}}
    if "backward_layer" in layer.get_config():
        config["backward_layer"] = {"config": {"units": Width(forward)}}
    costs = [*single.costs, *_costs(pair[1], call.shapes[0][1] or 1)]
    return Effect([out, *states], config, costs=costs)


@rule_for(kl.TimeDistributed)
def time_distributed(call: Call) -> Effect:
    """The rule of the layer inside, applied to each time step."""
    inner = call.layer.layer
    rule = find_rule(inner)
    if rule is None:
        return call.opaque(f"there is no rule for the {type(inner).__name__} inside", multiplies=True)

    def without_time(entries: Any) -> Any:
        return type(entries)([*entries[:1], *entries[2:]])

    x, shape = call.inputs[0], tuple(call.shapes[0])
    call.freeze(x[1], "the time steps of a sequence cannot be pruned")
    shapes = [without_time(tuple(s)) for s in call.output_shapes]
    effect = rule(call.within(inner, [without_time(x)], [without_time(shape)], shapes))
    outputs = [Dims([*dims[:1], None, *dims[1:]]) for dims in effect.outputs]
    steps = shape[1] or 1
    return Effect(
        outputs,
        {"layer": {"config": effect.config}} if effect.config else {},
        scales=effect.scales,
        costs=[Cost(steps * cost.factor, cost.parts) for cost in effect.costs],
        not_counted=effect.not_counted,
    )


def _projection(call: Call, dense: Any, incoming: Axis | None, heads: Labels, size: Labels) -> None:
    """Bind a kernel `[in, heads, size]` and its bias `[heads, size]`."""
    call.bind(dense.kernel, 0, incoming)
    call.bind(dense.kernel, 1, heads)
    call.bind(dense.kernel, 2, size)
    if dense.bias is not None:
        call.bind(dense.bias, 0, heads)
        call.bind(dense.bias, 1, size)


def _attention(call: Call, reach: int) -> tuple[Labels, Labels, Labels, list[Cost], Any]:
    """Bind the variables of an attention layer.

    Args:
        call: a call of MultiHeadAttention or GroupQueryAttention.
        reach: number of query heads that read each head of keys and values.

    Returns:
        The elements of the heads of keys and values, of the head size of queries and keys, and of that of values; the
        costs; and the variables to be scaled (see `Effect.scales`), since scores are divided by the root of the size.
    """
    layer = call.layer
    query = call.inputs[0]
    value = call.inputs[call.place(call.argument("value", 1)) or 0]
    given = call.place(call.argument("key", 2))
    key = value if given is None else call.inputs[given]
    q, k, v, o = (projection_of(layer, name) for name in ("query", "key", "value", "output"))
    heads = call.units(k.kernel, 1)
    size, depth = call.units(q.kernel, 2), call.units(v.kernel, 2)
    many = np.repeat(heads, reach)
    _projection(call, q, query[-1], many, size)
    _projection(call, k, key[-1], heads, size)
    _projection(call, v, value[-1], heads, depth)
    call.bind(o.kernel, 0, many)
    call.bind(o.kernel, 1, depth)
    gated = has_gate(layer)
    if gated:
        _projection(call, projection_of(layer, "gate"), query[-1], many, depth)
    for dims in (query, value, key):
        for entry in dims[1:-1]:
            call.freeze(entry, "attention computes over this axis")
    # Attention over some of the axes is computed at each index of the others.
    shape, memory = (
        call.shapes[call.place(call.argument(name, at)) or 0] for at, name in enumerate(("query", "value"))
    )
    attended = attention_axes(layer) or tuple(range(1, len(shape) - 1))
    rows, columns = positions(shape[1:-1]), positions(memory[1:-1])
    pairs = rows * positions(tuple(memory[axis] for axis in attended))
    costs = [
        Cost(rows, _whole(q.kernel)),
        Cost(columns, _whole(k.kernel)),
        Cost(columns, _whole(v.kernel)),
        Cost(pairs, ((q.kernel, 1), (q.kernel, 2))),
        Cost(pairs, ((q.kernel, 1), (v.kernel, 2))),
        Cost(rows, _whole(o.kernel)),
        *([Cost(rows, _whole(projection_of(layer, "gate").kernel))] if gated else []),
    ]
    keep_scale = Width(size, lambda kept, before: math.sqrt(kept / before))
    scales = [(variable, keep_scale) for variable in (q.kernel, q.bias) if variable is not None]
    return heads, size, depth, costs, scales


def _whole(kernel: Any) -> tuple[tuple[Any, int], ...]:
    """All axes of a kernel, as parts of a cost."""
    return tuple((kernel, axis) for axis in range(len(kernel.shape)))


def _attended(call: Call, out: Axis) -> list[Dims]:
    """The entries of the result, and of the attention scores if they are returned."""
    first = Dims([None] * (len(call.output_shapes[0]) - 1) + [out])
    return [first, *(Dims([None] * len(shape)) for shape in call.output_shapes[1:])]


@rule_for(kl.MultiHeadAttention)
def multi_head_attention(call: Call) -> Effect:
    """Heads, the head size of queries and keys, and the head size of values can be pruned, each independently.

    Scores are divided by the square root of the head size. If that becomes smaller, the query's kernel is scaled down
    to keep the scores the same.
    """
    layer = call.layer
    heads, size, depth, costs, scales = _attention(call, 1)
    output = projection_of(layer, "output")
    kernel, bias = output.kernel, output.bias
    if len(call.output_shapes) > 1:
        call.freeze(heads, "its attention scores are returned, with an axis of heads")
    config: dict[str, Any] = {"num_heads": Width(heads), "key_dim": Width(size), "value_dim": Width(depth)}
    if len(kernel.shape) > 3:
        return Effect([Dims([None] * len(s)) for s in call.output_shapes], config, scales=scales, costs=costs)
    out = call.units(kernel, 2)
    call.bind(bias, 0, out)
    config["output_shape"] = [Width(out)]
    return Effect(_attended(call, Axis(out)), config, scales=scales, costs=costs)


@rule_for(kl.GroupQueryAttention)
def grouped_query_attention(call: Call) -> Effect:
    """A head of keys and values is removed with the query heads that read it; inputs and result have one width."""
    layer = call.layer
    call.merge(call.inputs[0][-1], call.inputs[call.place(call.argument("value", 1)) or 0][-1])
    reach = layer.num_query_heads // layer.num_key_value_heads
    heads, size, depth, costs, scales = _attention(call, reach)
    call.tie(size, depth)
    output = projection_of(layer, "output")
    kernel, bias = output.kernel, output.bias
    if len(call.output_shapes) > 1:
        call.freeze(heads, "its attention scores are returned, with an axis of heads")
    out = call.units(kernel, 2)
    call.bind(bias, 0, out)
    merged = call.merge(Axis(out), call.inputs[0][-1], zero=True)
    assert merged is not None
    config = {
        "num_query_heads": Width(np.repeat(heads, reach)),
        "num_key_value_heads": Width(heads),
        "head_dim": Width(size),
    }
    return Effect(_attended(call, merged), config, scales=scales, costs=costs)


@rule_for("DotProductAttention")
def dot_product_attention(call: Call) -> Effect:
    """Queries `[batch, rows, reach * heads, size]`, keys and values `[batch, columns, heads, size]`.

    Keras infers that results have the size of the queries, so the sizes of queries and values are tied.
    """
    query, key, value = call.inputs[:3]
    places = [call.place(call.argument(name, i)) for i, name in enumerate(("query", "key", "value"))]
    if places != [0, 1, 2]:
        return call.opaque("its queries, keys and values are not three tensors")
    for other in call.inputs[3:]:
        for entry in other:
            call.freeze(entry, "it is a bias or a mask of attention")
    if call.argument("scale", 5) is None:
        call.freeze(query[3], "its scores are scaled by this size")
    reach = (call.shapes[0][2] or 1) // (call.shapes[1][2] or 1)
    others = [None if x[2] is None else Axis(np.repeat(x[2].labels, reach), x[2].zero) for x in (key, value)]
    heads = call.merge(query[2], *others)
    contract(call, query[3], key[3])
    size = call.merge(query[3], value[3], zero=False)
    if any(n > 1 for given in call.node.kwargs.values() for n in np.shape(given)[1:2] if len(np.shape(given)) == 4):
        call.freeze(heads, "a constant has an entry for each head")
    if heads is not None:
        heads = heads.with_zero(value[2] is not None and value[2].zero)
    sizes = [part.labels for part in (heads, size) if part is not None]
    fixed = positions(call.shapes[0][1:2]) * positions(call.shapes[1][1:2])
    free = [n or 1 for n, part in zip(call.shapes[0][2:], (heads, size), strict=True) if part is None]
    cost = Cost(2 * fixed * math.prod(free), tuple(sizes))
    return Effect([Dims([None, None, heads, size])], costs=[cost])


@rule_for(kl.Attention, kl.AdditiveAttention)
def attention(call: Call) -> Effect:
    """Queries and keys are combined over their last axis; the result has the last axis of the values.

    Only products of two tensors are counted. Scores that are sums of tanh are not counted.
    """
    layer = call.layer
    order = [call.place(place) or 0 for place in call.argument("inputs", 0)]
    query, value = call.inputs[order[0]], call.inputs[order[1]]
    key = call.inputs[order[2]] if len(order) > 2 else value
    for dims in (query, value, key):
        for entry in dims[1:-1]:
            call.freeze(entry, "attention computes over this axis")
    pairs = positions(call.shapes[order[0]][1:-1]) * (call.shapes[order[1]][-2] or 1)
    costs = [_pairwise(pairs, value[-1], call.shapes[order[1]][-1])]
    scale = getattr(layer, "scale", None)
    if isinstance(layer, kl.AdditiveAttention) and scale is not None:
        call.merge(query[-1], key[-1])
        call.bind(scale, 0, query[-1])
    elif isinstance(layer, kl.AdditiveAttention) or layer.score_mode == "concat":
        for entry in (query[-1], key[-1]):
            if entry is not None and call.exact and not entry.zero:
                call.freeze(entry, "its scores are summed over values that would not be zero")
        call.merge(query[-1], key[-1])
    else:
        contract(call, query[-1], key[-1])
        inner = query[-1] if query[-1] is not None else key[-1]
        costs.append(_pairwise(pairs, inner, call.shapes[order[0]][-1]))
    output = Dims([*[None] * (len(query) - 1), value[-1]])
    return Effect([output, *(Dims([None] * len(shape)) for shape in call.output_shapes[1:])], costs=costs)


def _pairwise(pairs: int, entry: Axis | None, size: int | None) -> Cost:
    """The cost of a sum of products over an axis, for each pair of a query and a key."""
    return Cost(pairs * (size or 1)) if entry is None else Cost(pairs, (entry.labels,))
