"""The rewrites of a .tflite that change ranks of tensors, for XNNPACK's sparse inference.

Read in XNNPACK's `src/subgraph.c`, `xnn_check_nchw_compatibility`: ADD and MUL may stand in it where both
operands have rank 4, and where a constant operand comes second, the first has one dimension other than 1 at most.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export.file import flatbuffer
from tflite_export.file.tflite_file import Change

__all__ = ["NAME", "lower_pooled_outputs", "raise_scalar_constants"]

NAME = "ranks"
_FLOATS = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16)


def raise_scalar_constants(model: Any) -> tuple[Change, ...]:
    """Give scalars that are added to or multiplied with a tensor of rank 4 the shape [1, 1, 1, 1], in place.

    The hard-sigmoid of MobileNetV3's squeeze-and-excitation ends in such a MUL. A scalar that others read as
    well is left to them, and the MUL or ADD gets a tensor of its own, of the same buffer. Beside a map the
    constant is put first. A vector of channels stays: of rank 4, it would be read in the wrong layout.

    Args:
        model: a `ModelT`, dense, float.

    Returns:
        One change for each operator.
    """
    changes = []
    for subgraph in model.subgraphs:
        uses = [
            (operator, slot)
            for operator in subgraph.operators or []
            if flatbuffer.operator_name(model, operator) in ("ADD", "MUL")
            for slot in (0, 1)
            if _scalar(model, subgraph, operator.inputs[slot]) is not None
            and _rank(subgraph, operator.inputs[1 - slot]) == 4
        ]
        raised: dict[int, int] = {}
        for operator, slot in uses:
            scalar, other = int(operator.inputs[slot]), int(operator.inputs[1 - slot])
            if scalar not in raised:
                raised[scalar] = _raised(model, subgraph, scalar, [one for one, _ in uses])
            first = slot == 0 or _is_map(subgraph, other)
            operator.inputs = np.array([raised[scalar], other] if first else [other, raised[scalar]], dtype=np.int32)
            what = "scalar constant -> shape [1, 1, 1, 1]" + ", put first" * (first and slot == 1)
            changes.append(Change(NAME, _name(subgraph, int(operator.outputs[0])), what))
    return tuple(changes)


def lower_pooled_outputs(model: Any) -> tuple[Change, ...]:
    """Write a spatial mean with its dimensions kept, where it is an output, as a mean without and a RESHAPE, in place.

    XNNPACK gets it wrong as a file's output where its sparse inference is on, without an error. In the Keras
    model the same would be in vain: TensorFlow's converter makes one MEAN of the two again.

    Args:
        model: a `ModelT`, float.

    Returns:
        One change for each output.
    """
    changes = []
    for subgraph in model.subgraphs:
        outputs = {int(index) for index in _indices(subgraph.outputs)}
        operators = []
        for operator in subgraph.operators or []:
            operators.append(operator)
            index = int(operator.outputs[0]) if len(_indices(operator.outputs)) else -1
            if index in outputs and _is_kept_mean(model, subgraph, operator):
                operators.append(_lower(model, subgraph, operator, index))
                changes.append(Change(NAME, _name(subgraph, index), "mean with dimensions kept -> mean and RESHAPE"))
        if subgraph.operators is not None:
            subgraph.operators = operators
    return tuple(changes)


def _indices(values: Any) -> list[int]:
    return [] if values is None else [int(value) for value in values]


def _rank(subgraph: Any, index: int) -> int:
    shape = subgraph.tensors[index].shape
    return 0 if shape is None else len(shape)


def _is_map(subgraph: Any, index: int) -> bool:
    return sum(int(size) != 1 for size in subgraph.tensors[index].shape) > 1


def _scalar(model: Any, subgraph: Any, index: int) -> Any:
    """Return the value of a float constant of rank 0, or of what DEQUANTIZE makes of one in float16; else None."""
    if index < 0 or subgraph.tensors[index].type not in _FLOATS or _rank(subgraph, index) != 0:
        return None
    value = flatbuffer.constant(model, subgraph.tensors[index])
    if value is not None:
        return value
    maker = next((operator for operator in subgraph.operators if index in _indices(operator.outputs)), None)
    if maker is None or flatbuffer.operator_name(model, maker) != "DEQUANTIZE":
        return None
    half = subgraph.tensors[maker.inputs[0]]
    value = flatbuffer.constant(model, half) if half.type == schema.TensorType.FLOAT16 else None
    return None if value is None else value.astype(np.float32)


def _raised(model: Any, subgraph: Any, index: int, users: list[Any]) -> int:
    """Return the index of a scalar's tensor of rank 4: the same one where only `users` read it, else a new one."""
    tensor = subgraph.tensors[index]
    free = index not in _indices(subgraph.outputs) + _indices(subgraph.inputs)
    computed = flatbuffer.constant(model, tensor) is None
    if computed or not free or any(reader not in users for reader in _readers(subgraph, index)):
        value = _scalar(model, subgraph, index)
        tensor = copy.copy(tensor)
        tensor.name = (tensor.name or b"") + b"/rank_4"
        if computed:  # four bytes are as good as two and a DEQUANTIZE
            tensor.buffer = flatbuffer.add_buffer(model, np.asarray(value, dtype=np.float32))
        subgraph.tensors.append(tensor)
        index = len(subgraph.tensors) - 1
    tensor.shape = np.ones(4, dtype=np.int32)
    tensor.shapeSignature = None
    return index


def _readers(subgraph: Any, index: int) -> Iterator[Any]:
    return (operator for operator in subgraph.operators if index in _indices(operator.inputs))


def _name(subgraph: Any, index: int) -> str:
    return (subgraph.tensors[index].name or b"").decode("utf-8", errors="replace")


def _is_kept_mean(model: Any, subgraph: Any, operator: Any) -> bool:
    if flatbuffer.operator_name(model, operator) != "MEAN" or not operator.builtinOptions.keepDims:
        return False
    axes = flatbuffer.constant(model, subgraph.tensors[operator.inputs[1]])
    if axes is None or _rank(subgraph, operator.inputs[0]) != 4:
        return False
    return sorted(int(axis) % 4 for axis in axes.reshape(-1)) == [1, 2]


def _lower(model: Any, subgraph: Any, mean: Any, index: int) -> Any:
    """Let a MEAN drop its dimensions; return the RESHAPE that gives them back."""
    kept = subgraph.tensors[index]
    shape = np.array(kept.shape, dtype=np.int32)
    free = kept.shapeSignature is not None and kept.shapeSignature[0] < 0
    lowered = copy.copy(kept)
    lowered.name = (kept.name or b"") + b"/mean"
    lowered.shape = shape[[0, 3]]
    lowered.shapeSignature = np.array([-1, shape[3]], dtype=np.int32) if free else None
    target = np.array([-1 if free else shape[0], 1, 1, shape[3]], dtype=np.int32)
    sizes = schema.TensorT(
        name=(kept.name or b"") + b"/shape",
        shape=np.array([4], dtype=np.int32),
        type=schema.TensorType.INT32,
        buffer=flatbuffer.add_buffer(model, target),
    )
    subgraph.tensors += [lowered, sizes]
    mean.builtinOptions.keepDims = False
    mean.outputs = np.array([len(subgraph.tensors) - 2], dtype=np.int32)
    return schema.OperatorT(
        opcodeIndex=flatbuffer.operator_code(model, schema.BuiltinOperator.RESHAPE, 1),
        inputs=np.array([len(subgraph.tensors) - 2, len(subgraph.tensors) - 1], dtype=np.int32),
        outputs=np.array([index], dtype=np.int32),
        builtinOptionsType=schema.BuiltinOptions.ReshapeOptions,
        builtinOptions=schema.ReshapeOptionsT(newShape=target),
    )
