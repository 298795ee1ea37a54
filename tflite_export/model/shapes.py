"""The sizes of a file's inputs: which of them are fixed, to what, and for what reason."""

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
"""Sizes of inputs by the input's name, the batch first; None leaves a size free."""


def fix_sizes(
    signature: Signature, target: Device, batch_size: int | None = None, shapes: Shapes | None = None
) -> tuple[Signature, tuple[str, ...]]:
    """Return a model's signature with the requested sizes fixed, and a note for each size that was fixed.

    The batch is the first of these that applies: the batch that the model itself has, which requests must agree with;
    the requested batch; 1 for a target whose runtime accepts fixed sizes only; free.

    Args:
        signature: signature of the model.
        target: the device that the file is made for.
        batch_size: requested batch; None requests none.
        shapes: requested sizes of inputs.

    Raises:
        ExportError: the model has no input of that name, a size is not a whole number of at least 1, or a size differs
            from the one that the model has.

    Example:
        >>> from keras_prune.devices.catalogue import WEB
        >>> free = Signature((InputSpec("audio", (None, 1), "float32"),), "audio")
        >>> fixed, notes = fix_sizes(free, WEB, shapes={"audio": (None, 16000, 1)})
        >>> fixed.inputs[0].shape, fixed.batch, notes
        ((16000, 1), 1, ("input 'audio' fixed to (16000, 1): as requested", 'batch fixed to 1: LiteRT.js ...'))
    """
    requested = [("batch_size", batch_size)]
    notes = []
    inputs = list(signature.inputs)
    for name, shape in _checked(signature, shapes):
        place = next(i for i, spec in enumerate(inputs) if spec.name == name)
        spec = inputs[place]
        sizes = tuple(have if size is None else size for size, have in zip(shape[1:], spec.shape, strict=True))
        if sizes != spec.shape:
            notes.append(f"input '{name}' fixed to {sizes}: as requested")
        inputs[place] = replace(spec, shape=sizes)
        requested.append((f"shapes['{name}']", shape[0]))
    batch = signature.batch
    reason = "as in the model"
    for argument, size in requested:
        if size is None:
            continue
        _check_size(argument, size)
        if batch not in (None, size):
            own = signature.batch is not None
            raise ExportError(
                argument,
                f"must agree with the batch of {batch} ({reason})",
                size,
                "Leave it out, or build the model with a free batch." if own else "Request the same batch everywhere.",
            )
        if batch is None:
            batch, reason = size, "as requested"
    if batch is None and target.fixed_sizes:
        batch, reason = 1, f"{target.fixed_sizes}; batch_size=... chooses another"
    if batch is not None:
        notes.append(f"batch fixed to {batch}: {reason}")
    return replace(signature, inputs=tuple(inputs), batch=batch), tuple(notes)


def fix_to_data(signature: Signature, target: Device, inputs: Inputs) -> tuple[Signature, tuple[str, ...]]:
    """Return a signature with free sizes fixed to those of the data, for a target whose runtime needs fixed sizes.

    The second result has a note for each input that was fixed. For other targets, the signature stays as it is.
    """
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
    """Return (name, sizes) of each input that `shapes` names."""
    if shapes is None:
        return []
    names = [spec.name for spec in signature.inputs]
    way_out = f"Give sizes by the input's name, such as shapes={{'{names[0]}': {(1, *signature.inputs[0].shape)}}}."
    if not isinstance(shapes, Mapping):
        raise ExportError("shapes", "must be a dictionary from names of inputs to their sizes", shapes, way_out)
    unknown = [name for name in shapes if name not in names]
    if unknown:
        raise ExportError("shapes", f"may only name the model's inputs, {names}", unknown, way_out)
    return [(spec.name, _sizes(spec, shapes[spec.name])) for spec in signature.inputs if spec.name in shapes]


def _sizes(spec: InputSpec, shape: Any) -> tuple[int | None, ...]:
    wanted = ("batch", *("any" if size is None else size for size in spec.shape))
    sizes = tuple(shape) if isinstance(shape, (list, tuple)) else (shape,)
    fits = len(sizes) == len(wanted) and all(
        size is None or have is None or size == have for size, have in zip(sizes[1:], spec.shape, strict=True)
    )
    if not fits:
        raise ExportError(
            f"shapes['{spec.name}']",
            f"must fit the input's shape {wanted}",
            shape,
            "Give one size for each axis, the batch first, and None for those that are to stay as they are.",
        )
    for size in sizes:
        if size is not None:
            _check_size(f"shapes['{spec.name}']", size)
    return sizes


def _check_size(argument: str, size: Any) -> None:
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise ExportError(argument, "must be a whole number of at least 1", size, "Give None to leave a size free.")
