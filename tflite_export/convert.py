"""The stages of an export: strip -> convert -> plan -> encode -> verify -> write."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
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
from tflite_export.inputs import SAMPLES, Inputs, collect_inputs
from tflite_export.memory import release
from tflite_export.plan import Optimize, Plan, PlanLine, check_strict, make_plan
from tflite_export.quantize import (
    CALIBRATION,
    FLOAT16,
    FLOAT32,
    NumberType,
    check_calibration,
    resolve_number_type,
)
from tflite_export.report import ExportReport, Size
from tflite_export.runtime import Session
from tflite_export.signature import signature_of
from tflite_export.stock import Converted, convert
from tflite_export.targets import Target, resolve_target
from tflite_export.tune import tune_plan
from tflite_export.verify import Reference, Verification, answer, answers, compare
from tflite_export.weights import Names, collect


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    target: str | Target | None = None,
    quantize: str | None = None,
    data: Any = None,
    optimize: Optimize = "speed",
    tune: bool = False,
    batch_size: int | None = None,
    samples: int = SAMPLES,
    tolerance: float | None = None,
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
        target: The device it is for: "android", "ios", "arm64", "web", "x86", "mcu" or a
            :class:`~tflite_export.targets.Target`. None: no particular one; kernels are used where they keep up
            on x86 and ARM.
        quantize: Number type: None (float32), "float16" (weights), "dynamic" (int8 weights), "int8" (weights and
            activations), "int16x8" (int8 weights, int16 activations). Inputs and outputs stay float32.
        data: Inputs to verify on: an array, a list, tuple or dictionary of arrays, or a data set of batches
            (x or (x, y)). None draws a few, with a warning. "int8" and "int16x8" take the ranges of activations
            from them and need them.
        optimize: "speed": a weight whose sparse kernel would be slower than the dense one stays dense, or is
            made dense when the file is loaded. "size": the smallest encoding that is right, slower or not.
        tune: Time the encodings of each weight on this machine instead of reading the target's table.
        batch_size: Fix the batch of the file to this. None leaves it free where the converter can (not with
            recurrent layers).
        samples: Verify on at most so many.
        tolerance: Largest error of a float output, as a share of that output's largest absolute value; None:
            that of the number type.
        strict: Raise where a weight that was stored sparse makes the file wrong, or its number type keeps it
            from being stored sparse, instead of leaving it dense with that reason.

    Returns:
        Sizes, plan and verification; ``str()`` of it is a table.

    Raises:
        ExportError: An argument is not known, the model cannot be converted, its file does not answer the same,
            or the path cannot be written.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, kernel_initializer="zeros")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export(model, f"{folder}/model.tflite", data=np.ones((2, 16)))
        >>> report.lines[0].encoding.value, report.verification.max_absolute
        ('1x4 blocks', 0.0)
    """
    device, kind = resolve_target(target), resolve_number_type(quantize)
    _check_choices(device, kind, data, optimize, tune)
    check_writable(path)
    check_size(((variable.path, tuple(variable.shape)) for variable in model.variables), kind)
    signature = signature_of(model, data)
    collected = collect_inputs(model, signature, data, max(samples, CALIBRATION) if kind.calibrated else samples)
    inputs = Inputs(tuple(array[:samples] for array in collected.arrays), collected.drawn)
    # The file is held against the model as it was given, so that a mistake of strip shows as well.
    with precision.float32(model) as mixed:
        reference = answer(model, signature, inputs)

    def plain() -> keras.Model:
        stripped = strip(model)
        if not stripped.built:  # a copy of a subclassed model is built by its first call; its weights are there already
            with precision.float32(stripped):
                stripped(signature.pack([array[:1] for array in inputs.arrays]), training=False)
        return stripped

    # The paths of the model that was given are the ones that its author knows.
    names = names_of(plain(), kind) | names_of(model, kind)
    size = 4 * model.count_params()
    release(size)
    converted = convert(plain, signature, batch_size, kind, collected)
    reference = replace(reference, input_names=converted.inputs, output_names=converted.outputs)
    release(size)
    weights = weights_of(converted, names, reference)
    plan = make_plan(weights, device, optimize=optimize)
    if strict:
        check_strict(plan, weights)
    if tune:
        plan = tune_plan(converted.content, plan, weights, device, reference)
    plan, content, verification = _settle(converted.content, plan, weights, reference, kind, tolerance, strict)
    write_atomically(path, content)
    return ExportReport(
        path=os.fspath(path),
        dense=Size(converted.content),
        written=Size(content),
        lines=plan.lines,
        verification=verification,
        notes=(*converted.notes, *_mixed_note(mixed)),
        target=device.name,
        quantize=kind.name,
    )


def _check_choices(target: Target, kind: NumberType, data: Any, optimize: str, tune: bool) -> None:
    """Refuse choices that are not known or do not go together.

    Raises:
        ExportError: With the first of them.
    """
    if optimize not in ("speed", "size"):
        raise ExportError("optimize", "must be 'speed' or 'size'", repr(optimize), "Choose one of these.")
    if target.quantize is not None and kind.name not in target.quantize:
        raise ExportError(
            f"target '{target.name}'",
            f"takes quantize={' or '.join(map(repr, target.quantize))}",
            repr(kind.name),
            "Pass that, and data for the ranges of activations.",
        )
    if tune and not target.runs_here:
        raise ExportError(
            f"tune=True for target '{target.name}'",
            "needs a machine of that kind",
            f"this one, where {[t for t in ('x86', 'arm64') if resolve_target(t).runs_here]} can be timed",
            "Leave tune=False to read the target's table.",
        )
    check_calibration(kind, data)


def check_size(variables: Iterable[tuple[str, tuple[int, ...]]], kind: NumberType = FLOAT32) -> None:
    """Refuse a model whose weights exceed what a .tflite can hold, before anything is computed.

    Args:
        variables: (path, shape) of each.
        kind: Number type of the file.

    Raises:
        ExportError: They do.

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


def names_of(model: keras.Model, kind: NumberType) -> Names:
    """Return the names of a model's variables, as a file of a number type will hold them."""
    return Names.of(
        ((variable.path, keras.ops.convert_to_numpy(variable.value)) for variable in model.variables if variable.shape),
        float16=kind is FLOAT16,
        sums=kind.weight_bytes == 1,
    )


def weights_of(converted: Converted, names: Names, reference: Reference) -> list[Weight]:
    """Return the weights of the dense file."""
    dense = flatbuffer.read(converted.content, "the converter's file")
    return collect(dense, names=names, rows=_rows(dense, converted, reference))


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
    dense: bytes,
    plan: Plan,
    weights: list[Weight],
    reference: Reference,
    kind: NumberType,
    tolerance: float | None,
    strict: bool,
) -> tuple[Plan, bytes, Verification]:
    """Encode and verify; where the file is wrong, find the weights that make it so and leave them dense.

    Raises:
        ExportError: The dense file is wrong too, or ``strict``.
    """
    # In float32 the model itself is the sharpest measure; a quantized file is held against its dense twin as well.
    twin = answers(dense, reference, "the dense file") if kind is not FLOAT32 and plan.sparse else None

    def check(content: bytes, subject: str) -> Verification:
        return compare(content, reference, subject, kind, tolerance, twin if content is not dense else None)

    if not plan.sparse:
        return plan, dense, check(dense, "the dense file")
    content = encode(dense, plan, weights)
    try:
        return plan, content, check(content, "the sparse file")
    except ExportError as error:
        failure = error
    check(dense, "the dense file, before any weight was stored sparse")
    right = [line for line in plan.sparse if _alone(dense, plan, line, weights, check) is None]
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
        return settled, content, check(content, "the sparse file")
    except ExportError:
        return plan.only([], reason), dense, check(dense, "the dense file")


def _alone(
    dense: bytes, plan: Plan, line: PlanLine, weights: list[Weight], check: Callable[[bytes, str], Verification]
) -> ExportError | None:
    """Return how the file fails with this one weight stored sparse, or None where it does not."""
    try:
        check(encode(dense, plan.only([line], ""), weights), f"the file with '{line.name}' sparse")
    except ExportError as error:
        return error
    return None
