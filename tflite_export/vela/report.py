"""What a file costs on an NPU, beside the same file with values in place of its zeros."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from keras_prune.devices import Device
from tflite_export.errors import ExportError
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.runtimes.limits import Limits
from tflite_export.vela.compiling import Compiled, compile_files
from tflite_export.vela.filled import fill_zeros

__all__ = ["NpuReport", "check_npu"]


@dataclass(frozen=True)
class NpuReport:
    """A file compiled by Vela, held against the same network without zeros.

    Args:
        target: name of the device.
        accelerator: of the NPU, as Vela names it; system, memory: its configuration.
        compiled: the file.
        filled: the same file with a value in place of each zero; None where no kernel holds a zero.
        path: where the compiled file was written; None where it was not.
    """

    target: str
    accelerator: str
    system: str
    memory: str
    compiled: Compiled
    filled: Compiled | None = None
    path: str | None = None

    def __str__(self) -> str:
        """Return the figures as a few lines."""
        made = self.compiled
        lines = [
            f"Vela {made.vela}, {self.accelerator} ({self.system}, {self.memory}): flash {made.flash_bytes:,} bytes, "
            f"{made.cycles:,} cycles ({1e3 * made.seconds:.3g} ms, an estimate), SRAM {made.sram_bytes:,} bytes",
            f"on the NPU: {made.operators - len(made.on_processor)} of {made.operators} operators "
            f"({made.operators_share:.0%}), {made.macs_share:.0%} of the multiplications"
            + ("; the cycles do not count the others" if made.on_processor else ""),
        ]
        if self.filled is not None:
            full = self.filled
            lines.insert(
                1,
                f"without its zeros: flash {full.flash_bytes:,} bytes, {full.cycles:,} cycles; they leave "
                f"{made.flash_bytes / full.flash_bytes:.1%} of the flash, {made.cycles / max(full.cycles, 1):.1%} of "
                "the cycles",
            )
        lines += map(str, made.on_processor)
        return "\n".join([*lines, *([f"compiled: {self.path}"] if self.path else [])])

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as a JSON-able dictionary."""
        return {
            "target": self.target,
            "accelerator": self.accelerator,
            "system": self.system,
            "memory": self.memory,
            "compiled": self.compiled.to_dict(),
            "filled": self.filled.to_dict() if self.filled else None,
            "path": self.path,
        }


def check_npu(
    file: TFLiteFile | bytes,
    device: Device,
    *,
    path: str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
    subject: str = "the file",
) -> NpuReport:
    """Compile a file for a device's NPU, and the same file with values in place of its zeros.

    Args:
        file: the file, or its bytes.
        device: what it is for.
        path: what the report calls the place of the compiled file; nothing is written here.
        limits: what compiling may take; None: 120 seconds, and 4 GiB of memory or 8 times the file.
        subject: what errors call it.

    Raises:
        ImportError: Vela is not installed; the message names the command.
        FlatbufferError: the file is damaged.
        ExportError: the device has no NPU, or Vela refuses the file.
    """
    npu = device.npu
    if npu is None:
        raise ExportError(
            f"target '{device.name}'", "must have an NPU for Vela to compile for", None, "Take 'ethos-u55'."
        )
    file = TFLiteFile.of(file, subject)
    filled, changes = file.edited(fill_zeros)
    compiled, *others = compile_files([file, filled] if changes else [file], npu, limits=limits, subject=subject)
    return NpuReport(
        target=device.name,
        accelerator=npu.accelerator,
        system=npu.system,
        memory=npu.memory,
        compiled=compiled,
        filled=others[0] if others else None,
        path=None if path is None else os.fspath(path),
    )
