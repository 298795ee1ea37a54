"""Arrays in few bytes, and back, bit for bit: gaps between the values that are not zero, a codebook, Huffman codes.

Values are compared as bits, so that -0.0, NaN and every type of numbers come back as they were.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from keras_prune.container.errors import Fault
from keras_prune.container.huffman import CHUNK, Code, Decoder, code_for, read_code

__all__ = ["DTYPES", "HEADER", "Packed", "Tensor", "pack", "parse_header", "unpack"]

NAMES = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
)
DTYPES: dict[int, np.dtype[Any]] = {
    number: np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name).newbyteorder("<")
    for number, name in enumerate(NAMES, start=1)
}
"""The number of each type of values in a container."""
RANK = 32
"""Axes that a tensor may have; NumPy allows 64, HDF5 32."""
NAME = 4096
"""Bytes of a name."""
DISTINCT = 4096
"""Values of the largest codebook."""
ESCAPE = 255
"""The gap that stands for 255 zeros and no value."""
HEADER = struct.Struct("<BBBBIQQQ")
"""dtype, rank, gaps or not, codebook or not, bytes of the name, values stored, symbols of gaps, bytes of gaps."""

Words = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What the header of a tensor says.

    Attributes:
        name: the tensor's path in Keras's file of weights.
        dtype: type of its values.
        shape: its shape; values are in C order.
        sparse: whether only some values are stored, with gaps before them; the others are zero bits.
        coded: whether values are stored as codes of a codebook.
        stored: how many values are stored.
        gaps: how many symbols the gaps take.
        gap_bytes: how many bytes.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    sparse: bool
    coded: bool
    stored: int
    gaps: int
    gap_bytes: int

    @property
    def size(self) -> int:
        """How many values the tensor has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its values, unpacked."""
        return self.size * self.dtype.itemsize

    def header(self) -> bytes:
        """Return the header in bytes."""
        number = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        name = self.name.encode()
        fixed = HEADER.pack(
            number, len(self.shape), self.sparse, self.coded, len(name), self.stored, self.gaps, self.gap_bytes
        )
        return fixed + struct.pack(f"<{len(self.shape)}I", *self.shape) + name


@dataclasses.dataclass(frozen=True)
class Packed:
    """A tensor, packed.

    Attributes:
        tensor: what its header says.
        payload: gaps, then the codebook with its table, then values or codes.
        indices, codebook, values: bytes of each of these; their sum is the payload's length.
        distinct: how many different values it has, None for more than a codebook takes.
    """

    tensor: Tensor
    payload: bytes
    indices: int
    codebook: int
    values: int
    distinct: int | None


# -- packing ----------------------------------------------------------------------------------------------------------


def pack(name: str, array: npt.NDArray[Any]) -> Packed:
    """Return the smallest of four forms: all values or those that are not zero, each as they are or as codes.

    Args:
        name: the tensor's path.
        array: of a type in `DTYPES`.

    Raises:
        ValueError: its type is no type of numbers, or it has too many axes, too long an axis or name.

    Example:
        >>> packed = pack("kernel", np.repeat(np.float32([0, 0, 0, 0.5, 0, 0, 0, -0.5]), 16))
        >>> packed.tensor.sparse, packed.tensor.coded, packed.tensor.stored, packed.distinct
        (True, True, 32, 3)
    """
    dtype = array.dtype.newbyteorder("<") if array.dtype != ml_dtypes.bfloat16 else array.dtype
    if dtype not in DTYPES.values():
        known = ", ".join(str(each) for each in DTYPES.values())
        raise ValueError(f"{name!r}: a container (.kpz) holds numbers: {known}. Received: {array.dtype}")
    if array.ndim > RANK or max(array.shape, default=0) >= 1 << 32 or len(name.encode()) > NAME:
        raise ValueError(
            f"{name[:80]!r}: a tensor in a container (.kpz) has at most {RANK} axes, each shorter than 2^32, and a "
            f"name of at most {NAME} bytes. Received: shape {array.shape}"
        )
    words = _words(np.ascontiguousarray(array, dtype))
    raw = words.tobytes()
    places = np.flatnonzero(words)
    codes = _coded(words)
    forms = [(b"", 0, raw, b"", False, len(words))]
    if codes is not None:
        forms.append((b"", 0, codes[1], codes[0], False, len(words)))
    if len(places) < len(words):
        gaps, number = _gaps(places)
        kept = words[places]
        forms.append((gaps, number, kept.tobytes(), b"", True, len(kept)))
        codes_of_kept = _coded(kept)
        if codes_of_kept is not None:
            forms.append((gaps, number, codes_of_kept[1], codes_of_kept[0], True, len(kept)))
    # Of equal ones the first: the simplest.
    gaps, number, values, codebook, sparse, stored = min(
        forms, key=lambda form: len(form[0]) + len(form[2]) + len(form[3])
    )
    tensor = Tensor(name, dtype, array.shape, sparse, bool(codebook), stored, number, len(gaps))
    distinct = None if codes is None else codes[2]
    return Packed(tensor, gaps + codebook + values, len(gaps), len(codebook), len(values), distinct)


def _words(array: npt.NDArray[Any]) -> Words:
    """Return the bits of values as whole numbers, in one axis; complex ones as two."""
    flat = array.reshape(-1)
    if flat.dtype.kind == "c":
        flat = flat.view(f"<f{flat.dtype.itemsize // 2}")
    return flat.view(f"<u{flat.dtype.itemsize}")


def _coded(words: Words) -> tuple[bytes, bytes, int] | None:
    """Return the codebook with its table, the codes, and how many values it has; None if it would have too many."""
    # A sample tells most tensors of many values at once.
    if not len(words) or len(np.unique(words[: 4 * DISTINCT])) > DISTINCT:
        return None
    values, counts = np.unique(words, return_counts=True)
    if len(values) > DISTINCT:
        return None
    code = code_for(dict(enumerate(counts.tolist())))
    codebook = struct.pack("<I", len(values)) + values[list(code.symbols)].tobytes() + code.table()
    return codebook, code.encode(np.searchsorted(values, words)), len(values)


def _gaps(places: npt.NDArray[np.intp]) -> tuple[bytes, int]:
    """Return the zeros before each place as a table and codes, and how many symbols these are."""
    gaps = np.diff(places, prepend=-1) - 1
    escapes = gaps // ESCAPE
    symbols = np.full(len(gaps) + int(escapes.sum()), ESCAPE, np.uint8)
    symbols[np.arange(len(gaps)) + np.cumsum(escapes)] = gaps % ESCAPE
    if not len(symbols):
        return b"", 0
    counts = np.bincount(symbols, minlength=ESCAPE + 1)
    code = code_for({int(symbol): int(counts[symbol]) for symbol in np.flatnonzero(counts)})
    return code.table() + bytes(code.symbols) + code.encode(symbols), len(symbols)


# -- unpacking --------------------------------------------------------------------------------------------------------


def parse_header(content: bytes) -> Tensor:
    """Return what a header says; nothing is allocated for it.

    Raises:
        Fault: it breaks a rule of the format.
    """
    if len(content) < HEADER.size:
        raise Fault("the tensor's header is cut off")
    number, rank, sparse, coded, length, stored, gaps, gap_bytes = HEADER.unpack_from(content)
    if number not in DTYPES:
        raise Fault(f"values of type {number}, which is not known")
    if rank > RANK or sparse > 1 or coded > 1 or length > NAME:
        raise Fault(f"rank {rank}, forms {sparse} and {coded}, a name of {length} bytes, which no tensor has")
    if len(content) != HEADER.size + 4 * rank + length:
        raise Fault(f"a header of {len(content)} bytes, where its rank and name take {HEADER.size + 4 * rank + length}")
    shape = struct.unpack_from(f"<{rank}I", content, HEADER.size)
    try:
        name = content[HEADER.size + 4 * rank :].decode()
    except UnicodeDecodeError as error:
        raise Fault("the tensor's name is no UTF-8") from error
    tensor = Tensor(name, DTYPES[number], shape, bool(sparse), bool(coded), stored, gaps, gap_bytes)
    size = tensor.size * _parts(tensor.dtype)
    if stored > size or (not sparse and (stored != size or gaps or gap_bytes)):
        raise Fault(f"{stored} values and {gaps} gaps are stored, where the shape {shape} has {size} values")
    if sparse and not stored <= gaps <= stored + size // ESCAPE:
        raise Fault(f"{gaps} gaps, where {stored} of {size} values are stored")
    return tensor


def unpack(tensor: Tensor, payload: bytes) -> npt.NDArray[Any]:
    """Return the array of a header and its payload.

    At most the array, the payload and some thousand values more are in memory.

    Raises:
        Fault: the payload breaks a rule of the format.
    """
    if len(payload) > tensor.nbytes or tensor.gap_bytes > len(payload):
        raise Fault(
            f"{len(payload)} bytes, {tensor.gap_bytes} of them gaps, where the plain values take {tensor.nbytes}"
        )
    if not tensor.coded:
        held = tensor.stored * tensor.dtype.itemsize // _parts(tensor.dtype)
        if len(payload) - tensor.gap_bytes != held:
            raise Fault(f"{len(payload) - tensor.gap_bytes} bytes of values, where {tensor.stored} values take {held}")
    view = memoryview(payload)
    values = _Values(tensor, view[tensor.gap_bytes :])
    array = np.zeros(tensor.shape, tensor.dtype)
    words = _words(array)
    if tensor.sparse:
        _fill_gaps(words, tensor, view[: tensor.gap_bytes], values)
    else:
        for start in range(0, len(words), CHUNK):
            words[start : start + CHUNK] = values.take(min(CHUNK, len(words) - start))
    values.finish()
    return array


def _parts(dtype: np.dtype[Any]) -> int:
    """Return how many words a value has: a complex one two."""
    return 2 if dtype.kind == "c" else 1


class _Values:
    """The stored values, read some at a time: as they are, or by their codes."""

    def __init__(self, tensor: Tensor, content: memoryview) -> None:
        word = np.dtype(f"<u{tensor.dtype.itemsize // _parts(tensor.dtype)}")
        self._codes: Decoder | None = None
        if not tensor.coded:
            self._values = np.frombuffer(content, word)
            self._next = 0
            return
        if len(content) < 4:
            raise Fault("the codebook is cut off")
        (number,) = struct.unpack_from("<I", content)
        end = 4 + number * word.itemsize
        if not 1 <= number <= DISTINCT or end > len(content):
            raise Fault(f"a codebook of {number} values, where {len(content) - 4} bytes are")
        self._values = np.frombuffer(content[4:end], word)
        counts, symbols, used = read_code(content[end:], DISTINCT)
        if symbols != number:
            raise Fault(f"a Huffman table of {symbols} symbols, where the codebook has {number} values")
        self._codes = Decoder(Code(counts, tuple(range(number))), content[end + used :])

    def take(self, number: int) -> Words:
        if self._codes is not None:
            return self._values[self._codes.take(number)]
        self._next += number
        return self._values[self._next - number : self._next]

    def finish(self) -> None:
        if self._codes is not None:
            self._codes.finish()


def _fill_gaps(words: Words, tensor: Tensor, content: memoryview, values: _Values) -> None:
    """Write the stored values behind their gaps."""
    if not tensor.gaps:
        if len(content):
            raise Fault(f"{len(content)} bytes of gaps, where there are none")
        return
    counts, number, used = read_code(content, ESCAPE + 1)
    if len(content) < used + number:
        raise Fault("the table of gaps is cut off")
    symbols = tuple(content[used : used + number])
    if len(set(symbols)) != number:
        raise Fault("the table of gaps has a symbol twice")
    decoder = Decoder(Code(counts, symbols), content[used + number :])
    place, stored = 0, 0
    for start in range(0, tensor.gaps, CHUNK):
        gaps = decoder.take(min(CHUNK, tensor.gaps - start))
        holds = gaps != ESCAPE
        ends = place + np.cumsum(gaps + holds)
        place, here = int(ends[-1]), int(np.count_nonzero(holds))
        stored += here
        if place > len(words) or stored > tensor.stored:
            raise Fault(
                f"the gaps lead to value {place} of {len(words)}, the {stored}th of {tensor.stored} stored ones"
            )
        words[ends[holds] - 1] = values.take(here)
    decoder.finish()
    if stored != tensor.stored:
        raise Fault(f"the gaps lead to {stored} values, where {tensor.stored} are stored")
