"""Operators of a .tflite for an NPU: their multiplications, and those that Vela left to the processor."""

from __future__ import annotations

from math import prod
from typing import Any

from tflite_export.file.flatbuffer import operator_name
from tflite_export.file.integrity import text

__all__ = ["NPU_OPERATOR", "macs_of", "operators_of"]

NPU_OPERATOR = "ethos-u"
"""The custom operator that stands for all that the NPU computes in a compiled file."""


def operators_of(model: Any) -> list[tuple[str, str, int]]:
    """Return (name, first output, multiplications) of each operator, NPU operators left out.

    Args:
        model: a file's `ModelT`.
    """
    found = []
    for graph in model.subgraphs:
        for operator in graph.operators or []:
            code = model.operatorCodes[operator.opcodeIndex]
            if code.customCode is not None and text(code.customCode) == NPU_OPERATOR:
                continue
            output = text(graph.tensors[int(operator.outputs[0])].name) if len(operator.outputs) else ""
            found.append((operator_name(model, operator), output, macs_of(model, graph, operator)))
    return found


def macs_of(model: Any, graph: Any, operator: Any) -> int:
    r"""Return the multiplications of an operator with weights, for one run of the file; 0 for others.

    With O the number of outputs and I that of inputs, per kind:
    CONV_2D $O \cdot h \cdot w \cdot c_{in}$, DEPTHWISE_CONV_2D $O \cdot h \cdot w$, FULLY_CONNECTED $O \cdot c_{in}$,
    TRANSPOSE_CONV $I \cdot h \cdot w \cdot c_{out}$, recurrent ones: steps times the sizes of their kernels.

    Args:
        model: a file's `ModelT`, its sizes fixed.
        graph: the subgraph.
        operator: of it.
    """

    def shape(indices: Any, place: int) -> tuple[int, ...]:
        return tuple(int(size) for size in graph.tensors[int(indices[place])].shape)

    name = operator_name(model, operator)
    if name == "CONV_2D":
        return prod(shape(operator.outputs, 0)) * prod(shape(operator.inputs, 1)[1:])
    if name == "DEPTHWISE_CONV_2D":
        return prod(shape(operator.outputs, 0)) * prod(shape(operator.inputs, 1)[1:3])
    if name == "FULLY_CONNECTED":
        return prod(shape(operator.outputs, 0)) * shape(operator.inputs, 1)[-1]
    if name == "TRANSPOSE_CONV":
        kernel = shape(operator.inputs, 1)
        return prod(shape(operator.inputs, 2)) * prod(kernel[:3])
    if name == "UNIDIRECTIONAL_SEQUENCE_LSTM":
        steps = prod(shape(operator.inputs, 0)[:-1])
        kernels = [int(i) for i in operator.inputs[1:9] if i >= 0]
        return steps * sum(prod(int(size) for size in graph.tensors[i].shape) for i in kernels)
    if name == "BATCH_MATMUL":
        transposed = bool(operator.builtinOptions and operator.builtinOptions.adjX)
        return prod(shape(operator.outputs, 0)) * shape(operator.inputs, 0)[-2 if transposed else -1]
    return 0
