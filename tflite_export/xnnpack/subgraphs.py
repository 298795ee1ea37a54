"""A subgraph of a `ModelT` as a graph: who computes a tensor, who reads it, which constant stands behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.file.flatbuffer import DTYPES, operator_name
from tflite_export.file.integrity import text

__all__ = ["UNPACKING", "Graph", "Stored"]

UNPACKING = frozenset({"DENSIFY", "DEQUANTIZE"})
"""Operators that XNNPACK's delegate runs once, when the file is loaded, where they read a constant."""


@dataclass(frozen=True)
class Stored:
    """The constant that a tensor is unpacked from.

    Args:
        tensor: its index.
        densified: a DENSIFY unpacks it, or is assumed to.
        zeros: number of its zeros.
        size: number of its elements, dense.
    """

    tensor: int
    densified: bool
    zeros: int
    size: int


class Graph:
    """One subgraph.

    Args:
        model: a sound `ModelT`: see `tflite_export.file.flatbuffer.read`.
        number: of the subgraph.
        assume_sparse: tensors of this subgraph, dense constants, to be treated as if a DENSIFY unpacked them.
    """

    def __init__(self, model: Any, number: int, assume_sparse: Collection[int] = ()) -> None:
        self.model = model
        self.number = number
        subgraph = model.subgraphs[number]
        self.tensors: list[Any] = subgraph.tensors or []
        self.operators: list[Any] = subgraph.operators or []
        self.names = [operator_name(model, operator) for operator in self.operators]
        self.outputs = frozenset(int(index) for index in _indices(subgraph.outputs))
        self._assumed = frozenset(assume_sparse)
        self._stored: dict[int, Stored | None] = {}
        self.producer: dict[int, int] = {}
        consumers: defaultdict[int, list[int]] = defaultdict(list)
        for position, operator in enumerate(self.operators):
            for tensor in dict.fromkeys(self.inputs(position)):
                consumers[tensor].append(position)
            for tensor in _indices(operator.outputs):
                self.producer[int(tensor)] = position
        self.consumers: dict[int, list[int]] = dict(consumers)

    def inputs(self, position: int) -> list[int]:
        """Return the tensors that an operator reads, left-out ones not."""
        return [int(index) for index in _indices(self.operators[position].inputs) if index >= 0]

    def input(self, position: int, slot: int) -> int | None:
        """Return the tensor in one of an operator's input slots, None where it is left out."""
        indices = _indices(self.operators[position].inputs)
        return int(indices[slot]) if slot < len(indices) and indices[slot] >= 0 else None

    def output(self, position: int) -> int | None:
        """Return the first tensor that an operator computes."""
        indices = _indices(self.operators[position].outputs)
        return int(indices[0]) if len(indices) else None

    def shape(self, tensor: int | None) -> tuple[int, ...] | None:
        """Return the shape of a tensor; None where it is unknown."""
        if tensor is None or self.tensors[tensor].shape is None:
            return None
        return tuple(int(size) for size in self.tensors[tensor].shape)

    def name(self, tensor: int) -> str:
        """Return the name of a tensor."""
        return text(self.tensors[tensor].name)

    def values(self, tensor: int | None) -> NDArray[Any] | None:
        """Return the stored values of a constant, flat; of a sparse one only those that are stored."""
        if tensor is None:
            return None
        data = self.model.buffers[self.tensors[tensor].buffer].data
        dtype = DTYPES.get(self.tensors[tensor].type)
        if data is None or len(data) == 0 or dtype is None:
            return None
        return np.asarray(data, dtype=np.uint8).view(dtype)

    def stored(self, tensor: int | None) -> Stored | None:
        """Return the constant behind a tensor, None for one that is computed when the file runs."""
        if tensor is None:
            return None
        chain: list[tuple[int, bool]] = []
        root = tensor
        while root not in self._stored and (position := self.producer.get(root)) is not None:
            source = self.input(position, 0)
            if self.names[position] not in UNPACKING or source is None:
                break
            chain.append((root, self.names[position] == "DENSIFY"))
            root = source
        if root not in self._stored:
            self._stored[root] = None if root in self.producer else self._constant(root)
        found = self._stored[root]
        for index, densifies in reversed(chain):
            found = replace(found, densified=True) if found is not None and densifies else found
            self._stored[index] = found
        return found

    def _constant(self, root: int) -> Stored | None:
        values, shape = self.values(root), self.shape(root) or ()
        if values is None and self.tensors[root].sparsity is None:
            return None
        size = prod(shape)
        kept = 0 if values is None else int(np.count_nonzero(values))
        return Stored(root, root in self._assumed, size - kept, size)

    @cached_property
    def unpacking(self) -> frozenset[int]:
        """Positions of operators that only unpack a constant."""
        return frozenset(
            position
            for position, name in enumerate(self.names)
            if name in UNPACKING and self.stored(self.output(position)) is not None
        )


def _indices(found: Any) -> Any:
    return found if found is not None else ()
