"""Rules of operations that combine tensors or sum over axes: products with broadcasting, contractions, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers as kl
from keras import tree

from keras_prune.structured.rules.registry import Axis, Call, Cost, Dims, Effect, rule_for
from keras_prune.structured.rules.weights import positions

__all__ = [
    "COMPARISONS",
    "PRODUCTS",
    "QUOTIENTS",
    "contract",
    "dot",
    "einsum",
    "elementwise",
    "matmul",
    "power",
    "reduction",
]

PRODUCTS = frozenset({"Multiply"})
COMPARISONS = frozenset({"Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual", "LogicalNot"})
QUOTIENTS = frozenset({"Divide", "TrueDivide", "DivideNoNan"})


@rule_for(
    kl.Add, kl.Subtract, kl.Multiply, kl.Average, kl.Maximum, kl.Minimum, "Add", "Subtract", "Multiply", "Divide",
    "TrueDivide", "DivideNoNan", "Maximum", "Minimum", "Fmax", "Fmin", "Where", "Equal", "NotEqual", "Less",
    "LessEqual", "Greater", "GreaterEqual", "LogicalAnd", "LogicalOr", "LogicalXor",
)  # fmt: skip
def elementwise(call: Call) -> Effect:
    """Indices at the same place are tied; an axis of size 1 is broadcast.

    A sum is zero where all terms are, a product where one factor is, a quotient where the numerator is.
    """
    name = type(call.layer).__name__
    leaves = [leaf for leaf in tree.flatten((call.node.args, call.node.kwargs)) if leaf is not None]
    numbers = [float(np.max(np.abs(np.asarray(leaf)))) for leaf in leaves if call.place(leaf) is None]
    if name in QUOTIENTS and call.place(leaves[0]) is None:
        numbers.append(float("inf"))  # a number is divided by a tensor that may be 0
    rank = len(call.output_shapes[0])
    # A constant is one more tensor. An axis along which it has several numbers cannot be pruned.
    sides = [*call.inputs, *(Dims([None] * np.ndim(constant)) for constant in call.constants())]
    sizes = [*call.shapes, *(np.shape(constant) for constant in call.constants())]
    aligned = [Dims([None] * (rank - len(x)) + list(x)) for x in sides]
    shapes = [(1,) * (rank - len(shape)) + tuple(shape) for shape in sizes]
    output = []
    for axis in range(rank):
        entries = _stretched(call, [(x[axis], shape[axis]) for x, shape in zip(aligned, shapes, strict=True)])
        output.append(_combined(call, name, entries, [x[axis] for x in aligned], numbers))
    return Effect([Dims(output)])


@rule_for("Power")
def power(call: Call) -> Effect:
    """A tensor to the power of a number."""
    exponent = call.argument("x2", 1)
    if call.place(exponent) is not None or np.ndim(exponent):
        return call.opaque("its exponent is a tensor")
    return Effect([call.inputs[0].with_zero(float(exponent) > 0)])


def _stretched(call: Call, sides: Sequence[tuple[Axis | None, int | None]]) -> list[Axis | None]:
    """The entries of the operands that have all indices of the axis. An axis of size 1 that is broadcast is frozen."""
    if any(size != 1 for _, size in sides):
        for entry, size in sides:
            if size == 1:
                call.freeze(entry, "this axis of size 1 is broadcast over another one")
        return [entry for entry, size in sides if size != 1]
    return [entry for entry, _ in sides]


def _combined(
    call: Call, name: str, entries: list[Axis | None], all_sides: list[Axis | None], numbers: list[float]
) -> Axis | None:
    merged = call.merge(*entries)
    if merged is None:
        return None
    whole = len(entries) == len(all_sides)
    if name in PRODUCTS:
        zero = any(entry is not None and entry.zero for entry in entries)
    elif name in QUOTIENTS:
        divided = all_sides[0] is not None and all_sides[0].zero and not np.isinf(numbers).any()
        zero = bool(divided and (len(all_sides) == 1 or all_sides[1] is None))
    elif name in COMPARISONS:
        zero = False
    else:
        zero = whole and all(entry is not None and entry.zero for entry in entries) and not any(numbers)
    return Axis(merged.labels, zero)


def contract(call: Call, first: Axis | None, second: Axis | None) -> None:
    """Sum products over an axis: an element that is removed must be 0 in one of the two tensors."""
    merged = call.merge(first, second)
    if merged is not None and call.exact and not any(entry is not None and entry.zero for entry in (first, second)):
        call.freeze(merged, "this axis is summed over, and what is removed would not be zero")


@rule_for("Matmul")
def matmul(call: Call) -> Effect:
    """`[..., m, k] x [..., k, n]`."""
    if len(call.inputs) != 2 or min(len(x) for x in call.inputs) < 2:
        return call.opaque("it multiplies by a constant, or by a vector", multiplies=True)
    a, b = call.inputs
    contract(call, a[-1], b[-2])
    rank = len(call.output_shapes[0])
    return _product(call, a, b, rank, a[-2], b[-1], call.shapes[0][-1], a[-1] or b[-2])


def _product(
    call: Call, a: Dims, b: Dims, rank: int, row: Axis | None, column: Axis | None, depth: Any, inner: Axis | None
) -> Effect:
    batch: list[Axis | None] = []
    for axis in range(rank - 2):
        place = axis - rank
        sides = [
            (x[place], shape[place]) if len(x) >= -place else (None, 1)
            for x, shape in zip((a, b), call.shapes, strict=True)
        ]
        entries = _stretched(call, sides)
        batch.append(_combined(call, "Multiply", entries, [entry for entry, _ in sides], []))
    output = Dims([*batch, row, column])
    sizes = [size for size, entry in zip(call.output_shapes[0], output, strict=True) if entry is None]
    parts = tuple(entry.labels for entry in (*output, inner) if entry is not None)
    return Effect([output], costs=[Cost(positions(tuple(sizes)) * (depth or 1 if inner is None else 1), parts)])


@rule_for("Einsum")
def einsum(call: Call) -> Effect:
    """Axes with the same letter are tied; where a letter is summed over, one of its axes must be 0."""
    if len(call.inputs) != len(call.layer.subscripts.split("->")[0].split(",")) or "..." in call.layer.subscripts:
        return call.opaque("its equation has an ellipsis, or one of its operands is a constant", multiplies=True)
    left, out = call.layer.subscripts.replace(" ", "").split("->")
    sides: dict[str, list[Axis | None]] = {}
    sizes: dict[str, int | None] = {}
    for letters, x, shape in zip(left.split(","), call.inputs, call.shapes, strict=True):
        for letter, entry, size in zip(letters, x, shape, strict=True):
            sides.setdefault(letter, []).append(entry)
            sizes[letter] = size
    merged: dict[str, Axis | None] = {}
    for letter, entries in sides.items():
        zero = any(entry is not None and entry.zero for entry in entries)
        merged[letter] = call.merge(*entries, zero=zero)
        if letter not in out and call.exact and not zero:
            call.freeze(merged[letter], "this axis is summed over, and what is removed would not be zero")
    factor = positions(tuple(size for letter, size in sizes.items() if merged[letter] is None))
    parts = tuple(entry.labels for entry in merged.values() if entry is not None)
    return Effect([Dims(merged[letter] for letter in out)], costs=[Cost(factor, parts)])


@rule_for(kl.Dot)
def dot(call: Call) -> Effect:
    """Products summed over `axes`, one axis of each tensor; the first axis of each tensor is the batch."""
    layer, (a, b) = call.layer, call.inputs
    axes = layer.axes if isinstance(layer.axes, list | tuple) else (layer.axes, layer.axes)
    first, second = axes[0] % len(a), axes[1] % len(b)
    contract(call, a[first], b[second])
    if layer.normalize and call.exact:
        for entry in (a[first], b[second]):
            if entry is not None and not entry.zero:
                call.freeze(entry, "its norm is taken over values that would not be zero")
    rest = [entry for axis, entry in enumerate(a) if axis not in (0, first)]
    rest += [entry for axis, entry in enumerate(b) if axis not in (0, second)]
    output = Dims([None, *rest]) if rest else Dims([None, None])
    size = call.shapes[0][first] or 1
    inner = a[first] if a[first] is not None else b[second]
    known = [entry.labels for entry in (*rest, inner) if entry is not None]
    free = [s for s, entry in zip(call.output_shapes[0], output, strict=True) if entry is None]
    return Effect([output], costs=[Cost(positions(tuple(free)) * (size if inner is None else 1), tuple(known))])


@rule_for(
    "Sum", "Mean", "Max", "Min", "Amax", "Amin", "Prod", "Std", "Var", "Any", "All", "Argmax", "Argmin", "Logsumexp"
)
def reduction(call: Call) -> Effect:
    """Nothing is removed along axes that are reduced, except elements that are 0 in a sum."""
    x, layer = call.inputs[0], call.layer
    axis = layer.axis
    gone = {a % len(x) for a in (range(len(x)) if axis is None else axis if isinstance(axis, list | tuple) else [axis])}
    summed = type(layer).__name__ == "Sum"
    for a in gone:
        entry = x[a]
        if entry is not None and call.exact and not (summed and entry.zero):
            call.freeze(entry, "this axis is reduced, and leaving out zeros would change the result")
    keep = getattr(layer, "keepdims", False)
    zero = type(layer).__name__ not in ("Argmax", "Argmin", "Logsumexp") and getattr(layer, "initial", None) is None
    output = Dims(None if a in gone else entry for a, entry in enumerate(x) if keep or a not in gone)
    return Effect([output.with_zero(zero)])
