"""Large kernels of Dense layers stay out of the conversion, and are put into the file afterwards.

TensorFlow's converter takes five times a model's memory: it keeps the constants as they were read, transposed, and
written. A kernel of one value throughout costs it next to nothing, so each large kernel goes in as a value of its own,
its mark, by which the constant that the converter made of it is found and replaced.

That is right only if the converter computes nothing with a kernel, and it does compute with some. It multiplies a
scale into one; it carries what is added before a kernel over to the bias behind it, times the kernel; and it computes
once and for all what does not depend on the inputs. So a model is taken apart only if each multiplication with a large
kernel has on its left something that depends on the inputs and to which nothing constant was added last, and if as
many operators of the file read a mark as of the model: a scaled mark is none any more. Else it is converted whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from keras_prune.models.variables import read
from tflite_export.errors import ExportError
from tflite_export.file.flatbuffer import constant, operator_name

__all__ = ["LARGE", "READERS", "SUMS", "SUSPICIOUS", "TRANSPARENT", "WORTH_WHILE", "Hollow"]

LARGE = 2**20
"""Bytes of a kernel from which it may stay out."""
WORTH_WHILE = 2**24
"""Bytes of such kernels in all from which they do: below, the converter's memory is no matter."""
SMALLEST, STEP = 2.0**97, 2.0**-20
"""The marks: the first, and their relative distance; exact in float32 for as many kernels as a file can hold."""
SUSPICIOUS = 2.0**60
"""Size from which a constant counts as computed from a mark, besides all else."""

READERS = {"MatMul": ("transpose_a", "transpose_b"), "BatchMatMulV2": ("adj_x", "adj_y")}
"""The operations that a kernel may be the right side of, as it is."""
SUMS = {"Add", "AddV2", "AddN", "BiasAdd", "Sub", "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"}
"""The operations that add something."""
TRANSPARENT = {"Identity", "Reshape", "Squeeze", "ExpandDims", "Transpose", "Cast", "StopGradient", "Mul", "RealDiv"}
"""The operations through which a sum is still one, scaled at most."""


class Hollow:
    """Kernels that stay out of one conversion: the model is called with marks in their place, then the file filled.

    Args:
        kernels: [in, out] each, of Dense layers.
    """

    def __init__(self, kernels: tuple[keras.Variable, ...]) -> None:
        self.kernels = kernels
        self._uses: list[int] = []

    @classmethod
    def of(cls, model: keras.Model) -> Hollow:
        """Return the kernels of a model that are large enough; none where they are little in all."""
        kernels = {
            id(layer.kernel): layer.kernel
            for layer in model._flatten_layers()
            if type(layer) is kl.Dense and layer.built and not layer.lora_enabled and layer.variable_dtype == "float32"
        }
        large = [kernel for kernel in kernels.values() if _bytes(kernel) >= LARGE]
        return cls(tuple(large) if sum(map(_bytes, large)) >= WORTH_WHILE else ())

    def call(self, model: Any, inputs: Any) -> Any:
        """Call a model as it is traced, with marks in place of the kernels.

        Raises:
            ExportError: something else than multiply with one is done, or a variable is written to.
        """
        import tensorflow as tf

        marks = [tf.fill(tuple(kernel.shape), np.float32(_mark(i))) for i, kernel in enumerate(self.kernels)]
        scope = keras.StatelessScope(state_mapping=list(zip(self.kernels, marks, strict=True)))
        with scope:
            outputs = model(inputs, training=False)
        moving = _computed_from(keras.tree.flatten(inputs))
        if len(scope.state_mapping) > len(marks) or not all(_is_only_multiplied_with(mark, moving) for mark in marks):
            raise ExportError(
                f"model '{model.name}'",
                "must only multiply with its large kernels, and write to no variable, to be converted without them",
                "another use",
                "Convert it whole.",
            )
        self._uses = [len(mark.consumers()) for mark in marks]
        return outputs

    def fill(self, file: Any) -> bool:
        """Put the kernels into a file that was converted with their marks.

        Args:
            file: its `ModelT`, read from bytes that can be written to, in whose place the kernels are put.

        Returns:
            Whether each was found, read by FULLY_CONNECTED only, and nothing that was computed from one. Else the file
            is worth nothing.
        """
        readers: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)
        tensors: dict[int, Any] = {}
        for subgraph in file.subgraphs:
            for tensor in subgraph.tensors or []:
                tensors.setdefault(tensor.buffer, tensor)
            for operator in subgraph.operators or []:
                for slot, index in enumerate(operator.inputs if operator.inputs is not None else []):
                    if index >= 0:
                        readers[subgraph.tensors[index].buffer].append((operator_name(file, operator), slot))
        found = [0] * len(self.kernels)
        for buffer, tensor in tensors.items():
            values = constant(file, tensor)
            if values is None or values.dtype != np.float32 or not values.size:
                continue
            which = self._which(values)
            if which is None:
                if not np.abs(values).max() <= SUSPICIOUS:  # nor NaN
                    return False
                continue
            if set(readers[buffer]) != {("FULLY_CONNECTED", 1)}:
                return False
            np.copyto(values, read(self.kernels[which]).T)
            found[which] += len(readers[buffer])
        return found == self._uses

    def _which(self, values: Any) -> int | None:
        """Return which kernel's mark a float32 constant is throughout."""
        number = (float(values.flat[0]) / SMALLEST - 1.0) / STEP
        which = int(number) if 0 <= number < len(self.kernels) else -1
        if which != number or values.shape != tuple(self.kernels[which].shape)[::-1]:
            return None
        return which if values.min() == values.max() else None


def _mark(i: int) -> float:
    return SMALLEST * (1.0 + i * STEP)


def _bytes(kernel: keras.Variable) -> int:
    return 4 * int(np.prod(kernel.shape))


def _computed_from(tensors: Iterable[Any]) -> set[str]:
    """Return the names of the operations that give tensors, and of all that depend on these."""
    names: set[str] = set()
    waiting = [tensor.op for tensor in tensors]
    while waiting:
        operation = waiting.pop()
        if operation.name not in names:
            names.add(operation.name)
            waiting += [reader for output in operation.outputs for reader in output.consumers()]
    return names


def _is_only_multiplied_with(mark: Any, moving: set[str]) -> bool:
    """Return whether all that is done with a mark is to multiply with it what the converter cannot know.

    Args:
        mark: as it is traced.
        moving: names of the operations that depend on the model's inputs.
    """
    readers: Sequence[Any] = mark.consumers()
    return bool(readers) and all(
        reader.type in READERS
        and reader.inputs[1] is mark
        and not any(reader.get_attr(flag) for flag in READERS[reader.type])
        and reader.inputs[0].op.name in moving
        and not _ends_in_constant_sum(reader.inputs[0].op, moving)
        for reader in readers
    )


def _ends_in_constant_sum(operation: Any, moving: set[str]) -> bool:
    """Return whether something constant is added in the last step that an operation ends, scaled or not."""
    while operation.type in TRANSPARENT:
        before = [each.op for each in operation.inputs if each.op.name in moving]
        if len(before) != 1:
            return False
        operation = before[0]
    return operation.type in SUMS and not all(each.op.name in moving for each in operation.inputs)
