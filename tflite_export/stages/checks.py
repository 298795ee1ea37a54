"""What an export refuses before any work begins: choices, places to write to, and the size of the model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, get_args

from keras_prune.devices import DEVICES, Device
from tflite_export.convert.number_types import FLOAT32, NumberType, check_calibration, check_tolerance
from tflite_export.errors import ExportError
from tflite_export.file import flatbuffer
from tflite_export.file.atomic import check_apart, check_writable
from tflite_export.plan.plan import Optimize
from tflite_export.tflm.flash_plan import FORMS

__all__ = ["check_choices", "check_places", "check_size"]


def check_choices(
    target: Device,
    kind: NumberType,
    data: Any,
    optimize: str,
    tune: bool,
    tolerance: float | None,
    arena: int | None = None,
    strict: bool = False,
    records: Sequence[str] | None = None,
) -> None:
    """Refuse choices that are not known or do not go together.

    Raises:
        ExportError: with the first of them.
    """
    if optimize not in get_args(Optimize):
        raise ExportError("optimize", "must be 'speed', 'size' or 'portable'", repr(optimize), "Choose one of these.")
    if optimize == "portable" and (tune or strict):
        raise ExportError(
            "optimize='portable'",
            "stores every weight dense, so there is nothing to time or to insist on",
            f"{'tune' if tune else 'strict'}=True",
            "Leave it out, or pass optimize='speed' or 'size'.",
        )
    check_tolerance(tolerance)
    if target.quantize is not None and kind.name not in target.quantize:
        raise ExportError(
            f"target '{target.name}'",
            f"takes quantize={' or '.join(map(repr, target.quantize))}",
            repr(kind.name),
            "Pass that, and data for the ranges of activations.",
        )
    if arena is not None:
        _check_arena(arena, target)
    if records is not None:
        _check_records(records, target)
    if tune and not target.runs_here:
        raise ExportError(
            f"tune=True for target '{target.name}'",
            "needs a machine of that kind",
            f"this one, where {[name for name, device in DEVICES.items() if device.runs_here]} can be timed",
            "Leave tune=False to read the target's table.",
        )
    check_calibration(kind, data)


def _check_arena(arena: Any, target: Device) -> None:
    if not target.decode:
        raise ExportError(
            "arena",
            "needs a target whose runtime decodes weights in RAM",
            f"{arena!r} for target '{target.name}'",
            "Leave it out, or pass target='mcu'.",
        )
    if isinstance(arena, bool) or not isinstance(arena, int) or arena < 1:
        raise ExportError(
            "arena", "must be a whole number of bytes, at least 1", repr(arena), "Pass the RAM that is free."
        )


def _check_records(records: Any, target: Device) -> None:
    if not target.decode:
        raise ExportError(
            "records",
            "needs a target whose runtime decodes weights, which optimize='portable' leaves out",
            f"{records!r} for target '{target.name}'",
            "Leave it out, or pass target='mcu'.",
        )
    if isinstance(records, str) or not records or not set(records) <= set(FORMS):
        raise ExportError(
            "records",
            f"must be one or more of {tuple(FORMS)}",
            repr(records),
            "Pass records=('bitmask',), for instance; for dense weights optimize='portable'.",
        )


def check_places(
    inputs: Mapping[str, Any],
    path: str | os.PathLike[str],
    golden: str | os.PathLike[str] | None = None,
    c_array: str | os.PathLike[str] | None = None,
    compiled: str | os.PathLike[str] | None = None,
) -> None:
    """Refuse places that cannot be written, or of which one would be written over another or over what is read.

    Args:
        inputs: what is read, by its name in messages: a path, or a list of paths that belong together.
        path: of the file.
        golden: of the golden file.
        c_array: of the C source, whose endings are ours.
        compiled: of the file that an NPU's compiler makes.

    Raises:
        ExportError: with the first of them.
    """
    for place in (path, golden, c_array, compiled):
        if place is not None:
            check_writable(place)
    outputs = {"path": path, "golden": golden, "compiled": compiled}
    if c_array is not None:
        for ending in (".cc", ".h"):
            check_writable(file := Path(c_array).with_suffix(ending))
            outputs[f"c_array's {ending}"] = file
    check_apart(inputs, outputs)


def check_size(variables: Iterable[tuple[str, tuple[int, ...]]], kind: NumberType = FLOAT32) -> None:
    """Refuse a model whose weights exceed what a .tflite can hold, before anything is computed.

    Args:
        variables: (path, shape) of each.
        kind: number type of the file.

    Raises:
        ExportError: they do.

    Example:
        >>> check_size([("table/embeddings", (1_000_000, 1_000))])
        Traceback (most recent call last):
            ...
        tflite_export.errors.ExportError: the model: a .tflite holds at most 2146435072 bytes ... Received: ...
    """
    # A vector is a bias or a statistic, which stays in 4 bytes.
    sizes = {path: prod(shape) * (kind.weight_bytes if len(shape) > 1 else 4) for path, shape in variables}
    total = sum(sizes.values())
    if total > flatbuffer.LARGEST_FILE:
        largest = max(sizes, key=lambda path: sizes[path])
        raise ExportError(
            "the model",
            f"a .tflite holds at most {flatbuffer.LARGEST_FILE} bytes of constants",
            f"{total} bytes in {kind}, '{largest}' the largest with {sizes[largest]}",
            "Split the model, or quantize it.",
        )
