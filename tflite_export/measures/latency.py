"""The time of a run, or the instructions of one: in LiteRT here, in LiteRT.js, or on an emulated aarch64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tflite_export.bench.timing import ROUNDS, WARM_UP, measure_files
from tflite_export.errors import ExportError
from tflite_export.measures.measure import Cost, Measure
from tflite_export.measures.refusals import Refusals
from tflite_export.runtimes.arm64 import find_arm64_runtime
from tflite_export.runtimes.arm64_guest import ROUNDS as ARM64_ROUNDS
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litertjs import find_web_runtime
from tflite_export.runtimes.sessions import Measurement
from tflite_export.web.node import find_node

__all__ = ["Latency", "costs_of"]


class Latency(Measure):
    """A run of each file, one sample and one thread, in turn with the others: as `tflite_export.benchmark` measures.

    Each file's outputs are compared with LiteRT's on this machine before its time counts.

    Args:
        runtime: "litert": LiteRT on this machine. "web": LiteRT.js under Node. "arm64": LiteRT for aarch64 under qemu,
            in instructions of the guest, which repeat and are no time.
        estimate: why the figures are only an estimate of those on the target; empty where they are not.
        data: inputs, as `tflite_export.benchmark` takes them; None draws them.
        rounds: timed runs of each file. None: 100, or 3 with "arm64".
        limits: what the files may take.

    Raises:
        ExportError: the runtime is not installed; the message names the command that installs it.
    """

    objective = "latency"

    def __init__(
        self,
        runtime: str = "litert",
        *,
        estimate: str = "",
        data: Any = None,
        rounds: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        if runtime == "web":
            find_web_runtime()
            find_node()
        elif runtime == "arm64":
            find_arm64_runtime()
        self.runtime = runtime
        self.estimate = estimate
        self.data = data
        self.rounds = rounds or (ARM64_ROUNDS if runtime == "arm64" else ROUNDS)
        self.limits = limits
        self._refused = Refusals(limits, web=runtime == "web")

    def refusal(self, file: bytes) -> str | None:
        """Return why the runtime does not take a file, as far as loading it tells, or why `measure` left it out."""
        return self._refused.reason(file)

    def measure(self, files: Mapping[str, bytes], reference: str) -> dict[str, Cost]:
        """Return the median of each file's runs, and the median of the pairwise ratios."""
        files = {name: file for name, file in files.items() if name == reference or file not in self._refused}
        try:
            measured = self._run(files, reference, self.rounds)
        except ExportError:
            sound = self._sound(files, reference)
            if len(sound) == len(files):
                raise  # each runs beside the reference, and all together do not
            files, measured = sound, self._run(sound, reference, self.rounds)
        return costs_of(measured, files, reference, self.estimate)

    def _run(self, files: Mapping[str, bytes], reference: str, rounds: int) -> Measurement:
        """Return what runs of the files took, the reference's in the first column."""
        warm_up = 1 if self.runtime == "arm64" else WARM_UP
        ordered = [(name, files[name]) for name in sorted(files, key=lambda name: name != reference)]
        return measure_files(ordered, self.runtime, rounds, warm_up, data=self.data, limits=self.limits)[0]

    def _sound(self, files: Mapping[str, bytes], reference: str) -> dict[str, bytes]:
        """Return the files that run beside the reference; note why the others do not.

        Raises:
            ExportError: the reference itself does not run.
        """
        base = {reference: files[reference]}
        self._run(base, reference, 1)
        for name, content in files.items():
            try:
                if name != reference:
                    self._run({**base, name: content}, reference, 1)
            except ExportError as error:
                self._refused.note(content, str(error))
        return {name: content for name, content in files.items() if content not in self._refused}


def costs_of(measured: Measurement, files: Mapping[str, bytes], reference: str, estimate: str = "") -> dict[str, Cost]:
    """Return what files cost by the samples of their runs.

    ratio = median over the rounds of (the reference's sample / the file's in the same round)

    Args:
        measured: the reference's samples in the first column, then the others' in their order.
        files: by name, in the order of the result.
        reference: a name of them.
        estimate: why the costs are only estimates.
    """
    ordered = sorted(files, key=lambda name: name != reference)
    unit = measured.unit.removeprefix("guest ")
    on = f"{measured.description}, one thread" if unit == "ms" else measured.description
    found = {}
    for name, own in zip(ordered, measured.samples.T, strict=True):
        low, ratio, high = np.quantile(measured.samples[:, 0] / own, [0.25, 0.5, 0.75])
        found[name] = Cost(float(np.median(own)), unit, float(ratio), float((high - low) / (2 * ratio)), on, estimate)
    return {name: found[name] for name in files}
