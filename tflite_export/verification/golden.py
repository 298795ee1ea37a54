"""Golden files: inputs and what the Keras model answers to them, for a check on the device itself.

The format is safetensors (https://github.com/huggingface/safetensors#format): eight bytes, little-endian, with the
length of a JSON header; the header, with type, shape and place of each array; the arrays, raw and little-endian.
So one file holds all, which is written at once, and a page of any language reads it with nothing but JSON.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_prune.arrays.distance import distance, scale_of
from tflite_export.convert.number_types import FLOAT32
from tflite_export.errors import ExportError
from tflite_export.file.atomic import check_writable, write_atomically
from tflite_export.file.c_array import write_c_arrays
from tflite_export.model.reference import Reference
from tflite_export.runtimes.litert import load
from tflite_export.verification.compare import OutputError

__all__ = [
    "LARGEST_HEADER",
    "VERSION",
    "Golden",
    "check_golden",
    "golden_of",
    "read_golden",
    "write_golden",
    "write_golden_c",
]

VERSION = "keras-prune golden 1"
LARGEST_HEADER = 100_000_000
"""Bytes: the limit of the safetensors library."""
_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
_DTYPES = {code: np.dtype(name).newbyteorder("<") for name, code in _CODES.items()}


@dataclass(frozen=True, eq=False)
class Golden:
    """Samples, and what is to come out.

    Args:
        inputs: an array [samples, ...] for each input of the file, by name.
        outputs: likewise: the model's answers.
        bounds: largest absolute error allowed, for each output; 0.0 for integers, which must be equal.

    Raises:
        ExportError: a bound is negative, infinite or not a number: it would let anything pass, or nothing.
    """

    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]
    bounds: Mapping[str, float]

    def __post_init__(self) -> None:
        """Check the bounds."""
        for name, bound in self.bounds.items():
            if not 0 <= bound < math.inf:
                rule = "must be a finite number, at least 0"
                raise ExportError(f"the bound of output '{name}'", rule, bound, "Write the golden file again.")

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.inputs.values())))


def golden_of(reference: Reference, tolerance: float = FLOAT32.tolerance) -> Golden:
    """Return the samples of a verification with the bound of each output in the output's own units.

    bound = tolerance * max |output|, the maximum over all samples; a device needs no more than a comparison.
    """
    outputs = dict(zip(reference.output_names, reference.outputs, strict=True))
    return Golden(
        reference.named_inputs,
        outputs,
        {name: _bound(values, tolerance) for name, values in outputs.items()},
    )


def write_golden(path: str | os.PathLike[str], golden: Golden) -> None:
    """Write a golden file, at once.

    Arrays are named `input:NAME` and `output:NAME`; the header's `__metadata__` holds, as text, `format`,
    `samples` and `bound:NAME` for each output.

    Raises:
        ExportError: an array is of a type that the format has no name for, or the path cannot be written.

    Example:
        >>> import tempfile
        >>> x = np.ones((2, 3), dtype=np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_golden(f"{folder}/golden.safetensors", Golden({"x": x}, {"y": 2 * x}, {"y": 1e-4}))
        ...     found = read_golden(f"{folder}/golden.safetensors")
        >>> len(found), found.outputs["y"].tolist(), found.bounds
        (2, [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]], {'y': 0.0001})
    """
    check_writable(path)
    arrays = _named(golden)
    header: dict[str, Any] = {
        "__metadata__": {
            "format": VERSION,
            "samples": str(len(golden)),
            **{f"bound:{name}": repr(float(bound)) for name, bound in golden.bounds.items()},
        }
    }
    offset = 0
    # Large elements first, so that each array starts at a multiple of its own and can be viewed in place.
    for name, values in sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if values.dtype.name not in _CODES:
            raise ExportError(f"array '{name}'", f"must be one of {sorted(_CODES)}", values.dtype.name, "Cast it.")
        header[name] = {
            "dtype": _CODES[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [offset, offset + values.nbytes],
        }
        offset += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    payload = b"".join(arrays[name].astype(_DTYPES[entry["dtype"]]).tobytes() for name, entry in _entries(header))
    write_atomically(path, struct.pack("<Q", len(text)) + text + payload)


def read_golden(path: str | os.PathLike[str]) -> Golden:
    """Read a golden file.

    Raises:
        ExportError: it cannot be read, is damaged, or is another safetensors file.

    Example:
        >>> import tempfile
        >>> golden = Golden({"x": np.ones((2, 3))}, {"y": np.zeros((2, 1))}, {"y": 1e-4})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_golden(f"{folder}/golden.safetensors", golden)
        ...     read_golden(f"{folder}/golden.safetensors").bounds
        {'y': 0.0001}
    """
    content, subject = load(path), f"'{os.fspath(path)}'"
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > min(LARGEST_HEADER, len(content) - 8):
            raise ValueError(f"a header of {length} bytes in a file of {len(content)}")
        header = json.loads(content[8 : 8 + length])
        if header["__metadata__"]["format"] != VERSION:
            raise ValueError(f"the format {header['__metadata__']['format']!r}")
        payload = memoryview(content)[8 + length :]  # a view: a copy for each of many arrays takes minutes
        arrays = {name: _array(payload, entry) for name, entry in _entries(header)}
        bounds = {
            key.removeprefix("bound:"): float(value)
            for key, value in header["__metadata__"].items()
            if key.startswith("bound:")
        }
        golden = Golden(_part(arrays, "input:"), _part(arrays, "output:"), bounds)
        counts = {values.shape[:1] for values in arrays.values()}
        if not golden.inputs or set(golden.bounds) != set(golden.outputs) or len(counts) != 1 or counts == {()}:
            raise ValueError(f"inputs {list(golden.inputs)}, outputs {list(golden.outputs)}, bounds {list(bounds)}")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError, OverflowError) as error:
        raise ExportError(
            subject,
            f"must be a golden file ('{VERSION}')",
            f"{type(error).__name__}: {error}",
            "Write it again, by write_golden or --golden.",
        ) from error
    return golden


def check_golden(golden: Golden, outputs: Mapping[str, NDArray[Any]], subject: str = "the device") -> list[OutputError]:
    """Compare what a device answered with a golden file: |answer - output| <= bound, everywhere.

    Args:
        golden: the file.
        outputs: the device's outputs by name, for all samples, or for the first few.
        subject: what to call the device in errors.

    Returns:
        How far each output is off.

    Raises:
        ExportError: an output is missing, has another shape, or is off by more than its bound; NaN is.

    Example:
        >>> golden = Golden({"x": np.ones((2, 3))}, {"y": np.zeros((2, 1))}, {"y": 1e-4})
        >>> [error.max_absolute for error in check_golden(golden, {"y": np.full((2, 1), 5e-5)})]
        [5e-05]
    """
    errors = []
    for name, wanted in golden.outputs.items():
        place = f"output '{name}' of {subject}"
        if name not in outputs:
            raise ExportError(place, "must be among the outputs given", sorted(outputs), "Is it another model's file?")
        got = np.asarray(outputs[name])
        if got.shape[1:] != wanted.shape[1:] or not 0 < len(got) <= len(wanted):
            raise ExportError(
                place, f"must have the shape {wanted.shape}, or fewer samples", got.shape, "Run the samples one by one."
            )
        found, bound = distance(got, wanted[: len(got)]), golden.bounds[name]
        if not found.largest <= bound:
            raise ExportError(
                place,
                f"must be within {bound:.3g} of the model's",
                f"{found.largest:.3g} at {found.place}",
                "Check the input's layout and scaling first, then the runtime's version.",
            )
        errors.append(OutputError.of(name, found))
    return errors


def write_golden_c(path: str | os.PathLike[str], golden: Golden, samples: int = 1) -> tuple[Path, Path]:
    """Write the first samples as a C++ source and header, for a device without files.

    The arrays are called `input_NAME`, `output_NAME` and `bound_NAME`.

    Args:
        path: of either file, or of both without a suffix.
        golden: the samples.
        samples: how many; each takes flash.

    Returns:
        Paths of the source and the header.

    Raises:
        ExportError: a type has no C++ name, or the path cannot be written.

    Example:
        >>> import tempfile
        >>> golden = Golden({"x": np.ones((2, 3))}, {"y": np.zeros((2, 1))}, {"y": 1e-4})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source, header = write_golden_c(f"{folder}/golden", golden)
        ...     "extern const double input_x[];" in header.read_text()
        True
    """
    arrays = {name.replace(":", "_", 1): values[:samples] for name, values in _named(golden).items()}
    bounds = {f"bound_{name}": np.array([bound], dtype=np.float32) for name, bound in golden.bounds.items()}
    return write_c_arrays(arrays | bounds, path)


def _named(golden: Golden) -> dict[str, NDArray[Any]]:
    return {f"input:{name}": values for name, values in golden.inputs.items()} | {
        f"output:{name}": values for name, values in golden.outputs.items()
    }


def _bound(values: NDArray[Any], tolerance: float) -> float:
    if values.dtype.kind != "f":
        return 0.0
    # As in a verification: an output of zeros only has no scale, so the tolerance is taken as it is.
    return tolerance * (scale_of(values) or 1.0)


def _entries(header: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
    return [(name, entry) for name, entry in header.items() if name != "__metadata__"]


def _array(payload: memoryview, entry: Mapping[str, Any]) -> NDArray[Any]:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= len(payload):
        raise ValueError(f"bytes {begin} to {end} of {len(payload)}")
    return np.frombuffer(payload[begin:end], dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
