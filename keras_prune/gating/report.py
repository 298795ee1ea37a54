"""How many channels samples open, layer by layer, and how many multiplications those need."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from rich import box
from rich.table import Table

from keras_prune.gating.opened import Opened, gated_layers, opened_gates
from keras_prune.keras_seam import layers_in
from keras_prune.layer_kinds import kernels_of
from keras_prune.layers.gated import Gated, gated_layer
from keras_prune.models.masked_layers import HoldsMasks
from keras_prune.strip import strip
from keras_prune.structured.analysis.groups import Analysis, analyse
from keras_prune.structured.rules.registry import Cost
from keras_prune.text.plaintext import printable
from keras_prune.text.tables import plain_lines

__all__ = ["GateReport", "GatedCount", "report"]

WIDTH = 120


@dataclasses.dataclass(frozen=True)
class GatedCount:
    """One layer with gates, on data.

    Attributes:
        path: the layer's.
        kind: class of the layer inside.
        channels: its output channels.
        mean, least, most: the share of them that a sample opens: on average, the smallest and the largest.
        target: the share that it is pulled to.
        never: indices of the channels that no sample opens.
        always: indices of those that every sample opens.
        macs: multiplications with addition of the layer for one sample, its head not counted.
        macs_used: those that the open channels of a sample need, on average.
        macs_of_head: those that decide the gates.
    """

    path: str
    kind: str
    channels: int
    mean: float
    least: float
    most: float
    target: float
    never: tuple[int, ...]
    always: tuple[int, ...]
    macs: int
    macs_used: float
    macs_of_head: int


@dataclasses.dataclass(frozen=True)
class GateReport:
    """What gates do on data, layer by layer; `str(report)` is a table, `to_dict()` what JSON knows.

    Attributes:
        model: the model's name.
        samples: how many samples the data has.
        layers: those with gates.
        macs: multiplications with addition of the whole model for one sample, without the heads of gates.
        macs_used: those that remain on average if closed channels are not computed, the heads' own included. What the
            next layer could save on channels that are 0 is not counted.
    """

    model: str
    samples: int
    layers: tuple[GatedCount, ...]
    macs: int
    macs_used: float

    @property
    def share(self) -> float:
        """The mean share of open channels, of all layers together."""
        return sum(one.mean * one.channels for one in self.layers) / sum(one.channels for one in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON knows."""
        return {**dataclasses.asdict(self), "share": self.share}

    def __str__(self) -> str:
        table = Table(title=f"Gates of {self.model} on {self.samples:,} samples", title_justify="left", box=box.SIMPLE)
        table.add_column("layer", overflow="fold")
        table.add_column("around", no_wrap=True)
        for name in ("channels", "open", "a sample", "asked", "never", "always", "MACs", "used", "of gates"):
            table.add_column(name, justify="right", no_wrap=True)
        for one in self.layers:
            shares = [f"{one.mean:.1%}", f"{one.least:.0%} to {one.most:.0%}", f"{one.target:.1%}"]
            numbers = [f"{number:,.0f}" for number in (one.macs, one.macs_used, one.macs_of_head)]
            ends = [str(len(one.never)), str(len(one.always))]
            table.add_row(one.path, one.kind, str(one.channels), *shares, *ends, *numbers)
        lines = plain_lines(table, width=WIDTH)
        share = f" ({self.macs_used / self.macs:.1%})" if self.macs else ""
        lines.append(
            f"whole model: {self.macs:,} MACs; {self.macs_used:,.0f}{share} with open channels only, those for gates "
            "included. Keras and TensorFlow Lite compute closed channels, too."
        )
        return printable("\n".join(lines).strip("\n"))


def report(model: keras.Model, data: Any) -> GateReport:
    """Count how many channels of each `Gated` layer the samples open, and the multiplications that these need.

    The multiplications are those that an executor needs that computes open channels only. Keras and TensorFlow Lite do
    not skip any: closed channels are computed and multiplied by 0.

    Args:
        model: built, with `Gated` layers; it stays as it is.
        data: inputs in any form that `fit` takes; labels are not read.

    Returns:
        The report, also known as `keras_prune.gate_report(model, data)`.

    Raises:
        TypeError: it is no Keras model.
        ValueError: no layer has gates, the data does not fit, the graph cannot be traced, or a layer is called on
            something else than the samples.

    Example:
        >>> from keras_prune.layers import Gated
        >>> layer = Gated(keras.layers.Dense(2), hidden=1)
        >>> model = keras.Sequential([keras.Input((3,)), layer])
        >>> weights = [[[1.0], [0.0], [0.0]], [0.0], [[1.0, 0.0]], [-2.0, -1.0]]
        >>> for weight, value in zip(layer.head.weights, weights, strict=True):
        ...     _ = weight.assign(value)
        >>> found = report(model, np.array([[1.0, 0, 0], [3.0, 0, 0]])).layers[0]
        >>> found.mean, found.least, found.most, found.never, found.macs, found.macs_used, found.macs_of_head
        (0.25, 0.0, 0.5, (1,), 6, 1.5, 5)
    """
    opened, samples = opened_gates("gate_report", model, data)
    # Masks change no count, and their layers have no rule: those of the plain model, in the same order, are counted.
    plain = strip(model) if any(isinstance(layer, HoldsMasks) for layer in layers_in(model)) else model
    analysis = analyse(plain)
    layers = gated_layers("gate_report", plain)
    rows = tuple(_count(analysis, layer, gates) for layer, gates in zip(layers, opened, strict=True))
    heads = sum(row.macs_of_head for row in rows)
    macs = round(sum(_size(cost) for _, cost in analysis.costs)) - heads
    used = macs - sum(row.macs - row.macs_used for row in rows) + heads
    return GateReport(str(model.name), samples, rows, macs, used)


def _count(analysis: Analysis, layer: Gated, opened: Opened) -> GatedCount:
    inner = gated_layer(layer)
    own = {id(variable) for variable in inner.weights}
    head = {id(variable) for variable in layer.head.weights}
    costs = [(path, cost) for path, cost in analysis.costs if _touches(cost, own)]
    gates = np.concatenate(opened)
    shares = np.mean([calls.mean(axis=1) for calls in opened], axis=0)
    by_channel = {id(_by_channel(inner))}
    gated = [_size(cost) for _, cost in costs if _touches(cost, by_channel)]
    # Costs come in the order of a shared layer's calls, each of which has gates of its own; TimeDistributed calls a
    # layer once for each step, and has one cost for all of them.
    each = np.reshape([calls.mean() for calls in opened], (len(gated), -1)).mean(axis=1)
    saved = sum(size * (1.0 - share) for size, share in zip(gated, each, strict=True))
    macs = round(sum(_size(cost) for _, cost in costs))
    return GatedCount(
        path=costs[0][0],
        kind=type(inner).__name__,
        channels=gates.shape[1],
        mean=float(gates.mean()),
        least=float(shares.min()),
        most=float(shares.max()),
        target=layer.share,
        never=tuple(np.flatnonzero(~gates.any(axis=0)).tolist()),
        always=tuple(np.flatnonzero(gates.all(axis=0)).tolist()),
        macs=macs,
        macs_used=float(macs - saved),
        macs_of_head=round(sum(_size(cost) for _, cost in analysis.costs if _touches(cost, head))),
    )


def _by_channel(inner: Any) -> keras.Variable:
    """The kernel of which a closed channel needs nothing: of a separable layer, the second."""
    kernel: keras.Variable = getattr(inner, list(kernels_of(inner) or ())[-1])
    return kernel


def _touches(cost: Cost, variables: set[int]) -> bool:
    return any(isinstance(part, tuple) and id(part[0]) in variables for part in cost.parts)


def _size(cost: Cost) -> float:
    sizes = [part[0].shape[part[1]] if isinstance(part, tuple) else len(part) for part in cost.parts]
    return cost.factor * math.prod(sizes)
