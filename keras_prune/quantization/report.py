"""What of a model trains quantization-aware, and what does not, and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import layers as kl

from keras_prune.keras_seam import functional_in, layers_in
from keras_prune.layer_kinds import kernels_of
from keras_prune.models.stand_ins import StandIn, stand_ins_in
from keras_prune.quantization.kinds import refusal_of, scaled_kernels
from keras_prune.quantization.layers import FakeQuantize, QuantizedKernels
from keras_prune.quantization.recurrent import QuantizedRecurrent
from keras_prune.quantization.steps import refusal_of_recurrent
from keras_prune.scope import Skipped, paths_of
from keras_prune.text.tables import plain_table

__all__ = ["LEFT_OUT", "QuantizationReport", "Range", "report"]

LEFT_OUT = "left out by filters, or put into the model afterwards"


@dataclasses.dataclass(frozen=True)
class Range:
    """The range of a tensor.

    Attributes:
        name: of the layer that rounds it.
        low, high: its ends; of several ranges the outermost.
        source: how it comes about: "moving", "trained" or "fixed".
        steps: the ends of the range of each step, where each has one of its own.
    """

    name: str
    low: float
    high: float
    source: str
    steps: tuple[tuple[float, float], ...] = ()

    def __str__(self) -> str:
        steps = f", {len(self.steps)} ranges, one for each step" if self.steps else ""
        return f"{self.low:.4g} to {self.high:.4g} ({self.source}{steps})"


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """What of a model trains quantization-aware; `str()` of it is a table.

    Attributes:
        kernels: paths of the kernels that are rounded.
        ranges: of the tensors that are rounded.
        skipped: kernels that are not, each with the reason.
    """

    kernels: tuple[str, ...]
    ranges: tuple[Range, ...]
    skipped: tuple[Skipped, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = [(path, "kernel", "int8, a scale for each output") for path in self.kernels]
        rows += [(one.name, "tensor", f"int8, {one}") for one in self.ranges]
        rows += [(one.path, "kernel", f"not rounded: {one.reason}") for one in self.skipped]
        columns = zip(*rows, strict=True) if rows else ((), (), ())
        return plain_table("Quantization", dict(zip(("name", "what", "how"), map(list, columns), strict=True)))


def report(model: keras.Model) -> QuantizationReport:
    """Return what of a model trains quantization-aware, and what does not.

    Args:
        model: from `quantize_aware`, or any other built one, of which nothing is rounded.

    Example:
        >>> model = keras.Sequential([keras.Input((4,), dtype="int32"), keras.layers.Embedding(9, 3, name="words")])
        >>> [str(one.path) for one in report(model).skipped]
        ['words/embeddings']
    """
    paths = paths_of(model)
    layers = stand_ins_in(model)
    inside = {id(layer.layer) for layer in layers if isinstance(layer, QuantizedKernels)}
    inside |= {id(layer.layer.cell) for layer in layers if isinstance(layer, QuantizedRecurrent)}
    reasons = _reasons(model)
    rounded: list[str] = []
    skipped: list[Skipped] = []
    for layer in layers_in(model):
        for kernel, _ in scaled_kernels(layer) if kernels_of(layer) else ():
            path = paths.get(id(kernel), kernel.path)
            if id(layer) in inside:
                rounded.append(path)
            else:
                skipped.append(Skipped(path, reasons.get(id(layer)) or refusal_of(layer) or LEFT_OUT))
    ranges = [
        Range(one.name, *one.ends, "fixed" if one.fixed is not None else one.ranges, one.ends_by_step)
        for one in layers
        if isinstance(one, FakeQuantize)
    ]
    return QuantizationReport(tuple(rounded), tuple(ranges), tuple(skipped))


def _reasons(model: keras.Model) -> dict[int, str]:
    """Why layers are not rounded that other layers call, by their ids: as the layer says that calls them."""
    reasons: dict[int, str] = {}
    for layer in layers_in(model, include_self=False):
        if isinstance(layer, StandIn) or functional_in(layer) is not None:
            continue
        for inner in layers_in(layer, include_self=False):
            reasons.setdefault(id(inner), f"inside {type(layer).__name__} {layer.name!r}, which calls it")
        if isinstance(layer, kl.RNN):
            reasons[id(layer.cell)] = reasons.get(id(layer)) or refusal_of_recurrent(layer) or LEFT_OUT
    return reasons
