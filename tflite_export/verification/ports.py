"""The inputs and outputs of a file, whose integers stand for real numbers where it is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.file.flatbuffer import DTYPES, TYPE_NAMES
from tflite_export.file.integrity import text
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.runtimes.opening import open_own

__all__ = ["Port", "check_integer_io", "ports_of"]

SAMPLES = 4
"""Inputs that a file is run on: its arithmetic was verified on all before, and has not changed."""


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


def ports_of(model: Any) -> tuple[dict[str, Port], dict[str, Port]]:
    """Return inputs and outputs in the order of the main graph, by the signature's names where it has any.

    Args:
        model: the file's `ModelT`.

    Raises:
        ExportError: one does not hold numbers.
    """
    graph = model.subgraphs[0]
    signature = next((each for each in model.signatureDefs or [] if each.subgraphIndex == 0), None)
    maps = (signature.inputs or [], signature.outputs or []) if signature is not None else ([], [])
    found = []
    for indices, entries in zip((graph.inputs, graph.outputs), maps, strict=True):
        names = {int(entry.tensorIndex): entry.name.decode() for entry in entries}
        places = [] if indices is None else [int(index) for index in indices]
        found.append(
            {names.get(place, text(graph.tensors[place].name)): _port(graph.tensors[place]) for place in places}
        )
    return found[0], found[1]


def _port(tensor: Any) -> Port:
    shape = tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
    quantization = tensor.quantization
    if tensor.type not in DTYPES:
        raise ExportError(
            f"tensor '{text(tensor.name)}'", "must hold numbers", TYPE_NAMES.get(tensor.type, tensor.type), "Cast it."
        )
    if quantization is None or quantization.scale is None or len(quantization.scale) != 1:
        return Port(shape, DTYPES[tensor.type])
    return Port(shape, DTYPES[tensor.type], float(quantization.scale[0]), int(quantization.zeroPoint[0]))


def check_integer_io(file: TFLiteFile, floats: TFLiteFile, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Run a file whose inputs and outputs were made integers beside the one that it was made from.

    Both are run in LiteRT, on the same integers or the real numbers that these stand for. Every output must be the
    integer that stands for the other file's.

    Args:
        file: with integer inputs and outputs.
        floats: the same file before, with float ones.
        inputs: samples [samples, ...] for each input by name, as real numbers.

    Raises:
        ExportError: an output differs.
    """
    taken, given = ports_of(file.model)
    stored = [port.store(np.asarray(inputs[name])[:SAMPLES]) for name, port in taken.items()]
    real = [port.real(values) for port, values in zip(taken.values(), stored, strict=True)]
    got = open_own(file, "the file with integer inputs and outputs", delegate=False).run(stored, [*taken], [*given])
    wanted = open_own(floats, "the file with float ones", delegate=False).run(real, [*taken], [*given])
    for (name, port), own, other in zip(given.items(), got, wanted, strict=True):
        if wrong := int(np.count_nonzero(own != port.store(other))):
            raise ExportError(
                f"output '{name}'",
                "must be the same integers as before inputs and outputs were made integers",
                f"{wrong} of {own.size} values differ",
                "Export for a device without integer_io, and report the model.",
            )
