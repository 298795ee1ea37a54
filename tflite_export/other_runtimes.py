"""Which runtimes besides LiteRT cannot read a file, and why: sparse tensors and free sizes are not for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tflite_export.errors import ExportError
from tflite_export.file import flatbuffer
from tflite_export.file.integrity import text
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.tflm.decode_operators import holds_decode
from tflite_export.tflm.mcu import check_structure
from tflite_export.web.limitations import web_refusal

__all__ = ["Unreadable", "unreadable_by"]


@dataclass(frozen=True)
class Unreadable:
    """A runtime that cannot read a file.

    Args:
        runtime: its name.
        reason: what of the file it does not take.
    """

    runtime: str
    reason: str

    def __str__(self) -> str:
        """Return both as one line."""
        return f"not read by {self.runtime}: {self.reason}"


def unreadable_by(file: TFLiteFile | bytes) -> tuple[Unreadable, ...]:
    """Return the runtimes that are known not to read a file.

    LiteRT, in which files are verified, is one of them only where weights are stored as DECODE records.

    Each rule was seen: OpenVINO 2026.4.1 (a sparse dimension only as the last one), LiteRT.js 2.5.3, Vela 5.2.0 ("could
    not run on NPU"), and TensorFlow Lite Micro of October 2026.

    Args:
        file: the file, or its bytes.

    Raises:
        FlatbufferError: the file is damaged.
    """
    file = TFLiteFile.of(file)
    model = file.model
    found = []
    if holds_decode(model):
        what = "weights are stored as DECODE records, which TensorFlow Lite Micro alone reads"
        found += [Unreadable(runtime, what) for runtime in ("LiteRT", "OpenVINO", "Vela (Ethos-U)")]
    blocks = _first(model, lambda tensor: tensor.sparsity is not None and _listed(tensor.sparsity.blockMap))
    if blocks is not None:
        found.append(
            Unreadable("OpenVINO", f"'{blocks}' is stored in blocks, and it takes dense weights and single zeros")
        )
    free = _first_free_input(model)
    refusal = web_refusal(file)
    if free is not None:
        found.append(Unreadable("LiteRT.js", f"input '{free}' has a free size; batch_size=..., shapes=... fix them"))
    elif refusal is not None:
        found.append(Unreadable("LiteRT.js", refusal))
    if any(
        flatbuffer.operator_name(model, operator) == "DENSIFY"
        for graph in model.subgraphs
        for operator in graph.operators or []
    ):
        found.append(Unreadable("Vela (Ethos-U)", "operators that read a weight behind DENSIFY stay off the NPU"))
    try:
        check_structure(model)
    except ExportError as error:
        found.append(Unreadable("TensorFlow Lite Micro", f"{error.subject.removesuffix(' of the file')}: {error.rule}"))
    return tuple(found)


def _first(model: Any, wanted: Any) -> str | None:
    tensors = (tensor for graph in model.subgraphs for tensor in graph.tensors or [])
    return next((text(tensor.name) for tensor in tensors if wanted(tensor)), None)


def _first_free_input(model: Any) -> str | None:
    graph = model.subgraphs[0]
    for index in graph.inputs:
        signature = graph.tensors[index].shapeSignature
        if signature is not None and any(size < 0 for size in signature):
            return text(graph.tensors[index].name)
    return None


def _listed(values: Any) -> bool:
    return values is not None and len(values) > 0
