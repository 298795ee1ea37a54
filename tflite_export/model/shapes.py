"""The sizes of a file's inputs: which are fixed, to what, and by whose wish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from keras_prune.devices import Device
from tflite_export.errors import ExportError
from tflite_export.model.inputs import Inputs
from tflite_export.model.signature import InputSpec, Signature

__all__ = ["Shapes", "fix_sizes", "fix_to_data"]

Shapes = Mapping[str, Sequence[int | None]]
"""Sizes of inputs by name, the batch first; None leaves a size free."""


def fix_sizes(
    signature: Signature, target: Device, batch_size: int | None = None, shapes: Shapes | None = None
) -> tuple[Signature, tuple[str, ...]]:
    """Return a model's signature with the sizes that are asked for, and a note for each that was fixed.

    The batch is, in this order: what the model itself has fixed it to, with which all else must agree; what is asked
    for; 1 on a target whose runtime takes fixed sizes only; free.

    Args:
        signature: of the model.
        target: what the file is made for.
        batch_size: fix the batch to this.
        shapes: fix sizes of inputs.

    Raises:
        ExportError: an input is not known, or a size is none or not the model's.

    Example:
        >>> from keras_prune.devices.catalogue import WEB
        >>> free = Signature((InputSpec("audio", (None, 1), "float32"),), "audio")
        >>> fixed, notes = fix_sizes(free, WEB, shapes={"audio": (None, 16000, 1)})
        >>> fixed.inputs[0].shape, fixed.batch, notes
        ((16000, 1), 1, ("input 'audio' fixed to (16000, 1): asked for", 'batch fixed to 1: LiteRT.js ...'))
    """
    asked = [("batch_size", batch_size)]
    notes = []
    inputs = list(signature.inputs)
    for name, shape in _checked(signature, shapes):
        place = next(i for i, spec in enumerate(inputs) if spec.name == name)
        spec = inputs[place]
        sizes = tuple(have if size is None else size for size, have in zip(shape[1:], spec.shape, strict=True))
        if sizes != spec.shape:
            notes.append(f"input '{name}' fixed to {sizes}: asked for")
        inputs[place] = replace(spec, shape=sizes)
        asked.append((f"shapes['{name}']", shape[0]))
    batch = signature.batch
    by = "the model's own"
    for argument, size in asked:
        if size is None:
            continue
        _check_size(argument, size)
        if batch not in (None, size):
            raise ExportError(
                argument,
                f"must agree with the batch of {batch} ({by})",
                size,
                "Leave it out, or build the model with a free batch." if by == "the model's own" else "Give one batch.",
            )
        if batch is None:
            batch, by = size, "asked for"
    if batch is None and target.fixed_sizes:
        batch, by = 1, f"{target.fixed_sizes}; batch_size=... chooses another"
    if batch is not None:
        notes.append(f"batch fixed to {batch}: {by}")
    return replace(signature, inputs=tuple(inputs), batch=batch), tuple(notes)


def fix_to_data(signature: Signature, target: Device, inputs: Inputs) -> tuple[Signature, tuple[str, ...]]:
    """Return a signature with its free sizes as in the data, on a target whose runtime takes fixed ones only."""
    if not target.fixed_sizes or not signature.free:
        return signature, ()
    specs, notes = [], []
    for spec, array in zip(signature.inputs, inputs.arrays, strict=True):
        if None in spec.shape:
            notes.append(
                f"input '{spec.name}' fixed to {array.shape[1:]}, as in the data: {target.fixed_sizes}; "
                "shapes={...} chooses others"
            )
        specs.append(replace(spec, shape=tuple(array.shape[1:])))
    return replace(signature, inputs=tuple(specs)), tuple(notes)


def _checked(signature: Signature, shapes: Shapes | None) -> list[tuple[str, tuple[int | None, ...]]]:
    """Return (name, sizes) of the inputs that are named."""
    if shapes is None:
        return []
    names = [spec.name for spec in signature.inputs]
    way_out = f"Give sizes by name, such as shapes={{'{names[0]}': {(1, *signature.inputs[0].shape)}}}."
    if not isinstance(shapes, Mapping):
        raise ExportError("shapes", "must be a dictionary from inputs to sizes", shapes, way_out)
    unknown = [name for name in shapes if name not in names]
    if unknown:
        raise ExportError("shapes", f"must name inputs of the model, {names}", unknown, way_out)
    return [(spec.name, _sizes(spec, shapes[spec.name])) for spec in signature.inputs if spec.name in shapes]


def _sizes(spec: InputSpec, shape: Any) -> tuple[int | None, ...]:
    wanted = ("batch", *("any" if size is None else size for size in spec.shape))
    sizes = tuple(shape) if isinstance(shape, (list, tuple)) else (shape,)
    fits = len(sizes) == len(wanted) and all(
        size is None or have is None or size == have for size, have in zip(sizes[1:], spec.shape, strict=True)
    )
    if not fits:
        raise ExportError(f"shapes['{spec.name}']", f"must fit the input's shape {wanted}", shape, "Correct it.")
    for size in sizes:
        if size is not None:
            _check_size(f"shapes['{spec.name}']", size)
    return sizes


def _check_size(argument: str, size: Any) -> None:
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise ExportError(argument, "sizes are whole numbers from 1 up, None where free", size, "Correct it.")
