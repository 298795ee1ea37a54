"""What every runtime has in common: a session is a file loaded into one, fed and run batch by batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError

__all__ = [
    "LARGEST_BATCH",
    "MeasuredFile",
    "Measurement",
    "Session",
    "filled_up",
    "fixed_batch",
    "in_batches",
    "is_per_sample",
    "joined",
]

LARGEST_BATCH = 32
"""Samples that a file with a free batch is given at once."""


class Session(ABC):
    """A file loaded into a runtime: LiteRT here or in another process, WebAssembly, TensorFlow Lite Micro.

    Attributes:
        subject: what errors call the file.
        inputs: the runtime's description of each input, by name. Of LiteRT and LiteRT.js it has `dtype`, `shape` and
            `shape_signature`: the shape with -1 for free sizes.
        outputs: likewise.
    """

    subject: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]

    @property
    def batch_size(self) -> int | None:
        """The batch that the file is fixed to, or None for a free one."""
        return fixed_batch(self.inputs)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of an input, with the batch; -1 for a free size."""
        return tuple(int(size) for size in self.inputs[name]["shape_signature"])

    @abstractmethod
    def feed(self, batch: Sequence[NDArray[Any]], names: Sequence[str]) -> None:
        """Set the inputs.

        Args:
            batch: an array [batch, ...] for each name.
            names: names of inputs.

        Raises:
            ExportError: a name is unknown, or the runtime does not take an array.
        """

    @abstractmethod
    def invoke(self) -> None:
        """Run the file once, on the inputs that were set.

        Raises:
            ExportError: the runtime fails.
        """

    @abstractmethod
    def fetch(self, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return copies of outputs of the last run, by name.

        Raises:
            ExportError: a name is unknown.
        """

    def run(
        self,
        feeds: Sequence[NDArray[Any]],
        names: Sequence[str],
        outputs: Sequence[str],
        batch: int | None = None,
    ) -> list[NDArray[Any]]:
        """Return the outputs for any number of samples, in batches that the file takes.

        A batch of a fixed size that the last samples do not fill is filled up with the last one, and cut afterwards.

        Args:
            feeds: an array [samples, ...] for each name.
            names: names of the inputs.
            outputs: names of the outputs wanted.
            batch: of a file with a free batch: run it in batches of this size. None: of at most 32 samples.

        Returns:
            An array [samples, ...] for each output.

        Raises:
            ExportError: a name is unknown, or the runtime fails.
        """
        parts, sizes = [], []
        for chunk in in_batches(feeds, self.batch_size or batch):
            self.feed(chunk, names)
            self.invoke()
            parts.append(self.fetch(outputs))
            sizes.append(len(chunk[0]))
        return joined(parts, sizes, len(feeds[0]))

    def close(self) -> None:  # noqa: B027  (most runtimes free a file when its session goes)
        """Free what the file takes; the session cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def require_names(self, names: Sequence[str], known: Collection[str]) -> None:
        """Refuse names that the file does not know.

        Raises:
            ExportError: a name is unknown; the message has those that are known.
        """
        missing = [name for name in names if name not in known]
        if missing:
            raise ExportError(
                self.subject, f"knows the names {sorted(known)}", missing, "Is it the file of another model?"
            )


def fixed_batch(inputs: Mapping[str, Any]) -> int | None:
    """Return the batch that a file's inputs, as LiteRT describes them, are fixed to, or None for a free one."""
    sizes = [int(detail["shape_signature"][0]) for detail in inputs.values() if len(detail["shape_signature"])]
    return next((size for size in sizes if size >= 0), None)


def filled_up(array: NDArray[Any], size: int) -> NDArray[Any]:
    """Return an array [samples, ...] with its last sample repeated until there are `size` of them.

    Example:
        >>> filled_up(np.array([1, 2]), 4).tolist()
        [1, 2, 2, 2]
    """
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing > 0 else array


def in_batches(feeds: Sequence[NDArray[Any]], batch_size: int | None) -> Iterator[list[NDArray[Any]]]:
    """Yield batches of a size, the last one filled up with the last sample; None: of any size, up to 32.

    Args:
        feeds: an array [samples, ...] for each input.
        batch_size: samples in a batch.

    Example:
        >>> [batch[0].tolist() for batch in in_batches([np.arange(3)], 2)]
        [[0, 1], [2, 2]]
    """
    batch = batch_size or min(LARGEST_BATCH, len(feeds[0]))
    for start in range(0, len(feeds[0]), batch):
        chunk = [feed[start : start + batch] for feed in feeds]
        yield [filled_up(part, batch) for part in chunk] if batch_size else chunk


def joined(parts: Sequence[Sequence[NDArray[Any]]], sizes: Sequence[int], samples: int) -> list[NDArray[Any]]:
    """Return the outputs of batches as one array [samples, ...] each, cut to the number of samples.

    An output of a whole batch, such as a scalar, is repeated for each sample of the batch.

    Args:
        parts: the outputs of each batch.
        sizes: samples in each batch.
        samples: samples wanted.

    Example:
        >>> rows, means = joined([[np.ones((2, 3)), np.float32(5)], [np.ones((2, 3)), np.float32(7)]], [2, 2], 3)
        >>> rows.shape, means.tolist()
        ((3, 3), [5.0, 5.0, 7.0])
    """
    columns = []
    for column in zip(*parts, strict=True):
        batches = list(zip(column, sizes, strict=True))
        if not all(is_per_sample(part, size) for part, size in batches):
            column = tuple(np.stack([part] * size) for part, size in batches)
        columns.append(np.concatenate(column)[:samples])
    return columns


def is_per_sample(output: NDArray[Any], batch: int) -> bool:
    """Return whether an output of a batch begins with the batch."""
    return np.ndim(output) > 0 and len(output) == batch


@dataclass(frozen=True)
class MeasuredFile:
    """A file to measure.

    Args:
        name: what to call it.
        content: its bytes.
        inputs: its names of the inputs, in the order of the arrays that it is fed.
        outputs: its names of the outputs.
    """

    name: str
    content: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Measurement:
    """The outputs of files in a runtime, and what their runs took.

    Args:
        description: the runtime.
        unit: "ms", or "guest instructions".
        outputs: for each file, its outputs.
        samples: [rounds, files], in the unit.
        said: for each file, what the runtime called an error.
    """

    description: str
    unit: str
    outputs: list[list[NDArray[Any]]]
    samples: NDArray[np.float64]
    said: list[list[str]]
