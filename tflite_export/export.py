"""The stages of an export: rewrite -> convert -> plan -> encode -> verify -> write."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras

from keras_prune.devices import Device
from tflite_export.convert.memory import release
from tflite_export.convert.number_types import INT8, NumberType, resolve_number_type
from tflite_export.convert.workspace import in_turn
from tflite_export.edits.integer_io import make_io_integer
from tflite_export.edits.metadata import add_metadata, summarize
from tflite_export.edits.names import shorten_names
from tflite_export.errors import ExportError
from tflite_export.file.atomic import write_atomically
from tflite_export.file.c_array import write_c_array
from tflite_export.file.tflite_file import Edit
from tflite_export.model.inputs import SAMPLES
from tflite_export.model.shapes import Shapes
from tflite_export.other_runtimes import unreadable_by
from tflite_export.plan.plan import Optimize, PlanLine
from tflite_export.report import ExportReport, Size
from tflite_export.source.loading import files_of, open_source
from tflite_export.stages.checks import check_choices, check_places, check_size
from tflite_export.stages.dense_file import make_dense_file
from tflite_export.stages.planned import names_of, plan_file
from tflite_export.stages.prepared import prepare
from tflite_export.targets import resolve_target
from tflite_export.tflm.flash_plan import FORMS
from tflite_export.tflm.mcu import check_micro
from tflite_export.tflm.storing import store
from tflite_export.vela.compiling import require_vela
from tflite_export.vela.report import check_npu
from tflite_export.verification.golden import golden_of, write_golden
from tflite_export.verification.ports import check_integer_io
from tflite_export.verification.verified_encoding import VerifiedEncoder

__all__ = ["export"]


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
    arena: int | None = None,
    records: Sequence[str] | None = None,
    golden: str | os.PathLike[str] | None = None,
    c_array: str | os.PathLike[str] | None = None,
    compiled: str | os.PathLike[str] | None = None,
    signature_key: str | None = None,
    strict: bool = False,
) -> ExportReport:
    """Write a model as a sparse .tflite, verified to answer as the model does.

    Masks are taken off; where the zeros of 1x1 convolutions let a phone or a browser skip them, the model is rewritten
    exactly so that they do; TensorFlow's converter makes a dense file; a plan says for each weight how it is
    stored and why; the sparse weights are written into the file; and the file is run in LiteRT (XNNPACK on
    and off, 1 and 4 threads) against the model, and where sparse kernels are on, if such a runtime is installed. Only
    then is it written, at once: on any failure, what was at the path stays.

    Args:
        model: a built Keras 3 model on the TensorFlow backend, functional, sequential or subclassed; the path of a
            `.keras` or `.h5` file or of a SavedModel's folder; or a tf_keras model. Pruned, by this library or by
            tfmot, or not.
        path: where to write.
        target: the device it is for: "android", "ios", "arm64", "web", "x86", "mcu", "ethos-u55",
            "ethos-u65", "ethos-u85", or a `keras_prune.Device` of your own. None: no particular one; kernels are used
            where they keep up on x86 and ARM.
        quantize: number type: None (float32), "float16" (weights), "dynamic" (int8 weights), "int8" (weights and
            activations), "int16x8" (int8 weights, int16 activations). Inputs and outputs stay float32, except for
            devices with `integer_io` ("mcu", "ethos-u55"), where they are int8.
        data: inputs to verify on: an array, a list, tuple or dictionary of arrays, or a data set of batches
            (x or (x, y)). None draws a few, with a warning. "int8" and "int16x8" take the ranges of activations
            from them and need them.
        optimize: "speed": a weight whose sparse kernel would be slower than the dense one stays dense, or is
            made dense when the file is loaded. "size": the smallest encoding that is right, slower or not.
            "portable": dense weights and fixed sizes, since no sparse form is read by OpenVINO, TensorFlow Lite
            Micro and Vela alike; the batch is 1 unless given.
        tune: time the encodings of each weight on this machine instead of reading the target's table.
        batch_size: fix the batch of the file to this. None leaves it free where the model, the converter and the
            target can: a model whose inputs have a batch keeps that; with recurrent layers, and for devices
            whose runtime takes fixed sizes only ("web" and "mcu"), it is 1.
        shapes: fix sizes of inputs, by name, the batch first: `{"audio": (1, 16000, 1)}`; None in a shape leaves
            that size free. For devices of fixed sizes, those that are still free are as in the data.
        samples: verify on at most so many.
        tolerance: largest error of a float output, as a share of that output's largest absolute value; None:
            that of the number type.
        arena: for microcontrollers: bytes of RAM that TensorFlow Lite Micro may take. A weight that is decoded in each
            run needs room there; one that would not fit stays dense, with that reason. None: any.
        records: for microcontrollers: the forms in which weights may be stored for TensorFlow Lite Micro to decode, of
            "bitmask", "table" (a look-up table of few values) and "huffman"; the smallest of them is taken. A
            look-up table is decoded the fastest, a Huffman code takes about twice as long as a bitmask. None: all.
        golden: also write inputs and the model's answers here, for a check on the device
            (`tflite_export.verification.golden`).
        c_array: also write the file as C source: this path with the endings .cc and .h.
        compiled: for a device with an NPU, also write the file as Vela compiles it, which is what its flash holds.
        signature_key: of a SavedModel: which signature; None takes `serving_default`, or the only one.
        strict: raise where a weight that was stored sparse makes the file wrong, or its number type keeps it
            from being stored sparse, instead of leaving it dense with that reason.

    Returns:
        Sizes, plan and verification; `str()` of it is a table.

    Raises:
        ExportError: an argument is not known, the model cannot be converted, its file does not answer the same,
            an NPU's compiler refuses it, or a path cannot be written.
        ImportError: what checks files for the device is not installed; the message names the command.

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
    if optimize == "portable":
        fixed = device.fixed_sizes or "LiteRT.js and TensorFlow Lite Micro know fixed sizes only"
        # Nor is the model rewritten for sparse inference, which dense weights never meet.
        device = replace(device, fixed_sizes=fixed, decode=False, clusters=None)
    check_choices(device, kind, data, optimize, tune, tolerance, arena, strict, records)
    check_places({"the model": files_of(model)}, path, golden, c_array, compiled)
    if device.npu is not None:
        require_vela()
    elif compiled is not None:
        raise ExportError(
            "compiled",
            "needs a target with an NPU",
            f"target '{device.name}'",
            "Pass target='ethos-u55', or leave it out.",
        )
    source = open_source(model, signature_key).in_numbers(kind)
    check_size(((name, values.shape) for name, values in source.variables()), kind)
    prepared = prepare(source, data, device, kind, batch_size, shapes, samples)
    names = names_of(source, kind)
    size = 4 * source.model.count_params() if source.model is not None else 0
    release(size)
    dense = make_dense_file(source, prepared.signature, kind, prepared.samples, device)
    converted = dense.converted
    reference = replace(prepared.reference, input_names=converted.inputs, output_names=converted.outputs)
    release(size)
    planned = plan_file(dense, names, reference, device, kind, optimize=optimize, strict=strict, tune=tune)
    encoder = VerifiedEncoder(
        converted.file, planned.weights, reference, device, kind, tolerance, strict, planned.runs_sparse
    )
    made = encoder.encode(planned.plan)
    lines, micro, dense_micro = made.plan.lines, None, None
    edits: list[Edit] = [make_io_integer] if device.integer_io and kind.calibrated else []
    if "micro" in device.stands_in:
        edits.append(shorten_names)
    file, _ = made.file.edited(*edits)
    if make_io_integer in edits:
        check_integer_io(file, made.file, reference.named_inputs)
    if device.decode:
        dense_micro = file
        forms = tuple(FORMS[name] for name in dict.fromkeys(records or FORMS))
        more = partial(_metadata, device, kind)
        file, lines = store(file, planned.weights, lines, reference.named_inputs, arena=arena, forms=forms, more=more)
    if "micro" in device.stands_in:
        micro = check_micro(
            file, reference.named_inputs, full_int8=device.integer_io and kind is INT8, dense=dense_micro
        )
    npu = None if device.npu is None else check_npu(file, device, path=compiled)
    if golden is not None:
        write_golden(golden, golden_of(reference, kind.tolerance if tolerance is None else tolerance))
    if c_array is not None:
        write_c_array(file.content, c_array)
    if npu is not None and compiled is not None:
        write_atomically(compiled, npu.compiled.content)
    write_atomically(path, file.content)
    for text in made.verification.warnings:
        warnings.warn(text, UserWarning, stacklevel=3)  # in_turn lies between
    return ExportReport(
        path=os.fspath(path),
        dense=Size((converted.file if dense_micro is None else dense_micro).content),
        written=Size(file.content),
        lines=lines,
        verification=made.verification,
        notes=(*prepared.notes, *converted.notes, *dense.notes, *planned.notes),
        target=device.name,
        quantize=kind.name,
        changes=dense.changes,
        sparse_run=made.sparse_run,
        micro=micro,
        npu=npu,
        unreadable_by=unreadable_by(file),
    )


def _metadata(device: Device, kind: NumberType, lines: tuple[PlanLine, ...]) -> Edit:
    """Return the edit that writes how the weights of a file are stored."""
    summary = summarize(lines, target=device.name, quantize=kind.name, detail=device.lists_weights)
    return partial(add_metadata, summary=summary)
