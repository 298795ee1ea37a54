"""Dense array <-> TFLite `SparsityParameters`: metadata and compact values.

Pure: NumPy arrays in, NumPy arrays out. Layouts are TFLite's; a Dense kernel arrives as [out, in], the
transpose of Keras's [in, out].

The format is the one that the runtime's `FormatConverter` reads (LiteRT,
`tflite/kernels/internal/utils/sparsity_format_converter.cc`): a tensor of rank r with b blocked dimensions
is stored as r + b nested levels, each dense (a size) or CSR (segments and indices).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_prune.arrays.encoding import Encoding

__all__ = [
    "Array",
    "CsrLevel",
    "DenseLevel",
    "Encoding",
    "SparseArray",
    "decode",
    "encode_blocks",
    "encode_csr",
    "encoded_bytes",
    "nonzero_blocks",
    "smallest_index_dtype",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class DenseLevel:
    """A level whose `size` entries are all stored."""

    size: int

    @property
    def nbytes(self) -> int:
        """Bytes of index data: none."""
        return 0


@dataclass(frozen=True, eq=False)
class CsrLevel:
    """A compressed level: the entries of parent `i` are `indices[segments[i]:segments[i + 1]]`."""

    segments: Array
    indices: Array

    @property
    def nbytes(self) -> int:
        """Bytes of index data."""
        return int(self.segments.nbytes + self.indices.nbytes)


@dataclass(frozen=True, eq=False)
class SparseArray:
    """An array as TFLite stores it.

    Args:
        shape: shape of the dense array, TFLite layout.
        traversal_order: order in which the levels nest; blocked dimensions follow the original ones.
        block_map: for each block level, the dimension that it divides.
        levels: one for each entry of `traversal_order`.
        values: the stored values, one-dimensional.
    """

    shape: tuple[int, ...]
    traversal_order: tuple[int, ...]
    block_map: tuple[int, ...]
    levels: tuple[DenseLevel | CsrLevel, ...]
    values: Array

    @property
    def nbytes(self) -> int:
        """Bytes of values and index data, without the flatbuffer's own tables."""
        return int(self.values.nbytes) + sum(level.nbytes for level in self.levels)


def smallest_index_dtype(largest: int) -> np.dtype[Any]:
    """Return the narrowest of uint8, uint16 and int32, TFLite's three index widths, that holds `largest`.

    Raises:
        ValueError: `largest` does not fit int32.

    Example:
        >>> [smallest_index_dtype(n).name for n in (255, 256, 65536)]
        ['uint8', 'uint16', 'int32']
    """
    for dtype in (np.uint8, np.uint16, np.int32):
        if largest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    raise ValueError(f"an index must fit int32. Received: {largest}. Leave this tensor dense.")


def _csr(stored: NDArray[np.bool_]) -> tuple[CsrLevel, NDArray[np.intp]]:
    """Return the CSR level of a boolean [rows, columns], and the flat positions stored.

    Where nothing is to be stored, position 0 is stored all the same: a tensor with an empty buffer is no
    constant to the runtime, which then refuses to allocate.
    """
    rows, columns = stored.shape
    flat = np.flatnonzero(stored)
    if flat.size == 0:
        flat = np.zeros(1, dtype=np.intp)
        counts = np.zeros(rows, dtype=np.intp)
        counts[0] = 1
    else:
        counts = np.count_nonzero(stored, axis=1)
    segments = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(counts, out=segments[1:])
    indices = flat - np.repeat(np.arange(rows, dtype=np.intp) * columns, counts)
    level = CsrLevel(
        segments.astype(smallest_index_dtype(int(segments[-1]))),
        indices.astype(smallest_index_dtype(int(indices.max()))),
    )
    return level, flat


def encoded_bytes(dense: Array, block: int | None, itemsize: int) -> int:
    """Return the bytes that `encode_csr` (`block` None) or `encode_blocks` would take.

    Args:
        dense: the array.
        block: length of a block, or None.
        itemsize: bytes of a value as stored.

    Example:
        >>> dense = np.array([[0.0, 5.0, 0.0], [6.0, 0.0, 7.0]], dtype=np.float32)
        >>> encoded_bytes(dense, None, 4), encode_csr(dense).nbytes
        (18, 18)
    """
    _require_elements(dense)
    units = nonzero_blocks(dense, block) if block is not None else dense.reshape(-1, dense.shape[-1]) != 0
    # As _csr does, at least one unit is stored.
    count = max(1, int(np.count_nonzero(units)))
    largest = int(np.flatnonzero(units.any(axis=0)).max(initial=0))
    index = smallest_index_dtype(largest).itemsize * count + smallest_index_dtype(count).itemsize * (len(units) + 1)
    return count * (block or 1) * itemsize + index


def encode_csr(dense: Array) -> SparseArray:
    """Store the non-zero values of an array, with the last dimension compressed.

    Levels: every dimension but the last dense, the last CSR; segments `[prod(shape[:-1]) + 1]`. `-0.0`
    counts as zero, NaN does not.

    Args:
        dense: array of rank 1 or more, no dimension 0.

    Raises:
        ValueError: the array is empty or a scalar.

    Example:
        >>> sparse = encode_csr(np.array([[0.0, 5.0, 0.0], [6.0, 0.0, 7.0]]))
        >>> sparse.levels[1].segments.tolist(), sparse.levels[1].indices.tolist(), sparse.values.tolist()
        ([0, 1, 3], [1, 0, 2], [5.0, 6.0, 7.0])
    """
    _require_elements(dense)
    rows = dense.reshape(-1, dense.shape[-1])
    level, flat = _csr(rows != 0)
    leading = tuple(DenseLevel(size) for size in dense.shape[:-1])
    return SparseArray(tuple(dense.shape), tuple(range(dense.ndim)), (), (*leading, level), rows.reshape(-1)[flat])


def encode_blocks(dense: Array, block: int = 4) -> SparseArray:
    """Store the 1 x `block` blocks of a matrix that hold a non-zero value.

    Levels: rows dense, blocks of a row CSR, the values of a block dense: traversal order [0, 1, 2], block map
    [1].

    Args:
        dense: matrix [out, in], TFLite layout; blocks lie along `in` (a Keras kernel [in, out]: blocks of
            `block` x 1).
        block: length of a block; it divides `in`.

    Raises:
        ValueError: not a matrix, or `block` does not divide `in`.

    Example:
        >>> sparse = encode_blocks(np.array([[0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 2.0]]))
        >>> sparse.levels[1].indices.tolist(), sparse.values.tolist()
        ([1], [1.0, 0.0, 0.0, 2.0])
    """
    _require_elements(dense)
    if dense.ndim != 2 or dense.shape[1] % block:
        raise ValueError(
            f"blocks of {block} need a matrix whose second dimension they divide. "
            f"Received: {dense.shape}. Use encode_csr."
        )
    blocks = np.ascontiguousarray(dense).reshape(-1, block)
    level, flat = _csr(nonzero_blocks(dense, block))
    return SparseArray(
        tuple(dense.shape),
        (0, 1, 2),
        (1,),
        (DenseLevel(dense.shape[0]), level, DenseLevel(block)),
        blocks[flat].reshape(-1),
    )


def nonzero_blocks(dense: Array, block: int = 4) -> NDArray[np.bool_]:
    """Return which 1 x `block` blocks of a matrix hold a non-zero value: [out, in] -> [out, in / block].

    Example:
        >>> nonzero_blocks(np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0]])).tolist()
        [[False, True]]
    """
    flags = np.ascontiguousarray(dense != 0)
    # Eight flags at a time where the block has that many.
    width = next(width for width in (8, 4, 2, 1) if block % width == 0)
    words = flags.view(np.dtype(f"u{width}")) != 0
    hit = words if width == block else words.reshape(dense.shape[0], -1, block // width).any(axis=2)
    return np.asarray(hit, dtype=np.bool_)


def decode(sparse: SparseArray) -> Array:
    """Return the dense array of a `SparseArray` that this module wrote.

    Example:
        >>> decode(encode_csr(np.array([0.0, 2.0, 0.0]))).tolist()
        [0.0, 2.0, 0.0]
    """
    rank = len(sparse.shape)
    level = sparse.levels[rank - 1]
    if not isinstance(level, CsrLevel):
        raise ValueError(
            "the last original dimension must be CSR, as encode_csr and encode_blocks write it. "
            f"Received: {level}. Decode it with the runtime."
        )
    block = prod(lvl.size for lvl in sparse.levels[rank:] if isinstance(lvl, DenseLevel))
    columns = sparse.shape[-1] // block
    ends = level.segments.astype(np.int64)
    counts = ends[1:] - ends[:-1]
    flat = np.repeat(np.arange(counts.size) * columns, counts) + level.indices
    dense = np.zeros((counts.size * columns, block), dtype=sparse.values.dtype)
    dense[flat] = sparse.values.reshape(-1, block)
    return dense.reshape(sparse.shape)


def _require_elements(dense: Array) -> None:
    if dense.ndim == 0 or dense.size == 0:
        raise ValueError(
            f"an array to encode needs rank 1 or more and elements. Received: shape {dense.shape}. Leave it dense."
        )
