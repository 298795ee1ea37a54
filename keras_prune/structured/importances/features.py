"""Model -> a table of what can be told of each unit without removing it: weights, gradients, activations, place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl

from keras_prune.keras_seam import layers_in
from keras_prune.models.variables import read
from keras_prune.statistics.batches import Batches
from keras_prune.statistics.gradients import loss_gradients
from keras_prune.statistics.walks import kept
from keras_prune.structured.analysis.groups import Analysis, Group
from keras_prune.structured.importances.activity import APoZ, Entropy, MeanActivation
from keras_prune.structured.importances.importance import REDUCTIONS, Array, Scores
from keras_prune.structured.importances.observing import of_units, read_tensors, watch
from keras_prune.structured.importances.of_gradients import Fisher, Gradient, Taylor
from keras_prune.structured.importances.slices import over_others, spread, targets_of

__all__ = ["Features", "features"]

Columns = dict[str, Scores]
Values = Mapping[int, Array]
"""For slots (by number), a value for each index."""

RANKED = ("l2_in", "l2_out", "taylor", "second_order", "mean_activation", "output")
NORMALISATIONS = (kl.BatchNormalization, kl.LayerNormalization, kl.GroupNormalization, kl.RMSNormalization)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Features:
    """A table of units.

    Attributes:
        names: of the columns.
        values: `[units, features]`, finite.
    """

    names: tuple[str, ...]
    values: npt.NDArray[np.float64]

    def column(self, name: str) -> Scores:
        """Return one feature of all units, `[units]`."""
        if name not in self.names:
            raise ValueError(f"Features has the columns {list(self.names)}. Received: {name!r}")
        return np.asarray(self.values[:, self.names.index(name)])

    def __repr__(self) -> str:
        return f"Features({self.values.shape[0]} units, {list(self.names)})"


def features(model: keras.Model, analysis: Analysis, data: Any, reduction: str = "mean") -> Features:
    r"""Return what can be told of each unit without removing it.

    w are weights, g gradients of the mean loss of a batch b, a the unit's activations as the first layer with a kernel
    that reads it is given them. "in" are kernels that make a unit, "out" those that read it. $q_b = \sum w g$ over
    "out" is the derivative of the loss by a factor on the unit.

    | column | what |
    | --- | --- |
    | `l1_in`, `l2_in`, `l1_out`, `l2_out` | norms of the unit's slices of kernels |
    | `bias`, `scale` | its biases and shifts; its factors in normalisations, 1 without any |
    | `gradient`, `taylor`, `fisher` | as the importances of that name |
    | `first_order` | $-\bar q$, the mean over samples |
    | `curvature` | $\bar q^2 + \sum_b n_b (q_b - \bar q)^2 / B$: the Fisher information of the factor, B batches |
    | `second_order` | `first_order` + `curvature` / 2: the expected cost of taking the unit out |
    | `mean_activation`, `apoz`, `std_activation`, `entropy` | mean \|a\|, share above 0, deviation, as `Entropy` |
    | `output` | $\sqrt{\overline{a^2}}$ times `l2_out`: how much it gives to its readers |
    | `depth` | the place of the call that makes it in topological order, 0 for the first, 1 for the last |
    | `fan_in`, `fan_out`, `group_size` | its weights in either kind of kernels; units of its group |
    | `rank_...` | the rank in its group, from 0 to 1, by some of these |

    Args:
        model: compiled; it stays as it is.
        analysis: of the model.
        data: `(x, y)` or batches of it.
        reduction: of the axes of a group in norms, biases and the importances, as in `Importance`.

    Raises:
        ValueError: no data, no loss, or gradients that are not finite.

    Source: of `second_order`, LeCun et al. 1990, "Optimal brain damage", equation 1, for a factor on a unit, with the
    Fisher information for the second derivative as in Theis et al. 2018, "Faster gaze prediction with dense networks
    and Fisher pruning", equations 6 to 8. The first order stays, since networks are seldom trained to a minimum.

    Example:
        >>> from keras_prune.structured import analyse
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dense(1)])
        >>> model.set_weights([np.eye(2), np.zeros(2), np.array([[3.0], [1.0]]), np.zeros(1)])
        >>> model.compile(loss="mse")
        >>> found = features(model, analyse(model), (np.ones((4, 2)), np.full((4, 1), 3.0)))
        >>> found.column("l2_out"), found.column("second_order")
        (array([3., 1.]), array([12.,  0.]))
    """
    data = kept(data)  # walked once for gradients, once for activations
    sides = [sides_of(analysis, group) for group in analysis.groups]
    columns = _of_weights(analysis, sides, reduction)
    columns |= of_gradients(model, analysis, sides, reduction, data)
    columns |= _of_activations(model, analysis, data)
    size = np.hypot(columns.pop("mean_signed"), columns["std_activation"])
    columns["output"] = size * columns["l2_out"]
    columns |= _of_place(analysis)
    columns |= {f"rank_{name}": _ranks(analysis, columns[name]) for name in RANKED}
    return Features(tuple(columns), np.stack(list(columns.values()), axis=1))


@dataclasses.dataclass(frozen=True)
class _Sides:
    """The slots of a group's trainable variables (by number), by what they are to a unit."""

    made: tuple[int, ...]
    read: tuple[int, ...]
    bias: tuple[int, ...]
    scale: tuple[int, ...]

    @property
    def every(self) -> tuple[int, ...]:
        return self.made + self.read + self.bias + self.scale


def sides_of(analysis: Analysis, group: Group) -> _Sides:
    """Tell a group's slots apart. Where no layer reads its units as an input (heads), the last kernel is the reader."""
    nodes = {node.path: node for node in reversed(list(analysis.graph.walk()))}
    factors = {
        id(layer.gamma if hasattr(layer, "gamma") else layer.scale)
        for layer in layers_in(analysis.graph.model)
        if isinstance(layer, NORMALISATIONS)
    }
    made: list[int] = []
    reads: list[int] = []
    bias: list[int] = []
    scale: list[int] = []
    for i in group.slots:
        slot = analysis.slots[i]
        if slot.variable is None or not slot.variable.trainable:
            continue
        if id(slot.variable) in factors:
            scale.append(i)
        elif len(slot.variable.shape) == 1 or slot.variable.name == "bias":  # those of heads and of GRU have two axes
            bias.append(i)
        else:
            taken = [e.labels for dims in analysis.inputs_of[id(nodes[slot.path])] for e in dims if e is not None]
            (reads if any(np.isin(slot.labels, labels).any() for labels in taken) else made).append(i)
    if not reads and len(made) > 1:
        reads.append(made.pop())
    return _Sides(tuple(made), tuple(reads), tuple(bias), tuple(scale))


def _reduced(
    analysis: Analysis, slots: Sequence[Sequence[int]], values: Values, reduction: str, empty: float = 0.0
) -> Scores:
    """One value a unit from those of its slots, which are given for each group; `empty` where there are none."""
    result = np.full(analysis.size, empty)
    for group, on in zip(analysis.groups, slots, strict=True):
        if on:
            rows = np.stack([spread(analysis.slots[i], group, values[i]) for i in on])
            result[group.start : group.stop] = REDUCTIONS[reduction](rows)
    return result


def _of_weights(analysis: Analysis, sides: Sequence[_Sides], reduction: str) -> Columns:
    absolute: dict[int, Array] = {}
    squares: dict[int, Array] = {}
    numbers: dict[int, Array] = {}
    for i in {i for side in sides for i in side.every}:
        variable, axis = analysis.slots[i].variable, analysis.slots[i].axis
        assert variable is not None
        weight = read(variable).astype(np.float64)
        absolute[i], squares[i] = over_others(np.abs(weight), axis), over_others(np.square(weight), axis)
        numbers[i] = np.full(weight.shape[axis], weight.size / weight.shape[axis])
    made, reads = [side.made for side in sides], [side.read for side in sides]
    return {
        "l1_in": _reduced(analysis, made, absolute, reduction),
        "l2_in": np.sqrt(_reduced(analysis, made, squares, reduction)),
        "l1_out": _reduced(analysis, reads, absolute, reduction),
        "l2_out": np.sqrt(_reduced(analysis, reads, squares, reduction)),
        "bias": _reduced(analysis, [side.bias for side in sides], absolute, reduction),
        "scale": _reduced(analysis, [side.scale for side in sides], absolute, reduction, empty=1.0),
        "fan_in": _reduced(analysis, made, numbers, "sum"),
        "fan_out": _reduced(analysis, reads, numbers, "sum"),
    }


def of_gradients(model: keras.Model, analysis: Analysis, sides: Sequence[_Sides], reduction: str, data: Any) -> Columns:
    """One pass forward and back. What factors on units do cannot be told from statistics of single weights."""
    slots = {i: analysis.slots[i] for side in sides for i in side.every}
    variables = {id(v): v for slot in slots.values() if (v := slot.variable) is not None}
    targets = targets_of(model, variables.values())
    weights = {key: read(v).astype(np.float64) for key, v in variables.items()}
    absolute = {key: np.zeros(w.shape) for key, w in weights.items()}
    squared = {key: np.zeros(w.shape) for key, w in weights.items()}
    reads = [side.read for side in sides]
    factors, sizes = [], []
    for batch in Batches(data, model, labels=True):
        _, found = loss_gradients(model, batch, targets)
        gradients = dict(zip(variables, found, strict=True))
        for key, g in gradients.items():
            absolute[key] += np.abs(g)
            squared[key] += np.square(g)
        products = {key: weights[key] * g for key, g in gradients.items()}
        along = {i: over_others(products[id(slots[i].variable)], slots[i].axis) for on in reads for i in on}
        factors.append(_reduced(analysis, reads, along, "sum"))
        sizes.append(batch.size)
    every = [side.every for side in sides]
    columns: Columns = {}
    for name, importance in (("gradient", Gradient()), ("taylor", Taylor()), ("fisher", Fisher())):
        values = {
            i: importance.of_axis(
                weights[key],
                slot.axis,
                {"abs_gradient": absolute[key] / len(sizes), "squared_gradient": squared[key] / len(sizes)},
            )
            for i, slot in slots.items()
            for key in [id(slot.variable)]
        }
        columns[name] = _reduced(analysis, every, values, reduction)
    q, n = np.stack(factors), np.array(sizes)[:, None]
    mean = (q * n).sum(axis=0) / n.sum()
    columns["first_order"] = -mean
    columns["curvature"] = np.square(mean) + (n * np.square(q - mean)).mean(axis=0)
    columns["second_order"] = columns["first_order"] + columns["curvature"] / 2.0
    return columns


def _of_activations(model: keras.Model, analysis: Analysis, data: Any) -> Columns:
    """Several statistics of activations in one walk over the data."""
    watched = read_tensors(analysis)
    sums: dict[Any, Array] = {}
    means: dict[Any, list[Array]] = {}
    for tensor, values in watch(model, analysis, watched, data):
        sums[tensor] = sums.get(tensor, 0.0) + _moments(values) * len(values)
        means.setdefault(tensor, []).append(values.mean(axis=1, keepdims=True))
    found: dict[str, dict[Any, Array]] = {"entropy": {}}
    for tensor, parts in means.items():
        samples = np.concatenate(parts)
        absolute, share, mean, square = sums[tensor] / len(samples)
        deviation = np.sqrt(np.maximum(square - np.square(mean), 0.0))
        found["entropy"][tensor] = Entropy().of_values(samples)
        for name, row in (
            ("mean_activation", absolute),
            ("apoz", share),
            ("mean_signed", mean),
            ("std_activation", deviation),
        ):
            found.setdefault(name, {})[tensor] = row
    return {name: _filled(of_units(analysis, watched, rows)) for name, rows in found.items()}


def _moments(values: Array) -> Array:
    """Mean of |a|, share above 0, mean of a and of a squared, `[4, indices]`, from `[samples, positions, indices]`."""
    mean, square = values.mean(axis=(0, 1)), np.square(values).mean(axis=(0, 1))
    return np.stack([MeanActivation().of_values(values), APoZ().of_values(values), mean, square])


def _filled(scores: Scores) -> Scores:
    """Units that no layer with a kernel reads take the median of the others."""
    known = np.isfinite(scores)
    return np.where(known, scores, np.median(scores[known]) if known.any() else 0.0)


def _of_place(analysis: Analysis) -> Columns:
    paths = list(dict.fromkeys(node.path for node in analysis.graph.walk()))
    place = {path: i / max(1, len(paths) - 1) for i, path in enumerate(paths)}
    sizes = [group.size for group in analysis.groups]
    depths = [place[analysis.slots[group.slots[0]].path] for group in analysis.groups]
    return {"depth": np.repeat(depths, sizes), "group_size": np.repeat(np.array(sizes, np.float64), sizes)}


def _ranks(analysis: Analysis, values: Scores) -> Scores:
    ranks = np.zeros(analysis.size)
    for group in analysis.groups:
        order = np.argsort(np.argsort(values[group.start : group.stop], kind="stable"))
        ranks[group.start : group.stop] = order / max(1, group.size - 1)
    return ranks
