"""What an export needs of a model before it converts: sizes, samples, and the model's own answers to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from keras_prune.devices import Device
from tflite_export.convert.number_types import CALIBRATION, NumberType
from tflite_export.model import precision
from tflite_export.model.inputs import Inputs
from tflite_export.model.reference import Reference
from tflite_export.model.shapes import Shapes, fix_sizes, fix_to_data
from tflite_export.model.signature import Signature
from tflite_export.source.source import Source

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model that is about to be converted.

    Args:
        signature: of the model, its sizes fixed as the file's are to be.
        samples: for the ranges of activations.
        reference: what the model answers to those that its file is verified on.
        notes: for the report.
    """

    signature: Signature
    samples: Inputs
    reference: Reference
    notes: tuple[str, ...]


def prepare(
    source: Source,
    data: Any,
    device: Device,
    kind: NumberType,
    batch_size: int | None,
    shapes: Shapes | None,
    samples: int,
) -> Prepared:
    """Fix sizes, read the data, and ask the model for its answers.

    Args:
        source: what is exported.
        data: as `tflite_export.export` takes them.
        device: the target.
        kind: number type of the file.
        batch_size: that is asked for.
        shapes: that are asked for.
        samples: to verify on, at most.

    Raises:
        ExportError: a size is not the model's, the data do not fit, or the model cannot answer them.
    """
    signature, fixed = fix_sizes(source.signature(data), device, batch_size, shapes)
    collected = source.inputs(signature, data, max(samples, CALIBRATION) if kind.calibrated else samples)
    signature, as_given = fix_to_data(signature, device, collected)
    inputs = Inputs(tuple(array[:samples] for array in collected.arrays), collected.drawn)
    # The file is compared with the model as it was given, so that a mistake of strip or of a rewrite shows as well.
    reference = source.answer(signature, inputs)
    if signature.batch is None and reference.batch not in (None, 1):
        signature = replace(signature, batch=reference.batch)
        fixed += (f"batch fixed to {reference.batch}: the model answers that many samples, and not a single one",)
    return Prepared(signature, collected, reference, (*source.notes, *fixed, *as_given, *_mixed_notes(source)))


def _mixed_notes(source: Source) -> tuple[str, ...]:
    if source.model is None:
        return ()
    with precision.float32(source.model) as mixed:
        pass
    if not mixed:
        return ()
    return (
        f"computes in float32: {len(mixed)} layers in mixed precision, '{mixed[0]}' the first; "
        "TFLite has no such kernels",
    )
