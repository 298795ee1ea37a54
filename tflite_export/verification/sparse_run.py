"""Verify a file where sparse kernels are on, which they never are on a PC with AVX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from keras_prune.devices import DEVICES, Device
from keras_prune.devices.catalogue import ANY
from tflite_export.errors import ExportError
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.runtimes.arm64 import find_arm64_runtime
from tflite_export.runtimes.arm64_guest import run_on_arm64
from tflite_export.runtimes.litertjs import find_web_runtime
from tflite_export.verification.compare import require_agreement
from tflite_export.web.host import Host
from tflite_export.web.limitations import web_refusal
from tflite_export.web.node import find_node
from tflite_export.web.web_session import WebSession, open_web

__all__ = ["NOT_EXECUTED", "SparseRun", "sparse_runtime", "verify_where_sparse", "why_not_executed"]

NOT_EXECUTED = "sparse kernels not executed"
"""What a report says where none is present."""


@dataclass(frozen=True)
class SparseRun:
    """A file that was run where sparse kernels are on, and agreed.

    Args:
        runtime: where.
        samples: number of inputs.
        max_relative: largest error, as a share of its output's scale.
        tolerance: largest error allowed.
    """

    runtime: str
    samples: int
    max_relative: float
    tolerance: float

    def __str__(self) -> str:
        """Return the figures as one line."""
        return (
            f"sparse kernels executed: {self.runtime}, {self.samples} inputs, relative error "
            f"{self.max_relative:.2g} (allowed {self.tolerance:g})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as a JSON-able dictionary."""
        return dict(vars(self))


def sparse_runtime(target: Device | str | None = None) -> str | None:
    """Return the runtime of this machine that stands in for a device's sparse kernels, or None where none is installed.

    Nothing is installed, and nothing started.

    Args:
        target: a device, or the name of one; a name that the library does not know, and None, are no particular device.
    """
    device = target if isinstance(target, Device) else DEVICES.get(target or ANY.name, ANY)
    present = {"web": _web_is_present, "arm64": _arm64_is_present}
    return next((name for name in device.stands_in if name in present and present[name]()), None)


def why_not_executed(file: TFLiteFile | bytes, target: Device | str, subject: str = "the file") -> str | None:
    """Return why a file cannot be run where sparse kernels are on, for a report; None where it can."""
    runtime = sparse_runtime(target)
    if runtime is None:
        return f"{NOT_EXECUTED}: neither LiteRT.js nor LiteRT for aarch64 is installed here"
    refusal = web_refusal(file, subject) if runtime == "web" else None
    return None if refusal is None else f"{NOT_EXECUTED}: {refusal}"


def verify_where_sparse(
    file: TFLiteFile | bytes,
    feeds: Sequence[NDArray[Any]],
    wanted: Sequence[NDArray[Any]],
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    runtime: str = "web",
    subject: str = "the file",
    tolerance: float,
    host: Host | None = None,
) -> SparseRun:
    """Run a file where sparse kernels are on and compare it with what the model answers.

    Args:
        file: the file, or its bytes.
        feeds: an array [samples, ...] for each input name.
        wanted: an array [samples, ...] for each output name.
        input_names: of the file.
        output_names: of the file.
        runtime: "web" or "arm64": see `sparse_runtime`.
        subject: what to call the file in errors.
        tolerance: largest error, as a share of an output's scale.
        host: with "web", one that is open already; None opens one under Node and closes it.

    Raises:
        ExportError: an output is off, or the runtime is missing or cannot run the file.
    """
    if runtime == "arm64":
        content = TFLiteFile.of(file, subject).content
        outputs, description = run_on_arm64(content, feeds, input_names, output_names, subject=subject)
        said: list[str] = []
    elif runtime == "web":
        own = host if host is not None else open_web()
        try:
            named = {name: feed[:1] for name, feed in zip(input_names, feeds, strict=True)}
            session = WebSession(own, file, subject, feeds=named)
            outputs = session.run(feeds, input_names, output_names)
            session.close()
        finally:
            if host is None:
                own.close()
        description, said = own.description, session.said
    else:
        raise ExportError("runtime", "must be 'web' or 'arm64'", repr(runtime), "Choose one of these.")
    place = f"{subject} ({description})"
    found = require_agreement(outputs, wanted, place, whose="the model's outputs", tolerance=tolerance, said=said)
    return SparseRun(description, len(feeds[0]), found, tolerance)


def _web_is_present() -> bool:
    try:
        find_web_runtime()
        find_node()
    except ExportError:
        return False
    return True


def _arm64_is_present() -> bool:
    try:
        find_arm64_runtime()
    except ExportError:
        return False
    return True
