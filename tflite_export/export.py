"""The stages of an export: rewrite -> convert -> plan -> encode -> verify -> write."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import keras

from keras_prune.devices import DEVICES, Device
from tflite_export.bench.tune import tune_plan
from tflite_export.convert.converter import Converted
from tflite_export.convert.memory import release
from tflite_export.convert.number_types import (
    CALIBRATION,
    FLOAT16,
    FLOAT32,
    INT8,
    NumberType,
    check_calibration,
    check_tolerance,
    resolve_number_type,
)
from tflite_export.convert.workspace import in_turn
from tflite_export.dense import make_dense, may_run_sparse
from tflite_export.edits.integer_io import make_io_integer
from tflite_export.errors import ExportError
from tflite_export.file import flatbuffer
from tflite_export.file.atomic import check_apart, check_writable, write_atomically
from tflite_export.file.c_array import write_c_array
from tflite_export.model import precision
from tflite_export.model.inputs import SAMPLES, Inputs
from tflite_export.model.reference import Reference
from tflite_export.model.shapes import Shapes, fix_sizes, fix_to_data
from tflite_export.other_runtimes import unreadable_by
from tflite_export.plan.cluster_safety import plan_for_clusters, without_dangers
from tflite_export.plan.eligibility import Weight
from tflite_export.plan.plan import Optimize, Plan, check_strict, make_plan
from tflite_export.plan.weights import Names, collect
from tflite_export.plan.zeros import lost_zeros, match_kernels, with_paths
from tflite_export.report import ExportReport, Size
from tflite_export.runtimes.opening import open_own
from tflite_export.source.loading import files_of, open_source
from tflite_export.source.source import Source
from tflite_export.targets import resolve_target
from tflite_export.tflm.mcu import check_micro
from tflite_export.verification.golden import golden_of, write_golden
from tflite_export.verification.ports import check_integer_io
from tflite_export.verification.verified_encoding import VerifiedEncoder

__all__ = ["check_places", "check_size", "export", "names_of", "weights_of"]


@in_turn
def export(
    model: keras.Model | Any,
    path: str | os.PathLike[str],
    *,
    target: str | Device | None = None,
    quantize: str | None = None,
    data: Any = None,
    optimize: Optimize = "speed",
    tune: bool = False,
    batch_size: int | None = None,
    shapes: Shapes | None = None,
    samples: int = SAMPLES,
    tolerance: float | None = None,
    golden: str | os.PathLike[str] | None = None,
    c_array: str | os.PathLike[str] | None = None,
    signature_key: str | None = None,
    strict: bool = False,
) -> ExportReport:
    """Write a model as a sparse .tflite that was run and found to answer the same.

    Masks are taken off; where the zeros of 1x1 convolutions let a phone or a browser skip them, the model is rewritten
    exactly so that they do; TensorFlow's converter makes a dense file; a plan says for each weight how it is
    stored and why; the sparse weights are written into the file; and the file is run in LiteRT (XNNPACK on
    and off, 1 and 4 threads) against the model, and where sparse kernels are on, if such a runtime is installed. Only
    then is it written, at once: on any failure, what stood at the path stays.

    Args:
        model: a built Keras 3 model on the TensorFlow backend, functional, sequential or subclassed; the path of a
            `.keras` or `.h5` file or of a SavedModel's folder; or a tf_keras model. Pruned, by this library or by
            tfmot, or not.
        path: where to write.
        target: the device it is for: "android", "ios", "arm64", "web", "x86", "mcu", or a `keras_prune.Device` of
            your own. None: no particular one; kernels are used where they keep up on x86 and ARM.
        quantize: number type: None (float32), "float16" (weights), "dynamic" (int8 weights), "int8" (weights and
            activations), "int16x8" (int8 weights, int16 activations). Inputs and outputs stay float32, except for
            devices with `integer_io` ("mcu"), where they are int8.
        data: inputs to verify on: an array, a list, tuple or dictionary of arrays, or a data set of batches
            (x or (x, y)). None draws a few, with a warning. "int8" and "int16x8" take the ranges of activations
            from them and need them.
        optimize: "speed": a weight whose sparse kernel would be slower than the dense one stays dense, or is
            made dense when the file is loaded. "size": the smallest encoding that is right, slower or not.
        tune: time the encodings of each weight on this machine instead of reading the target's table.
        batch_size: fix the batch of the file to this. None leaves it free where the model, the converter and the
            target can: a model whose inputs have a batch keeps that; with recurrent layers, and for devices
            whose runtime takes fixed sizes only ("web" and "mcu"), it is 1.
        shapes: fix sizes of inputs, by name, the batch first: `{"audio": (1, 16000, 1)}`; None in a shape leaves
            that size free. For devices of fixed sizes, those that are still free are as in the data.
        samples: verify on at most so many.
        tolerance: largest error of a float output, as a share of that output's largest absolute value; None:
            that of the number type.
        golden: also write inputs and the model's answers here, for a check on the device
            (`tflite_export.verification.golden`).
        c_array: also write the file as C source: this path with the endings .cc and .h.
        signature_key: of a SavedModel: which signature; None takes `serving_default`, or the only one.
        strict: raise where a weight that was stored sparse makes the file wrong, or its number type keeps it
            from being stored sparse, instead of leaving it dense with that reason.

    Returns:
        Sizes, plan and verification; `str()` of it is a table.

    Raises:
        ExportError: an argument is not known, the model cannot be converted, its file does not answer the same,
            or a path cannot be written.

    Warns:
        UserWarning: an output is far from the model's, though within the tolerance; inputs were drawn.

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
    _check_choices(device, kind, data, optimize, tune, tolerance)
    check_places({"the model": files_of(model)}, path, golden, c_array)
    source = open_source(model, signature_key)
    check_size(((name, values.shape) for name, values in source.variables()), kind)
    signature, fixed = fix_sizes(source.signature(data), device, batch_size, shapes)
    collected = source.inputs(signature, data, max(samples, CALIBRATION) if kind.calibrated else samples)
    signature, as_given = fix_to_data(signature, device, collected)
    inputs = Inputs(tuple(array[:samples] for array in collected.arrays), collected.drawn)
    # The file is held against the model as it was given, so that a mistake of strip or of a rewrite shows as well.
    reference = source.answer(signature, inputs)
    if signature.batch is None and reference.batch not in (None, 1):
        signature = replace(signature, batch=reference.batch)
        fixed += (f"batch fixed to {reference.batch}: the model answers that many samples, and not a single one",)
    names = names_of(source, kind)
    size = 4 * source.model.count_params() if source.model is not None else 0
    release(size)
    dense = make_dense(source, signature, kind, collected, device)
    converted = dense.converted
    reference = replace(reference, input_names=converted.inputs, output_names=converted.outputs)
    release(size)
    matches = match_kernels(dense.kernels, found := weights_of(converted, names, reference))
    weights = with_paths(found, matches)
    lost = tuple(
        f"the converter lost {count} zeros of '{name}' when it folded it" for name, count in lost_zeros(matches).items()
    )
    plan, runs_sparse = _plan(converted, weights, device, kind, optimize)
    if strict:
        check_strict(plan, weights)
    if tune:
        tuned = tune_plan(converted.file, plan, weights, device, reference)
        # It knows what is fast here, not what would be wrong elsewhere.
        plan, prediction = without_dangers(tuned, converted.file.model)
        runs_sparse = prediction.on and may_run_sparse(device, kind)
    encoder = VerifiedEncoder(converted.file, weights, reference, device, kind, tolerance, strict, runs_sparse)
    made = encoder.encode(plan)
    file = made.file
    micro, named = None, dict(zip(reference.input_names, inputs.arrays, strict=True))
    if device.integer_io and kind.calibrated:
        floats, (file, _) = file, file.edited(make_io_integer)
        check_integer_io(file, floats, named)
    if "micro" in device.stands_in:
        micro = check_micro(file, named, full_int8=device.integer_io and kind is INT8)
    if golden is not None:
        write_golden(golden, golden_of(reference, kind.tolerance if tolerance is None else tolerance))
    if c_array is not None:
        write_c_array(file.content, c_array)
    write_atomically(path, file.content)
    for text in made.verification.warnings:
        warnings.warn(text, UserWarning, stacklevel=3)  # in_turn lies between
    return ExportReport(
        path=os.fspath(path),
        dense=Size(converted.file.content),
        written=Size(file.content),
        lines=made.plan.lines,
        verification=made.verification,
        notes=(*source.notes, *fixed, *as_given, *converted.notes, *dense.notes, *lost, *_mixed_notes(source)),
        target=device.name,
        quantize=kind.name,
        changes=dense.changes,
        sparse_run=made.sparse_run,
        micro=micro,
        unreadable_by=unreadable_by(file),
    )


def _check_choices(
    target: Device, kind: NumberType, data: Any, optimize: str, tune: bool, tolerance: float | None
) -> None:
    """Refuse choices that are not known or do not go together.

    Raises:
        ExportError: with the first of them.
    """
    if optimize not in ("speed", "size"):
        raise ExportError("optimize", "must be 'speed' or 'size'", repr(optimize), "Choose one of these.")
    check_tolerance(tolerance)
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
            f"this one, where {[name for name, device in DEVICES.items() if device.runs_here]} can be timed",
            "Leave tune=False to read the target's table.",
        )
    check_calibration(kind, data)


def check_places(
    inputs: Mapping[str, Any],
    path: str | os.PathLike[str],
    golden: str | os.PathLike[str] | None = None,
    c_array: str | os.PathLike[str] | None = None,
) -> None:
    """Refuse places that cannot be written, or of which one would be written over another or over what is read.

    Args:
        inputs: what is read, by its name in messages: a path, or a list of paths that belong together.
        path: of the file.
        golden: of the golden file.
        c_array: of the C source, whose endings are ours.

    Raises:
        ExportError: with the first of them.
    """
    for place in (path, golden, c_array):
        if place is not None:
            check_writable(place)
    outputs = {"path": path, "golden": golden}
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


def names_of(source: Source, kind: NumberType) -> Names:
    """Return the names of a model's variables, as a file of a number type will hold them."""
    return Names.of(source.variables(), float16=kind is FLOAT16, sums=kind.weight_bytes == 1)


def weights_of(converted: Converted, names: Names, reference: Reference) -> list[Weight]:
    """Return the weights of the dense file."""
    return collect(converted.file.model, names=names, rows=_rows(converted, reference))


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


def _rows(converted: Converted, reference: Reference) -> dict[tuple[int, int], int]:
    """Return the rows of each tensor as a matrix, for one sample.

    In the main graph as the runtime sees them, in the others as declared.
    """
    session = open_own(converted.file, converted.file.subject, delegate=False)
    count = converted.batch_size or reference.batch or 1
    session.run([array[:count] for array in reference.inputs.arrays], converted.inputs, converted.outputs, count)
    rows = {(0, index): prod(shape[:-1]) for index, shape in session.tensor_shapes().items()}
    for number, subgraph in enumerate(converted.file.model.subgraphs[1:], start=1):
        for index, tensor in enumerate(subgraph.tensors):
            free = tensor.shapeSignature is not None and min(tensor.shapeSignature, default=1) < 0
            if tensor.shape is not None and not free:
                rows[number, index] = prod(int(size) for size in tensor.shape[:-1])
    return rows


def _plan(
    converted: Converted, weights: list[Weight], device: Device, kind: NumberType, optimize: Optimize
) -> tuple[Plan, bool]:
    """Return the plan, and whether XNNPACK's sparse inference will be on."""
    if not device.densify:
        return make_plan(weights, device, optimize=optimize), False
    # A file for a PC, where sparse inference is off, may get to a phone all the same.
    plan, found = plan_for_clusters(converted.file.model, weights, device, optimize)
    return plan, found.on and may_run_sparse(device, kind)
