r"""Wider models of the same function: units are copied, and what reads them takes a share from each copy.

$$U_{i,j} = W_{i,g(j)}, \quad V_{j,k} = s_j W'_{g(j),k}, \quad \sum_{j: g(j) = u} s_j = 1$$

where g maps the units of the wider layer onto those of the old one.

Source: Chen et al. 2016, "Net2Net: accelerating learning via knowledge transfer", section 2.2, equations 5 and 6, where
$s_j$ is one over the number of copies.
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
"""Layers that sum over units which may be among their results, too."""


def widen(
    model: keras.Model, widths: Mapping[str, int], *, noise: float = 0.0, seed: int = 0, input_shape: Any = None
) -> keras.Model:
    """Return a model with wider layers and the same outputs.

    New units are copies of existing ones, drawn at random. All that is tied to a unit is copied with it: channels
    through residual connections, normalisations, concatenations. The result is run beside the model before it is
    returned. Settings of `compile` and the optimizer's state are kept, copies with the moments of what they copy.

    Args:
        model: built; it stays as it is.
        widths: for layers, by name or path, how many outputs they are to have.
        noise: how unevenly what reads a unit divides it among its copies, in [0, 1): copies with equal shares would
            always learn the same. Outputs stay the same with any noise.
        seed: fixes the units that are copied, and the noise.
        input_shape: for a subclassed model, see `trace`.

    Raises:
        ValueError: no layer has that name (near ones are listed), a width is smaller than what is there or cannot be
            had, a layer's outputs have to stay (with the reason), or what reads the copies cannot divide them: a norm,
            a sum without weights.

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
    """For each unit and each of its copies, the share that is taken from it, `[units, copies]`; they sum to 1."""
    most = int(copies.max(initial=1))
    there = np.arange(most) < copies[:, None]
    uneven = np.where(there, random.uniform(-1.0, 1.0, there.shape), 0.0)
    mean = uneven.sum(axis=1, keepdims=True) / copies[:, None]
    return np.asarray(np.where(there, (1.0 + noise * (uneven - mean)) / copies[:, None], 0.0))


def copy_units(analysis: Analysis, summed: Axes, pairs: Sequence[tuple[int, int]], noise: float, seed: int) -> None:
    """Make units of a live model copies of others of their groups, and divide what reads them; outputs stay.

    What a unit was before is written over, and had to be 0 where it was read.

    Args:
        analysis: of the model.
        summed: of the analysis, by `summed_axes`.
        pairs: (unit that is written, unit that is copied).
        noise: as for `widen`.
        seed: as for `widen`.
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
    """For each index, how many times it was there before."""
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
                f"widen: {name!r} has {len(labels)} outputs, and a width must be a whole number that is not smaller. "
                f"Received: {width!r}. For less, see plan and remove."
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
                f"widen: {name!r} can be widened by {' or '.join(str(n) for n in np.unique(each))} outputs at a time, "
                f"since so many belong to one unit. Received: {width} for {len(labels)}."
            )
        np.add.at(copies, random.choice(number, (width - now) // step), 1)
    for name, labels in found.items():
        if analysis.kept(labels, copies) != widths[name]:
            raise ValueError(
                f"widen: {name!r} is tied to another layer that is to be {analysis.kept(labels, copies)} wide. "
                f"Received: {dict(widths)}. Give both the same width."
            )
    return copies


def _labels(analysis: Analysis, name: str) -> Any:
    node = find_call("widen", analysis.graph, name)
    if node.body is not None:
        raise ValueError(f"widen: {name!r} is a model. Name a layer in it: {[n.path for n in node.body.nodes][:10]}.")
    return labels_of_layer(analysis, node.path)


def summed_axes(analysis: Analysis) -> Axes:
    """Axes of variables that are summed over, as (id of the variable, axis).

    They run along elements that a layer reads and does not hand on: rows of a kernel. Numbers on any other axis are
    copied as they are. Inside layers with steps of their own, the axes are those of the products that they compute.
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
    """Axes that are summed over inside: states of recurrent layers, heads and head sizes of attention."""
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
    """For each layer, the call that its variables were bound by."""
    first: dict[int, Node] = {}
    for node in graph.walk():
        if node.body is None and isinstance(node.operation, keras.Layer):
            first.setdefault(id(node.operation), node)
    return list(first.values())


def _labels_in(tensors: Any) -> Any:
    return np.concatenate([np.zeros(0, np.int64), *(e.labels for dims in tensors for e in dims if e is not None)])


def check_copies(owner: str, analysis: Analysis, summed: Axes, copied: npt.NDArray[np.bool_]) -> None:
    """Refuse copies of units that something sums up without weights that could be divided.

    Raises:
        ValueError: with the layer, and why.
    """
    for node in analysis.graph.walk():
        if node.body is not None or type(node.operation).__name__ == "GetItem":  # what is not sliced is not summed
            continue
        read = _units_in(analysis, analysis.inputs_of[id(node)], copied)
        if isinstance(node.operation, MIXING) and read.size:
            raise ValueError(
                f"{owner}: {node.path!r} ({type(node.operation).__name__}) sums over units without weights of its own, "
                "so copies would count more than once. Widen a layer that it does not read."
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
                "could be divided among copies. Widen a layer that it does not read."
            )


def _units_in(analysis: Analysis, tensors: Any, copied: npt.NDArray[np.bool_]) -> Units:
    units = np.unique(analysis.units_of(_labels_in(tensors)))
    units = units[units >= 0]
    return units[copied[units]]
