"""Huffman codes of int8 values, with the tables by which TensorFlow Lite Micro's DECODE reads them.

The codes are canonical and at most 16 bits long. The kernel reads a few bits at a time. What it finds in a table at
that place is a value, with the number of bits that its code takes there (the others are put back), or another table,
with the number of bits to read next. An entry has 16 bits:

| bits | of a value | of another table |
| --- | --- | --- |
| 15 | 1 | 0 |
| 14 to 11 | bits of its code in this table | bits to read next, less 1 |
| 10 to 0 | the value, as 8 bits | where that table begins, counted from this entry |

How many bits each table takes in is chosen so that all tables together are the shortest: one bit at a time would take
two entries for each step of the code, all at once an entry for each code of the longest length.

Source: tflite-micro, `tensorflow/lite/micro/kernels/decode_state_huffman.{h,cc}`.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keras_prune.container.huffman import canonical_codes

__all__ = ["LONGEST", "Coded", "HuffmanError", "code_lengths", "decode", "encode"]

LONGEST = 15
"""Bits of the longest code: a table of one step says the bits of a code in four bits."""
_FARTHEST = 2**11 - 1
_FOUND = 0x8000
_WORD = 4
"""Bytes that the kernel reads at once."""


class HuffmanError(ValueError):
    """Bits and tables that do not belong together; the text says how."""


@dataclass(frozen=True, eq=False)
class Coded:
    """Values as a Huffman code.

    Args:
        bits: the codes one after the other, filled up with zero bits as far as the kernel reads.
        tables: entries of 16 bits.
        first_bits: bits that the first table takes in.
    """

    bits: NDArray[np.uint8]
    tables: NDArray[np.uint16]
    first_bits: int


def encode(values: NDArray[np.int8]) -> Coded:
    """Return values as a Huffman code.

    Args:
        values: int8 [n], n at least 1.

    Example:
        >>> coded = encode(np.array([0, 0, 0, 5, 0, 7], dtype=np.int8))
        >>> f"{coded.bits[0]:08b}", decode(coded.bits, coded.tables.view(np.uint8), coded.first_bits, 6).tolist()
        ('00010011', [0, 0, 0, 5, 0, 7])
    """
    found, counts = np.unique(values, return_counts=True)
    codes = canonical_codes(code_lengths(dict(zip(found.tolist(), counts.tolist(), strict=True))))
    tables, first = _tables(codes)
    bits = "".join(codes[value] for value in values.tolist())
    # The kernel reads whole words, and whole steps before it puts bits back.
    size = -(-(len(bits) + LONGEST) // (8 * _WORD)) * 8 * _WORD
    padded = np.frombuffer(bits.ljust(size, "0").encode(), dtype=np.uint8) - ord("0")
    return Coded(np.packbits(padded), np.array(tables, dtype="<u2"), first)


def code_lengths(counts: Mapping[int, int]) -> dict[int, int]:
    """Return the bits of the code of each value: Huffman's, flattened until none is longer than 15.

    Args:
        counts: how often each value occurs.

    Example:
        >>> code_lengths({0: 90, 1: 6, 2: 4})
        {0: 1, 1: 2, 2: 2}
    """
    while True:
        lengths = dict.fromkeys(counts, 0)
        heap = [(count, index, [value]) for index, (value, count) in enumerate(counts.items())]
        heapq.heapify(heap)
        index = len(heap)
        while len(heap) > 1:
            (one, _, low), (other, _, high) = heapq.heappop(heap), heapq.heappop(heap)
            for value in low + high:
                lengths[value] += 1
            heapq.heappush(heap, (one + other, index := index + 1, low + high))
        if len(lengths) == 1:
            return dict.fromkeys(lengths, 1)
        if max(lengths.values()) <= LONGEST:
            return lengths
        counts = {value: count + 1 >> 1 for value, count in counts.items()}


def decode(bits: NDArray[np.uint8], tables: NDArray[np.uint8], first_bits: int, count: int) -> NDArray[np.int8]:
    """Return so many values, read as the kernel reads them.

    Args:
        bits: the codes.
        tables: the bytes of the tables.
        first_bits: bits that the first table takes in.
        count: values to read.

    Raises:
        HuffmanError: the bits end too early, or lead outside the tables.
    """
    entries = tables[: tables.size // 2 * 2].view("<u2").tolist()
    data, place = bits.tobytes() + bytes(_WORD), 0
    values = np.empty(count, dtype=np.uint8)
    for number in range(count):
        wanted, offset = first_bits, 0
        while True:
            word = int.from_bytes(data[place >> 3 : (place >> 3) + _WORD], "big")
            offset += word >> 8 * _WORD - wanted - (place & 7) & (1 << wanted) - 1
            if offset >= len(entries):
                raise HuffmanError(f"its bits lead to entry {offset} of {len(entries)}")
            entry = entries[offset]
            size = entry >> 11 & 15
            place += size if entry & _FOUND else wanted
            if place > 8 * bits.size:
                raise HuffmanError(f"its bits end after {number} of {count} values")
            if entry & _FOUND:
                break
            wanted, offset = size + 1, offset + (entry & _FARTHEST)
        values[number] = entry & 0xFF
    return values.view(np.int8)


def _tables(codes: Mapping[int, str]) -> tuple[list[int], int]:
    """Return the entries of all tables, the shortest that read these codes, and the bits that the first takes in."""
    tree = {code: value for value, code in codes.items()}
    best: dict[str, tuple[int, int]] = {}

    def inner(prefix: str, depth: int) -> set[str]:
        """The nodes so many steps below one that are no values."""
        length = len(prefix) + depth
        return {code[:length] for code in tree if code.startswith(prefix) and len(code) > length}

    def shortest(prefix: str) -> tuple[int, int]:
        """The entries that a node and all below it take at least, and the bits that its own table takes in."""
        if prefix not in best:
            deepest = max(len(code) for code in tree if code.startswith(prefix)) - len(prefix)
            best[prefix] = min(
                ((1 << depth) + sum(shortest(node)[0] for node in inner(prefix, depth)), depth)
                for depth in range(1, deepest + 1)
                if 1 << depth <= 2 * len(tree)
            )
        return best[prefix]

    entries: list[int] = []
    pending = [("", -1)]
    for prefix, asked_by in pending:
        start, depth = len(entries), shortest(prefix)[1]
        if asked_by >= 0:
            entries[asked_by] = depth - 1 << 11 | start - asked_by
        for step in range(1 << depth):
            path = prefix + f"{step:0{depth}b}"
            code = next((path[:end] for end in range(len(prefix) + 1, len(path) + 1) if path[:end] in tree), None)
            if code is not None:
                entries.append(_FOUND | len(code) - len(prefix) << 11 | tree[code] & 0xFF)
            else:
                # Of a single value, the other half of its table is never read.
                entries.append(0)
                if any(longer.startswith(path) for longer in tree):
                    pending.append((path, start + step))
    return entries, shortest("")[1]
