"""How the weights of a file are stored, and what reads them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tflite_export.file import flatbuffer
from tflite_export.file.integrity import text
from tflite_export.file.storage import BITS
from tflite_export.xnnpack.prediction import Analysis
from tflite_export.xnnpack.reasons import Reason

__all__ = ["WeightView", "weight_views"]

_FORMATS = {0: "dense", 1: "CSR"}


@dataclass(frozen=True)
class WeightView:
    """A constant of more than one element that an operator reads as a weight.

    Args:
        subgraph: number of its subgraph.
        tensor: its index there.
        name: its name in the file.
        shape: TFLite layout.
        dtype: number type in the file.
        encoding: `dense`, `CSR + DENSIFY`, `CSR`, `1x4 blocks`, `1x16 blocks`, or the levels of
            another sparsity.
        sparsity: share of zeros, a fraction in [0, 1].
        stored_bytes: bytes of values and index in the file.
        spmm: XNNPACK's sparse inference would read it, on a processor that has it.
        reason: by which operator, or why not.
        code: the reason's name.
    """

    subgraph: int
    tensor: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    encoding: str
    sparsity: float
    stored_bytes: int
    spmm: bool
    reason: str
    code: Reason


def weight_views(model: Any, analysis: Analysis) -> list[WeightView]:
    """Return what is stored of each weight of a file.

    Args:
        model: a sound `ModelT`: see `tflite_export.file.flatbuffer.read`.
        analysis: of it.
    """
    densified = _densified(model)
    zeros: dict[tuple[int, int], int] = {}
    views = []
    for use in analysis.weights:
        tensor = model.subgraphs[use.subgraph].tensors[use.tensor]
        shape = tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
        size = prod(shape)
        dtype = flatbuffer.DTYPES.get(tensor.type)
        if size < 2 or tensor.type not in BITS or (dtype is not None and dtype.kind == "i" and dtype.itemsize > 2):
            continue  # axes and shapes: whole numbers of 32 bits are no weights
        data = model.buffers[tensor.buffer].data
        stored = 0 if data is None else len(data)
        # Tensors may share a buffer; its zeros are counted once.
        place = (tensor.buffer, tensor.type)
        if place not in zeros:
            values = np.zeros(0, np.uint8) if data is None else np.asarray(data, dtype=np.uint8)
            zeros[place] = int(np.count_nonzero(values.view(dtype) if dtype is not None else values))
        views.append(
            WeightView(
                subgraph=use.subgraph,
                tensor=use.tensor,
                name=text(tensor.name),
                shape=shape,
                dtype=flatbuffer.TYPE_NAMES[tensor.type],
                encoding=_encoding(tensor, (use.subgraph, use.tensor) in densified),
                sparsity=max(0.0, 1.0 - zeros[place] / size),
                stored_bytes=stored + _index_bytes(tensor.sparsity),
                spmm=use.spmm,
                reason=use.reason,
                code=use.code,
            )
        )
    return views


def _densified(model: Any) -> frozenset[tuple[int, int]]:
    return frozenset(
        (number, int(index))
        for number, subgraph in enumerate(model.subgraphs)
        for operator in subgraph.operators or []
        if flatbuffer.operator_name(model, operator) == "DENSIFY"
        for index in (operator.inputs if operator.inputs is not None else ())
    )


def _encoding(tensor: Any, densified: bool) -> str:
    """Return how a constant is stored, in the words of the plan where it is one of the plan's."""
    sparsity = tensor.sparsity
    if sparsity is None:
        return "dense"
    levels = sparsity.dimMetadata or []
    order = [int(dim) for dim in (sparsity.traversalOrder if sparsity.traversalOrder is not None else ())]
    blocks = [int(dim) for dim in (sparsity.blockMap if sparsity.blockMap is not None else ())]
    formats = [_FORMATS[level.format] for level in levels]
    rank = len(levels) - len(blocks)
    plain = order == list(range(len(levels)))
    if plain and not blocks and formats == ["dense"] * (rank - 1) + ["CSR"]:
        name = "CSR"
    elif plain and blocks == [rank - 1] and rank == 2 and formats == ["dense", "CSR", "dense"]:
        name = f"1x{levels[2].denseSize} blocks"
    else:
        name = f"sparsity of levels {'/'.join(formats)}, order {order}" + (f", blocks of {blocks}" if blocks else "")
    return f"{name} + DENSIFY" if densified else name


def _index_bytes(sparsity: Any) -> int:
    if sparsity is None:
        return 0
    vectors = [v for level in sparsity.dimMetadata or [] for v in (level.arraySegments, level.arrayIndices)]
    return sum(int(np.asarray(v.values).nbytes) for v in vectors if v is not None and v.values is not None)
