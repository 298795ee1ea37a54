"""The stages of an export: strip -> convert -> plan -> encode -> verify -> write."""

from __future__ import annotations

import os
from dataclasses import replace
from math import prod
from typing import Any

import keras

from keras_prune import strip
from tflite_export import flatbuffer, precision
from tflite_export.atomic import check_writable, write_atomically
from tflite_export.eligibility import Weight
from tflite_export.encode import encode
from tflite_export.errors import ExportError
from tflite_export.inputs import SAMPLES, collect_inputs
from tflite_export.plan import Plan, PlanLine, make_plan
from tflite_export.report import ExportReport, Size
from tflite_export.runtime import Session
from tflite_export.signature import signature_of
from tflite_export.stock import Converted, convert
from tflite_export.verify import TOLERANCE, Reference, Verification, answer, compare
from tflite_export.weights import Fingerprint, collect, variable_names


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    data: Any = None,
    batch_size: int | None = None,
    samples: int = SAMPLES,
    tolerance: float = TOLERANCE,
    strict: bool = False,
) -> ExportReport:
    """Write a Keras model as a sparse .tflite that was run and found to answer the same.

    Masks are taken off, TensorFlow's converter makes a dense file, a plan says for each weight how it is
    stored and why, the sparse weights are written into the file, and the file is run in LiteRT (XNNPACK on
    and off, 1 and 4 threads) against the model. Only then is it written, at once: on any failure, what stood
    at the path stays.

    Args:
        model: A built Keras 3 model on the TensorFlow backend, functional, sequential or subclassed; pruned
            or not.
        path: Where to write.
        data: Inputs to verify on: an array, a list, tuple or dictionary of arrays, or a data set of batches
            (x or (x, y)). None draws a few, with a warning.
        batch_size: Fix the batch of the file to this. None leaves it free where the converter can (not with
            recurrent layers).
        samples: Verify on at most so many.
        tolerance: Largest error of a float output, as a share of that output's largest absolute value.
        strict: Raise where a weight that was stored sparse makes the file wrong, instead of leaving it dense
            with that reason.

    Returns:
        Sizes, plan and verification; ``str()`` of it is a table.

    Raises:
        ExportError: The model cannot be converted, its file does not answer the same, or the path cannot be
            written.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, kernel_initializer="zeros")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export(model, f"{folder}/model.tflite", data=np.ones((2, 16)))
        >>> report.lines[0].encoding.value, report.verification.max_absolute
        ('1x4 blocks', 0.0)
    """
    check_writable(path)
    signature = signature_of(model, data)
    inputs = collect_inputs(model, signature, data, samples)
    # The file is held against the model as it was given, so that a mistake of strip shows as well.
    with precision.float32(model) as mixed:
        reference = answer(model, signature, inputs)
    plain = strip(model)
    with precision.float32(plain):
        if not plain.built:  # a copy of a subclassed model is built by its first call; its weights are there already
            plain(signature.pack([array[:1] for array in inputs.arrays]), training=False)
        converted = convert(plain, signature, batch_size)
    dense = flatbuffer.read(converted.content, "the converter's file")
    reference = replace(reference, input_names=converted.inputs, output_names=converted.outputs)
    # The paths of the model that was given are the ones that its author knows.
    names = _variable_names(plain) | _variable_names(model)
    weights = collect(dense, names=names, rows=_rows(dense, converted, reference))
    plan, content, verification = _settle(converted.content, make_plan(weights), weights, reference, tolerance, strict)
    write_atomically(path, content)
    return ExportReport(
        path=os.fspath(path),
        dense=Size.of(converted.content),
        written=Size.of(content),
        lines=plan.lines,
        verification=verification,
        notes=(*converted.notes, *_mixed_note(mixed)),
    )


def _variable_names(model: keras.Model) -> dict[Fingerprint, str]:
    return variable_names(
        (variable.path, keras.ops.convert_to_numpy(variable.value)) for variable in model.variables if variable.shape
    )


def _mixed_note(mixed: tuple[str, ...]) -> tuple[str, ...]:
    if not mixed:
        return ()
    return (
        f"computes in float32: {len(mixed)} layers in mixed precision, '{mixed[0]}' the first; "
        "TFLite has no such kernels",
    )


def _rows(model: Any, converted: Converted, reference: Reference) -> dict[tuple[int, int], int]:
    """Return the rows of each tensor as a matrix, for one sample.

    In the main graph as the runtime sees them, in the others as declared.
    """
    session = Session(converted.content, "the converter's file", delegate=False)
    count = converted.batch_size or 1
    session.run([array[:count] for array in reference.inputs.arrays], converted.inputs, converted.outputs)
    rows = {(0, index): prod(shape[:-1]) for index, shape in session.tensor_shapes().items()}
    for number, subgraph in enumerate(model.subgraphs[1:], start=1):
        for index, tensor in enumerate(subgraph.tensors):
            free = tensor.shapeSignature is not None and min(tensor.shapeSignature, default=1) < 0
            if tensor.shape is not None and not free:
                rows[number, index] = prod(int(size) for size in tensor.shape[:-1])
    return rows


def _settle(
    dense: bytes, plan: Plan, weights: list[Weight], reference: Reference, tolerance: float, strict: bool
) -> tuple[Plan, bytes, Verification]:
    """Encode and verify; where the file is wrong, find the weights that make it so and leave them dense.

    Raises:
        ExportError: The dense file is wrong too, or ``strict``.
    """
    content = encode(dense, plan, weights)
    try:
        return (
            plan,
            content,
            compare(content, reference, "the sparse file" if plan.sparse else "the dense file", tolerance),
        )
    except ExportError as error:
        if not plan.sparse:
            raise
        failure = error
    compare(dense, reference, "the dense file, before any weight was stored sparse", tolerance)
    right = [line for line in plan.sparse if _alone(dense, plan, line, weights, reference, tolerance) is None]
    wrong = [line for line in plan.sparse if line not in right]
    if strict:
        culprit = wrong[0].name if wrong else "several weights together"
        raise ExportError(
            f"weight '{culprit}'",
            "stored sparse must leave the outputs as they are",
            failure,
            "Export with strict=False to leave it dense.",
        ) from failure
    kept = right if wrong else []
    reason = f"stored sparse, the file was wrong: {failure.rule}, received {failure.received}"
    settled = plan.only(kept, reason)
    content = encode(dense, settled, weights)
    try:
        return settled, content, compare(content, reference, "the sparse file", tolerance)
    except ExportError:
        settled = plan.only([], reason)
        return settled, dense, compare(dense, reference, "the dense file", tolerance)


def _alone(
    dense: bytes, plan: Plan, line: PlanLine, weights: list[Weight], reference: Reference, tolerance: float
) -> ExportError | None:
    """Return how the file fails with this one weight stored sparse, or None where it does not."""
    try:
        compare(
            encode(dense, plan.only([line], ""), weights),
            reference,
            f"the file with '{line.name}' sparse",
            tolerance,
        )
    except ExportError as error:
        return error
    return None
