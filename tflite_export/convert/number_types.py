"""The number types that a file may have, and how TensorFlow's converter is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.file.flatbuffer import operator_name
from tflite_export.model.inputs import Inputs
from tflite_export.runtimes.sessions import in_batches

__all__ = [
    "CALIBRATION",
    "DYNAMIC",
    "FLOAT16",
    "FLOAT32",
    "INT8",
    "INT16X8",
    "NUMBER_TYPES",
    "NumberType",
    "batches",
    "check_calibration",
    "check_loops",
    "check_tolerance",
    "configure",
    "number_type_of",
    "resolve_number_type",
]

CALIBRATION = 128
"""Samples that ranges of activations are taken from, at most; the converter's guide asks for 100 to 500."""


@dataclass(frozen=True)
class NumberType:
    """A number type of weights and activations.

    Args:
        name: what `quantize` calls it; None for float32.
        weight_bytes: bytes of a weight.
        calibrated: ranges of activations are needed: a representative data set.
        tolerance: largest error against the Keras model, as a share of an output's scale.
        encoding_tolerance: largest difference of the sparse file from the dense one of the same type, likewise.
    """

    name: str | None
    weight_bytes: int
    calibrated: bool
    tolerance: float
    encoding_tolerance: float

    def __str__(self) -> str:
        """Return the name."""
        return self.name or "float32"


FLOAT32 = NumberType(None, 4, False, 1e-4, 1e-4)
FLOAT16 = NumberType("float16", 2, False, 1e-2, 1e-4)
DYNAMIC = NumberType("dynamic", 1, False, 0.1, 1e-4)
INT8 = NumberType("int8", 1, True, 0.15, 0.04)
INT16X8 = NumberType("int16x8", 1, True, 0.15, 1e-4)
"""The number types.

Against the Keras model, the error is what quantization itself costs, which is the user's choice; the tolerance
tells a lossy file from a broken one. A weight in float16 is rounded to 2**-11 of itself, which is seen as 2e-4 to
5e-4 of an output's scale in one to three layers; 1e-2 leaves room for a hundred. An int8 weight or activation is
rounded to 1/254 of its range: 4e-3 to 2e-2 in one to three layers, growing with the root of their number; a broken
kernel was never nearer than 0.5. int16x8 has int8 weights, whose error the gates of a recurrent layer enlarge.

Against the dense file of the same type, in the same runtime, only the storage differs: bit for bit the same behind
a DENSIFY, and 1e-4 as for float32 where a float kernel adds in another order. The int8 kernel for 1x16 blocks
rounds its sums twice where XNNPACK rounds them once: a step of 1/255 of the range in a layer, 7.8e-3 of the scale
of an output that uses all of it; 0.04 are five such steps.
"""

NUMBER_TYPES = {str(kind): kind for kind in (FLOAT32, FLOAT16, DYNAMIC, INT8, INT16X8)}


def resolve_number_type(quantize: str | None) -> NumberType:
    """Return a number type by its name; None is float32.

    Raises:
        ExportError: the name is not known.

    Example:
        >>> resolve_number_type("int8").calibrated, str(resolve_number_type(None))
        (True, 'float32')
    """
    found = FLOAT32 if quantize is None else NUMBER_TYPES.get(quantize)
    if found is None or (quantize is not None and found is FLOAT32):
        known = [None, *(name for name in NUMBER_TYPES if name != "float32")]
        raise ExportError("quantize", f"must be one of {known}", repr(quantize), "Choose one of these.")
    return found


def number_type_of(model: Any) -> NumberType:
    """Return the number type of a file, by what its operators read and compute.

    Args:
        model: the file's `ModelT`.
    """
    names = schema.TensorType
    computed: set[int] = set()
    read: set[int] = set()
    for subgraph in model.subgraphs:
        for operator in subgraph.operators or []:
            if operator_name(model, operator) in ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MUL"):
                computed |= {subgraph.tensors[index].type for index in operator.outputs}
        read |= {
            tensor.type
            for tensor in subgraph.tensors or []
            if model.buffers[tensor.buffer].data is not None and tensor.shape is not None and len(tensor.shape) > 1
        }
    if names.INT16 in computed:
        return INT16X8
    if names.INT8 in computed:
        return INT8
    if names.INT8 in read:
        return DYNAMIC
    return FLOAT16 if names.FLOAT16 in read else FLOAT32


def check_tolerance(tolerance: float | None) -> None:
    """Refuse a tolerance that is no share of an output's scale.

    Raises:
        ExportError: it is negative, infinite or not a number.
    """
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise ExportError(
            "tolerance", "must be a finite share of an output's scale, at least 0", tolerance, "Leave it out, or 1e-3."
        )


def check_calibration(kind: NumberType, data: Any) -> None:
    """Refuse a number type that needs a representative data set without one.

    Raises:
        ExportError: it needs data, and there are none.
    """
    if kind.calibrated and data is None:
        raise ExportError(
            f"quantize='{kind}'",
            "needs a representative data set for the ranges of activations",
            "data=None",
            "Pass data=..., a hundred real inputs or more.",
        )


def check_loops(kind: NumberType, operations: set[str], subject: str) -> None:
    """Refuse to quantize the activations of a model with a loop: the converter crashes the process.

    Seen with TensorFlow 2.21, LSTM, GRU, SimpleRNN and RNN(GRUCell): a segmentation fault while calibrating the
    WHILE that they become, most of the time, and a file the other times.

    Args:
        kind: the number type.
        operations: kinds of the TensorFlow operations of the graph.
        subject: the model.

    Raises:
        ExportError: it has a loop.
    """
    loops = sorted(operations & {"While", "StatelessWhile"})
    if kind.calibrated and loops:
        raise ExportError(
            subject,
            f"quantize='{kind}' takes no loops: TensorFlow's calibration of one ends in a segmentation fault",
            f"a graph with {loops[0]} (a recurrent layer)",
            "Build its recurrent layers with unroll=True, or use quantize='dynamic' or 'float16'.",
        )


def configure(converter: Any, kind: NumberType, calibration: Callable[[], Iterator[dict[str, NDArray[Any]]]]) -> None:
    """Tell TensorFlow's converter the number type. Inputs and outputs of the file stay float32.

    Args:
        converter: a `tf.lite.TFLiteConverter`.
        kind: the number type.
        calibration: yields batches by input name.
    """
    import tensorflow as tf

    if kind is FLOAT32:
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind is FLOAT16:
        converter.target_spec.supported_types = [tf.float16]
    if kind.calibrated:
        converter.representative_dataset = calibration
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8
            if kind is INT8
            else tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]


def batches(inputs: Inputs, names: tuple[str, ...], batch: int | None) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield samples by input name, in batches of the file's size, or one by one if that is free.

    A last batch that is not full is filled up with its last sample.
    """
    for chunk in in_batches(inputs.arrays, batch or 1):
        yield dict(zip(names, chunk, strict=True))
