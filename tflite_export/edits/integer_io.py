"""The edit that makes inputs and outputs of a calibrated file integers: QUANTIZE and DEQUANTIZE there are removed."""

from __future__ import annotations

from typing import Any

import numpy as np

from tflite_export.file.flatbuffer import operator_name
from tflite_export.file.integrity import text
from tflite_export.file.tflite_file import Change, TFLiteFile

__all__ = ["NAME", "make_borders_integer", "make_io_integer"]

NAME = "integer_io"


def make_borders_integer(content: bytes, subject: str = "the file") -> bytes:
    """Return the bytes of a file after `make_io_integer`.

    Args:
        content: the bytes of a file converted with a representative data set.
        subject: what to call it in errors.

    Raises:
        FlatbufferError: the file is damaged.
    """
    return TFLiteFile(content, subject).edited(make_io_integer)[0].content


def make_io_integer(model: Any) -> tuple[Change, ...]:
    """Make float inputs and outputs the integers that the file computes with, in place.

    What a microcontroller wants: its sensor gives integers, and the two operators take flash and arena. The names of
    inputs and outputs stay; their quantization says what the integers mean, real = scale * (stored - zero_point).
    An input that something else reads as well, or an output that is not the result of a DEQUANTIZE, stays as it is.

    Args:
        model: the `ModelT` of a file converted with a representative data set.

    Returns:
        One change for each input and output that is an integer now.
    """
    graph = model.subgraphs[0]
    changed = [index for index in _indices(graph.inputs) if _take_over_input(model, graph, index)]
    changed += [index for index in _indices(graph.outputs) if _take_over_output(model, graph, index)]
    return tuple(Change(NAME, text(graph.tensors[index].name), "float -> integer") for index in changed)


def _take_over_input(model: Any, graph: Any, index: int) -> bool:
    """Let an input be what its one QUANTIZE makes of it; return whether it has one."""
    readers = [operator for operator in graph.operators if index in _indices(operator.inputs)]
    if len(readers) != 1 or operator_name(model, readers[0]) != "QUANTIZE" or index in _indices(graph.outputs):
        return False
    quantized = _indices(readers[0].outputs)[0]
    if quantized in _indices(graph.outputs):
        return False
    graph.operators.remove(readers[0])
    _replace(graph, quantized, index)
    _take_type(graph.tensors[index], graph.tensors[quantized])
    return True


def _take_over_output(model: Any, graph: Any, index: int) -> bool:
    """Let an output be what its DEQUANTIZE is made from; return whether it has one."""
    maker = next((operator for operator in graph.operators if index in _indices(operator.outputs)), None)
    if maker is None or operator_name(model, maker) != "DEQUANTIZE":
        return False
    stored = _indices(maker.inputs)[0]
    read = any(index in _indices(operator.inputs) for operator in graph.operators)
    made = any(stored in _indices(operator.outputs) for operator in graph.operators)
    if read or not made or stored in _indices(graph.outputs):
        return False
    graph.operators.remove(maker)
    _replace(graph, stored, index)
    _take_type(graph.tensors[index], graph.tensors[stored])
    return True


def _replace(graph: Any, old: int, new: int) -> None:
    """Let every operator read and write one tensor in place of another."""
    for operator in graph.operators:
        for slot in ("inputs", "outputs"):
            indices = np.asarray(_indices(getattr(operator, slot)), dtype=np.int32)
            setattr(operator, slot, np.where(indices == old, np.int32(new), indices).astype(np.int32))


def _take_type(tensor: Any, other: Any) -> None:
    tensor.type, tensor.quantization = other.type, other.quantization


def _indices(values: Any) -> list[int]:
    return [] if values is None else [int(value) for value in values]
