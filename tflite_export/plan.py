"""The plan: for each weight, how it is stored, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from tflite_export import eligibility as rules
from tflite_export.eligibility import Verdict, Weight
from tflite_export.encoding import SparseArray, encode_blocks, encode_csr

LARGEST_SHARE = 0.95
"""A weight is stored sparse for its size where that takes at most this share of its dense bytes."""
TABLES = 512
"""Bytes of tables, names and padding that a sparse tensor adds, with its DENSIFY (measured: 250 to 450)."""


class Encoding(str, Enum):
    """How a weight is stored."""

    DENSE = "dense"
    BLOCK = "1x4 blocks"
    DENSIFY = "CSR + DENSIFY"


@dataclass(frozen=True)
class PlanLine:
    """One weight of the plan.

    Args:
        name: The Keras variable's path where it was recognised, else the tensor's name.
        shape: TFLite layout.
        sparsity: Share of zeros, a fraction in [0, 1].
        encoding: How it is stored.
        reason: Why.
        dense_bytes: Its size stored dense.
        stored_bytes: Its size as planned: values and index.
        tensors: (subgraph, tensor) of each tensor that shares the weight's buffer.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    encoding: Encoding
    reason: str
    dense_bytes: int
    stored_bytes: int
    tensors: tuple[tuple[int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the line as a JSON-able dictionary."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "sparsity": self.sparsity,
            "encoding": self.encoding.value,
            "reason": self.reason,
            "dense_bytes": self.dense_bytes,
            "stored_bytes": self.stored_bytes,
        }


@dataclass(frozen=True)
class Plan:
    """A line for each weight of the file."""

    lines: tuple[PlanLine, ...]

    @property
    def sparse(self) -> tuple[PlanLine, ...]:
        """The lines that are not dense."""
        return tuple(line for line in self.lines if line.encoding is not Encoding.DENSE)

    def only(self, kept: Iterable[PlanLine], reason: str) -> Plan:
        """Return the plan with every sparse line that is not ``kept`` made dense, for a reason."""
        keep = set(kept)
        return Plan(
            tuple(
                line if line in keep or line.encoding is Encoding.DENSE else _as_dense(line, reason)
                for line in self.lines
            )
        )


def make_plan(weights: Iterable[Weight]) -> Plan:
    """Choose an encoding for each weight.

    1x4 blocks where every reader is a FULLY_CONNECTED that the kernel serves, the zeros form blocks, and
    enough of these are zero for it to be faster than the dense kernel; otherwise CSR behind a DENSIFY (dense
    in memory, as fast as dense) where that makes the file smaller; otherwise dense.
    """
    return Plan(tuple(plan_weight(weight) for weight in weights))


def plan_weight(weight: Weight) -> PlanLine:
    """Choose the encoding of one weight."""
    refusal = _first_refusal(
        weight, rules.is_float32, rules.is_large_enough, rules.is_one_array, rules.has_zeros, rules.is_finite
    )
    if refusal is not None:
        return _line(weight, Encoding.DENSE, refusal)
    blocks = _first_refusal(
        weight,
        rules.feeds_block_kernel,
        rules.divides_into_blocks,
        rules.zeros_form_blocks,
        rules.block_kernel_pays,
    )
    if blocks is None:
        return _line(weight, Encoding.BLOCK, rules.block_kernel_pays(weight).reason)
    refusal = _first_refusal(weight, rules.accepts_densified, rules.is_safe_pointwise)
    if refusal is not None:
        return _line(weight, Encoding.DENSE, refusal)
    line = _line(weight, Encoding.DENSIFY, "")
    share = (line.stored_bytes + TABLES) / line.dense_bytes
    # Why not blocks is of interest only where the operator has a kernel for them.
    why = f"; {blocks}" if rules.feeds_block_kernel(weight) else ""
    if share > LARGEST_SHARE:
        return _line(weight, Encoding.DENSE, f"sparse it would take {share:.0%} of its dense bytes{why}")
    return replace(line, reason=f"{share:.0%} of its dense bytes in the file, dense in memory{why}")


def _first_refusal(weight: Weight, *predicates: Callable[[Weight], Verdict]) -> str | None:
    """Return the reason of the first predicate that does not hold, or None."""
    return next((verdict.reason for predicate in predicates if not (verdict := predicate(weight))), None)


def encoded(weight: Weight, encoding: Encoding) -> SparseArray | None:
    """Return a weight encoded, or None for dense."""
    if encoding is Encoding.BLOCK:
        return encode_blocks(weight.values)
    if encoding is Encoding.DENSIFY:
        return encode_csr(weight.values)
    return None


def _line(weight: Weight, encoding: Encoding, reason: str) -> PlanLine:
    sparse = encoded(weight, encoding)
    dense_bytes = int(weight.values.nbytes)
    return PlanLine(
        name=weight.name,
        shape=tuple(int(size) for size in weight.values.shape),
        sparsity=weight.sparsity,
        encoding=encoding,
        reason=reason,
        dense_bytes=dense_bytes,
        stored_bytes=dense_bytes if sparse is None else sparse.nbytes,
        tensors=weight.tensors,
    )


def _as_dense(line: PlanLine, reason: str) -> PlanLine:
    return replace(line, encoding=Encoding.DENSE, reason=reason, stored_bytes=line.dense_bytes)
