"""Run a file in TensorFlow Lite Micro, in a process of its own."""

from __future__ import annotations

import importlib.util
import re
import weakref
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from keras_prune.extras import missing_extra
from tflite_export.errors import ExportError
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.processes.child_process import ChildEndedError, start_python
from tflite_export.processes.frames import as_arrays, as_blobs
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.sessions import Session
from tflite_export.verification.ports import ports_of

__all__ = ["MicroSession", "require_micro"]

_CHILD = "tflite_export.tflm.micro_child"


class MicroSession(Session):
    """A file loaded into TensorFlow Lite Micro.

    The interpreter aborts its process, or follows null pointers, where it cannot go on, as in arenas that are
    too small. So it runs in a child process. Inputs and outputs are real numbers: where the file is quantized, they are
    quantized on the way in and back on the way out.

    Args:
        file: the file, or its bytes, its structure checked by `tflite_export.tflm.mcu.check_structure`: sparse
            tensors would be read as if they were dense.
        subject: what errors call it.
        limits: what the file may take.

    Raises:
        ImportError: tflite-micro is not installed.
        FlatbufferError: the file is damaged.
        ExportError: the interpreter cannot take it.
    """

    def __init__(self, file: TFLiteFile | bytes, subject: str = "the file", *, limits: Limits | None = None) -> None:
        require_micro()
        self.subject = f"{subject} (TFLM)"
        file = TFLiteFile.of(file, subject)
        self.inputs, self.outputs = ports_of(file.model)
        self._feeds: dict[str, NDArray[Any]] = {}
        self._answers: list[NDArray[Any]] = []
        self.ran = 0.0
        """Seconds that the interpreter has run, in all, by the clock of its own process."""
        self._limits = (limits or Limits()).for_files(file.content)
        self._process = start_python(_CHILD, log=True)
        self._process.limit_memory(self._limits.memory)
        self._finalizer = weakref.finalize(self, self._process.close)
        try:
            self.load(file)
        except BaseException:
            self.close()
            raise

    def load(self, file: TFLiteFile) -> None:
        """Take another file in place of this one; it must have the same inputs and outputs.

        Raises:
            ExportError: the interpreter cannot take it.
        """
        self._ask({"do": "load", "inputs": len(self.inputs), "outputs": len(self.outputs)}, [file.content])

    @property
    def is_running(self) -> bool:
        """Whether the interpreter's process is there: a file may have ended it."""
        return self._process.is_running

    def close(self) -> None:
        """End the interpreter's process."""
        self._finalizer()

    @property
    def batch_size(self) -> int:
        """The batch that the file is fixed to: a free one is refused."""
        return next((port.shape[0] for port in self.inputs.values() if port.shape), 1)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of an input: all sizes are fixed."""
        return self.inputs[name].shape

    def feed(self, batch: Sequence[NDArray[Any]], names: Sequence[str]) -> None:
        """Set the inputs.

        Raises:
            ExportError: a name is unknown, or a shape is another than the file's.
        """
        self.require_names(names, self.inputs)
        for values, name in zip(batch, names, strict=True):
            port = self.inputs[name]
            if values.shape != port.shape:
                raise ExportError(
                    f"input '{name}' of {self.subject}",
                    f"must have the shape {port.shape}",
                    values.shape,
                    "Reshape it.",
                )
            self._feeds[name] = port.store(values)

    def invoke(self) -> None:
        """Run the file once, on the inputs that were set."""
        answer, self._answers = self._ask_with_inputs("run")
        self.ran += float(answer["took"])

    def fetch(self, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return outputs by name, as real numbers."""
        self.require_names(outputs, self.outputs)
        by_name = dict(zip(self.outputs, self._answers, strict=True))
        return [self.outputs[name].real(by_name[name]) for name in outputs]

    def arena(self) -> tuple[int, int, int]:
        """Return the smallest arena and, as recorded, its activations and persistent data; in bytes.

        The interpreter's own record of what is allocated leaves out what it needs while it plans: files do not
        allocate in an arena of the recorded size. So the size is found by trying.
        """
        smallest = int(self._ask_with_inputs("arena")[0]["arena"])
        self._ask({"do": "allocations"})
        said = self._process.printed()
        recorded = [re.findall(rf"Arena allocation {part} (\d+) bytes", said) for part in ("head", "tail")]
        if not all(recorded):
            raise ExportError(
                self.subject, "must have its allocations recorded by TFLM", said[-300:], "Update tflite-micro."
            )
        head, tail = (int(found[-1]) for found in recorded)
        return smallest, head, tail

    def fits(self, arena: int) -> bool:
        """Return whether the file allocates in an arena of so many bytes, and gives the same outputs there."""
        return bool(self._ask_with_inputs("fits", arena=arena)[0]["fits"])

    def _ask_with_inputs(self, do: str, **more: Any) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        missing = [name for name in self.inputs if name not in self._feeds]
        if missing:
            raise ExportError(self.subject, "must be fed every input", f"nothing for {missing}", "Call feed first.")
        described, blobs = as_blobs([self._feeds[name] for name in self.inputs])
        return self._ask({"do": do, "arrays": described, **more}, blobs)

    def _ask(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Send a request to the interpreter's process; return its answer and the arrays in it."""
        if not self._process.is_running:
            raise ExportError(self.subject, "the interpreter must be running", "it has ended", "Load the file again.")
        before = len(self._process.printed())
        try:
            answer, parts = self._process.ask(header, blobs, seconds=self._limits.seconds)
        except ChildEndedError as error:
            said = _last_words(self._process.printed()[before:])
            rule = "must not crash or stall TensorFlow Lite Micro"
            raise ExportError(self.subject, rule, f"{error} ({said})", self._limits.way_out) from error
        if "error" in answer:
            raise _explain(self.subject, self._process.printed()[before:], str(answer["error"]))
        return answer, as_arrays(answer["arrays"], parts)


def require_micro() -> None:
    """Raise an ImportError with the command where tflite-micro is not installed."""
    if importlib.util.find_spec("tflite_micro") is None:
        raise missing_extra(
            "tflite_micro", "mcu", "files for microcontrollers", "It has wheels for Linux on x86-64 only."
        )


def _explain(subject: str, said: str, error: str) -> ExportError:
    """Return the error that fits what the interpreter printed."""
    missing = re.search(r"Didn't find op for builtin opcode '(\w+)'", said)
    if missing:
        return ExportError(
            subject,
            "must have only operators that TensorFlow Lite Micro has",
            missing[1],
            "Replace the layer that needs it, or register a kernel of your own on the device.",
        )
    if "not supported" in said and "FLOAT32" in said:
        return ExportError(
            subject,
            "TensorFlow Lite Micro has no kernels for float inputs with int8 weights",
            _last_words(said),
            "Export with quantize='int8' (full) or without quantization.",
        )
    return ExportError(
        subject,
        "must run in TensorFlow Lite Micro",
        f"{error}: {_last_words(said)}",
        "Look at the operator that is named here.",
    )


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and "RecordingMicroAllocator" not in line]
    return "; ".join(lines[-3:])[:300] or "it printed nothing"
