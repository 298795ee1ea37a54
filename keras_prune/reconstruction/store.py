"""Tensors of many batches, in memory up to a limit and on the disk beyond it."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_prune.keras_seam.graphs import mask_of, set_mask

__all__ = ["Kept", "Pair", "Store"]

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


class Kept:
    """Pairs of tensors that a `Store` keeps, one for each batch, for as long as somebody holds this object."""

    def __init__(self) -> None:
        self.pairs: list[Pair] = []

    def pair(self, batch: int) -> Pair:
        """Return the pair of a batch; both are one object where they were when they were given."""
        first, second = self.pairs[batch]
        read = _read(first)
        return read, read if first is second else _read(second)


class Store:
    """Keeps pairs of tensors, one for each batch; what is beyond the limit lies in a temporary folder.

    Args:
        memory: bytes to be kept in memory.

    Example:
        >>> with Store(memory=0) as store:
        ...     [kept] = store.keep([[(ops.ones(3), ops.zeros(3))]])
        ...     [float(ops.sum(tensor)) for tensor in kept.pair(0)]
        [3.0, 0.0]
    """

    def __init__(self, memory: int | None = None) -> None:
        self._left = MEMORY if memory is None else memory
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._written = itertools.count()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def keep(self, batches: Iterable[Sequence[Pair]]) -> list[Kept]:
        """Keep some tensors, each until nobody holds what is returned for it any more.

        Args:
            batches: for each batch a pair of every tensor. One batch after the other is asked for.
        """
        found: list[Kept] = []
        for pairs in batches:
            found = found or [Kept() for _ in pairs]
            for kept, pair in zip(found, pairs, strict=True):
                size = sum(_bytes(tensor) for tensor in {id(one): one for one in pair}.values())
                if size <= self._left:
                    self._left -= size
                    kept.pairs.append(pair)
                    weakref.finalize(kept, self._free, size)
                else:
                    written = self._write(pair)
                    kept.pairs.append(written)
                    weakref.finalize(kept, _remove, {one.file for one in written})
        return found

    def _free(self, size: int) -> None:
        self._left += size

    def _write(self, pair: Pair) -> tuple[_OnDisk, _OnDisk]:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="keras_prune-")
        written = []
        for tensor in pair[:1] if pair[0] is pair[1] else pair:
            file = Path(self._folder.name, f"{next(self._written)}.npy")
            np.save(file, np.asarray(ops.convert_to_numpy(ops.cast(tensor, _wide(tensor)))))
            written.append(_OnDisk(file, tensor.dtype, mask_of(tensor)))
        return written[0], written[-1]


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


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
