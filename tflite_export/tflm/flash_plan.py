"""How each weight lies in a microcontroller's flash: dense, or as the DECODE record that takes the fewest bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keras_prune.arrays.encoding import RECORD_TABLES
from tflite_export.plan.eligibility import SMALLEST, Verdict, Weight
from tflite_export.plan.plan import LARGEST_SHARE, PlanLine, as_dense
from tflite_export.tflm.records import LONGEST_CODE, Form, Record, bitmask, huffman_code, lookup_table
from tflite_export.tflm.seen import ENCODINGS

__all__ = ["AGAIN", "FORMS", "ONCE", "READERS", "Stored", "choose", "tables_of"]

READERS = frozenset(
    {("FULLY_CONNECTED", 1), ("CONV_2D", 1), ("DEPTHWISE_CONV_2D", 1), ("TRANSPOSE_CONV", 1), ("GATHER", 0)}
)
"""The (operator, input) pairs whose kernels read a weight when they run, so that DECODE may compute it.

Those that look at it when the interpreter is set up must have a constant: SVDF and LSTM in CMSIS-NN, for instance.
"""
AGAIN = 144
"""Bytes that each further operator that reads the weight adds."""
ONCE = 144
"""Bytes that the first record of a file adds besides: the operator's code, and its line in the metadata."""
_WORDS = {Form.BITMASK: "bitmask", Form.TABLE: "look-up table", Form.HUFFMAN: "Huffman code"}
FORMS = {"bitmask": Form.BITMASK, "table": Form.TABLE, "huffman": Form.HUFFMAN}
"""The forms of records, by the names that users give them."""
_MADE: dict[Form, Callable[[Any, int | None], Record | None]] = {
    Form.BITMASK: lambda values, axis: bitmask(values),
    Form.TABLE: lambda values, axis: lookup_table(values, axis),
    Form.HUFFMAN: lambda values, axis: huffman_code(values),
}


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight as it is to lie in the file.

    Args:
        line: of the report, with the reason.
        record: None: dense.
        saved: bytes that the file gets shorter by.
    """

    line: PlanLine
    record: Record | None = None
    saved: int = 0

    def as_dense(self, reason: str) -> Stored:
        """Return the weight dense, for a reason."""
        return Stored(as_dense(self.line, reason))


def choose(
    model: Any, weights: Iterable[Weight], lines: Iterable[PlanLine], forms: Sequence[Form] = tuple(FORMS.values())
) -> list[Stored]:
    """Return how each weight of a dense file takes the fewest bytes.

    Args:
        model: the file's `ModelT`.
        weights: of it.
        lines: one for each weight, in the same order.
        forms: that a record may have.
    """
    found = [_choose(model, weight, line, forms) for weight, line in zip(weights, lines, strict=True)]
    saved = sum(each.saved for each in found)
    if saved > ONCE:
        return found
    reason = f"records of all weights would save {saved} bytes, and the operator DECODE takes {ONCE}"
    return [each if each.record is None else each.as_dense(reason) for each in found]


def _choose(model: Any, weight: Weight, line: PlanLine, forms: Sequence[Form]) -> Stored:
    number, index = weight.tensors[0]
    quantization = model.subgraphs[number].tensors[index].quantization
    for verdict in (_is_int8(weight), _is_read_when_run(weight), _has_plain_scales(weight, quantization)):
        if not verdict:
            return Stored(as_dense(line, verdict.reason))
    scales = len(quantization.scale)
    axis = int(quantization.quantizedDimension) if scales > 1 else None
    found = [record for form in forms if (record := _MADE[form](weight.values, axis)) is not None]
    sizes = ", ".join(f"{_WORDS[record.form]} {record.size:,}" for record in found)
    if len(found) < len(forms):
        many = f"too many values for a look-up table, which has {2**LONGEST_CODE}"
        if not found:
            return Stored(as_dense(line, many))
        sizes += f" ({many})"
    best = min(found, key=lambda record: record.size)
    tables = tables_of(len(weight.consumers))
    saved = weight.values.nbytes - best.size - tables
    share = (best.size + tables) / weight.values.nbytes
    if share > LARGEST_SHARE:
        why = f"decoded, it would take {share:.0%} of its dense bytes: {sizes}, and {tables} for DECODE"
        return Stored(as_dense(line, why))
    reason = f"{share:.0%} of its dense bytes with {tables} for DECODE, the smallest of: {sizes} bytes"
    made = replace(line, encoding=ENCODINGS[best.form], reason=reason, stored_bytes=best.size, gain=None)
    return Stored(made, best, saved)


def tables_of(readers: int) -> int:
    """Return the bytes that a record adds to a file besides its own.

    Args:
        readers: operators that read the weight: each has a DECODE of its own.
    """
    return RECORD_TABLES + (readers - 1) * AGAIN


def _is_int8(weight: Weight) -> Verdict:
    """The weight is int8, of rank 2 or more, and large enough."""
    kind, shape = weight.values.dtype.name, list(weight.values.shape)
    if kind != "int8":
        return Verdict(False, f"{kind}: only int8 weights are stored as DECODE records")
    large = weight.values.ndim >= 2 and weight.values.size >= SMALLEST
    return Verdict(large, f"shape {shape}: too small (at least rank 2 and {SMALLEST} elements are needed)")


def _is_read_when_run(weight: Weight) -> Verdict:
    """Every reader takes a weight that DECODE computes, and no tensor of another shape shares its bytes."""
    if weight.is_output:
        return Verdict(False, "an output of its subgraph, which must stay dense")
    if not weight.consumers:
        return Verdict(False, "no operator reads it")
    if not weight.agree:
        return Verdict(False, f"its buffer is shared by {len(weight.tensors)} tensors of different shapes or types")
    others = sorted({f"{c.operator} (input {c.slot})" for c in weight.consumers if (c.operator, c.slot) not in READERS})
    return Verdict(not others, f"read by {', '.join(others)}, not known to take a weight that DECODE computes")


def _has_plain_scales(weight: Weight, quantization: Any) -> Verdict:
    """Its zero points are 0, and its scales are one, or lie on the first or last axis: the kernel knows no others."""
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return Verdict(False, "it has no scale")
    if quantization.zeroPoint is not None and np.any(quantization.zeroPoint):
        return Verdict(False, "its zero point is not 0, and DECODE puts zero points where nothing is stored")
    axis, last = int(quantization.quantizedDimension), weight.values.ndim - 1
    known = axis == 0 or (axis == last and len(quantization.scale) > 1)
    return Verdict(
        known, f"its scale lies on axis {axis} of {list(weight.values.shape)}, and DECODE knows the first and last"
    )
