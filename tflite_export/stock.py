"""The stage that makes the dense file, by TensorFlow's own converter."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import keras

from tflite_export.errors import ExportError
from tflite_export.signature import Signature, output_names


@dataclass(frozen=True)
class Converted:
    """The dense file.

    Args:
        content: Its bytes.
        batch_size: The batch that it is fixed to, or None for a free one.
        inputs: Names of its inputs in its signature, in the order of the model's.
        outputs: Names of its outputs, likewise.
        notes: What was decided on the way, for the report.
    """

    content: bytes
    batch_size: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()


def convert(model: keras.Model, signature: Signature, batch_size: int | None = None) -> Converted:
    """Convert a plain Keras model to a dense .tflite.

    The batch stays free where the converter allows it. It is fixed to 1 for recurrent layers, whose tensor
    lists it lowers at a known size only, and where a conversion with a free batch fails.

    Args:
        model: Built; without masks.
        signature: Of the model.
        batch_size: Fix the batch to this.

    Raises:
        ExportError: Keras runs on another backend, or the converter fails.
    """
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            f"model '{model.name}'",
            "the TFLite converter needs Keras on TensorFlow",
            keras.backend.backend(),
            "Save it as .keras and export it in a process with KERAS_BACKEND=tensorflow.",
        )
    import tensorflow as tf

    if batch_size is not None:
        return _convert_at(tf, model, signature, batch_size, (f"batch fixed to {batch_size}: asked for",))
    recurrent = next((layer.path for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN)), None)
    if recurrent is not None:
        note = f"batch fixed to 1: the converter unrolls the recurrent layer '{recurrent}' at a known batch only"
        return _convert_at(tf, model, signature, 1, (note,))
    try:
        return _convert_at(tf, model, signature, None, ())
    except ExportError as free:
        note = f"batch fixed to 1: the converter failed with a free batch ({_first_line(free.received)})"
        try:
            return _convert_at(tf, model, signature, 1, (note,))
        except ExportError:
            raise free from None


def _convert_at(
    tf: Any, model: keras.Model, signature: Signature, batch: int | None, notes: tuple[str, ...]
) -> Converted:
    specs = [tf.TensorSpec((batch, *spec.shape), spec.dtype, name=spec.name) for spec in signature.inputs]
    names: list[str] = []

    def serve(*tensors: Any) -> dict[str, Any]:
        outputs = model(signature.pack(tensors), training=False)
        names[:] = output_names(outputs)
        return dict(zip(names, keras.tree.flatten(outputs), strict=True))

    archive = keras.export.ExportArchive()
    archive.track(model)
    try:
        archive.add_endpoint("serve", serve, input_signature=specs)
        with tempfile.TemporaryDirectory() as folder:
            archive.write_out(folder, verbose=False)
            content = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    except Exception as error:  # the converter raises anything from ValueError to its own ConverterError
        raise ExportError(
            f"model '{model.name}'",
            "TensorFlow's converter must take it",
            f"{type(error).__name__}: {_first_line(error)}",
            "See the operator named here; batch_size=1 may help.",
        ) from error
    return Converted(content, batch, tuple(spec.name for spec in signature.inputs), tuple(names), notes)


def _first_line(message: object) -> str:
    return str(message).strip().splitlines()[0][:300]
