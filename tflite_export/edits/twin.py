"""The edit that makes the twin of a sparse file: the same zeros, stored dense. One that beats it uses sparse kernels.

No message of a release build says whether XNNPACK's sparse kernels were switched on. A twin holds the same operators,
the same values and no sparsity metadata, so a ratio of 1.0 against it says that they were not.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tflite_export.errors import FlatbufferError
from tflite_export.file import flatbuffer
from tflite_export.file.integrity import text
from tflite_export.file.tflite_file import Change, TFLiteFile

__all__ = ["NAME", "decode", "is_sparse", "twin", "unfold"]

NAME = "decode"

_WAY_OUT = "The file is damaged, or made by another tool: report it."


def is_sparse(content: bytes, subject: str = "the file") -> bool:
    """Return whether a file holds a sparse tensor or a DENSIFY.

    Raises:
        FlatbufferError: it is damaged.
    """
    model = TFLiteFile(content, subject).model
    return any(tensor.sparsity is not None for graph in model.subgraphs for tensor in graph.tensors or []) or any(
        flatbuffer.operator_name(model, operator) == "DENSIFY"
        for graph in model.subgraphs
        for operator in graph.operators or []
    )


def twin(content: bytes, subject: str = "the file") -> bytes:
    """Return a file with every sparse tensor stored dense; one without any is returned as it is.

    Raises:
        FlatbufferError: it is damaged.
    """
    return TFLiteFile(content, subject).edited(lambda model: decode(model, subject))[0].content


def decode(model: Any, subject: str = "the file") -> tuple[Change, ...]:
    """Store every sparse tensor dense and take DENSIFY operators out, in place.

    Args:
        model: a `ModelT`.
        subject: what to call the file in errors.

    Returns:
        One change for each tensor that was sparse, and each DENSIFY.

    Raises:
        FlatbufferError: a tensor's sparsity does not describe its values.
    """
    decoded: dict[int, int] = {}
    changes = []
    for graph in model.subgraphs:
        for tensor in graph.tensors or []:
            if tensor.sparsity is not None:
                # Tensors that share a buffer go on sharing one.
                if tensor.buffer not in decoded:
                    decoded[tensor.buffer] = flatbuffer.add_buffer(model, _dense(model, tensor, subject))
                tensor.buffer, tensor.sparsity = decoded[tensor.buffer], None
                changes.append(Change(NAME, text(tensor.name), "sparse -> dense"))
        changes += _take_out_densify(model, graph)
    for index in decoded:
        model.buffers[index].data = None
    return tuple(changes)


def _take_out_densify(model: Any, graph: Any) -> list[Change]:
    kept, same = [], {}
    for operator in graph.operators or []:
        if flatbuffer.operator_name(model, operator) == "DENSIFY":
            same[int(operator.outputs[0])] = int(operator.inputs[0])
        else:
            kept.append(operator)
    for operator in kept:
        if operator.inputs is not None:
            operator.inputs = np.array([same.get(int(i), int(i)) for i in operator.inputs], dtype=np.int32)
    graph.outputs = np.array([same.get(int(i), int(i)) for i in graph.outputs], dtype=np.int32)
    graph.operators = kept
    return [Change(NAME, text(graph.tensors[index].name), "DENSIFY taken out") for index in same]


def _dense(model: Any, tensor: Any, subject: str) -> NDArray[Any]:
    name = text(tensor.name)
    dtype = flatbuffer.DTYPES.get(tensor.type)
    data = model.buffers[tensor.buffer].data
    if dtype is None or data is None:
        raise FlatbufferError(
            f"{subject}, tensor '{name}'", "a sparse tensor must hold values of a plain type", tensor.type, _WAY_OUT
        )
    values = np.asarray(data, dtype=np.uint8).view(dtype)
    try:
        return unfold(tuple(int(size) for size in tensor.shape), tensor.sparsity, values)
    except (ValueError, IndexError) as error:
        raise FlatbufferError(
            f"{subject}, tensor '{name}'", "its sparsity must describe its values", error, _WAY_OUT
        ) from error


def unfold(shape: tuple[int, ...], sparsity: Any, values: NDArray[Any]) -> NDArray[Any]:
    """Return the dense array that `SparsityParameters` of any traversal order and block map describe.

    Level by level from the outside, each entry becomes its children: all of a dense level, those listed by a
    compressed one. What remains at the end is one coordinate a level for each stored value.

    Args:
        shape: of the dense array, TFLite layout.
        sparsity: a `SparsityParametersT`.
        values: the stored values, one-dimensional.

    Raises:
        ValueError: the levels do not describe so many values.
        IndexError: an index leads outside the shape.
    """
    rank = len(shape)
    order = [int(level) for level in sparsity.traversalOrder]
    blocked = [int(d) for d in (sparsity.blockMap if sparsity.blockMap is not None else [])]
    if sorted(order) != list(range(rank + len(blocked))) or len(sparsity.dimMetadata) != len(order):
        raise ValueError(f"traversal order {order} of rank {rank} and block map {blocked}")
    count = 1
    coordinates: dict[int, NDArray[np.int64]] = {}
    limit = prod(shape)
    if limit * values.itemsize > flatbuffer.LARGEST_FILE:
        raise ValueError(f"shape {shape} is larger than a file can be")
    for level, metadata in zip(order, sparsity.dimMetadata, strict=True):
        if metadata.format == schema.DimensionType.DENSE:
            counts = np.full(count, metadata.denseSize, dtype=np.int64)
            own = np.tile(np.arange(metadata.denseSize, dtype=np.int64), count)
        else:
            segments = np.asarray(metadata.arraySegments.values, dtype=np.int64)
            own = np.asarray(metadata.arrayIndices.values, dtype=np.int64)
            counts = np.diff(segments)
            if len(counts) != count or (counts < 0).any() or segments[0] != 0 or segments[-1] != len(own):
                raise ValueError(f"segments of {len(counts)} entries where {count} are, or out of order")
        if counts.sum() > limit:
            raise ValueError(f"more than the {limit} values of shape {shape}")
        coordinates = {known: np.repeat(column, counts) for known, column in coordinates.items()}
        coordinates[level] = own
        count = len(own)
    if count != len(values):
        raise ValueError(f"{len(values)} values where the levels describe {count}")
    place = [coordinates[dimension] for dimension in range(rank)]
    sizes = {level: int(m.denseSize) for level, m in zip(order, sparsity.dimMetadata, strict=True)}
    for number, dimension in enumerate(blocked):
        place[dimension] = place[dimension] * sizes[rank + number] + coordinates[rank + number]
    dense = np.zeros(shape, dtype=values.dtype)
    dense[tuple(place)] = values
    return dense
