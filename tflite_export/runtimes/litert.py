"""Run .tflite files in LiteRT, in this process."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.file.flatbuffer import LARGEST_FILE, operator_name
from tflite_export.file.integrity import DECODE, is_decode
from tflite_export.file.reading import require_file
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.runtimes import sessions

__all__ = ["LiteRTSession", "describe_here", "load"]


class LiteRTSession(sessions.Session):
    """A file loaded into an interpreter of this process.

    Args:
        file: the file, or its bytes; its structure is checked first, since the runtime follows offsets unchecked.
        subject: what to call it in errors.
        threads: threads of the runtime.
        delegate: use the XNNPACK delegate, as the runtime does by default.

    Raises:
        FlatbufferError: the file is damaged.
        ExportError: the runtime cannot load or allocate it.
    """

    def __init__(
        self, file: TFLiteFile | bytes, subject: str = "the file", *, threads: int = 1, delegate: bool = True
    ) -> None:
        self.subject = f"{subject} ({threads} thread{'s' * (threads != 1)}, XNNPACK {'on' if delegate else 'off'})"
        file = TFLiteFile.of(file, subject)
        model = file.model
        _refuse_decode(model, self.subject)
        self._content, self._threads = file.content, threads
        self._resolver = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._keeps_state = _keeps_state(model)
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        try:
            self._open()
            # A free size is 1 in the file, and a window need not fit into that: tensors are allocated for the first
            # inputs then.
            if not any((detail["shape_signature"] < 0).any() for detail in self.inputs.values()):
                self._allocate()
        except (ValueError, RuntimeError) as error:
            raise self._error("must load in the runtime", error) from error

    def _open(self) -> None:
        """Load the file into an interpreter, in which nothing is allocated yet."""
        self._interpreter = Interpreter(
            model_content=self._content, num_threads=self._threads, experimental_op_resolver_type=self._resolver
        )
        self.inputs, self.outputs = self._details()
        self._shapes = {name: tuple(int(size) for size in detail["shape"]) for name, detail in self.inputs.items()}
        self._allocated = self._has_run = False

    def _details(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the details of inputs and outputs by name: the signature's names where the file has one."""
        signatures = self._interpreter.get_signature_list()
        if signatures:
            key = "serving_default" if "serving_default" in signatures else next(iter(signatures))
            runner = self._interpreter.get_signature_runner(key)
            return dict(runner.get_input_details()), dict(runner.get_output_details())
        return (
            {detail["name"]: detail for detail in self._interpreter.get_input_details()},
            {detail["name"]: detail for detail in self._interpreter.get_output_details()},
        )

    def _allocate(self) -> None:
        self._interpreter.allocate_tensors()
        self._allocated = True

    def _error(self, rule: str, error: Exception) -> ExportError:
        free = any((d["shape_signature"] < 0).any() for d in self.inputs.values())
        return ExportError(
            self.subject,
            rule,
            f"{type(error).__name__}: {error}",
            "Export the model again" + (", with fixed sizes: batch_size=..., shapes=... ." if free else "."),
        )

    def feed(self, batch: Sequence[NDArray[Any]], names: Sequence[str]) -> None:
        """Set the inputs, resized to the batch. A file that keeps state begins anew."""
        self.require_names(names, self.inputs)
        try:
            if self._keeps_state and self._has_run:
                self._open()  # the runtime has no call that puts a file's own variables back
            resized = not self._allocated
            for array, name in zip(batch, names, strict=True):
                if self._shapes[name] != array.shape:
                    self._interpreter.resize_tensor_input(self.inputs[name]["index"], array.shape, strict=False)
                    self._shapes[name] = array.shape
                    resized = True
            if resized:
                self._allocate()
            # State of a recurrent operator must not leak from one input into the next.
            self._interpreter.reset_all_variables()
            for array, name in zip(batch, names, strict=True):
                self._interpreter.set_tensor(
                    self.inputs[name]["index"], array.astype(self.inputs[name]["dtype"], copy=False)
                )
        except (ValueError, RuntimeError) as error:
            raise self._error("must take the inputs", error) from error

    def invoke(self) -> None:
        """Run the file once, on the inputs that were set."""
        self._has_run = True
        try:
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise self._error("must run in the runtime", error) from error

    def fetch(self, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return copies of outputs by name."""
        self.require_names(outputs, self.outputs)
        return [self._interpreter.get_tensor(self.outputs[name]["index"]) for name in outputs]

    def tensor_shapes(self) -> dict[int, tuple[int, ...]]:
        """Return the shape of each tensor of the first subgraph, as of the last run."""
        return {
            detail["index"]: tuple(int(size) for size in detail["shape"])
            for detail in self._interpreter.get_tensor_details()
        }


def _refuse_decode(model: Any, subject: str) -> None:
    """Refuse a file whose weights only TensorFlow Lite Micro decodes: here, the operator is an unknown one."""
    if any(is_decode(model, operator) for graph in model.subgraphs for operator in graph.operators):
        raise ExportError(
            subject,
            "must have weights that LiteRT reads",
            f"weights in records of TensorFlow Lite Micro's {DECODE}",
            "It is a file for microcontrollers: tflite_export.check_micro and verify run it.",
        )


def _keeps_state(model: Any) -> bool:
    """Return whether a file has variables of its own that it assigns as it runs: a stateful recurrent layer's."""
    return any(
        operator_name(model, operator) == "ASSIGN_VARIABLE"
        for subgraph in model.subgraphs[:1]
        for operator in subgraph.operators or []
    )


Session = LiteRTSession
"""The former name of the class, which code that imports this module under its former name still asks for."""


def load(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file.

    Raises:
        ExportError: it cannot be read, is a device or a pipe, or is larger than a .tflite or a golden file can be.
    """
    require_file(path, LARGEST_FILE)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ExportError(
            f"'{os.fspath(path)}'", "must be a readable file", error.strerror, "Check the path."
        ) from error


def describe_here() -> str:
    """Return the runtime of this machine in words."""
    return f"LiteRT {version('ai-edge-litert')} on {platform.machine()}"
