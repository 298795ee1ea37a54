"""Canonical Huffman codes: tables in bytes, and symbols in bits. The codes themselves are made by `bitarray`."""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_prune.container.errors import Fault
from keras_prune.extras import import_extra

__all__ = ["LONGEST", "Code", "Decoder", "canonical_codes", "code_for", "read_code", "require_bitarray"]

LONGEST = 24
"""Bits of the longest code. Only counts like Fibonacci's, of over 100,000 symbols, would take more."""
CHUNK = 1 << 16
"""Symbols that are made Python objects at once."""

Symbols = npt.NDArray[np.intp]


def require_bitarray() -> Any:
    """Return the package bitarray.

    Raises:
        ImportError: it is not installed; the message has the command.
    """
    import_extra("bitarray.util", "compression", "containers (.kpz)")
    return import_extra("bitarray", "compression", "containers (.kpz)")


@dataclasses.dataclass(frozen=True)
class Code:
    """A canonical Huffman code.

    Codes are numbered as in RFC 1951: shorter ones first, those of one length in the order of `symbols`, each the one
    before plus 1, with zeros added where the length grows. Where there is but one symbol, its code has no bits.

    Attributes:
        counts: how many codes have 1 bit, 2 bits and so on; empty for a code of one symbol.
        symbols: the symbols, in the order of their codes.
    """

    counts: tuple[int, ...]
    symbols: tuple[int, ...]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Bits of each symbol's code, in the order of `symbols`."""
        return np.repeat(np.arange(1, len(self.counts) + 1), self.counts) if self.counts else np.zeros(1, np.int64)

    def table(self) -> bytes:
        """Return the lengths in bytes: how many there are (1 byte), then the count of each (2 bytes)."""
        return struct.pack(f"<B{len(self.counts)}H", len(self.counts), *self.counts)

    def encode(self, symbols: npt.NDArray[Any]) -> bytes:
        """Return the bits of symbols, the first in the highest bit of the first byte, filled up with zeros."""
        if not self.counts:
            return b""
        bits = require_bitarray().bitarray(endian="big")
        codes = self._codes()
        for start in range(0, len(symbols), CHUNK):
            bits.encode(codes, symbols[start : start + CHUNK].tolist())
        return bytes(bits.tobytes())

    def _codes(self) -> dict[int, Any]:
        bits = require_bitarray().bitarray
        codes = canonical_codes(dict(enumerate(self.lengths.tolist()))).values()
        return {symbol: bits(code, endian="big") for symbol, code in zip(self.symbols, codes, strict=True)}


def canonical_codes(lengths: Mapping[int, int]) -> dict[int, str]:
    """Return the canonical codes of given lengths, in their order, as texts of 0 and 1.

    Example:
        >>> canonical_codes({0: 1, 2: 2, 1: 2})
        {0: '0', 1: '10', 2: '11'}
    """
    codes, number, last = {}, 0, 0
    for symbol in sorted(lengths, key=lambda symbol: (lengths[symbol], symbol)):
        number <<= lengths[symbol] - last
        last = lengths[symbol]
        codes[symbol] = f"{number:0{last}b}"
        number += 1
    return codes


def code_for(frequencies: dict[int, int]) -> Code:
    """Return the code with the fewest bits for symbols that are so frequent, none longer than `LONGEST`.

    Args:
        frequencies: of each symbol that occurs, at least one.

    Example:
        >>> code_for({7: 60, 5: 30, 6: 10})
        Code(counts=(1, 2), symbols=(7, 5, 6))
    """
    if len(frequencies) == 1:
        return Code((), tuple(frequencies))
    huffman = require_bitarray().util.canonical_huffman
    flattened = dict(sorted(frequencies.items()))  # so that one content makes one file
    while True:
        codes, counts, _ = huffman(flattened)
        if len(counts) - 1 <= LONGEST:
            return Code(tuple(counts[1:]), tuple(sorted(codes, key=lambda symbol: (len(codes[symbol]), symbol))))
        flattened = {symbol: (count + 1) // 2 for symbol, count in flattened.items()}


def read_code(content: memoryview, most: int) -> tuple[tuple[int, ...], int, int]:
    """Return the counts of a table, how many symbols it has, and how many bytes it takes.

    Args:
        content: begins with the table.
        most: symbols that there may be.

    Raises:
        Fault: it is cut off, has too many symbols or too long codes, or is no complete code.
    """
    if not len(content):
        raise Fault("the Huffman table is cut off")
    length = content[0]
    if length > LONGEST:
        raise Fault(f"the Huffman table has codes of {length} bits, where {LONGEST} are allowed")
    if len(content) < 1 + 2 * length:
        raise Fault("the Huffman table is cut off")
    counts = struct.unpack_from(f"<{length}H", content, 1)
    number = sum(counts) if length else 1
    if number > most:
        raise Fault(f"the Huffman table has {number} symbols, where {most} are allowed")
    # Kraft's equality: every sequence of bits is a sequence of codes.
    if length and sum(count << (length - bits) for bits, count in enumerate(counts, 1)) != 1 << length:
        raise Fault("the Huffman table is no complete code")
    return counts, number, 1 + 2 * length


class Decoder:
    """Reads symbols from bits, some at a time.

    Args:
        code: complete, as `read_code` makes sure.
        content: the bits, and nothing after them.
    """

    def __init__(self, code: Code, content: memoryview) -> None:
        self._code = code
        self._length = len(content)
        self._used = 0
        # Indices into the symbols, so that the lengths of what was read can be added up.
        self._indices: Iterator[int] = itertools.repeat(0)
        self._symbols = np.asarray(code.symbols, np.intp)
        self._lengths = code.lengths
        self._last = content[-1] if len(content) else 0
        if code.counts:
            package = require_bitarray()
            bits = package.bitarray(endian="big", buffer=content)
            places = list(range(len(code.symbols)))
            self._indices = package.util.canonical_decode(bits, [0, *code.counts], places)

    def take(self, number: int) -> Symbols:
        """Return the next symbols.

        Raises:
            Fault: there are not so many.
        """
        try:
            found = np.fromiter(itertools.islice(self._indices, number), np.intp, number)
        except ValueError as error:
            raise Fault("the codes end too early") from error
        self._used += int(self._lengths[found].sum())
        return self._symbols[found]

    def finish(self) -> None:
        """Check that all bits have been read.

        Raises:
            Fault: more bytes follow, or the bits that fill up the last one are not zero.
        """
        if self._length != -(-self._used // 8):
            raise Fault(f"{self._used} bits of codes, where {self._length} bytes are")
        if self._used % 8 and self._last & ((1 << (8 - self._used % 8)) - 1):
            raise Fault("the bits that fill up the last byte of the codes are not zero")
