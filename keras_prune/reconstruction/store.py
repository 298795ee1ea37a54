"""Tensors of many batches, in memory up to a limit and on the disk beyond it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_prune.keras_seam.graphs import mask_of, set_mask

__all__ = ["Pair", "Store"]

MEMORY = 2 * 1024**3
"""Bytes that are kept in memory."""

Pair = tuple[Any, Any]
"""A tensor in the pruned model, and the same one in the dense model: one object as long as they are equal."""


@dataclasses.dataclass(frozen=True)
class _OnDisk:
    """A tensor in a file, and the mask of time steps that Keras has put on it."""

    file: Path
    dtype: Any
    mask: Any


class Store:
    """Keeps pairs of tensors, one for each batch, under a number; what is beyond the limit lies in a temporary folder.

    Args:
        memory: bytes to be kept in memory.

    Example:
        >>> with Store(memory=0) as store:
        ...     number = store.keep([(ops.ones(3), ops.zeros(3))])
        ...     [float(ops.sum(tensor)) for tensor in store.pair(number, 0)]
        [3.0, 0.0]
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self._left = memory
        self._kept: dict[int, list[Pair]] = {}
        self._bytes: dict[int, int] = {}
        self._next = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def keep(self, pairs: Sequence[Pair]) -> int:
        """Keep a pair for each batch; gives the number to ask for it by."""
        number, self._next = self._next, self._next + 1
        size = sum(_bytes(a) + (0 if a is b else _bytes(b)) for a, b in pairs)
        self._bytes[number] = size if size <= self._left else 0
        if size <= self._left:
            self._left -= size
            self._kept[number] = list(pairs)
        else:
            self._kept[number] = [self._written(number, i, pair) for i, pair in enumerate(pairs)]
        return number

    def pair(self, number: int, batch: int) -> Pair:
        """Return the pair of a batch; both are one object where they were when they were given."""
        first, second = self._kept[number][batch]
        read = _read(first)
        return read, read if first is second else _read(second)

    def pairs(self, number: int) -> Iterator[Pair]:
        """Give the pairs of all batches."""
        return (self.pair(number, batch) for batch in range(len(self._kept[number])))

    def drop(self, number: int) -> None:
        """Forget what is under a number."""
        self._left += self._bytes.pop(number)
        for pair in self._kept.pop(number):
            for file in {one.file for one in pair if isinstance(one, _OnDisk)}:
                file.unlink()

    def _written(self, number: int, batch: int, pair: Pair) -> Pair:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="keras_prune-")
        written = []
        for side, tensor in enumerate(pair[:1] if pair[0] is pair[1] else pair):
            file = Path(self._folder.name, f"{number}-{batch}-{side}.npy")
            np.save(file, np.asarray(ops.convert_to_numpy(ops.cast(tensor, _wide(tensor)))))
            written.append(_OnDisk(file, tensor.dtype, mask_of(tensor)))
        return written[0], written[-1]


def _bytes(tensor: Any) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(_wide(tensor)).itemsize


def _wide(tensor: Any) -> str:
    """The type to write a tensor in: NumPy has no bfloat16."""
    kind = str(keras.backend.standardize_dtype(tensor.dtype))
    return "float32" if kind == "bfloat16" else kind


def _read(kept: Any) -> Any:
    if not isinstance(kept, _OnDisk):
        return kept
    tensor = ops.convert_to_tensor(np.load(kept.file), dtype=kept.dtype)
    if kept.mask is not None:
        set_mask(tensor, kept.mask)
    return tensor
