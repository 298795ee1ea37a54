"""The plan: for each weight, how it is stored, what reads it, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from keras_prune.devices import Device, Encoding, Kernel
from keras_prune.devices.catalogue import ANY
from keras_prune.devices.gains import PAYS
from tflite_export.errors import ExportError
from tflite_export.file.encoding import SparseArray, encode_blocks, encode_csr, encoded_bytes
from tflite_export.plan import eligibility as rules
from tflite_export.plan.eligibility import Verdict, Weight

__all__ = [
    "LARGEST_SHARE",
    "PORTABLE",
    "TABLES",
    "Optimize",
    "Options",
    "Plan",
    "PlanLine",
    "as_dense",
    "check_strict",
    "dense_bytes",
    "encoded",
    "make_plan",
    "plan_weight",
    "stored_values",
    "weigh",
]

LARGEST_SHARE = 0.95
"""A weight is stored sparse for its size where that takes at most this share of its dense bytes."""
TABLES = 512
"""Bytes of tables, names and padding that a sparse tensor adds, with its DENSIFY (measured: 250 to 450)."""

Optimize = Literal["speed", "size", "portable"]
PORTABLE = "dense, for every runtime: OpenVINO takes no blocks, TensorFlow Lite Micro and Vela no DENSIFY"
"""Why a weight is dense in a portable file."""

_FIRST = (rules.is_number_type, rules.is_large_enough, rules.is_one_array, rules.has_zeros, rules.is_finite)
"""What any sparse encoding needs."""


@dataclass(frozen=True)
class PlanLine:
    """One weight of the plan.

    Args:
        name: the Keras variable's path where it was recognised, else the tensor's name.
        shape: TFLite layout.
        sparsity: share of zeros, a fraction in [0, 1].
        encoding: how it is stored.
        reason: why.
        dense_bytes: its size stored dense.
        stored_bytes: its size as planned: values and index.
        tensors: (subgraph, tensor) of each tensor that shares the weight's buffer.
        gain: expected time of the operator with the weight dense / with the weight as planned, on the target;
            None where nothing was measured.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    encoding: Encoding
    reason: str
    dense_bytes: int
    stored_bytes: int
    tensors: tuple[tuple[int, int], ...]
    gain: float | None = None

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
            "gain": self.gain,
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
        """Return the plan with every sparse line that is not `kept` made dense, for a reason."""
        keep = set(kept)
        return Plan(
            tuple(
                line if line in keep or line.encoding is Encoding.DENSE else as_dense(line, reason)
                for line in self.lines
            )
        )


def make_plan(
    weights: Iterable[Weight],
    target: Device = ANY,
    *,
    optimize: Optimize = "speed",
    clusters: Callable[[Weight], str | None] | None = None,
) -> Plan:
    """Choose an encoding for each weight.

    For speed: the sparse kernel of the target that is expected to be the fastest, where it is faster than the
    dense one; otherwise CSR behind a DENSIFY (dense in memory, as fast as dense) where that makes the file
    smaller; otherwise dense. For size: the smallest of all that the runtime gets right. Portable: dense.

    Args:
        weights: of the dense file.
        target: the device.
        optimize: "speed"; "size": smaller even where it is slower; "portable": dense, which every runtime reads.
        clusters: says how XNNPACK's sparse inference will read a weight, None where it does not; None: not predicted.
    """
    weights = list(weights)
    total = dense_bytes(weights)
    return Plan(
        tuple(
            plan_weight(weight, target, total_bytes=total, optimize=optimize, clusters=clusters) for weight in weights
        )
    )


def check_strict(plan: Plan, weights: Iterable[Weight]) -> None:
    """Refuse a plan in which a weight is dense only because the runtime gets its number type wrong when sparse.

    Raises:
        ExportError: with the first such weight that would take less when sparse.
    """
    by_tensors = {weight.tensors: weight for weight in weights}
    for line in plan.lines:
        weight = by_tensors[line.tensors]
        if line.encoding is not Encoding.DENSE or _first_refusal(weight, *_FIRST):
            continue
        right = rules.runtime_is_right(weight)
        sparse = encoded_bytes(weight.values, None, weight.values.itemsize) + TABLES
        if not right and sparse <= LARGEST_SHARE * line.dense_bytes:
            raise ExportError(
                f"weight '{line.name}'",
                f"must be stored sparse with strict=True, but {right.reason}",
                line.reason,
                "Export with strict=False to leave it dense, or with another quantize.",
            )


def dense_bytes(weights: Iterable[Weight]) -> int:
    """Return the bytes of all weights when dense, in the type that they are computed in."""
    return sum(int(weight.values.size) * (4 if weight.dequantized else weight.values.itemsize) for weight in weights)


def plan_weight(
    weight: Weight,
    target: Device = ANY,
    *,
    total_bytes: int | None = None,
    optimize: Optimize = "speed",
    clusters: Callable[[Weight], str | None] | None = None,
) -> PlanLine:
    """Choose the encoding of one weight.

    Args:
        weight: the weight.
        target: the device.
        total_bytes: of all weights of the file when dense; None: this one is all.
        optimize: "speed", "size" or "portable".
        clusters: as for `make_plan`.
    """
    if optimize == "portable":
        return _line(weight, Encoding.DENSE, PORTABLE)
    options = weigh(weight, target, total_bytes=total_bytes, clusters=clusters)
    if optimize == "size":
        return _smallest(weight, options)
    paying = [line for line in options.kernels if options.pays(line)]
    if paying:
        return max(paying, key=lambda line: line.gain or PAYS)
    if options.densified is None:
        return _line(weight, Encoding.DENSE, "; ".join((*options.refused, *options.slow)))
    # Why not a kernel is of interest only where the operator has one.
    why = "".join(f"; {reason}" for reason in options.slow)
    share = (options.densified.stored_bytes + TABLES) / options.densified.dense_bytes
    if share > LARGEST_SHARE:
        return _line(weight, Encoding.DENSE, f"stored sparse, it would take {share:.0%} of its dense bytes{why}")
    return replace(
        options.densified, reason=f"{share:.0%} of its dense bytes in the file, {options.densified.reason}{why}"
    )


@dataclass(frozen=True)
class Options:
    """The ways to store a weight that the runtime gets right.

    Args:
        kernels: a line for each sparse kernel that can read it.
        densified: the line with a DENSIFY.
        slow: why kernels that its operator has are not faster than the dense one.
        refused: why it cannot be stored sparse at all, or not behind a DENSIFY.
        loses: encodings of the kernels named in `slow`.
    """

    kernels: tuple[PlanLine, ...] = ()
    densified: PlanLine | None = None
    slow: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    loses: frozenset[Encoding] = frozenset()

    def pays(self, line: PlanLine) -> bool:
        """Return whether a kernel's line is expected to be faster than dense."""
        return line.encoding not in self.loses


def weigh(
    weight: Weight,
    target: Device = ANY,
    *,
    total_bytes: int | None = None,
    clusters: Callable[[Weight], str | None] | None = None,
) -> Options:
    """Return the ways to store a weight on a target, with what each is expected to gain."""
    refusal = _first_refusal(weight, *_FIRST)
    if refusal is not None:
        return Options(refused=(refusal,))
    total = weight.values.nbytes if total_bytes is None else total_bytes
    kernels, slow, loses = [], [], set()
    for kernel in target.kernels:
        if not rules.feeds_sparse_kernel(weight, kernel.encoding):
            continue
        block = kernel.encoding.block or 1
        divides = rules.divides_into_blocks(weight, block)
        if not divides:
            slow.append(divides.reason)
            continue
        line, loss = _kernel_line(weight, kernel, block, total)
        kernels.append(line)
        if loss is not None:
            slow.append(loss)
            loses.add(kernel.encoding)
    if not target.densify:
        return Options(tuple(kernels), None, tuple(slow), (f"target '{target.name}' has no DENSIFY",), frozenset(loses))
    refusal = _first_refusal(weight, rules.accepts_densified)
    if refusal is not None:
        return Options(tuple(kernels), None, tuple(slow), (refusal,), frozenset(loses))
    return Options(tuple(kernels), _densified(weight, target, clusters), tuple(slow), (), frozenset(loses))


def _kernel_line(weight: Weight, kernel: Kernel, block: int, total: int) -> tuple[PlanLine, str | None]:
    """Return the line of a sparse kernel, and why it loses against the dense one where it does."""
    rows = weight.rows
    share = rules.zero_unit_share(weight, kernel.encoding)
    gain = kernel.gain(rows, total, share)
    threshold = kernel.threshold(rows, total)
    what = f"{share:.1%} of {f'1x{block} blocks' if block > 1 else 'the weights'} are zero"
    at = f"{rows} row{'s' * (rows != 1)}" if rows is not None else "an unknown number of rows"
    place = f"from {threshold:.0%}" if threshold <= 1 else "nowhere"
    expected = f", expected {gain:.2g} x" if gain is not None else ""
    reason = f"{what}; the kernel is faster {place} at {at}{expected}"
    line = _line(weight, kernel.encoding, reason, gain)
    if block > 1 and not (formed := rules.zeros_form_blocks(weight, share, block)):
        return line, formed.reason
    return line, None if (gain >= PAYS if gain is not None else share >= threshold) else reason


def _densified(weight: Weight, target: Device, clusters: Callable[[Weight], str | None] | None) -> PlanLine:
    """Return the line of a weight behind a DENSIFY: read by SpMM in a cluster, else as any dense weight."""
    read = clusters(weight) if clusters is not None else None
    if read is None or target.clusters is None:
        return _line(weight, Encoding.DENSIFY, "dense in memory", 1.0)
    gain = target.clusters.gain(weight.sparsity) if target.clusters.everywhere else None
    if gain is not None:
        read += f", expected {gain:.2g} x for the network"
    elif not target.clusters.everywhere:
        read += " where XNNPACK runs sparse, dense in memory elsewhere"
    return _line(weight, Encoding.DENSIFY, read, gain)


def _smallest(weight: Weight, options: Options) -> PlanLine:
    """Return the option of the fewest bytes, or dense where none saves anything."""
    lines = [*options.kernels, *([options.densified] if options.densified else [])]
    if not lines:
        return _line(weight, Encoding.DENSE, "; ".join((*options.refused, *options.slow)))
    line = min(lines, key=lambda line: line.stored_bytes)
    share = (line.stored_bytes + TABLES) / line.dense_bytes
    if share > LARGEST_SHARE:
        return _line(weight, Encoding.DENSE, f"stored sparse, it would take {share:.0%} of its dense bytes")
    return replace(line, reason=f"{share:.0%} of its dense bytes, the smallest; {line.reason}")


def _first_refusal(weight: Weight, *predicates: Callable[[Weight], Verdict]) -> str | None:
    """Return the reason of the first predicate that does not hold, or None."""
    return next((verdict.reason for predicate in predicates if not (verdict := predicate(weight))), None)


def stored_values(weight: Weight, encoding: Encoding) -> NDArray[Any]:
    """Return the values in the type that an encoding stores: float32 for the float kernels, else their own."""
    float_kernel = encoding in (Encoding.BLOCK, Encoding.CSR)
    return weight.values.astype(np.float32, copy=False) if float_kernel else weight.values


def encoded(weight: Weight, encoding: Encoding) -> SparseArray | None:
    """Return a weight encoded, or None for dense."""
    if encoding is Encoding.DENSE:
        return None
    values = stored_values(weight, encoding)
    return encode_csr(values) if encoding.block is None else encode_blocks(values, encoding.block)


def _line(weight: Weight, encoding: Encoding, reason: str, gain: float | None = 1.0) -> PlanLine:
    dense_bytes = int(weight.values.nbytes)
    if encoding is Encoding.DENSE:
        stored = dense_bytes
    else:
        itemsize = 4 if encoding in (Encoding.BLOCK, Encoding.CSR) else weight.values.itemsize
        stored = encoded_bytes(weight.values, encoding.block, itemsize)
    return PlanLine(
        name=weight.name,
        shape=tuple(int(size) for size in weight.values.shape),
        sparsity=weight.sparsity,
        encoding=encoding,
        reason=reason,
        dense_bytes=dense_bytes,
        stored_bytes=stored,
        tensors=weight.tensors,
        gain=gain,
    )


def as_dense(line: PlanLine, reason: str) -> PlanLine:
    """Return a line made dense, for a reason."""
    return replace(line, encoding=Encoding.DENSE, reason=reason, stored_bytes=line.dense_bytes, gain=1.0)
