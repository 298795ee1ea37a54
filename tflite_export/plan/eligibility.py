"""The conditions under which a weight may be stored sparse, as named predicates with reasons.

Each predicate takes a `Weight` and returns a `Verdict`. What the kernels require is taken from LiteRT's sources
(`tflite/kernels/fully_connected.cc`, `tflite/kernels/densify.cc`, `tflite/delegates/xnnpack/xnnpack_delegate.cc`),
and each combination was run, with the delegate and without it (`docs/design/quantization.md`).
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
"""Fewest elements of a weight that is stored sparse: in a smaller one, the index takes more than its zeros save."""

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
    # Read through a DEQUANTIZE. XNNPACK gives any other reader NaN.
    ("float16", "float32"): frozenset({("FULLY_CONNECTED", 1), ("CONV_2D", 1), ("DEPTHWISE_CONV_2D", 1)}),
    # No FULLY_CONNECTED: XNNPACK passes its int8 weight on before DENSIFY has computed the values.
    ("int8", "int8"): frozenset({("CONV_2D", 1), ("DEPTHWISE_CONV_2D", 1), ("TRANSPOSE_CONV", 1), ("GATHER", 0)}),
    # Dynamic range: the same happens to CONV_2D here.
    ("int8", "float32"): frozenset({("TRANSPOSE_CONV", 1)}),
    # XNNPACK has no int16 activations, so LiteRT's own kernels run these.
    ("int8", "int16"): frozenset(
        {("FULLY_CONNECTED", 1), ("CONV_2D", 1), ("DEPTHWISE_CONV_2D", 1), ("TRANSPOSE_CONV", 1)}
    ),
}
"""For (type of the weight, type of the operator's output), the (operator, input) pairs whose kernels accept a weight
that DENSIFY computes. The tests run each of them."""

MINIMAL_BLOCK_SHARE = 0.9
"""Share of the zeros that must lie in whole zero blocks (as in TensorFlow's dense-to-sparse pass)."""

FUSABLE_ACTIVATIONS = frozenset({"NONE", "RELU", "RELU_N1_TO_1", "RELU6"})
"""Fused activations that the sparse FULLY_CONNECTED kernel supports: those that clip."""


@dataclass(frozen=True)
class Consumer:
    """One use of a tensor.

    Args:
        operator: kind of the operator that reads it, such as `FULLY_CONNECTED`.
        slot: which of the operator's inputs the tensor is, counted from 0.
        activation: the operator's fused activation, `NONE` if it has none.
        default_layout: whether its weights are in the default layout (FULLY_CONNECTED also has a shuffled one).
        computes: type of the operator's output: "float32", "int8", "int16".
        rows: number of rows that it multiplies by the weight for one sample; None if unknown.
    """

    operator: str
    slot: int
    activation: str = "NONE"
    default_layout: bool = True
    computes: str = "float32"
    rows: int | None = None


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant of the file, with what the predicates need to know about its uses.

    Args:
        name: path of the Keras variable if it was recognised, otherwise the tensor's name.
        values: dense values in TFLite's layout ([out, in] for FULLY_CONNECTED).
        consumers: uses of all tensors that share its buffer.
        tensors: (subgraph, tensor) of each tensor that shares its buffer.
        is_output: whether one of these tensors is an output of its subgraph.
        agree: whether these tensors all have the same shape and type.
        dequantized: whether `consumers` are those of the float32 tensor that a DEQUANTIZE computes from it.
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
        """The largest number of rows among its uses; None if that of one use is unknown."""
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
    """The weight is float32, int8, or a float16 that a DEQUANTIZE reads: DENSIFY and the kernels support no others."""
    name = weight.values.dtype.name
    known = name in ("float32", "int8") or (name == "float16" and weight.dequantized)
    return Verdict(known, f"{name}: only float32, int8, and float16 read by a DEQUANTIZE can be stored sparse")


def is_large_enough(weight: Weight) -> Verdict:
    """The weight has rank 2 or more, and enough elements for its zeros to save more than the index takes."""
    shape = list(weight.values.shape)
    return Verdict(
        weight.values.ndim >= 2 and weight.values.size >= SMALLEST,
        f"shape {shape}: too small (at least rank 2 and {SMALLEST} elements are needed)",
    )


def is_finite(weight: Weight) -> Verdict:
    """The weight contains no NaN and no infinity."""
    bad = int(weight.values.size - np.count_nonzero(np.isfinite(weight.values)))
    return Verdict(bad == 0, f"{bad} values are NaN or infinite")


def is_one_array(weight: Weight) -> Verdict:
    """All tensors that share the weight's buffer have the same shape and type."""
    return Verdict(weight.agree, f"its buffer is shared by {len(weight.tensors)} tensors of different shapes or types")


def has_zeros(weight: Weight) -> Verdict:
    """The weight contains at least one zero."""
    return Verdict(weight.sparsity > 0, "no zeros")


def accepts_densified(weight: Weight) -> Verdict:
    """Every operator that reads the weight accepts one that a DENSIFY computes at run time."""
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
    return Verdict(not others, f"read by {', '.join(others)}, not known to accept {what} from DENSIFY")


def runtime_is_right(weight: Weight) -> Verdict:
    """The weight's number type is not why it stays dense: in float32 its readers would not accept it sparse either."""
    kind = weight.values.dtype.name
    if not weight.consumers or weight.is_output or accepts_densified(weight):
        return Verdict(True, "")
    stored = all((consumer.operator, consumer.slot) in _FLOAT_CONSUMERS for consumer in weight.consumers)
    return Verdict(not stored, f"the runtime gives wrong results with a sparse {kind} weight there")


def feeds_sparse_kernel(weight: Weight, encoding: Encoding) -> Verdict:
    """Every reader is a FULLY_CONNECTED in the default layout, with types and activations that the kernel supports.

    The float kernels (1x4 blocks, CSR) read float32 weights: a float16 weight is written as float32 for them. The
    int8 kernel (1x16 blocks) is for int8 inputs. With float32 inputs (dynamic range), XNNPACK takes the operator over
    and reads the blocks as if they were a dense matrix.
    """
    int8 = encoding is Encoding.BLOCK16
    name = {Encoding.BLOCK: "1x4", Encoding.BLOCK16: "1x16", Encoding.CSR: "CSR"}[encoding]
    kind = weight.values.dtype.name
    if weight.is_output or not weight.consumers:
        return Verdict(False, f"the {name} kernel is for weights of FULLY_CONNECTED only")
    if (kind == "int8") is not int8:
        return Verdict(False, f"the {name} kernel does not read {kind}")
    for consumer in weight.consumers:
        if (consumer.operator, consumer.slot) != ("FULLY_CONNECTED", 1):
            reader = f"{consumer.operator} reads this one as input {consumer.slot}"
            return Verdict(False, f"the {name} kernel is for weights of FULLY_CONNECTED only; {reader}")
        if consumer.computes != ("int8" if int8 else "float32"):
            return Verdict(False, f"the {name} kernel is correct with {'int8' if int8 else 'float32'} inputs only")
        if not consumer.default_layout:
            return Verdict(False, f"the {name} kernel needs the default weights layout")
        if consumer.activation not in FUSABLE_ACTIVATIONS:
            return Verdict(False, f"the {name} kernel does not support the fused activation {consumer.activation}")
    return Verdict(weight.values.ndim == 2, f"the {name} kernel needs rank 2, not {weight.values.ndim}")


def divides_into_blocks(weight: Weight, block: int = 4) -> Verdict:
    """The number of inputs of a FULLY_CONNECTED weight [out, in] is a multiple of the length of a block."""
    inputs = weight.values.shape[-1]
    return Verdict(inputs % block == 0, f"{inputs} inputs are not a multiple of {block}")


def zero_unit_share(weight: Weight, encoding: Encoding) -> float:
    """Return the share of blocks that are all zero; for CSR, the share of weights that are zero.

    The number of inputs of the weight [out, in] must be a multiple of the length of a block.
    """
    if encoding.block is None:
        return weight.sparsity
    blocks = nonzero_blocks(weight.values, encoding.block)
    return 1.0 - float(np.count_nonzero(blocks)) / blocks.size


def zeros_form_blocks(weight: Weight, share: float, block: int = 4) -> Verdict:
    """At least 0.9 of the zeros lie in blocks that are all zero.

    Args:
        weight: the weight.
        share: share of its blocks that are all zero.
        block: length of a block.
    """
    zeros = weight.sparsity
    return Verdict(
        zeros > 0 and share >= MINIMAL_BLOCK_SHARE * zeros,
        f"its zeros do not form 1x{block} blocks: {share:.1%} of the blocks are zero, and {zeros:.1%} of the weights",
    )
