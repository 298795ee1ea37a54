"""Compare a .tflite, in the runtime that reads it, with the Keras model that it came from."""

from __future__ import annotations

import os
import warnings
from functools import partial
from typing import Any

import keras

from tflite_export.convert.number_types import number_type_of
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.model.inputs import SAMPLES
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litert import load
from tflite_export.runtimes.opening import open_foreign
from tflite_export.tflm.decode_operators import holds_decode, without_decode
from tflite_export.tflm.mcu import open_micro
from tflite_export.verification.verify import (
    CONFIGURATIONS,
    MICRO,
    Answers,
    Run,
    Verification,
    answers,
    compare_runs,
    verify_file,
)

# All but `verify` itself are here for the former module `tflite_export.verify`, which had them in one place with it.
__all__ = ["CONFIGURATIONS", "Answers", "Run", "Verification", "answers", "compare_runs", "verify"]


def verify(
    path: str | os.PathLike[str],
    model: keras.Model | Any,
    data: Any = None,
    *,
    samples: int = SAMPLES,
    tolerance: float | None = None,
    signature_key: str | None = None,
    limits: Limits | None = None,
) -> Verification:
    """Compare a .tflite with the model that it came from, in LiteRT: with and without XNNPACK, on 1 and 4 threads.

    The file may come from anywhere: it is run in a process of its own, which it may crash. One whose weights are stored
    as DECODE records is run in TensorFlow Lite Micro, which alone reads them.

    error = max |file - model| / max |model|, for each float output; NaN fails. Integer outputs must be equal; in a
    quantized file, the error is the share of them that are not.

    Args:
        path: the file.
        model: the model that it came from, or its path: what `tflite_export.export` takes.
        data: inputs: see `tflite_export.model.inputs.collect_inputs`. None draws a few, with a warning.
        samples: use at most so many.
        tolerance: largest error allowed; None: that of the file's number type.
        signature_key: of a SavedModel: which signature.
        limits: what the file may take; None: 120 seconds for a run, and 4 GiB of memory or 8 times the file.

    Returns:
        The errors, all within the tolerance.

    Raises:
        ExportError: they are not, or the file cannot be run, or it has a look-up table that TensorFlow Lite Micro reads
            wrongly.
        ImportError: tflite-micro, which the file needs, is not installed.

    Warns:
        UserWarning: an output is far from the model's, though within the tolerance.

    Example:
        >>> verify("missing.tflite", keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
        Traceback (most recent call last):
            ...
        tflite_export.errors.ExportError: 'missing.tflite': must be a readable file. Received: No such ...
    """
    file = TFLiteFile(load(path), os.fspath(path))
    micro = holds_decode(file.model)
    kind = number_type_of(without_decode(file).model)
    found = verify_file(
        file,
        model,
        data,
        kind,
        samples=samples,
        tolerance=tolerance,
        signature_key=signature_key,
        open_file=partial(open_micro if micro else open_foreign, limits=limits),
        configurations=MICRO if micro else None,
    )
    for text in found.warnings:
        warnings.warn(text, UserWarning, stacklevel=2)
    return found
