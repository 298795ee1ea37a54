"""A layer's own `call` with other widths, on symbolic tensors: whether it does what is left of what it did.

A layer made of layers is code: `reshape(x, (-1, self.heads, self.size))` reads numbers that lie in attributes. So its
`call` is run once more, with inputs and inner layers' results of the new widths and attributes changed, and what it
calls then is compared with what was recorded. Only what agrees to the last number may be removed.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import tree

from keras_prune.graph.compare import difference
from keras_prune.graph.graph import Graph, Inside, Node, Ref, fill, place_of_call
from keras_prune.graph.held import Place, held, is_variable
from keras_prune.graph.symbolic import call_symbolically, flat_tensors, reaching, stand_in
from keras_prune.graph.trace import InsideReader
from keras_prune.keras_seam import set_mask, unrecorded
from keras_prune.structured.rules.registry import Width

__all__ = [
    "Mismatch",
    "combinations",
    "departure",
    "evaluate",
    "expected",
    "record",
    "replay",
    "shape_now",
    "width_choices",
    "widths_inside",
]

TRIALS = 40
"""How many ways to change attributes are tried."""


class Mismatch(ValueError):
    """A layer's `call` does not follow the removal of units; with the reason."""


def evaluate(analysis: Any, keep: Any, value: Any) -> Any:
    """Widths as numbers, at any depth."""
    if isinstance(value, Width):
        return value.rule(analysis.kept(value.labels, keep), len(value.labels))
    if isinstance(value, slice):
        return slice(*(evaluate(analysis, keep, part) for part in (value.start, value.stop, value.step)))
    if isinstance(value, Mapping):
        return {key: evaluate(analysis, keep, entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(evaluate(analysis, keep, entry) for entry in value)
    return value


def shape_now(analysis: Any, keep: Any, graph: Any, number: int) -> tuple[int | None, ...]:
    """The shape that a tensor will have."""
    shape, dims = graph.shapes[number], analysis.dims.get((id(graph), number))
    if dims is None:
        return tuple(shape)
    return tuple(
        size if entry is None else analysis.kept(entry.labels, keep) for size, entry in zip(shape, dims, strict=True)
    )


def replay(analysis: Any, bodies: Sequence[Inside], keep: Any) -> dict[str, int]:
    """Find the attributes of a layer that have to change so that its `call` does what is left of what it did.

    Args:
        analysis: an `Analysis` of the model.
        bodies: what `call` was seen to do, each time that the layer is called.
        keep: for each unit, whether it stays, or how many of it there are to be.

    Returns:
        The new numbers by the attribute's name; of several ways the one with the fewest.

    Raises:
        Mismatch: there is no way.
    """
    first = ""
    pairs = set().union(*(widths_inside(analysis, body, keep) for body in bodies))
    if not pairs:
        return {}
    choices = width_choices(pairs, _numbers(bodies[0].model))
    for changes in itertools.islice(combinations(choices), TRIALS):
        reason = next((what for body in bodies if (what := _try(analysis, body, keep, changes))), "")
        if not reason:
            return changes
        first = first or reason
    raise Mismatch(f"with fewer of them, its call() {first}")


def combinations(choices: Mapping[str, list[int]]) -> Iterator[dict[str, int]]:
    """Ways to change some numbers, those that change few first."""
    for number in range(len(choices) + 1):
        for names in itertools.combinations(choices, number):
            for values in itertools.product(*(choices[name] for name in names)):
                yield dict(zip(names, values, strict=True))


def _numbers(layer: Any) -> dict[str, int]:
    return {name: value for name, value in vars(layer).items() if type(value) is int}


def width_choices(pairs: set[tuple[int, int]], numbers: Mapping[str, int]) -> dict[str, list[int]]:
    """For numbers that may follow from widths, what they may become: multiples and parts of a width, too.

    Example:
        >>> width_choices({(8, 6)}, {"units": 8, "doubled": 16, "half": 4, "epochs": 7})
        {'units': [6], 'doubled': [12], 'half': [3]}
    """
    found: dict[str, list[int]] = {}
    for name, value in numbers.items():
        options = {value * kept // before for before, kept in pairs if _follows(value, before, kept)}
        if value > 1 and options - {value}:
            found[name] = sorted(options - {value})
    return found


def _follows(value: int, before: int, kept: int) -> bool:
    return (value % before == 0 or before % value == 0) and (value * kept) % before == 0 and value * kept > 0


def widths_inside(analysis: Any, body: Inside, keep: Any) -> set[tuple[int, int]]:
    """Widths of tensors inside that change: (before, after)."""
    found = set()
    for number in range(len(body.shapes)):
        for entry in analysis.dims[id(body), number]:
            if entry is not None:
                found.add((len(entry.labels), analysis.kept(entry.labels, keep)))
    return {(before, kept) for before, kept in found if before != kept}


def _try(analysis: Any, body: Inside, keep: Any, changes: Mapping[str, int]) -> str:
    """In what `call` differs from what is expected with these attributes; empty if in nothing."""

    def made(leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        return keras.KerasTensor(shape_now(analysis, keep, body, leaf.index), dtype=body.symbols[leaf.index].dtype)

    answers = _answers(body, lambda node: tree.map_structure(made, node.results))
    again, reason = record(analysis, body, keep, body.model, changes, lambda inner: next(answers[id(inner)]))
    if again is None:
        return f"fails ({reason})"
    return departure(analysis, body, again, keep)


def departure(
    analysis: Any, body: Inside, again: Graph, keep: Any, same_layer: Callable[[Any, Any], bool] = lambda a, b: a is b
) -> str:
    """In what calls recorded anew depart from what is left of those recorded first; empty if in nothing."""
    what = difference(body, again, expected(analysis, keep), same_layer)
    wrong = [i for i, shape in enumerate(again.shapes) if tuple(shape) != tuple(shape_now(analysis, keep, body, i))]
    return what or (f"makes a tensor of shape {again.shapes[wrong[0]]}" if wrong else "")


def record(
    analysis: Any,
    body: Inside,
    keep: Any,
    layer: Any,
    changes: Mapping[str, int] | None = None,
    answer: Callable[[Any], Any] | None = None,
) -> tuple[Graph | None, str]:
    """Run a layer's `call` on inputs of the new widths; gives its calls, or None and the reason.

    Args:
        analysis: of the model.
        keep: what stays of it.
        body: what `call` did before.
        layer: the one whose `call` it was, or one of its class.
        changes: attributes that are others meanwhile.
        answer: inner layer -> what it returns, instead of being run.
    """
    given = {i: stand_in(shape_now(analysis, keep, body, i), body.symbols[i]) for i in (*body.inputs, *body.own)}
    for number, mask in body.masks.items():
        set_mask(given[number], given[mask])
    args, kwargs = fill((body.args, dict(body.kwargs)), given)
    numbers = {id(variable): number for number, variable in body.own.items() if variable is not None}
    lend: dict[Place, Any] = {
        place: given[numbers[id(variable)]]
        for place, variable in held(body.model, is_variable).items()
        if id(variable) in numbers
    }
    lend |= {(name,): value for name, value in (changes or {}).items()}
    try:
        with unrecorded(layer):
            called = call_symbolically(layer, args, kwargs, lend, answer)
            outputs = flat_tensors(called.outputs)
            reader = InsideReader("", {}, called.results, deep=False)
            return reader.graph(layer, [given[i] for i in body.inputs], outputs, reaching(outputs)), ""
    except Exception as error:
        return None, " ".join(str(error).split())[:150]


def expected(analysis: Any, keep: Any) -> Callable[[Node], tuple[Mapping[str, Any], Mapping[int | str, Any]]]:
    """What operations have in their configurations and arguments once units are gone; layers are compared whole."""

    def expect(node: Node) -> tuple[Mapping[str, Any], Mapping[int | str, Any]]:
        effect = analysis.effects.get(id(node))
        if effect is None or isinstance(node.operation, keras.Layer):
            return {}, {}
        return evaluate(analysis, keep, dict(effect.config)), evaluate(analysis, keep, dict(effect.args))

    return expect


def _answers(body: Inside, answer: Any) -> dict[int, Iterator[Any]]:
    """For each inner layer, what it returns at its calls, in the order in which they happened."""
    calls: dict[int, list[Node]] = collections.defaultdict(list)
    for node in body.nodes:
        if isinstance(node.operation, keras.Layer):
            calls[id(node.operation)].append(node)
    return {
        key: iter([answer(node) for node in sorted(nodes, key=lambda node: place_of_call(body, node))])
        for key, nodes in calls.items()
    }
