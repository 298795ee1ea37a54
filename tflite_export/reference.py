"""What a model answers to inputs: what its file is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.inputs import Inputs
from tflite_export.runtime import LARGEST_BATCH
from tflite_export.signature import Signature, output_names


@dataclass(frozen=True, eq=False)
class Reference:
    """What the Keras model answers to the inputs.

    Args:
        inputs: The samples.
        outputs: One array [samples, ...] for each output.
        input_names: Of the file, in the model's order.
        output_names: Likewise.
    """

    inputs: Inputs
    outputs: tuple[NDArray[Any], ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


def answer(model: keras.Model, signature: Signature, inputs: Inputs) -> Reference:
    """Run the Keras model on the inputs.

    Raises:
        ExportError: The model itself answers NaN.
    """
    parts = []
    names: tuple[str, ...] = ()
    for start in range(0, len(inputs), LARGEST_BATCH):
        outputs = model(
            signature.pack([array[start : start + LARGEST_BATCH] for array in inputs.arrays]), training=False
        )
        names = output_names(outputs)
        parts.append([keras.ops.convert_to_numpy(leaf) for leaf in keras.tree.flatten(outputs)])
    columns = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    for name, column in zip(names, columns, strict=True):
        if column.dtype.kind == "f" and np.isnan(column).any():
            raise ExportError(
                f"output '{name}' of model '{model.name}'",
                "must hold no NaN",
                f"{int(np.isnan(column).sum())} NaN",
                "Check the weights and the data.",
            )
    return Reference(inputs, columns, tuple(spec.name for spec in signature.inputs), names)
