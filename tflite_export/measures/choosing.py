"""Which measure a target has, by what is known of the device and what is installed here."""

from __future__ import annotations

import platform
from typing import Any

from keras_prune.devices import Device
from tflite_export.errors import ExportError
from tflite_export.measures.latency import Latency
from tflite_export.measures.measure import OBJECTIVES, Measure
from tflite_export.measures.micro import MicroFlash, MicroLatency
from tflite_export.measures.npu import NpuFlash, NpuLatency
from tflite_export.measures.sizes import FileSize
from tflite_export.runtimes.arm64 import find_arm64_runtime
from tflite_export.runtimes.limits import Limits

__all__ = ["measure_for"]


def measure_for(
    device: Device | None,
    objective: str,
    measure: Measure | None = None,
    *,
    data: Any = None,
    limits: Limits | None = None,
) -> Measure:
    """Return what measures files for a device.

    | objective | the device | measured |
    | --- | --- | --- |
    | "latency" | None, or its kernels run on this machine | time in LiteRT here |
    | | its files are compiled for an NPU | cycles, as Vela estimates them |
    | | TensorFlow Lite Micro runs its files | time of that interpreter here, an estimate |
    | | LiteRT.js is the nearest to its runtime | time in LiteRT.js under Node |
    | | aarch64 is the nearest | instructions of LiteRT under qemu; time in LiteRT here, an estimate, without qemu |
    | | any other | time in LiteRT here, an estimate |
    | "size" | any | bytes of the file |
    | "flash" | its files are compiled for an NPU | bytes of the compiled file |
    | | any other | bytes of the file, which TensorFlow Lite Micro must run if it runs the device's files |

    Args:
        device: what files are made for; None: this machine.
        objective: "latency", "size" or "flash".
        measure: the user's own; it must be of the objective.
        data: inputs to run on, as `tflite_export.benchmark` takes them; None draws them. TensorFlow Lite Micro, whose
            sizes are all fixed, always gets drawn ones.
        limits: what a file may take here.

    Raises:
        ExportError: the objective is not known, the measure is of another, or a runtime is not installed.
        ImportError: tflite-micro, or Vela, is not installed.

    Example:
        >>> from keras_prune.devices import DEVICES
        >>> type(measure_for(DEVICES["web"], "size")).__name__, measure_for(None, "latency").estimate
        ('FileSize', '')
    """
    if objective not in OBJECTIVES:
        raise ExportError("minimize", f"must be one of {OBJECTIVES}", repr(objective), "Choose one of these.")
    if measure is not None:
        return _own(measure, objective).for_device(device)
    if device is not None and device.npu is not None and objective != "size":
        return (NpuFlash if objective == "flash" else NpuLatency)(device, limits=limits)
    runs_in = () if device is None else device.stands_in
    if objective == "size" or (objective == "flash" and "micro" not in runs_in):
        return FileSize(objective)
    if "micro" in runs_in:
        return MicroFlash(limits=limits) if objective == "flash" else MicroLatency(limits=limits)
    if device is None or device.runs_here:
        return Latency("litert", data=data, limits=limits)
    if runs_in[:1] == ("web",):
        return Latency("web", data=data, limits=limits)
    missing = _why_no_arm64() if runs_in[:1] == ("arm64",) else f"nothing here runs files as '{device.name}' does"
    if missing is None:
        return Latency("arm64", data=data, limits=limits)
    estimate = f"timed in LiteRT on this machine ({platform.machine()}): {missing}"
    return Latency("litert", estimate=estimate, data=data, limits=limits)


def _why_no_arm64() -> str | None:
    """Return why instructions of aarch64 cannot be counted here, with what to install; None where they can."""
    try:
        find_arm64_runtime()
    except ExportError as error:
        return f"instructions of aarch64 cannot be counted here. {error}"
    return None


def _own(measure: Measure, objective: str) -> Measure:
    """Return a measure of the user's, if it is one of the objective."""
    if not isinstance(measure, Measure):
        raise ExportError("measure", "must be a tx.Measure", repr(measure), "Subclass tx.Measure, or pass tx.Phone().")
    if measure.objective != objective:
        raise ExportError(
            "measure",
            f"must measure what is minimised, '{objective}'",
            f"'{measure.objective}' of {type(measure).__name__}",
            f"Pass minimize='{measure.objective}', or another measure.",
        )
    return measure
