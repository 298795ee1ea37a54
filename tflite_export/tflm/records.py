"""DECODE records: a weight in a short form, with the header by which TensorFlow Lite Micro makes it dense again.

A record is two arrays of bytes. The *encoded* one holds a code for each element, most significant bit first. The
*ancillary* one is a header of 16 bytes and a table of values:

| byte | what it says |
| --- | --- |
| 0 | the form: 0 look-up table, 1 Huffman code, 2 bitmask |
| 1 | version of the header: 1 |
| 4 | version of the form: 1 |
| 5 | look-up table: the axis of the channels in bits 7 to 4 (15: one table), bits of a code in bits 2 to 0 |
| 5 | Huffman code: bits that the first table takes in, less 1, in bits 7 to 4; bit 0 where entries have 32 bits |
| 6 | look-up table: values in the table of a channel |

Whether a look-up table has one table or one for each channel, the kernel takes from the scales of the decoded tensor,
not from byte 5: a table for the whole tensor over scales for each channel is read wrongly, without an error.

Source: tflite-micro, `tensorflow/lite/micro/kernels/decode_state_{lut,prune,huffman}.cc`, and `compression/decode.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.tflm import huffman

__all__ = [
    "HEADER",
    "LONGEST_CODE",
    "ONE_TABLE",
    "Form",
    "Record",
    "RecordError",
    "bitmask",
    "decode",
    "huffman_code",
    "lookup_table",
]

HEADER = 16
"""Bytes of the header."""
ONE_TABLE = 15
"""What byte 5 says where one table holds for the whole tensor."""
LONGEST_CODE = 7
"""Bits: the look-up table's largest code, for 128 values."""
_VERSION = 1


class Form(IntEnum):
    """How a record stores its values: byte 0 of the header."""

    TABLE = 0
    HUFFMAN = 1
    BITMASK = 2


class RecordError(ValueError):
    """A record that does not hold what its header says; the text says what is wrong."""


@dataclass(frozen=True, eq=False)
class Record:
    """A weight in a short form.

    Args:
        encoded: bytes, a code for each element.
        ancillary: bytes, the header and the values.
    """

    encoded: NDArray[np.uint8]
    ancillary: NDArray[np.uint8]

    @property
    def size(self) -> int:
        """Bytes of both."""
        return self.encoded.size + self.ancillary.size

    @property
    def form(self) -> Form:
        """How it stores its values.

        Raises:
            RecordError: the header is cut short, or of a kind or version that TensorFlow Lite Micro does not know.
        """
        head = self.ancillary[:HEADER]
        if head.size < HEADER:
            raise RecordError(f"a header has {HEADER} bytes, not {head.size}")
        if head[1] != _VERSION or head[4] != _VERSION:
            raise RecordError(f"versions of header and form must be {_VERSION}, not {head[1]} and {head[4]}")
        if head[0] not in list(Form):
            raise RecordError(f"the form must be one of {[int(form) for form in Form]}, not {head[0]}")
        return Form(int(head[0]))

    def table_axis(self, shape: tuple[int, ...], dtype: np.dtype[Any], axis: int | None = None) -> int | None:
        """Return the axis whose channels have a look-up table each, as it was written; None: one table.

        What tells it first is how many tables there are: before September 2026, Google's compressor left byte 5
        without an axis.

        Args:
            shape: of the decoded tensor.
            dtype: of its values.
            axis: of its scales, where it has several; else None.
        """
        stride = int(self.ancillary[6])
        tables = (self.ancillary.size - HEADER) // (dtype.itemsize * stride) if stride else 0
        if tables <= 1:
            return None
        stated = int(self.ancillary[5]) >> 4
        fitting = [one for one in (stated, axis) if one is not None and one < len(shape) and shape[one] == tables]
        return fitting[0] if fitting else None


def bitmask(values: NDArray[Any]) -> Record:
    """Return values as one bit an element, set where it is not 0, and the values that are not 0.

    bytes = ceil(n / 8) + nonzero * itemsize + 16. The zero point of the tensor must be 0.

    Example:
        >>> record = bitmask(np.array([[0, 5, 0], [0, 0, -1]], dtype=np.int8))
        >>> record.encoded.tolist(), record.ancillary[HEADER:].tolist()
        ([68], [5, 255])
    """
    flat = values.reshape(-1)
    return Record(np.packbits(flat != 0), _ancillary(Form.BITMASK, 0, 0, flat[flat != 0]))


def lookup_table(values: NDArray[Any], axis: int | None = None) -> Record | None:
    """Return values as codes of 1 to 7 bits into a table of the values that occur; None where they are too many.

    bytes = ceil(n * bits / 8) + channels * largest number of values * itemsize + 16, bits = ceil(log2(that number)).

    Args:
        values: of the weight.
        axis: whose channels have a table each, the first or the last one; None: one table. It must be that of the
            tensor's scales, None where it has a single scale.

    Example:
        >>> record = lookup_table(np.array([[3, 7, 3], [0, 1, 0]], dtype=np.int8), axis=0)
        >>> record.encoded.tolist(), record.ancillary[4:7].tolist(), record.ancillary[HEADER:].tolist()
        ([72], [1, 1, 2], [3, 7, 0, 1])
    """
    channels = values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    tables = [np.unique(channel) for channel in channels]
    longest = max(table.size for table in tables)
    bits = max((longest - 1).bit_length(), 1)
    if bits > LONGEST_CODE:
        return None
    codes = np.stack([np.searchsorted(table, own) for table, own in zip(tables, channels, strict=True)])
    if axis is not None:
        moved = np.moveaxis(values, axis, 0).shape
        codes = np.moveaxis(codes.reshape(moved), 0, axis)
    padded = np.zeros((len(tables), longest), dtype=values.dtype)
    for row, table in zip(padded, tables, strict=True):
        row[: table.size] = table
    which = ONE_TABLE if axis is None else axis
    return Record(_packed(codes.reshape(-1), bits), _ancillary(Form.TABLE, which << 4 | bits, longest, padded))


def huffman_code(values: NDArray[Any]) -> Record:
    """Return int8 values as a Huffman code, with the tables that the kernel decodes it by.

    Example:
        >>> huffman_code(np.array([0, 0, 0, 5], dtype=np.int8)).form.name
        'HUFFMAN'
    """
    coded = huffman.encode(values.reshape(-1))
    return Record(coded.bits, _ancillary(Form.HUFFMAN, (coded.first_bits - 1) << 4, 0, coded.tables))


def decode(
    record: Record, shape: tuple[int, ...], dtype: np.dtype[Any], axis: int | None = None, *, stated: bool = False
) -> NDArray[Any]:
    """Return the values of a record, as the kernel of TensorFlow Lite Micro computes them.

    Args:
        record: of any make.
        shape: of the decoded tensor.
        dtype: of its values.
        axis: of its scales, where it has several; else None.
        stated: take the look-up tables as they were written, not as the kernel does, which goes by the scales.

    Raises:
        RecordError: it does not hold so many values, or the kernel does not take it.
    """
    form, size = record.form, prod(shape)
    data = record.ancillary[HEADER:]
    if form is Form.HUFFMAN:
        if dtype != np.int8:
            raise RecordError(f"a Huffman code in tables of 16 bits is of int8 values, not {dtype}")
        if record.ancillary[5] & 1:
            raise RecordError("Huffman tables of 32 bits are not read here")
        try:
            return huffman.decode(record.encoded, data, (int(record.ancillary[5]) >> 4) + 1, size).reshape(shape)
        except huffman.HuffmanError as error:
            raise RecordError(str(error)) from error
    table = data[: data.size // dtype.itemsize * dtype.itemsize].view(dtype)
    if form is Form.BITMASK:
        _require(record.encoded, size, 1)
        mask = np.unpackbits(record.encoded, count=size).astype(bool)
        if (count := int(np.count_nonzero(mask))) > table.size:
            raise RecordError(f"its bits ask for {count} values, and it holds {table.size}")
        dense = np.zeros(size, dtype=dtype)
        dense[mask] = table[:count]
        return dense.reshape(shape)
    return _looked_up(record, table, shape, record.table_axis(shape, dtype, axis) if stated else axis)


def _looked_up(record: Record, table: NDArray[Any], shape: tuple[int, ...], axis: int | None) -> NDArray[Any]:
    """Return the values of a look-up table whose channels lie on an axis."""
    bits, stride = int(record.ancillary[5]) & 7, int(record.ancillary[6])
    if not 1 <= bits <= LONGEST_CODE:
        raise RecordError(f"a code has 1 to {LONGEST_CODE} bits, not {bits}")
    if axis is not None and axis not in (0, len(shape) - 1):
        raise RecordError(f"channels must lie on the first or the last axis, not on {axis} of {list(shape)}")
    codes = _unpacked(record.encoded, prod(shape), bits).reshape(shape)
    if axis is None:
        places = codes
    else:
        along = [1] * len(shape)
        along[axis] = shape[axis]
        places = codes + stride * np.arange(shape[axis]).reshape(along)
    if places.size and (last := int(places.max())) >= table.size:
        raise RecordError(f"its codes lead to value {last}, and its tables hold {table.size}")
    return table[places]


def _ancillary(form: Form, fifth: int, sixth: int, values: NDArray[Any]) -> NDArray[np.uint8]:
    head = np.zeros(HEADER, dtype=np.uint8)
    head[[0, 1, 4, 5, 6]] = form, _VERSION, _VERSION, fifth, sixth
    return np.concatenate([head, np.ascontiguousarray(values).reshape(-1).view(np.uint8)])


def _packed(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((codes[:, None] >> shifts & 1).astype(np.uint8).reshape(-1))


def _unpacked(encoded: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.int64]:
    _require(encoded, count, bits)
    each = np.unpackbits(encoded, count=count * bits).reshape(count, bits).astype(np.int64)
    return each @ (1 << np.arange(bits - 1, -1, -1))


def _require(encoded: NDArray[np.uint8], count: int, bits: int) -> None:
    if encoded.size < (wanted := -(-count * bits // 8)):
        raise RecordError(f"{count} codes of {bits} bits take {wanted} bytes, and it holds {encoded.size}")
