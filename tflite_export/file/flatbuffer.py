"""Read, edit and write a .tflite file, through the object API of the LiteRT schema."""

from __future__ import annotations

import struct
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tflite_export.errors import FlatbufferError
from tflite_export.file.bounds import check_bounds
from tflite_export.file.encoding import CsrLevel, DenseLevel, SparseArray
from tflite_export.file.integrity import OPERATOR_NAMES, builtin_code, check_model

__all__ = [
    "BUFFER_ALIGNMENT",
    "DTYPES",
    "IDENTIFIER",
    "LARGEST_FILE",
    "SPARSE_FULLY_CONNECTED_VERSION",
    "TYPE_NAMES",
    "add_buffer",
    "constant",
    "densify",
    "operator_code",
    "operator_name",
    "read",
    "sparsity_parameters",
    "write",
]

IDENTIFIER = b"TFL3"
LARGEST_FILE = 2**31 - 2**20
"""Bytes: flatbuffer offsets are 32 bits; a megabyte is left for the tables."""
BUFFER_ALIGNMENT = 16
"""Bytes: `force_align: 16` of `Buffer.data` in the schema; Python's object API does not heed it."""
SPARSE_FULLY_CONNECTED_VERSION = 8
"""Version of FULLY_CONNECTED that reads sparse weights (`tflite/tools/versioning/op_version.cc`)."""

TYPE_NAMES = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
"""Type of a tensor -> its name, as "float32"."""
DTYPES: dict[int, np.dtype[Any]] = {
    schema.TensorType.FLOAT32: np.dtype("<f4"),
    schema.TensorType.FLOAT16: np.dtype("<f2"),
    schema.TensorType.FLOAT64: np.dtype("<f8"),
    schema.TensorType.INT8: np.dtype("i1"),
    schema.TensorType.UINT8: np.dtype("u1"),
    schema.TensorType.INT16: np.dtype("<i2"),
    schema.TensorType.INT32: np.dtype("<i4"),
    schema.TensorType.INT64: np.dtype("<i8"),
    schema.TensorType.BOOL: np.dtype("?"),
}

_DAMAGE = (
    struct.error,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
)
"""What the object API raises on offsets that lead outside the file."""


def read(content: bytes, subject: str = "the file") -> Any:
    """Return the `ModelT` of a .tflite file, its structure checked.

    Args:
        content: the file's bytes.
        subject: what to call it in errors: a path.

    Raises:
        FlatbufferError: not a .tflite, cut short, damaged, or with data in other files.
    """
    if len(content) < 8 or content[4:8] != IDENTIFIER:
        raise FlatbufferError(
            subject,
            "a .tflite carries the identifier TFL3 at byte 4",
            f"{content[4:8]!r} in {len(content)} bytes",
            "Is it another format, or cut short?",
        )
    try:
        check_bounds(content, subject)
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        _fill_absent_lists(model)
        _bring_buffers_inside(model, content, subject)
        check_model(model, subject)
    except FlatbufferError:
        raise
    except _DAMAGE as error:
        raise FlatbufferError(
            subject,
            "every offset must lead to a place inside the file",
            f"{type(error).__name__}: {error}",
            "The file is damaged: get or export it again.",
        ) from error
    return model


def write(model: Any) -> bytes:
    """Return the bytes of a `ModelT`, constants aligned to 16 bytes as the schema asks.

    Equal names are stored once, and so are equal lists of numbers outside the constants: shapes, zero points.

    Raises:
        FlatbufferError: the constants exceed the format's 2 GB.
    """
    total = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    if total > LARGEST_FILE:
        raise FlatbufferError(
            "the model",
            f"a .tflite holds at most {LARGEST_FILE} bytes of constants",
            total,
            "Split the model, or quantize it.",
        )
    packed = schema.ModelT()
    vars(packed).update(vars(model))
    packed.buffers = [_AlignedBuffer(buffer) for buffer in model.buffers]
    builder = _SharingBuilder(total + 2**16)
    builder.Finish(packed.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(memoryview(builder.Bytes)[builder.Head() :])  # Output() would copy once more


class _SharingBuilder(flatbuffers.Builder):
    """Stores equal names once, and equal lists of numbers, as FlatBuffers allows.

    The zero points of an int8 weight, for one, are 8 bytes of zeros for each channel.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._stored: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: NDArray[Any]) -> int:
        key = (x.dtype.str, x.tobytes())
        if key not in self._stored:
            self._stored[key] = super().CreateNumpyVector(x)
        return self._stored[key]

    def CreateString(self, s: str | bytes, encoding: str = "utf-8", errors: str = "strict") -> int:
        key = ("", s if isinstance(s, bytes) else s.encode(encoding, errors))
        if key not in self._stored:
            self._stored[key] = super().CreateString(s, encoding, errors)
        return self._stored[key]


class _AlignedBuffer:
    """A buffer whose data start at a multiple of 16 bytes; packs like `BufferT`."""

    def __init__(self, buffer: Any) -> None:
        self.data = buffer.data

    def Pack(self, builder: Any) -> Any:
        vector = None
        if self.data is not None:
            payload = np.asarray(self.data, dtype=np.uint8).data
            builder.StartVector(1, len(payload), BUFFER_ALIGNMENT)
            builder.head -= len(payload)
            builder.Bytes[builder.head : builder.head + len(payload)] = payload
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def constant(model: Any, tensor: Any) -> NDArray[Any] | None:
    """Return the values of a dense constant, or None for a tensor computed, sparse, or of a packed type."""
    data = model.buffers[tensor.buffer].data
    dtype = DTYPES.get(tensor.type)
    if data is None or len(data) == 0 or dtype is None or tensor.sparsity is not None:
        return None
    shape = [] if tensor.shape is None else list(tensor.shape)
    values: NDArray[Any] = np.asarray(data, dtype=np.uint8).view(dtype).reshape(shape)
    return values


def operator_name(model: Any, operator: Any) -> str:
    """Return the name of an operator's kind: `FULLY_CONNECTED`."""
    return OPERATOR_NAMES[builtin_code(model.operatorCodes[operator.opcodeIndex])]


def operator_code(model: Any, builtin: int, version: int) -> int:
    """Return the index of an operator code in the file's table, added where it is missing."""
    for index, code in enumerate(model.operatorCodes):
        if builtin_code(code) == builtin and code.version == version:
            return index
    # Readers older than schema 3a know only the deprecated field, a signed byte.
    model.operatorCodes.append(
        schema.OperatorCodeT(deprecatedBuiltinCode=min(builtin, 127), builtinCode=builtin, version=version)
    )
    return len(model.operatorCodes) - 1


def add_buffer(model: Any, values: NDArray[Any]) -> int:
    """Append a buffer that holds an array's bytes; return its index."""
    model.buffers.append(schema.BufferT(data=np.ascontiguousarray(values).view(np.uint8).reshape(-1)))
    return len(model.buffers) - 1


def sparsity_parameters(sparse: SparseArray) -> Any:
    """Return the `SparsityParametersT` of a sparse array."""
    return schema.SparsityParametersT(
        traversalOrder=np.array(sparse.traversal_order, dtype=np.int32),
        blockMap=np.array(sparse.block_map, dtype=np.int32),
        dimMetadata=[_dim_metadata(level) for level in sparse.levels],
    )


def densify(model: Any, subgraph: Any, index: int) -> None:
    """Insert a DENSIFY before the first consumer of a sparse tensor, and hand its output to all of them."""
    tensor = subgraph.tensors[index]
    subgraph.tensors.append(
        schema.TensorT(
            shape=tensor.shape,
            type=tensor.type,
            buffer=0,
            name=(tensor.name or b"") + b"/densified",
            hasRank=tensor.hasRank,
        )
    )
    output = len(subgraph.tensors) - 1
    first = None
    for position, operator in enumerate(subgraph.operators):
        inputs = np.asarray(operator.inputs if operator.inputs is not None else [], dtype=np.int32)
        if (inputs == index).any():
            first = position if first is None else first
            operator.inputs = np.where(inputs == index, np.int32(output), inputs).astype(np.int32)
    subgraph.operators.insert(
        first or 0,
        schema.OperatorT(
            opcodeIndex=operator_code(model, schema.BuiltinOperator.DENSIFY, 1),
            inputs=np.array([index], dtype=np.int32),
            outputs=np.array([output], dtype=np.int32),
            builtinOptionsType=schema.BuiltinOptions.DensifyOptions,
            builtinOptions=schema.DensifyOptionsT(),
        ),
    )


def _dim_metadata(level: DenseLevel | CsrLevel) -> Any:
    if isinstance(level, DenseLevel):
        return schema.DimensionMetadataT(format=schema.DimensionType.DENSE, denseSize=level.size)
    segments_type, segments = _index_vector(level.segments)
    indices_type, indices = _index_vector(level.indices)
    return schema.DimensionMetadataT(
        format=schema.DimensionType.SPARSE_CSR,
        arraySegmentsType=segments_type,
        arraySegments=segments,
        arrayIndicesType=indices_type,
        arrayIndices=indices,
    )


def _index_vector(values: NDArray[Any]) -> tuple[int, Any]:
    kinds = schema.SparseIndexVector
    kind, table = {
        "uint8": (kinds.Uint8Vector, schema.Uint8VectorT),
        "uint16": (kinds.Uint16Vector, schema.Uint16VectorT),
        "int32": (kinds.Int32Vector, schema.Int32VectorT),
    }[values.dtype.name]
    return kind, table(values=values)


def _fill_absent_lists(model: Any) -> None:
    """Make inputs, outputs and operators that a file leaves out empty lists, as its format means them."""
    for subgraph in model.subgraphs or []:
        subgraph.tensors, subgraph.operators = subgraph.tensors or [], subgraph.operators or []
        for part in (subgraph, *subgraph.operators):
            for name in ("inputs", "outputs"):
                if getattr(part, name) is None:
                    setattr(part, name, np.zeros(0, dtype=np.int32))
    for signature in model.signatureDefs or []:
        signature.inputs, signature.outputs = signature.inputs or [], signature.outputs or []


def _bring_buffers_inside(model: Any, content: bytes, subject: str) -> None:
    """Read buffers that lie behind the flatbuffer, by offset and size; offsets 0 and 1 mean none."""
    for buffer in model.buffers or []:
        if buffer.offset > 1:
            if buffer.offset + buffer.size > len(content):
                raise FlatbufferError(
                    subject,
                    "a buffer must lie inside the file",
                    f"bytes {buffer.offset} to {buffer.offset + buffer.size} of {len(content)}",
                    "The file is cut short: get it again.",
                )
            buffer.data = np.frombuffer(content, dtype=np.uint8, count=buffer.size, offset=buffer.offset)
            buffer.offset = buffer.size = 0
    for subgraph in model.subgraphs or []:
        for operator in subgraph.operators or []:
            if operator.largeCustomOptionsOffset > 1:
                raise FlatbufferError(
                    subject,
                    "options of custom operators must lie inside the flatbuffer",
                    "largeCustomOptions",
                    "Convert the model without this operator.",
                )
