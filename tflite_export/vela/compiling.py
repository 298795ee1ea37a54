"""Compile files for an Arm Ethos-U by Vela, in a process of its own, and read what it says of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from keras_prune.devices import Npu
from keras_prune.extras import import_extra
from tflite_export.errors import ExportError
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.processes.child_process import ChildEndedError, start_python
from tflite_export.runtimes.limits import Limits
from tflite_export.vela.operators import operators_of

__all__ = ["Compiled", "OnProcessor", "compile_files", "require_vela"]

_CHILD = "tflite_export.vela.vela_child"
_UNKNOWN = "Vela does not say why"


@dataclass(frozen=True)
class OnProcessor:
    """An operator that the NPU does not compute.

    Args:
        operator: its kind: "ELU".
        name: of its first output.
        macs: multiplications of a run.
        reason: why, in Vela's words.
    """

    operator: str
    name: str
    macs: int
    reason: str

    def __str__(self) -> str:
        """Return all of it as one line."""
        return f"on the processor: {self.operator} '{self.name}': {self.reason}"


@dataclass(frozen=True)
class Compiled:
    """A compiled file, and what Vela estimates for it.

    Args:
        content: its bytes, which the device's flash holds.
        cycles: of a run of what the NPU computes; what stays on the processor is not in them.
        seconds: that they take at the clock of the system.
        sram_bytes: of working memory, at the peak.
        operators: of the file before it was compiled.
        macs: multiplications of a run, of those.
        on_processor: the operators that the NPU does not compute.
        vela: version of Vela.
    """

    content: bytes = field(repr=False)
    cycles: int
    seconds: float
    sram_bytes: int
    operators: int
    macs: int
    on_processor: tuple[OnProcessor, ...]
    vela: str

    @property
    def flash_bytes(self) -> int:
        """Bytes of the compiled file."""
        return len(self.content)

    @property
    def operators_share(self) -> float:
        """The share of operators that the NPU computes."""
        return 1.0 - len(self.on_processor) / self.operators if self.operators else 0.0

    @property
    def macs_share(self) -> float:
        """The share of multiplications that the NPU computes; 1 where there are none."""
        return 1.0 - sum(each.macs for each in self.on_processor) / self.macs if self.macs else 1.0

    def left_out_beside(self, other: Compiled) -> str:
        """Return what the cycles of this file leave out and those of another do not; empty where that is nothing."""
        kinds = (Counter(each.operator for each in made.on_processor) for made in (self, other))
        more = next(kinds) - next(kinds)
        return ", ".join(f"{kind} {count} x" for kind, count in more.items()) or ("" if self.cycles else "all of it")

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as a JSON-able dictionary."""
        return {
            "flash_bytes": self.flash_bytes,
            "cycles": self.cycles,
            "seconds": self.seconds,
            "sram_bytes": self.sram_bytes,
            "operators": self.operators,
            "operators_share": self.operators_share,
            "macs": self.macs,
            "macs_share": self.macs_share,
            "on_processor": [dict(vars(each)) for each in self.on_processor],
            "vela": self.vela,
        }


def compile_files(
    files: Sequence[TFLiteFile | bytes], npu: Npu, *, limits: Limits | None = None, subject: str = "the file"
) -> list[Compiled]:
    """Compile files for an NPU, one after the other, in one process that ends with this call.

    Args:
        files: int8 files of fixed sizes, or their bytes.
        npu: what they are for.
        limits: what compiling each may take.
        subject: what errors call a file.

    Raises:
        ImportError: Vela is not installed; the message names the command.
        FlatbufferError: a file is damaged.
        ExportError: Vela refuses a file (with its reason), or does not keep within the limits.
    """
    require_vela()
    opened = [TFLiteFile.of(file, subject) for file in files]
    for file in opened:
        _ = file.model  # refuses a damaged file
    limits = (limits or Limits()).for_files(*(file.content for file in opened))
    options = {
        "accelerator-config": npu.accelerator,
        "config": npu.config,
        "system-config": npu.system,
        "memory-mode": npu.memory,
    }
    try:
        with start_python(_CHILD) as process:
            process.limit_memory(limits.memory)
            asked = {"options": options}
            return [
                _compiled(file, *process.ask(asked, [file.content], seconds=limits.seconds), npu) for file in opened
            ]
    except ChildEndedError as error:
        raise ExportError(f"{subject} (Vela)", "must not crash or stall Vela", error, limits.way_out) from error


def require_vela() -> None:
    """Raise an ImportError with the command where Vela is not installed."""
    import_extra("ethosu", "npu", "files for an Arm Ethos-U")


def _compiled(file: TFLiteFile, answer: dict[str, Any], blobs: list[bytes], npu: Npu) -> Compiled:
    if "error" in answer:
        raise ExportError(
            f"{file.subject} for {npu.accelerator} (Vela)",
            "must be a file that Vela compiles: int8, of fixed sizes, its weights dense",
            _last_words(answer["error"]),
            "Export it with target='ethos-u55', quantize='int8'; a device of one's own names its accelerator, system "
            "and memory as Vela's configuration file does.",
        )
    summary, (content,) = answer["summary"], blobs
    before = operators_of(file.model)
    after = operators_of(TFLiteFile(content, f"{file.subject}, compiled").model)
    return Compiled(
        content=content,
        cycles=int(float(summary["cycles_total"])),
        seconds=float(summary["inference_time"]),
        sram_bytes=round(1024 * float(summary["sram_memory_used"])),
        operators=len(before),
        macs=sum(macs for _, _, macs in before),
        on_processor=_on_processor(before, after, answer["printed"]),
        vela=version("ethos-u-vela"),
    )


def _on_processor(
    before: list[tuple[str, str, int]], after: list[tuple[str, str, int]], printed: str
) -> tuple[OnProcessor, ...]:
    """Return the operators of a file that are in the compiled one too, with what Vela printed of them.

    A compiled file may hold some that were not there, such as copies between the two: these are none of the network's.
    """
    left = Counter((kind, name) for kind, name, _ in after)
    reasons = _reasons(printed)
    found = []
    for kind, name, macs in before:
        if left[kind, name]:
            left[kind, name] -= 1
            found.append(OnProcessor(kind, name, macs, reasons.get((kind, name), _UNKNOWN)))
    return tuple(found)


def _reasons(printed: str) -> dict[tuple[str, str], str]:
    r"""Return what Vela printed of operators that it left to the processor, by kind and name of the first output.

    Example:
        >>> _reasons("Warning (supported operators) operator: ELU, ofm: 'y'\nReason: Unsupported opType\n\nmore")
        {('ELU', 'y'): 'Unsupported opType'}
    """
    pattern = r"operator: (\w+), ofm: '([^\n]*)'\nReason: (.+?)(?:\n\n|\nWarning|\Z)"
    return {
        (kind, name): re.sub(r"\s*\n\s*", "; ", reason.strip())
        for kind, name, reason in re.findall(pattern, printed, re.DOTALL)
    }


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("Warning: ")]
    return "; ".join(lines[-4:])[-400:] or "it printed nothing"
