"""The edit that applies a plan: weights stored sparse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_prune.devices import Encoding
from tflite_export.file import flatbuffer
from tflite_export.file.encoding import SparseArray
from tflite_export.file.tflite_file import Change
from tflite_export.plan.eligibility import Weight
from tflite_export.plan.plan import Plan, encoded

__all__ = ["NAME", "encode"]

NAME = "encode"


def encode(model: Any, plan: Plan, weights: Iterable[Weight]) -> tuple[Change, ...]:
    """Store the weights of a dense file as planned, in place.

    Changed are: the buffers and the sparsity of the planned tensors; for a sparse kernel, the version of the
    FULLY_CONNECTED operators that read one, and a float16 weight becomes the float32 one that its DEQUANTIZE
    made; else a DENSIFY before the first reader. Everything else stays as the converter wrote it.

    Args:
        model: the `ModelT` of the converter's file.
        plan: what to store how.
        weights: the weights that the plan was made from.

    Returns:
        One change for each weight that is stored sparse.
    """
    by_tensors = {weight.tensors: weight for weight in weights}
    for line in plan.sparse:
        weight = by_tensors[line.tensors]
        sparse = encoded(weight, line.encoding)
        assert sparse is not None  # plan.sparse holds no dense line
        buffer = flatbuffer.add_buffer(model, sparse.values)
        for number, index in line.tensors:
            subgraph = model.subgraphs[number]
            model.buffers[subgraph.tensors[index].buffer].data = None
            if line.encoding is Encoding.DENSIFY:
                _store(subgraph, index, buffer, sparse)
                flatbuffer.densify(model, subgraph, index)
                # The operators that read it find its scales there.
                subgraph.tensors[-1].quantization = subgraph.tensors[index].quantization
                continue
            for read in _drop_dequantize(model, subgraph, index) if weight.dequantized else [index]:
                _store(subgraph, read, buffer, sparse)
                _raise_version(model, subgraph, read)
    return tuple(Change(NAME, line.name, f"dense -> {line.encoding.value}") for line in plan.sparse)


def _store(subgraph: Any, index: int, buffer: int, sparse: SparseArray) -> None:
    """Let a tensor hold a sparse array."""
    tensor = subgraph.tensors[index]
    tensor.buffer = buffer
    tensor.sparsity = flatbuffer.sparsity_parameters(sparse)


def _drop_dequantize(model: Any, subgraph: Any, index: int) -> list[int]:
    """Remove the DEQUANTIZE operators that read a tensor; return what they gave out."""
    dropped = [
        operator
        for operator in subgraph.operators
        if flatbuffer.operator_name(model, operator) == "DEQUANTIZE" and (np.asarray(operator.inputs) == index).any()
    ]
    subgraph.operators = [operator for operator in subgraph.operators if not any(operator is one for one in dropped)]
    return [int(operator.outputs[0]) for operator in dropped]


def _raise_version(model: Any, subgraph: Any, index: int) -> None:
    """Give the FULLY_CONNECTED operators that read a tensor, and only those, the sparse version."""
    for operator in subgraph.operators:
        if (np.asarray(operator.inputs) == index).any():
            version = max(flatbuffer.SPARSE_FULLY_CONNECTED_VERSION, model.operatorCodes[operator.opcodeIndex].version)
            operator.opcodeIndex = flatbuffer.operator_code(model, schema.BuiltinOperator.FULLY_CONNECTED, version)
