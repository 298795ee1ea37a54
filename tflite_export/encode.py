"""The stage that applies a plan: sparse tensors written into a dense file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export import flatbuffer
from tflite_export.eligibility import Weight
from tflite_export.plan import Encoding, Plan, encoded


def encode(dense: bytes, plan: Plan, weights: Iterable[Weight]) -> bytes:
    """Return the file with its weights stored as planned.

    Changed are: the buffers and the sparsity of the planned tensors; for 1x4 blocks, the version of the
    FULLY_CONNECTED operators that read one; for CSR, a DENSIFY before the first reader. Everything else stays
    as the converter wrote it.

    Args:
        dense: The converter's file.
        plan: What to store how.
        weights: The weights that the plan was made from.

    Raises:
        FlatbufferError: The file cannot be read or written.
    """
    if not plan.sparse:
        return dense
    model = flatbuffer.read(dense, "the converter's file")
    by_tensors = {weight.tensors: weight for weight in weights}
    for line in plan.sparse:
        sparse = encoded(by_tensors[line.tensors], line.encoding)
        assert sparse is not None  # plan.sparse holds no dense line
        buffer = flatbuffer.add_buffer(model, sparse.values)
        for number, index in line.tensors:
            subgraph = model.subgraphs[number]
            tensor = subgraph.tensors[index]
            model.buffers[tensor.buffer].data = None
            tensor.buffer = buffer
            tensor.sparsity = flatbuffer.sparsity_parameters(sparse)
            if line.encoding is Encoding.DENSIFY:
                flatbuffer.densify(model, subgraph, index)
            else:
                _raise_version(model, subgraph, index)
    return flatbuffer.write(model)


def _raise_version(model: Any, subgraph: Any, index: int) -> None:
    """Give the FULLY_CONNECTED operators that read a tensor, and only those, the sparse version."""
    for operator in subgraph.operators:
        if (np.asarray(operator.inputs) == index).any():
            version = max(flatbuffer.SPARSE_FULLY_CONNECTED_VERSION, model.operatorCodes[operator.opcodeIndex].version)
            operator.opcodeIndex = flatbuffer.operator_code(model, schema.BuiltinOperator.FULLY_CONNECTED, version)
