"""The conditions under which a weight may be stored sparse, as named predicates with reasons.

Each predicate takes a :class:`Weight` and returns a :class:`Verdict`. What the kernels ask for was read in
LiteRT's sources (``tflite/kernels/fully_connected.cc``, ``tflite/kernels/densify.cc``,
``tflite/delegates/xnnpack/xnnpack_delegate.cc``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.encoding import BLOCK, nonzero_blocks

SMALLEST = 64
"""Elements: below that, the index and the tables of a sparse tensor outweigh its zeros."""

DENSIFY_CONSUMERS = frozenset(
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
"""(operator, input) pairs whose kernels take a weight that DENSIFY computes; each is run in the tests."""

MINIMAL_BLOCK_SHARE = 0.9
"""Share of the zeros that must lie in whole zero blocks (as in TensorFlow's dense-to-sparse pass)."""

ZERO_BLOCKS_ONE_ROW = 0.79
ZERO_BLOCKS_MORE_ROWS = 0.89
"""Share of zero blocks from which the 1x4 kernel is no slower than XNNPACK's dense one: at one row, and more.

Three Dense(512), one thread, x86 with AVX-512: 1 row, 80 %: 1.1 to 2.3 x; 4 rows, 90 %: 1.1 x; 196 rows, 80
%: 0.54 x, 90 %: 1.0 x (and on aarch64, counted in instructions, 1.75 x). 0.79 and 0.89 let a rounded 80 % and
90 % in.
"""

FUSABLE_ACTIVATIONS = frozenset({"NONE", "RELU", "RELU_N1_TO_1", "RELU6"})
"""Activations that the sparse FULLY_CONNECTED kernel clips to; it has no others."""


@dataclass(frozen=True)
class Consumer:
    """One use of a tensor.

    Args:
        operator: Kind of the operator: ``FULLY_CONNECTED``.
        slot: Which of its inputs the tensor is.
        activation: Its fused activation, ``NONE`` where it has none.
        default_layout: Its weights are in the default layout (FULLY_CONNECTED has a shuffled one too).
        float_input: Its first input is float32.
        rows: Rows that it multiplies the weight with, for one sample; None where unknown.
        pooled_output: Its graph gives out a spatial mean with the dimensions kept.
    """

    operator: str
    slot: int
    activation: str = "NONE"
    default_layout: bool = True
    float_input: bool = True
    rows: int | None = None
    pooled_output: bool = False


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant of the file, with what the predicates need to know of its surroundings.

    Args:
        name: The Keras variable's path where it was recognised, else the tensor's name.
        values: Dense values, TFLite layout ([out, in] for FULLY_CONNECTED).
        consumers: Its uses, over all tensors that share its buffer.
        tensors: (subgraph, tensor) of each tensor that shares its buffer.
        is_output: One of the tensors is an output of its subgraph.
        agree: The tensors have the same shape and type.
    """

    name: str
    values: NDArray[Any]
    consumers: tuple[Consumer, ...]
    tensors: tuple[tuple[int, int], ...]
    is_output: bool = False
    agree: bool = True

    @property
    def sparsity(self) -> float:
        """Share of zeros, a fraction in [0, 1]."""
        return 1.0 - float(np.count_nonzero(self.values)) / max(self.values.size, 1)


@dataclass(frozen=True)
class Verdict:
    """Whether a predicate holds, and why."""

    holds: bool
    reason: str

    def __bool__(self) -> bool:
        """Return whether the predicate holds."""
        return self.holds


def is_float32(weight: Weight) -> Verdict:
    """The weight is float32: the only type that this version stores sparse."""
    return Verdict(weight.values.dtype == np.float32, f"{weight.values.dtype.name}: only float32 is stored sparse")


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
    return Verdict(bool((weight.values == 0).any()), "no zeros")


def accepts_densified(weight: Weight) -> Verdict:
    """Every operator that reads the weight takes it from a DENSIFY."""
    if weight.is_output:
        return Verdict(False, "an output of its subgraph, which must stay dense")
    if not weight.consumers:
        return Verdict(False, "no operator reads it")
    others = sorted(
        {f"{c.operator} (input {c.slot})" for c in weight.consumers if (c.operator, c.slot) not in DENSIFY_CONSUMERS}
    )
    return Verdict(not others, f"read by {', '.join(others)}, not known to take a weight from DENSIFY")


def is_safe_pointwise(weight: Weight) -> Verdict:
    """A 1x1 convolution stays away from two tails that XNNPACK's sparse inference breaks.

    Where it switches on (ARM, WebAssembly; never on a PC with AVX, so that a run here cannot tell), a sparse
    1x1 convolution on a 1x1 map fails to allocate or answers garbage, and a spatial mean with its dimensions
    kept is wrong as the model's output.
    """
    pointwise = weight.values.ndim == 4 and weight.values.shape[1:3] == (1, 1)
    for consumer in weight.consumers if pointwise else ():
        if consumer.operator == "CONV_2D" and consumer.rows in (1, None):
            return Verdict(
                False,
                "a 1x1 convolution on a 1x1 map, which ARM and WebAssembly get wrong when sparse: write it as Dense",
            )
        if consumer.operator == "CONV_2D" and consumer.pooled_output:
            return Verdict(
                False,
                "the model gives out a mean with keepdims=True, which ARM and WebAssembly get wrong after a "
                "sparse convolution: use keepdims=False",
            )
    return Verdict(True, "no sparse 1x1 convolution, or in a safe place")


def feeds_block_kernel(weight: Weight) -> Verdict:
    """Every reader is a float FULLY_CONNECTED in the default layout, its activation one of the kernel's."""
    if weight.is_output or not weight.consumers:
        return Verdict(False, "the 1x4 kernel is reached from FULLY_CONNECTED only")
    for consumer in weight.consumers:
        if (consumer.operator, consumer.slot) != ("FULLY_CONNECTED", 1):
            return Verdict(
                False,
                f"the 1x4 kernel is FULLY_CONNECTED's; {consumer.operator} reads the weight",
            )
        if not consumer.float_input or not consumer.default_layout:
            return Verdict(False, "the 1x4 kernel needs a float32 input and the default weights layout")
        if consumer.activation not in FUSABLE_ACTIVATIONS:
            return Verdict(False, f"the 1x4 kernel has no activation {consumer.activation}")
    return Verdict(weight.values.ndim == 2, f"the 1x4 kernel needs rank 2, not {weight.values.ndim}")


def divides_into_blocks(weight: Weight) -> Verdict:
    """The inputs of a FULLY_CONNECTED weight [out, in] divide by 4."""
    inputs = weight.values.shape[-1]
    return Verdict(inputs % BLOCK == 0, f"{inputs} inputs are not a multiple of {BLOCK}")


def zero_block_share(weight: Weight) -> float:
    """Return the share of 1x4 blocks that are all zero, of a weight [out, in] that divides into blocks."""
    blocks = nonzero_blocks(weight.values)
    return 1.0 - float(np.count_nonzero(blocks)) / blocks.size


def zeros_form_blocks(weight: Weight) -> Verdict:
    """Zero blocks / single zeros is at least 0.9."""
    blocks, zeros = zero_block_share(weight), weight.sparsity
    return Verdict(
        zeros > 0 and blocks >= MINIMAL_BLOCK_SHARE * zeros,
        f"no 1x4 blocks: {blocks:.1%} of them are zero beside {zeros:.1%} of the weights",
    )


def block_kernel_pays(weight: Weight) -> Verdict:
    """Enough blocks are zero for the 1x4 kernel to keep up with the dense one, at the rows it meets."""
    rows = [consumer.rows for consumer in weight.consumers]
    known = [count for count in rows if count is not None]
    most = max(known) if known and len(known) == len(rows) else None
    threshold = ZERO_BLOCKS_ONE_ROW if most == 1 else ZERO_BLOCKS_MORE_ROWS
    share = zero_block_share(weight)
    at = f"{most} row{'s' * (most != 1)}" if most is not None else "an unknown number of rows"
    return Verdict(
        share >= threshold,
        f"{share:.1%} of 1x4 blocks are zero; the kernel pays from {threshold:.0%} at {at}",
    )
