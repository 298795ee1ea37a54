"""The stage that makes the dense file, by TensorFlow's own converter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras

from keras_prune.keras_seam import converter_of, layers_in, spare_copies
from tflite_export.convert.memory import release
from tflite_export.convert.number_types import FLOAT32, NumberType, batches, check_loops, configure
from tflite_export.convert.workspace import temporary_folder
from tflite_export.errors import ExportError
from tflite_export.file.integrity import text
from tflite_export.file.tflite_file import Change, TFLiteFile
from tflite_export.model import precision
from tflite_export.model.fresh_state import fresh_state
from tflite_export.model.inputs import Inputs
from tflite_export.model.reasons import operators_without_kernel, reason_of
from tflite_export.model.signature import Signature, output_names

__all__ = ["SUBJECT", "Converted", "convert", "named_errors", "share_constants"]

SUBJECT = "the converter's file"
"""What errors call it."""


@dataclass(frozen=True)
class Converted:
    """The dense file.

    Args:
        file: it.
        batch_size: the batch that it is fixed to, or None for a free one.
        inputs: names of its inputs in its signature, in the order of the model's.
        outputs: names of its outputs, likewise.
        notes: what was decided on the way, for the report.
    """

    file: TFLiteFile
    batch_size: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()


def convert(
    make: Callable[[], keras.Model],
    signature: Signature,
    batch_size: int | None = None,
    kind: NumberType = FLOAT32,
    calibration: Inputs | None = None,
) -> Converted:
    """Convert a plain Keras model to a dense .tflite.

    The batch stays free where the signature leaves it so and the converter allows it. It is fixed to 1 for recurrent
    layers, whose tensor lists it lowers at a known size only, and where a conversion with a free batch fails.

    Args:
        make: returns the model, built and without masks. It is let go before the converter runs, which needs
            several times its memory.
        signature: of the model.
        batch_size: fix the batch to this; None: to the signature's.
        kind: number type of the file.
        calibration: samples for the ranges of activations, where the number type needs them.

    Raises:
        ExportError: Keras runs on another backend, the converter fails, or would crash.
    """
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            "the model",
            "the TFLite converter needs Keras on TensorFlow",
            keras.backend.backend(),
            "Save it as .keras and export it in a process with KERAS_BACKEND=tensorflow.",
        )

    made = [make()]
    recurrent = next((layer.path for layer in layers_in(made[0]) if isinstance(layer, keras.layers.RNN)), None)

    def convert_at(batch: int | None, notes: tuple[str, ...]) -> Converted:
        return _convert_at(lambda: made.pop() if made else make(), signature, batch, notes, kind, calibration)

    batch_size = signature.batch if batch_size is None else batch_size
    if batch_size is not None:
        return convert_at(batch_size, ())
    if recurrent is not None:
        note = f"batch fixed to 1: the converter unrolls the recurrent layer '{recurrent}' at a known batch only"
        return convert_at(1, (note,))
    try:
        return convert_at(None, ())
    except ExportError as free:
        note = f"batch fixed to 1: the converter failed with a free batch ({free.received})"
        try:
            return convert_at(1, (note,))
        except ExportError:
            raise free from None


def _convert_at(
    make: Callable[[], keras.Model],
    signature: Signature,
    batch: int | None,
    notes: tuple[str, ...],
    kind: NumberType,
    calibration: Inputs | None,
) -> Converted:
    input_names = tuple(spec.name for spec in signature.inputs)

    def samples() -> Any:
        assert calibration is not None  # asked for by number types that need it only
        return batches(calibration, input_names, batch)

    with temporary_folder() as folder:
        names, size = _save(make(), folder, signature, batch, kind)
        release(size)
        with named_errors(signature):
            file = TFLiteFile(_run_converter(folder, kind, samples), SUBJECT)
    release(size)
    # The converter shares equal constants of calibrated files itself.
    if not kind.calibrated:
        file, _ = file.edited(share_constants)
    return Converted(file, batch, input_names, names, notes)


def _save(
    model: keras.Model, folder: str, signature: Signature, batch: int | None, kind: NumberType
) -> tuple[tuple[str, ...], int]:
    """Write a model as a SavedModel for a batch; return the names of its outputs, and the bytes of its weights.

    Raises:
        ExportError: TensorFlow cannot trace it.
    """
    import tensorflow as tf

    specs = [tf.TensorSpec((batch, *spec.shape), spec.dtype, name=spec.name) for spec in signature.inputs]
    names: list[str] = []

    def serve(*tensors: Any) -> dict[str, Any]:
        outputs = model(signature.pack(tensors), training=False)
        names[:] = output_names(outputs)
        return dict(zip(names, keras.tree.flatten(outputs), strict=True))

    with precision.float32(model), fresh_state(model), named_errors(signature):
        if kind.calibrated:
            check_loops(kind, _operations(tf.function(serve).get_concrete_function(*specs)), f"model '{model.name}'")
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", serve, input_signature=specs)
        archive.write_out(folder, verbose=False)
    return tuple(names), 4 * model.count_params()


def _run_converter(folder: str, kind: NumberType, samples: Callable[[], Any]) -> bytes:
    """Return what TensorFlow's converter makes of a SavedModel."""
    converter = converter_of(folder)
    configure(converter, kind, samples)
    spare_copies(converter, calibrated=kind.calibrated)
    content: bytes = converter.convert()
    return content


@contextmanager
def named_errors(signature: Signature, subject: str = "the model") -> Iterator[None]:
    """Turn what the converter raises, anything from ValueError to its own ConverterError, into an ExportError.

    Args:
        signature: of the model: where it has free sizes, fixing them is a way out.
        subject: what to call the model.
    """
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        operators = operators_without_kernel(error)
        if operators:
            raise ExportError(
                subject,
                "TFLite must have an operator for each of TensorFlow's",
                f"none for {', '.join(operators)}",
                "Write that part with other operations, or end the model before it and compute it in the program.",
            ) from error
        reason = reason_of(error)
        raise ExportError(
            subject, "must be accepted by TensorFlow's converter", reason, _way_out(reason, signature)
        ) from error


def _way_out(reason: str, signature: Signature) -> str:
    if "scope name" in reason:
        return "Name layers with ASCII letters, digits, and . _ - > / only."
    if signature.free:
        sizes = {spec.name: (signature.batch, *spec.shape) for spec in signature.free}
        return f"Give numbers in place of the free sizes {sizes}: shapes={{...}}."
    return "Change or leave out what is named here."


def share_constants(model: Any) -> tuple[Change, ...]:
    """Let tensors of equal constants share one buffer, and bring all constants into the flatbuffer, in place.

    Args:
        model: the `ModelT` of a file that TensorFlow's converter wrote with its constants behind the flatbuffer.

    Returns:
        One change for each constant that was stored twice, and one for the constants' new place.
    """
    moved = [entry for entry in model.metadata or [] if entry.name == b"buffer_location"]
    model.metadata = [entry for entry in model.metadata or [] if entry.name != b"buffer_location"]
    changes = [Change("share", text(entry.name), "constants moved into the flatbuffer") for entry in moved]
    kept: dict[tuple[Any, ...], int] = {}
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors or []:
            data = model.buffers[tensor.buffer].data
            if data is None or len(data) == 0:
                continue
            shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
            key = (tensor.type, shape, hashlib.sha256(data).digest())
            first = kept.setdefault(key, tensor.buffer)
            if first != tensor.buffer:
                model.buffers[tensor.buffer].data = None
                tensor.buffer = first
                changes.append(Change("share", text(tensor.name), "stored once"))
    return tuple(changes)


def _operations(function: Any) -> set[str]:
    """Return the kinds of operations in a concrete function and all that it calls."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
    return {node.op for node in nodes}
