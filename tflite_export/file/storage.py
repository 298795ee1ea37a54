"""What a tensor's stored bytes satisfy: as many as its shape, or its sparsity, says."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export.errors import FlatbufferError

__all__ = ["BITS", "MOST_DIMENSIONS", "MOST_ELEMENTS", "check_storage"]

BITS = MappingProxyType(
    {
        code: bits
        for bits, names in (
            (2, "INT2"),
            (4, "INT4 UINT4"),
            (8, "INT8 UINT8 BOOL FLOAT8_E4M3FN FLOAT8_E5M2"),
            (16, "FLOAT16 BFLOAT16 INT16 UINT16"),
            (32, "FLOAT32 INT32 UINT32"),
            (64, "FLOAT64 INT64 UINT64 COMPLEX64"),
            (128, "COMPLEX128"),
        )
        for name in names.split()
        if (code := getattr(schema.TensorType, name, None)) is not None
    }
)
"""Bits of an element, by tensor type; the types that are missing have no fixed size."""
MOST_DIMENSIONS = 32
"""Of a tensor; no kernel takes more than 8."""
MOST_ELEMENTS = 2**40
"""Of a tensor: more than the memory of any device, and far from where a product of sizes wraps around."""

_GET_IT_AGAIN = "The file is damaged: get or export it again."


def check_storage(tensor: Any, data: Any, subject: str, *, record: bool = False) -> None:
    """Check shape, quantization, sparsity and bytes of a tensor against each other.

    Args:
        tensor: the `TensorT`.
        data: its buffer's bytes; None or empty for a computed tensor.
        subject: the file, for errors.
        record: it holds the bytes of a record, and scales and shape signature of what these stand for, if any.

    Raises:
        FlatbufferError: with the first thing that does not fit.
    """
    shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    check = _Check(subject, (tensor.name or b"").decode("utf-8", errors="replace"), shape)
    stored = 0 if data is None else len(data)
    check.require(len(shape) <= MOST_DIMENSIONS, f"tensor {{}} must have at most {MOST_DIMENSIONS} dimensions", shape)
    known = [size for size in shape if size >= 0]
    check.require(
        len(known) == len(shape) or (stored == 0 and min(shape) == -1), "sizes of tensor {} must not be negative", shape
    )
    check.require(prod(known) <= MOST_ELEMENTS, "tensor {} must have at most 2**40 elements", shape)
    signature = tensor.shapeSignature
    check.require(
        record or signature is None or len(signature) in (0, len(shape)),
        "the shape signature of tensor {} must have the rank of its shape",
        None if signature is None else len(signature),
    )
    if not record:
        _check_quantization(tensor.quantization, check)
    bits = BITS.get(tensor.type)
    if tensor.sparsity is not None:
        entries = _stored_entries(tensor.sparsity, check)
        wanted = None if bits is None else -(-entries * bits // 8)
        check.require(wanted in (None, stored), f"sparse constant {{}} must have {wanted} bytes", stored)
    elif stored and bits is not None:
        wanted = -(-prod(shape) * bits // 8)
        check.require(stored == wanted, f"constant {{}} of shape {shape} must have {wanted} bytes", stored)


@dataclass(frozen=True)
class _Check:
    """Raises, with the names of the file and the tensor; `{}` in a rule is the tensor's."""

    subject: str
    name: str
    shape: list[int]

    def require(self, holds: bool, rule: str, received: object) -> None:
        if not holds:
            raise FlatbufferError(self.subject, rule.replace("{}", self.name), received, _GET_IT_AGAIN)


def _check_quantization(quantization: Any, check: _Check) -> None:
    """Check scales against zero points and the dimension that they belong to, as LiteRT's reader does."""
    if quantization is None or quantization.scale is None or len(quantization.scale) == 0:
        return
    scales = len(quantization.scale)
    zeros = 0 if quantization.zeroPoint is None else len(quantization.zeroPoint)
    check.require(zeros in (0, 1, scales), f"tensor {{}} must have a zero point for each of {scales} scales", zeros)
    if scales == 1:
        return
    dimension = quantization.quantizedDimension
    inside = 0 <= dimension < len(check.shape)
    check.require(
        inside and check.shape[dimension] == scales,
        f"the quantized dimension of tensor {{}} must have as many entries as it has scales, {scales}",
        check.shape[dimension] if inside else f"dimension {dimension} of {check.shape}",
    )


def _stored_entries(sparsity: Any, check: _Check) -> int:
    """Return how many values a sparse tensor's levels address, each level checked."""
    shape = check.shape
    order = [] if sparsity.traversalOrder is None else [int(dim) for dim in sparsity.traversalOrder]
    block_map = [] if sparsity.blockMap is None else [int(dim) for dim in sparsity.blockMap]
    levels = sparsity.dimMetadata or []
    check.require(
        len(levels) == len(shape) + len(block_map), "levels of {} must be its dimensions and its blocks", len(levels)
    )
    check.require(
        sorted(order) == list(range(len(levels))),
        f"traversal order of {{}} must permute its {len(levels)} levels",
        order[:8],
    )
    check.require(
        len(set(block_map)) == len(block_map) and all(0 <= dim < len(shape) for dim in block_map),
        "blocks of {} must divide its dimensions, each at most once",
        block_map[:8],
    )
    sizes = shape + [0] * len(block_map)
    for place, level in zip(order, levels, strict=True):
        if place < len(shape):
            continue
        dim, block = block_map[place - len(shape)], int(level.denseSize)
        check.require(
            level.format == schema.DimensionType.DENSE and block > 0 and shape[dim] % block == 0,
            f"a block of {{}} must be dense and divide {shape[dim]}",
            block,
        )
        sizes[dim], sizes[place] = shape[dim] // block, block
    entries = 1
    for place, level in zip(order, levels, strict=True):
        entries = _entries_of_level(level, sizes[place], entries, check)
    return entries


def _entries_of_level(level: Any, size: int, parents: int, check: _Check) -> int:
    """Return the entries of a level of `size` below `parents` entries of the level above."""
    if level.format == schema.DimensionType.DENSE:
        check.require(level.denseSize == size, f"a dense level of {{}} must have {size} entries", level.denseSize)
        return parents * size
    check.require(level.format == schema.DimensionType.SPARSE_CSR, "a level of {} must be dense or CSR", level.format)
    missing = level.arraySegments is None or level.arrayIndices is None
    check.require(not missing, "a CSR level of {} must have segments and indices", None)
    segments, indices = _values(level.arraySegments), _values(level.arrayIndices)
    sound = (
        segments.size == parents + 1
        and segments[0] == 0
        and bool((np.diff(segments) >= 0).all())
        and segments[-1] == indices.size
    )
    check.require(
        sound, f"segments of {{}} must rise from 0 to {indices.size} in {parents} steps", segments[:4].tolist()
    )
    inside = bool(((indices >= 0) & (indices < size)).all())
    check.require(inside, f"indices of {{}} must be below {size}", indices[:4].tolist())
    # Within a row they rise: an index twice would have two values for one element.
    steps = np.diff(indices)
    new_row = np.zeros(indices.size + 1, dtype=bool)
    new_row[segments] = True
    check.require(
        bool(((steps > 0) | new_row[1:-1]).all()), "indices of {} must rise within a row", indices[:4].tolist()
    )
    return int(indices.size)


def _values(vector: Any) -> Any:
    return np.asarray(vector.values if vector.values is not None else [], dtype=np.int64)
