"""Time .tflite files against each other: interleaved, in one child process, outputs compared; here or elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from keras_prune.text.plaintext import printable
from keras_prune.text.tables import plain_text
from tflite_export.edits.twin import is_sparse, twin
from tflite_export.errors import ExportError
from tflite_export.model.inputs import SEED, check_array, check_counts, read_leaves
from tflite_export.model.signature import InputSpec, Signature
from tflite_export.runtimes.arm64_guest import ROUNDS as ARM64_ROUNDS
from tflite_export.runtimes.arm64_guest import measure_on_arm64
from tflite_export.runtimes.isolation import IsolatedSession, LiteRTProcess, measure_isolated
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litert import load
from tflite_export.runtimes.opening import open_foreign
from tflite_export.runtimes.sessions import Case, Session
from tflite_export.verification.agreement import AGREEMENT, difference, require_right
from tflite_export.web.web_session import measure_in_litertjs

__all__ = [
    "ALIASES",
    "ROUNDS",
    "RUNTIMES",
    "WARM_UP",
    "BenchmarkReport",
    "Timing",
    "benchmark",
    "feeds_for",
    "matching_names",
]

RUNTIMES = ("litert", "web", "arm64")
ALIASES = {"wasm": "web"}
ROUNDS = 100
WARM_UP = 5


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
        """The median, of a report whose unit is milliseconds."""
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
        table = Table(
            title=f"{self.description}; {self.threads} thread(s), batch {self.batch}, {self.rounds} rounds in turn "
            f"after {self.warm_up} to warm up",
            title_justify="left",
        )
        table.add_column("file")
        unit = "ms" if self.unit == "ms" else "instructions"
        headings = ["bytes", f"median {unit}", f"quartiles {unit}", "ratio", "difference"]
        if self.with_twins:
            headings.insert(4, "twin")
        for heading in headings:
            table.add_column(heading, justify="right")
        short = [Path(row.path).name for row in self.timings]
        figure = "{:.4f}" if self.unit == "ms" else "{:,.0f}"
        for row, name in zip(self.timings, short, strict=True):
            cells = [
                f"{row.file_bytes:,}",
                figure.format(row.median),
                f"{figure.format(row.low)} - {figure.format(row.high)}",
                f"{row.ratio:.2f} x",
                f"{row.max_difference:.2g}",
            ]
            if self.with_twins:
                cells.insert(4, "not sparse" if row.twin_ratio is None else f"{row.twin_ratio:.2f} x")
            table.add_row(name if short.count(name) == 1 else row.path, *cells)
        notes = [
            f"ratio: median over the rounds of first file's {self._what} / this file's; "
            "difference: of outputs, as a share of their scale"
        ]
        if self.with_twins:
            notes.append(
                "twin: the same ratio against the same zeros stored dense; 1.00 x: sparse kernels did not switch on"
            )
        return printable(plain_text(table) + "\n".join(notes))

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


def benchmark(
    *paths: str | os.PathLike[str],
    runtime: str = "litert",
    threads: int = 1,
    batch: int = 1,
    rounds: int | None = None,
    warm_up: int | None = None,
    delegate: bool = True,
    data: Any = None,
    twins: bool = False,
    browser: bool = False,
    simd: str = "relaxed",
    cpu: str = "cortex-a76",
    limits: Limits | None = None,
) -> BenchmarkReport:
    """Time files against each other, run by run in turn, so that a slow moment meets all of them.

    The files may come from anywhere: they are run, and timed, in a process of their own, which they may crash.

    ratio = median over the rounds of (time of the first file / time of the file): a median of pairwise
    ratios, not a ratio of medians.

    In another runtime than the one of this machine, each file's outputs are first held against those that LiteRT
    gives here.

    Args:
        paths: the files; the first is what the others are compared with. Where there are several inputs or
            outputs, their names must be equal.
        runtime: "litert": the LiteRT runtime of this machine. "web" (or "wasm"): LiteRT.js, in WebAssembly,
            where sparse kernels are on. "arm64": LiteRT for aarch64 under qemu; instructions of the guest are
            counted, and no time is taken.
        threads: threads of the runtime; "web" and "arm64" have 1.
        batch: samples in a run; a file fixed to another batch is refused.
        rounds: runs of each file that are timed. None: 100, and 3 with "arm64", where counts repeat.
        warm_up: runs of each file before that. None: 5, and 1 with "arm64".
        delegate: use XNNPACK, as the runtime does by default; "web" and "arm64" always do.
        data: an array, or a list or dictionary of arrays, [batch, ...], all of which is a run; or a data set, a
            generator or a function as in `tflite_export.model.inputs.collect_inputs`, of which it is the first
            `batch` samples. None draws from a seeded standard normal (integers: zeros and ones).
        twins: time each sparse file against the same zeros stored dense, too.
        browser: with "web": in a headless Chromium instead of Node.
        simd: with "web" under Node: "relaxed" or "plain".
        cpu: with "arm64": the processor that qemu is.
        limits: what the files may take in LiteRT here; None: 120 seconds for a run, and 4 GiB of memory or 8 times the
            files.

    Raises:
        ExportError: a file cannot be run, differs from the first in its inputs or outputs, or answers wrongly; or
            a runtime is missing.

    Example:
        >>> benchmark("dense.tflite", "sparse.tflite", runtime="toaster")
        Traceback (most recent call last):
            ...
        tflite_export.errors.ExportError: runtime: must be one of ('litert', 'web', 'arm64'). Received: 'toaster'...
    """
    runtime = ALIASES.get(runtime, runtime)
    rounds = (ARM64_ROUNDS if runtime == "arm64" else ROUNDS) if rounds is None else rounds
    warm_up = (1 if runtime == "arm64" else WARM_UP) if warm_up is None else warm_up
    _check_choices(paths, runtime, threads, batch, rounds, warm_up, delegate, browser)
    names = [os.fspath(path) for path in paths]
    contents = [load(path) for path in paths]
    twin_of = [place for place, content in enumerate(contents) if twins and is_sparse(content, names[place])]
    files = [
        *zip(names, contents, strict=True),
        *((f"{names[place]}, its twin", twin(contents[place], names[place])) for place in twin_of),
    ]
    allowed = (limits or Limits()).for_files(*(content for _, content in files))
    with LiteRTProcess() as process:
        sessions = [
            open_foreign(content, name, threads=threads, delegate=delegate, limits=allowed, process=process)
            for name, content in files
        ]
        cases, feeds = _cases(sessions, files, batch, data)
        here = measure_isolated(sessions, cases, feeds, rounds if runtime == "litert" else 0, warm_up)
    if runtime == "litert":
        measured = here
    elif runtime == "web":
        measured = measure_in_litertjs(cases, feeds, rounds, warm_up, browser=browser, simd=simd, limits=allowed)
    else:
        measured = measure_on_arm64(cases, feeds, rounds, warm_up, cpu=cpu, limits=allowed)
    for case, found, wanted, said in zip(cases, measured.outputs, here.outputs, measured.said, strict=True):
        subject = f"{case.name} ({measured.description})"
        require_right(found, wanted, subject, whose="LiteRT does here", tolerance=AGREEMENT, said=said)
    samples = measured.samples
    twin_ratio = {
        place: float(np.median(samples[:, len(paths) + number] / samples[:, place]))
        for number, place in enumerate(twin_of)
    }
    timings = tuple(
        Timing(
            path=name,
            file_bytes=len(contents[place]),
            median=float(np.median(samples[:, place])),
            low=float(np.quantile(samples[:, place], 0.25)),
            high=float(np.quantile(samples[:, place], 0.75)),
            ratio=float(np.median(samples[:, 0] / samples[:, place])),
            max_difference=difference(measured.outputs[0], measured.outputs[place]),
            twin_ratio=twin_ratio.get(place),
        )
        for place, name in enumerate(names)
    )
    return BenchmarkReport(
        timings, runtime, measured.description, measured.unit, threads, len(feeds[0]), rounds, warm_up
    )


def _check_choices(
    paths: Sequence[Any],
    runtime: str,
    threads: int,
    batch: int,
    rounds: int,
    warm_up: int,
    delegate: bool,
    browser: bool,
) -> None:
    """Refuse choices that are not known or do not go together.

    Raises:
        ExportError: with the first of them.
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
    if runtime != "litert" and (threads != 1 or not delegate):
        raise ExportError(
            f"runtime '{runtime}'",
            "runs on one thread with XNNPACK",
            f"threads={threads}, delegate={delegate}",
            "Use the runtime 'litert' for these.",
        )
    if browser and runtime != "web":
        raise ExportError("browser", "belongs to the runtime 'web'", f"'{runtime}'", "Pass runtime='web'.")


def _cases(
    sessions: Sequence[IsolatedSession], files: Sequence[tuple[str, bytes]], batch: int, data: Any
) -> tuple[list[Case], list[NDArray[Any]]]:
    """Return what each file is measured as, and the inputs that all get.

    Raises:
        ExportError: the files differ in their inputs or outputs, or are fixed to another batch.
    """
    inputs, outputs = matching_names(sessions, "inputs"), matching_names(sessions, "outputs")
    feeds = feeds_for(sessions[0], inputs[0], batch, data)
    for session in sessions:
        if session.batch_size not in (None, len(feeds[0])):
            raise ExportError(
                session.subject,
                f"must take a batch of {len(feeds[0])}",
                session.batch_size,
                "Pass the batch that it is fixed to.",
            )
    cases = [
        Case(name, content, tuple(own_inputs), tuple(own_outputs))
        for (name, content), own_inputs, own_outputs in zip(files, inputs, outputs, strict=True)
    ]
    return cases, feeds


def matching_names(sessions: Sequence[Session], what: str) -> list[list[str]]:
    """Return for each file the names of its inputs or outputs, in one order; a single one may have any name.

    Raises:
        ExportError: a file has none, or others than the first.
    """
    first = sorted(getattr(sessions[0], what))
    if not first:
        raise ExportError(sessions[0].subject, f"must have {what}", "none", "Is its signature damaged?")
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
        for name, place in zip(names, first, strict=True):
            wanted, found = _form(sessions[0], what, place), _form(session, what, name)
            if what == "inputs" and not _agree(wanted, found):
                raise ExportError(
                    f"{session.subject}, input '{name}'",
                    f"must take what the first file's '{place}' takes, {_said(wanted)}",
                    _said(found),
                    "Compare files of one model, of one number type of inputs.",
                )
        matching.append(names)
    return matching


def _form(session: Session, what: str, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return sizes without the batch, -1 where free, and type."""
    detail = getattr(session, what)[name]
    return tuple(int(size) for size in detail["shape_signature"][1:]), np.dtype(detail["dtype"])


def _agree(wanted: tuple[tuple[int, ...], np.dtype[Any]], found: tuple[tuple[int, ...], np.dtype[Any]]) -> bool:
    """Return whether one array fits both inputs; whole numbers of another type are another quantization's."""
    sizes = len(wanted[0]) == len(found[0]) and all(
        a == b or -1 in (a, b) for a, b in zip(wanted[0], found[0], strict=True)
    )
    return sizes and wanted[1].kind == found[1].kind


def _said(form: tuple[tuple[int, ...], np.dtype[Any]]) -> str:
    sizes = ("batch", *("any" if size < 0 else str(size) for size in form[0]))
    return f"{form[1].name} of ({', '.join(sizes)})"


def feeds_for(session: Session, names: list[str], batch: int, data: Any) -> list[NDArray[Any]]:
    """Return an array for each input: the given ones in its type, or drawn ones."""
    if data is not None:
        if isinstance(data, dict) and set(data) != set(names):
            raise ExportError(
                "data", f"must be named as the inputs, {names}", sorted(map(str, data)), "Name the arrays so."
            )
        details = [session.inputs[name] for name in names]
        free = [tuple(None if size < 0 else int(size) for size in detail["shape_signature"][1:]) for detail in details]
        types = [np.dtype(detail["dtype"]) for detail in details]
        specs = tuple(InputSpec(*each) for each in zip(names, free, (dtype.name for dtype in types), strict=True))
        given = read_leaves(data, Signature(specs, names), session.batch_size or batch, whole=True)
        for array, spec in zip(given, specs, strict=True):
            check_array(array, spec)
        check_counts(given)
        return [array.astype(dtype) for array, dtype in zip(given, types, strict=True)]
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
