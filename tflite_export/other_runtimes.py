"""Which runtimes besides LiteRT cannot read a file, and why: sparse tensors and free sizes are not for all of them.

OpenVINO's rules are those of its frontend for TensorFlow Lite (`src/frontends/tensorflow_lite/src`):
`sparsity_info.cpp` goes through a sparse tensor row by row, and `op_table.cpp` names the operators that it translates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from tflite_export.errors import ExportError
from tflite_export.file import flatbuffer
from tflite_export.file.integrity import text
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.tflm.decode_operators import holds_decode
from tflite_export.tflm.mcu import check_structure
from tflite_export.web.limitations import web_refusal

__all__ = ["NOT_IN_OPENVINO", "Unreadable", "unreadable_by"]

NOT_IN_OPENVINO = frozenset(
    """ASSIGN_VARIABLE ATAN2 BIDIRECTIONAL_SEQUENCE_LSTM BIDIRECTIONAL_SEQUENCE_RNN BITCAST BITWISE_XOR BUCKETIZE CALL
    CALL_ONCE CONCAT_EMBEDDINGS CONV_3D_TRANSPOSE CUSTOM DELEGATE DILATE DYNAMIC_UPDATE_SLICE EMBEDDING_LOOKUP_SPARSE
    FAKE_QUANT HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_LOOKUP HASHTABLE_SIZE IF IMAG L2_POOL_2D
    LOCAL_RESPONSE_NORMALIZATION LSH_PROJECTION LSTM MATRIX_SET_DIAG MULTINOMIAL NON_MAX_SUPPRESSION_V4
    NON_MAX_SUPPRESSION_V5 RANDOM_STANDARD_NORMAL RANDOM_UNIFORM READ_VARIABLE REAL REDUCE_WINDOW RELU_N1_TO_1
    RIGHT_SHIFT RNN SKIP_GRAM SPARSE_TO_DENSE SVDF UNIDIRECTIONAL_SEQUENCE_LSTM UNIDIRECTIONAL_SEQUENCE_RNN
    UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_MIN UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_SUM VAR_HANDLE""".split()  # noqa: SIM905
)
"""Operators that OpenVINO 2026.4.1 has no translation for; beside them, all of StableHLO but its composites."""


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

    Each rule was seen: OpenVINO 2026.4.1, LiteRT.js 2.5.3, Vela 5.2.0 ("could not run on NPU"), and TensorFlow Lite
    Micro of October 2026.

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
    elif (refusal := _openvino_refusal(model)) is not None:
        found.append(Unreadable("OpenVINO", refusal))
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


def _openvino_refusal(model: Any) -> str | None:
    """Return why OpenVINO does not read a file, or None."""
    for graph in model.subgraphs:
        for tensor in graph.tensors or []:
            if tensor.sparsity is not None and not _is_row_by_row(tensor.sparsity):
                blocks = _listed(tensor.sparsity.blockMap)
                stored = "in blocks" if blocks else "otherwise than row by row"
                return f"'{text(tensor.name)}' is stored {stored}, and it takes dense weights and single zeros"
        for operator in graph.operators or []:
            name = flatbuffer.operator_name(model, operator)
            if name in NOT_IN_OPENVINO or (name.startswith("STABLEHLO_") and name != "STABLEHLO_COMPOSITE"):
                return f"it has no {name}"
            reversed_axes = _axes(model, graph, operator) if name == "REVERSE_V2" else 1
            if reversed_axes > 1:
                return (
                    f"it reverses one axis at a time, and a REVERSE_V2 here {reversed_axes}, as the rewrite for sparse "
                    "inference does: optimize='portable' leaves that out"
                )
    return None


def _axes(model: Any, graph: Any, operator: Any) -> int:
    """Return how many axes a REVERSE_V2 reverses; 1 where they are not constant, or missing."""
    inputs = list(operator.inputs) if operator.inputs is not None else []
    axes = flatbuffer.constant(model, graph.tensors[inputs[1]]) if len(inputs) > 1 and inputs[1] >= 0 else None
    return 1 if axes is None else axes.size


def _is_row_by_row(sparsity: Any) -> bool:
    """Whether all dimensions are dense but the last, which is compressed."""
    *rows, last = (level.format == schema.DimensionType.SPARSE_CSR for level in sparsity.dimMetadata)
    in_order = list(sparsity.traversalOrder) == list(range(len(rows) + 1))
    return last and not any(rows) and in_order and not _listed(sparsity.blockMap)


def _first_free_input(model: Any) -> str | None:
    graph = model.subgraphs[0]
    for index in graph.inputs:
        signature = graph.tensors[index].shapeSignature
        if signature is not None and any(size < 0 for size in signature):
            return text(graph.tensors[index].name)
    return None


def _listed(values: Any) -> bool:
    return values is not None and len(values) > 0
