"""Two records of one layer's `call`: the same calls with the same arguments, or the first that differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_prune.graph.graph import Graph, Node, Ref
from keras_prune.keras_seam import RECORDS_OF_CALLS

__all__ = ["difference"]

Expect = Callable[[Node], tuple[Mapping[str, Any], Mapping[int | str, Any]]]
"""A call -> entries of its configuration and arguments that are to be others in the second record."""

BOOKKEEPING = RECORDS_OF_CALLS | {"name", "training"}


def _nothing(node: Node) -> tuple[Mapping[str, Any], Mapping[int | str, Any]]:
    return {}, {}


def difference(
    first: Graph,
    second: Graph,
    expect: Expect = _nothing,
    same_layer: Callable[[Any, Any], bool] = lambda a, b: a is b,
) -> str:
    """Say in what two records differ, in words that follow "its call() ..."; empty if they do not.

    Args:
        first: one record.
        second: the other.
        expect: what the second has instead of what is in the first.
        same_layer: whether two layers do the same.
    """
    for a, b in zip(first.nodes, second.nodes, strict=False):
        config, changed = expect(a)
        what = _call_difference(a, b, config, changed, same_layer)
        if what:
            return what
    if len(first.nodes) != len(second.nodes) or first.outputs != second.outputs:
        return "runs other calls"
    return ""


def _call_difference(
    a: Node,
    b: Node,
    config: Mapping[str, Any],
    changed: Mapping[int | str, Any],
    same_layer: Callable[[Any, Any], bool],
) -> str:
    one, other = a.operation, b.operation
    if isinstance(one, keras.Layer) or isinstance(other, keras.Layer):
        if type(one) is not type(other) or not same_layer(one, other):
            return f"calls {other.name!r} instead of {one.name!r}"
    elif type(one) is not type(other):
        return f"runs {type(other).__name__} instead of {type(one).__name__}"
    else:
        before = {key: value for key, value in {**vars(one), **config}.items() if key not in BOOKKEEPING}
        for key, value in before.items():
            if not _same(value, vars(other).get(key)) and not _in_parts(key, value, vars(other).get(key)):
                return f"gives {type(one).__name__} {key}={_short(vars(other).get(key))}, not {_short(value)}"
    args, kwargs = list(a.args), dict(a.kwargs)
    for place, value in changed.items():
        into: Any = kwargs if isinstance(place, str) else args
        into[place] = value
    pairs = [*zip(args, b.args, strict=False)]
    pairs += [(kwargs.get(key), b.kwargs.get(key)) for key in {**kwargs, **b.kwargs} if key not in BOOKKEEPING]
    for x, y in pairs:
        if not _same(x, y):
            name = one.name if isinstance(one, keras.Layer) else type(one).__name__
            return f"gives {name} {_short(y)}, not {_short(x)}"
    return "" if len(args) == len(b.args) and a.outputs == b.outputs else "runs other calls"


def _in_parts(key: str, ends: Any, number: Any) -> bool:
    """Whether a split is in as many parts as there are to be: shapes of the results say whether they are equal."""
    return key == "indices_or_sections" and isinstance(number, int) and len(ends) + 1 == number


def _same(a: Any, b: Any) -> bool:
    flat, others = _flat(a), _flat(b)
    return len(flat) == len(others) and all(_equal(x, y) for x, y in zip(flat, others, strict=True))


def _flat(value: Any) -> list[Any]:
    """The leaves of a value, slices taken apart."""
    leaves: list[Any] = []
    for leaf in tree.flatten(value):
        leaves += [leaf.start, leaf.stop, leaf.step] if isinstance(leaf, slice) else [leaf]
    return leaves


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Ref) or isinstance(b, Ref):
        return bool(a == b)
    if hasattr(a, "shape") and hasattr(b, "shape"):
        if isinstance(a, keras.Variable) or isinstance(b, keras.Variable) or tuple(a.shape) != tuple(b.shape):
            return False
        return bool(np.array_equal(np.asarray(a), np.asarray(b)))
    if type(a) is type(b) and callable(a) and hasattr(a, "__qualname__"):
        return bool(a.__qualname__ == b.__qualname__)
    try:
        return bool(a == b)
    except (TypeError, ValueError):
        return False


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
