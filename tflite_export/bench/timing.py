"""Time .tflite files against each other: interleaved, in one child process, outputs compared; here or elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_prune.arrays.distance import largest_difference
from tflite_export.bench.comparable import measured_files
from tflite_export.bench.report import BenchmarkReport, Timing
from tflite_export.edits.twin import is_sparse, twin
from tflite_export.errors import ExportError
from tflite_export.runtimes.arm64 import CPU
from tflite_export.runtimes.arm64_guest import ROUNDS as ARM64_ROUNDS
from tflite_export.runtimes.arm64_guest import measure_on_arm64
from tflite_export.runtimes.isolation import LiteRTProcess, measure_isolated
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litert import load
from tflite_export.runtimes.opening import open_foreign
from tflite_export.runtimes.sessions import Measurement
from tflite_export.tolerances import OTHER_RUNTIME
from tflite_export.verification.compare import require_agreement
from tflite_export.web.web_session import measure_in_litertjs

__all__ = ["ALIASES", "ROUNDS", "RUNTIMES", "WARM_UP", "benchmark", "measure_files"]

RUNTIMES = ("litert", "web", "arm64")
ALIASES = {"wasm": "web"}
ROUNDS = 100
WARM_UP = 5


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
    cpu: str = CPU,
    limits: Limits | None = None,
) -> BenchmarkReport:
    """Time files against each other in interleaved runs, so that a slow spell of the machine meets all of them.

    The files may come from anywhere: they run, and are timed, in a child process that they may crash.

    ratio = median over the rounds of (time of the first file / time of the file): a median of pairwise
    ratios, not a ratio of medians.

    In "web" and "arm64", each file's outputs are first compared with those that LiteRT gives on this machine.

    Args:
        paths: the files; the first is what the others are compared with. Where there are several inputs or
            outputs, their names must be equal.
        runtime: "litert": the LiteRT runtime of this machine. "web" (or "wasm"): LiteRT.js, in WebAssembly,
            where sparse kernels are on. "arm64": LiteRT for aarch64 under qemu; instructions of the guest are
            counted, and no time is taken.
        threads: threads of the runtime; "web" and "arm64" have 1.
        batch: samples in a run; a file fixed to another batch is refused.
        rounds: timed runs of each file. None: 100, or 3 with "arm64", where counts repeat.
        warm_up: untimed runs of each file before that. None: 5, or 1 with "arm64".
        delegate: use XNNPACK, as the runtime does by default; "web" and "arm64" always do.
        data: an array, or a list or dictionary of arrays, [batch, ...], all of which is a run; or a data set, a
            generator or a function as in `tflite_export.model.inputs.collect_inputs`, of which it is the first
            `batch` samples. None draws from a seeded standard normal (integers: zeros and ones).
        twins: also time each sparse file against its twin, the same zeros stored dense.
        browser: with "web": in a headless Chromium instead of Node.
        simd: with "web" under Node: "relaxed" or "plain".
        cpu: with "arm64": the processor that qemu is.
        limits: what the files may take; None: 120 seconds for a run, and 4 GiB of memory or 8 times the files.

    Raises:
        ExportError: a file cannot be run, differs from the first in its inputs or outputs, or gives wrong outputs; or a
            runtime is missing.

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
    measured, samples = measure_files(
        files,
        runtime,
        rounds,
        warm_up,
        threads=threads,
        batch=batch,
        delegate=delegate,
        data=data,
        browser=browser,
        simd=simd,
        cpu=cpu,
        limits=limits,
    )
    timings = tuple(
        _timing(measured, place, name, len(contents[place]), twin_of, len(paths)) for place, name in enumerate(names)
    )
    return BenchmarkReport(timings, runtime, measured.description, measured.unit, threads, samples, rounds, warm_up)


def measure_files(
    files: Sequence[tuple[str, bytes]],
    runtime: str,
    rounds: int,
    warm_up: int,
    *,
    threads: int = 1,
    batch: int = 1,
    delegate: bool = True,
    data: Any = None,
    browser: bool = False,
    simd: str = "relaxed",
    cpu: str = CPU,
    limits: Limits | None = None,
) -> tuple[Measurement, int]:
    """Run files of unknown origin in turn, each in the same process, and compare their outputs with LiteRT's here.

    Args:
        files: name and content of each.
        runtime: one of `RUNTIMES`.
        rounds: timed runs of each file.
        warm_up: untimed runs of each file before that.
        threads: see `benchmark`, as for the others.
        batch: samples in a run.
        delegate: use XNNPACK.
        data: inputs.
        browser: in a headless Chromium.
        simd: of LiteRT.js.
        cpu: that qemu is.
        limits: what the files may take.

    Returns:
        The measurement, and the samples that a run took.

    Raises:
        ExportError: a file cannot be run, differs from the first in its inputs or outputs, or gives wrong outputs; or a
            runtime is missing.
    """
    allowed = (limits or Limits()).for_files(*(content for _, content in files))
    with LiteRTProcess() as process:
        sessions = [
            open_foreign(content, name, threads=threads, delegate=delegate, limits=allowed, process=process)
            for name, content in files
        ]
        cases, feeds = measured_files(sessions, files, batch, data)
        here = measure_isolated(sessions, cases, feeds, rounds if runtime == "litert" else 0, warm_up)
    if runtime == "litert":
        measured = here
    elif runtime == "web":
        measured = measure_in_litertjs(cases, feeds, rounds, warm_up, browser=browser, simd=simd, limits=allowed)
    else:
        measured = measure_on_arm64(cases, feeds, rounds, warm_up, cpu=cpu, limits=allowed)
    for case, found, wanted, said in zip(cases, measured.outputs, here.outputs, measured.said, strict=True):
        subject = f"{case.name} ({measured.description})"
        require_agreement(found, wanted, subject, whose="LiteRT's outputs", tolerance=OTHER_RUNTIME, said=said)
    return measured, len(feeds[0])


def _timing(
    measured: Measurement, place: int, path: str, file_bytes: int, twin_of: Sequence[int], files: int
) -> Timing:
    """Return one file's times.

    Args:
        measured: of the files, and of the twins of some behind them.
        place: of the file.
        path: of the file.
        file_bytes: its size.
        twin_of: the place of the file that each twin belongs to.
        files: number of files without twins.
    """
    samples = measured.samples
    own = samples[:, place]
    beside = samples[:, files + twin_of.index(place)] if place in twin_of else None
    return Timing(
        path=path,
        file_bytes=file_bytes,
        median=float(np.median(own)),
        low=float(np.quantile(own, 0.25)),
        high=float(np.quantile(own, 0.75)),
        ratio=float(np.median(samples[:, 0] / own)),
        max_difference=largest_difference(measured.outputs[place], measured.outputs[0]),
        twin_ratio=None if beside is None else float(np.median(beside / own)),
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
