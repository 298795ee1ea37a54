"""What a Keras model costs, found on its exported file: time in LiteRT, or what an NPU's compiler says of it.

`keras_prune.structured.plan(model, latency=0.5)` finds `Stopwatch` by the entry point group `keras_prune.latency`.
`plan(model, latency=0.5, measure=Stopwatch(x, quantize="int8"))` times int8 files instead of float32 ones.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_prune.devices import Device
from tflite_export.convert.workspace import temporary_folder
from tflite_export.errors import ExportError
from tflite_export.export import export
from tflite_export.measures.npu import ESTIMATE
from tflite_export.runtimes.interleaved import time_in_turn
from tflite_export.runtimes.litert import load
from tflite_export.runtimes.opening import open_own
from tflite_export.runtimes.sessions import Session, filled_up
from tflite_export.targets import resolve_target
from tflite_export.vela.compiling import Compiled, require_vela
from tflite_export.verification.golden import read_golden

__all__ = ["FIGURES", "SECONDS", "NpuCost", "Stopwatch"]

SECONDS = 2.0
"""No round begins later than this after the first, once `FEWEST` rounds are done."""
FEWEST, MOST = 15, 200
"""Rounds, at least and at most."""
FIGURES = ("seconds", "cycles", "flash_bytes", "sram_bytes")
"""What Vela says of a compiled file, as `tflite_export.vela.compiling.Compiled` calls it."""
_ANY_ERROR = 1e9
"""As a tolerance: what a file costs does not depend on how well it answers."""


class Stopwatch:
    """Times models, each beside the first one that it was given.

    Each model is exported and verified, and its file runs in LiteRT at batch 1. In each round the first model's file
    and the new one each run twice in a row, and only the second run is timed: it finds its own data in the caches, and
    not what the other file left there. With t the 10th percentile over the rounds,

        seconds = (t of the first model when it was measured alone) * t of the model / t of the first one beside it

    so that a slow spell of the machine between two calls cancels out. A busy machine interrupts long runs more often
    than short ones, and a median of ratios then shows speed-ups that are not real. This is why t is the 10th
    percentile, and, with one thread, the processor time of that thread instead of the time of day.

    Args:
        data: inputs, as `tflite_export.export` takes them; None draws some.
        target: the device that files are made for. They are timed on this machine whatever the device, unless it has
            an NPU: then they are int8 files, and seconds are what its compiler estimates (`NpuCost`).
        quantize: number type of the files; of those for an NPU it is int8.
        threads: threads of the runtime.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(1)])
        >>> Stopwatch()(model) > 0
        True
    """

    def __init__(
        self,
        data: Any = None,
        *,
        target: str | Device | None = None,
        quantize: str | None = None,
        threads: int = 1,
    ) -> None:
        self.data = data
        self.target = target
        self.quantize = quantize
        self.threads = threads
        self._first: tuple[Session, float] | None = None
        device = resolve_target(target)
        self._npu = None if device.npu is None else NpuCost(device, "seconds", data=data)

    @property
    def estimate(self) -> str:
        """Why the seconds are only an estimate; empty where they are measured."""
        return "" if self._npu is None else self._npu.estimate

    def __call__(self, model: keras.Model) -> float:
        """Return the seconds of a run of a model.

        Raises:
            ExportError: it cannot be exported, or its file does not answer the same.
        """
        if self._npu is not None:
            return self._npu(model)
        session = self._open(model)
        if self._first is None:
            (seconds,) = self._times([session])
            self._first = session, seconds
            return seconds
        first, before = self._first
        beside, seconds = self._times([first, session])
        return before * seconds / beside

    def _open(self, model: keras.Model) -> Session:
        """Return the exported file in the runtime, its inputs set."""
        with temporary_folder() as folder, warnings.catch_warnings():
            # Time does not depend on whether the inputs are real, nor on how well the answers are kept.
            for about in ("no data given", "output '.*' is far from the model's"):
                warnings.filterwarnings("ignore", about, UserWarning)
            path, golden = Path(folder) / "model.tflite", Path(folder) / "golden.safetensors"
            export(model, path, target=self.target, quantize=self.quantize, data=self.data, samples=2, golden=golden)
            session = open_own(load(path), f"the file of {model.name!r}", threads=self.threads)
            inputs = read_golden(golden).inputs
        batch = session.batch_size or 1
        session.feed([filled_up(values[:1], batch) for values in inputs.values()], list(inputs))
        return session

    def _times(self, sessions: list[Session]) -> list[float]:
        """Return the seconds of a run of each, run in turn."""
        # The system's clock of a thread ticks every 16 ms on Windows.
        clock = time.thread_time if self.threads == 1 and sys.platform != "win32" else time.perf_counter
        runs = [session.invoke for session in sessions]
        taken = time_in_turn(
            runs, MOST, seconds=SECONDS, fewest=FEWEST, before=lambda place: runs[place](), clock=clock
        )
        return [float(seconds) for seconds in np.quantile(taken, 0.1, axis=0)]


class NpuCost:
    """What a model costs on an NPU: a function of a model, as plans and searches of `keras_prune` take one.

    Each model is exported to int8, and its file compiled by Vela. `measure=` of `kp.structured.plan` and `kp.factorize`
    takes the seconds, `objectives=` of `kp.search.study` any figure.

    Args:
        target: a device with an NPU: "ethos-u55", "ethos-u65", "ethos-u85", or a `Device` of your own.
        figure: "seconds" or "cycles" of a run, as Vela estimates them; "flash_bytes" of the compiled file;
            "sram_bytes" of working memory.
        data: inputs for the ranges of activations, as `tflite_export.export` takes them. Without any, it refuses.

    Attributes:
        estimate: why the figure is only an estimate; empty for bytes.

    Raises:
        ImportError: Vela is not installed.
        ExportError: the device has no NPU, or the figure is not known.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> NpuCost("ethos-u55", "flash_bytes", data=np.ones((4, 8), "float32"))(model) > 0
        True
    """

    def __init__(self, target: str | Device, figure: str = "seconds", *, data: Any = None) -> None:
        device = resolve_target(target)
        if device.npu is None:
            raise ExportError(
                f"target '{device.name}'", "must have an NPU for Vela to compile for", None, "Take 'ethos-u55'."
            )
        if figure not in FIGURES:
            raise ExportError("figure", f"must be one of {FIGURES}", repr(figure), "Choose one of these.")
        require_vela()
        self.target = device
        self.figure = figure
        self.data = data
        self.estimate = ESTIMATE if figure in ("seconds", "cycles") else ""
        self.__name__ = figure  # as an objective is called
        self._first: Compiled | None = None

    def __call__(self, model: keras.Model) -> float:
        """Return the figure of a model.

        Raises:
            ExportError: it cannot be exported; or more of it than of the first model stays on the processor, which is
                not in Vela's cycles.
        """
        with temporary_folder() as folder, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "output '.*' is far from the model's", UserWarning)
            path = Path(folder) / "model.tflite"
            report = export(
                model, path, target=self.target, quantize="int8", data=self.data, samples=2, tolerance=_ANY_ERROR
            )
        assert report.npu is not None  # the device has one
        made = report.npu.compiled
        self._first = self._first or made
        if self.estimate and (stays := made.left_out_beside(self._first)):
            raise ExportError(
                f"the {self.figure} of '{model.name}' on '{self.target.name}'",
                "must count what those of the first model counted",
                f"operators that stay on the processor: {stays}",
                "Take figure='flash_bytes', or a model whose operators the NPU computes.",
            )
        return float(getattr(made, self.figure))
