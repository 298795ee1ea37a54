"""What a sound .tflite satisfies: bounded work to read it, indices in range, constants of the stated size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np

from tflite_export.errors import FlatbufferError

SCHEMA_VERSION = 3
_GET_IT_AGAIN = "The file is damaged: get or export it again."


def check_budget(model: Any, size: int, subject: str) -> None:
    """Refuse a file whose tables, followed one by one, are more than its bytes could hold.

    A table takes at least 4 bytes of its own and a name its length; offsets that overlap could otherwise make
    a small file expand without bound.

    Args:
        model: The lazy ``Model`` accessor.
        size: Bytes of the file.
        subject: What to call it in errors.

    Raises:
        FlatbufferError: The budget is exceeded.
    """
    left = 2 * size

    def spend(count: int) -> None:
        nonlocal left
        left -= count
        if left < 0:
            raise FlatbufferError(
                subject, f"its tables must fit its {size} bytes", "more entries than that", _GET_IT_AGAIN
            )

    spend(
        4 * (model.OperatorCodesLength() + model.BuffersLength() + model.MetadataLength() + model.SignatureDefsLength())
    )
    spend(4 * (model.ExternalBuffersLength() + model.ExternalBufferGroupsLength()))
    for i in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(i)
        spend(4 * (signature.InputsLength() + signature.OutputsLength()))
    for i in range(model.SubgraphsLength()):
        subgraph = model.Subgraphs(i)
        spend(4 * (1 + subgraph.TensorsLength() + subgraph.OperatorsLength()))
        for j in range(subgraph.TensorsLength()):
            tensor = subgraph.Tensors(j)
            spend(len(tensor.Name() or b"") + 4 * tensor.VariantTensorsLength())
            sparsity = tensor.Sparsity()
            spend(4 * sparsity.DimMetadataLength() if sparsity is not None else 0)


def check_model(model: Any, subject: str, dtypes: Mapping[int, np.dtype[Any]]) -> None:
    """Check the indices and sizes of a ``ModelT`` that the runtime follows unchecked.

    Raises:
        FlatbufferError: With the first thing that is wrong.
    """

    def require(holds: bool, rule: str, received: object) -> None:
        if not holds:
            raise FlatbufferError(subject, rule, received, _GET_IT_AGAIN)

    def require_range(indices: Iterable[int] | None, count: int, what: str, lowest: int = 0) -> None:
        found = np.asarray([] if indices is None else indices, dtype=np.int64)
        bad = found[(found < lowest) | (found >= count)]
        require(bad.size == 0, f"{what} must be below {count}", bad[:3].tolist())

    require(model.version == SCHEMA_VERSION, f"the schema version must be {SCHEMA_VERSION}", model.version)
    require(bool(model.subgraphs), "a model holds at least one subgraph", model.subgraphs)
    require(bool(model.buffers), "a model holds at least the empty buffer", model.buffers)
    for number, subgraph in enumerate(model.subgraphs):
        tensors = subgraph.tensors or []
        require_range(subgraph.inputs, len(tensors), f"inputs of subgraph {number}")
        require_range(subgraph.outputs, len(tensors), f"outputs of subgraph {number}")
        for tensor in tensors:
            require_range([tensor.buffer], len(model.buffers), f"the buffer of tensor {_text(tensor.name)}")
            _check_constant(model, tensor, dtypes, require)
        for operator in subgraph.operators or []:
            require_range([operator.opcodeIndex], len(model.operatorCodes or []), "operator codes")
            require_range(operator.inputs, len(tensors), "inputs of an operator", lowest=-1)
            require_range(operator.outputs, len(tensors), "outputs of an operator")
            for field in ("condSubgraphIndex", "bodySubgraphIndex", "thenSubgraphIndex", "elseSubgraphIndex"):
                called = getattr(operator.builtinOptions, field, None)
                require_range([] if called is None else [called], len(model.subgraphs), field)
    for signature in model.signatureDefs or []:
        require_range([signature.subgraphIndex], len(model.subgraphs), "subgraphs of signatures")
        count = len(model.subgraphs[signature.subgraphIndex].tensors or [])
        require_range(
            [t.tensorIndex for t in (signature.inputs or []) + (signature.outputs or [])],
            count,
            "tensors of a signature",
        )


def _check_constant(model: Any, tensor: Any, dtypes: Mapping[int, np.dtype[Any]], require: Any) -> None:
    """Check that a constant has as many bytes as its shape, or its sparsity, says."""
    data = model.buffers[tensor.buffer].data
    shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    require(
        all(size >= 0 for size in shape) or data is None,
        f"sizes of tensor {_text(tensor.name)} must not be negative",
        shape,
    )
    dtype = dtypes.get(tensor.type)
    if data is None or len(data) == 0 or dtype is None:
        return
    if tensor.sparsity is None:
        expected = prod(shape) * dtype.itemsize
        require(
            len(data) == expected,
            f"constant {_text(tensor.name)} of shape {shape} must have {expected} bytes",
            len(data),
        )
        return
    stored = _stored_values(tensor, shape, require)
    require(
        len(data) == stored * dtype.itemsize,
        f"sparse constant {_text(tensor.name)} must have {stored * dtype.itemsize} bytes",
        len(data),
    )


def _stored_values(tensor: Any, shape: list[int], require: Any) -> int:
    """Return how many values a sparse tensor's levels address, each level checked."""
    name, sparsity = _text(tensor.name), tensor.sparsity
    order = [] if sparsity.traversalOrder is None else list(sparsity.traversalOrder)
    block_map = [] if sparsity.blockMap is None else list(sparsity.blockMap)
    levels = sparsity.dimMetadata or []
    require(
        sorted(order) == list(range(len(levels))),
        f"traversal order of {name} must permute its {len(levels)} levels",
        order,
    )
    require(
        len(levels) == len(shape) + len(block_map),
        f"levels of {name} must be its dimensions and its blocks",
        len(levels),
    )
    require(
        all(0 <= dim < len(shape) for dim in block_map),
        f"blocks of {name} must divide its dimensions",
        block_map,
    )
    sizes = shape + [shape[dim] for dim in block_map]
    for position, level in enumerate(levels):
        if order[position] >= len(shape) and level.denseSize > 0:
            sizes[block_map[order[position] - len(shape)]] //= level.denseSize
    entries = 1
    for position, level in enumerate(levels):
        largest = sizes[order[position]]
        if level.format == 0:
            require(
                0 < level.denseSize <= largest,
                f"a dense level of {name} must have 1 to {largest} entries",
                level.denseSize,
            )
            entries *= level.denseSize
            continue
        missing = level.arraySegments is None or level.arrayIndices is None
        require(not missing, f"a CSR level of {name} must have segments and indices", None)
        segments = np.asarray(
            level.arraySegments.values if level.arraySegments.values is not None else [], dtype=np.int64
        )
        indices = np.asarray(level.arrayIndices.values if level.arrayIndices.values is not None else [], dtype=np.int64)
        sound = (
            segments.size == entries + 1
            and segments[0] == 0
            and bool((np.diff(segments) >= 0).all())
            and segments[-1] == indices.size
        )
        require(
            sound,
            f"segments of {name} must rise from 0 to {indices.size} in {entries} steps",
            segments[:4].tolist(),
        )
        require(
            bool(((indices >= 0) & (indices < largest)).all()),
            f"indices of {name} must be below {largest}",
            indices[:4].tolist(),
        )
        entries = indices.size
    return entries


def _text(name: bytes | None) -> str:
    return (name or b"").decode("utf-8", errors="replace")
