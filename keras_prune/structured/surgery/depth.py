"""Whole layers and residual branches taken out of a model, and what each costs."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from keras_prune.graph.calls import find_call, graph_of, open_graphs
from keras_prune.graph.graph import Graph, Inside, Node
from keras_prune.graph.running import needed
from keras_prune.statistics.batches import Batches
from keras_prune.statistics.evaluation import batch_loss, check_compiled
from keras_prune.structured.analysis.groups import Analysis, analyse
from keras_prune.structured.counting.counting import Counter
from keras_prune.structured.surgery.rewrite import rebuild
from keras_prune.structured.surgery.shrink import refuse_masks

__all__ = ["BlockCost", "RemovableBlock", "depth_costs", "drop_layers", "droppable"]


@dataclasses.dataclass(frozen=True)
class RemovableBlock:
    """What can be taken out whole.

    Attributes:
        name: what `drop_layers` knows it by: the path of a layer, or of the Add that ends a residual branch.
        kind: "residual", a branch from a tensor to its Add, where the tensor itself goes on; "projection", where it
            goes on through fewer layers of its own; or "layer".
        layers: paths of the calls that go, in topological order.
    """

    name: str
    kind: str
    layers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class BlockCost:
    """What taking out a block costs and saves.

    Attributes:
        block: the block.
        change: the loss without it, less the loss with it.
        params: how many weights go with it.
        macs: how many multiplications go with it.
    """

    block: RemovableBlock
    change: float
    params: int
    macs: int


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a block ends, and the tensor that takes its result's place; for each call of a layer that is shared."""

    block: RemovableBlock
    ends: tuple[tuple[Node, int], ...]


def droppable(model: keras.Model, *, input_shape: Any = None) -> tuple[RemovableBlock, ...]:
    """Find residual branches and single layers that can be taken out of a model.

    A branch can be taken out if an Add of two tensors of the same shape ends it, where one of the two comes from the
    other, or both from a third one, and if nothing but the Add uses what is computed in it: in ResNets, in the inverted
    residuals of MobileNet, in Transformers that normalise first. A layer can be taken out if it multiplies by weights
    and keeps its input's shape.

    Args:
        model: built; it stays as it is.
        input_shape: for a subclassed model, see `trace`.

    Example:
        >>> inputs = keras.Input((4,))
        >>> x = keras.layers.Dense(4, name="inside")(inputs)
        >>> x = keras.layers.Add(name="sum")([inputs, x])
        >>> model = keras.Model(inputs, keras.layers.Dense(2)(x))
        >>> [(block.name, block.kind, block.layers) for block in droppable(model)]
        [('inside', 'layer', ('inside',)), ('sum', 'residual', ('inside', 'sum'))]
    """
    return tuple(place.block for place in _places(analyse(model, input_shape=input_shape)))


def drop_layers(model: keras.Model, names: Iterable[str | RemovableBlock], *, input_shape: Any = None) -> keras.Model:
    """Return a model without some blocks; names, weights, settings of `compile` and the optimizer's state are kept.

    Args:
        model: built; it stays as it is.
        names: blocks that `droppable` found, or their names: of layers, or of the Adds that end residual branches.
        input_shape: for a subclassed model, see `trace`.

    Raises:
        ValueError: no layer has that name (near ones are listed), or what it names cannot be taken out (with the
            reason).

    Example:
        >>> widths = {"a": 4, "b": 4, "c": 2}
        >>> layers = [keras.layers.Dense(width, name=name) for name, width in widths.items()]
        >>> model = keras.Sequential([keras.Input((4,)), *layers])
        >>> [layer.name for layer in drop_layers(model, ["a"]).layers]
        ['b', 'c']
    """
    refuse_masks(model, set())
    analysis = analyse(model, input_shape=input_shape)
    return _without(analysis, _find(analysis, names))


def depth_costs(model: keras.Model, data: Any, *, input_shape: Any = None) -> tuple[BlockCost, ...]:
    """Measure what the loss is without each block, cheapest first.

    Args:
        model: built and compiled; it stays as it is.
        data: `(x, y)` or batches of it, on which the loss is taken at inference.
        input_shape: for a subclassed model, see `trace`.

    Raises:
        ValueError: the model is not compiled, or the data does not fit.

    Example:
        >>> inputs = keras.Input((2,))
        >>> good, idle = keras.layers.Dense(2, name="good"), keras.layers.Dense(2, name="idle")
        >>> x = inputs + good(inputs)
        >>> x = keras.layers.Add(name="end")([x, idle(x)])
        >>> model = keras.Model(inputs, keras.layers.Dense(1)(x))
        >>> model.compile("sgd", "mse")
        >>> idle.set_weights([np.zeros((2, 2)), np.zeros(2)])
        >>> costs = depth_costs(model, (np.ones((4, 2)), np.ones((4, 1))))
        >>> [cost.change for cost in costs if cost.block.name == "end"]
        [0.0]
    """
    check_compiled(model)
    refuse_masks(model, set())
    analysis = analyse(model, input_shape=input_shape)
    batches = list(Batches(data, model, labels=True))
    whole = _loss(model, batches)
    total = Counter(analysis)
    before = total.total(total.sizes)
    found = []
    for place in _places(analysis):
        smaller = _without(analysis, [place])
        counter = Counter(analyse(smaller))
        after = counter.total(counter.sizes)
        change = _loss(smaller, batches) - whole
        found.append(BlockCost(place.block, change, before.params - after.params, before.macs - after.macs))
    return tuple(sorted(found, key=lambda cost: cost.change))


def _loss(model: keras.Model, batches: list[Any]) -> float:
    losses = [float(batch_loss(model, batch)) * batch.size for batch in batches]
    return float(np.sum(losses) / sum(batch.size for batch in batches))


def _without(analysis: Analysis, places: list[_Place]) -> keras.Model:
    skip = {id(node): source for place in places for node, source in place.ends}
    return rebuild(analysis, np.ones(analysis.size, bool), skip=skip, owner="drop_layers")


def _find(analysis: Analysis, names: Iterable[str | RemovableBlock]) -> list[_Place]:
    if isinstance(names, str):
        raise TypeError(f"drop_layers: names must be a list of names. Received: {names!r}")
    places = {place.block.name: place for place in _places(analysis)}
    found = []
    for name in names:
        path = name.name if isinstance(name, RemovableBlock) else name
        node = None if path in places else find_call("drop_layers", analysis.graph, path)
        if node is not None and node.path not in places:
            raise ValueError(
                f"drop_layers: {path!r} cannot be taken out: {_why_not(analysis, node)}. "
                f"What can be: {list(places)[:10]}{' and more' if len(places) > 10 else ''}."
            )
        found.append(places[path if node is None else node.path])
    return found


def _why_not(analysis: Analysis, node: Node) -> str:
    graph = graph_of(analysis.graph, node)
    if isinstance(graph, Inside):
        return f"{graph.model.name!r} calls it in its own call(), which is code"
    same = [one for one in graph.nodes if one.path == node.path]
    if len(same) > 1:
        return f"it is called {len(same)} times, not always so"
    if _is_add(node):
        return "no branch ends here that nothing else uses, with both sides of the same shape and from one tensor"
    if len(node.inputs) != 1 or len(node.outputs) != 1:
        return f"it has {len(node.inputs)} inputs and {len(node.outputs)} outputs"
    before, after = graph.shapes[node.inputs[0]], graph.shapes[node.outputs[0]]
    if before != after:
        return f"its input has the shape {before}, and its output {after}"
    return "it multiplies by no weights"


def _places(analysis: Analysis) -> list[_Place]:
    found: dict[str, list[_Place]] = {}
    calls = collections.Counter(node.path for graph in open_graphs(analysis.graph) for node in graph.nodes)
    for graph in open_graphs(analysis.graph):
        maker = {number: node for node in graph.nodes for number in node.outputs}
        above = _ancestors(graph)
        for node in graph.nodes:
            place = _residual(graph, node, maker, above) if _is_add(node) else _layer(analysis, graph, node)
            if place is not None:
                found.setdefault(node.path, []).append(place)
    return [
        _Place(places[0].block, tuple(end for place in places for end in place.ends))
        for path, places in found.items()
        if len(places) == calls[path]
    ]


def _is_add(node: Node) -> bool:
    return node.body is None and (type(node.operation) is kl.Add or type(node.operation).__name__ == "Add")


def _ancestors(graph: Graph) -> dict[int, int]:
    """For each tensor, all that it comes from and itself, as the bits of a number."""
    above = {number: 1 << number for number in graph.inputs}
    for node in graph.nodes:
        union = 0
        for number in node.inputs:
            union |= above[number]
        above.update((number, union | 1 << number) for number in node.outputs)
    return above


def _same(graph: Graph, a: int, b: int) -> bool:
    return graph.shapes[a] == graph.shapes[b] and graph.symbols[a].dtype == graph.symbols[b].dtype


def _residual(graph: Graph, node: Node, maker: dict[int, Node], above: dict[int, int]) -> _Place | None:
    """The branch that ends at an Add, of the two sides the one that has more layers with weights of its own."""
    end = node.outputs[0]
    sides = node.inputs
    if len(sides) != 2 or sides[0] == sides[1] or not all(_same(graph, side, end) for side in sides):
        return None
    own = [above[side] & ~above[other] for side, other in (sides, sides[::-1])]
    if not above[sides[0]] & above[sides[1]] or not any(own):
        return None
    weighty = [_weighty(maker, bits) for bits in own]
    kept = 0 if (weighty[0], own[0].bit_count()) < (weighty[1], own[1].bit_count()) else 1
    if not weighty[1 - kept] or weighty[kept] >= weighty[1 - kept]:
        return None
    gone = _gone(graph, node, sides[kept])
    branch = {id(maker[i]) for i in _bits(own[1 - kept]) if i in maker}
    if {id(one) for one in gone} != branch | {id(node)}:  # something else uses what is computed in the branch
        return None
    kind = "projection" if weighty[kept] else "residual"
    return _Place(RemovableBlock(node.path, kind, tuple(one.path for one in gone)), ((node, sides[kept]),))


def _weighty(maker: dict[int, Node], bits: int) -> int:
    """How many of the calls that made these tensors have weights."""
    nodes = {id(maker[i]): maker[i] for i in _bits(bits) if i in maker}
    return sum(bool(getattr(node.operation, "weights", ())) for node in nodes.values())


def _bits(number: int) -> list[int]:
    return [i for i in range(number.bit_length()) if number >> i & 1]


def _gone(graph: Graph, node: Node, source: int) -> list[Node]:
    """The calls that go when the result of one is replaced."""
    stay = {id(one) for one in needed(graph, {id(node): source}) if one is not node}
    return [one for one in graph.nodes if id(one) not in stay]


def _layer(analysis: Analysis, graph: Graph, node: Node) -> _Place | None:
    """A layer that multiplies by weights, and keeps the shape of its one input."""
    if len(node.inputs) != 1 or len(node.outputs) != 1 or not _same(graph, node.inputs[0], node.outputs[0]):
        return None
    inside = [one for one in node.body.walk() if one.body is None] if node.body is not None else [node]
    if not any(analysis.effects[id(one)].costs and getattr(one.operation, "weights", ()) for one in inside):
        return None
    return _Place(RemovableBlock(node.path, "layer", (node.path,)), ((node, node.inputs[0]),))
