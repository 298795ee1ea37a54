"""An NPU: the flash that a compiled file takes, and the cycles that its compiler estimates."""

from __future__ import annotations

from collections.abc import Mapping

from keras_prune.devices import Device
from tflite_export.errors import ExportError
from tflite_export.measures.measure import Cost, Measure
from tflite_export.measures.refusals import digest
from tflite_export.runtimes.limits import Limits
from tflite_export.vela.compiling import Compiled, compile_files, require_vela

__all__ = ["ESTIMATE", "NpuFlash", "NpuLatency"]

ESTIMATE = "cycles as Vela, the compiler, estimates them, without what stays on the processor: nothing was run"
"""Why the cycles of a compiled file are an estimate."""


class _Compiling(Measure):
    """Files that Vela compiles for the NPU of a device: each is compiled once.

    Args:
        device: what files are made for.
        limits: what compiling a file may take.

    Raises:
        ImportError: Vela is not installed.
        ExportError: the device has no NPU.
    """

    def __init__(self, device: Device, *, limits: Limits | None = None) -> None:
        if device.npu is None:
            raise ExportError(
                f"target '{device.name}'", "must have an NPU for Vela to compile for", None, "Take 'ethos-u55'."
            )
        require_vela()
        self.limits = limits
        self._npu = device.npu
        self._found: dict[str, Compiled | str] = {}

    def refusal(self, file: bytes) -> str | None:
        """Return why Vela does not compile a file, or why `measure` left it out."""
        found = self._compile(file)
        return found if isinstance(found, str) else None

    def _compile(self, file: bytes) -> Compiled | str:
        """Return the compiled file, or why there is none."""
        key = digest(file)
        if key not in self._found:
            try:
                (self._found[key],) = compile_files([file], self._npu, limits=self.limits)
            except ExportError as error:
                self._found[key] = str(error)
        return self._found[key]

    def _compiled(self, files: Mapping[str, bytes], reference: str) -> dict[str, Compiled]:
        """Return the compiled files, by name, of those that Vela compiles.

        Raises:
            ExportError: it does not compile the reference.
        """
        found = {name: self._compile(content) for name, content in files.items()}
        if isinstance(found[reference], str):
            raise ExportError(
                f"the reference '{reference}'",
                f"must be a file that Vela compiles for {self._npu.accelerator}",
                found[reference],
                "Compare with a file that was exported for the same target.",
            )
        return {name: made for name, made in found.items() if isinstance(made, Compiled)}

    def _on(self, made: Compiled) -> str:
        """Return what a file was compiled by and for."""
        return f"Vela {made.vela} for {self._npu.accelerator} ({self._npu.system}, {self._npu.memory})"


class NpuFlash(_Compiling):
    """Bytes of flash that a file takes once Vela has compiled it for an NPU.

    Vela codes the weights, so that zeros make it smaller. Working memory is told beside it, not added.

    Args:
        device: what files are made for: one with an NPU.
        limits: what compiling a file may take.

    Raises:
        ImportError: Vela is not installed.
        ExportError: the device has no NPU.
    """

    objective = "flash"

    def measure(self, files: Mapping[str, bytes], reference: str) -> dict[str, Cost]:
        """Return the bytes of each compiled file."""
        found = self._compiled(files, reference)
        first = found[reference].flash_bytes
        return {
            name: Cost(
                float(made.flash_bytes),
                "bytes",
                first / made.flash_bytes,
                0.0,
                f"flash: the file compiled by {self._on(made)}; beside it {made.sram_bytes:,} bytes of SRAM",
            )
            for name, made in found.items()
        }


class NpuLatency(_Compiling):
    """Cycles of a run on an NPU, as its compiler Vela estimates them.

    What stays on the processor is not in them. So a file is left out if more operators of a kind stay there than of the
    reference: it would look faster for what was not counted.

    Args:
        device: what files are made for: one with an NPU.
        limits: what compiling a file may take.

    Raises:
        ImportError: Vela is not installed.
        ExportError: the device has no NPU.
    """

    objective = "latency"

    def measure(self, files: Mapping[str, bytes], reference: str) -> dict[str, Cost]:
        """Return the cycles of each file."""
        found = self._compiled(files, reference)
        first = found[reference]
        if not first.cycles:
            raise ExportError(
                f"the reference '{reference}'",
                "must have an operator that the NPU computes",
                "; ".join(map(str, first.on_processor[:3])) or "no operator",
                "Export it with quantize='int8' for the target, or minimise 'flash'.",
            )
        for name, made in list(found.items()):
            if stays := made.left_out_beside(first):
                self._found[digest(files[name])] = (
                    f"more of it than of '{reference}' stays on the processor, which is not in Vela's cycles: {stays}"
                )
                del found[name]
        return {
            name: Cost(float(made.cycles), "cycles", first.cycles / made.cycles, 0.0, self._on(made), ESTIMATE)
            for name, made in found.items()
        }
