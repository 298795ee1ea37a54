r"""Wider models with the same outputs: units are copied, and the weights that read a unit are shared among its copies.

$$U_{i,j} = W_{i,g(j)}, \quad V_{j,k} = s_j W'_{g(j),k}, \quad \sum_{j: g(j) = u} s_j = 1$$

where g maps each unit of the wider layer to the unit of the old layer that it copies, and $s_j$ is the share that
copy j takes.

Source: Chen et al. 2016, "Net2Net: accelerating learning via knowledge transfer", section 2.2, equations 5 and 6. There
all copies of a unit take equal shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl

from keras_prune.graph.calls import find_call
from keras_prune.graph.graph import Graph, Node
from keras_prune.keras_seam import projection_of
from keras_prune.models.variables import assign, read
from keras_prune.structured.analysis.groups import Analysis, Copies, Units, analyse, labels_of_layer
from keras_prune.structured.surgery.rewrite import rebuild
from keras_prune.structured.surgery.shrink import refuse_masks

__all__ = ["check_copies", "copy_units", "summed_axes", "widen"]

Shares = npt.NDArray[np.float64]
Axes = frozenset[tuple[int, int]]

MIXING = (
    kl.LayerNormalization, kl.RMSNormalization, kl.UnitNormalization, kl.Attention, kl.AdditiveAttention, kl.Dot,
)  # fmt: skip
"""Layers that sum over units without weights, even where the same units appear among their results."""


def widen(
    model: keras.Model, widths: Mapping[str, int], *, noise: float = 0.0, seed: int = 0, input_shape: Any = None
) -> keras.Model:
    """Return a model with wider layers and the same outputs.

    New units are copies of existing ones, drawn at random. Everything tied to a unit is copied with it: channels across
    residual connections, normalisations and concatenations. Before the result is returned, its outputs are compared
    with the model's. Settings of `compile` and the optimizer's state are kept; a copy starts with the moments of the
    unit that it copies.

    Args:
        model: a built model, which is not changed.
        widths: the new number of outputs of each layer to widen, by the layer's name or path.
        noise: in [0, 1), how much the shares of a unit's copies differ. With 0 they are equal, and the copies stay
            equal throughout training. The model's outputs are the same with any noise.
        seed: seed for drawing the units that are copied, and the noise.
        input_shape: shape of the inputs of a subclassed model, see `trace`.

    Raises:
        ValueError: no layer has that name (similar names are listed); a width is smaller than the layer's, or cannot be
            reached; a layer's width cannot change (with the reason); or the copies are read by something that cannot
            divide them: a norm, a sum without weights.

    Example:
        >>> a, b = keras.layers.Dense(3, activation="relu", name="a"), keras.layers.Dense(2, name="b")
        >>> model = keras.Sequential([keras.Input((4,)), a, b])
        >>> wide = widen(model, {"a": 5})
        >>> x = np.random.default_rng(0).normal(size=(8, 4))
        >>> wide.layers[0].units, np.allclose(model(x), wide(x), atol=1e-6)
        (5, True)
    """
    if not isinstance(noise, int | float) or not 0.0 <= noise < 1.0:
        raise ValueError(f"widen: noise must be in [0, 1). Received: {noise!r}")
    refuse_masks(model, set())
    analysis = analyse(model, input_shape=input_shape)
    random = np.random.default_rng(seed)
    copies = _copies(analysis, widths, random)
    summed = summed_axes(analysis)
    check_copies("widen", analysis, summed, copies > 1)
    shares = draw_shares(copies, noise, random)

    def factors(variable: keras.Variable, axis: int, taken: Units) -> Any:
        slot = analysis.slot_of(variable, axis)
        if slot is None or (id(variable), axis) not in summed:
            return None
        units = slot.units[taken]
        return np.where(units < 0, 1.0, shares[units, _occurrence(taken)])

    return rebuild(analysis, copies, factors=factors, owner="widen")


def draw_shares(copies: Copies, noise: float, random: np.random.Generator) -> Shares:
    """The shares of each unit's copies, `[units, copies]`: each row sums to 1, with 0 where there is no such copy."""
    most = int(copies.max(initial=1))
    there = np.arange(most) < copies[:, None]
    uneven = np.where(there, random.uniform(-1.0, 1.0, there.shape), 0.0)
    mean = uneven.sum(axis=1, keepdims=True) / copies[:, None]
    return np.asarray(np.where(there, (1.0 + noise * (uneven - mean)) / copies[:, None], 0.0))


def copy_units(analysis: Analysis, summed: Axes, pairs: Sequence[tuple[int, int]], noise: float, seed: int) -> None:
    """Turn units of a model into copies of other units of their groups, in place, without changing the outputs.

    The weights that make the overwritten units are lost. Those that read them must have been 0.

    Args:
        analysis: the model's analysis.
        summed: `summed_axes` of the analysis.
        pairs: (unit that is overwritten, unit that is copied).
        noise: see `widen`.
        seed: see `widen`.
    """
    random = np.random.default_rng(seed)
    share = [draw_shares(np.array([2]), noise, random)[0] for _ in pairs]
    variables = {id(slot.variable): slot.variable for slot in analysis.slots if slot.variable is not None}
    for variable in variables.values():
        value = np.array(read(variable))
        for axis in range(value.ndim):
            slot = analysis.slot_of(variable, axis)
            if slot is None:
                continue
            rows = np.moveaxis(value, axis, 0)
            for (new, old), (kept, given) in zip(pairs, share, strict=True):
                to, of = (np.flatnonzero(slot.units == unit) for unit in (new, old))
                if (id(variable), axis) in summed:
                    rows[to], rows[of] = rows[of] * given, rows[of] * kept
                else:
                    rows[to] = rows[of]
        assign(variable, value)


def _occurrence(taken: Units) -> Units:
    """For each entry, how often its value occurs before it: `[2, 5, 2] -> [0, 0, 1]`."""
    order = np.argsort(taken, kind="stable")
    ranked = taken[order]
    first = np.searchsorted(ranked, ranked, side="left")
    result = np.empty(len(taken), np.int64)
    result[order] = np.arange(len(taken)) - first
    return result


def _copies(analysis: Analysis, widths: Mapping[str, int], random: np.random.Generator) -> Copies:
    copies: Copies = np.ones(analysis.size, np.int64)
    found = {}
    for name, width in widths.items():
        labels = found[name] = _labels(analysis, name)
        now = analysis.kept(labels, copies)
        if not isinstance(width, int | np.integer) or width < len(labels):
            raise ValueError(
                f"widen: {name!r} has {len(labels)} outputs; its new width must be a whole number that is not smaller. "
                f"Received: {width!r}. To make a layer narrower, use plan or remove."
            )
        if width <= now:
            continue
        units = analysis.units_of(labels)
        if (units < 0).all():
            raise ValueError(f"widen: {name!r} must keep its width: {analysis.reason(labels)}.")
        number, each = np.unique(units[units >= 0], return_counts=True)
        step = int(each[0])
        if (each != step).any() or (width - now) % step:
            raise ValueError(
                f"widen: {name!r} has {len(labels)} outputs, and can only be widened by "
                f"{' or '.join(str(n) for n in np.unique(each))} at a time, the outputs of one unit. Received: {width}."
            )
        np.add.at(copies, random.choice(number, (width - now) // step), 1)
    for name, labels in found.items():
        if analysis.kept(labels, copies) != widths[name]:
            raise ValueError(
                f"widen: {name!r} is tied to another layer, which would have {analysis.kept(labels, copies)} outputs. "
                f"Received: {dict(widths)}. Give both the same width."
            )
    return copies


def _labels(analysis: Analysis, name: str) -> Any:
    node = find_call("widen", analysis.graph, name)
    if node.body is not None:
        raise ValueError(f"widen: {name!r} is a model. Name a layer in it: {[n.path for n in node.body.nodes][:10]}.")
    return labels_of_layer(analysis, node.path)


def summed_axes(analysis: Analysis) -> Axes:
    """The axes of variables that a layer sums over, as (id of the variable, axis).

    Along such an axis lie elements that the layer reads and that are not among its outputs, as along the rows of a
    kernel. When a unit is copied, values along these axes are divided among its copies; along other axes they are
    copied. Recurrent layers and attention also sum over axes inside: see `_inner`.
    """
    found: set[tuple[int, int]] = set()
    for node in _first_calls(analysis.graph):
        layer = node.operation
        read, made = _labels_in(analysis.inputs_of[id(node)]), _labels_in(analysis.effects[id(node)].outputs)
        depthwise = getattr(layer, "depthwise_kernel", None) if hasattr(layer, "pointwise_kernel") else None
        for variable in layer.weights:
            for axis in range(len(variable.shape)):
                slot = analysis.slot_of(variable, axis)
                if slot is not None and variable is not depthwise:
                    labels = slot.labels[slot.units >= 0]
                    if np.isin(labels, read).any() and not np.isin(labels, made).any():
                        found.add((id(variable), axis))
        found |= {(id(variable), axis) for variable, axis in _inner(layer)}
    return frozenset(found)


def _inner(layer: Any) -> list[tuple[keras.Variable, int]]:
    """Axes that layers sum over inside: states of recurrent layers, heads and head sizes of attention."""
    if isinstance(layer, kl.Bidirectional):
        return [*_inner(layer.forward_layer), *_inner(layer.backward_layer)]
    if isinstance(layer, kl.RNN):
        return [(layer.cell.recurrent_kernel, 0)] if hasattr(layer.cell, "recurrent_kernel") else []
    if isinstance(layer, kl.MultiHeadAttention | kl.GroupQueryAttention):
        query, output = projection_of(layer, "query"), projection_of(layer, "output")
        axes = [(output.kernel, 0), (output.kernel, 1), (query.kernel, 2)]
        return axes if query.bias is None else [*axes, (query.bias, 1)]
    return []


def _first_calls(graph: Graph) -> list[Node]:
    """For each layer, its first call: the one whose axes were bound to the layer's variables."""
    first: dict[int, Node] = {}
    for node in graph.walk():
        if node.body is None and isinstance(node.operation, keras.Layer):
            first.setdefault(id(node.operation), node)
    return list(first.values())


def _labels_in(tensors: Any) -> Any:
    return np.concatenate([np.zeros(0, np.int64), *(e.labels for dims in tensors for e in dims if e is not None)])


def check_copies(owner: str, analysis: Analysis, summed: Axes, copied: npt.NDArray[np.bool_]) -> None:
    """Refuse to copy units that something sums over without weights that could be divided among the copies.

    Args:
        owner: name of the function that the message begins with.
        analysis: the model's analysis.
        summed: `summed_axes` of the analysis.
        copied: for each unit, whether it gets copies.

    Raises:
        ValueError: a layer or operation sums over such units; the message names it.
    """
    for node in analysis.graph.walk():
        if node.body is not None or type(node.operation).__name__ == "GetItem":  # units outside of a slice are unread
            continue
        read = _units_in(analysis, analysis.inputs_of[id(node)], copied)
        if isinstance(node.operation, MIXING) and read.size:
            raise ValueError(
                f"{owner}: {node.path!r} ({type(node.operation).__name__}) sums over units without weights of its own, "
                "so that a unit with copies would count several times. Widen only layers that it does not read."
            )
        divided = [
            slot.units
            for variable in getattr(node.operation, "weights", ())
            for axis in range(len(variable.shape))
            if (id(variable), axis) in summed and (slot := analysis.slot_of(variable, axis)) is not None
        ]
        made = _units_in(analysis, analysis.effects[id(node)].outputs, copied)
        lost = np.setdiff1d(read, np.concatenate([made, *divided]))
        if lost.size:
            raise ValueError(
                f"{owner}: {node.path!r} ({type(node.operation).__name__}) sums over units, and has no weights that "
                "could be divided among their copies. Widen only layers that it does not read."
            )


def _units_in(analysis: Analysis, tensors: Any, copied: npt.NDArray[np.bool_]) -> Units:
    units = np.unique(analysis.units_of(_labels_in(tensors)))
    units = units[units >= 0]
    return units[copied[units]]
