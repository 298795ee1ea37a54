"""What the benchmarks share: ratios of interleaved times, the machine in a line, and one table."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table


def interleave(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time every task once a round, in turn, so that a slow spell of the machine meets all of them.

    Returns:
        Seconds by name and round; a first round, which warms up, is left out.
    """
    # Here: a process that only prints a table, or trains in another library, is to import neither of ours.
    from tflite_export.runtimes.interleaved import time_in_turn

    taken = time_in_turn(list(tasks.values()), rounds + 1)[1:]
    return {name: own.tolist() for name, own in zip(tasks, taken.T, strict=True)}


def median_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median over the rounds of time / reference time; a slow spell cancels within its round."""
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


def machine(*packages: str) -> str:
    """Return versions and machine in a line."""
    versions = ", ".join(f"{name} {installed(name) or 'not installed'}" for name in packages)
    return f"{versions}; Python {platform.python_version()}, {platform.machine()}, {_processor()}, {cores()} cores"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed(package: str) -> str | None:
    """Return a distribution's version, or None."""
    names = {"tensorflow": ("tensorflow", "tensorflow-cpu"), "keras_prune": ("keras-prune",)}.get(package, (package,))
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def verdict(measured: float, asked: float) -> str:
    """Say whether a number that has an upper bound is met."""
    return "met" if measured <= asked else "MISSED"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> None:
    """Print a table, with the words to the left and the numbers to the right."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(title=title, title_justify="left", caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(caption, highlight=False)
