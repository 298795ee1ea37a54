"""Time .tflite files against each other: interleaved, in one process, outputs compared."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from tflite_export.errors import ExportError
from tflite_export.inputs import SEED
from tflite_export.report import render
from tflite_export.runtime import Session, load

RUNTIMES = ("litert",)


@dataclass(frozen=True)
class Timing:
    """One file's times.

    Args:
        path: The file.
        file_bytes: Its size.
        median_ms: Median time of a run, milliseconds.
        low_ms: First quartile.
        high_ms: Third quartile.
        ratio: Median over the rounds of (time of the first file / time of this one in the same round): above
            1 is faster than the first.
        max_difference: Largest difference of an output from the first file's, as a share of that output's
            scale.
    """

    path: str
    file_bytes: int
    median_ms: float
    low_ms: float
    high_ms: float
    ratio: float
    max_difference: float


@dataclass(frozen=True)
class BenchmarkReport:
    """Times of several files, the first being what the others are compared with.

    Args:
        timings: One for each file.
        runtime: Where they ran.
        threads: Threads of the runtime.
        batch: Samples in a run.
        rounds: Runs of each file that were timed.
    """

    timings: tuple[Timing, ...]
    runtime: str
    threads: int
    batch: int
    rounds: int

    def __str__(self) -> str:
        """Return the times as a table."""
        table = Table(
            title=f"{self.runtime}, {self.threads} thread(s), batch {self.batch}, {self.rounds} rounds, in turn",
            title_justify="left",
        )
        table.add_column("file")
        for heading in ("bytes", "median ms", "quartiles ms", "ratio", "difference"):
            table.add_column(heading, justify="right")
        short = [Path(row.path).name for row in self.timings]
        for row, name in zip(self.timings, short, strict=True):
            table.add_row(
                name if short.count(name) == 1 else row.path,
                f"{row.file_bytes:,}",
                f"{row.median_ms:.4f}",
                f"{row.low_ms:.4f} - {row.high_ms:.4f}",
                f"{row.ratio:.2f} x",
                f"{row.max_difference:.2g}",
            )
        return render(table) + (
            "ratio: median over the rounds of first file's time / this file's; "
            "difference: of outputs, as a share of their scale"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the times as a JSON-able dictionary."""
        return {
            "runtime": self.runtime,
            "threads": self.threads,
            "batch": self.batch,
            "rounds": self.rounds,
            "ratio": "median over the rounds of first file's time / this file's time in the same round",
            "files": [dict(vars(timing)) for timing in self.timings],
        }


def benchmark(
    *paths: str | os.PathLike[str],
    runtime: str = "litert",
    threads: int = 1,
    batch: int = 1,
    rounds: int = 100,
    warm_up: int = 5,
    delegate: bool = True,
    data: Any = None,
) -> BenchmarkReport:
    """Time files against each other, run by run in turn, so that a slow moment meets all of them.

    ratio = median over the rounds of (time of the first file / time of the file): a median of pairwise
    ratios, not a ratio of medians.

    Args:
        paths: The files; the first is what the others are compared with. Where there are several inputs or
            outputs, their names must be equal.
        runtime: "litert": the LiteRT runtime of this machine.
        threads: Threads of the runtime.
        batch: Samples in a run; a file fixed to another batch is refused.
        rounds: Runs of each file that are timed.
        warm_up: Runs of each file before that.
        delegate: Use XNNPACK, as the runtime does by default.
        data: An array, or a list or dictionary of arrays, [batch, ...]; None draws from a seeded standard
            normal (integers: zeros and ones).

    Raises:
        ExportError: A file cannot be run, or differs from the first in its inputs or outputs.

    Example:
        >>> benchmark("dense.tflite", "sparse.tflite", runtime="toaster")
        Traceback (most recent call last):
            ...
        tflite_export.errors.ExportError: runtime: must be one of ('litert',). Received: 'toaster'. Choose ...
    """
    if runtime not in RUNTIMES:
        raise ExportError("runtime", f"must be one of {RUNTIMES}", repr(runtime), "Choose one of these.")
    if not paths or min(rounds, batch, threads) < 1 or warm_up < 0:
        raise ExportError(
            "benchmark",
            "needs a file, and rounds, batch and threads of 1 or more",
            (paths, rounds, batch, threads, warm_up),
            "Raise what is 0.",
        )
    names = [os.fspath(path) for path in paths]
    contents = [load(path) for path in paths]
    sessions = [
        Session(content, name, threads=threads, delegate=delegate)
        for content, name in zip(contents, names, strict=True)
    ]
    inputs, outputs = _matching_names(sessions, "inputs"), _matching_names(sessions, "outputs")
    feeds = _feeds(sessions[0], inputs[0], batch, data)
    results = []
    for session, own_inputs, own_outputs in zip(sessions, inputs, outputs, strict=True):
        if session.batch_size not in (None, len(feeds[0])):
            raise ExportError(
                session.subject,
                f"must take a batch of {len(feeds[0])}",
                session.batch_size,
                "Pass the batch that it is fixed to.",
            )
        session.feed(feeds, own_inputs)
        for _ in range(max(warm_up, 1)):
            session.invoke()
        results.append(session.fetch(own_outputs))
    times = np.empty((rounds, len(sessions)))
    for round_number in range(rounds):
        for column, session in enumerate(sessions):
            start = time.perf_counter_ns()
            session.invoke()
            times[round_number, column] = (time.perf_counter_ns() - start) / 1e6
    timings = tuple(
        Timing(
            path=name,
            file_bytes=len(content),
            median_ms=float(np.median(column)),
            low_ms=float(np.quantile(column, 0.25)),
            high_ms=float(np.quantile(column, 0.75)),
            ratio=float(np.median(times[:, 0] / column)),
            max_difference=_difference(results[0], result),
        )
        for name, content, column, result in zip(names, contents, times.T, results, strict=True)
    )
    return BenchmarkReport(timings, runtime, threads, len(feeds[0]), rounds)


def _matching_names(sessions: list[Session], what: str) -> list[list[str]]:
    """Return for each file the names of its inputs or outputs, in one order; a single one may have any name."""
    first = sorted(getattr(sessions[0], what))
    matching = []
    for session in sessions:
        names = sorted(getattr(session, what))
        if names != first and not len(names) == len(first) == 1:
            raise ExportError(
                session.subject,
                f"must have the {what} of the first file, {first}",
                names,
                "Compare files of one model.",
            )
        matching.append(names)
    return matching


def _feeds(session: Session, names: list[str], batch: int, data: Any) -> list[NDArray[Any]]:
    if data is not None:
        arrays = (
            [data[name] for name in names]
            if isinstance(data, dict)
            else list(data)
            if isinstance(data, (list, tuple))
            else [data]
        )
        if len(arrays) != len(names):
            raise ExportError(
                "data",
                f"one array is needed for each of {names}",
                f"{len(arrays)} arrays",
                "Pass a dictionary by name.",
            )
        return [
            np.asarray(array, dtype=session.inputs[name]["dtype"]) for array, name in zip(arrays, names, strict=True)
        ]
    rng = np.random.default_rng(SEED)
    feeds = []
    for name in names:
        detail = session.inputs[name]
        shape = [int(size) for size in detail["shape_signature"]]
        if any(size < 0 for size in shape[1:]):
            raise ExportError(
                f"input '{name}'", "its shape must be known for inputs to be drawn", shape, "Pass data=... ."
            )
        shape = [batch if session.batch_size is None else shape[0], *shape[1:]]
        kind = np.dtype(detail["dtype"]).kind
        values = rng.standard_normal(shape) if kind == "f" else rng.integers(0, 2, shape)
        feeds.append(values.astype(detail["dtype"]))
    return feeds


def _difference(first: list[NDArray[Any]], other: list[NDArray[Any]]) -> float:
    """Return the largest difference as a share of the first file's scale; infinite for NaN."""
    largest = 0.0
    for a, b in zip(first, other, strict=True):
        if a.shape != b.shape or np.isnan(a.astype(np.float64)).any() or np.isnan(b.astype(np.float64)).any():
            return float("inf")
        scale = float(np.abs(a.astype(np.float64)).max(initial=0.0)) or 1.0
        largest = max(largest, float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)) / scale)
    return largest
