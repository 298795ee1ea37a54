"""How many bytes of activations live at once while a model runs, call by call, for any number of units kept."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from keras_prune.graph.graph import Graph, Inside
from keras_prune.structured.analysis.groups import Analysis, Units
from keras_prune.structured.analysis.widths import Kept, Products, Widths
from keras_prune.structured.rules.registry import Dims

__all__ = ["Memory", "item_bytes"]

Bytes = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    """The calls of a model in the order in which they run, those of nested models in their place.

    Attributes:
        paths: of the calls.
        tensors: for each tensor: the graph that it is of, its number there, and its axes.
        made: by which call each tensor is made; -1 for an input.
        last: the last call that each tensor lives at.
        weights: tensors that are variables of layers seen through: they are no activations.
    """

    paths: list[str] = dataclasses.field(default_factory=list)
    tensors: list[tuple[Graph, int, Dims | None]] = dataclasses.field(default_factory=list)
    made: list[int] = dataclasses.field(default_factory=list)
    last: list[int] = dataclasses.field(default_factory=list)
    weights: set[int] = dataclasses.field(default_factory=set)

    def new(self, graph: Graph, number: int, dims: Dims | None) -> int:
        """A tensor that the call at hand makes."""
        self.tensors.append((graph, number, dims))
        self.made.append(len(self.paths) - 1)
        self.last.append(len(self.paths) - 1)
        return len(self.tensors) - 1

    def run(self, analysis: Analysis, graph: Graph, inputs: Sequence[int]) -> list[int]:
        """Run a graph on these tensors; gives those of its results."""
        known = dict(zip(graph.inputs, inputs, strict=True))
        if isinstance(graph, Inside):
            known.update({number: self.new(graph, number, None) for number in graph.own})
            self.weights.update(known[number] for number in graph.own)
        for node in graph.nodes:
            if node.body is not None:
                results = self.run(analysis, node.body, [known[i] for i in node.entries])
            else:
                self.paths.append(node.path)
                for number in node.inputs:
                    self.last[known[number]] = len(self.paths) - 1
                effect = analysis.effects[id(node)]
                results = [self.new(graph, i, x) for i, x in zip(node.outputs, effect.outputs, strict=True)]
            known.update(zip(node.outputs, results, strict=True))
        return [known[i] for i in graph.outputs]


class Memory:
    r"""Activation memory by the tensors of a model's graph, for one sample.

    Calls run in the topological order of the graph. Each writes results of its own, and a tensor is freed after the
    last call that reads it; the model's results live to the end. While call s runs, there live

    $$M_s = \sum_{t: made_t \le s \le last_t} bytes_t$$

    and the peak is the largest of them. A tensor has the bytes of its dtype, which the compute policy gives; an axis of
    unknown length counts as 1. What a layer makes inside a call (scores of attention, states of a recurrent layer) is
    no tensor of the graph, and weights are no activations.

    Args:
        analysis: of the model.
    """

    def __init__(self, analysis: Analysis) -> None:
        graph, run = analysis.graph, _Run()
        results = run.run(analysis, graph, [run.new(graph, i, None) for i in graph.inputs])
        self.paths = tuple(run.paths)
        axes: list[Units] = []
        rows: list[tuple[float, list[int]]] = []
        for i, (tensors, number, dims) in enumerate(run.tensors):
            shape = tensors.shapes[number]
            factor = 0.0 if i in run.weights else item_bytes(tensors.symbols[number].dtype)
            on: list[int] = []
            for place, size in enumerate(shape[1:], start=1):
                entry = None if dims is None else dims[place]
                units = None if entry is None else analysis.units_of(entry.labels)
                if units is not None and (units >= 0).any():
                    on.append(len(axes))
                    axes.append(units)
                else:
                    unknown = size is None or (isinstance(tensors, Inside) and size == tensors.free)
                    factor *= 1 if unknown or size is None else size
            rows.append((factor, on))
        self._widths = Widths(analysis.groups, axes)
        self._sizes = Products(rows, len(axes))
        self._made = np.array(run.made, np.int64)
        self._start = np.maximum(self._made, 0)
        self._stop = np.maximum(np.array(run.last, np.int64), 0) + 1
        self._stop[results] = max(len(run.paths), 1)

    def made(self, kept: Kept) -> Bytes:
        """Bytes of the results of each call, `[calls]`."""
        sizes, of_calls = self._bytes(kept), self._made >= 0
        return np.asarray(np.bincount(self._made[of_calls], sizes[of_calls], len(self.paths)), np.int64)

    def live(self, kept: Kept) -> Bytes:
        """Bytes of all tensors that live while each call runs, `[calls]`; of the inputs, if there is no call."""
        sizes, steps = self._bytes(kept), max(len(self.paths), 1)
        begun = np.bincount(self._start, sizes, steps + 1)
        ended = np.bincount(self._stop, sizes, steps + 1)
        return np.asarray(np.cumsum(begun - ended)[:steps], np.int64)

    def peak(self, kept: Kept) -> int:
        """The most bytes that live at once."""
        return int(self.live(kept).max())

    def _bytes(self, kept: Kept) -> npt.NDArray[np.float64]:
        return np.ceil(self._sizes(self._widths(kept)))


def item_bytes(dtype: str) -> float:
    """Bytes of a number, by the name of its type.

    Example:
        >>> item_bytes("float32"), item_bytes("bfloat16"), item_bytes("bool"), item_bytes("int4")
        (4.0, 2.0, 1.0, 0.5)
    """
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) / 8 if bits else 1.0
