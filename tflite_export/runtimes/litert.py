"""Run .tflite files in the LiteRT runtime of this machine; and what every runtime has in common."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.file.flatbuffer import LARGEST_FILE, operator_name, read
from tflite_export.file.reading import require_file

__all__ = [
    "LARGEST_BATCH",
    "Case",
    "Measurement",
    "Runnable",
    "Session",
    "describe_here",
    "fixed_batch",
    "in_batches",
    "is_per_sample",
    "joined",
    "load",
    "require_names",
    "run_in_batches",
]

LARGEST_BATCH = 32
"""Samples that a file with a free batch is given at once."""


class Runnable(Protocol):
    """A file loaded somewhere: here, in a browser, in an emulator."""

    subject: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]

    @property
    def batch_size(self) -> int | None:
        """The batch that the file is fixed to, or None for a free one."""

    def feed(self, batch: Sequence[NDArray[Any]], names: Sequence[str]) -> None:
        """Set the inputs."""

    def invoke(self) -> None:
        """Run the file once, on the inputs that were set."""

    def fetch(self, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return copies of outputs by name."""


def fixed_batch(inputs: Mapping[str, Any]) -> int | None:
    """Return the batch that a file's inputs, as the runtime describes them, are fixed to, or None for a free one."""
    sizes = [int(detail["shape_signature"][0]) for detail in inputs.values() if len(detail["shape_signature"])]
    return next((size for size in sizes if size >= 0), None)


def run_in_batches(
    session: Runnable,
    feeds: Sequence[NDArray[Any]],
    names: Sequence[str],
    outputs: Sequence[str],
    batch: int | None = None,
) -> list[NDArray[Any]]:
    """Return the outputs for samples of any number, in batches that the file takes.

    A batch of a fixed size that the last samples do not fill is filled with the last of them, and cut afterwards.

    Args:
        session: the file.
        feeds: an array [samples, ...] for each name.
        names: names of the inputs.
        outputs: names of the outputs wanted.
        batch: of a file with a free batch: run it in batches of this size. None: as many samples as there are.
    """
    parts, sizes = [], []
    for chunk in in_batches(feeds, session.batch_size or batch):
        session.feed(chunk, names)
        session.invoke()
        parts.append(session.fetch(outputs))
        sizes.append(len(chunk[0]))
    return joined(parts, sizes, len(feeds[0]))


def in_batches(feeds: Sequence[NDArray[Any]], batch_size: int | None) -> Iterator[list[NDArray[Any]]]:
    """Yield samples in batches of a size, the last one filled up with the last sample; None: of any size."""
    batch = batch_size or min(LARGEST_BATCH, len(feeds[0]))
    for start in range(0, len(feeds[0]), batch):
        chunk = [feed[start : start + batch] for feed in feeds]
        count = len(chunk[0])
        if batch_size and count < batch:
            chunk = [np.concatenate([part, np.repeat(part[-1:], batch - count, axis=0)]) for part in chunk]
        yield chunk


def joined(parts: Sequence[Sequence[NDArray[Any]]], sizes: Sequence[int], samples: int) -> list[NDArray[Any]]:
    """Return the outputs of batches as one array [samples, ...] each, cut to the number of samples.

    An output of a whole batch, such as a scalar, is repeated for each sample of it.

    Args:
        parts: the outputs of each batch.
        sizes: samples of each batch.
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


def require_names(session: Runnable, names: Sequence[str], known: dict[str, Any]) -> None:
    """Refuse names that a file does not know.

    Raises:
        ExportError: with the names that it does know.
    """
    missing = [name for name in names if name not in known]
    if missing:
        raise ExportError(
            session.subject, f"knows the names {sorted(known)}", missing, "Is it the file of another model?"
        )


class Session:
    """A file loaded into an interpreter.

    Args:
        content: the file's bytes; checked by `tflite_export.file.flatbuffer.read` first, since the runtime
            follows offsets unchecked.
        subject: what to call it in errors.
        threads: threads of the runtime.
        delegate: use the XNNPACK delegate, as the runtime does by default.

    Raises:
        FlatbufferError: the file is damaged.
        ExportError: the runtime cannot load or allocate it.
    """

    def __init__(self, content: bytes, subject: str = "the file", *, threads: int = 1, delegate: bool = True) -> None:
        self.subject = f"{subject} ({threads} thread{'s' * (threads != 1)}, XNNPACK {'on' if delegate else 'off'})"
        model = read(content, subject)
        self._content, self._threads = content, threads
        self._resolver = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._keeps_state = _keeps_state(model)
        try:
            self._open()
            # A free size is 1 in the file, and a window need not fit into that: tensors are allocated for the first
            # inputs then.
            if not any((detail["shape_signature"] < 0).any() for detail in self.inputs.values()):
                self._allocate()
        except (ValueError, RuntimeError) as error:
            raise self._error("the runtime must load it", error) from error

    def _open(self) -> None:
        """Load the file into an interpreter, in which nothing is allocated yet."""
        self._interpreter = Interpreter(
            model_content=self._content, num_threads=self._threads, experimental_op_resolver_type=self._resolver
        )
        self.inputs, self.outputs = self._details()
        self._shapes = {name: tuple(int(size) for size in detail["shape"]) for name, detail in self.inputs.items()}
        self._allocated = self._has_run = False

    def _details(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the details of inputs and outputs by name: the signature's names where the file has one."""
        signatures = self._interpreter.get_signature_list()
        if signatures:
            key = "serving_default" if "serving_default" in signatures else next(iter(signatures))
            runner = self._interpreter.get_signature_runner(key)
            return dict(runner.get_input_details()), dict(runner.get_output_details())
        return (
            {detail["name"]: detail for detail in self._interpreter.get_input_details()},
            {detail["name"]: detail for detail in self._interpreter.get_output_details()},
        )

    def _allocate(self) -> None:
        self._interpreter.allocate_tensors()
        self._allocated = True

    def _error(self, rule: str, error: Exception) -> ExportError:
        free = hasattr(self, "inputs") and any((d["shape_signature"] < 0).any() for d in self.inputs.values())
        return ExportError(
            self.subject,
            rule,
            f"{type(error).__name__}: {error}",
            "Export the model again" + (", with fixed sizes: batch_size=..., shapes=... ." if free else "."),
        )

    @property
    def batch_size(self) -> int | None:
        """The batch that the file is fixed to, or None for a free one."""
        return fixed_batch(self.inputs)

    def run(
        self,
        feeds: Sequence[NDArray[Any]],
        names: Sequence[str],
        outputs: Sequence[str],
        batch: int | None = None,
    ) -> list[NDArray[Any]]:
        """Return the outputs for samples of any number, in batches that the file takes: see `run_in_batches`.

        Raises:
            ExportError: a name is unknown, or the runtime fails.
        """
        return run_in_batches(self, feeds, names, outputs, batch)

    def feed(self, batch: Sequence[NDArray[Any]], names: Sequence[str]) -> None:
        """Set the inputs, resized to the batch. A file that keeps state begins anew."""
        require_names(self, names, self.inputs)
        try:
            if self._keeps_state and self._has_run:
                self._open()  # the runtime has no call that puts a file's own variables back
            resized = not self._allocated
            for array, name in zip(batch, names, strict=True):
                if self._shapes[name] != array.shape:
                    self._interpreter.resize_tensor_input(self.inputs[name]["index"], array.shape, strict=False)
                    self._shapes[name] = array.shape
                    resized = True
            if resized:
                self._allocate()
            # State of a recurrent operator must not leak from one input into the next.
            self._interpreter.reset_all_variables()
            for array, name in zip(batch, names, strict=True):
                self._interpreter.set_tensor(
                    self.inputs[name]["index"], array.astype(self.inputs[name]["dtype"], copy=False)
                )
        except (ValueError, RuntimeError) as error:
            raise self._error("the runtime must take the inputs", error) from error

    def invoke(self) -> None:
        """Run the file once, on the inputs that were set."""
        self._has_run = True
        try:
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise self._error("the runtime must run it", error) from error

    def fetch(self, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return copies of outputs by name."""
        require_names(self, outputs, self.outputs)
        return [self._interpreter.get_tensor(self.outputs[name]["index"]) for name in outputs]

    def tensor_shapes(self) -> dict[int, tuple[int, ...]]:
        """Return the shape of each tensor of the first subgraph, as of the last run."""
        return {
            detail["index"]: tuple(int(size) for size in detail["shape"])
            for detail in self._interpreter.get_tensor_details()
        }


def _keeps_state(model: Any) -> bool:
    """Return whether a file has variables of its own that it assigns as it runs: a stateful recurrent layer's."""
    return any(
        operator_name(model, operator) == "ASSIGN_VARIABLE"
        for subgraph in model.subgraphs[:1]
        for operator in subgraph.operators or []
    )


def load(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file.

    Raises:
        ExportError: it cannot be read, is a device or a pipe, or is larger than a .tflite or a golden file can be.
    """
    require_file(path, LARGEST_FILE)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ExportError(
            f"'{os.fspath(path)}'", "must be a readable file", error.strerror, "Check the path."
        ) from error


@dataclass(frozen=True)
class Case:
    """A file to measure.

    Args:
        name: what to call it.
        content: its bytes.
        inputs: its names of the inputs, in the order of the feeds.
        outputs: its names of the outputs.
    """

    name: str
    content: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a runtime answered and took.

    Args:
        description: the runtime.
        unit: "ms", or "guest instructions".
        outputs: for each file, its outputs.
        samples: [rounds, files].
        said: for each file, what the runtime called an error.
    """

    description: str
    unit: str
    outputs: list[list[NDArray[Any]]]
    samples: NDArray[np.float64]
    said: list[list[str]]


def describe_here() -> str:
    """Return the runtime of this machine in words."""
    return f"LiteRT {version('ai-edge-litert')} on {platform.machine()}"
