"""How a weight may be stored in a .tflite file: what a sparse kernel reads is one of these forms."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["RECORD_TABLES", "Encoding"]

RECORD_TABLES = 138
"""Bytes that a DECODE record adds to a file besides its own: tensors, an operator, alignment (measured: 98 to 138)."""


class Encoding(StrEnum):
    """How a weight is stored, and so what reads it.

    `BLOCK`, `BLOCK16` and `CSR` are read by sparse FULLY_CONNECTED kernels; `DENSIFY` is the same data
    as `CSR`, behind an operator that makes it dense when the file is loaded. `BITMASK`, `TABLE` and `HUFFMAN` are for
    TensorFlow Lite Micro, whose operator DECODE makes them dense in each run, right before they are read.

    Example:
        >>> [(encoding.value, encoding.block) for encoding in Encoding if encoding.has_kernel]
        [('1x4 blocks', 4), ('1x16 blocks', 16), ('CSR', None)]
    """

    DENSE = "dense"
    BLOCK = "1x4 blocks"
    BLOCK16 = "1x16 blocks"
    CSR = "CSR"
    DENSIFY = "CSR + DENSIFY"
    BITMASK = "bitmask + DECODE"
    TABLE = "look-up table + DECODE"
    HUFFMAN = "Huffman + DECODE"

    @property
    def block(self) -> int | None:
        """How many inputs of one output make a block; None where single values are stored.

        4 and 16 are the only lengths that the float and the int8 FULLY_CONNECTED kernel read (LiteRT,
        `tflite/kernels/internal/reference/sparse_ops`).
        """
        return {Encoding.BLOCK: 4, Encoding.BLOCK16: 16}.get(self)

    @property
    def has_kernel(self) -> bool:
        """Whether a sparse kernel of FULLY_CONNECTED reads it as it is stored."""
        return self in (Encoding.BLOCK, Encoding.BLOCK16, Encoding.CSR)
