"""The conditions under which a weight may be stored sparse, as named predicates with reasons.

Each predicate takes a `Weight` and returns a `Verdict`. What the kernels ask for was read in
LiteRT's sources (`tflite/kernels/fully_connected.cc`, `tflite/kernels/densify.cc`,
`tflite/delegates/xnnpack/xnnpack_delegate.cc`), and each combination was run, with the delegate and without
(`docs/design/quantization.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_prune.devices import Encoding
from tflite_export.file.encoding import nonzero_blocks

__all__ = [
    "DENSIFY_CONSUMERS",
    "FUSABLE_ACTIVATIONS",
    "MINIMAL_BLOCK_SHARE",
    "SMALLEST",
    "Consumer",
    "Verdict",
    "Weight",
    "accepts_densified",
    "divides_into_blocks",
    "feeds_sparse_kernel",
    "has_zeros",
    "is_finite",
    "is_large_enough",
    "is_number_type",
    "is_one_array",
    "runtime_is_right",
    "zero_unit_share",
    "zeros_form_blocks",
]

SMALLEST = 64
"""Elements: below that, the index and the tables of a sparse tensor outweigh its zeros."""

_FLOAT_CONSUMERS = frozenset(
    {
        ("FULLY_CONNECTED", 1),
        ("CONV_2D", 1),
        ("DEPTHWISE_CONV_2D", 1),
        ("TRANSPOSE_CONV", 1),
        ("CONV_3D", 1),
        ("BATCH_MATMUL", 0),
        ("BATCH_MATMUL", 1),
        ("GATHER", 0),
        ("EMBEDDING_LOOKUP", 1),
    }
)
DENSIFY_CONSUMERS: dict[tuple[str, str], frozenset[tuple[str, int]]] = {
    ("float32", "float32"): _FLOAT_CONSUMERS,
    # Behind a DEQUANTIZE; any other reader gets NaN from XNNPACK.
    ("float16", "float32"): frozenset({("FULLY_CONNECTED", 1), ("CONV_2D", 1), ("DEPTHWISE_CONV_2D", 1)}),
    # XNNPACK hands the data of a FULLY_CONNECTED's int8 weight on before DENSIFY has made any.
    ("int8", "int8"): frozenset({("CONV_2D", 1), ("DEPTHWISE_CONV_2D", 1), ("TRANSPOSE_CONV", 1), ("GATHER", 0)}),
    # Dynamic range: likewise, for CONV_2D too.
    ("int8", "float32"): frozenset({("TRANSPOSE_CONV", 1)}),
    # XNNPACK has no int16 activations; these run in LiteRT's own kernels.
    ("int8", "int16"): frozenset(
        {("FULLY_CONNECTED", 1), ("CONV_2D", 1), ("DEPTHWISE_CONV_2D", 1), ("TRANSPOSE_CONV", 1)}
    ),
}
"""For (type of the weight, type that the operator gives out), the (operator, input) pairs whose kernels take a
weight that DENSIFY computes; each is run in the tests."""

MINIMAL_BLOCK_SHARE = 0.9
"""Share of the zeros that must lie in whole zero blocks (as in TensorFlow's dense-to-sparse pass)."""

FUSABLE_ACTIVATIONS = frozenset({"NONE", "RELU", "RELU_N1_TO_1", "RELU6"})
"""Activations that the sparse FULLY_CONNECTED kernel clips to; it has no others."""


@dataclass(frozen=True)
class Consumer:
    """One use of a tensor.

    Args:
        operator: kind of the operator: `FULLY_CONNECTED`.
        slot: which of its inputs the tensor is.
        activation: its fused activation, `NONE` where it has none.
        default_layout: its weights are in the default layout (FULLY_CONNECTED has a shuffled one too).
        computes: type of what it gives out: "float32", "int8", "int16".
        rows: rows that it multiplies the weight with, for one sample; None where unknown.
    """

    operator: str
    slot: int
    activation: str = "NONE"
    default_layout: bool = True
    computes: str = "float32"
    rows: int | None = None


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant of the file, with what the predicates need to know of its surroundings.

    Args:
        name: the Keras variable's path where it was recognised, else the tensor's name.
        values: dense values, TFLite layout ([out, in] for FULLY_CONNECTED).
        consumers: its uses, over all tensors that share its buffer.
        tensors: (subgraph, tensor) of each tensor that shares its buffer.
        is_output: one of the tensors is an output of its subgraph.
        agree: the tensors have the same shape and type.
        dequantized: its uses are those of the float32 tensor that a DEQUANTIZE makes of it.
    """

    name: str
    values: NDArray[Any]
    consumers: tuple[Consumer, ...]
    tensors: tuple[tuple[int, int], ...]
    is_output: bool = False
    agree: bool = True
    dequantized: bool = False

    @cached_property
    def sparsity(self) -> float:
        """Share of zeros, a fraction in [0, 1]."""
        return 1.0 - float(np.count_nonzero(self.values)) / max(self.values.size, 1)

    @property
    def rows(self) -> int | None:
        """The most rows that it is multiplied with at once; None where one of its uses is unknown."""
        rows = [consumer.rows for consumer in self.consumers]
        known = [count for count in rows if count is not None]
        return max(known) if known and len(known) == len(rows) else None


@dataclass(frozen=True)
class Verdict:
    """Whether a predicate holds, and why."""

    holds: bool
    reason: str

    def __bool__(self) -> bool:
        """Return whether the predicate holds."""
        return self.holds


def is_number_type(weight: Weight) -> Verdict:
    """The weight is float32, int8, or a float16 that a DEQUANTIZE reads: what DENSIFY and the kernels know."""
    name = weight.values.dtype.name
    known = name in ("float32", "int8") or (name == "float16" and weight.dequantized)
    return Verdict(known, f"{name}: only float32, int8, and float16 before a DEQUANTIZE are stored sparse")


def is_large_enough(weight: Weight) -> Verdict:
    """The weight has rank 2 or more, and enough elements for an index to pay."""
    shape = list(weight.values.shape)
    return Verdict(
        weight.values.ndim >= 2 and weight.values.size >= SMALLEST,
        f"shape {shape}: too small (rank 2 and {SMALLEST} elements are needed)",
    )


def is_finite(weight: Weight) -> Verdict:
    """The weight holds no NaN and no infinity."""
    bad = int(weight.values.size - np.count_nonzero(np.isfinite(weight.values)))
    return Verdict(bad == 0, f"{bad} values are NaN or infinite")


def is_one_array(weight: Weight) -> Verdict:
    """The tensors that share the buffer read it as the same array."""
    return Verdict(weight.agree, f"its buffer is shared by {len(weight.tensors)} tensors of different shapes")


def has_zeros(weight: Weight) -> Verdict:
    """The weight holds a zero at all."""
    return Verdict(weight.sparsity > 0, "no zeros")


def accepts_densified(weight: Weight) -> Verdict:
    """Every operator that reads the weight takes it from a DENSIFY."""
    if weight.is_output:
        return Verdict(False, "an output of its subgraph, which must stay dense")
    if not weight.consumers:
        return Verdict(False, "no operator reads it")
    kind = weight.values.dtype.name
    others = sorted(
        {
            f"{c.operator} (input {c.slot}{'' if c.computes == kind else ', in ' + c.computes})"
            for c in weight.consumers
            if (c.operator, c.slot) not in DENSIFY_CONSUMERS.get((kind, c.computes), frozenset())
        }
    )
    what = "a weight" if kind == "float32" else f"{'an' if kind[0] == 'i' else 'a'} {kind} weight"
    return Verdict(not others, f"read by {', '.join(others)}, not known to take {what} from DENSIFY")


def runtime_is_right(weight: Weight) -> Verdict:
    """The number type is not what keeps the weight from being stored sparse: in float32 it could not be either."""
    kind = weight.values.dtype.name
    if not weight.consumers or weight.is_output or accepts_densified(weight):
        return Verdict(True, "")
    stored = all((consumer.operator, consumer.slot) in _FLOAT_CONSUMERS for consumer in weight.consumers)
    return Verdict(not stored, f"the runtime gets a sparse {kind} weight wrong there")


def feeds_sparse_kernel(weight: Weight, encoding: Encoding) -> Verdict:
    """Every reader is a FULLY_CONNECTED in the default layout, of the types and activations of the kernel.

    The float kernels (1x4 blocks, CSR) read float32 weights: a float16 one is written as float32 for them. The
    int8 kernel (1x16 blocks) is for int8 inputs; with float32 ones (dynamic range) XNNPACK takes the operator
    and reads the blocks as if they were a dense matrix.
    """
    int8 = encoding is Encoding.BLOCK16
    name = {Encoding.BLOCK: "1x4", Encoding.BLOCK16: "1x16", Encoding.CSR: "CSR"}[encoding]
    kind = weight.values.dtype.name
    if weight.is_output or not weight.consumers:
        return Verdict(False, f"the {name} kernel is reached from FULLY_CONNECTED only")
    if (kind == "int8") is not int8:
        return Verdict(False, f"the {name} kernel reads no {kind}")
    for consumer in weight.consumers:
        if (consumer.operator, consumer.slot) != ("FULLY_CONNECTED", 1):
            return Verdict(
                False,
                f"the {name} kernel is FULLY_CONNECTED's; {consumer.operator} reads the weight",
            )
        if consumer.computes != ("int8" if int8 else "float32"):
            return Verdict(False, f"the {name} kernel is right with {'int8' if int8 else 'float32'} inputs only")
        if not consumer.default_layout:
            return Verdict(False, f"the {name} kernel needs the default weights layout")
        if consumer.activation not in FUSABLE_ACTIVATIONS:
            return Verdict(False, f"the {name} kernel has no activation {consumer.activation}")
    return Verdict(weight.values.ndim == 2, f"the {name} kernel needs rank 2, not {weight.values.ndim}")


def divides_into_blocks(weight: Weight, block: int = 4) -> Verdict:
    """The inputs of a FULLY_CONNECTED weight [out, in] divide by the length of a block."""
    inputs = weight.values.shape[-1]
    return Verdict(inputs % block == 0, f"{inputs} inputs are not a multiple of {block}")


def zero_unit_share(weight: Weight, encoding: Encoding) -> float:
    """Return the share of units that are zero: of blocks, or of weights for CSR.

    The weight [out, in] divides into blocks.
    """
    if encoding.block is None:
        return weight.sparsity
    blocks = nonzero_blocks(weight.values, encoding.block)
    return 1.0 - float(np.count_nonzero(blocks)) / blocks.size


def zeros_form_blocks(weight: Weight, share: float, block: int = 4) -> Verdict:
    """Zero blocks / single zeros is at least 0.9.

    Args:
        weight: the weight.
        share: of its blocks that are zero.
        block: their length.
    """
    zeros = weight.sparsity
    return Verdict(
        zeros > 0 and share >= MINIMAL_BLOCK_SHARE * zeros,
        f"no 1x{block} blocks: {share:.1%} of them are zero beside {zeros:.1%} of the weights",
    )
