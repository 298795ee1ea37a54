"""Run a file in TensorFlow Lite Micro, in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.file.flatbuffer import DTYPES, read
from tflite_export.runtimes.children import end
from tflite_export.runtimes.litert import require_names, run_in_batches
from tflite_export.tflm import micro_child

__all__ = ["PATIENCE", "TYPE_NAMES", "MicroSession", "Port", "require_micro", "tensor_name"]

PATIENCE = 120.0
"""Seconds that one answer of the interpreter may take; its reference kernels are slow."""
TYPE_NAMES = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}


@dataclass(frozen=True)
class Port:
    """An input or output of a file.

    Args:
        shape: with the batch.
        dtype: of its values in the file.
        scale: of its quantization, real = scale * (stored - zero_point); None where it is not quantized.
        zero_point: likewise.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float | None = None
    zero_point: int = 0

    def store(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return real values as the file stores them; values of its own type as they are.

        stored = round(real / scale) + zero_point, halves away from zero as the runtime rounds, then clipped.
        """
        if self.scale is None or values.dtype == self.dtype:
            return values.astype(self.dtype, copy=False)
        steps = values.astype(np.float64) / self.scale
        rounded = np.trunc(steps + np.copysign(0.5, steps)) + self.zero_point
        limits = np.iinfo(self.dtype)
        return np.clip(rounded, limits.min, limits.max).astype(self.dtype)

    def real(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return stored values as real ones."""
        if self.scale is None or values.dtype.kind == "f":
            return values
        return ((values.astype(np.float64) - self.zero_point) * self.scale).astype(np.float32)


class MicroSession:
    """A file loaded into TensorFlow Lite Micro; the methods of `tflite_export.runtimes.litert.Session`.

    The interpreter aborts its process, or follows null pointers, where it cannot go on (seen with arenas that are too
    small), so it has a process of its own. Inputs and outputs are real numbers: where the file is quantized, they are
    quantized on the way in and back on the way out.

    Args:
        content: the file's bytes, its structure checked by `tflite_export.tflm.mcu.check_structure`: sparse
            tensors would be read as if they were dense.
        subject: what to call it in errors.

    Raises:
        ImportError: tflite-micro is not installed.
        FlatbufferError: the file is damaged.
        ExportError: the interpreter cannot take it.
    """

    def __init__(self, content: bytes, subject: str = "the file") -> None:
        require_micro()
        self.subject = f"{subject} (TFLM)"
        model = read(content, subject)
        self.inputs, self.outputs = _ports(model)
        self._feeds: dict[str, NDArray[Any]] = {}
        self._answers: list[NDArray[Any]] = []
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "log"
        with self._log.open("wb") as log:
            # The path is handed over, so that the child finds what its parent does; a script's own folder, which Python
            # puts first, would hide standard modules behind this package's.
            child = f"runpy.run_path({micro_child.__file__!r}, run_name='__main__')"
            start = f"import sys, runpy; sys.path[:] = {json.dumps(sys.path)}; {child}"
            self._process = subprocess.Popen(
                [sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self._finalizer = weakref.finalize(self, _stop, self._process, self._folder)
        with self._closing_on_error():
            self._ask(
                "load",
                content=np.frombuffer(content, dtype=np.uint8),
                inputs=len(self.inputs),
                outputs=len(self.outputs),
            )

    def __enter__(self) -> MicroSession:
        """Return the session."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the interpreter's process."""
        self.close()

    def close(self) -> None:
        """End the interpreter's process."""
        self._finalizer()

    @property
    def batch_size(self) -> int:
        """The batch that the file is fixed to: a free one is refused."""
        return next((port.shape[0] for port in self.inputs.values() if port.shape), 1)

    def run(self, feeds: Sequence[NDArray[Any]], names: Sequence[str], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return the outputs for samples of any number, in batches that the file takes."""
        return run_in_batches(self, feeds, names, outputs)

    def feed(self, batch: Sequence[NDArray[Any]], names: Sequence[str]) -> None:
        """Set the inputs.

        Raises:
            ExportError: a name is unknown, or a shape is another than the file's.
        """
        require_names(self, names, self.inputs)
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
        answers = self._ask("run", **self._by_position())
        self._answers = [answers[f"output{position}"] for position in range(len(self.outputs))]

    def fetch(self, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return outputs by name, as real numbers."""
        require_names(self, outputs, self.outputs)
        by_name = dict(zip(self.outputs, self._answers, strict=True))
        return [self.outputs[name].real(by_name[name]) for name in outputs]

    def arena(self) -> tuple[int, int, int]:
        """Return the smallest arena and, as recorded, its activations and persistent data; in bytes.

        The interpreter's own record of what is allocated leaves out what it needs while it plans: files do not
        allocate in an arena of the recorded size. So the size is found by trying.
        """
        smallest = int(self._ask("arena", **self._by_position())["arena"])
        self._ask("allocations")
        said = self._log.read_text(errors="replace")
        recorded = [re.findall(rf"Arena allocation {part} (\d+) bytes", said) for part in ("head", "tail")]
        if not all(recorded):
            raise ExportError(self.subject, "TFLM must record its allocations", said[-300:], "Update tflite-micro.")
        head, tail = (int(found[-1]) for found in recorded)
        return smallest, head, tail

    def _by_position(self) -> dict[str, NDArray[Any]]:
        missing = [name for name in self.inputs if name not in self._feeds]
        if missing:
            raise ExportError(self.subject, "every input must be fed", f"none for {missing}", "Call feed first.")
        return {f"input{position}": self._feeds[name] for position, name in enumerate(self.inputs)}

    def _ask(self, act: str, **arrays: Any) -> dict[str, NDArray[Any]]:
        """Send a request to the interpreter's process; return its answer."""
        if self._process.poll() is not None:
            raise ExportError(self.subject, "the interpreter must be running", "it has ended", "Load the file again.")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        said_before = self._log.stat().st_size
        late = Timer(PATIENCE, self._process.kill)
        late.start()
        answer = None
        with contextlib.suppress(BrokenPipeError):  # it died while it was written to: told below
            micro_child.write_frame(self._process.stdin, act=act, **arrays)
            answer = micro_child.read_frame(self._process.stdout)
        late.cancel()
        if answer is not None and "error" not in answer:
            return answer
        said = self._log.read_bytes()[said_before:].decode(errors="replace")
        if answer is None:
            code = self._process.wait()
            how = f"did not answer within {PATIENCE:g} s" if code == -signal.SIGKILL else f"ended with {code}"
            raise ExportError(
                self.subject,
                "TensorFlow Lite Micro must take it",
                f"its process {how} ({_last_words(said)})",
                "Report the file to tflite-micro.",
            )
        raise _explain(self.subject, said, str(answer["error"]))

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def require_micro() -> None:
    """Raise an ImportError with the command where tflite-micro is not installed."""
    if importlib.util.find_spec("tflite_micro") is None:
        raise ImportError(
            "Microcontroller files are checked in TensorFlow Lite Micro, which is not installed "
            '(it has wheels for Linux on x86-64 only): pip install "keras-prune[mcu]"'
        )


def tensor_name(tensor: Any) -> str:
    """Return a tensor's name as text."""
    return (tensor.name or b"").decode("utf-8", errors="replace")


def _ports(model: Any) -> tuple[dict[str, Port], dict[str, Port]]:
    """Return inputs and outputs in the order of the main graph, by the signature's names where it has any."""
    graph = model.subgraphs[0]
    signature = next((each for each in model.signatureDefs or [] if each.subgraphIndex == 0), None)
    maps = (signature.inputs or [], signature.outputs or []) if signature is not None else ([], [])
    found = []
    for indices, entries in zip((graph.inputs, graph.outputs), maps, strict=True):
        names = {int(entry.tensorIndex): entry.name.decode() for entry in entries}
        places = [] if indices is None else [int(index) for index in indices]
        found.append(
            {names.get(place, tensor_name(graph.tensors[place])): _port(graph.tensors[place]) for place in places}
        )
    return found[0], found[1]


def _port(tensor: Any) -> Port:
    shape = tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
    quantization = tensor.quantization
    if tensor.type not in DTYPES:
        raise ExportError(
            f"tensor '{tensor_name(tensor)}'", "must hold numbers", TYPE_NAMES.get(tensor.type, tensor.type), "Cast it."
        )
    if quantization is None or quantization.scale is None or len(quantization.scale) != 1:
        return Port(shape, DTYPES[tensor.type])
    return Port(shape, DTYPES[tensor.type], float(quantization.scale[0]), int(quantization.zeroPoint[0]))


def _explain(subject: str, said: str, error: str) -> ExportError:
    """Return the error for what the interpreter said."""
    missing = re.search(r"Didn't find op for builtin opcode '(\w+)'", said)
    if missing:
        return ExportError(
            subject,
            "every operator must exist in TensorFlow Lite Micro",
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
        subject, "TensorFlow Lite Micro must take it", f"{error}: {_last_words(said)}", "See the operator named here."
    )


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and "RecordingMicroAllocator" not in line]
    return "; ".join(lines[-3:])[:300] or "it said nothing"


def _stop(process: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    end(process)
    folder.cleanup()
