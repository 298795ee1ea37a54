"""What a benchmark found: a file's times, all files side by side, as a table and as a dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_prune.text.plaintext import printable
from keras_prune.text.tables import plain_table

__all__ = ["BenchmarkReport", "Timing"]


@dataclass(frozen=True)
class Timing:
    """One file's times, or guest instructions under an emulator; the report says which.

    Args:
        path: the file.
        file_bytes: its size.
        median: median of a run.
        low: first quartile.
        high: third quartile.
        ratio: median over the rounds of (the first file's / this one's in the same round): above 1 is faster
            than the first.
        max_difference: largest difference of an output from the first file's, as a share of that output's
            scale.
        twin_ratio: the same ratio against the file's twin, which has the same zeros and no sparsity: 1.0 where
            sparse kernels did not switch on. None where no twins were timed, or the file is not sparse.
    """

    path: str
    file_bytes: int
    median: float
    low: float
    high: float
    ratio: float
    max_difference: float
    twin_ratio: float | None = None

    @property
    def median_ms(self) -> float:
        """The median in milliseconds, which is the unit of the report then."""
        return self.median


@dataclass(frozen=True)
class BenchmarkReport:
    """Times of several files, the first being what the others are compared with.

    Args:
        timings: one for each file.
        runtime: "litert", "web" or "arm64".
        description: the runtime and its version, the kind of SIMD, the emulated processor.
        unit: "ms", or "guest instructions".
        threads: threads of the runtime.
        batch: samples in a run.
        rounds: runs of each file that were timed.
        warm_up: runs of each file before that.
    """

    timings: tuple[Timing, ...]
    runtime: str
    description: str
    unit: str
    threads: int
    batch: int
    rounds: int
    warm_up: int

    @property
    def with_twins(self) -> bool:
        """Whether a file was timed against its twin."""
        return any(timing.twin_ratio is not None for timing in self.timings)

    def __str__(self) -> str:
        """Return the times as a table."""
        in_ms = self.unit == "ms"
        unit, figure = ("ms", "{:.4f}") if in_ms else ("instructions", "{:,.0f}")
        short = [Path(timing.path).name for timing in self.timings]
        columns: dict[str, list[str]] = {
            "file": [
                name if short.count(name) == 1 else timing.path
                for name, timing in zip(short, self.timings, strict=True)
            ],
            "bytes": [f"{timing.file_bytes:,}" for timing in self.timings],
            f"median {unit}": [figure.format(timing.median) for timing in self.timings],
            f"quartiles {unit}": [
                f"{figure.format(timing.low)} - {figure.format(timing.high)}" for timing in self.timings
            ],
            "ratio": [f"{timing.ratio:.2f} x" for timing in self.timings],
        }
        notes = [
            f"ratio: median over the rounds of first file's {self._what} / this file's; "
            "difference: of outputs, as a share of their scale"
        ]
        if self.with_twins:
            columns["twin"] = [
                "not sparse" if timing.twin_ratio is None else f"{timing.twin_ratio:.2f} x" for timing in self.timings
            ]
            notes.append(
                "twin: the same ratio against the same zeros stored dense; 1.00 x: sparse kernels did not switch on"
            )
        columns["difference"] = [f"{timing.max_difference:.2g}" for timing in self.timings]
        title = (
            f"{self.description}; {self.threads} thread(s), batch {self.batch}, {self.rounds} rounds in turn "
            f"after {self.warm_up} to warm up"
        )
        return printable(plain_table(title, columns, right=list(columns)[1:]) + "\n".join(notes))

    @property
    def _what(self) -> str:
        return "time" if self.unit == "ms" else self.unit

    def to_dict(self) -> dict[str, Any]:
        """Return the times as a JSON-able dictionary."""
        suffix = "ms" if self.unit == "ms" else "instructions"
        return {
            "runtime": self.runtime,
            "description": self.description,
            "unit": self.unit,
            "threads": self.threads,
            "batch": self.batch,
            "rounds": self.rounds,
            "warm_up": self.warm_up,
            "ratio": f"median over the rounds of first file's {self._what} / this file's in the same round",
            "files": [
                {
                    "path": timing.path,
                    "file_bytes": timing.file_bytes,
                    f"median_{suffix}": timing.median,
                    f"low_{suffix}": timing.low,
                    f"high_{suffix}": timing.high,
                    "ratio": timing.ratio,
                    "twin_ratio": timing.twin_ratio,
                    "max_difference": timing.max_difference,
                }
                for timing in self.timings
            ],
        }
