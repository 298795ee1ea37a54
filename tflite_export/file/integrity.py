"""What a sound .tflite satisfies, so that it can be followed unchecked: indices, order, options, and no call cycles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export.errors import FlatbufferError
from tflite_export.file.storage import check_storage

__all__ = [
    "DECODE",
    "GET_IT_AGAIN",
    "LEAVES_OUT",
    "OPERATOR_NAMES",
    "OPTIONS",
    "SCHEMA_VERSION",
    "SUBGRAPH_FIELDS",
    "builtin_code",
    "check_model",
    "is_decode",
    "text",
]

SCHEMA_VERSION = 3
GET_IT_AGAIN = "The file is damaged: get or export it again."
DECODE = "TFLM_DECODE"
"""The custom operator by which TensorFlow Lite Micro makes a weight dense that is stored as a record of bytes."""

SUBGRAPH_FIELDS = (
    "condSubgraphIndex",
    "bodySubgraphIndex",
    "thenSubgraphIndex",
    "elseSubgraphIndex",
    "initSubgraphIndex",
    "comparatorSubgraphIndex",
    "updateComputationSubgraphIndex",
    "decompositionSubgraphIndex",
    "branchSubgraphIndices",
    "subgraph",
)
"""Fields of options that name a subgraph which the operator runs."""

OPTIONS = MappingProxyType(
    {
        "ADD": schema.AddOptionsT,
        "AVERAGE_POOL_2D": schema.Pool2DOptionsT,
        "CONCATENATION": schema.ConcatenationOptionsT,
        "CONV_2D": schema.Conv2DOptionsT,
        "DEPTHWISE_CONV_2D": schema.DepthwiseConv2DOptionsT,
        "DEPTH_TO_SPACE": schema.DepthToSpaceOptionsT,
        "FULLY_CONNECTED": schema.FullyConnectedOptionsT,
        "IF": schema.IfOptionsT,
        "MAX_POOL_2D": schema.Pool2DOptionsT,
        "MEAN": schema.ReducerOptionsT,
        "MUL": schema.MulOptionsT,
        "RESHAPE": schema.ReshapeOptionsT,
        "RESIZE_BILINEAR": schema.ResizeBilinearOptionsT,
        "SUM": schema.ReducerOptionsT,
        "TRANSPOSE_CONV": schema.TransposeConvOptionsT,
        "WHILE": schema.WhileOptionsT,
    }
)
"""Options of the operators whose options are read here or in the planning."""

OPERATOR_NAMES = MappingProxyType(
    {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
)


LEAVES_OUT = MappingProxyType(
    {
        **dict.fromkeys(("CUSTOM", "STABLEHLO_COMPOSITE"), (0, 1)),
        **dict.fromkeys(
            (
                "BIDIRECTIONAL_SEQUENCE_LSTM",
                "BIDIRECTIONAL_SEQUENCE_RNN",
                "LSTM",
                "UNIDIRECTIONAL_SEQUENCE_LSTM",
            ),
            (1,),
        ),
    }
)
"""Which of its first two inputs an operator may leave out (index -1); the others may neither: the kernels read them."""


def builtin_code(code: Any) -> int:
    """Return the number of a builtin operator, from the new field of its code or the old one."""
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def check_model(model: Any, subject: str) -> None:
    """Check what the runtime, and the stages of an export, follow unchecked.

    Args:
        model: the `ModelT`.
        subject: what to call it in errors.

    Raises:
        FlatbufferError: with the first thing that is wrong.
    """
    check = _Check(subject)
    check.require(model.version == SCHEMA_VERSION, f"the schema version must be {SCHEMA_VERSION}", model.version)
    check.require(bool(model.subgraphs), "a model holds at least one subgraph", model.subgraphs)
    check.require(bool(model.buffers), "a model holds at least the empty buffer", model.buffers)
    check.require(not model.externalBuffers, "weights must lie inside the file", "external buffers")
    for code in model.operatorCodes or []:
        known = builtin_code(code) in OPERATOR_NAMES
        check.require(known, "an operator must be one of the schema's", builtin_code(code))
    calls: list[set[int]] = []
    for number, subgraph in enumerate(model.subgraphs):
        count = len(subgraph.tensors or [])
        check.indices(subgraph.inputs, count, f"inputs of subgraph {number}")
        check.indices(subgraph.outputs, count, f"outputs of subgraph {number}")
        records = _records(model, subgraph)
        for index, tensor in enumerate(subgraph.tensors or []):
            check.indices([tensor.buffer], len(model.buffers), f"the buffer of tensor {text(tensor.name)}")
            check_storage(tensor, model.buffers[tensor.buffer].data, subject, record=index in records)
        calls.append(_check_operators(model, number, subgraph, check))
    _check_calls(calls, check)
    _check_signatures(model, check)


def text(name: bytes | None) -> str:
    """Return a name of the file as text, whatever its bytes."""
    return (name or b"").decode("utf-8", errors="replace")


def is_decode(model: Any, operator: Any) -> bool:
    """Whether an operator is TensorFlow Lite Micro's DECODE."""
    code = model.operatorCodes[operator.opcodeIndex]
    return builtin_code(code) == schema.BuiltinOperator.CUSTOM and text(code.customCode) == DECODE


def _records(model: Any, subgraph: Any) -> set[int]:
    """Return the tensors that hold the bytes of a record; Google's compressor leaves them the scales of the weight."""
    count = len(model.operatorCodes or [])
    return {
        int(index)
        for operator in subgraph.operators or []
        if operator.opcodeIndex < count and is_decode(model, operator)
        for index in _inputs(operator)
    }


class _Check:
    """Raises, with the name of the file."""

    def __init__(self, subject: str) -> None:
        self._subject = subject

    def require(self, holds: bool, rule: str, received: object) -> None:
        if not holds:
            raise FlatbufferError(self._subject, rule, received, GET_IT_AGAIN)

    def indices(self, found: Iterable[int] | None, count: int, what: str, lowest: int = 0) -> None:
        values = np.asarray([] if found is None else found, dtype=np.int64)
        bad = values[(values < lowest) | (values >= count)]
        self.require(bad.size == 0, f"{what} must be below {count}", bad[:3].tolist())


def _check_operators(model: Any, number: int, subgraph: Any, check: _Check) -> set[int]:
    """Check the operators of a subgraph; return the subgraphs that they run."""
    tensors = subgraph.tensors or []
    operators = subgraph.operators or []
    for operator in operators:
        check.indices([operator.opcodeIndex], len(model.operatorCodes or []), "operator codes")
        check.indices(operator.inputs, len(tensors), "inputs of an operator", lowest=-1)
        check.indices(operator.outputs, len(tensors), "outputs of an operator")
        check.indices(operator.intermediates, len(tensors), "intermediates of an operator", lowest=-1)
        name = OPERATOR_NAMES[builtin_code(model.operatorCodes[operator.opcodeIndex])]
        missing = [slot for slot, index in enumerate(_inputs(operator)[:2]) if index < 0]
        check.require(set(missing) <= set(LEAVES_OUT.get(name, ())), f"{name} must have its first inputs", missing)
        if name == "DENSIFY":
            _check_densify(tensors, operator, check)
        expected = OPTIONS.get(name)
        fits = expected is None or operator.builtinOptions is None or isinstance(operator.builtinOptions, expected)
        check.require(fits, f"{name} must have its own options", type(operator.builtinOptions).__name__)
    # Memory of constants is read-only where the runtime maps the file.
    fed = {int(index) for index in (subgraph.inputs if subgraph.inputs is not None else [])}
    fed |= {i for i, t in enumerate(tensors) if _holds_data(model, t)}
    produced: set[int] = set()
    for operator in operators:
        for index in _outputs(operator):
            check.require(
                int(index) not in fed and int(index) not in produced,
                f"tensor {text(tensors[index].name)} of subgraph {number} must be computed once, and be no constant",
                "a second producer",
            )
            produced.add(int(index))
    ready: set[int] = set()
    for operator in operators:
        early = [int(i) for i in _inputs(operator) if int(i) in produced and int(i) not in ready]
        check.require(not early, "an operator must come after the ones whose outputs it reads", early[:3])
        ready |= {int(index) for index in _outputs(operator)}
    return {called for operator in operators for called in _called(operator, len(model.subgraphs), check)}


def _check_densify(tensors: Sequence[Any], operator: Any, check: _Check) -> None:
    """Check that the output is as large as the input: XNNPACK's delegate fills it without looking."""
    ends = [[tensors[i] for i in side if i >= 0] for side in (_inputs(operator), _outputs(operator))]
    single = [len(side) == 1 for side in ends] == [True, True]
    check.require(single, "DENSIFY must have one input and one output", [len(side) for side in ends])
    shapes = [[] if side[0].shape is None else [int(size) for size in side[0].shape] for side in ends]
    check.require(shapes[0] == shapes[1], f"DENSIFY must keep the shape {shapes[0]}", shapes[1])
    kinds = [side[0].type for side in ends]
    check.require(kinds[0] == kinds[1], f"DENSIFY must keep the type {kinds[0]}", kinds[1])


def _inputs(operator: Any) -> Sequence[int]:
    return operator.inputs if operator.inputs is not None else ()


def _outputs(operator: Any) -> Sequence[int]:
    return operator.outputs if operator.outputs is not None else ()


def _holds_data(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _called(operator: Any, count: int, check: _Check) -> set[int]:
    """Return the subgraphs that an operator runs."""
    called: set[int] = set()
    for options in (operator.builtinOptions, operator.builtinOptions2):
        for field in SUBGRAPH_FIELDS:
            value = getattr(options, field, None)
            if value is None:
                continue
            found = np.atleast_1d(np.asarray(value, dtype=np.int64))
            check.indices(found, count, field, lowest=-1)  # -1: an IF without an else
            called |= {int(index) for index in found if index >= 0}
    return called


def _check_calls(calls: list[set[int]], check: _Check) -> None:
    """Refuse subgraphs that run each other in a circle: the runtime would recurse until its stack ends."""
    left = dict(enumerate(calls))
    while left:
        leaves = {number for number, called in left.items() if not called & left.keys()}
        check.require(bool(leaves), "subgraphs must not run each other in a circle", sorted(left)[:3])
        for number in leaves:
            del left[number]


def _check_signatures(model: Any, check: _Check) -> None:
    for signature in model.signatureDefs or []:
        check.indices([signature.subgraphIndex], len(model.subgraphs), "subgraphs of signatures")
        count = len(model.subgraphs[signature.subgraphIndex].tensors or [])
        named = (signature.inputs or []) + (signature.outputs or [])
        check.indices([entry.tensorIndex for entry in named], count, "tensors of a signature")
    for entry in model.metadata or []:
        check.indices([entry.buffer], len(model.buffers), "the buffer of metadata")
