"""The operator DECODE in a file: put before whatever reads a weight that is stored as a record, read, and taken out.

A DECODE has two inputs for each output: the encoded tensor and the ancillary one, both constants of bytes. Its output
lies in the arena until the next operator has run, so that each reader of a weight has a DECODE of its own right before
it, and large weights share the same memory one after the other. In LiteRT it is an unknown custom operator.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tflite_export.errors import FlatbufferError
from tflite_export.file import flatbuffer
from tflite_export.file.integrity import DECODE, is_decode, text
from tflite_export.file.tflite_file import Change, TFLiteFile
from tflite_export.tflm.records import Form, Record, RecordError, decode

__all__ = [
    "NAME",
    "Decoded",
    "decoded_tensors",
    "holds_decode",
    "put_in",
    "take_out",
    "without_decode",
]

NAME = "decode records"


@dataclass(frozen=True, eq=False)
class Decoded:
    """An output of a DECODE, with its record.

    Args:
        subgraph: its number.
        operator: position of the DECODE there.
        encoded: index of the tensor that holds the codes.
        ancillary: index of the one that holds the header and the values.
        output: index of the decoded tensor.
        name: of the weight.
        record: the bytes.
        shape: of the decoded tensor.
        dtype: of its values.
        axis: of its scales, where it has several; else None.
        zero_points: they are all 0.
    """

    subgraph: int
    operator: int
    encoded: int
    ancillary: int
    output: int
    name: str
    record: Record
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axis: int | None
    zero_points: bool

    def values(self, *, stated: bool = False) -> NDArray[Any]:
        """Return the weight: as the kernel computes it, or as it was written.

        Raises:
            RecordError: the record does not hold it.
        """
        if self.record.form is Form.BITMASK and not self.zero_points:
            raise RecordError("what a bitmask leaves out are zero points, which are read only where they are 0")
        return decode(self.record, self.shape, self.dtype, self.axis, stated=stated)

    @property
    def why_wrong(self) -> str:
        """Why the kernel computes other values than the header says; empty where it does not."""
        if self.record.form is not Form.TABLE:
            return ""
        written = self.record.table_axis(self.shape, self.dtype, self.axis)
        if written == self.axis:
            return ""
        own = "one look-up table" if written is None else f"look-up tables along axis {written}"
        scales = "a single scale" if self.axis is None else f"scales along axis {self.axis}"
        try:
            same = np.array_equal(self.values(), self.values(stated=True))
        except RecordError:  # it would read beyond the record
            same = False
        what = "the kernel takes the channels from the scales, and computes other values"
        return "" if same else f"{own} over {scales}: {what}"


def holds_decode(model: Any) -> bool:
    """Whether a file holds weights that TensorFlow Lite Micro alone decodes."""
    return any(is_decode(model, operator) for graph in model.subgraphs for operator in graph.operators)


def put_in(model: Any, records: Mapping[tuple[int, int], Record]) -> tuple[Change, ...]:
    """Store weights as records, with a DECODE before each operator that reads some, in place.

    Args:
        model: a dense file's `ModelT`.
        records: by (subgraph, tensor); tensors that share a buffer must all be there, with the same record.

    Returns:
        One change for each tensor.
    """
    buffers: dict[int, tuple[int, int]] = {}
    changes = []
    for number, graph in enumerate(model.subgraphs):
        chosen = {index: record for (place, index), record in records.items() if place == number}
        if not chosen:
            continue
        before = {index: copy.copy(graph.tensors[index]) for index in chosen}
        ancillary = {index: _store(model, graph, index, record, buffers) for index, record in chosen.items()}
        operators = []
        for operator in graph.operators:
            read = [int(index) for index in dict.fromkeys(map(int, operator.inputs)) if index in chosen]
            if read:
                operators.append(_decode_before(model, graph, operator, read, before, ancillary))
            operators.append(operator)
        graph.operators = operators
        changes += [Change(NAME, text(before[index].name), f"dense -> {chosen[index].form.name}") for index in chosen]
    return tuple(changes)


def _store(model: Any, graph: Any, index: int, record: Record, buffers: dict[int, tuple[int, int]]) -> int:
    """Let a tensor hold the codes of a record; return the index of its ancillary tensor."""
    tensor = graph.tensors[index]
    if id(record) not in buffers:
        model.buffers[tensor.buffer].data = None
        buffers[id(record)] = (
            flatbuffer.add_buffer(model, record.encoded),
            flatbuffer.add_buffer(model, record.ancillary),
        )
    graph.tensors[index] = schema.TensorT(
        shape=np.array([record.encoded.size], dtype=np.int32),
        type=schema.TensorType.UINT8,
        buffer=buffers[id(record)][0],
        name=tensor.name,
    )
    graph.tensors.append(
        schema.TensorT(
            shape=np.array([record.ancillary.size], dtype=np.int32),
            type=schema.TensorType.UINT8,
            buffer=buffers[id(record)][1],
        )
    )
    return len(graph.tensors) - 1


def _decode_before(
    model: Any, graph: Any, operator: Any, read: list[int], before: Mapping[int, Any], ancillary: Mapping[int, int]
) -> Any:
    """Return a DECODE of the weights that an operator reads, and let it read what that gives."""
    outputs = {}
    for index in read:
        decoded = copy.copy(before[index])
        # Its name stays with the codes: a second one would take flash.
        decoded.buffer, decoded.name = 0, None
        graph.tensors.append(decoded)
        outputs[index] = len(graph.tensors) - 1
    operator.inputs = np.array([outputs.get(int(index), int(index)) for index in operator.inputs], dtype=np.int32)
    return schema.OperatorT(
        opcodeIndex=_code(model),
        inputs=np.array([each for index in read for each in (index, ancillary[index])], dtype=np.int32),
        outputs=np.array(list(outputs.values()), dtype=np.int32),
    )


def _code(model: Any) -> int:
    """Return the index of DECODE in the file's table of operators, added where it is missing."""
    custom = schema.BuiltinOperator.CUSTOM
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == custom and text(code.customCode) == DECODE:
            return index
    model.operatorCodes.append(
        schema.OperatorCodeT(deprecatedBuiltinCode=custom, builtinCode=custom, customCode=DECODE.encode(), version=1)
    )
    return len(model.operatorCodes) - 1


def decoded_tensors(model: Any, subject: str = "the file") -> list[Decoded]:
    """Return what the DECODE operators of a file decode, of whatever make.

    Args:
        model: a sound `ModelT`.
        subject: what to call the file in errors.

    Raises:
        FlatbufferError: a DECODE lacks a record, or has one that does not hold its output.
    """
    return list(_decoded(model, subject))


def _decoded(model: Any, subject: str) -> Iterator[Decoded]:
    for number, graph in enumerate(model.subgraphs):
        for position, operator in enumerate(graph.operators):
            if not is_decode(model, operator):
                continue
            inputs, outputs = [int(i) for i in operator.inputs], [int(i) for i in operator.outputs]
            if not outputs or len(inputs) != 2 * len(outputs) or min(inputs) < 0:
                raise _damaged(subject, "DECODE", "must have two inputs for each output", (inputs, outputs))
            for encoded, ancillary, output in zip(inputs[::2], inputs[1::2], outputs, strict=True):
                found = _one(model, (number, position), encoded, ancillary, output, subject)
                try:
                    # A table that the kernel takes for another is wrong, not damaged: see `Decoded.why_wrong`.
                    found.values(stated=found.record.form is Form.TABLE)
                except RecordError as error:
                    raise _damaged(subject, found.name, "must be a record of its weight", error) from error
                yield found


def _one(model: Any, place: tuple[int, int], encoded: int, ancillary: int, output: int, subject: str) -> Decoded:
    tensors = model.subgraphs[place[0]].tensors
    name = text(tensors[encoded].name) or text(tensors[output].name) or f"tensor {encoded}"
    parts = []
    for index in (encoded, ancillary):
        data = model.buffers[tensors[index].buffer].data
        if data is None or not len(data) or tensors[index].sparsity is not None:
            raise _damaged(subject, name, "DECODE must read constants", f"tensor {index}, which is computed")
        parts.append(np.asarray(data, dtype=np.uint8))
    decoded = tensors[output]
    shape = tuple(int(size) for size in decoded.shape) if decoded.shape is not None else ()
    if decoded.type not in flatbuffer.DTYPES or min(shape, default=1) < 0:
        raise _damaged(subject, name, "DECODE must give numbers of a fixed shape", (decoded.type, shape))
    quantization = decoded.quantization
    scales = 0 if quantization is None or quantization.scale is None else len(quantization.scale)
    points = quantization.zeroPoint if scales else None
    return Decoded(
        *place,
        encoded,
        ancillary,
        output,
        name,
        Record(parts[0], parts[1]),
        shape,
        flatbuffer.DTYPES[decoded.type],
        int(quantization.quantizedDimension) if scales > 1 else None,
        points is None or not np.any(points),
    )


def take_out(model: Any, subject: str = "the file") -> tuple[Change, ...]:
    """Store every record dense, as its header says, and take the DECODE operators out, in place.

    Returns:
        One change for each.

    Raises:
        FlatbufferError: a record is damaged.
    """
    dense: dict[tuple[int, int], int] = {}
    changes = []
    for each in decoded_tensors(model, subject):
        graph = model.subgraphs[each.subgraph]
        place = graph.tensors[each.encoded].buffer, graph.tensors[each.ancillary].buffer
        if place not in dense:
            dense[place] = flatbuffer.add_buffer(model, each.values(stated=each.record.form is Form.TABLE))
        decoded = graph.tensors[each.output]
        decoded.buffer, decoded.name = dense[place], decoded.name or each.name.encode()
        changes.append(Change(NAME, each.name, f"{each.record.form.name} -> dense"))
        for index in (each.encoded, each.ancillary):
            # Nothing reads it any more, and the scales that Google's compressor leaves it are another shape's.
            left = graph.tensors[index]
            graph.tensors[index] = schema.TensorT(shape=left.shape, type=left.type, buffer=left.buffer)
    for number in {number for place in dense for number in place}:
        model.buffers[number].data = None
    for graph in model.subgraphs:
        graph.operators = [operator for operator in graph.operators if not is_decode(model, operator)]
    return tuple(changes)


def without_decode(file: TFLiteFile) -> TFLiteFile:
    """Return a file with every record stored dense, which LiteRT runs; one without any is returned as it is.

    Raises:
        FlatbufferError: it is damaged.
    """
    return file.edited(lambda model: take_out(model, file.subject))[0]


def _damaged(subject: str, name: str, rule: str, received: object) -> FlatbufferError:
    return FlatbufferError(
        f"{subject}, weight '{name}'", rule, received, "The file is damaged: get or export it again."
    )
