"""Time a model in LiteRT, on its exported file: how plans of structured pruning measure latency.

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
from tflite_export.export import export
from tflite_export.runtimes.interleaved import time_in_turn
from tflite_export.runtimes.litert import load
from tflite_export.runtimes.opening import open_own
from tflite_export.runtimes.sessions import Session, filled_up
from tflite_export.verification.golden import read_golden

__all__ = ["SECONDS", "Stopwatch"]

SECONDS = 2.0
"""No round begins later than this after the first, once `FEWEST` rounds are done."""
FEWEST, MOST = 15, 200
"""Rounds, at least and at most."""


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
        target: the device that files are made for. They are timed on this machine whatever the device.
        quantize: number type of the files.
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

    def __call__(self, model: keras.Model) -> float:
        """Return the seconds of a run of a model.

        Raises:
            ExportError: it cannot be exported, or its file does not answer the same.
        """
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
