"""What a file says about itself: how it was pruned, by which tool, for what; and its inputs and outputs.

Two entries of `Model.metadata` are written. `keras_prune` is JSON, for programs and people. `TFLITE_METADATA` is
the standard `ModelMetadata` flatbuffer (`metadata_schema.fbs` of tflite-support, identifier M001), which Android
Studio, Netron and MediaPipe show. The one package that wrote the latter, tflite-support, had its last release in 2023
and no wheel for Python 3.12 and later, so the few fields used here are packed by hand. Neither entry holds a time or a
path: equal exports are equal files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export.errors import ExportError, FlatbufferError
from tflite_export.file import flatbuffer
from tflite_export.file.tflite_file import Change
from tflite_export.plan.plan import PlanLine

__all__ = [
    "ENTRY",
    "STANDARD_ENTRY",
    "STANDARD_IDENTIFIER",
    "add_metadata",
    "read_metadata",
    "summarize",
]

ENTRY = "keras_prune"
STANDARD_ENTRY = "TFLITE_METADATA"
STANDARD_IDENTIFIER = b"M001"
_MIN_PARSER_VERSION = "1.0.0"


def summarize(
    lines: Iterable[PlanLine], *, target: str | None = None, quantize: str | None = None, detail: bool = True
) -> dict[str, Any]:
    """Return the pruning summary of a plan.

    sparsity = Σ zeros / Σ weights over the weights of rank 2 and more: biases and the like are not pruned.

    Args:
        lines: of the plan, as it was written.
        target: what the file was made for.
        quantize: how it was quantized.
        detail: list every weight that holds zeros. False saves the flash of a microcontroller.
    """
    weights = [line for line in lines if len(line.shape) >= 2]
    sizes = [int(np.prod(line.shape, dtype=np.int64)) for line in weights]
    zeros = sum(round(line.sparsity * size) for line, size in zip(weights, sizes, strict=True))
    encodings: dict[str, int] = {}
    for line in weights:
        encodings[line.encoding.value] = encodings.get(line.encoding.value, 0) + 1
    summary: dict[str, Any] = {
        "tool": f"keras-prune {version('keras-prune')}",
        "target": target,
        "quantize": quantize,
        "weights": sum(sizes),
        "zeros": zeros,
        "sparsity": round(zeros / max(sum(sizes), 1), 6),
        "encodings": encodings,
    }
    if detail:
        summary["tensors"] = [
            {
                "name": line.name,
                "shape": list(line.shape),
                "sparsity": round(line.sparsity, 6),
                "encoding": line.encoding.value,
            }
            for line in weights
            if line.sparsity > 0
        ]
    return summary


def add_metadata(model: Any, summary: Mapping[str, Any]) -> tuple[Change, ...]:
    """Write a summary into a `ModelT`, in place of one that is there; all else stays.

    The standard entry names the inputs and outputs as the signature does; one that is there already is left.

    Args:
        model: the file's `ModelT`; changed in place.
        summary: as `summarize` returns; anything that JSON can express.

    Returns:
        One change for each entry that was written.

    Raises:
        ExportError: JSON cannot express it.
    """
    try:
        text = json.dumps(summary, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ExportError(
            "the metadata", "must be what JSON can express", error, "Use text, numbers, lists."
        ) from error
    entries = {ENTRY: text.encode()}
    if _find(model, STANDARD_ENTRY) is None:
        entries[STANDARD_ENTRY] = _standard(model, summary)
    for name, content in entries.items():
        _set(model, name, content)
    return tuple(Change("metadata", name, "written") for name in entries)


def read_metadata(model: Any) -> dict[str, Any] | None:
    """Return the summary of a `ModelT`, or None where it has none.

    Raises:
        FlatbufferError: the entry is there and damaged.
    """
    entry = _find(model, ENTRY)
    if entry is None:
        return None
    try:
        data = model.buffers[entry.buffer].data
        summary = json.loads(np.asarray(data if data is not None else [], dtype=np.uint8).tobytes())
        if not isinstance(summary, dict):
            raise ValueError(f"a {type(summary).__name__}")
    except (ValueError, IndexError, RecursionError) as error:
        raise FlatbufferError(
            f"metadata '{ENTRY}'", "must be a JSON object", error, "The file is damaged: get or export it again."
        ) from error
    return summary


def _find(model: Any, name: str) -> Any:
    return next((entry for entry in model.metadata or [] if _text(entry.name) == name), None)


def _set(model: Any, name: str, content: bytes) -> None:
    values = np.frombuffer(content, dtype=np.uint8)
    entry = _find(model, name)
    if entry is not None:
        model.buffers[entry.buffer].data = values
        return
    model.metadata = [
        *(model.metadata or []),
        schema.MetadataT(name=name.encode(), buffer=flatbuffer.add_buffer(model, values)),
    ]


def _standard(model: Any, summary: Mapping[str, Any]) -> bytes:
    """Return a `ModelMetadata`: tables are written by the numbers of their fields in the schema."""
    builder = flatbuffers.Builder(1024)
    inputs, outputs = _tensors(model)
    subgraph = _table(
        builder,
        10,
        {
            2: _vector(builder, [_tensor(builder, name, tensor) for name, tensor in inputs]),
            3: _vector(builder, [_tensor(builder, name, tensor) for name, tensor in outputs]),
        },
    )
    root = _table(
        builder,
        8,
        {
            0: builder.CreateString("keras-prune"),
            1: builder.CreateString(_describe(summary)),
            2: builder.CreateString(str(summary.get("tool", ""))),
            3: _vector(builder, [subgraph]),
            7: builder.CreateString(_MIN_PARSER_VERSION),
        },
    )
    builder.Finish(root, file_identifier=STANDARD_IDENTIFIER)
    return bytes(builder.Output())


def _describe(summary: Mapping[str, Any]) -> str:
    said = {key: summary.get(key) for key in ("sparsity", "target", "quantize")}
    return ", ".join(f"{key}: {value}" for key, value in said.items() if value is not None)


def _tensors(model: Any) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """Return (name, tensor) of the main graph's inputs and outputs, in its order: what the standard asks for."""
    graph = model.subgraphs[0]
    signature = next((each for each in model.signatureDefs or [] if each.subgraphIndex == 0), None)
    names = {
        each.tensorIndex: _text(each.name)
        for each in ((signature.inputs or []) + (signature.outputs or []) if signature is not None else [])
    }

    def named(indices: Any) -> list[tuple[str, Any]]:
        places = [] if indices is None else [int(index) for index in indices]
        return [(names.get(index, _text(graph.tensors[index].name)), graph.tensors[index]) for index in places]

    return named(graph.inputs), named(graph.outputs)


def _tensor(builder: Any, name: str, tensor: Any) -> int:
    shape = "x".join("any" if size < 0 else str(size) for size in _shape(tensor))
    description = f"{flatbuffer.TYPE_NAMES.get(tensor.type, tensor.type)}, {shape or 'scalar'}"
    return _table(builder, 7, {0: builder.CreateString(name), 1: builder.CreateString(description)})


def _shape(tensor: Any) -> list[int]:
    shape = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    return [] if shape is None else [int(size) for size in shape]


def _table(builder: Any, fields: int, offsets: Mapping[int, int]) -> int:
    builder.StartObject(fields)
    for slot, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    return int(builder.EndObject())


def _vector(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _text(name: bytes | str | None) -> str:
    return name if isinstance(name, str) else (name or b"").decode("utf-8", errors="replace")
